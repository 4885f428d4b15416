//! The bodies of the microbenchmarks, once and small: a benchmark that no longer works is noticed
//! by the tests, not by whoever measures next.

#[path = "../benches/bodies/mod.rs"]
mod bodies;

use std::collections::BTreeSet;

use bodies::Scale;

const SMOKE: Scale = Scale { items: 3, body_size: 5 };

#[test]
fn every_benchmark_handles_all_its_items_twice() {
    for mut bench in bodies::all(SMOKE) {
        for _ in 0..2 {
            assert_eq!((bench.run)(), bench.items, "{}", bench.name);
        }
    }
}

#[test]
fn names_and_sizes_are_the_same_at_every_scale() {
    let names = |scale| bodies::all(scale).into_iter().map(|bench| bench.name).collect::<Vec<_>>();
    let full = names(bodies::FULL);
    assert_eq!(full, names(SMOKE));
    assert_eq!(full.iter().collect::<BTreeSet<_>>().len(), full.len());
    for bench in bodies::all(bodies::FULL) {
        assert!(bench.bytes == 0 || bench.bytes >= bench.items, "{}", bench.name);
    }
}
