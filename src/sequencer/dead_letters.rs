//! Dead letters: what no device of a recipient acknowledged for long enough leaves his inbox, and
//! its sender is told.
//!
//! The store is asked, a stretch of users at a time, whose inbox holds what is too old by service
//! time; nothing is asked while a death is on its way into the log, so an answer knows of all.
//! A death is a record. Once it is durable the inbox ends above it: nothing up to there is pushed
//! any more or keeps a marker. The log's consumer tells who sent it, once per message, and a sender
//! who connects hears of it again for a day from the first telling.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::core::Sequencer;
use super::inquiries::{Answered, Refused};
use super::requests::Purpose;
use super::user::Task;
use crate::link::Outlet;
use crate::link::message::{OverdueInbox, ToEdge, ToStore};
use crate::link::record::{ConversationName, Cursor, Failure, Id, Letter, Record};

/// 30 days.
pub const AGE_MS_DEFAULT: u64 = 30 * 24 * 60 * 60 * 1_000;
/// A sender who connects is told for a day from the first telling.
const TOLD_FOR_MS: u64 = 24 * 60 * 60 * 1_000;
/// Failures that one connect tells of.
const TOLD_COUNT_MAX: usize = 500;
/// Between two stretches of one search.
const STRETCH_US: u64 = 50_000;
/// Between two searches.
const SEARCH_US_MIN: u64 = 200_000;
const SEARCH_US_MAX: u64 = 3_600_000_000;

/// See the module.
pub(super) struct DeadLetters {
    age_ms: u64,
    /// Where the search goes on.
    after: Bytes,
    is_asked: bool,
    /// Inboxes that were found and are not looked at yet, and records that are not durable yet.
    under_way: usize,
    due_us: u64,
    /// Letters of the deaths that this answer of the store led to, by conversation and seq: of two
    /// recipients who lose the same message the first makes it news.
    news: BTreeSet<(ConversationName, u64)>,
    /// Who asked for the replay that stands at a position.
    pub replays: BTreeMap<u64, u64>,
}

impl Default for DeadLetters {
    fn default() -> DeadLetters {
        DeadLetters {
            age_ms: AGE_MS_DEFAULT,
            after: Bytes::new(),
            is_asked: false,
            under_way: 0,
            due_us: 0,
            news: BTreeSet::new(),
            replays: BTreeMap::new(),
        }
    }
}

/// What is asked to be put back into an inbox.
pub struct Replay {
    pub inquiry: u64,
    pub convo: ConversationName,
    pub first: u64,
    pub seqs: Vec<u64>,
}

impl Sequencer {
    /// What is not delivered within so many milliseconds of service is a dead letter.
    pub fn set_dead_after(&mut self, age_ms: u64) {
        self.dead_letters.age_ms = age_ms;
        self.service_time.set_shortest_ms(age_ms);
    }

    /// Goes on with the search, when it is time.
    pub(super) fn search_overdue(&mut self, out: &mut dyn Outlet) {
        let state = &mut self.dead_letters;
        if state.is_asked || state.under_way > 0 || self.now.monotonic_us < state.due_us {
            return;
        }
        state.is_asked = true;
        let (after, age_ms) = (state.after.clone(), state.age_ms);
        #[cfg(test)]
        let age_ms = match crate::simulation::planted::Planted::EarlyDeath.is_planted() {
            true => age_ms / 4,
            false => age_ms,
        };
        let now_ms = self.service_ms();
        self.ask(ToStore::FindOverdue { after, now_ms, age_ms }, Purpose::Overdue, out);
    }

    pub(super) fn overdue_found(
        &mut self,
        rows: Vec<OverdueInbox>,
        next: Bytes,
        out: &mut dyn Outlet,
    ) {
        let state = &mut self.dead_letters;
        state.is_asked = false;
        let pause_us = match next.is_empty() {
            true => (state.age_ms.saturating_mul(1_000) / 20).clamp(SEARCH_US_MIN, SEARCH_US_MAX),
            false => STRETCH_US,
        };
        state.due_us = self.now.monotonic_us + pause_us;
        state.after = next;
        state.news.clear();
        state.under_way += rows.len();
        for row in rows {
            self.with_user(row.user.clone(), Task::Bury(row), out);
        }
    }

    /// The user is loaded: what he has not acknowledged since is dead.
    pub(super) fn bury(&mut self, user: &Id, overdue: OverdueInbox, out: &mut dyn Outlet) {
        let OverdueInbox { convo, last, mut letters, .. } = overdue;
        let entry = self.users.get(user).expect("loaded by the caller");
        let cursors = || entry.devices.values().filter_map(|device| device.cursors.get(&convo));
        let reached = cursors().map(|cursor| cursor.floor()).max().unwrap_or(0);
        let joined = entry.stay(&convo).map_or(0, |stay| stay.joined);
        // An acknowledgement that a crash may still take back is neither one nor none.
        let is_settled = cursors().all(|cursor| cursor.delivered == cursor.durable_delivered);
        // Nor is a change of who is in the group.
        let is_changing = self.conversations.get(&convo).is_some_and(|it| it.is_changing);
        if last <= reached || last < joined || !is_settled || is_changing {
            self.dead_letters.under_way -= 1;
            return;
        }
        // Where the last marker ends is known with the conversation.
        self.touch_conversation(&convo, out);
        letters.retain(|letter| letter.seq > reached);
        for letter in &mut letters {
            letter.is_news &= self.dead_letters.news.insert((convo.clone(), letter.seq));
        }
        let at = self.service_ms();
        self.appender()
            .append(Record::Dead { user: user.clone(), convo, last, at, letters }, vec![]);
    }

    /// A death is durable: the inbox ends above it.
    pub(super) fn dead_durable(
        &mut self,
        user: &Id,
        convo: &ConversationName,
        last: u64,
        letters: &[Letter],
    ) {
        self.dead_letters.under_way -= 1;
        self.counters.dead_letters_total += letters.len() as u64;
        let Some(entry) = self.users.get_mut(user) else { return };
        for device in entry.set_dead(convo, last) {
            self.gather((user.clone(), device, convo.clone()), None);
        }
    }

    /// The log's consumer: whoever sent it hears of it.
    pub(super) fn consume_dead(
        &mut self,
        lsn: u64,
        user: &Id,
        convo: &ConversationName,
        letters: Vec<Letter>,
        out: &mut dyn Outlet,
    ) {
        let is_told =
            |letter: &Letter| letter.is_news && !letter.id.is_empty() && letter.from != *user;
        let told: Vec<Letter> = letters.into_iter().filter(is_told).collect();
        self.depart(lsn, told.len(), None);
        for Letter { seq, from, id, .. } in told {
            // Who is not loaded has no session: he is told when he connects.
            if self.users.contains_key(&from) || self.registry.contains(&from) {
                let failure = Failure { convo: convo.clone(), seq, id, told_at: 0 };
                self.with_user(from, Task::Failed(lsn, failure), out);
            } else {
                self.fanout.told_one(lsn);
            }
        }
    }

    /// One of his messages failed: every connected device of his is told.
    pub(super) fn failed(&mut self, user: &Id, lsn: u64, failure: Failure, out: &mut dyn Outlet) {
        self.fanout.told_one(lsn);
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let place = (failure.convo.clone(), failure.seq);
        let failure = entry.failures.entry(place).or_insert(failure).clone();
        let sessions = entry.devices.values().filter_map(|device| device.session.as_ref());
        let sessions: Vec<_> = sessions.map(|session| (session.peer, session.target())).collect();
        let Failure { convo, seq, id, .. } = failure.clone();
        for (peer, target) in &sessions {
            let (convo, id, target) = (convo.clone(), id.clone(), *target);
            self.counters.failed_told_total += 1;
            self.say(*peer, ToEdge::Failed { target, convo, seq, id }, out);
        }
        if !sessions.is_empty() {
            self.note_told(user, vec![failure]);
        }
    }

    /// A session begins: it hears what failed lately, or was never told.
    pub(super) fn tell_failures(&mut self, user: &Id, device: &Id, out: &mut dyn Outlet) {
        let now_ms = self.service_ms();
        let Some(entry) = self.users.get_mut(user).filter(|user| !user.failures.is_empty()) else {
            return;
        };
        let is_over = |failure: &Failure| {
            failure.told_at != 0 && now_ms >= failure.told_at.saturating_add(TOLD_FOR_MS)
        };
        let (over, due): (Vec<_>, Vec<_>) =
            entry.failures.values().cloned().partition(|failure| is_over(failure));
        let over: Vec<_> = over.into_iter().take(TOLD_COUNT_MAX).collect();
        over.iter().for_each(|it| drop(entry.failures.remove(&(it.convo.clone(), it.seq))));
        let Some(session) = self.session(user, device) else { return };
        let (peer, target) = (session.peer, session.target());
        let due: Vec<Failure> = due.into_iter().take(TOLD_COUNT_MAX).collect();
        for Failure { convo, seq, id, .. } in due.iter().cloned() {
            self.counters.failed_told_total += 1;
            self.say(peer, ToEdge::Failed { target, convo, seq, id }, out);
        }
        self.note_told(user, due.into_iter().filter(|failure| failure.told_at == 0).collect());
        if !over.is_empty() {
            let failures = over.into_iter().map(|it| (it.convo, it.seq)).collect();
            let user = user.clone();
            self.appender().append(Record::Forgotten { user, failures }, Vec::new());
        }
    }

    /// The day begins.
    fn note_told(&mut self, user: &Id, mut failures: Vec<Failure>) {
        let told_at = self.service_ms().max(1);
        failures.retain(|failure| failure.told_at == 0);
        failures.iter_mut().for_each(|failure| failure.told_at = told_at);
        if failures.is_empty() {
            return;
        }
        if let Some(entry) = self.users.get_mut(user) {
            for failure in &failures {
                entry.failures.insert((failure.convo.clone(), failure.seq), failure.clone());
            }
        }
        self.appender().append(Record::Told { user: user.clone(), failures }, Vec::new());
    }

    /// Puts dead letters back. The markers stand before the record that takes the end of the inbox
    /// down, so a crash between the two leaves no letter without either.
    pub(super) fn replay(&mut self, user: &Id, replay: Replay) {
        let Replay { inquiry, convo, first, seqs } = replay;
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let cursors = entry.devices.values().filter_map(|device| device.cursors.get(&convo));
        let delivered = cursors.map(|cursor| cursor.delivered).max().unwrap_or(0);
        if delivered >= first {
            let why = format!("he has acknowledged {convo} up to {delivered}: it is history");
            return self.answer_inquiry(inquiry, Err(Refused::Conflict(why)));
        }
        let mut rows = Vec::new();
        entry.dead.insert(convo.clone(), first - 1);
        for device in entry.targets() {
            let owner = entry.devices.get_mut(&device).expect("one of the targets");
            let cursor = owner.cursors.entry(convo.clone()).or_default();
            cursor.dead = first - 1;
            cursor.marker = cursor.floor() + 1;
            let (delivered, read, marker) = (cursor.delivered, cursor.read, cursor.marker);
            let (user, convo) = (user.clone(), convo.clone());
            rows.push(Cursor { user, device, convo, delivered, read, marker });
        }
        self.counters.replayed_total += seqs.len() as u64;
        self.append_cursors(rows, Vec::new());
        let at = self.service_ms();
        let record = Record::Replayed { user: user.clone(), convo, first, at, seqs };
        let lsn = self.appender().append(record, Vec::new());
        self.dead_letters.replays.insert(lsn, inquiry);
    }

    /// They are in the inbox: whoever is connected gets them.
    pub(super) fn replay_durable(
        &mut self,
        lsn: u64,
        (user, convo): (&Id, &ConversationName),
        first: u64,
        seqs: &[u64],
        out: &mut dyn Outlet,
    ) {
        if let Some(inquiry) = self.dead_letters.replays.remove(&lsn) {
            self.answer_inquiry(inquiry, Ok(Answered::Replayed { count: seqs.len() as u64 }));
        }
        let Some(entry) = self.users.get(user) else { return };
        let live = entry.devices.iter().filter(|(_, device)| device.session.is_some());
        for device in live.map(|(name, _)| name.clone()).collect::<Vec<Id>>() {
            self.catch_up_from(user, &device, convo.clone(), first - 1, out);
        }
    }
}
