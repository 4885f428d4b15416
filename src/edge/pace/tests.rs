//! Capacities that follow what is seen, and slots that do not overlap.

use proptest::prelude::*;

use super::*;
use crate::clock::Now;

/// A window of a second in which a shard was busy for so many percent of it.
fn pass(pace: &mut Pace, seen: &mut Seen, busy_percent: u64, window: Seen) -> bool {
    let now_us = pace.window_from_us + WINDOW_US;
    seen.handshakes += window.handshakes;
    seen.refused += window.refused;
    seen.messages += window.messages;
    pace.waited((100 - busy_percent) * WINDOW_US / 100);
    assert!(!pace.observe(now_us - 1, *seen), "the window has not passed");
    pace.observe(now_us, *seen)
}

fn came(handshakes: u64, refused: u64, messages: u64) -> Seen {
    Seen { handshakes, refused, messages }
}

#[test]
fn what_is_sustained_beyond_the_trial_counts() {
    let (mut pace, mut seen) = (Pace::new(1_000, 77), Seen::default());
    assert_eq!((pace.capacity(), pace.returning()), (1_000, 500));
    assert!(pass(&mut pace, &mut seen, 50, came(1_500, 0, 0)));
    assert_eq!(pace.capacity(), 1_500);
    // And so does what is refused though there was time for it, in steps.
    assert!(pass(&mut pace, &mut seen, 50, came(1_500, 9, 0)));
    assert_eq!(pace.capacity(), 1_688);
    for _ in 0..20 {
        pass(&mut pace, &mut seen, 10, came(1_500, 9, 0));
    }
    assert_eq!(pace.capacity(), 4_000, "four times the trial, and no more");
}

#[test]
fn a_crowd_that_is_more_than_the_shard_bears_lowers_it() {
    let (mut pace, mut seen) = (Pace::new(1_000, 0), Seen::default());
    assert!(pass(&mut pace, &mut seen, 100, came(400, 50, 400)));
    assert_eq!(pace.capacity(), 700);
    for _ in 0..20 {
        pass(&mut pace, &mut seen, 95, came(64, 9, 0));
    }
    assert_eq!(pace.capacity(), 250, "a quarter of the trial, and no less");
    assert!(pass(&mut pace, &mut seen, 30, came(900, 0, 0)), "it recovers");
    assert_eq!(pace.capacity(), 900);
}

#[test]
fn what_says_nothing_changes_nothing() {
    let (mut pace, mut seen) = (Pace::new(1_000, 0), Seen::default());
    for (busy_percent, window) in [
        // No crowd, however busy the shard is.
        (100, came(CROWD_MIN - 1, 50, 0)),
        // A calm one that is less than it bears.
        (20, came(900, 0, 0)),
        // Busy with messages.
        (100, came(100, 10, 5_000)),
        // Neither busy nor calm.
        (75, came(900, 10, 0)),
    ] {
        assert!(!pass(&mut pace, &mut seen, busy_percent, window), "{busy_percent} {window:?}");
    }
    assert_eq!(pace.capacity(), 1_000);
}

#[test]
fn a_window_that_lasted_longer_is_judged_by_its_length() {
    let mut pace = Pace::new(1_000, 0);
    assert!(pace.observe(4_000_000, came(2_000, 0, 0)), "it never waited");
    assert_eq!(pace.capacity(), 750, "half of the way to 500");
    let mut pace = Pace::new(100, 0);
    assert!(pace.observe(4_000_000, came(480, 0, 0)));
    assert_eq!(pace.capacity(), 120);
}

#[test]
fn few_clients_have_a_second_for_themselves() {
    let slots = Slots::new(10_000, 2).at_ease(4);
    let begin_us: Vec<u64> = (0..4).map(|index| slots.moment_us(index, 0)).collect();
    assert_eq!(begin_us, [0, 250_000, 500_000, 750_000]);
    assert_eq!(slots.moment_us(3, 249_999), 999_999);
    let many = Slots::new(10_000, 2);
    assert_eq!(many.at_ease(5_000), many);
    assert_eq!(many.moment_us(4_999, 0), 999_800);
    assert_eq!(Slots::new(0, 0).at_ease(0).moment_us(0, 5), 5, "no bad number ends it");
}

#[test]
fn a_trial_is_bounded_by_the_clock_and_takes_the_best_batch() {
    let steps_us = [0, 900, 500, 700, 3_000, 200];
    let (mut step, mut now_us) = (0, 1_000);
    let mut clock = || {
        now_us += steps_us.get(step).copied().expect("it has looked at the clock too often");
        step += 1;
        Now { monotonic_us: now_us, unix_ms: 1_000 }
    };
    let found_ns = Trial::new(Now::default()).run(&mut clock);
    assert_eq!(found_ns, 500_000 / 128, "500 us for 128 of them");
    assert_eq!(step, 5, "5 ms have passed at the fourth");
    let mut still = || Now::default();
    assert_eq!(Trial::new(Now::default()).run(&mut still), 1, "a clock that stands ends it too");
}

#[test]
fn shards_beyond_the_processors_share_them() {
    let one = process_capacity(5_000, 1, 1);
    assert!(one > 0);
    assert_eq!(process_capacity(5_000, 8, 1), one);
    assert_eq!(process_capacity(5_000, 2, 2), 2 * one);
    assert_eq!(process_capacity(5_000, 2, 49), 2 * one);
    assert_eq!(process_capacity(u64::MAX, 0, 0), 1);
    assert!(process_capacity(0, 64, 64) > one);
}

proptest! {
    #[test]
    fn slots_are_even_and_none_overlaps_another_or_ends_late(
        per_second in 1u64..200_000, shards in 1u64..100, count in 1usize..3_000, random: u64,
    ) {
        let slots = Slots::new(per_second, shards);
        let exact_us = |index: usize| index as f64 * 1e6 * shards as f64 / per_second as f64;
        let mut end_us = 0;
        for index in 0..count {
            let (begin_us, next_us) = (slots.moment_us(index, 0), slots.moment_us(index + 1, 0));
            prop_assert!(begin_us >= end_us, "slot {index} begins before the one before it ends");
            let moment_us = slots.moment_us(index, random.wrapping_mul(index as u64 + 1));
            prop_assert!(moment_us >= begin_us && moment_us < next_us.max(begin_us + 1));
            prop_assert!((begin_us as f64 - exact_us(index)).abs() <= 1.0, "not where it belongs");
            end_us = next_us;
        }
        prop_assert!(end_us as f64 <= exact_us(count) + 1.0, "beyond count / rate");
    }

    #[test]
    fn however_few_or_many_there_are_they_have_their_time(
        per_second in 1u64..200_000, shards in 1u64..100, count in 1usize..100_000,
    ) {
        let slots = Slots::new(per_second, shards).at_ease(count);
        let last_us = slots.moment_us(count, 0) as f64;
        let wanted_us = (count as f64 * 1e6 * shards as f64 / per_second as f64).max(1e6);
        let is_near = (last_us - wanted_us).abs() <= 1.0 + wanted_us * 1e-9;
        prop_assert!(is_near, "{last_us} {wanted_us}");
    }
}
