//! Seeds of the simulator: that they hold, that they replay, and that planted bugs are found.

use super::{Options, run};

/// Of an ordinary test run; `ALDIS_SEEDS` and `ALDIS_SEED` say otherwise.
const SEED_COUNT: u64 = 60;

#[test]
fn seeds_hold() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let count: u64 = number("ALDIS_SEEDS").unwrap_or(SEED_COUNT);
    let seeds = number("ALDIS_SEED").map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        match run(seed, &Options::default()) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(failure) => panic!("{failure}"),
        }
    }
}
