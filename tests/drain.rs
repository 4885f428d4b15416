//! An edge that ends tells each of its clients when to come back: each in a slot of its own, as
//! many a second as edges bear.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{Client, Cluster};

const CLIENTS: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// However few they are.
const SPREAD_MS_MIN: f64 = 1_000.0;

fn start(folder: &tempfile::TempDir, environment: &[(&str, &str)]) -> (Cluster, Vec<Client>) {
    let cluster = Cluster::start_with(folder.path().join("data"), &["--shards", "1"], environment);
    let clients = (0..CLIENTS).map(|index| patiently(&cluster, index)).collect();
    (cluster, clients)
}

/// A client whom the handshake rate may put off.
fn patiently(cluster: &Cluster, index: usize) -> Client {
    let (url, started) = (cluster.url(&format!("user=user-{index}")), Instant::now());
    loop {
        match Client::try_connect(&url) {
            Ok(mut client) => {
                client.expect("welcome");
                return client;
            }
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What each was told, in order, once the edge has got SIGTERM.
fn slots_ms(cluster: &Cluster, clients: &mut [Client]) -> Vec<u64> {
    let edge = cluster.child("edge").expect("it runs");
    let told = Command::new("kill").arg(edge.to_string()).status().expect("kill runs");
    assert!(told.success());
    let goaway = |client: &mut Client| {
        let goaway = client.expect("goaway");
        assert_eq!(goaway["reason"], "drain", "{goaway}");
        goaway["reconnect_ms"].as_u64().expect("milliseconds")
    };
    let mut slots: Vec<u64> = clients.iter_mut().map(goaway).collect();
    slots.sort_unstable();
    slots
}

/// Slot `index` of all lies where an even spread over so many milliseconds puts it.
fn assert_even(slots_ms: &[u64], spread_ms: f64) {
    let each_ms = spread_ms / slots_ms.len() as f64;
    for (index, slot_ms) in slots_ms.iter().enumerate() {
        let begin_ms = each_ms * index as f64;
        // Milliseconds are whole on the wire.
        let is_there = (begin_ms - 1.0..begin_ms + each_ms + 1.0).contains(&(*slot_ms as f64));
        assert!(is_there, "slot {index} of {spread_ms} ms is at {slot_ms} ms");
    }
}

#[test]
fn a_drain_deals_out_what_the_edge_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cluster, mut clients) = start(&folder, &[]);
    // Nobody came for two windows: the capacity stays what it is.
    std::thread::sleep(Duration::from_millis(2_500));
    let capacity = cluster.metric("edge", "aldis_handshake_capacity").expect("it is there");
    assert!(capacity >= 100.0, "{capacity}");
    let slots = slots_ms(&cluster, &mut clients);
    let distinct = slots.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
    let returning = (capacity as u64 / 2) as f64;
    let spread_ms = (CLIENTS as f64 / returning * 1_000.0).max(SPREAD_MS_MIN);
    assert!(distinct > 500, "{distinct} slots in {spread_ms} ms");
    assert_even(&slots, spread_ms);
}

#[test]
fn a_drain_keeps_to_the_rate_that_the_operator_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cluster, mut clients) = start(&folder, &[("ALDIS_EDGE_HANDSHAKES_PER_SECOND", "1000")]);
    let slots = slots_ms(&cluster, &mut clients);
    let each_has_its_own = slots.iter().copied().eq(0..CLIENTS as u64);
    assert!(each_has_its_own, "a millisecond each: {slots:?}");
}
