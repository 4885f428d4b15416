//! What the router keeps of one chat connection.

use std::collections::VecDeque;

use crate::edge::identity::Admitted;
use crate::link::message::{GroupChange, SessionNumber};
use crate::link::record::Id;
use crate::protocol::Subprotocol;
use crate::protocol::operation::{Operation, Rejected, Request};

/// Operations of one connection that may be unanswered at a time.
pub(super) const OUTSTANDING_COUNT_MAX: usize = 16_384;
/// Their bytes, by [`cost`].
pub(super) const OUTSTANDING_SIZE_MAX: usize = 4 * 1024 * 1024;
/// Operations that one connection may have waiting for its `welcome`.
pub(super) const PARKED_COUNT_MAX: usize = 1_024;
/// Their bytes, by [`cost`].
pub(super) const PARKED_SIZE_MAX: usize = 1024 * 1024;

const _: () = assert!(PARKED_COUNT_MAX <= OUTSTANDING_COUNT_MAX);
const _: () = assert!(PARKED_SIZE_MAX <= OUTSTANDING_SIZE_MAX);
// Counts and sizes within these bounds fit the `u32` that a connection keeps.
const _: () = assert!(OUTSTANDING_SIZE_MAX < u32::MAX as usize);

/// One chat connection.
pub(super) struct Connection {
    pub generation: u32,
    pub user: Id,
    pub device: Id,
    /// Nothing is pushed before the first `sync`.
    pub manual: bool,
    pub subprotocol: Subprotocol,
    /// The ticket in `welcome` ends then at the latest.
    pub ticket_ends_unix_ms: u64,
    pub phase: Phase,
    /// Operations that are unanswered, pings apart, and their bytes.
    pub outstanding_count: u32,
    pub outstanding_size: u32,
    pub barrier: Barrier,
    /// The catching-up in which the connection fell behind: live pushes of it or of an earlier one
    /// are reported, not queued.
    pub behind: Option<u64>,
    /// The catching-up that waits for the connection's queue to drain.
    pub room_wanted: Option<u64>,
}

// There is one for each of a million idle clients: what only a busy one has is in a box.
const _: () = assert!(size_of::<Option<Connection>>() <= 128);

/// How far a connection is.
pub(super) enum Phase {
    /// Waits for its session; nothing may be said to the client before `welcome`.
    Opening(Box<Parked>),
    Open(SessionNumber),
}

impl Connection {
    pub fn new(generation: u32, admitted: Admitted) -> Connection {
        let Admitted { user, device, manual, subprotocol, .. } = admitted;
        Connection {
            subprotocol: subprotocol.unwrap_or(Subprotocol::Json),
            generation,
            user,
            device,
            manual,
            ticket_ends_unix_ms: u64::MAX,
            phase: Phase::Opening(Box::default()),
            outstanding_count: 0,
            outstanding_size: 0,
            barrier: Barrier::default(),
            behind: None,
            room_wanted: None,
        }
    }

    /// The session's number, once it has one.
    pub fn session(&self) -> Option<SessionNumber> {
        match self.phase {
            Phase::Opening(_) => None,
            Phase::Open(session) => Some(session),
        }
    }

    /// Whether one more operation of `size` bytes is within the connection's bounds.
    pub fn has_room(&self, size: usize) -> bool {
        let (count, bytes) = (self.outstanding_count as usize, self.outstanding_size as usize);
        count + self.barrier.ping_count() < OUTSTANDING_COUNT_MAX
            && bytes + size <= OUTSTANDING_SIZE_MAX
    }

    /// Nothing of this connection waits for an answer.
    pub fn is_settled(&self) -> bool {
        self.outstanding_count == 0 && self.barrier.ping_count() == 0
    }
}

/// What a client said before it had a session: done in this order once it has one.
#[derive(Default)]
pub(super) struct Parked {
    pub frames: VecDeque<Result<Request, Rejected>>,
    size: usize,
}

/// What became of a frame that was to be parked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parking {
    Parked,
    /// Over the bound: it will be answered `unavailable`, after `welcome`.
    Refused,
    /// Over twice the bound.
    Overrun,
}

impl Parked {
    /// Bytes of all of them, by [`cost`].
    pub fn size(&self) -> usize {
        self.size
    }

    /// `overload` is what a frame past the bound turns into.
    pub fn park(
        &mut self,
        frame: Result<Request, Rejected>,
        overload: impl Fn(&Request) -> Rejected,
    ) -> Parking {
        let size = match &frame {
            Ok(request) => cost(&request.operation),
            Err(rejected) => OVERHEAD_SIZE + rejected.id.as_ref().map_or(0, |id| id.len()),
        };
        let (count, bytes) = (self.frames.len(), self.size + size);
        if count >= 2 * PARKED_COUNT_MAX || bytes > 2 * PARKED_SIZE_MAX {
            return Parking::Overrun;
        }
        let within = count < PARKED_COUNT_MAX && bytes <= PARKED_SIZE_MAX;
        match frame {
            Ok(request) if !within => {
                self.size += OVERHEAD_SIZE;
                self.frames.push_back(Err(overload(&request)));
                Parking::Refused
            }
            frame => {
                self.size = bytes;
                self.frames.push_back(frame);
                Parking::Parked
            }
        }
    }
}

/// What a table entry, its names and its place in the link cost beside a body.
const OVERHEAD_SIZE: usize = 128;

/// What an operation counts against every bound, in bytes.
pub(super) fn cost(operation: &Operation) -> usize {
    OVERHEAD_SIZE
        + match operation {
            Operation::Send { body, .. } => body.bytes().len(),
            Operation::Sync { convos: Some(convos) } => {
                convos.iter().map(|(name, _)| name.len() + 32).sum()
            }
            Operation::PresenceSubscribe { users } => {
                users.iter().map(|user| user.len() + 32).sum()
            }
            Operation::Group { change, .. } => match change {
                GroupChange::Create { members }
                | GroupChange::Add { members }
                | GroupChange::Remove { members }
                | GroupChange::Role { members, .. } => {
                    members.iter().map(|member| member.len() + 32).sum()
                }
                GroupChange::Leave | GroupChange::Info => 0,
            },
            _ => 0,
        }
}

/// Lets a `pong` wait for the operations before its `ping`, and for no later one.
///
/// Each ping counts the unanswered operations between the ping before it and itself, `tail` those
/// after the last ping. An answer thus touches one number, found by binary search.
#[derive(Default)]
pub(super) struct Barrier {
    /// `None`: there are none.
    #[expect(clippy::box_collection, reason = "an idle connection has a pointer, not a queue")]
    pub pings: Option<Box<VecDeque<Ping>>>,
    pub tail: u32,
}

pub(super) struct Ping {
    /// The last turn before it.
    pub turn: u64,
    pub reference: Option<i64>,
    pub unanswered: u32,
}

impl Barrier {
    pub fn ping_count(&self) -> usize {
        self.pings.as_ref().map_or(0, |pings| pings.len())
    }

    /// An operation was taken up.
    pub fn asked(&mut self) {
        self.tail += 1;
    }

    /// A ping came after turn `turn`. Whether its pong may leave at once.
    pub fn ping(&mut self, turn: u64, reference: Option<i64>) -> bool {
        if self.pings.is_none() && self.tail == 0 {
            return true;
        }
        let unanswered = std::mem::take(&mut self.tail);
        self.pings.get_or_insert_default().push_back(Ping { turn, reference, unanswered });
        false
    }

    /// The operation with this turn was answered.
    pub fn answered(&mut self, turn: u64) {
        let behind = self.pings.as_mut().and_then(|pings| {
            let index = pings.partition_point(|ping| ping.turn < turn);
            pings.get_mut(index)
        });
        match behind {
            Some(ping) => ping.unanswered -= 1,
            None => self.tail -= 1,
        }
    }

    /// The `ref` of the next ping whose pong may leave now.
    pub fn next_pong(&mut self) -> Option<Option<i64>> {
        let pings = self.pings.as_mut()?;
        let ping = pings.pop_front_if(|ping| ping.unanswered == 0)?;
        self.pings.take_if(|pings| pings.is_empty());
        Some(ping.reference)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The naive twin: a ping leaves once no earlier operation is unanswered.
        #[test]
        fn the_barrier_agrees_with_its_naive_twin(
            script in proptest::collection::vec((0u8..3, any::<proptest::sample::Index>()), 0..80),
        ) {
            let mut barrier = Barrier::default();
            let mut unanswered: Vec<u64> = Vec::new();
            let mut waiting: VecDeque<(u64, i64)> = VecDeque::new();
            let mut turn = 0;
            for (step, (action, index)) in script.into_iter().enumerate() {
                let step = step as i64;
                match action {
                    0 => {
                        turn += 1;
                        unanswered.push(turn);
                        barrier.asked();
                    }
                    1 => {
                        let at_once = unanswered.is_empty();
                        prop_assert_eq!(barrier.ping(turn, Some(step)), at_once);
                        if !at_once {
                            waiting.push_back((turn, step));
                        }
                    }
                    _ if unanswered.is_empty() => {}
                    _ => barrier.answered(unanswered.remove(index.index(unanswered.len()))),
                }
                while let Some(&(before, step)) = waiting.front() {
                    if unanswered.iter().any(|turn| *turn <= before) {
                        break;
                    }
                    waiting.pop_front();
                    prop_assert_eq!(barrier.next_pong(), Some(Some(step)));
                }
                prop_assert_eq!(barrier.next_pong(), None);
                prop_assert_eq!(barrier.ping_count(), waiting.len());
            }
        }
    }
}
