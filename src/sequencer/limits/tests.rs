//! The limits against naive twins, on a clock of their own.

use proptest::prelude::*;

use super::*;

/// Tries a cell at each moment; those that passed, in microseconds.
fn passed(rate: Rate, steps: &[u32]) -> Vec<u64> {
    let mut limiter = Limiter::new(Some(rate));
    let mut now_us = 1_000_000_000;
    let mut passed = Vec::new();
    for step in steps {
        now_us += u64::from(*step);
        let wait_us = limiter.wait_us(&1, 1, now_us);
        if wait_us == 0 {
            limiter.take(&1, 1, now_us);
            passed.push(now_us);
        } else {
            assert!(limiter.wait_us(&1, 1, now_us + wait_us - 1) > 0, "told to wait too long");
            assert_eq!(limiter.wait_us(&1, 1, now_us + wait_us), 0, "told to wait too little");
        }
        limiter.expire(now_us);
    }
    passed
}

fn rates() -> impl Strategy<Value = Rate> {
    (1..2_000_000u32, 1..50u32).prop_map(|(per_second, burst)| Rate { per_second, burst })
}

/// Moments that lie about as far apart as cells of the usual rates.
fn steps() -> impl Strategy<Value = Vec<u32>> {
    let step = prop_oneof![Just(0), 0..4u32, 0..2_000u32, 0..3_000_000u32];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    #[test]
    fn no_window_holds_more_than_the_burst_and_what_flows_in(rate in rates(), steps in steps()) {
        let passed = passed(rate, &steps);
        for (index, first) in passed.iter().enumerate() {
            for (count, last) in (1u128..).zip(&passed[index..]) {
                // Whole numbers on both sides: count <= burst + per_second * t.
                let flown = u128::from(last - first) * u128::from(rate.per_second);
                prop_assert!(count * CELL <= u128::from(rate.burst) * CELL + flown);
            }
        }
    }

    #[test]
    fn it_never_passes_less_than_a_bucket_that_is_kept_exactly(
        rate in rates(),
        steps in steps(),
    ) {
        // The naive twin: tokens in millionths, which flow in with the time and end at the burst.
        let full = u128::from(rate.burst) * CELL;
        let (mut tokens, mut now_us, mut twin) = (full, 1_000_000_000u64, Vec::new());
        for step in &steps {
            now_us += u64::from(*step);
            tokens = full.min(tokens + u128::from(*step) * u128::from(rate.per_second));
            if tokens >= CELL {
                tokens -= CELL;
                twin.push(now_us);
            }
        }
        prop_assert_eq!(passed(rate, &steps), twin);
    }

    #[test]
    fn silence_refills_to_the_burst_exactly(rate in rates(), extra_us in 0..10_000_000u64) {
        let mut limiter = Limiter::new(Some(rate));
        let mut now_us = 5_000_000;
        for _ in 0..2 {
            for _ in 0..rate.burst {
                prop_assert_eq!(limiter.wait_us(&1, 1, now_us), 0);
                limiter.take(&1, 1, now_us);
            }
            prop_assert!(limiter.wait_us(&1, 1, now_us) > 0);
            let full_us = u64::from(rate.burst) * 1_000_000;
            now_us += full_us.div_ceil(rate.per_second.into()) + extra_us;
            limiter.expire(now_us);
            prop_assert_eq!(limiter.len(), 0, "who is full is forgotten");
        }
    }

    #[test]
    fn more_cells_than_a_burst_pass_when_it_is_full_and_are_paid_for(
        rate in rates(),
        count in 1..10_000u64,
    ) {
        let mut limiter = Limiter::new(Some(rate));
        let now_us = 7_000_000;
        prop_assert_eq!(limiter.wait_us(&1, count, now_us), 0);
        limiter.take(&1, count, now_us);
        let owed = count.saturating_sub(u64::from(rate.burst)) + 1;
        let wait_us = (owed * 1_000_000).div_ceil(rate.per_second.into());
        let has_room = count < u64::from(rate.burst);
        prop_assert_eq!(limiter.wait_us(&1, 1, now_us), if has_room { 0 } else { wait_us });
    }
}

#[test]
fn keys_are_limited_one_by_one_and_no_rate_limits_nothing() {
    let mut limiter = Limiter::new(Some(Rate { per_second: 1, burst: 1 }));
    limiter.take(&1, 1, 0);
    assert_eq!((limiter.wait_us(&1, 1, 0), limiter.wait_us(&2, 1, 0)), (1_000_000, 0));
    let mut none = Limiter::new(None);
    (0..100).for_each(|_| none.take(&1, 1, 0));
    assert_eq!((none.wait_us(&1, 1, 0), none.len()), (0, 0));
}

#[test]
fn keys_are_bounded_and_leave_when_they_are_full() {
    let mut limiter = Limiter::new(Some(Rate { per_second: 1_000, burst: 10 }));
    for key in 0..KEY_COUNT_MAX as u64 + 5_000 {
        limiter.take(&key, 1, key);
    }
    assert_eq!(limiter.len(), KEY_COUNT_MAX);
    assert_eq!(limiter.due.len(), limiter.len(), "each is there once");
    let late_us = 10_000_000_000;
    (0..=limiter.len() / LOOK_COUNT_MAX).for_each(|_| limiter.expire(late_us));
    assert_eq!((limiter.len(), limiter.due.len()), (0, 0));
}
