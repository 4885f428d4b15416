//! What the router holds, and its bounds when memory is scarce.

use super::connection::{Connection, Phase};
use super::requests::Unanswered;
use super::{BEHIND_SIZE, Clients, Pressure, ROOM_SIZE, Router, SLOW_SIZE, UNANSWERED_SIZE_MAX};
use crate::edge::application::Held;

/// What is left of the memory is for so many that read slowly: each that fills its part leaves less
/// to those that come after it.
const SHARE_COUNT: usize = 16;
/// A queue that takes no more pushes grows to this by answers before its connection is cut.
const SLOW_SIZE_PRESSED: usize = SLOW_SIZE / 8;
/// The names of user and device, as they usually are.
const NAMES_SIZE: usize = 2 * 48;

// What is always queued, a piece of backlog and a page, cuts nobody who reads.
const _: () = assert!(SLOW_SIZE_PRESSED >= ROOM_SIZE + crate::limits::SERVER_FRAME_SIZE_MAX);

/// Queued bytes beyond which a connection is behind.
pub(super) fn behind_size(clients: &dyn Clients) -> usize {
    match clients.pressure() >= Pressure::Behind {
        true => BEHIND_SIZE.min(clients.memory_left() / SHARE_COUNT),
        false => BEHIND_SIZE,
    }
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
        true => UNANSWERED_SIZE_MAX.min(clients.memory_left()),
        false => UNANSWERED_SIZE_MAX,
    }
}

impl Router {
    /// A connection leaves this phase.
    pub(super) fn unpark(&mut self, phase: &Phase) {
        if let Phase::Opening(parked) = phase {
            self.parked_size -= parked.size();
        }
    }

    /// The table of connections is counted, of their names there is an estimate.
    pub fn held(&self) -> Held {
        let places = self.connections.capacity() * size_of::<Option<Connection>>();
        let names = self.counters.connections as usize * NAMES_SIZE;
        let places_of_requests = self.requests.count() * size_of::<Unanswered>();
        Held {
            sessions: places + names,
            operations: self.requests.size() + places_of_requests + self.parked_size,
        }
    }
}
