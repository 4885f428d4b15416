//! Catching up: a session's backlog, read from the store in order, paced by the connection alone.
//!
//! Per (session, conversation) `pushed_upto` says what the connection was given. While a
//! conversation catches up nothing live of it is pushed, since the catching up will reach it; it
//! turns live once everything fanned out has been pushed. So live never overtakes backlog, and
//! nothing is skipped.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::appender::Waiter;
use super::conversation::Task as ConversationTask;
use super::core::Sequencer;
use super::order::check_access;
use super::requests::{Purpose, Refusal};
use super::sessions::Retired;
use super::user::{DeviceCursor, Task};
use crate::limits::{CHUNK_SIZE_MAX, CONVERSATION_NAME_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
use crate::link::message::{Address, Code, PushTarget, SessionNumber, ToEdge, ToStore};
use crate::link::record::{ConversationName, Id, Message};
use crate::link::{Outlet, PeerId};

/// Conversations named in one `synced`: names of the greatest length fit a frame to a client.
const HEADS_PER_FRAME_MAX: usize = 400;

const _: () =
    assert!(HEADS_PER_FRAME_MAX * (2 * CONVERSATION_NAME_SIZE_MAX + 32) < SERVER_FRAME_SIZE_MAX);

/// Who asked for a `sync`.
#[derive(Clone)]
pub struct Asked {
    pub waiter: Waiter,
    pub address: Address,
    pub session: SessionNumber,
    pub device: Id,
}

/// The conversations that a `sync` names, each with what the client has of it.
pub struct Named {
    unchecked: VecDeque<(ConversationName, u64)>,
    /// Known to exist, and to be his. What was checked need not stay in memory meanwhile.
    due: VecDeque<(ConversationName, u64)>,
}

impl Named {
    pub fn new(convos: Vec<(ConversationName, u64)>) -> Named {
        Named { unchecked: convos.into(), due: VecDeque::new() }
    }
}

/// Where a session stands in one conversation.
#[derive(Clone, Copy, Debug)]
struct Position {
    pushed_upto: u64,
    catching: bool,
    /// The session's stream when it last began to catch up; a drop reported of an earlier one is
    /// void.
    stream: u64,
}

/// One catching up: asked for by a client, or by the sequencer itself (`reply` is `None`).
struct Request {
    reply: Option<Waiter>,
    /// Conversations still to do, with what the client has of each.
    due: VecDeque<(ConversationName, u64)>,
    heads: Vec<(ConversationName, u64)>,
}

/// The question to the store that is under way for a session.
struct Reading {
    convo: ConversationName,
    stream: u64,
    /// What was fanned out when it was asked.
    fanned: u64,
}

/// A live connection of a device.
pub struct Session {
    pub peer: PeerId,
    pub address: Address,
    pub number: SessionNumber,
    /// Nothing is pushed before the first `sync`.
    pub manual: bool,
    /// Counts its catchings-up; what hears channels for it reads the same.
    stream: Rc<Cell<u64>>,
    /// Its client may be gone: nothing was heard of it for a while.
    pub is_silent: bool,
    positions: BTreeMap<ConversationName, Position>,
    requests: VecDeque<Request>,
    /// The conversation being read for the first request, and what was fanned out when it was
    /// asked.
    reading: Option<Reading>,
    /// A chunk is on its way to the socket.
    awaits_room: bool,
    /// The connection fell behind: nothing live is pushed until its queue has drained.
    lag: Option<Lag>,
}

/// What is to be caught up once the queue of a connection has drained.
///
/// The edge drops live pushes of any conversation while the queue is too long, and tells of each.
/// A push sent after one such report may overtake others that are still on their way, so live
/// pushes stop for the whole session, behind an empty chunk: when its `Room` is here, all are.
struct Lag {
    stream: u64,
    /// What was pushed of each conversation before the first drop.
    pushed_upto: BTreeMap<ConversationName, u64>,
}

impl Lag {
    /// The connection was given the conversation up to here, at most.
    fn note(&mut self, convo: &ConversationName, pushed_upto: u64) {
        let lowest = self.pushed_upto.entry(convo.clone()).or_insert(pushed_upto);
        *lowest = pushed_upto.min(*lowest);
    }
}

/// What a live message means for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// It is the next one: push it.
    Push,
    /// It was pushed, or the catching up will reach it.
    Skip,
    /// Something before it was never pushed: catch up from here.
    Gap { pushed_upto: u64 },
}

impl Session {
    /// `stream` is above that of every session before, so that nothing meant for one of them, by a
    /// device that has come back or been told again, passes for this one's.
    pub fn new(
        peer: PeerId,
        address: Address,
        number: SessionNumber,
        manual: bool,
        stream: u64,
    ) -> Session {
        Session {
            peer,
            address,
            number,
            manual,
            stream: Rc::new(Cell::new(stream)),
            is_silent: false,
            positions: BTreeMap::new(),
            requests: VecDeque::new(),
            reading: None,
            awaits_room: false,
            lag: None,
        }
    }

    pub fn target(&self) -> PushTarget {
        PushTarget { address: self.address, session: self.number, stream: self.stream.get() }
    }

    pub fn shared_stream(&self) -> Rc<Cell<u64>> {
        self.stream.clone()
    }

    /// Whether the connection fell behind, and its queue has not drained yet: then it will catch up
    /// with the conversation too, from here on.
    pub fn note_behind(&mut self, convo: &ConversationName, pushed_upto: u64) -> bool {
        self.lag.iter_mut().for_each(|lag| lag.note(convo, pushed_upto));
        self.lag.is_some()
    }

    /// It is catching up with the conversation.
    pub fn catches_up(&self, convo: &str) -> bool {
        self.positions.get(convo).is_some_and(|position| position.catching)
    }

    /// Decides about a live message; up to `floor` the device has everything. Counts it as pushed
    /// if so.
    pub fn live(&mut self, convo: &ConversationName, seq: u64, floor: u64) -> Live {
        if self.manual {
            return Live::Skip;
        }
        let stream = self.stream.get();
        let start = Position { pushed_upto: floor, catching: false, stream };
        let position = self.positions.entry(convo.clone()).or_insert(start);
        if position.catching || seq <= position.pushed_upto {
            return Live::Skip;
        }
        if let Some(lag) = &mut self.lag {
            lag.pushed_upto.entry(convo.clone()).or_insert(position.pushed_upto);
            return Live::Skip;
        }
        if seq > position.pushed_upto + 1 {
            return Live::Gap { pushed_upto: position.pushed_upto };
        }
        position.pushed_upto = seq;
        Live::Push
    }

    /// The user joined a group by the message `joined`: what is before it is not pushed.
    pub fn begin_at(&mut self, convo: &ConversationName, joined: u64) {
        let position = self.positions.get_mut(convo).filter(|position| !position.catching);
        if let Some(position) = position {
            position.pushed_upto = position.pushed_upto.max(joined - 1);
        }
    }

    /// The device acknowledged: a position that says no more than the cursor is not kept.
    pub fn acknowledged(&mut self, convo: &ConversationName, seq: u64) {
        let done = |position: &Position| !position.catching && position.pushed_upto <= seq;
        if self.positions.get(convo).is_some_and(done) {
            self.positions.remove(convo);
        }
    }

    /// Its device's cursors say all there is to say: nothing is under way, and nothing was pushed
    /// that is not acknowledged.
    pub fn is_at_rest(&self, cursors: &BTreeMap<ConversationName, DeviceCursor>) -> bool {
        let told = |(convo, position): (&ConversationName, &Position)| {
            let delivered = cursors.get(convo).map_or(0, |cursor| cursor.floor());
            !position.catching && position.pushed_upto <= delivered
        };
        let quiet = self.requests.is_empty() && self.reading.is_none() && !self.awaits_room;
        quiet && self.lag.is_none() && self.positions.iter().all(told)
    }

    fn begin(&mut self, request: Request, stream: u64) {
        self.stream.set(stream);
        for (convo, pushed_upto) in &request.due {
            let position = Position { pushed_upto: *pushed_upto, catching: true, stream };
            self.positions.insert(convo.clone(), position);
        }
        self.requests.push_back(request);
    }
}

impl Sequencer {
    /// A client's `sync`. Every conversation it names is loaded first: if one is unknown, nothing
    /// is sent.
    pub(super) fn sync(
        &mut self,
        user: Id,
        asked: Asked,
        named: Option<Named>,
        out: &mut dyn Outlet,
    ) {
        let Some(mut named) = named else {
            return self.with_user(user, Task::Sync(asked, None), out);
        };
        while let Some((convo, seq)) = named.unchecked.pop_front() {
            if let Err((code, why)) = check_access(&convo, &user) {
                return self.refuse(asked.waiter, code, why, out);
            }
            if self.is_unsure_of(&convo, &user) {
                named.unchecked.push_front((convo.clone(), seq));
                return match self.has_user(&user) {
                    // A subscription is on its way into the log: it waits there.
                    true => self.with_conversation(
                        convo,
                        ConversationTask::Sync(user, asked, named),
                        out,
                    ),
                    false => self.with_user(user, Task::SyncNamed(asked, named), out),
                };
            }
            let loaded = self.conversations.get(&convo).filter(|entry| entry.loaded);
            let Some(head) = loaded.map(|entry| entry.durable_head) else {
                named.unchecked.push_front((convo.clone(), seq));
                return self.with_conversation(
                    convo,
                    ConversationTask::Sync(user, asked, named),
                    out,
                );
            };
            if self.check_member(&convo, &user, asked.waiter, out).is_none() {
                return;
            }
            if head == 0 {
                let refusal = Refusal::no_such_conversation(asked.waiter);
                return self.check_claim(Some(refusal), out);
            }
            if seq > head {
                self.check_claim(None, out);
            }
            named.due.push_back((convo, seq.min(head)));
        }
        self.with_user(user, Task::Sync(asked, Some(named.due)), out);
    }

    pub(super) fn sync_loaded(
        &mut self,
        user: &Id,
        asked: Asked,
        due: Option<VecDeque<(ConversationName, u64)>>,
        out: &mut dyn Outlet,
    ) {
        let Asked { waiter, address, session: number, device } = asked;
        let named = Retired { peer: waiter.peer, address, number, device: device.clone() };
        if !self.has_session(user, &named) {
            return self.refuse(waiter, Code::Unavailable, "the session is not confirmed", out);
        }
        let session = self.session(user, &device);
        let first = session.is_some_and(|session| std::mem::take(&mut session.manual));
        let Some(due) = due else {
            self.catch_up(user, &device, Some(waiter), out);
            if first {
                self.turn_idle_live(user, &device);
            }
            return;
        };
        let mut rest = if first { self.behind(user, &device) } else { VecDeque::new() };
        rest.retain(|(convo, _)| due.iter().all(|(named, _)| named != convo));
        self.stream(user, &device, Request { reply: Some(waiter), due, heads: Vec::new() }, out);
        // The connection is live now. What is behind and was not named, perhaps because the client
        // has never heard of it, follows by itself, as it would have without `?sync=manual`.
        if !rest.is_empty() {
            self.stream(user, &device, Request { reply: None, due: rest, heads: vec![] }, out);
        }
        if first {
            self.turn_idle_live(user, &device);
        }
    }

    /// Streams everything behind the device's cursors, then says `synced`.
    pub(super) fn catch_up(
        &mut self,
        user: &Id,
        device: &Id,
        reply: Option<Waiter>,
        out: &mut dyn Outlet,
    ) {
        let due = self.behind(user, device);
        self.stream(user, device, Request { reply, due, heads: Vec::new() }, out);
    }

    /// A live message did not follow what was pushed: everything from there on is read again.
    pub(super) fn catch_up_from(
        &mut self,
        user: &Id,
        device: &Id,
        convo: ConversationName,
        pushed_upto: u64,
        out: &mut dyn Outlet,
    ) {
        let due = VecDeque::from([(convo, pushed_upto)]);
        self.stream(user, device, Request { reply: None, due, heads: Vec::new() }, out);
    }

    /// The chunk has left for the socket.
    pub(super) fn room(&mut self, user: &Id, named: &Retired, stream: u64, out: &mut dyn Outlet) {
        let later = self.next_stream();
        if self.has_session(user, named)
            && let Some(session) = self.session(user, &named.device)
        {
            session.awaits_room = false;
            if let Some(lag) = session.lag.take_if(|lag| lag.stream <= stream) {
                let due = lag.pushed_upto.into_iter().collect();
                session.begin(Request { reply: None, due, heads: Vec::new() }, later);
            }
            self.hold_catching(user, &named.device);
            self.pump(user, &named.device, out);
        }
    }

    /// The edge did not queue a live push: the connection was behind.
    pub(super) fn dropped(
        &mut self,
        user: &Id,
        named: &Retired,
        convo: ConversationName,
        seq: u64,
        stream: u64,
        out: &mut dyn Outlet,
    ) {
        if !self.has_session(user, named) {
            return;
        }
        if self.is_caught_since((user, &named.device), &convo, stream) {
            return;
        }
        let next_stream = self.next_stream();
        let Some(session) = self.session(user, &named.device) else { return };
        let position = session.positions.get(&convo);
        if position.is_some_and(|position| position.stream > stream) {
            return;
        }
        let pushed_upto =
            position.map_or(seq, |position| position.pushed_upto).min(seq.saturating_sub(1));
        if let Some(lag) = &mut session.lag {
            let lowest = lag.pushed_upto.entry(convo).or_insert(pushed_upto);
            *lowest = pushed_upto.min(*lowest);
            return;
        }
        session.stream.set(next_stream);
        let pushed_upto = BTreeMap::from([(convo, pushed_upto)]);
        session.lag = Some(Lag { stream: next_stream, pushed_upto });
        let channels = self.hold_behind(user, &named.device);
        let Some(session) = self.session(user, &named.device) else { return };
        for (convo, upto) in channels {
            session.note_behind(&convo, upto);
        }
        let (peer, target) = (session.peer, session.target());
        let empty = ToEdge::Backlog { target, messages: Vec::new(), wants_room: true };
        self.say(peer, empty, out);
    }

    /// A piece of the log came for a session's catching up. It counts only if this session asked
    /// for it: what an earlier one of the device asked tells nothing about where this one stands.
    pub(super) fn range_read(
        &mut self,
        user: &Id,
        device: &Id,
        convo: &ConversationName,
        stream: u64,
        messages: &[Message],
        out: &mut dyn Outlet,
    ) {
        let fanned_now = self.fanned(user, device, convo);
        let Some(session) = self.session(user, device) else {
            return;
        };
        let is_answer = |reading: &mut Reading| reading.convo == *convo && reading.stream == stream;
        let Some(Reading { fanned, .. }) = session.reading.take_if(is_answer) else {
            return;
        };
        let (peer, target) = (session.peer, session.target());
        let Some(position) = session.positions.get_mut(convo) else {
            return;
        };
        if position.stream != stream {
            return self.pump(user, device, out);
        }
        if self.has_unsubscribed(user, convo) {
            self.finish_conversation(user, device, convo);
            return self.pump(user, device, out);
        }
        let Some(session) = self.session(user, device) else { return };
        let Some(position) = session.positions.get_mut(convo) else { return };
        let Some(last) = messages.last() else {
            // Nothing there. What was fanned out before the question should have been; what was
            // fanned out since takes another read.
            let missing = fanned.saturating_sub(position.pushed_upto);
            self.counters.unaccounted += missing;
            if missing > 0 || fanned_now <= fanned {
                self.finish_conversation(user, device, convo);
            }
            return self.pump(user, device, out);
        };
        let expected = last.seq - position.pushed_upto;
        position.pushed_upto = last.seq;
        session.awaits_room = true;
        self.counters.unaccounted += expected - messages.len() as u64;
        self.counters.backlog_messages_total += messages.len() as u64;
        let messages = messages.to_vec();
        self.say(peer, ToEdge::Backlog { target, messages, wants_room: true }, out);
    }

    pub(super) fn next_stream(&mut self) -> u64 {
        self.streams_counter += 1;
        self.streams_counter
    }

    /// The session ends: what its client asked for is answered, if to nobody. An entry that is
    /// never answered would hold back the link's acknowledgements, and in time use up its window.
    pub(super) fn abandon(&mut self, user: &Id, device: &Id, out: &mut dyn Outlet) {
        let Some(session) = self.session(user, device) else { return };
        let requests = std::mem::take(&mut session.requests);
        for waiter in requests.into_iter().filter_map(|request| request.reply) {
            self.refuse(waiter, Code::Unavailable, "the connection is gone", out);
        }
    }

    pub(super) fn session(&mut self, user: &Id, device: &Id) -> Option<&mut Session> {
        self.users.get_mut(user)?.devices.get_mut(device)?.session.as_deref_mut()
    }

    /// The conversations in which the device has not acknowledged everything, with what it has.
    fn behind(&self, user: &Id, device: &Id) -> VecDeque<(ConversationName, u64)> {
        let owner = self.users.get(user).and_then(|user| user.devices.get(device));
        let cursors = owner.into_iter().flat_map(|device| &device.cursors);
        let behind = cursors.filter(|(_, cursor)| cursor.is_behind());
        let behind = behind.map(|(convo, cursor)| (convo.clone(), cursor.floor()));
        behind.chain(self.channels_behind(user, device)).collect()
    }

    fn stream(&mut self, user: &Id, device: &Id, request: Request, out: &mut dyn Outlet) {
        let stream = self.next_stream();
        if let Some(session) = self.session(user, device) {
            session.begin(request, stream);
            self.hold_catching(user, device);
            self.pump(user, device, out);
        }
    }

    /// Goes on with the first request, if nothing is under way for this session.
    fn pump(&mut self, user: &Id, device: &Id, out: &mut dyn Outlet) {
        loop {
            let Some(session) = self.session(user, device) else {
                return;
            };
            if session.awaits_room || session.reading.is_some() {
                return;
            }
            let Some(request) = session.requests.front() else {
                return;
            };
            let Some((convo, _)) = request.due.front().cloned() else {
                self.finish_request(user, device, out);
                continue;
            };
            if self.is_live(user, device, &convo) || self.has_unsubscribed(user, &convo) {
                self.finish_conversation(user, device, &convo);
                continue;
            }
            return self.read_range(user, device, convo, out);
        }
    }

    /// Everything fanned out in this life has been pushed; before the first such message only an
    /// empty read can tell.
    fn is_live(&mut self, user: &Id, device: &Id, convo: &ConversationName) -> bool {
        let fanned = self.fanned(user, device, convo);
        let position = self.session(user, device).and_then(|session| session.positions.get(convo));
        fanned > 0 && position.is_some_and(|position| position.pushed_upto >= fanned)
    }

    fn fanned(&self, user: &Id, device: &Id, convo: &ConversationName) -> u64 {
        if self.is_channel_of(user, convo) {
            return self.channels.fanned(convo);
        }
        let owner = self.users.get(user).and_then(|user| user.devices.get(device));
        owner.and_then(|device| device.cursors.get(convo)).map_or(0, |cursor| cursor.fanned)
    }

    fn floor(&self, user: &Id, device: &Id, convo: &ConversationName) -> u64 {
        let owner = self.users.get(user).and_then(|user| user.devices.get(device));
        owner.and_then(|device| device.cursors.get(convo)).map_or(0, |cursor| cursor.floor())
    }

    fn read_range(
        &mut self,
        user: &Id,
        device: &Id,
        convo: ConversationName,
        out: &mut dyn Outlet,
    ) {
        let fanned = self.fanned(user, device, &convo);
        let floor = self.floor(user, device, &convo);
        // Of a group he sees what is there from his joining on, up to his leaving.
        let stay = self.users.get(user).and_then(|user| user.stay(&convo));
        let Some(session) = self.session(user, device) else {
            return;
        };
        // An earlier request for the same conversation may have ended since: what was live for
        // that while, or acknowledged and forgotten, catches up again.
        let stream = session.stream.get();
        let acknowledged = Position { pushed_upto: floor, catching: true, stream };
        let position = session.positions.entry(convo.clone()).or_insert(acknowledged);
        position.catching = true;
        let begins_after = stay.map_or(0, |stay| stay.joined - 1);
        position.pushed_upto = position.pushed_upto.max(begins_after);
        let last = stay.filter(|stay| stay.left != 0).map_or(u64::MAX, |stay| stay.left);
        let (first, stream) = (position.pushed_upto + 1, position.stream);
        session.reading = Some(Reading { convo: convo.clone(), stream, fanned });
        let session = session.number;
        let size_max = CHUNK_SIZE_MAX as u32;
        let ask = ToStore::Range { convo: convo.clone(), first, last, size_max };
        let (user, device) = (user.clone(), device.clone());
        self.ask(ask, Purpose::Range { user, device, session, convo, stream }, out);
    }

    fn finish_conversation(&mut self, user: &Id, device: &Id, convo: &ConversationName) {
        let is_channel = self.is_channel_of(user, convo);
        let Some(session) = self.session(user, device) else {
            return;
        };
        let Some(position) = session.positions.get_mut(convo) else {
            return;
        };
        let upto = position.pushed_upto;
        if let Some(request) = session.requests.front_mut() {
            let start = request.due.pop_front().map(|(_, start)| start);
            // Whether it is behind in a channel is found out by looking.
            if !is_channel || request.reply.is_some() || start != Some(upto) {
                request.heads.push((convo.clone(), upto));
            }
        }
        // A later request may have it before it still, and reads it again.
        let mut due = session.requests.iter().flat_map(|request| &request.due);
        position.catching = due.any(|(due, _)| due == convo);
        if !is_channel || position.catching {
            return;
        }
        // Where it stands in a channel is kept with those who hear it.
        session.positions.remove(convo);
        if !session.note_behind(convo, upto) {
            self.turn_live(user, device, convo, upto);
        }
    }

    fn finish_request(&mut self, user: &Id, device: &Id, out: &mut dyn Outlet) {
        let Some(session) = self.session(user, device) else {
            return;
        };
        let Some(request) = session.requests.pop_front() else {
            return;
        };
        let (target, peer) = (session.target(), session.peer);
        let mut heads = request.heads;
        // A frame holds only so many names: the last one answers, the others come before it.
        while heads.len() > HEADS_PER_FRAME_MAX {
            let rest = heads.split_off(HEADS_PER_FRAME_MAX);
            self.say(peer, ToEdge::Synced { target, to: 0, heads }, out);
            heads = rest;
        }
        match request.reply {
            Some(waiter) => {
                let synced = ToEdge::Synced { target, to: waiter.number, heads };
                self.answer(waiter, synced, out);
            }
            None => self.say(peer, ToEdge::Synced { target, to: 0, heads }, out),
        }
    }
}
