//! One thread of the edge: a ring, its connections, and the application that they talk to.
//!
//! [`Shard::turn`] is the loop's one pass. Completions are collected before any is run, and all
//! that a turn's completions make somebody say leaves at its end, in one send per connection.

mod handover;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::Now;
use crate::ring::{Completion, Kind, Ring, Socket, Token};

use super::admission::Reason;
use super::application::{Application, ConnectionId};
use super::connection::{Armed, Phase};
use super::connections::{Connections, Counters, ShardOptions};
use super::ledger::{Class, Ledger};
use super::receive;

/// A turn waits at most this long, so that a stop flag is seen.
const TURN_WAIT_MAX_US: u64 = 100_000;
/// After an accept that failed (the socket table is full, the host is short of memory).
const ACCEPT_RETRY_MS: u64 = 100;
/// After a stall of this length (a stopped process, a starved host) what the peers said meanwhile
/// is read for as long before anybody is held to a deadline.
const STALL_MS: u64 = 1_000;
/// Accepts that tell addresses end after one; so many of them wait at a time.
const ACCEPT_LANES: u32 = 32;

struct ListenerState {
    socket: Socket,
    /// A bit for each lane whose accept is armed. One that goes on and on is alone, on lane 0.
    armed: u32,
}

/// See the module.
pub struct Shard<R: Ring, A: Application<R>> {
    ring: R,
    application: A,
    connections: Connections,
    listeners: Vec<ListenerState>,
    completions: Vec<Completion>,
    /// Connections whose receive ended because no buffer was free.
    starved: Vec<ConnectionId>,
    accept_after_ms: u64,
    expire_after_ms: u64,
    is_accepting: bool,
    /// Nothing is begun: another process may go on from here.
    is_still: bool,
    still_since_us: u64,
    turn_wait_max_us: u64,
}

impl<R: Ring, A: Application<R>> Shard<R, A> {
    /// The ring is to have socket slots for `connection_count_max` and
    /// [`super::connections::SPARE_COUNT`] more.
    pub fn new(ring: R, application: A, options: ShardOptions, now: Now) -> Shard<R, A> {
        Shard {
            ring,
            application,
            connections: Connections::new(options, now),
            listeners: Vec::new(),
            completions: Vec::new(),
            starved: Vec::new(),
            accept_after_ms: 0,
            expire_after_ms: 0,
            is_accepting: true,
            is_still: false,
            still_since_us: 0,
            turn_wait_max_us: TURN_WAIT_MAX_US,
        }
    }

    /// Accepts connections of a listening socket, which is to stay open as long as the shard.
    pub fn add_listener(&mut self, socket: Socket) {
        self.listeners.push(ListenerState { socket, armed: 0 });
        self.rearm_listeners();
    }

    /// One pass of the loop. `clock` is read before and after the wait.
    pub fn turn(&mut self, clock: &mut dyn FnMut() -> Now) {
        self.pass_time(clock());
        let wait_us = self.wait_us();
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.turn(wait_us, &mut completions);
        self.pass_time(clock());
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.connections.watch_sends();
        self.expire();
        self.tell();
        let now = self.connections.now;
        self.application.turn_end(now, &mut self.ring, &mut self.connections);
        self.tell();
        self.flush();
        self.remove_gone();
        self.end_streams();
        self.rearm_starved();
        self.rearm_listeners();
        self.balance();
    }

    /// Turns until `stop` is set, lets the application say goodbye, and waits until everybody has
    /// left, `drain_ms` at most.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.turn(&mut Now::read);
        }
        self.begin_stop();
        let end_ms = Now::read().monotonic_ms() + self.connections.options.drain_ms;
        while self.connections.count() > 0 && Now::read().monotonic_ms() < end_ms {
            self.turn(&mut Now::read);
        }
    }

    /// Takes no new connections, drops those without a request, and tells the application. The
    /// turns that follow do the rest, until [`Shard::connection_count`] is 0.
    pub fn begin_stop(&mut self) {
        self.stop_accepting();
        for id in self.connections.ids() {
            if self.phase(id) == Some(Phase::Request) {
                self.connections.leave(id, false);
            }
        }
        let now = self.connections.now;
        self.application.stopping(now, &mut self.connections);
    }

    /// For what the application asks of the ring before the first turn.
    pub fn parts(&mut self) -> (&mut A, &mut R, &mut Connections) {
        (&mut self.application, &mut self.ring, &mut self.connections)
    }

    pub fn application(&self) -> &A {
        &self.application
    }

    pub fn counters(&self) -> Counters {
        self.connections.counters
    }

    /// Slots in use: open, becoming so, or closing.
    pub fn connection_count(&self) -> usize {
        self.connections.count()
    }

    /// What the shard holds; whoever knows what others do tells it.
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.connections.ledger
    }

    fn balance(&mut self) {
        let held = self.application.held();
        self.connections.ledger.set(Class::Sessions, held.sessions);
        self.connections.ledger.set(Class::Operations, held.operations);
        self.connections.relieve();
    }

    fn stop_accepting(&mut self) {
        self.is_accepting = false;
        self.cancel_accepts();
    }

    fn cancel_accepts(&mut self) {
        for (index, listener) in self.listeners.iter().enumerate() {
            for lane in (0..ACCEPT_LANES).filter(|lane| listener.armed & (1 << lane) != 0) {
                self.ring.cancel(accept_token(index, lane));
            }
        }
    }

    fn pass_time(&mut self, now: Now) {
        let now_ms = now.monotonic_ms();
        if now_ms - self.connections.now.monotonic_ms() > STALL_MS {
            self.expire_after_ms = now_ms + STALL_MS;
        }
        self.connections.now = now;
    }

    fn expire(&mut self) {
        if self.connections.now.monotonic_ms() >= self.expire_after_ms {
            self.connections.expire();
        }
    }

    fn wait_us(&self) -> u64 {
        let now = self.connections.now;
        let wheel_us = self.connections.wait_ms().map(|wait_ms| wait_ms * 1_000);
        let application_us = self.application.next_deadline_us();
        let until = |deadline_us: u64| deadline_us.saturating_sub(now.monotonic_us);
        self.turn_wait_max_us
            .min(wheel_us.unwrap_or(u64::MAX))
            .min(application_us.map_or(u64::MAX, until))
    }

    fn complete(&mut self, completion: Completion) {
        match completion.token.kind() {
            Kind::Accept => self.accepted(completion),
            Kind::Receive => self.received(completion),
            Kind::Send => self.sent(completion),
            _ => self.application.other_completion(
                self.connections.now,
                completion,
                &mut self.ring,
                &mut self.connections,
            ),
        }
    }

    fn accepted(&mut self, completion: Completion) {
        let (index, lane) = (completion.token.slot() as usize, completion.token.generation());
        if let Some(listener) = self.listeners.get_mut(index).filter(|_| !completion.more) {
            listener.armed &= !(1 << lane);
        }
        let Ok(socket) = u32::try_from(completion.result) else {
            if self.is_still {
                return;
            }
            self.accept_after_ms = self.connections.now.monotonic_ms() + ACCEPT_RETRY_MS;
            return;
        };
        let peer = self.ring.take_peer(completion.token);
        let id = match self.is_accepting {
            true => self.connections.insert(socket),
            false => None,
        };
        let Some(id) = id else {
            self.connections.counters.refused[Reason::Full as usize] += 1;
            return self.ring.close(self.ring.accepted(socket), true);
        };
        self.connections.admit(id, peer);
        self.receive(id);
    }

    fn received(&mut self, completion: Completion) {
        let id = id_of(completion.token);
        let Some(connection) = self.connections.get_mut(id) else {
            self.connections.counters.stale += 1;
            if let Some(buffer) = completion.buffer {
                self.ring.release(buffer);
            }
            return;
        };
        let armed = connection.flags.armed;
        if !completion.more {
            connection.flags.armed = Armed::Nothing;
        }
        match completion.result {
            result if result >= 0 && armed == Armed::Poll => return self.receive(id),
            0 => receive::ended(&mut self.connections, id),
            size if size > 0 => {
                self.connections.received(id, armed);
                self.received_bytes(id, completion);
            }
            error if error == -libc::ENOBUFS => {
                self.connections.counters.starved += 1;
                self.starved.push(id);
            }
            error if error == -libc::ECANCELED => {}
            _ => self.connections.lost(id, true),
        }
        if let Some(buffer) = completion.buffer {
            self.ring.release(buffer);
        }
        if !completion.more && (completion.result > 0 || completion.result == -libc::ECANCELED) {
            self.wait(id);
        }
    }

    fn received_bytes(&mut self, id: ConnectionId, completion: Completion) {
        if let Some(buffer) = completion.buffer {
            let bytes = self.ring.bytes(buffer, completion.result as usize);
            receive::received(&mut self.application, &mut self.connections, id, bytes);
        }
    }

    fn sent(&mut self, completion: Completion) {
        let id = id_of(completion.token);
        if completion.result == -libc::ECANCELED && self.connections.get(id).is_some() {
            return self.unsent(completion.token);
        }
        if let Some(emptied) = self.ring.take_sent(completion.token) {
            self.connections.recycle_vector(emptied);
        }
        if self.connections.get(id).is_none() {
            self.connections.counters.stale += 1;
        } else if completion.result < 0 {
            self.connections.lost(id, true);
        } else {
            self.connections.sent(id);
        }
    }

    /// Tells the application which connections are open no more, and which queues are empty.
    fn tell(&mut self) {
        let now = self.connections.now;
        while !self.connections.ended.is_empty() || !self.connections.drained.is_empty() {
            for (id, end) in std::mem::take(&mut self.connections.ended) {
                self.application.closed(now, id, end, &mut self.connections);
            }
            for id in std::mem::take(&mut self.connections.drained) {
                if self.connections.is_open(id) {
                    self.application.drained(now, id, &mut self.connections);
                }
            }
        }
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.connections.dirty);
        for id in dirty.drain(..) {
            self.flush_one(id);
        }
        self.connections.dirty = dirty;
    }

    fn flush_one(&mut self, id: ConnectionId) {
        let spare = self.connections.spare_vector();
        let Some(connection) = self.connections.get_mut(id) else {
            return self.connections.recycle_vector(spare);
        };
        connection.flags.is_dirty = false;
        let (phase, socket) = (connection.phase, self.ring.accepted(connection.socket));
        let ready = connection
            .outbound
            .as_mut()
            .filter(|outbound| outbound.sending == 0 && outbound.waiting() > 0);
        let (Some(outbound), true) = (ready, phase != Phase::Gone) else {
            return self.connections.recycle_vector(spare);
        };
        let data = outbound.take_next(spare);
        self.connections.sending(id, &data);
        let token = Token::new(Kind::Send, id.slot, id.generation);
        self.ring.send(socket, data, token);
    }

    fn remove_gone(&mut self) {
        while let Some(id) = self.connections.gone.pop() {
            let Some(connection) = self.connections.get(id) else {
                continue;
            };
            let (socket, flags) = (self.ring.accepted(connection.socket), connection.flags);
            if flags.armed != Armed::Nothing {
                self.ring.cancel(receive_token(id));
            }
            self.ring.close(socket, flags.is_reset);
            self.connections.remove(id);
        }
    }

    /// Arms receives again, as many as buffers are free: one more would only fail at once.
    fn rearm_starved(&mut self) {
        let count = self.starved.len().min(self.ring.buffers_free());
        let starved: Vec<ConnectionId> = self.starved.drain(..count).collect();
        for id in starved {
            self.receive(id);
        }
    }

    fn rearm_listeners(&mut self) {
        if !self.is_accepting
            || self.is_still
            || self.connections.now.monotonic_ms() < self.accept_after_ms
        {
            return;
        }
        let wants_addresses = self.connections.wants_addresses();
        let lanes = if wants_addresses { ACCEPT_LANES } else { 1 };
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            for lane in (0..lanes).filter(|lane| listener.armed & (1 << lane) == 0) {
                let token = accept_token(index, lane);
                match wants_addresses {
                    true => self.ring.accept_one(listener.socket, token),
                    false => self.ring.accept(listener.socket, token),
                }
            }
            listener.armed = u32::MAX >> (u32::BITS - lanes);
        }
    }

    /// Ends the multishot receives of connections that have left the busy tier.
    fn end_streams(&mut self) {
        for id in std::mem::take(&mut self.connections.calmed) {
            let connection = self.connections.get(id);
            if connection.is_some_and(|connection| connection.flags.armed == Armed::Stream) {
                self.ring.cancel(receive_token(id));
            }
        }
    }

    /// Asks for bytes that are there, or that are expected soon.
    fn receive(&mut self, id: ConnectionId) {
        self.ask(id, Armed::Once);
    }

    /// Asks for bytes that come at some time.
    fn wait(&mut self, id: ConnectionId) {
        self.ask(id, Armed::Poll);
    }

    /// Asks as told, or in the way of the busy tier.
    fn ask(&mut self, id: ConnectionId, idle: Armed) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let may_ask = connection.phase != Phase::Gone && !self.is_still;
        if !may_ask || connection.flags.armed != Armed::Nothing {
            return;
        }
        let (socket, token) = (self.ring.accepted(connection.socket), receive_token(id));
        let ask = if connection.flags.is_busy { Armed::Stream } else { idle };
        connection.flags.armed = ask;
        match ask {
            Armed::Nothing => {}
            Armed::Poll => self.ring.poll(socket, token),
            Armed::Once => self.ring.receive_once(socket, token),
            Armed::Stream => self.ring.receive(socket, token),
        }
    }

    fn phase(&self, id: ConnectionId) -> Option<Phase> {
        self.connections.get(id).map(|connection| connection.phase)
    }
}

fn accept_token(index: usize, lane: u32) -> Token {
    Token::new(Kind::Accept, index as u32, lane)
}

fn receive_token(id: ConnectionId) -> Token {
    Token::new(Kind::Receive, id.slot, id.generation)
}

fn id_of(token: Token) -> ConnectionId {
    ConnectionId { slot: token.slot(), generation: token.generation() }
}

#[cfg(test)]
mod tests;
