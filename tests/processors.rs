//! Shards on processors of their own, and connections that go to the shard of their processor.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Client, Cluster};

const PATIENCE: Duration = Duration::from_secs(15);

fn start(folder: &tempfile::TempDir, shards: usize, environment: &[(&str, &str)]) -> Cluster {
    let data = folder.path().join("data");
    Cluster::start_with(data, &["--shards", &shards.to_string()], environment)
}

/// `0-2,5` as 0, 1, 2 and 5: what a thread's status says of the processors it may run on.
fn processors(status: &str) -> Vec<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let number = |text: &str| text.trim().parse::<usize>().expect("a number");
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first)..number(last) + 1,
        None => number(part)..number(part) + 1,
    };
    list.expect("the kernel tells").split(',').flat_map(range).collect()
}

/// The processors of each shard's thread, by its name.
fn shards(cluster: &Cluster) -> BTreeMap<String, Vec<usize>> {
    let edge = cluster.child("edge").expect("it runs");
    let threads = fs::read_dir(format!("/proc/{edge}/task")).expect("it runs");
    let read = |thread: fs::DirEntry| {
        let text = |file| fs::read_to_string(thread.path().join(file)).expect("it runs");
        (text("comm").trim().to_owned(), processors(&text("status")))
    };
    let all = threads.map(|thread| read(thread.expect("it runs")));
    all.filter(|(name, _)| name.starts_with("shard-")).collect()
}

fn own() -> Vec<usize> {
    processors(&fs::read_to_string("/proc/self/status").expect("the kernel tells"))
}

/// Whoever comes is served, by some shard.
fn serve(cluster: &Cluster, part: &str) {
    let mut clients: Vec<Client> = (0..40)
        .map(|index| Client::connect_synced(&cluster.url(&format!("user={part}-{index}"))).0)
        .collect();
    clients.iter_mut().for_each(Client::barrier);
}

fn upgrade(cluster: &Cluster) {
    let before = cluster.child("edge").expect("it runs");
    let output = Command::new(env!("CARGO_BIN_EXE_aldis"))
        .args(["upgrade", "--data"])
        .arg(&cluster.data)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let started = Instant::now();
    while cluster.child("edge").is_none_or(|edge| edge == before) {
        assert!(started.elapsed() < PATIENCE, "the old edge is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn pinned_shards_are_dealt_out_to_the_processors_also_in_an_upgrade() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, 3, &[("ALDIS_EDGE_PIN", "true")]);
    let own = own();
    let expected: BTreeMap<String, Vec<usize>> =
        (0..3).map(|index| (format!("shard-{index}"), vec![own[index % own.len()]])).collect();
    assert_eq!(shards(&cluster), expected);
    serve(&cluster, "before");
    upgrade(&cluster);
    assert_eq!(shards(&cluster), expected, "a successor deals them out by itself");
    serve(&cluster, "after");
}

#[test]
fn nobody_is_pinned_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, 2, &[]);
    let own = own();
    assert_eq!(shards(&cluster).into_values().collect::<Vec<_>>(), [own.clone(), own]);
}

#[test]
fn steered_connections_are_served_whatever_the_number_of_shards_also_after_an_upgrade() {
    // More shards than processors: those beyond get nothing, and harm nobody.
    for count in [1, 2, 5] {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = start(&folder, count, &[("ALDIS_EDGE_STEER", "true")]);
        serve(&cluster, "before");
        let (mut stayed, _) = Client::connect_synced(&cluster.url("user=stayed"));
        upgrade(&cluster);
        stayed.barrier();
        serve(&cluster, "after");
        upgrade(&cluster);
        stayed.barrier();
        serve(&cluster, "again");
        let log = fs::read_to_string(cluster.data.with_extension("log")).expect("the log");
        assert!(!log.contains("connections are dealt out as they were"), "{log}");
    }
}
