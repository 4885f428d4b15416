//! What the router holds, and its bounds when memory is scarce.

use std::collections::VecDeque;

use super::connection::{Connection, Opening};
use super::requests::Unanswered;
use super::{
    BEHIND_SIZE, Clients, ConnectionId, Pressure, ROOM_SIZE, Router, SLOW_SIZE, Surroundings,
    UNANSWERED_SIZE_MAX,
};
use crate::edge::application::Held;
use crate::limits::CHUNK_SIZE_MAX;

/// What is left of the memory is for so many that read slowly: each that fills its part leaves less
/// to those that come after it.
const SHARE_COUNT: usize = 16;
/// A queue that takes no more pushes grows to this by answers before its connection is cut.
const SLOW_SIZE_PRESSED: usize = SLOW_SIZE / 8;
/// What may be asked at a time, whatever else needs memory.
const OPERATIONS_SIZE_MIN: usize = 1024 * 1024;
/// With less than this left, there is a pause between pieces of backlog, in which one arrives.
const ROOMS_LEFT: usize = SHARE_COUNT * CHUNK_SIZE_MAX;
const ROOMS_PAUSE_MS: u64 = 20;
/// A live push of this size leaves whatever happens, to those who have nothing queued.
const SMALL_SIZE: usize = 2 * 1024;

// What is always queued, a piece of backlog and a page, cuts nobody who reads.
const _: () = assert!(SLOW_SIZE_PRESSED >= ROOM_SIZE + crate::limits::SERVER_FRAME_SIZE_MAX);

/// Queued bytes beyond which a connection is behind.
pub(super) fn behind_size(clients: &dyn Clients) -> usize {
    match clients.pressure() >= Pressure::Behind {
        true => BEHIND_SIZE.min(clients.memory_left() / SHARE_COUNT),
        false => BEHIND_SIZE,
    }
}

/// Whether a live push of this size is queued, to a connection that is not behind by its queue.
pub(super) fn may_push(size: usize, clients: &dyn Clients) -> bool {
    size <= SMALL_SIZE || clients.may_queue()
}

/// Queued bytes beyond which a connection is cut.
pub(super) fn slow_size(clients: &dyn Clients) -> usize {
    match clients.pressure() >= Pressure::Behind {
        true => SLOW_SIZE_PRESSED,
        false => SLOW_SIZE,
    }
}

/// Bytes of all operations of a shard that may be unanswered.
pub(super) fn unanswered_size_max(clients: &dyn Clients) -> usize {
    match clients.pressure() >= Pressure::Behind {
        true => clients.memory_left().clamp(OPERATIONS_SIZE_MIN, UNANSWERED_SIZE_MAX),
        false => UNANSWERED_SIZE_MAX,
    }
}

/// Connections that have room for their backlog while there is no memory for it. They get it one
/// after the other: so those who read come along, and those who do not hold a piece each at most.
#[derive(Default)]
pub(super) struct Rooms {
    held: VecDeque<ConnectionId>,
    told_at_ms: u64,
}

impl Rooms {
    pub fn hold(&mut self, id: ConnectionId) {
        self.held.push_back(id);
    }
}

impl Router {
    /// Asks for the backlog of those that were held, so many at a time as there is memory for.
    pub(super) fn tell_held_rooms(&mut self, around: &mut Surroundings) {
        let now_ms = around.now.monotonic_ms();
        let left = around.clients.memory_left();
        let pause_ms = if left < ROOMS_LEFT { ROOMS_PAUSE_MS } else { 1 };
        if self.rooms.held.is_empty() || now_ms < self.rooms.told_at_ms + pause_ms {
            return;
        }
        self.rooms.told_at_ms = now_ms;
        for _ in 0..=left / ROOMS_LEFT {
            let next = self.rooms.held.pop_front_if(|_| around.clients.may_queue());
            let Some(id) = next else {
                return;
            };
            self.drained(id, around);
        }
    }

    /// Whether one more frame may wait for `welcome`.
    pub(super) fn may_park(&self, clients: &dyn Clients) -> bool {
        clients.memory_left() > 0 || self.parked_size <= OPERATIONS_SIZE_MIN
    }

    /// A connection waits for its session no more.
    pub(super) fn unpark(&mut self, opening: Option<&Opening>) {
        self.parked_size -= opening.map_or(0, |opening| opening.parked.size());
    }

    /// What is counted of the connections is what they hold while they are idle.
    pub fn held(&self) -> Held {
        let places = self.connections.len() * size_of::<Option<Connection>>();
        let places_of_requests = self.requests.count() * size_of::<Unanswered>();
        Held {
            sessions: places + self.names_size,
            operations: self.requests.size() + places_of_requests + self.parked_size,
        }
    }
}
