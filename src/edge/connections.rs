//! The connections of one shard: what an application may do with them, and what the shard does to
//! them that needs no ring. What is queued here leaves at the end of the turn.

use std::net::SocketAddr;

use crate::arena::{Slab, Wheel};
use crate::clock::Now;
use crate::framer::handshake::refusal_response;
use crate::framer::{DeflateAgreement, Deflater, Framer, Inflater, Opcode};

use super::admission::{Admission, AdmissionOptions, Reason, Refused};
use super::application::{ConnectionId, End};
use super::connection::{
    CLOSE_MS, Connection, Due, Flags, Listening, Moment, Outbound, Pace, Phase, Reading,
};
use super::holdings::{count_queue, reused};
use super::ledger::{Class, Grades, Ledger, SocketCost};
use super::tiers::Tiers;

/// Sizes and times of one shard.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// Connections served; over it, a request is answered 503.
    pub connection_count_max: usize,
    /// One message of a client, reassembled, in bytes; over it the connection closes with 1009.
    pub message_size_max: u32,
    /// Bytes queued for one connection; over it [`SendError::Full`].
    pub queue_size_max: usize,
    /// Body of a plain request, in bytes; over it 413.
    pub body_size_max: usize,
    /// Silence in milliseconds before a ping; twice of it ends the connection.
    pub heartbeat_ms: u64,
    /// How long a stopping shard waits for its connections to leave, in milliseconds.
    pub drain_ms: u64,
    /// Agrees to permessage-deflate with clients that offer it.
    pub deflate: bool,
    pub admission: AdmissionOptions,
    /// What idle and busy connections wait with.
    pub tiers: Tiers,
    /// The memory budget of all shards together.
    pub grades: Grades,
    pub socket_cost: SocketCost,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions {
            connection_count_max: 16_000,
            message_size_max: crate::limits::CLIENT_MESSAGE_SIZE_MAX as u32,
            queue_size_max: 4 * crate::limits::SERVER_FRAME_SIZE_MAX,
            body_size_max: 64 * 1024,
            heartbeat_ms: 30_000,
            drain_ms: 2 * CLOSE_MS,
            deflate: false,
            admission: AdmissionOptions::default(),
            tiers: Tiers::default(),
            grades: Grades::default(),
            socket_cost: SocketCost::default(),
        }
    }
}

/// Slots beyond `connection_count_max` in which the refused hear 503.
pub const SPARE_COUNT: usize = 64;
/// Of all slots, this part may besides be held by those who hear that they are not let in, for one
/// second each; the refused beyond it are cut off, which costs nothing. So they cannot keep out
/// those who would be let in.
const REFUSED_DIVISOR: usize = 16;
const REFUSED_COUNT_MAX: usize = 4096;

/// Timeouts are kept to this, and a rotation (51 s) holds nearly all of them.
const WHEEL_TICK_MS: u64 = 100;
const WHEEL_BUCKETS: usize = 512;
/// Vectors and queues kept for reuse, and how large each may be: 16 MiB at most.
const POOL_COUNT_MAX: usize = 1024;
const POOL_VECTOR_SIZE_MAX: usize = 16 * 1024;

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the connection is not open")]
    Gone,
    #[error("the connection's queue is full")]
    Full,
}

/// What happened on a shard since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub accepted: u64,
    /// Answered 503 or 429, or closed at once, in the order of [`Reason::ALL`].
    pub refused: [u64; Reason::ALL.len()],
    /// Closed because their request was not whole in time.
    pub timed_out: u64,
    pub opened: u64,
    pub messages: u64,
    pub sends: u64,
    /// Completions of an earlier life of a slot: recognised and dropped.
    pub stale: u64,
    /// Receives that ended because no buffer was free.
    pub starved: u64,
    /// Connections that joined the busy tier, and that left it open.
    pub promoted: u64,
    pub calmed: u64,
    pub violations: u64,
    pub silent: u64,
    pub slow: u64,
    pub lost: u64,
    /// Closed because they made it hold more when the memory budget was used up.
    pub cut_for_memory: u64,
}

/// See the module.
pub struct Connections {
    pub(super) options: ShardOptions,
    pub(super) counters: Counters,
    pub(super) now: Now,
    pub(super) dirty: Vec<ConnectionId>,
    pub(super) ended: Vec<(ConnectionId, End)>,
    pub(super) drained: Vec<ConnectionId>,
    pub(super) gone: Vec<ConnectionId>,
    /// Those that have left the busy tier, whose multishot receive is to end.
    pub(super) calmed: Vec<ConnectionId>,
    pub(super) busy_count: usize,
    pub(super) ledger: Ledger,
    /// For all connections that agreed to compression; away while frames are looked at.
    pub(super) inflater: Option<Box<Inflater>>,
    deflater: Option<Box<Deflater>>,
    pub(super) slots: Slab<Connection>,
    admission: Admission,
    open_count: usize,
    refused_count: usize,
    pub(super) wheel: Wheel,
    /// Slots.
    due: Vec<u32>,
    /// Sends that were begun since the last look at how they go.
    begun: Vec<ConnectionId>,
    #[expect(
        clippy::vec_box,
        reason = "they move between here and slots, which hold a pointer of them"
    )]
    pub(super) queues: Vec<Box<Outbound>>,
    pub(super) vectors: Vec<Vec<u8>>,
    /// The slot that is to be shrunk next.
    pub(super) shrink_slot: u32,
    pub(super) shrink_after_ms: u64,
    /// What those hold who were cut since the slots were last begun with.
    pub(super) cut_size: u64,
}

impl Connections {
    pub(super) fn new(options: ShardOptions, now: Now) -> Connections {
        let capacity = options.connection_count_max + SPARE_COUNT;
        Connections {
            options,
            counters: Counters::default(),
            now,
            dirty: Vec::new(),
            ended: Vec::new(),
            drained: Vec::new(),
            gone: Vec::new(),
            calmed: Vec::new(),
            busy_count: 0,
            ledger: Ledger::new(options.grades),
            inflater: options.deflate.then(Box::default),
            deflater: options.deflate.then(Box::default),
            slots: Slab::with_capacity(capacity),
            admission: Admission::new(options.admission, now),
            open_count: 0,
            refused_count: 0,
            wheel: Wheel::new(now.monotonic_ms(), WHEEL_TICK_MS, WHEEL_BUCKETS, capacity),
            due: Vec::new(),
            begun: Vec::new(),
            queues: Vec::new(),
            vectors: Vec::new(),
            shrink_slot: 0,
            shrink_after_ms: 0,
            cut_size: 0,
        }
    }

    /// Queues a text frame.
    pub fn send_text(&mut self, id: ConnectionId, text: &str) -> Result<(), SendError> {
        self.send_frame(id, Opcode::Text, text.as_bytes())
    }

    /// Queues a binary frame.
    pub fn send_binary(&mut self, id: ConnectionId, bytes: &[u8]) -> Result<(), SendError> {
        self.send_frame(id, Opcode::Binary, bytes)
    }

    /// Bytes queued or under way to this connection, headers included; 0 when it is not known.
    pub fn queued_bytes(&self, id: ConnectionId) -> usize {
        let outbound = self.get(id).and_then(|connection| connection.outbound.as_ref());
        outbound.map_or(0, |outbound| outbound.size())
    }

    /// Asks for [`super::Application::drained`] once the queue of this connection is empty.
    pub fn watch_drained(&mut self, id: ConnectionId) {
        let Some(connection) = self.open_mut(id) else {
            return;
        };
        match &mut connection.outbound {
            Some(outbound) => outbound.is_watched = true,
            None => self.drained.push(id),
        }
    }

    /// Closes after what is queued has left, with this code and reason (cut to 123 bytes).
    pub fn close(&mut self, id: ConnectionId, code: u16, reason: &str) {
        self.begin_close(id, Some(code), reason, End::Application, Listening::Frames);
    }

    /// Closes without what is queued, for a client that takes it too slowly or not at all.
    pub fn cut(&mut self, id: ConnectionId, code: u16, reason: &str, end: End) {
        let Some(connection) = self.open_mut(id) else {
            return;
        };
        connection.flags.is_cut = true;
        let outbound = connection.outbound.as_mut();
        if outbound.is_none_or(|outbound| outbound.drop_waiting()) {
            self.begin_close(id, Some(code), reason, end, Listening::Frames);
        } else {
            self.ended.push((id, end));
            self.count_end(end);
            self.leave(id, true);
        }
    }

    /// Closes every open connection, because the shard stops.
    pub fn close_all(&mut self, code: u16, reason: &str) {
        for id in self.ids() {
            self.begin_close(id, Some(code), reason, End::Stopping, Listening::Frames);
        }
    }

    pub fn is_open(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|connection| connection.phase == Phase::Open)
    }

    /// Connections that are open.
    pub fn open_count(&self) -> usize {
        self.open_count
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn send_frame(
        &mut self,
        id: ConnectionId,
        opcode: Opcode,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let queue_size_max = self.options.queue_size_max;
        let Some(connection) = self.open_mut(id) else {
            return Err(SendError::Gone);
        };
        let window_bits = connection.flags.deflate_window_bits;
        if self.queued_bytes(id) + payload.len() > queue_size_max {
            return Err(SendError::Full);
        }
        match window_bits {
            0 => self.queue(id, |outbound| outbound.push_data(opcode, payload)),
            _ => self.queue_deflated(id, opcode, payload, window_bits),
        }
        Ok(())
    }
}

/// What the shard does.
impl Connections {
    /// Slots in use: open, becoming so, or closing.
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        self.slots.iter().map(|(id, _)| id).collect()
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.slots.get(id)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.get_mut(id)
    }

    pub(super) fn open_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.get_mut(id).filter(|connection| connection.phase == Phase::Open)
    }

    /// Of each slot, up to the last one that has been in use.
    pub(super) fn generations(&self) -> &[u32] {
        self.slots.generations()
    }

    /// Takes over what another process had. `None`: it does not fit.
    pub(super) fn restore_slots(
        &mut self,
        generations: Vec<u32>,
        values: Vec<(u32, Connection)>,
    ) -> Option<()> {
        self.slots = Slab::restore(self.slots.capacity(), generations, values)?;
        for id in self.ids() {
            self.open_count += usize::from(self.is_open(id));
            self.place(id);
            self.count_restored(id);
            self.arm(id);
        }
        Some(())
    }

    /// Gives an accepted socket a slot. `None` when even the spare ones are taken.
    pub(super) fn insert(&mut self, socket: u32) -> Option<ConnectionId> {
        let now_ms = self.now.monotonic_ms();
        let id = self.slots.insert(Connection {
            reading: Reading::Request(None),
            outbound: None,
            since: Moment::at_ms(now_ms),
            timer: Moment::far(now_ms),
            socket,
            phase: Phase::Request,
            listening: Listening::Frames,
            flags: Flags::default(),
        })?;
        self.place(id);
        self.arm(id);
        self.count_places();
        Some(id)
    }

    /// Whether [`Connections::admit`] has use for an address.
    pub(super) fn wants_addresses(&self) -> bool {
        self.admission.wants_addresses()
    }

    /// Lets a connection that was just inserted stay, or tells it why not.
    pub(super) fn admit(&mut self, id: ConnectionId, peer: Option<SocketAddr>) {
        let served_count = self.count() - self.refused_count;
        let admitted = match served_count > self.options.connection_count_max {
            true => Err(self.admission.full()),
            false if self.is_memory_short() => Err(self.admission.no_memory()),
            false => self.admission.admit(self.now, id.slot, peer.map(|peer| peer.ip())),
        };
        match admitted {
            Ok(()) => self.counters.accepted += 1,
            Err(refused) => self.refuse(id, refused),
        }
    }

    fn refuse(&mut self, id: ConnectionId, refused: Refused) {
        self.counters.refused[refused.reason as usize] += 1;
        let share = self.options.connection_count_max / REFUSED_DIVISOR;
        let is_heard = self.refused_count < SPARE_COUNT + share.min(REFUSED_COUNT_MAX);
        if let Some(connection) = self.get_mut(id) {
            connection.flags.is_refused = true;
            self.refused_count += 1;
        }
        match is_heard {
            true => self.respond(id, &response_to(refused), Listening::EndOfStream),
            false => self.leave(id, true),
        }
    }

    /// Frees the slot of a connection that has left.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        if let Some(connection) = self.slots.remove(id) {
            self.refused_count -= usize::from(connection.flags.is_refused);
            self.admission.left(id.slot);
            self.busy_count -= usize::from(connection.flags.is_busy);
            self.uncount(&connection);
            self.recycle_queue(connection.outbound);
            self.count_places();
        }
    }

    /// Makes a WebSocket of a connection whose request was answered.
    pub(super) fn open(&mut self, id: ConnectionId, deflate: Option<DeflateAgreement>) {
        let (now_ms, message_size_max) = (self.now.monotonic_ms(), self.options.message_size_max);
        if let Some(connection) = self.get_mut(id) {
            connection.phase = Phase::Open;
            connection.since = Moment::at_ms(now_ms);
            connection.reading = Reading::Frames(match deflate {
                None => Framer::new(message_size_max),
                Some(_) => Framer::with_deflate(message_size_max),
            });
            connection.flags.deflate_window_bits =
                deflate.map_or(0, DeflateAgreement::server_window_bits);
            self.open_count += 1;
            self.counters.opened += 1;
            self.arm(id);
        }
    }

    /// Lets `write` queue something, and lists the connection to be flushed.
    pub(super) fn queue(&mut self, id: ConnectionId, write: impl FnOnce(&mut Outbound)) {
        let Connections { slots, queues, dirty, ledger, .. } = self;
        let connection = slots.get_mut(id).filter(|connection| connection.phase != Phase::Gone);
        let Some(connection) = connection else {
            return;
        };
        let outbound = connection.outbound.get_or_insert_with(|| reused(queues, ledger));
        write(outbound);
        count_queue(outbound, ledger);
        if !connection.flags.is_dirty {
            connection.flags.is_dirty = true;
            dirty.push(id);
        }
    }

    /// Queues a data frame, compressed if that makes it smaller.
    fn queue_deflated(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8], bits: u8) {
        let mut deflater = self.deflater.take();
        let deflated = deflater.as_mut().and_then(|deflater| deflater.deflate(payload, bits));
        self.queue(id, |outbound| match deflated {
            Some(deflated) => outbound.push_compressed(opcode, deflated),
            None => outbound.push_data(opcode, payload),
        });
        self.deflater = deflater;
    }

    /// A frame was heard.
    pub(super) fn heard(&mut self, id: ConnectionId) {
        let now_ms = self.now.monotonic_ms();
        if let Some(connection) = self.open_mut(id) {
            connection.since = Moment::at_ms(now_ms);
            connection.flags.is_pinged = false;
        }
    }

    /// Queues the close frame of an open connection and stops being open.
    pub(super) fn begin_close(
        &mut self,
        id: ConnectionId,
        code: Option<u16>,
        reason: &str,
        end: End,
        listening: Listening,
    ) {
        if self.open_mut(id).is_none() {
            return;
        }
        self.queue(id, |outbound| outbound.push_close(code, reason));
        self.ended.push((id, end));
        self.count_end(end);
        self.closing(id, listening);
    }

    /// Answers with an HTTP response, then closes.
    pub(super) fn respond(&mut self, id: ConnectionId, response: &[u8], listening: Listening) {
        self.queue(id, |outbound| outbound.push_response(response));
        self.closing(id, listening);
    }

    /// The peer said all it had to say (its close frame, or the end of its stream). What is queued
    /// still leaves.
    pub(super) fn peer_done(&mut self, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        connection.flags.is_peer_done = true;
        if connection.outbound.is_none() {
            self.leave(id, false);
        }
    }

    /// The socket is of no use any more.
    pub(super) fn lost(&mut self, id: ConnectionId, reset: bool) {
        if self.is_open(id) {
            self.ended.push((id, End::Lost));
            self.count_end(End::Lost);
        }
        self.leave(id, reset);
    }

    /// Ends a connection at the end of this turn.
    pub(super) fn leave(&mut self, id: ConnectionId, reset: bool) {
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        if connection.phase != Phase::Gone {
            let was_open = connection.phase == Phase::Open;
            connection.phase = Phase::Gone;
            connection.flags.is_reset = reset;
            self.open_count -= usize::from(was_open);
            self.gone.push(id);
        }
    }

    /// Notes that a send was begun with `data`.
    pub(super) fn sending(&mut self, id: ConnectionId, data: &Vec<u8>) {
        let now_ms = self.now.monotonic_ms();
        self.counters.sends += 1;
        let Connections { slots, ledger, .. } = self;
        let outbound = slots.get_mut(id).and_then(|connection| connection.outbound.as_mut());
        if let Some(outbound) = outbound {
            (outbound.sending, outbound.sending_capacity) = (data.len(), data.capacity());
            outbound.sending_since_ms = now_ms;
            count_queue(outbound, ledger);
        }
        self.begun.push(id);
    }

    /// Puts those on the wheel whose sends were begun before the last completions and are not done:
    /// few are, and the others need no deadline.
    pub(super) fn watch_sends(&mut self) {
        let mut begun = std::mem::take(&mut self.begun);
        for id in begun.drain(..) {
            let outbound = self.slots.get(id).and_then(|connection| connection.outbound.as_ref());
            if outbound.is_some_and(|outbound| outbound.sending > 0) {
                self.arm(id);
            }
        }
        self.begun = begun;
    }

    /// The send under way is done.
    pub(super) fn sent(&mut self, id: ConnectionId) {
        let now_ms = self.now.monotonic_ms();
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        let Some(outbound) = &mut connection.outbound else {
            return;
        };
        (outbound.sending, outbound.sending_capacity) = (0, 0);
        if outbound.waiting() > 0 {
            return self.queue(id, |_| {});
        }
        let emptied = connection.outbound.take();
        let is_watched = emptied.as_ref().is_some_and(|outbound| outbound.is_watched);
        let is_done = connection.flags.is_peer_done || connection.listening == Listening::Nothing;
        match connection.phase {
            Phase::Closing if is_done => self.leave(id, false),
            Phase::Closing => {
                connection.since = Moment::at_ms(now_ms);
                self.arm(id);
            }
            _ if is_watched => self.drained.push(id),
            _ => {}
        }
        self.recycle_queue(emptied);
    }

    /// Does what is due by now: pings, cuts, ends.
    pub(super) fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(self.now.monotonic_ms(), &mut due);
        for slot in due.drain(..) {
            if let Some(id) = self.slots.key_of(slot) {
                self.expire_one(id);
            }
        }
        self.due = due;
    }

    /// When [`Connections::expire`] may have something to do, in milliseconds from now.
    pub(super) fn wait_ms(&self) -> Option<u64> {
        self.wheel.wait_ms(self.now.monotonic_ms())
    }

    /// An empty vector, of earlier use if possible.
    pub(super) fn spare_vector(&mut self) -> Vec<u8> {
        let vector = self.vectors.pop().unwrap_or_default();
        self.ledger.change(Class::Spares, vector.capacity(), 0);
        vector
    }

    pub(super) fn recycle_vector(&mut self, vector: Vec<u8>) {
        let is_useful = vector.capacity() > 0 && vector.capacity() <= POOL_VECTOR_SIZE_MAX;
        if is_useful && self.vectors.len() < POOL_COUNT_MAX && self.keeps_spares() {
            self.ledger.change(Class::Spares, 0, vector.capacity());
            self.vectors.push(vector);
        }
    }

    fn recycle_queue(&mut self, outbound: Option<Box<Outbound>>) {
        let Some(mut outbound) = outbound else {
            return;
        };
        self.ledger.change(Class::Queues, outbound.counted, 0);
        outbound.counted = 0;
        let is_useful = outbound.capacity() <= POOL_VECTOR_SIZE_MAX;
        if is_useful && self.queues.len() < POOL_COUNT_MAX && self.keeps_spares() {
            outbound.drop_waiting();
            (outbound.sending, outbound.sending_capacity) = (0, 0);
            outbound.is_watched = false;
            self.ledger.change(Class::Spares, 0, outbound.held_size());
            self.queues.push(outbound);
        }
    }

    fn closing(&mut self, id: ConnectionId, listening: Listening) {
        let now_ms = self.now.monotonic_ms();
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        let was_open = connection.phase == Phase::Open;
        connection.phase = Phase::Closing;
        connection.listening = listening;
        connection.since = Moment::at_ms(now_ms);
        self.open_count -= usize::from(was_open);
        self.arm(id);
    }

    fn count_end(&mut self, end: End) {
        match end {
            End::Violation => self.counters.violations += 1,
            End::Silent => self.counters.silent += 1,
            End::Slow => self.counters.slow += 1,
            End::Lost => self.counters.lost += 1,
            End::Memory => self.counters.cut_for_memory += 1,
            End::Client | End::Application | End::Stopping => {}
        }
    }

    fn pace(&self) -> Pace {
        let ShardOptions { heartbeat_ms, tiers, .. } = self.options;
        Pace { heartbeat_ms, quiet_ms: tiers.quiet_ms() }
    }

    fn expire_one(&mut self, id: ConnectionId) {
        let (now_ms, pace) = (self.now.monotonic_ms(), self.pace());
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        if connection.timer.ms(now_ms) > now_ms {
            // An entry that an earlier deadline has overtaken, or one of the slot's life before.
            return;
        }
        connection.timer = Moment::far(now_ms);
        match connection.due(now_ms, pace) {
            Due::At(_) => {}
            Due::Abandon => {
                let has_no_request = connection.phase == Phase::Request;
                self.counters.timed_out += u64::from(has_no_request);
                self.leave(id, true);
            }
            Due::Finish => self.leave(id, false),
            Due::Ping => {
                connection.flags.is_pinged = true;
                self.queue(id, |outbound| outbound.push_control(Opcode::Ping, b""));
            }
            Due::Calm => self.calm(id),
            Due::Cut(End::Slow) => self.cut(id, 4003, "slow", End::Slow),
            Due::Cut(end) => self.cut(id, 4002, "heartbeat missed", end),
        }
        self.arm(id);
    }

    /// Puts the connection on the wheel for its next deadline, unless it is there for an earlier
    /// one, at which the deadline will be looked at again.
    pub(super) fn arm(&mut self, id: ConnectionId) {
        let (now_ms, pace) = (self.now.monotonic_ms(), self.pace());
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        let at_ms = match connection.due(now_ms, pace) {
            Due::At(u64::MAX) => return,
            Due::At(at_ms) => at_ms,
            _ => now_ms,
        };
        if at_ms < connection.timer.ms(now_ms) {
            connection.timer = Moment::at_ms(at_ms);
            self.wheel.insert(id.slot, at_ms);
        }
    }
}

fn response_to(refused: Refused) -> Vec<u8> {
    let (status, code, message) = match refused.reason {
        Reason::Full | Reason::Memory => (503, "full", "this server is full"),
        Reason::Rate => (429, "rate_limited", "too many connect just now"),
        Reason::Address => (429, "rate_limited", "too many connections of this address"),
    };
    let retry_after = refused.retry_after_s.to_string();
    refusal_response(status, code, message, &[("Retry-After", &retry_after)])
}
