//! A hashed timing wheel: one deadline per entry, constant time to put in and to take out.
//!
//! **Lazy re-arm.** An entry is never moved or removed when its owner sees activity. The owner
//! stores the time of the last activity beside its own state and leaves the wheel alone. When the
//! entry expires, the owner looks: the slot is vacant, or has a new tenant that is not due, then
//! the entry is simply gone; the activity is more recent than the timeout, then it inserts the slot
//! again with `last activity + timeout`; otherwise the timeout is real. So a message costs one
//! store, and an entry about one re-insert per timeout.
//!
//! Invariant: an entry is linked in the bucket `deadline % buckets`, and its deadline is later than
//! `current`. One that is further away than a rotation stays where it is as the wheel passes it.

const NONE: u32 = u32::MAX;

/// 12 bytes: a connection has one of these for its whole life.
#[derive(Clone, Copy)]
struct Entry {
    slot: u32,
    /// In ticks since the start, modulo 2^32; compared by difference.
    deadline: u32,
    /// The next entry of the bucket, or of the free ones.
    next: u32,
}

const _: () = assert!(size_of::<Entry>() == 12);

/// Slots with deadlines. Times are milliseconds of one monotonic clock; deadlines are kept to the
/// tick and never expire early.
pub struct Wheel {
    entries: Vec<Entry>,
    free: u32,
    /// The first entry of each bucket.
    buckets: Vec<u32>,
    start_ms: u64,
    tick_ms: u64,
    /// The last tick that was expired, counted from the start.
    current: u64,
    count: usize,
}

/// The furthest a deadline may be away, in ticks: half the range of the stored ones.
const TICKS_MAX: u64 = i32::MAX as u64;

impl Wheel {
    /// `buckets` is a power of two; a rotation is `buckets * tick_ms`. Memory is taken for
    /// `capacity` entries; more are accepted, and make it grow: entries of owners that are gone
    /// stay until their deadline.
    pub fn new(now_ms: u64, tick_ms: u64, buckets: usize, capacity: usize) -> Wheel {
        assert!(buckets.is_power_of_two() && tick_ms > 0);
        Wheel {
            entries: Vec::with_capacity(capacity),
            free: NONE,
            buckets: vec![NONE; buckets],
            start_ms: now_ms,
            tick_ms,
            current: 0,
            count: 0,
        }
    }

    /// Puts `slot` in, to expire at the first tick that is not before `deadline_ms`, and not before
    /// the next one. Deadlines over 2^31 ticks away count as that.
    pub fn insert(&mut self, slot: u32, deadline_ms: u64) {
        let since_start = deadline_ms.saturating_sub(self.start_ms);
        let tick = since_start.div_ceil(self.tick_ms);
        let tick = tick.clamp(self.current + 1, self.current + TICKS_MAX);
        let index = self.take_entry(slot, tick as u32);
        self.link(index);
        self.count += 1;
    }

    /// Moves the slots whose deadline has come to `expired`, in no particular order.
    pub fn expire(&mut self, now_ms: u64, expired: &mut Vec<u32>) {
        let now = now_ms.saturating_sub(self.start_ms) / self.tick_ms;
        let passed = now.saturating_sub(self.current);
        let first = self.current + 1;
        self.current = now.max(self.current);
        // After a whole rotation every bucket was passed, and each needs to be looked at once.
        for tick in first..first + passed.min(self.buckets.len() as u64) {
            self.expire_bucket(tick as usize & (self.buckets.len() - 1), expired);
        }
    }

    /// Milliseconds from `now_ms` to the next tick, for the loop's wait. `None` when nothing waits.
    pub fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        let next_ms = self.start_ms + (self.current + 1) * self.tick_ms;
        (self.count > 0).then(|| next_ms.saturating_sub(now_ms))
    }

    /// Entries, those of owners that are gone included.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of memory that were ever in use.
    pub fn size(&self) -> usize {
        size_of_val(&*self.entries) + size_of_val(&*self.buckets)
    }

    fn expire_bucket(&mut self, bucket: usize, expired: &mut Vec<u32>) {
        let mut index = std::mem::replace(&mut self.buckets[bucket], NONE);
        while index != NONE {
            let entry = self.entries[index as usize];
            let ahead = entry.deadline.wrapping_sub(self.current as u32) as i32;
            if ahead > 0 {
                self.link(index);
            } else {
                expired.push(entry.slot);
                self.entries[index as usize].next = self.free;
                self.free = index;
                self.count -= 1;
            }
            index = entry.next;
        }
    }

    fn link(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let bucket = entry.deadline as usize & (self.buckets.len() - 1);
        entry.next = std::mem::replace(&mut self.buckets[bucket], index);
    }

    fn take_entry(&mut self, slot: u32, deadline: u32) -> u32 {
        let next = NONE;
        let entry = Entry { slot, deadline, next };
        if self.free == NONE {
            self.entries.push(entry);
            return (self.entries.len() - 1) as u32;
        }
        let index = self.free;
        self.free = self.entries[index as usize].next;
        self.entries[index as usize] = entry;
        index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The naive twin: every deadline in order.
    #[derive(Default)]
    struct Twin {
        by_tick: BTreeMap<(u64, u32), u32>,
        current: u64,
    }

    impl Twin {
        fn insert(&mut self, slot: u32, deadline_ms: u64, tick_ms: u64) {
            let tick = deadline_ms.div_ceil(tick_ms).max(self.current + 1);
            *self.by_tick.entry((tick, slot)).or_default() += 1;
        }

        fn expire(&mut self, now_ms: u64, tick_ms: u64) -> Vec<u32> {
            self.current = self.current.max(now_ms / tick_ms);
            let mut expired = Vec::new();
            while let Some(first) = self.by_tick.first_entry() {
                let (tick, slot) = *first.key();
                if tick > self.current {
                    break;
                }
                expired.extend((0..first.remove()).map(|_| slot));
            }
            expired
        }
    }

    #[test]
    fn a_deadline_beyond_one_rotation_waits_for_its_round() {
        let mut wheel = Wheel::new(1_000, 100, 8, 4);
        wheel.insert(1, 1_000 + 2_050);
        let mut expired = Vec::new();
        for now_ms in (1_000..3_100).step_by(50) {
            wheel.expire(now_ms, &mut expired);
            assert!(expired.is_empty(), "early, at {now_ms}");
        }
        wheel.expire(3_100, &mut expired);
        assert_eq!((expired, wheel.len()), (vec![1], 0));
    }

    #[test]
    fn a_deadline_in_the_past_expires_at_the_next_tick() {
        let mut wheel = Wheel::new(0, 100, 8, 4);
        let mut expired = Vec::new();
        wheel.expire(950, &mut expired);
        wheel.insert(1, 20);
        assert_eq!(wheel.wait_ms(950), Some(50));
        wheel.expire(999, &mut expired);
        assert!(expired.is_empty());
        wheel.expire(1_000, &mut expired);
        assert_eq!((expired, wheel.wait_ms(1_000)), (vec![1], None));
    }

    #[test]
    fn entries_are_used_again() {
        let mut wheel = Wheel::new(0, 1, 8, 4);
        let mut expired = Vec::new();
        for now_ms in 0..1_000 {
            wheel.insert(1, now_ms + 3);
            wheel.expire(now_ms, &mut expired);
        }
        assert!(wheel.entries.len() <= 4, "{} entries", wheel.entries.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { slot: u32, ahead_ms: u64 },
        Advance { by_ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u32..20, 0_u64..5_000)
                .prop_map(|(slot, ahead_ms)| Step::Insert { slot, ahead_ms }),
            2 => (0_u64..400).prop_map(|by_ms| Step::Advance { by_ms }),
            1 => (0_u64..4_000).prop_map(|by_ms| Step::Advance { by_ms }),
        ]
    }

    proptest! {
        #[test]
        fn expires_what_the_naive_twin_expires(
            steps in prop::collection::vec(step(), 1..300),
            tick_ms in 1_u64..200,
        ) {
            let mut wheel = Wheel::new(0, tick_ms, 16, 8);
            let mut twin = Twin::default();
            let mut now_ms = 0;
            for step in steps {
                match step {
                    Step::Insert { slot, ahead_ms } => {
                        wheel.insert(slot, now_ms + ahead_ms);
                        twin.insert(slot, now_ms + ahead_ms, tick_ms);
                    }
                    Step::Advance { by_ms } => now_ms += by_ms,
                }
                let mut expired = Vec::new();
                wheel.expire(now_ms, &mut expired);
                expired.sort();
                let mut expected = twin.expire(now_ms, tick_ms);
                expected.sort();
                prop_assert_eq!(expired, expected);
                prop_assert_eq!(wheel.is_empty(), twin.by_tick.is_empty());
            }
        }
    }
}
