//! What connections hold, told to the ledger as it changes, and given up when memory is scarce.

use super::application::{ConnectionId, End};
use super::connection::{ArrivingRequest, Connection, Outbound, Reading};
use super::connections::Connections;
use super::ledger::{Class, Ledger, Pressure};
use crate::framer::Framer;

/// Slots that are looked at in one turn for what can be shrunk.
const SHRINK_COUNT: u32 = 512;
/// Once all were looked at, they rest so long.
const SHRINK_PAUSE_MS: u64 = 1_000;
/// With its generation.
const SLOT_SIZE: usize = size_of::<Option<Connection>>() + 4;
/// When all memory is used up, who takes nothing is waited for no longer than this.
const PROGRESS_PRESSED_MS: u64 = 2_000;
/// 1013: try again later.
const OVERLOAD: (u16, &str) = (1013, "overload");

impl Connections {
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// New connections are to be refused.
    pub(super) fn is_memory_short(&self) -> bool {
        self.ledger.pressure() >= Pressure::Refuse
    }

    /// Whether emptied queues and vectors are kept for reuse.
    pub(super) fn keeps_spares(&self) -> bool {
        self.ledger.pressure() < Pressure::Shrink
    }

    /// What the number of connections decides.
    pub(super) fn count_places(&mut self) {
        let cost = self.options.socket_cost;
        let sockets = self.count() * cost.idle + self.busy_count * cost.busy;
        self.ledger.set(Class::Slots, self.slots.touched_count() * SLOT_SIZE);
        self.ledger.set(Class::Wheel, self.wheel.size());
        self.ledger.set(Class::Sockets, sockets);
    }

    /// A connection left its slot with this; its queue is counted by itself.
    pub(super) fn uncount(&mut self, connection: &Connection) {
        self.ledger.change(Class::Frames, connection.reading.frames_size(), 0);
        if let Some(request) = connection.reading.request() {
            self.ledger.change(Class::Requests, request.held_size(), 0);
        }
    }

    /// Counts what a connection has brought from another process.
    pub(super) fn count_restored(&mut self, id: ConnectionId) {
        let Connections { slots, ledger, .. } = self;
        let Some(connection) = slots.get_mut(id) else {
            return;
        };
        ledger.change(Class::Frames, 0, connection.reading.frames_size());
        if let Some(outbound) = &mut connection.outbound {
            count_queue(outbound, ledger);
        }
        if let Some(request) = connection.reading.request() {
            ledger.change(Class::Requests, 0, request.held_size());
        }
    }

    /// Counts the queue of a connection anew.
    pub(super) fn recount_queue(&mut self, id: ConnectionId) {
        let Connections { slots, ledger, .. } = self;
        if let Some(outbound) = slots.get_mut(id).and_then(|it| it.outbound.as_mut()) {
            count_queue(outbound, ledger);
        }
    }

    /// Takes the part of a request that has arrived.
    pub(super) fn take_request(&mut self, id: ConnectionId) -> Option<Box<ArrivingRequest>> {
        let request = self.get_mut(id)?.reading.request_mut()?.take()?;
        self.ledger.change(Class::Requests, request.held_size(), 0);
        Some(request)
    }

    /// Keeps the part of a request that has arrived, if there is memory left.
    pub(super) fn keep_request(&mut self, id: ConnectionId, request: Box<ArrivingRequest>) {
        if !self.ledger.has_room(Class::Requests) {
            self.counters.cut_for_memory += 1;
            return self.leave(id, true);
        }
        let size = request.held_size();
        if let Some(connection) = self.get_mut(id) {
            connection.reading = Reading::Request(Some(request));
            self.ledger.change(Class::Requests, 0, size);
        }
    }

    /// Puts a framer back that held `before` bytes when it was taken. One that holds more when no
    /// memory is left costs its client the connection: what is open must not end the budget.
    pub(super) fn put_back(&mut self, id: ConnectionId, framer: Framer, before: usize) {
        let after = framer.held_size();
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        connection.reading = Reading::Frames(framer);
        self.ledger.change(Class::Frames, before, after);
        if after > before && !self.ledger.has_room(Class::Frames) {
            self.cut(id, OVERLOAD.0, OVERLOAD.1, End::Memory);
        }
    }

    /// Once a turn: frees what nobody needs, when that is asked for.
    pub(super) fn relieve(&mut self) {
        if !self.keeps_spares() {
            self.give_up_spares();
        }
        self.count_places();
    }

    fn give_up_spares(&mut self) {
        let now_ms = self.now.monotonic_ms();
        self.queues = Vec::new();
        self.vectors = Vec::new();
        self.ledger.set(Class::Spares, 0);
        if now_ms < self.shrink_after_ms {
            return;
        }
        let end = self.shrink_slot.saturating_add(SHRINK_COUNT);
        for slot in self.shrink_slot..end {
            if let Some(id) = self.slots.key_of(slot) {
                self.shrink(id);
                self.cut_stuck(id);
            }
        }
        self.shrink_slot = end;
        if end as usize >= self.slots.touched_count() {
            self.shrink_slot = 0;
            self.cut_size = 0;
            self.shrink_after_ms = now_ms + SHRINK_PAUSE_MS;
        }
    }

    fn shrink(&mut self, id: ConnectionId) {
        let Connections { slots, ledger, .. } = self;
        let Some(connection) = slots.get_mut(id) else {
            return;
        };
        if let Reading::Frames(framer) = &mut connection.reading {
            let before = framer.held_size();
            framer.shrink();
            ledger.change(Class::Frames, before, framer.held_size());
        }
        if let Some(outbound) = &mut connection.outbound {
            outbound.shrink();
            count_queue(outbound, ledger);
        }
        if let Some(Some(request)) = connection.reading.request_mut() {
            let before = request.held_size();
            request.bytes.shrink_to_fit();
            ledger.change(Class::Requests, before, request.held_size());
        }
    }

    /// Cuts who holds memory and takes nothing, when all is used up: so many as hold the excess.
    fn cut_stuck(&mut self, id: ConnectionId) {
        let latest_ms = self.now.monotonic_ms().saturating_sub(PROGRESS_PRESSED_MS);
        let outbound = self.get(id).and_then(|connection| connection.outbound.as_ref());
        let stuck =
            outbound.filter(|queue| queue.sending > 0 && queue.sending_since_ms <= latest_ms);
        let size = stuck.map_or(0, |queue| queue.held_size() as u64);
        if size > 0 && self.is_open(id) && self.cut_size < self.ledger.excess() {
            self.cut_size += size;
            self.cut(id, 4003, "slow", End::Slow);
        }
    }

    /// The ledger's naive twin: what all connections hold, counted anew.
    #[cfg(test)]
    pub(super) fn recount(&self) -> Vec<(Class, usize)> {
        let connections = || self.slots.iter().map(|(_, connection)| connection);
        let outbounds = connections().filter_map(|connection| connection.outbound.as_ref());
        let requests = connections().filter_map(|connection| connection.reading.request());
        let vectors: usize = self.vectors.iter().map(Vec::capacity).sum();
        let queues: usize = self.queues.iter().map(|queue| queue.held_size()).sum();
        let busy_count = connections().filter(|connection| connection.flags.is_busy).count();
        let cost = self.options.socket_cost;
        vec![
            (Class::Queues, outbounds.map(|outbound| outbound.held_size()).sum()),
            (Class::Requests, requests.map(|request| request.held_size()).sum()),
            (Class::Frames, connections().map(|connection| connection.reading.frames_size()).sum()),
            (Class::Spares, vectors + queues),
            (Class::Sockets, connections().count() * cost.idle + busy_count * cost.busy),
            (Class::Slots, self.slots.touched_count() * SLOT_SIZE),
            (Class::Wheel, self.wheel.size()),
        ]
    }

    /// Checks the count against its twin. At the end of a turn.
    #[cfg(test)]
    pub(super) fn check_ledger(&self) {
        for (class, size) in self.recount() {
            assert_eq!(self.ledger.size(class), size, "{class:?}");
        }
        let resident = Class::ALL.into_iter().filter(|class| class.is_resident());
        let counted: usize = resident.map(|class| self.ledger.size(class)).sum();
        assert_eq!(self.ledger.counted(), counted);
    }
}

/// Tells the ledger how large a connection's queue is now.
pub(super) fn count_queue(outbound: &mut Outbound, ledger: &mut Ledger) {
    let size = outbound.held_size();
    ledger.change(Class::Queues, outbound.counted, size);
    outbound.counted = size;
}

/// An empty queue, of earlier use if possible.
#[expect(clippy::vec_box, reason = "they move between the pool and slots, as boxes")]
pub(super) fn reused(queues: &mut Vec<Box<Outbound>>, ledger: &mut Ledger) -> Box<Outbound> {
    let Some(queue) = queues.pop() else {
        return Box::default();
    };
    ledger.change(Class::Spares, queue.held_size(), 0);
    queue
}
