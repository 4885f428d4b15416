//! What was asked of the sequencer and is not answered, in the order in which it was asked.
//!
//! Invariant: entries reach the link in the order of their turns, notices between them included.
//! So once one has to wait, all that come after it wait behind it, and what a new link session is
//! given again keeps its order too.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::ConnectionId;
use crate::clock::Now;
use crate::link::message::{GroupChange, ToSequencer};
use crate::link::wire::Wire;
use crate::link::{Outlet, PeerId};

/// Requests that the sequencer has at a time, and their bytes: what it says to all of them, pushes
/// included, fits the link's window, however slowly this shard takes it in.
pub(super) const IN_FLIGHT_COUNT_MAX: usize = 65_536;
pub(super) const IN_FLIGHT_SIZE_MAX: usize = 16 * 1024 * 1024;
/// The sequencer has as much as it may, and has had its oldest so long: more is refused.
const OVERLOAD_US: u64 = 2_000_000;

/// One request, until it is answered.
pub(super) struct Unanswered {
    pub asker: ConnectionId,
    pub reference: Option<i64>,
    pub message: ToSequencer,
    /// What it counts against the bounds, in bytes.
    pub size: usize,
    pub asked_at_us: u64,
    /// Its number in the link session, once it is there.
    pub entry: Option<u64>,
}

impl Unanswered {
    /// Asking it again could undo what others did since.
    fn happens_once(&self) -> bool {
        match &self.message {
            ToSequencer::Group { change, .. } => *change != GroupChange::Info,
            _ => false,
        }
    }
}

pub(super) enum Waiting {
    Request { turn: u64 },
    Notice { message: ToSequencer },
}

pub(super) struct Requests {
    sequencer: PeerId,
    pub(super) in_session: bool,
    pub(super) turn_last: u64,
    pub(super) unanswered: BTreeMap<u64, Unanswered>,
    pub(super) turn_of_entry: HashMap<u64, u64>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) size: usize,
    /// Of those that have a number in the session, requests for a session apart.
    pub(super) in_flight_count: usize,
    pub(super) in_flight_size: usize,
}

impl Requests {
    pub fn new(sequencer: PeerId) -> Requests {
        Requests {
            sequencer,
            in_session: false,
            turn_last: 0,
            unanswered: BTreeMap::new(),
            turn_of_entry: HashMap::new(),
            waiting: VecDeque::new(),
            size: 0,
            in_flight_count: 0,
            in_flight_size: 0,
        }
    }

    /// The sequencer is alive and does not keep up.
    pub fn is_overloaded(&self, now: Now) -> bool {
        let last_us = now.monotonic_us.checked_sub(OVERLOAD_US);
        self.in_session && self.is_window_full(0) && self.oldest_asked_at_us() <= last_us
    }

    /// Bytes of all that is unanswered, by `Unanswered::size`.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many there are, those for a session included.
    pub fn count(&self) -> usize {
        self.unanswered.len()
    }

    /// When the oldest of them was asked.
    pub fn oldest_asked_at_us(&self) -> Option<u64> {
        self.unanswered.first_key_value().map(|(_, request)| request.asked_at_us)
    }

    /// The turn of the request that was asked last.
    pub fn turn_last(&self) -> u64 {
        self.turn_last
    }

    /// Takes a request up, to be answered once.
    pub fn ask(&mut self, request: Unanswered, outlet: &mut dyn Outlet) {
        self.turn_last += 1;
        self.size += request.size;
        self.unanswered.insert(self.turn_last, request);
        self.enqueue(Waiting::Request { turn: self.turn_last }, outlet);
    }

    /// Tells the sequencer something that has no answer. Without a session it is void: whatever a
    /// notice says is said anew when the next session begins.
    pub fn tell(&mut self, message: ToSequencer, outlet: &mut dyn Outlet) {
        if self.in_session {
            self.enqueue(Waiting::Notice { message }, outlet);
        }
    }

    /// The request that the link's entry `number` was, with its turn. It is answered now.
    pub fn answered(&mut self, number: u64) -> Option<(u64, Unanswered)> {
        let turn = self.turn_of_entry.remove(&number)?;
        self.remove(turn).map(|request| (turn, request))
    }

    /// A session begins: the notices, then what is unanswered. The one before has ended.
    pub fn begin(&mut self, notices: impl Iterator<Item = ToSequencer>, outlet: &mut dyn Outlet) {
        self.in_session = true;
        for message in notices {
            self.waiting.push_back(Waiting::Notice { message });
        }
        let turns = self.unanswered.keys();
        self.waiting.extend(turns.map(|turn| Waiting::Request { turn: *turn }));
        self.flush(outlet);
    }

    /// The session is over: nothing asked in it will be answered, no notice in it counts. What is
    /// unanswered stays to be asked again, as far as its asker still stands; but for changes that
    /// may have happened and must not happen twice: those are taken out.
    pub fn end(&mut self, stands: impl Fn(ConnectionId) -> bool) -> Vec<(u64, Unanswered)> {
        self.in_session = false;
        self.turn_of_entry.clear();
        self.waiting.clear();
        self.unanswered.retain(|_, request| {
            let keep = stands(request.asker);
            if !keep {
                self.size -= request.size;
            }
            keep
        });
        let unknown = self
            .unanswered
            .iter()
            .filter(|(_, request)| request.entry.is_some() && request.happens_once());
        let unknown: Vec<u64> = unknown.map(|(turn, _)| *turn).collect();
        let taken = unknown.into_iter().map(|turn| (turn, self.remove(turn)));
        let taken = taken.filter_map(|(turn, request)| Some((turn, request?))).collect();
        self.unanswered.values_mut().for_each(|request| request.entry = None);
        (self.in_flight_count, self.in_flight_size) = (0, 0);
        taken
    }

    /// Hands the link what waits, as far as it takes it.
    pub fn flush(&mut self, outlet: &mut dyn Outlet) {
        while self.in_session && !self.waiting.is_empty() && self.submit_front(outlet) {
            self.waiting.pop_front();
        }
    }

    /// Takes out what was asked `age_ms` ago or earlier and is not in the sequencer's hands.
    /// Requests for a session stay: they cost nothing, and their clients wait for `welcome` alone.
    pub fn expire(&mut self, now: Now, age_ms: u64) -> Vec<(u64, Unanswered)> {
        let old = self.unanswered.iter();
        let last_us = now.monotonic_us.checked_sub(age_ms * 1_000);
        let old = old.take_while(|(_, request)| Some(request.asked_at_us) <= last_us);
        let expired = old.filter(|(_, request)| {
            request.entry.is_none() && !matches!(request.message, ToSequencer::Open { .. })
        });
        let turns: Vec<u64> = expired.map(|(turn, _)| *turn).collect();
        let taken = turns.into_iter().map(|turn| (turn, self.remove(turn)));
        taken.filter_map(|(turn, request)| Some((turn, request?))).collect()
    }

    fn enqueue(&mut self, waiting: Waiting, outlet: &mut dyn Outlet) {
        let first = self.waiting.is_empty();
        self.waiting.push_back(waiting);
        if first {
            self.flush(outlet);
        }
    }

    /// Whether the first that waits is done with: the link took it, or it was taken out before.
    fn submit_front(&mut self, outlet: &mut dyn Outlet) -> bool {
        match self.waiting.front() {
            Some(Waiting::Notice { message }) => {
                outlet.submit(self.sequencer, message.to_bytes()).is_ok()
            }
            Some(Waiting::Request { turn }) => {
                let (turn, size) = (*turn, self.unanswered.get(turn).map_or(0, |it| it.size));
                if size > 0 && self.is_window_full(size) {
                    return false;
                }
                let Some(request) = self.unanswered.get_mut(&turn) else {
                    return true;
                };
                let Ok(entry) = outlet.submit(self.sequencer, request.message.to_bytes()) else {
                    return false;
                };
                request.entry = Some(entry);
                self.turn_of_entry.insert(entry, turn);
                self.in_flight_count += usize::from(size > 0);
                self.in_flight_size += size;
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, turn: u64) -> Option<Unanswered> {
        let request = self.unanswered.remove(&turn)?;
        self.size -= request.size;
        if request.entry.is_some() && request.size > 0 {
            self.in_flight_count -= 1;
            self.in_flight_size -= request.size;
        }
        Some(request)
    }

    /// One request at least always fits.
    fn is_window_full(&self, size: usize) -> bool {
        self.in_flight_count >= IN_FLIGHT_COUNT_MAX
            || (self.in_flight_count > 0 && self.in_flight_size + size > IN_FLIGHT_SIZE_MAX)
    }
}
