//! What the router keeps of one chat connection.

use std::collections::VecDeque;

use super::devices::{DevicePlace, Devices};
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

/// Bytes of a user's name that are kept in place.
const NAME_SIZE_IN_PLACE: usize = 20;

/// One chat connection. There is one for each of a million idle clients: what only a busy or an
/// unusual one has is in a box, and there is no box while nothing is in it.
pub(super) struct Connection {
    pub generation: u32,
    /// Of the session, once there is one; 0: [`Busy::session`] says it.
    epoch: u32,
    counter: u64,
    busy: Option<Box<Busy>>,
    /// With `user_size`; a longer name is in the box.
    user: [u8; NAME_SIZE_IN_PLACE],
    user_size: u8,
    /// `None`: the box has the name.
    device: DevicePlace,
    /// Nothing is pushed before the first `sync`.
    pub manual: bool,
    pub subprotocol: Subprotocol,
}

const _: () = assert!(size_of::<Option<Connection>>() <= 48);

/// What an idle connection has not. [`Connection::tidy`] drops it once nothing is in it.
#[derive(Default)]
struct Busy {
    /// A name of over [`NAME_SIZE_IN_PLACE`] bytes.
    user: Option<Id>,
    /// A name for which the table of devices has no place.
    device: Option<Id>,
    /// With an epoch of over 32 bits.
    session: Option<SessionNumber>,
    /// Waits for its session; nothing may be said to the client before `welcome`.
    opening: Option<Opening>,
    /// Operations that are unanswered, pings apart, and their bytes.
    outstanding_count: u32,
    outstanding_size: u32,
    barrier: Barrier,
    /// The catching-up in which the connection fell behind: live pushes of it or of an earlier one
    /// are reported, not queued.
    behind: Option<u64>,
    /// The catching-up that waits for the connection's queue to drain.
    room_wanted: Option<u64>,
}

/// What only a connection without a session has.
pub(super) struct Opening {
    pub parked: Parked,
    /// The ticket in `welcome` ends then at the latest.
    pub ticket_ends_unix_ms: u64,
}

impl Default for Opening {
    fn default() -> Opening {
        Opening { parked: Parked::default(), ticket_ends_unix_ms: u64::MAX }
    }
}

/// Who a connection is, before and after it is kept as a [`Connection`].
pub(super) struct Client {
    pub generation: u32,
    pub user: Id,
    pub device: Id,
    pub manual: bool,
    pub subprotocol: Subprotocol,
}

impl Connection {
    /// One that waits for its session.
    pub fn new(client: Client, devices: &mut Devices) -> Connection {
        let Client { generation, user, device, manual, subprotocol } = client;
        let place = devices.enter(&device);
        let mut in_place = [0; NAME_SIZE_IN_PLACE];
        let fits = user.len() <= NAME_SIZE_IN_PLACE;
        if fits {
            in_place[..user.len()].copy_from_slice(user.as_bytes());
        }
        let user_size = if fits { user.len() as u8 } else { 0 };
        let busy = Busy {
            user: (!fits).then_some(user),
            device: place.is_none().then_some(device),
            opening: Some(Opening::default()),
            ..Busy::default()
        };
        Connection {
            generation,
            epoch: 0,
            counter: 0,
            busy: Some(Box::new(busy)),
            user: in_place,
            user_size,
            device: place,
            manual,
            subprotocol,
        }
    }

    pub fn user(&self) -> Id {
        if let Some(user) = self.busy.as_ref().and_then(|busy| busy.user.as_ref()) {
            return user.clone();
        }
        let name = str::from_utf8(&self.user[..usize::from(self.user_size)]);
        name.expect("it was copied from a string").into()
    }

    pub fn device(&self, devices: &Devices) -> Id {
        let boxed = self.busy.as_ref().and_then(|busy| busy.device.as_ref());
        boxed.or_else(|| devices.name(self.device)).cloned().unwrap_or_default()
    }

    /// Bytes held for names that are not kept in place. The same for all of the connection's life.
    pub fn names_size(&self) -> usize {
        let busy = self.busy.as_ref();
        let names = busy.map(|busy| [busy.user.as_ref(), busy.device.as_ref()]);
        let sizes =
            names.into_iter().flatten().flatten().map(|name| name.len() + NAME_OVERHEAD_SIZE);
        match sizes.sum() {
            0 => 0,
            size => size_of::<Busy>() + size,
        }
    }

    /// The connection is gone: frees the device's place.
    pub fn leave(&self, devices: &mut Devices) {
        devices.leave(self.device);
    }

    /// The session's number, once it has one.
    pub fn session(&self) -> Option<SessionNumber> {
        match (self.epoch, &self.busy) {
            (0, busy) => busy.as_ref().and_then(|busy| busy.session),
            (epoch, _) => Some(SessionNumber { epoch: epoch.into(), counter: self.counter }),
        }
    }

    /// What waits for the session, while there is none.
    pub fn opening(&self) -> Option<&Opening> {
        self.busy.as_ref().and_then(|busy| busy.opening.as_ref())
    }

    pub fn opening_mut(&mut self) -> Option<&mut Opening> {
        self.busy.as_mut().and_then(|busy| busy.opening.as_mut())
    }

    /// It has a session now: takes what waited for it.
    pub fn open(&mut self, session: SessionNumber) -> Option<Opening> {
        let opening = self.busy.as_mut().and_then(|busy| busy.opening.take());
        match u32::try_from(session.epoch) {
            Ok(epoch) if epoch > 0 => (self.epoch, self.counter) = (epoch, session.counter),
            _ => {
                self.epoch = 0;
                self.busy.get_or_insert_default().session = Some(session);
            }
        }
        self.tidy();
        opening
    }

    /// Unanswered operations, pings apart, and their bytes.
    pub fn outstanding(&self) -> (u32, u32) {
        let busy = self.busy.as_ref();
        busy.map_or((0, 0), |busy| (busy.outstanding_count, busy.outstanding_size))
    }

    /// Whether one more operation of `size` bytes is within the connection's bounds.
    pub fn has_room(&self, size: usize) -> bool {
        let Some(busy) = &self.busy else {
            return size <= OUTSTANDING_SIZE_MAX;
        };
        let (count, bytes) = (busy.outstanding_count as usize, busy.outstanding_size as usize);
        count + busy.barrier.ping_count() < OUTSTANDING_COUNT_MAX
            && bytes + size <= OUTSTANDING_SIZE_MAX
    }

    /// Nothing of this connection waits for an answer.
    pub fn is_settled(&self) -> bool {
        self.busy
            .as_ref()
            .is_none_or(|busy| busy.outstanding_count == 0 && busy.barrier.ping_count() == 0)
    }

    /// An operation of `size` bytes was taken up.
    pub fn asked(&mut self, size: usize) {
        let busy = self.busy.get_or_insert_default();
        busy.barrier.asked();
        busy.outstanding_count += 1;
        busy.outstanding_size += size as u32;
    }

    /// The operation with this turn, of `size` bytes, was answered.
    pub fn answered(&mut self, turn: u64, size: usize) {
        if let Some(busy) = &mut self.busy {
            busy.outstanding_count -= 1;
            busy.outstanding_size -= size as u32;
            busy.barrier.answered(turn);
        }
        self.tidy();
    }

    /// See [`Barrier::ping`].
    pub fn ping(&mut self, turn: u64, reference: Option<i64>) -> bool {
        let busy = self.busy.as_mut();
        busy.is_none_or(|busy| busy.barrier.ping(turn, reference))
    }

    /// See [`Barrier::next_pong`].
    pub fn next_pong(&mut self) -> Option<Option<i64>> {
        let pong = self.busy.as_mut().and_then(|busy| busy.barrier.next_pong());
        self.tidy();
        pong
    }

    pub fn barrier(&self) -> Option<&Barrier> {
        self.busy.as_ref().map(|busy| &busy.barrier)
    }

    pub fn behind(&self) -> Option<u64> {
        self.busy.as_ref().and_then(|busy| busy.behind)
    }

    /// It is behind since this catching-up, or not any more.
    pub fn set_behind(&mut self, stream: Option<u64>) {
        if self.behind() != stream {
            self.busy.get_or_insert_default().behind = stream;
            self.tidy();
        }
    }

    pub fn room_wanted(&self) -> Option<u64> {
        self.busy.as_ref().and_then(|busy| busy.room_wanted)
    }

    /// This catching-up waits for room, or none does.
    pub fn set_room_wanted(&mut self, stream: Option<u64>) {
        if self.room_wanted() != stream {
            self.busy.get_or_insert_default().room_wanted = stream;
            self.tidy();
        }
    }

    /// Takes over what was unanswered in another process.
    pub fn restore_outstanding(&mut self, (count, size): (u32, u32), barrier: Barrier) {
        let busy = self.busy.get_or_insert_default();
        (busy.outstanding_count, busy.outstanding_size) = (count, size);
        busy.barrier = barrier;
        self.tidy();
    }

    /// Whether nothing but names in place is kept of it.
    #[cfg(test)]
    pub fn is_small(&self) -> bool {
        self.busy.is_none()
    }

    fn tidy(&mut self) {
        self.busy.take_if(|busy| busy.is_empty());
    }
}

/// What a name of its own costs beside its bytes: the counts of its owners, and the allocator's.
const NAME_OVERHEAD_SIZE: usize = 24;

impl Busy {
    fn is_empty(&self) -> bool {
        let has_names = self.user.is_some() || self.device.is_some() || self.session.is_some();
        let is_quiet = self.outstanding_count == 0 && self.barrier.is_empty();
        let is_level = self.behind.is_none() && self.room_wanted.is_none();
        !has_names && self.opening.is_none() && is_quiet && is_level
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
    pub fn is_empty(&self) -> bool {
        self.pings.is_none() && self.tail == 0
    }

    pub fn ping_count(&self) -> usize {
        self.pings.as_ref().map_or(0, |pings| pings.len())
    }

    /// An operation was taken up.
    pub fn asked(&mut self) {
        self.tail += 1;
    }

    /// A ping came after turn `turn`. Whether its pong may leave at once.
    pub fn ping(&mut self, turn: u64, reference: Option<i64>) -> bool {
        if self.is_empty() {
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
