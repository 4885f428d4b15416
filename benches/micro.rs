//! `cargo bench --bench micro [FILTER]` times the bodies with criterion.
//!
//! `cargo bench --bench micro -- --runs N NAME` runs one of them N times and nothing else: for
//! counting instructions with `valgrind --tool=callgrind`, which a busy machine does not disturb.

mod bodies;

use std::time::Duration;

use criterion::{Criterion, Throughput};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--runs") {
        Some(index) => run_one(&arguments[index + 1..]),
        None => time_all(),
    }
}

fn time_all() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("micro");
    for mut bench in bodies::all(bodies::FULL) {
        group.throughput(match bench.bytes {
            0 => Throughput::Elements(bench.items),
            bytes => Throughput::Bytes(bytes),
        });
        group.bench_function(bench.name, |bencher| bencher.iter(&mut bench.run));
    }
    group.finish();
    criterion.final_summary();
}

/// Arguments: how many runs, and the benchmark's name.
fn run_one(arguments: &[String]) {
    let [runs, name, ..] = arguments else {
        panic!("--runs N NAME");
    };
    let runs: u64 = runs.parse().expect("a number of runs");
    let mut benches = bodies::all(bodies::FULL).into_iter();
    let mut bench = benches.find(|bench| bench.name == name).expect("a benchmark of that name");
    let items: u64 = (0..runs).map(|_| (bench.run)()).sum();
    println!("{name}: {items} items");
}
