//! Faults of the disk with real processes: a full file system, writes that fail, a damaged log, and
//! what `aldis repair` makes of it.
//!
//! Each test runs again as a child in a mount namespace of its own, so that what it mounts is gone
//! with it however it ends, and so that nobody needs to be root.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::{signal, wait_until};
use support::{Client, Cluster};

/// Set in the child.
const INSIDE: &str = "ALDIS_TEST_DISK_INSIDE";
const CONVO: &str = "dm:alice:bob";
const MIB: u64 = 1024 * 1024;

/// True in the child; in the parent it runs the child and looks at how it ended.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let status = Command::new("unshare")
        .arg(if root { "-m" } else { "-rm" })
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "--nocapture", test])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs (util-linux)");
    assert!(status.success(), "{test} failed in its own namespace");
    false
}

fn mount(folder: &Path, size: u64) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(folder)
        .status();
    assert!(status.expect("mount runs").success(), "a tmpfs can be mounted");
}

fn body(id: u64) -> String {
    format!("{id} {}", "x".repeat(60_000))
}

/// Sends, and waits for `sent` or an error.
fn try_send(client: &mut Client, id: u64) -> Value {
    say_send(client, id);
    answer_within(client, Duration::from_secs(30)).expect("an answer comes")
}

fn say_send(client: &mut Client, id: u64) {
    client.say(json!({"t": "send", "to": "bob", "id": id.to_string(), "body": body(id)}));
}

fn answer_within(client: &mut Client, limit: Duration) -> Option<Value> {
    let start = Instant::now();
    loop {
        let frame = client.next(limit.saturating_sub(start.elapsed()))?;
        if frame["t"] == "sent" || frame["t"] == "error" {
            return Some(frame);
        }
    }
}

fn send_all(client: &mut Client, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        assert_eq!(try_send(client, id)["t"], "sent");
    }
}

/// Everything that the conversation holds: seq -> body.
fn read_all(cluster: &Cluster) -> BTreeMap<u64, String> {
    let mut client = Client::connect(&cluster.url("user=bob&device=auditor&sync=manual"));
    client.say(json!({"t": "sync", "ref": 1, "convos": {CONVO: 0}}));
    let messages = client.until_synced();
    let seq = |frame: &Value| frame["seq"].as_u64().expect("a message has a seq");
    let body = |frame: &Value| frame["body"].as_str().expect("a text").to_owned();
    messages.iter().map(|frame| (seq(frame), body(frame))).collect()
}

fn expect_whole(cluster: &Cluster, count: u64) {
    let expected: BTreeMap<u64, String> = (1..=count).map(|id| (id, body(id))).collect();
    assert!(read_all(cluster) == expected, "all {count} messages, each once, in order");
}

fn log_of(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.data.with_extension("log")).expect("stderr of `up`")
}

#[test]
fn a_full_disk_refuses_sends_keeps_reads_and_recovers_by_itself() {
    if !inside("a_full_disk_refuses_sends_keeps_reads_and_recovers_by_itself") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    mount(folder.path(), 600 * MIB);
    // Room for the first segment with its reserve, but not for the second one.
    let ballast = folder.path().join("ballast");
    let mut fallocate = Command::new("fallocate");
    let status = fallocate.args(["-l", &(400 * MIB).to_string()]).arg(&ballast).status();
    assert!(status.expect("fallocate runs (util-linux)").success());
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let store = cluster.child("store");
    // A device that is new has to be written down, so whoever reads later comes once before.
    Client::connect(&cluster.url("user=bob&device=auditor&sync=manual"));
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    // The batch that finds no space stays with the sequencer; what comes after it is refused.
    let (mut count, mut said) = (0, 0);
    let refusal = loop {
        said += 1;
        assert!(said < 1_000, "the disk is full before");
        say_send(&mut client, said);
        match answer_within(&mut client, Duration::from_millis(500)) {
            Some(answer) if answer["t"] == "error" => break answer,
            Some(_) => count += 1,
            None => {}
        }
    };
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert!(refusal["retry_ms"].as_u64().is_some_and(|retry_ms| retry_ms > 0), "{refusal}");
    let start = Instant::now();
    let found = read_all(&cluster);
    assert_eq!(found.len() as u64, count, "reads go on");
    println!("{count} messages, then full; all read in {:?}", start.elapsed());
    assert!(cluster.metric("store", "aldis_log_no_space_total").is_some_and(|count| count > 0.0));

    fs::remove_file(&ballast).expect("space comes back");
    let start = Instant::now();
    // A repeated send is the same send, whatever became of the first.
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    while try_send(&mut client, said)["t"] != "sent" {
        assert!(start.elapsed() < Duration::from_secs(20), "it recovers by itself");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("sends are taken {:?} after space came back", start.elapsed());
    send_all(&mut client, said + 1..=said + 20);
    expect_whole(&cluster, said + 20);
    assert_eq!(cluster.child("store"), store, "the store never went down");
    assert_eq!(cluster.metric("store", "aldis_messages_unaccounted"), Some(0.0));
}

#[test]
fn a_write_that_fails_ends_the_store_and_the_next_one_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let store = cluster.child("store").expect("it runs");
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    send_all(&mut client, 1..=60);
    // Every write above 2 MiB of a file fails from now on, for this process; the log is above it.
    let limit = Command::new("prlimit")
        .args(["--pid", &store.to_string(), &format!("--fsize={0}:{0}", 2 * MIB)])
        .status();
    assert!(limit.expect("prlimit runs (util-linux)").success());
    send_all(&mut client, 61..=80);
    assert_ne!(cluster.child("store"), Some(store), "another one has answered");
    let log = log_of(&cluster);
    // Whichever comes first: the next record, or the segment prepared beforehand.
    let line = log.lines().find(|line| line.contains("of log segment"));
    let line = line.unwrap_or_else(|| panic!("the store says why it ended: {log}"));
    assert!(line.contains("at offset") && line.contains("File too large"), "{line}");
    expect_whole(&cluster, 80);
    assert_eq!(cluster.metric("store", "aldis_messages_unaccounted"), Some(0.0));
}

fn repair(data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_aldis"))
        .args(["repair", "--data"])
        .arg(data)
        .args(flags)
        .output()
        .expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Every file below the folder with a sum of its content.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            let bytes = fs::read(&path).expect("readable");
            found.insert(path, crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes));
        }
    }
    found
}

fn stop(mut cluster: Cluster) -> (String, PathBuf) {
    let (address, data) = (cluster.address.clone(), cluster.data.clone());
    assert!(signal(cluster.pid(), "TERM"));
    wait_until("`up` ends", Duration::from_secs(20), || cluster.has_ended());
    (address, data)
}

#[test]
fn a_damaged_log_is_refused_and_repaired_only_with_consent() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    send_all(&mut client, 1..=40);
    drop(client);
    let (code, said) = repair(&cluster.data, &[]);
    assert_eq!(code, Some(2), "not while it runs: {said}");
    let (_, data) = stop(cluster);

    let (code, said) = repair(&data, &[]);
    assert_eq!((code, said.contains("nothing is wrong")), (Some(0), true), "{said}");
    let log = data.join("store/log");
    let segment = log.join("000000000001.log");
    let at = offset_of(&segment, &body(20));
    let file = fs::File::options().write(true).open(&segment).expect("the segment is there");
    file.write_all_at(b"#", at + 30_000).expect("written");

    let before = snapshot(&log);
    let (code, said) = repair(&data, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("segment 1 offset") && said.contains("seq 20 from alice id 20"),
        "{said}"
    );
    assert!(!said.contains("xxx"), "no body is printed");
    assert!(snapshot(&log) == before, "nothing was changed");

    let (code, said) = repair(&data, &["--accept-loss"]);
    assert_eq!(code, Some(0), "{said}");
    let kept = fs::read(log.join("000000000001.log.damaged")).expect("the damaged one is kept");
    assert!(kept[at as usize + 30_000] == b'#');
    let reports = fs::read_dir(data.join("store")).expect("readable").flatten();
    let mut reports =
        reports.filter(|entry| entry.file_name().display().to_string().contains("repair-"));
    let report = fs::read_to_string(reports.next().expect("a report").path()).expect("readable");
    assert!(report.contains("seq 20 from alice id 20"), "{report}");

    let cluster = Cluster::start(data, &[]);
    let mut expected: BTreeMap<u64, String> = (1..=40).map(|id| (id, body(id))).collect();
    expected.remove(&20);
    assert!(read_all(&cluster) == expected, "all but the lost one");
    let unaccounted = cluster.metric("store", "aldis_messages_unaccounted");
    assert!(unaccounted.is_some_and(|count| count > 0.0), "{unaccounted:?}");
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    assert_eq!(try_send(&mut client, 41)["seq"], 41, "numbers go on behind it");
    assert_eq!(try_send(&mut client, 20)["seq"], 20, "and what was answered stays answered");
}

fn offset_of(path: &Path, text: &str) -> u64 {
    let bytes = fs::read(path).expect("readable");
    let found = bytes.windows(40).position(|window| window == &text.as_bytes()[..40]);
    found.expect("the message is in the log") as u64
}

#[test]
fn a_damaged_log_is_refused_by_the_store_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    send_all(&mut client, 1..=10);
    drop(client);
    let (_, data) = stop(cluster);
    let segment = data.join("store/log/000000000001.log");
    let at = offset_of(&segment, &body(5));
    let file = fs::File::options().write(true).open(&segment).expect("the segment is there");
    file.write_all_at(b"#", at + 100).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_aldis"))
        .args(["store", "--listen", "127.0.0.1:0", "--secret-file"])
        .arg(data.join("secret"))
        .arg("--data")
        .arg(data.join("store"))
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{last}");
    assert!(last.contains("the log is corrupt: segment 1 at offset"), "{last}");
    assert!(last.contains("aldis repair"), "{last}");
}

#[test]
fn a_broken_index_is_kept_aside_and_built_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let mut client = Client::connect(&cluster.url("user=alice&device=laptop"));
    send_all(&mut client, 1..=10);
    drop(client);
    let (_, data) = stop(cluster);
    let (code, said) = repair(&data, &["--rebuild-index"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(data.join("store/index.damaged").is_dir(), "{said}");
    let cluster = Cluster::start(data, &[]);
    expect_whole(&cluster, 10);
}
