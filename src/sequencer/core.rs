//! The sequencer's logic: order, dedup, sessions, fan-out and cursors of all conversations and
//! users.
//!
//! In memory, rebuilt from the store; what is not durable is visible to nobody. Events come in
//! through [`Sequencer::handle`] and [`Sequencer::tick`]; what it says goes into an [`Outlet`].
//! When the store refuses its epoch it asks to be thrown away ([`Outcome::Rebuild`]): everything
//! speculative goes with it, and the next one acquires a higher epoch.

use std::collections::BTreeMap;

use bytes::Bytes;
use hashbrown::HashMap;

use super::appender::{Appender, Decided, Waiter};
use super::audience::Channels;
use super::budget::{Budget, Residents};
use super::conversation::Conversation;
use super::dead_letters::DeadLetters;
use super::devices::Devices;
use super::fanout::Fanout;
use super::inquiries::{Answered, Refused};
use super::limits::{CODES, LimitOptions, Limits};
use super::presence::Presences;
use super::receipts::Due;
use super::registry::{Held, Registry};
use super::requests::{Purpose, Refusal, Requests};
use super::service_time::ServiceTime;
use super::typing::Typing;
use super::user::{Task, User};
use crate::admin::Latency;
use crate::clock::Now;
use crate::link::message::{Code, FromStore, ToEdge, ToSequencer, ToStore};
use crate::link::record::{ConversationName, Id, Record};
use crate::link::wire::Wire;
use crate::link::{LinkEvent, Outlet, PeerId};

/// Cursors gather this long, newest per device and conversation, before they enter the log.
pub(super) const GATHER_US: u64 = 20_000;
/// Bytes of decided records that may wait for the store; beyond it sends are refused.
pub(super) const WAITING_SIZE_MAX: usize = 64 * 1024 * 1024;
/// When a refused client may come again.
pub(super) const RETRY_MS: u32 = 500;

/// What the host does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Continue,
    /// Another sequencer holds a higher epoch, or the store's log is not the one we knew: drop this
    /// one and start a new one with a new incarnation.
    Rebuild,
}

/// Counters for the metrics page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub accepted_total: u64,
    pub duplicates_total: u64,
    pub refused_total: u64,
    /// In the order of [`CODES`].
    pub refused_by_code: [u64; CODES.len()],
    pub delivered_total: u64,
    pub backlog_messages_total: u64,
    pub receipts_total: u64,
    pub markers_total: u64,
    pub acknowledgements_total: u64,
    pub replaced_total: u64,
    /// Messages that left an inbox undelivered, one per recipient; and those put back.
    pub dead_letters_total: u64,
    pub replayed_total: u64,
    /// `failed` handed to edges.
    pub failed_told_total: u64,
    /// Groups made, and changes of membership.
    pub group_changes_total: u64,
    /// Channels made, changes of who may write, subscriptions begun and ended.
    pub channel_changes_total: u64,
    /// Live pushes to listeners of a channel that its rate left out.
    pub channel_pushes_left_out_total: u64,
    pub devices_revoked_total: u64,
    /// Rows of presence told to edges as news.
    pub presence_total: u64,
    /// Clients to whom edges were told to say that somebody is typing.
    pub typing_total: u64,
    /// Devices whose leaving was logged.
    pub devices_seen_total: u64,
    /// Conversations and users dropped from memory to stay within the budget.
    pub evicted_total: u64,
    /// Entries of a peer that could not be decoded.
    pub malformed_total: u64,
    /// Clients that claimed a seq above their conversation's head.
    pub seq_above_head_total: u64,
    /// Messages that a range read should have held and did not. Must stay 0.
    pub unaccounted: u64,
}

/// Times for the metrics page.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// From the arrival of a send until its answer.
    pub send: Latency,
    /// From the cut of a batch until the store's answer.
    pub append: Latency,
}

/// One edge shard.
pub(super) struct Edge {
    pub name: Id,
    /// Counts the sessions with it.
    pub life: u64,
    /// The sessions that it holds.
    pub held: Held,
}

/// See the module.
pub struct Sequencer {
    pub(super) store: PeerId,
    incarnation: u64,
    pub(super) now: Now,
    /// `None` until the store granted an epoch.
    pub(super) appender: Option<Appender>,
    pub(super) requests: Requests,
    pub(super) conversations: HashMap<ConversationName, Conversation>,
    pub(super) users: HashMap<Id, User>,
    pub(super) registry: Registry,
    pub(super) edges: BTreeMap<PeerId, Edge>,
    lives: u64,
    pub(super) fanout: Fanout,
    pub(super) channels: Channels,
    pub(super) gathered: Gathered,
    pub(super) receipts_due: Due,
    pub(super) devices: Devices,
    pub(super) presences: Presences,
    pub(super) typing: Typing,
    pub(super) budget: Budget,
    pub(super) limits: Limits,
    pub(super) residents: Residents,
    pub(super) sessions_counter: u64,
    /// Catchings-up of all sessions in this life.
    pub(super) streams_counter: u64,
    pub(super) last_mid: u64,
    pub(super) last_ts: u64,
    pub(super) service_time: ServiceTime,
    pub(super) dead_letters: DeadLetters,
    /// Inquiries with their answers, for the host to take.
    pub(super) answered: Vec<(u64, Result<Answered, Refused>)>,
    /// The store had no room for the batch under way: new sends are refused until it has.
    pub(super) refuses_sends: bool,
    /// When an epoch that the store could not grant is asked for again.
    epoch_due_us: Option<u64>,
    outcome: Outcome,
    /// Peers that broke the protocol, for the host to cut.
    pub broken: Vec<PeerId>,
    pub counters: Counters,
    pub latencies: Latencies,
    /// When the batch under way was cut.
    cut_us: u64,
}

/// Changed cursors on their way into one record.
#[derive(Default)]
pub(super) struct Gathered {
    pub rows: BTreeMap<(Id, Id, ConversationName), Vec<Waiter>>,
    pub since_us: u64,
}

impl Sequencer {
    /// `incarnation`: random; names this life to the store. `store`: the peer that is the store.
    pub fn new(incarnation: u64, store: PeerId, budget: Budget) -> Sequencer {
        Sequencer {
            store,
            incarnation,
            now: Now::default(),
            appender: None,
            requests: Requests::default(),
            conversations: HashMap::new(),
            users: HashMap::new(),
            registry: Registry::default(),
            edges: BTreeMap::new(),
            lives: 0,
            fanout: Fanout::default(),
            channels: Channels::default(),
            gathered: Gathered::default(),
            receipts_due: Due::default(),
            devices: Devices::default(),
            presences: Presences::default(),
            typing: Typing::default(),
            budget,
            limits: Limits::new(LimitOptions::default()),
            residents: Residents::default(),
            sessions_counter: 0,
            streams_counter: 0,
            last_mid: 0,
            last_ts: 0,
            service_time: ServiceTime::default(),
            dead_letters: DeadLetters::default(),
            answered: Vec::new(),
            refuses_sends: false,
            epoch_due_us: None,
            outcome: Outcome::Continue,
            broken: Vec::new(),
            counters: Counters::default(),
            latencies: Latencies::default(),
            cut_us: 0,
        }
    }

    /// Takes one event of the links.
    pub fn handle(&mut self, now: Now, event: LinkEvent, out: &mut dyn Outlet) {
        self.now = now;
        match event {
            LinkEvent::Began { peer, .. } if peer == self.store => self.store_began(out),
            LinkEvent::Ended { peer } if peer == self.store => {
                self.epoch_due_us = None;
                self.requests.close();
            }
            LinkEvent::Entry { peer, number, entry } if peer == self.store => {
                match FromStore::from_bytes(entry) {
                    Ok(answer) => self.store_said(answer, out),
                    Err(_) => self.break_with(peer),
                }
                out.answered(peer, number);
            }
            LinkEvent::Began { peer, name, .. } => self.edge_began(peer, name, out),
            LinkEvent::Ended { peer } => self.edge_ended(peer),
            LinkEvent::Entry { peer, number, entry } => match ToSequencer::from_bytes(entry) {
                Ok(said) => self.edge_said(peer, number, said, out),
                Err(_) => self.break_with(peer),
            },
        }
    }

    /// Does what is due, and says what has gathered. Once a turn of the loop, after the events.
    pub fn tick(&mut self, now: Now, out: &mut dyn Outlet) -> Outcome {
        self.now = now;
        if self.epoch_due_us.is_some_and(|due_us| now.monotonic_us >= due_us) {
            self.ask_epoch(out);
        }
        self.pass_service_time();
        if self.appender.is_some() {
            self.advance_fanout(out);
            self.push_channels(out);
            self.tell_receipts(out);
            self.tell_presence(out);
            self.search_overdue(out);
            self.flush_gathered();
            self.flush_seen();
            self.keep_budget();
            self.limits.expire(now.monotonic_us);
            self.cut_batch(out);
        }
        self.requests.flush(self.store, now.monotonic_us, out);
        self.outcome
    }

    /// The highest log position known durable; 0 before an epoch is granted.
    pub fn durable_lsn(&self) -> u64 {
        self.appender.as_ref().map_or(0, Appender::durable_lsn)
    }

    /// Whether an epoch is granted: sends are taken.
    pub fn is_serving(&self) -> bool {
        self.appender.is_some()
    }

    /// Sessions that stand, over all edges.
    pub fn session_count(&self) -> usize {
        self.edges.values().map(|edge| edge.held.count()).sum()
    }

    /// Users whose presence somebody looks at.
    pub fn watched_count(&self) -> usize {
        self.presences.count()
    }

    /// Positions between the end of the log and what fan-out has settled.
    pub fn fanout_lag(&self) -> u64 {
        self.durable_lsn().saturating_sub(self.fanout.position())
    }

    /// The microseconds until [`Sequencer::tick`] has something to do by itself, at most `max_us`.
    pub fn wait_us(&self, max_us: u64) -> u64 {
        if self.appender.is_some() && self.fanout.has_more(self.now.monotonic_us) {
            return 1;
        }
        let gathers = !self.gathered.rows.is_empty();
        let flush_us = gathers.then_some(self.gathered.since_us + GATHER_US);
        let max_us = self.channels.wait_us().map_or(max_us, |wait_us| wait_us.min(max_us));
        let others = [
            flush_us,
            self.receipts_due.first_us(),
            self.devices.seen.first_us(),
            self.presences.first_us(),
        ];
        let due_us = others.into_iter().flatten().min();
        due_us.map_or(max_us, |due| due.saturating_sub(self.now.monotonic_us).clamp(1, max_us))
    }

    pub(super) fn appender(&mut self) -> &mut Appender {
        self.appender.as_mut().expect("nothing is decided before an epoch is granted")
    }

    /// An answer to an entry of an edge, unless the session it came in is over.
    pub(super) fn answer(&mut self, waiter: Waiter, say: ToEdge, out: &mut dyn Outlet) {
        if self.life_of(waiter.peer) == waiter.life {
            self.say(waiter.peer, say, out);
            out.answered(waiter.peer, waiter.number);
        }
    }

    pub(super) fn refuse(&mut self, waiter: Waiter, code: Code, why: &str, out: &mut dyn Outlet) {
        self.count_refusal(code);
        let retry_ms = if code == Code::Unavailable { RETRY_MS } else { 0 };
        let refused = ToEdge::Refused { to: waiter.number, code, message: why.into(), retry_ms };
        self.answer(waiter, refused, out);
    }

    /// A push or an answer. One that the link does not take ends the session with that edge (the
    /// host sees to it), and the edge tells its sessions again: nothing is lost by dropping it
    /// here.
    pub(super) fn say(&mut self, peer: PeerId, say: ToEdge, out: &mut dyn Outlet) {
        let _ended_by_the_host = out.submit(peer, say.to_bytes());
    }

    pub(super) fn life_of(&self, peer: PeerId) -> u64 {
        self.edges.get(&peer).map_or(0, |edge| edge.life)
    }

    pub(super) fn ask(&mut self, ask: ToStore, purpose: Purpose, out: &mut dyn Outlet) {
        self.requests.ask(ask, purpose);
        self.requests.flush(self.store, self.now.monotonic_us, out);
    }

    pub(super) fn break_with(&mut self, peer: PeerId) {
        self.counters.malformed_total += 1;
        self.broken.push(peer);
    }

    /// A client knows more of a conversation than is known here. Another sequencer may have told it
    /// so, one with a higher epoch that nobody has told us of: only the store knows. If ours holds,
    /// the claim is false.
    pub(super) fn check_claim(&mut self, refusal: Option<Refusal>, out: &mut dyn Outlet) {
        let (epoch, incarnation) = (self.appender().epoch, self.incarnation);
        self.ask(ToStore::Resume { epoch, incarnation }, Purpose::Claim(refusal), out);
    }

    fn claim_is_false(&mut self, refusal: Option<Refusal>, out: &mut dyn Outlet) {
        let exists = refusal.as_ref().is_none_or(|refusal| refusal.code == Code::BadRequest);
        self.counters.seq_above_head_total += u64::from(exists);
        if let Some(Refusal { waiter, code, why }) = refusal {
            self.refuse(waiter, code, why, out);
        }
    }

    fn store_began(&mut self, out: &mut dyn Outlet) {
        self.requests.close();
        self.ask_epoch(out);
    }

    fn ask_epoch(&mut self, out: &mut dyn Outlet) {
        self.epoch_due_us = None;
        let incarnation = self.incarnation;
        let ask = match &self.appender {
            None => ToStore::Acquire { incarnation },
            Some(appender) => ToStore::Resume { epoch: appender.epoch, incarnation },
        };
        self.requests.ask_first(self.store, ask, out);
    }

    fn store_said(&mut self, answer: FromStore, out: &mut dyn Outlet) {
        if let FromStore::Unavailable { to } = answer {
            return self.store_cannot(to);
        }
        let Some(purpose) = self.requests.take(answer.to()) else {
            return;
        };
        match (answer, purpose) {
            (granted @ FromStore::Granted { .. }, _) => self.granted(granted, out),
            (FromStore::Resumed { .. }, Purpose::Claim(refusal)) => {
                self.claim_is_false(refusal, out)
            }
            (FromStore::Resumed { next_lsn, .. }, _) => self.resumed(next_lsn),
            (FromStore::Fenced { .. }, _) => self.outcome = Outcome::Rebuild,
            (FromStore::Durable { next_lsn, .. }, _) => self.became_durable(next_lsn, out),
            (
                FromStore::Conversation { head, fingerprints, complete, .. },
                Purpose::Conversation(convo),
            ) => self.conversation_loaded(convo, head, fingerprints, complete, out),
            (answer @ FromStore::Members { .. }, Purpose::Members(convo)) => {
                self.members_loaded(convo, answer, out);
            }
            (answer @ FromStore::Channel { .. }, Purpose::Channel(convo)) => {
                self.channel_loaded(&convo, answer, out);
            }
            (answer @ FromStore::Watermarks { .. }, Purpose::Watermarks(convo)) => {
                self.watermarks_loaded(&convo, answer);
            }
            (answer @ FromStore::User { .. }, Purpose::User(user)) => {
                self.user_loaded(user, answer, out);
            }
            (FromStore::Revoked { rows, next, .. }, Purpose::Revoked) => {
                self.revoked_loaded(rows, next, out);
            }
            (FromStore::Found { message, .. }, Purpose::Lookup(convo)) => {
                self.looked_up(convo, message, out);
            }
            (
                FromStore::Messages { messages, .. },
                Purpose::Range { user, device, session, convo, stream },
            ) if self.session(&user, &device).is_some_and(|now| now.number == session) => {
                self.range_read(&user, &device, &convo, stream, &messages, out);
            }
            // The device has another connection by now, which reads for itself.
            (FromStore::Messages { .. }, Purpose::Range { .. }) => {}
            (FromStore::Messages { messages, .. }, Purpose::Page { waiter, convo, first }) => {
                let page = ToEdge::Page { to: waiter.number, convo, messages, first };
                self.answer(waiter, page, out);
            }
            (FromStore::Overdue { rows, next, .. }, Purpose::Overdue) => {
                self.overdue_found(rows, next, out);
            }
            (answer, Purpose::Inquiry(asked)) => self.inquiry_answered(asked, answer, out),
            (FromStore::Overviews { rows, .. }, Purpose::Overview(waiter)) => {
                self.answer(waiter, ToEdge::Conversations { to: waiter.number, rows }, out);
            }
            (FromStore::Records { records, count, .. }, Purpose::Log) => {
                self.log_read(records, count, out);
            }
            _ => self.break_with(self.store),
        }
    }

    /// The store has no room for a segment, or cannot read just now: the question is put again, and
    /// while that question is a batch, new sends are refused.
    fn store_cannot(&mut self, to: u64) {
        let later_us = self.now.monotonic_us + u64::from(RETRY_MS) * 1_000;
        match self.requests.again(to, later_us) {
            Some(Purpose::Append) => self.refuses_sends = true,
            Some(Purpose::Epoch) => self.epoch_due_us = Some(later_us),
            _ => {}
        }
    }

    fn granted(&mut self, granted: FromStore, out: &mut dyn Outlet) {
        let FromStore::Granted { epoch, next_lsn, fanned_out, mid, ts, edges, service_ms, .. } =
            granted
        else {
            return;
        };
        self.appender = Some(Appender::new(epoch, next_lsn));
        self.last_mid = mid;
        self.last_ts = ts;
        self.service_time.recover(service_ms);
        self.fanout.recover(fanned_out, next_lsn - 1, edges, self.now.monotonic_us);
        self.requests.open();
        self.read_log(out);
        self.ask_revoked(Bytes::new(), out);
        let present = self.edges.iter().map(|(peer, edge)| (*peer, edge.name.clone()));
        for (peer, name) in present.collect::<Vec<_>>() {
            self.say(peer, ToEdge::Serving { epoch }, out);
            self.note_edge(name, true);
        }
    }

    fn resumed(&mut self, next_lsn: u64) {
        if self.appender().expects(next_lsn) {
            self.requests.open();
        } else {
            self.outcome = Outcome::Rebuild;
        }
    }

    fn became_durable(&mut self, next_lsn: u64, out: &mut dyn Outlet) {
        self.refuses_sends = false;
        self.latencies.append.record(self.now.monotonic_us.saturating_sub(self.cut_us));
        for decided in self.appender().durable(next_lsn) {
            self.apply_durable(&decided, out);
            self.fanout.push(decided.lsn, decided.record);
        }
    }

    fn apply_durable(&mut self, decided: &Decided, out: &mut dyn Outlet) {
        match &decided.record {
            Record::Message { message } => self.message_durable(message, &decided.waiters, out),
            Record::Group { message, version, members } => {
                self.group_durable(message, *version, members, &decided.waiters, out);
            }
            Record::Channel { message, channel } => {
                self.channel_durable(message, channel, &decided.waiters, out);
            }
            Record::Subscription { convo, user, subscription, subscribers } => {
                let (place, waiters) = ((convo, user), &decided.waiters);
                self.subscription_durable(place, *subscription, *subscribers, waiters, out);
            }
            Record::Cursors { cursors } => {
                cursors.iter().for_each(|cursor| self.cursor_durable(cursor));
                for waiter in &decided.waiters {
                    self.answer(*waiter, ToEdge::Done { to: waiter.number }, out);
                }
            }
            Record::Device { user, device, .. } => {
                self.device_durable(decided.lsn, (user, device), &decided.waiters, out);
            }
            Record::Revoked { revocation } => {
                self.revoked_durable(decided.lsn, revocation, &decided.waiters, out);
            }
            Record::Privacy { user, hidden } => {
                self.privacy_durable(user, *hidden, &decided.waiters, out);
            }
            Record::Seen { .. } => {}
            Record::Dead { user, convo, last, letters, .. } => {
                self.dead_durable(user, convo, *last, letters);
            }
            Record::Replayed { user, convo, first, seqs, .. } => {
                self.replay_durable(decided.lsn, (user, convo), *first, seqs, out);
            }
            Record::Told { .. } | Record::Forgotten { .. } => {}
            Record::FannedOut { .. } | Record::Edge { .. } => {}
            Record::ServiceTime { .. } => {}
            Record::Epoch { .. } | Record::Lost { .. } => {}
        }
    }

    fn cut_batch(&mut self, out: &mut dyn Outlet) {
        if let Some(append) = self.appender().cut() {
            self.cut_us = self.now.monotonic_us;
            self.ask(append, Purpose::Append, out);
        }
    }

    fn edge_began(&mut self, peer: PeerId, name: Id, out: &mut dyn Outlet) {
        self.lives += 1;
        self.fanout.untold(&name);
        let edge = Edge { name: name.clone(), life: self.lives, held: Held::default() };
        self.edges.insert(peer, edge);
        if let Some(appender) = &self.appender {
            let epoch = appender.epoch;
            self.say(peer, ToEdge::Serving { epoch }, out);
            self.tell_all_revoked(peer, out);
            self.note_edge(name, true);
        }
    }

    fn edge_ended(&mut self, peer: PeerId) {
        let Some(edge) = self.edges.remove(&peer) else {
            return;
        };
        self.presences.forget_edge(peer);
        for user in edge.held.into_users() {
            self.forget_sessions_at(&user, peer);
        }
        self.channels.drop_peer(peer);
        if self.appender.is_some() {
            self.note_edge(edge.name, false);
        }
    }

    pub(super) fn note_edge(&mut self, name: Id, present: bool) {
        if self.fanout.note_edge(&name, present) {
            self.appender().append(Record::Edge { name, present }, Vec::new());
        }
    }

    fn edge_said(&mut self, peer: PeerId, number: u64, said: ToSequencer, out: &mut dyn Outlet) {
        let (life, asked_us) = (self.life_of(peer), self.now.monotonic_us);
        let waiter = Waiter { peer, life, number, dup: false, asked_us };
        match said {
            ToSequencer::Send { user, device, target, id, body, .. } => {
                self.send(waiter, super::order::Send { user, device, target, id, body }, out);
            }
            ToSequencer::Acknowledge { user, device, convo, seq, watermark, .. } => {
                let raise = super::inbox::Raise { waiter, device, convo, seq, watermark };
                self.acknowledge(user, raise, out);
            }
            ToSequencer::Sync { address, session, user, device, convos } => {
                let asked = super::stream::Asked { waiter, address, session, device };
                self.sync(user, asked, convos.map(super::stream::Named::new), out);
            }
            ToSequencer::History { user, convo, before, limit, .. } => {
                self.history(super::listing::PageAsked { waiter, user, convo, before, limit }, out);
            }
            ToSequencer::Conversations { user, after, limit, .. } => {
                self.with_user(user, Task::List { waiter, after, limit }, out);
            }
            ToSequencer::Group { user, convo, change, .. } => {
                self.group(waiter, user, convo, change, out);
            }
            ToSequencer::Channel { user, convo, change, .. } => {
                self.channel(waiter, user, convo, change, out);
            }
            ToSequencer::Devices { user, revoke, .. } => {
                let task = match revoke {
                    Some(device) => Task::Revoke(waiter, device),
                    None => Task::Devices(waiter),
                };
                self.with_user(user, task, out);
            }
            ToSequencer::Privacy { user, hidden, .. } => {
                self.with_user(user, Task::Privacy(waiter, hidden), out);
            }
            ToSequencer::Watch { users, .. } => self.watch(waiter, users, out),
            ToSequencer::Rewatch { users } => {
                self.rewatch(peer, users, out);
                out.answered(peer, number);
            }
            ToSequencer::Unwatch { users } => {
                self.unwatch(peer, &users);
                out.answered(peer, number);
            }
            ToSequencer::Typing { user, device, convo, .. } => {
                self.typing(waiter, (user, device), convo, out);
            }
            ToSequencer::Retold => {
                if let Some(edge) = self.edges.get(&peer) {
                    self.fanout.told(&edge.name);
                }
                out.answered(peer, number);
            }
            session => self.session_said(waiter, session, out),
        }
    }
}
