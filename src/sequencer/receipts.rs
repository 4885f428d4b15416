//! Receipts of groups: how many members have come to a message, told to who sent it.
//!
//! Per group the watermarks of its members are counted by where they stand, so an acknowledgement
//! moves one number from one place to another, whatever the size of the group. What changed is told
//! together: at once after a quiet time, and then once in [`WINDOW_US`]. Of one kind a sender hears
//! in a window at most one frame for each of his last [`TRACKED_COUNT`] messages, and only those
//! whose counts differ: who has come to a message has come to all before it. So a message that all
//! of 1,024 read within a second costs its sender three or four frames of each kind, not 1,023.
//!
//! A record of acknowledgements stays in flight until its news is told, so a crash repeats a
//! receipt and loses none. Counts never fall but by a change of membership: an order of watermarks
//! that only rise. Loaded when somebody first acknowledges; what is loaded is told again.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::core::Sequencer;
use super::group::Group;
use super::requests::Purpose;
use super::user::Task;
use crate::link::message::{FromStore, Reached, Tally, ToStore, Watermark};
use crate::link::record::{ConversationName, Id, Member};
use crate::link::{Outlet, fingerprint};

/// Between two tellings of one group.
pub const WINDOW_US: u64 = 500_000;
/// Of each sender, his last messages whose counts are told.
pub const TRACKED_COUNT: usize = 8;

const KINDS: [Watermark; 2] = [Watermark::Delivered, Watermark::Read];

/// A message whose sender is told how many have come to it.
struct Tracked {
    seq: u64,
    /// What he was told last, of each kind.
    told: [Option<Tally>; 2],
}

/// Somebody's watermarks, as they durably are.
#[derive(Clone, Debug)]
pub struct Risen {
    /// Position of the record that says so.
    pub lsn: u64,
    pub user: Id,
    pub watermarks: [u64; 2],
    /// His own other devices are to hear that he read.
    pub has_read: bool,
}

/// See the module.
#[derive(Default)]
pub struct Receipts {
    asked: bool,
    loaded: bool,
    /// Of those present.
    watermarks: HashMap<Id, [u64; 2]>,
    /// How many stand at a seq.
    standing: [BTreeMap<u64, u64>; 2],
    sent: BTreeMap<Id, VecDeque<Tracked>>,
    /// What waits for the loading.
    waiting: Vec<Risen>,
    /// Who came where since the last telling: two of them at most, since one may be the receiver.
    movers: [BTreeMap<u64, Vec<Id>>; 2],
    readers: BTreeMap<Id, u64>,
    /// Records in flight until they are told.
    owed: Vec<u64>,
    told_at_us: u64,
    due_us: Option<u64>,
}

/// One receipt for all sessions of one user.
#[derive(Debug, PartialEq, Eq)]
struct Telling {
    to: Id,
    seq: u64,
    watermark: Watermark,
    by: Id,
    tally: Tally,
}

impl Receipts {
    /// Nothing waits here.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.owed.is_empty() && self.due_us.is_none()
    }

    /// A message was sent.
    pub fn track(&mut self, seq: u64, from: &Id) {
        let sent = self.sent.entry(from.clone()).or_default();
        sent.push_back(Tracked { seq, told: [None, None] });
        if sent.len() > TRACKED_COUNT {
            sent.pop_front();
        }
    }

    /// Somebody came or went.
    pub fn note_member(&mut self, member: &Member) {
        if !self.loaded {
            return;
        }
        self.stand(&member.user, None);
        if member.is_in() {
            let begins_after = member.last_stay().joined - 1;
            self.stand(&member.user, Some([begins_after; 2]));
        } else {
            self.sent.remove(&member.user);
        }
    }

    /// What the store has, of those who are in the group now: somebody may have come or gone since
    /// it was asked.
    fn load(&mut self, group: &Group, rows: &[Reached], senders: &[(u64, u64)]) {
        self.loaded = true;
        let rows: HashMap<&Id, &Reached> = rows.iter().map(|row| (&row.user, row)).collect();
        let mut names: HashMap<u64, &Id> = HashMap::new();
        for member in group.present() {
            let stored = rows.get(&member.user).map_or([0; 2], |row| [row.delivered, row.read]);
            let begins_after = member.last_stay().joined - 1;
            self.stand(&member.user, Some(stored.map(|seq| seq.max(begins_after))));
            names.insert(fingerprint(&member.user, ""), &member.user);
        }
        let since = std::mem::take(&mut self.sent);
        for (seq, sender) in senders {
            if let Some(sender) = names.get(sender) {
                self.track(*seq, sender);
            }
        }
        let stayed = since.into_iter().filter(|(sender, _)| group.is_in(sender));
        for (sender, sent) in stayed {
            let known = self.sent.get(&sender).and_then(|sent| sent.back()).map_or(0, |it| it.seq);
            let new: Vec<u64> = sent.iter().map(|it| it.seq).filter(|seq| *seq > known).collect();
            new.into_iter().for_each(|seq| self.track(seq, &sender));
        }
    }

    /// Puts somebody in a new place, or takes him out.
    fn stand(&mut self, user: &Id, now: Option<[u64; 2]>) {
        let before = match now {
            Some(now) => self.watermarks.insert(user.clone(), now),
            None => self.watermarks.remove(user),
        };
        for kind in 0..KINDS.len() {
            if let Some(before) = before
                && let Some(count) = self.standing[kind].get_mut(&before[kind])
            {
                *count -= 1;
                if *count == 0 {
                    self.standing[kind].remove(&before[kind]);
                }
            }
            if let Some(now) = now {
                *self.standing[kind].entry(now[kind]).or_default() += 1;
            }
        }
    }

    /// Takes news; it is told later, together with others. Nobody moved to where he began.
    fn rise(&mut self, risen: Risen, begins_after: u64, now_us: u64) {
        self.owed.push(risen.lsn);
        self.due_us.get_or_insert(now_us.max(self.told_at_us + WINDOW_US));
        let Some(before) = self.watermarks.get(&risen.user).copied() else { return };
        let now = [0, 1].map(|kind| before[kind].max(risen.watermarks[kind]));
        self.stand(&risen.user, Some(now));
        for (movers, seq) in self.movers.iter_mut().zip(risen.watermarks) {
            if seq <= begins_after {
                continue;
            }
            let movers = movers.entry(seq).or_default();
            if movers.len() < 2 && !movers.contains(&risen.user) {
                movers.push(risen.user.clone());
            }
        }
        // What was read before the reader joined is not his in this group.
        if risen.has_read && risen.watermarks[1] > begins_after {
            self.readers.insert(risen.user, now[1]);
        }
    }

    /// What is news to whom.
    fn tellings(&mut self) -> Vec<Telling> {
        let of = (self.watermarks.len() as u64).saturating_sub(1);
        let mut tellings = Vec::new();
        for kind in 0..KINDS.len() {
            let counts = Counts::new(&self.standing[kind]);
            let movers = std::mem::take(&mut self.movers[kind]);
            let watermarks = &self.watermarks;
            let tally_of = |user: &Id, seq: u64| {
                let own = watermarks.get(user).is_some_and(|at| at[kind] >= seq);
                Tally { count: counts.at_least(seq) - u64::from(own), of }
            };
            for (sender, sent) in &mut self.sent {
                let mut newer = None;
                for tracked in sent.iter_mut().rev() {
                    let tally = tally_of(sender, tracked.seq);
                    let says_more = newer.replace(tally.count) != Some(tally.count);
                    // Without a mover there is no news: a member has come or gone, or the counts
                    // were loaded, and what was news before was told before.
                    let others = movers.range(tracked.seq..).flat_map(|(_, users)| users);
                    let Some(by) = others.into_iter().find(|user| *user != sender) else {
                        continue;
                    };
                    let was_told = tracked.told[kind].replace(tally) == Some(tally);
                    if tally.count == 0 || was_told || !says_more {
                        continue;
                    }
                    let (to, seq, by) = (sender.clone(), tracked.seq, by.clone());
                    tellings.push(Telling { to, seq, watermark: KINDS[kind], by, tally });
                }
            }
            if KINDS[kind] == Watermark::Read {
                let mut readers = std::mem::take(&mut self.readers);
                readers.retain(|reader, _| watermarks.contains_key(reader));
                for (reader, seq) in readers {
                    let tally = tally_of(&reader, seq);
                    let (to, by) = (reader.clone(), reader);
                    tellings.push(Telling { to, seq, watermark: Watermark::Read, by, tally });
                }
            }
        }
        tellings
    }
}

/// How many stand at a seq or beyond it, for many seqs.
struct Counts {
    /// Rising.
    seqs: Vec<u64>,
    at_least: Vec<u64>,
}

impl Counts {
    fn new(standing: &BTreeMap<u64, u64>) -> Counts {
        let seqs = standing.keys().copied().collect();
        let mut sum = 0;
        let mut at_least: Vec<u64> = standing
            .values()
            .rev()
            .map(|count| {
                sum += count;
                sum
            })
            .collect();
        at_least.reverse();
        Counts { seqs, at_least }
    }

    fn at_least(&self, seq: u64) -> u64 {
        let index = self.seqs.partition_point(|at| *at < seq);
        self.at_least.get(index).copied().unwrap_or(0)
    }
}

impl Sequencer {
    /// Watermarks in a group rose.
    pub(super) fn group_risen(
        &mut self,
        convo: &ConversationName,
        risen: Risen,
        out: &mut dyn Outlet,
    ) {
        self.touch_conversation(convo, out);
        let entry = self.conversations.get_mut(convo).expect("touched");
        entry.receipts.get_or_insert_default().waiting.push(risen);
        self.take_risen(convo);
    }

    /// Takes what waits, as soon as the group and its watermarks are there.
    pub(super) fn take_risen(&mut self, convo: &ConversationName) {
        let now_us = self.now.monotonic_us;
        let entry = self.conversations.get_mut(convo).filter(|entry| entry.loaded);
        let Some(entry) = entry else { return };
        // A channel has no receipts: nobody is told how far its subscribers have come.
        if entry.channel.is_some() {
            let receipts = entry.receipts.take();
            for risen in receipts.into_iter().flat_map(|receipts| receipts.waiting) {
                self.fanout.told_one(risen.lsn);
            }
            return;
        }
        let Some(receipts) = entry.receipts.as_mut() else { return };
        if !receipts.loaded {
            if !std::mem::replace(&mut receipts.asked, true) {
                let ask = ToStore::LoadWatermarks { convo: convo.clone() };
                self.requests.ask(ask, Purpose::Watermarks(convo.clone()));
            }
            return;
        }
        for risen in std::mem::take(&mut receipts.waiting) {
            let member = entry.group.as_ref().and_then(|group| group.member(&risen.user));
            let begins_after = member.map_or(0, |member| member.last_stay().joined - 1);
            receipts.rise(risen, begins_after, now_us);
        }
        if let Some(due_us) = receipts.due_us {
            self.receipts_due.insert(due_us, convo.clone());
        }
    }

    pub(super) fn watermarks_loaded(&mut self, convo: &ConversationName, answer: FromStore) {
        let FromStore::Watermarks { rows, senders, .. } = answer else { return };
        let Some(entry) = self.conversations.get_mut(convo) else { return };
        if let (Some(receipts), Some(group)) = (entry.receipts.as_mut(), entry.group.as_ref()) {
            receipts.load(group, &rows, &senders);
        }
        self.take_risen(convo);
    }

    /// Tells what is due.
    pub(super) fn tell_receipts(&mut self, out: &mut dyn Outlet) {
        let now_us = self.now.monotonic_us;
        while let Some((_, convo)) = self.receipts_due.pop_first_if(now_us) {
            let entry = self.conversations.get_mut(&convo);
            let Some(receipts) = entry.and_then(|entry| entry.receipts.as_mut()) else { continue };
            receipts.due_us = None;
            receipts.told_at_us = now_us;
            let tellings = receipts.tellings();
            for lsn in std::mem::take(&mut receipts.owed) {
                self.fanout.told_one(lsn);
            }
            for Telling { to, seq, watermark, by, tally } in tellings {
                // Who is not loaded has no session, and nobody to tell.
                if self.users.contains_key(&to) || self.registry.contains(&to) {
                    let (convo, tally) = (convo.clone(), Some(tally));
                    self.with_user(to, Task::Tell { convo, seq, watermark, by, tally }, out);
                }
            }
        }
    }
}

/// Groups with news, by when it is told.
#[derive(Default)]
pub(super) struct Due {
    groups: std::collections::BTreeSet<(u64, ConversationName)>,
}

impl Due {
    pub fn insert(&mut self, due_us: u64, convo: ConversationName) {
        self.groups.insert((due_us, convo));
    }

    pub fn first_us(&self) -> Option<u64> {
        self.groups.first().map(|(due_us, _)| *due_us)
    }

    fn pop_first_if(&mut self, now_us: u64) -> Option<(u64, ConversationName)> {
        if self.first_us()? > now_us { None } else { self.groups.pop_first() }
    }
}

#[cfg(test)]
mod tests;
