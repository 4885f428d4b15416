//! Seeds of the simulator: that they hold, that they replay, and that planted bugs are found.

use super::planted::{Planted, with_planted};
use super::{Failure, Options, Report, run};

/// Of an ordinary test run.
const SEED_COUNT: u64 = 60;

/// `ALDIS_SEEDS=n`: so many seeds. `ALDIS_SEED=x`: this one, and all that happened in it.
#[test]
fn seeds_hold() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let count = number("ALDIS_SEEDS").unwrap_or(SEED_COUNT);
    let (seeds, event_count_max) = match number("ALDIS_SEED") {
        Some(seed) => (seed..seed + 1, usize::MAX),
        None => (0..count, Options::default().event_count_max),
    };
    let options = Options { event_count_max, ..Options::default() };
    let failures = run_all(seeds, &options);
    if let Some(first) = failures.first() {
        let others = failures.iter().map(|failure| format!("{} ({})", failure.seed, failure.what));
        panic!("{first}\n\nall that fail:\n{}", others.collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 2, 5] {
        let [one, other] = [(); 2].map(|()| run(seed, &Options::default()));
        assert_eq!(one.expect("it holds"), other.expect("it holds"));
    }
}

/// Of a planted bug, before it must have been found.
const PLANTED_SEED_COUNT: u64 = 60;

fn is_found(bug: Planted, by: &[&str]) {
    let options = Options::default();
    let find = |seed| with_planted(bug, || run(seed, &options).err());
    let failure = (0..PLANTED_SEED_COUNT).find_map(find);
    let failure = failure.unwrap_or_else(|| panic!("{bug:?} is not found"));
    let expected = by.iter().any(|words| failure.what.contains(words));
    assert!(expected, "{bug:?} is found by something else: {failure}");
}

#[test]
fn a_skipped_sync_is_found() {
    is_found(Planted::SkipSync, &["is not durable", "store does not start", "store ends"]);
}

#[test]
fn a_dropped_replay_is_found() {
    // Whoever reads of a batch that the sequencer never hears of, and acknowledges it, claims.
    let by = ["does not come to rest", "it is still not so", "claims above the head"];
    is_found(Planted::DropReplay, &by);
}

#[test]
fn a_slot_reused_without_a_new_generation_is_found() {
    is_found(Planted::ReuseSlot, &[""]);
}

#[test]
fn an_acknowledgement_on_receipt_is_found() {
    // Or the message became durable on the way of `sent`, and its acknowledgement came too early.
    let by = ["sent speaks of what is not durable", "Acknowledge"];
    is_found(Planted::AcknowledgeOnReceipt, &by);
}

#[test]
fn a_position_past_an_unacknowledged_push_is_found() {
    is_found(Planted::PassUnacknowledged, &["has neither acknowledged nor marked"]);
}

#[test]
fn letters_that_die_early_are_found() {
    is_found(Planted::EarlyDeath, &["dies early"]);
}

/// Runs the seeds on two threads, which share nothing; returns what failed, by seed.
fn run_all(seeds: std::ops::Range<u64>, options: &Options) -> Vec<Failure> {
    let run_half = |half: u64| {
        let seeds = seeds.clone().filter(move |seed| seed % 2 == half);
        seeds.map(|seed| run(seed, options)).collect::<Vec<Result<Report, Failure>>>()
    };
    let all = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| scope.spawn(move || run_half(half)));
        halves.map(|half| half.join().expect("a run catches its panics"))
    });
    let [even, odd] = all;
    let mut failures: Vec<Failure> = Vec::new();
    let mut sum = Report::default();
    for ran in even.into_iter().chain(odd) {
        match ran {
            Ok(report) => sum = sum.plus(&report),
            Err(failure) => failures.push(failure),
        }
    }
    failures.sort_by_key(|failure| failure.seed);
    println!("{} seeds, {} fail; altogether {sum:?}", seeds.end - seeds.start, failures.len());
    failures
}
