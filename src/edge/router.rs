//! One edge shard's logic between its chat connections and the sequencer. No sockets, no clock.
//!
//! Every operation of a client is answered once: by the sequencer's answer, or by `unavailable`
//! when a bound was reached. Nothing is said to a client before `welcome`. What the link cannot
//! take now waits in order; what a lost link session took with it is asked again, in order, in the
//! next one.
//!
//! The files below: `connection` what is kept of each client, `operations` what clients ask,
//! `requests` what of it is unanswered, `answers` and `pushes` what the sequencer says, `counters`
//! what is counted, `deadlines` when a client's proof of who it is ends,
//! `pressed` what is different when memory is scarce.

mod answers;
mod connection;
mod counters;
mod deadlines;
mod devices;
mod handover;
mod operations;
mod pressed;
mod pushes;
mod requests;
#[cfg(test)]
mod tests;

use crate::admin::Latency;
use crate::clock::Now;
use crate::edge::identity::Admitted;
use crate::edge::ledger::Pressure;
use crate::edge::ticket::{Term, Tickets};
use crate::link::message::{Address, ToSequencer};
use crate::link::record::Id;
use crate::link::{LinkEvent, Outlet, PeerId};
use crate::protocol::Subprotocol;
use crate::protocol::operation::{ErrorCode, Event, Goodbye};

use connection::{Client, Connection, OUTSTANDING_COUNT_MAX, PARKED_COUNT_MAX, Parking};
pub use counters::Counters;
use deadlines::Deadlines;
use devices::Devices;
pub use handover::{ClientState, RouterState, WaitingState};
use operations::overload;
use pressed::Rooms;
use requests::{Requests, Unanswered};

/// Bytes of all operations of a shard that may be unanswered at a time.
pub const UNANSWERED_SIZE_MAX: usize = 256 * 1024 * 1024;
/// How long an operation waits for the link before it is answered `unavailable`.
pub const WAIT_MS_MAX: u64 = 30_000;
/// When a client is to try again what was answered `unavailable`.
pub const RETRY_MS: u64 = 1_000;
/// Queued bytes beyond which a connection is behind and gets no live pushes.
pub const BEHIND_SIZE: usize = 1024 * 1024;
/// Queued bytes up to which a connection has room for the next piece of its backlog.
pub const ROOM_SIZE: usize = 64 * 1024;
/// Queued bytes beyond which a connection is cut: it asks and asks, and reads no answer. The
/// queues of the shard must take this and one more frame.
pub const SLOW_SIZE: usize = 8 * 1024 * 1024;
/// Close code of a connection whose client's token or ticket has expired.
pub const EXPIRED_CODE: u16 = 4004;
/// How long a drain lets a connection wait for the answers it is owed.
pub const DRAIN_GRACE_MS: u64 = 2_000;

// A pipelining client's answers alone never look like a client that does not read.
const _: () = assert!(OUTSTANDING_COUNT_MAX * 384 < SLOW_SIZE - BEHIND_SIZE);

pub use super::application::ConnectionId;

/// The chat connections as the router reaches them. The shard's table is the real one.
pub trait Clients {
    /// Queues one frame, of the kind that `subprotocol` has. `false`: the queue takes no more, and
    /// the frame is lost unless the connection is cut. Nothing happens when the connection is gone.
    fn send(&mut self, id: ConnectionId, subprotocol: Subprotocol, frame: &[u8]) -> bool;
    /// Bytes queued to it that have not left.
    fn queued(&self, id: ConnectionId) -> usize;
    /// Asks for [`Router::drained`], once, when everything queued has left.
    fn watch_drained(&mut self, id: ConnectionId);
    /// Closes it once what is queued has left. [`Router::closed`] may be called for it later.
    fn close(&mut self, id: ConnectionId, code: u16, reason: &str);
    /// Closes it without what is queued: it takes nothing.
    fn cut_slow(&mut self, id: ConnectionId, code: u16, reason: &str);
    /// What is to be done for lack of memory.
    fn pressure(&self) -> Pressure {
        Pressure::None
    }
    /// Bytes that are left of the memory budget.
    fn memory_left(&self) -> usize {
        usize::MAX
    }
    /// Whether more than a little may be queued.
    fn may_queue(&self) -> bool {
        true
    }
}

/// What the router is given with every event.
pub struct Surroundings<'a> {
    pub now: Now,
    pub clients: &'a mut dyn Clients,
    pub outlet: &'a mut dyn Outlet,
}

/// What a router is made of.
pub struct Options {
    /// The sequencer, as the link numbers it.
    pub sequencer: PeerId,
    /// This shard's incarnation, random at each start.
    pub incarnation: u64,
    /// The edge's id, as `welcome` names it.
    pub server: String,
    pub tickets: Tickets,
    /// Silence after which the shard pings a client, as `welcome` tells it.
    pub heartbeat_ms: u64,
    /// Spreads the reconnections after a drain.
    pub seed: u64,
}

/// The logic of one edge shard.
pub struct Router {
    options: Options,
    /// By slot.
    connections: Vec<Option<Connection>>,
    devices: Devices,
    /// Of names that are not kept in place.
    names_size: usize,
    requests: Requests,
    /// Of all connections that wait for their `welcome`.
    parked_size: usize,
    rooms: Rooms,
    /// The highest epoch that a sequencer has named.
    epoch: u64,
    /// The sequencer at the other end has been superseded.
    refuses_sequencer: bool,
    counters: Counters,
    /// From a client's send until its `sent`.
    send_latency: Latency,
    deadlines: Deadlines,
    /// When the drain's grace ends, once it began.
    drain_ends_at_ms: Option<u64>,
    /// Frames are encoded here; kept for its capacity.
    frame: Vec<u8>,
}

impl Router {
    pub fn new(options: Options) -> Router {
        Router {
            requests: Requests::new(options.sequencer),
            options,
            connections: Vec::new(),
            devices: Devices::default(),
            names_size: 0,
            parked_size: 0,
            rooms: Rooms::default(),
            epoch: 0,
            refuses_sequencer: false,
            counters: Counters::default(),
            send_latency: Latency::default(),
            deadlines: Deadlines::default(),
            drain_ends_at_ms: None,
            frame: Vec::new(),
        }
    }

    /// How long the oldest unanswered request has waited.
    pub fn longest_wait_us(&self, now_us: u64) -> u64 {
        let oldest = self.requests.oldest_asked_at_us();
        oldest.map_or(0, |asked_at_us| now_us.saturating_sub(asked_at_us))
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn send_latency(&self) -> &Latency {
        &self.send_latency
    }

    /// The link's session is to be ended: its sequencer's epoch has been superseded.
    pub fn refuses_sequencer(&self) -> bool {
        self.refuses_sequencer
    }

    /// New connections are to be refused with 503: the shard is going away.
    pub fn is_draining(&self) -> bool {
        self.drain_ends_at_ms.is_some()
    }

    /// A handshake was accepted. The client hears `welcome` once the sequencer gave it a session.
    pub fn opened(&mut self, id: ConnectionId, admitted: Admitted, around: &mut Surroundings) {
        // A slot's earlier tenant that was never reported closed is gone all the same.
        if let Some(generation) = self.slot(id.slot).as_ref().map(|old| old.generation) {
            self.closed(ConnectionId { generation, ..id }, around);
        }
        let Admitted { user, device, manual, subprotocol, .. } = admitted;
        let client = Client {
            generation: id.generation,
            user: user.clone(),
            device: device.clone(),
            manual,
            subprotocol: subprotocol.unwrap_or(Subprotocol::Json),
        };
        let connection = Connection::new(client, &mut self.devices);
        self.keep(id.slot, connection);
        self.counters.accepted += 1;
        let message = ToSequencer::Open { address: self.address(id), user, device };
        let request = Unanswered {
            asker: id,
            reference: None,
            size: 0,
            message,
            asked_at_us: around.now.monotonic_us,
            entry: None,
        };
        self.requests.ask(request, around.outlet);
        if self.is_draining() {
            self.cut(id, Goodbye::Drain, Some(RETRY_MS), around);
        }
    }

    /// What the client of a connection that was just opened proved holds for this long only.
    pub fn limit(&mut self, id: ConnectionId, term: Term, now: Now) {
        let Some(connection) = self.connection(id) else {
            return;
        };
        if let Some(opening) = connection.opening_mut() {
            opening.ticket_ends_unix_ms = term.ticket_ends_unix_ms.unwrap_or(u64::MAX);
        }
        if let Some(end) = term.ends_unix_ms {
            // By the steady clock: one that is set right meanwhile cuts nobody.
            let rest_ms = end.saturating_sub(now.unix_ms);
            self.deadlines.insert(now.monotonic_ms().saturating_add(rest_ms), id);
            let (connections, count) = (&self.connections, self.counters.connections);
            self.deadlines.sweep(count, |id| stands(connections, id));
        }
    }

    /// One whole message of a client; `kind`: the subprotocol that has frames of this kind.
    pub fn message(
        &mut self,
        id: ConnectionId,
        kind: Subprotocol,
        frame: &[u8],
        around: &mut Surroundings,
    ) {
        let may_park = self.may_park(around.clients);
        let Some(connection) = self.connection(id) else {
            return;
        };
        if connection.subprotocol != kind {
            self.close(id, 1003, "the subprotocol has no frames of this kind", around);
            return;
        }
        let decoded = kind.decode(frame);
        if let Some(opening) = connection.opening_mut() {
            let parked = &mut opening.parked;
            if !may_park {
                return self.cut(id, Goodbye::Overload, Some(RETRY_MS), around);
            }
            let size_before = parked.size();
            let parking = parked.park(decoded, |request| overload(request, PARKED_COUNT_MAX));
            self.parked_size += parked.size() - size_before;
            self.counters.frames_in += 1;
            match parking {
                Parking::Parked => {}
                Parking::Refused => self.counters.overloaded += 1,
                Parking::Overrun => self.cut(id, Goodbye::Overload, Some(RETRY_MS), around),
            }
            return;
        }
        self.counters.frames_in += 1;
        self.handle(id, decoded, around);
    }

    /// Everything queued to the connection has left.
    pub fn drained(&mut self, id: ConnectionId, around: &mut Surroundings) {
        if !around.clients.may_queue() {
            self.rooms.hold(id);
        } else if let Some(connection) = self.connection(id)
            && let Some(stream) = connection.room_wanted()
        {
            connection.set_room_wanted(None);
            self.tell_room(id, stream, around);
        }
    }

    /// The connection is gone, for whatever reason. Its operations stay with the sequencer; their
    /// answers will find nobody.
    pub fn closed(&mut self, id: ConnectionId, around: &mut Surroundings) {
        let Some(connection) = self.slot(id.slot).take_if(|is| is.generation == id.generation)
        else {
            return;
        };
        self.counters.connections -= 1;
        self.names_size -= connection.names_size();
        self.unpark(connection.opening());
        let (user, device) = (connection.user(), connection.device(&self.devices));
        connection.leave(&mut self.devices);
        // One that has no session yet is closed when `Opened` finds it gone.
        if let Some(session) = connection.session() {
            let close = ToSequencer::Close { address: self.address(id), session, user, device };
            self.requests.tell(close, around.outlet);
        }
    }

    /// What the link has to say about the sequencer, or from it.
    pub fn link_event(&mut self, event: LinkEvent, around: &mut Surroundings) {
        match event {
            LinkEvent::Began { peer, .. } if peer == self.options.sequencer => {
                self.refuses_sequencer = false;
                self.began(around);
            }
            LinkEvent::Ended { peer } if peer == self.options.sequencer => {
                self.end_session(around);
            }
            LinkEvent::Entry { peer, number, entry } if peer == self.options.sequencer => {
                self.entry(entry, around);
                around.outlet.answered(peer, number);
                self.requests.flush(around.outlet);
            }
            LinkEvent::Began { .. } | LinkEvent::Ended { .. } | LinkEvent::Entry { .. } => {}
        }
    }

    /// Time passed, or the link may take more again. Once per turn of the loop.
    pub fn tick(&mut self, around: &mut Surroundings) {
        self.requests.flush(around.outlet);
        self.tell_held_rooms(around);
        for (turn, request) in self.requests.expire(around.now, WAIT_MS_MAX) {
            self.counters.expired += 1;
            let message = "the backend did not come back in time";
            let unavailable = (ErrorCode::Unavailable, message, Some(RETRY_MS));
            self.refuse(&request, unavailable, around);
            self.settle(turn, &request, around);
        }
        while let Some(id) = self.deadlines.next_due(around.now.monotonic_ms()) {
            if self.connection(id).is_some() {
                self.counters.cut_expired += 1;
                self.close(id, EXPIRED_CODE, "the token or ticket has expired", around);
            }
        }
        if self.drain_ends_at_ms.is_some_and(|end| end <= around.now.monotonic_ms()) {
            for id in self.ids() {
                self.close_drained(id, around);
            }
        }
    }

    /// The shard is going away: tells every client when to come back, evenly over `spread_ms`, and
    /// closes each once it has the answers it is owed, or after [`DRAIN_GRACE_MS`].
    pub fn drain(&mut self, spread_ms: u64, around: &mut Surroundings) {
        if self.is_draining() {
            return;
        }
        self.drain_ends_at_ms = Some(around.now.monotonic_ms() + DRAIN_GRACE_MS);
        for id in self.ids() {
            let reconnect_ms = Some(self.random() % spread_ms.max(1));
            let goodbye = Goodbye::Drain;
            self.say(id, &Event::Goaway { goodbye, reconnect_ms }, around);
            let found = self.connection(id);
            if found.is_some_and(|connection| connection.is_settled()) {
                self.close_drained(id, around);
            }
        }
    }

    fn began(&mut self, around: &mut Surroundings) {
        self.end_session(around);
        self.counters.link_sessions += 1;
        let incarnation = self.options.incarnation;
        let mut retells = Vec::new();
        for (slot, connection) in self.connections.iter_mut().enumerate() {
            let Some(connection) = connection else {
                continue;
            };
            // The new session's catchings-up are counted anew.
            connection.set_behind(None);
            connection.set_room_wanted(None);
            if let Some(session) = connection.session() {
                let slot = u32::try_from(slot).expect("slots are numbered by u32");
                let generation = connection.generation;
                retells.push(ToSequencer::Retell {
                    address: Address { incarnation, slot, generation },
                    session,
                    user: connection.user(),
                    device: connection.device(&self.devices),
                    manual: connection.manual,
                });
            }
        }
        let notices = retells.into_iter().chain([ToSequencer::Retold]);
        self.requests.begin(notices, around.outlet);
    }

    /// What was asked in the link session that is over is asked again in the next one, or, if it
    /// must not happen twice, answered now: nobody knows whether it happened.
    fn end_session(&mut self, around: &mut Surroundings) {
        let connections = &self.connections;
        for (turn, request) in self.requests.end(|id| stands(connections, id)) {
            let message = "the backend is gone: it may have happened or not";
            self.refuse(&request, (ErrorCode::Unavailable, message, Some(RETRY_MS)), around);
            self.settle(turn, &request, around);
        }
    }

    /// Says one event to a client, unless it is gone.
    fn say(&mut self, id: ConnectionId, event: &Event, around: &mut Surroundings) {
        let Some(subprotocol) = self.subprotocol(id) else {
            return;
        };
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        subprotocol.encode(event, &mut frame);
        self.queue(id, &frame, around);
        self.frame = frame;
    }

    /// Queues one encoded frame, and cuts a connection that lets them pile up.
    fn queue(&mut self, id: ConnectionId, frame: &[u8], around: &mut Surroundings) {
        let Some(subprotocol) = self.subprotocol(id) else {
            return;
        };
        self.counters.frames_out += 1;
        let taken = around.clients.send(id, subprotocol, frame);
        if !taken || around.clients.queued(id) > pressed::slow_size(around.clients) {
            self.counters.cut_slow += 1;
            let (code, reason) = (Goodbye::Slow.close_code(), Goodbye::Slow.reason());
            around.clients.cut_slow(id, code, reason);
            self.closed(id, around);
        }
    }

    /// `goaway` and close. The connection is gone for the router at once.
    fn cut(
        &mut self,
        id: ConnectionId,
        goodbye: Goodbye,
        reconnect_ms: Option<u64>,
        around: &mut Surroundings,
    ) {
        let goaway = Event::Goaway { goodbye, reconnect_ms };
        self.say(id, &goaway, around);
        self.close(id, goodbye.close_code(), goodbye.reason(), around);
    }

    fn close_drained(&mut self, id: ConnectionId, around: &mut Surroundings) {
        self.close(id, Goodbye::Drain.close_code(), Goodbye::Drain.reason(), around);
    }

    fn close(&mut self, id: ConnectionId, code: u16, reason: &str, around: &mut Surroundings) {
        if self.connection(id).is_some() {
            around.clients.close(id, code, reason);
            self.closed(id, around);
        }
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(id.slot as usize)?.as_mut()?;
        (connection.generation == id.generation).then_some(connection)
    }

    /// A connection has come.
    fn keep(&mut self, slot: u32, connection: Connection) {
        self.counters.connections += 1;
        self.names_size += connection.names_size();
        *self.slot(slot) = Some(connection);
    }

    /// The user and the device of a connection.
    fn names(&self, id: ConnectionId) -> Option<(Id, Id)> {
        let connection = self.connections.get(id.slot as usize)?.as_ref()?;
        let is_current = connection.generation == id.generation;
        is_current.then(|| (connection.user(), connection.device(&self.devices)))
    }

    fn slot(&mut self, slot: u32) -> &mut Option<Connection> {
        let index = slot as usize;
        if index >= self.connections.len() {
            self.connections.resize_with(index + 1, || None);
        }
        &mut self.connections[index]
    }

    fn ids(&self) -> Vec<ConnectionId> {
        let slots = (0u32..).zip(&self.connections);
        let ids = slots.filter_map(|(slot, connection)| {
            let generation = connection.as_ref()?.generation;
            Some(ConnectionId { slot, generation })
        });
        ids.collect()
    }

    fn address(&self, id: ConnectionId) -> Address {
        let ConnectionId { slot, generation } = id;
        Address { incarnation: self.options.incarnation, slot, generation }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014): enough to spread clients over a few seconds.
    fn random(&mut self) -> u64 {
        self.options.seed = self.options.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed =
            (self.options.seed ^ (self.options.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn stands(connections: &[Option<Connection>], id: ConnectionId) -> bool {
    let found = connections.get(id.slot as usize).and_then(Option::as_ref);
    found.is_some_and(|connection| connection.generation == id.generation)
}
