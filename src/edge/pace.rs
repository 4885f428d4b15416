//! How many handshakes a second a shard bears, and how a crowd that returns is shaped by it.
//!
//! A trial at the start says how fast the processor is ([`Trial`]). What really happens corrects
//! it: each window of a second in which a crowd came says what was sustained ([`Pace`]). A drain
//! deals its clients out over that ([`Slots`]). Plain logic, by the clock alone.

mod trial;

pub use trial::{Trial, process_capacity};

const US_PER_S: u64 = 1_000_000;
/// How long handshakes are counted before they are judged.
const WINDOW_US: u64 = US_PER_S;
/// Fewer handshakes in a window are no crowd, and say nothing.
const CROWD_MIN: u64 = 64;
/// Of a window, in percent: a shard that did not wait so much had more to do than it could, and one
/// that waited so much could have done more.
const BUSY_PERCENT: u64 = 90;
const CALM_PERCENT: u64 = 60;
/// A shard that could have done more while it refused some may do so much more: a part of it.
const RAISE_DIVISOR: u64 = 8;
/// What is seen may differ from the trial by so much, either way. One bad second of a starved host
/// is no reason to let nobody in.
const CORRECTION_MAX: u64 = 4;
/// Of its capacity a shard deals out so much to those who return: others talk meanwhile.
const RETURN_DIVISOR: u64 = 2;
/// However few clients a drain sends away, they return within this time and not at once.
const SPREAD_US_MIN: u64 = US_PER_S;

/// What a shard has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub handshakes: u64,
    /// Refused because of the handshake rate.
    pub refused: u64,
    pub messages: u64,
}

/// What a shard bears.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    trial: u64,
    capacity: u64,
    window_from_us: u64,
    waited_us: u64,
    before: Seen,
}

impl Pace {
    /// `capacity`: handshakes per second that the trial promised this shard.
    pub fn new(capacity: u64, now_us: u64) -> Pace {
        let capacity = capacity.max(1);
        Pace {
            trial: capacity,
            capacity,
            window_from_us: now_us,
            waited_us: 0,
            before: Seen::default(),
        }
    }

    /// Handshakes per second.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Of them, those that a drain deals out.
    pub fn returning(&self) -> u64 {
        (self.capacity / RETURN_DIVISOR).max(1)
    }

    /// The shard had nothing to do for so long.
    pub fn waited(&mut self, us: u64) {
        self.waited_us += us;
    }

    /// Once a turn. Returns whether the capacity is another now.
    pub fn observe(&mut self, now_us: u64, seen: Seen) -> bool {
        let length_us = now_us.saturating_sub(self.window_from_us);
        if length_us < WINDOW_US {
            return false;
        }
        let window = Window {
            length_us,
            busy_us: length_us.saturating_sub(self.waited_us),
            handshakes: seen.handshakes - self.before.handshakes,
            refused: seen.refused - self.before.refused,
            messages: seen.messages - self.before.messages,
        };
        (self.window_from_us, self.waited_us, self.before) = (now_us, 0, seen);
        let corrected = window.corrected(self.capacity);
        let (least, most) = ((self.trial / CORRECTION_MAX).max(1), self.trial * CORRECTION_MAX);
        let before = std::mem::replace(&mut self.capacity, corrected.clamp(least, most));
        self.capacity != before
    }
}

struct Window {
    length_us: u64,
    busy_us: u64,
    handshakes: u64,
    refused: u64,
    messages: u64,
}

impl Window {
    fn corrected(&self, capacity: u64) -> u64 {
        let sustained = self.handshakes * US_PER_S / self.length_us;
        let busy_percent = self.busy_us * 100 / self.length_us;
        if self.handshakes < CROWD_MIN {
            return capacity;
        }
        if sustained > capacity {
            return sustained;
        }
        // Busy with messages, it says nothing of handshakes.
        if busy_percent >= BUSY_PERCENT && self.messages <= self.handshakes {
            return capacity.midpoint(sustained);
        }
        if self.refused > 0 && busy_percent <= CALM_PERCENT {
            return capacity + capacity.div_ceil(RAISE_DIVISOR);
        }
        capacity
    }
}

/// When each of so many clients is to come back: slot `index` begins where the one before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Length of a slot: a fraction of microseconds.
    length_us: u64,
    divisor: u64,
}

impl Slots {
    /// `per_second` of all shards together, of which this is one.
    pub fn new(per_second: u64, shards: u64) -> Slots {
        Slots { length_us: US_PER_S * shards.max(1), divisor: per_second.max(1) }
    }

    /// So long that `count` of them last for a second at least.
    pub fn at_ease(self, count: usize) -> Slots {
        let count = (count as u64).max(1);
        let lasts_us = u128::from(self.length_us) * u128::from(count) / u128::from(self.divisor);
        match lasts_us < u128::from(SPREAD_US_MIN) {
            true => Slots { length_us: SPREAD_US_MIN, divisor: count },
            false => self,
        }
    }

    /// A moment within slot `index`, in microseconds from now: `random` says which.
    pub fn moment_us(&self, index: usize, random: u64) -> u64 {
        let (begin_us, end_us) = (self.begin_us(index as u64), self.begin_us(index as u64 + 1));
        begin_us + random % (end_us - begin_us).max(1)
    }

    fn begin_us(&self, index: u64) -> u64 {
        let begin_us = u128::from(index) * u128::from(self.length_us) / u128::from(self.divisor);
        u64::try_from(begin_us).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests;
