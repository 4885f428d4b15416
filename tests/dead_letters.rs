//! Dead letters, in short times: what nobody takes fails, is told once, listed, shown, exported and
//! put back; and neither an outage nor a device that lags makes one.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};

/// Long enough for whatever was to come.
const QUIET: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

fn start(folder: &Path, dead_after_s: &str) -> Cluster {
    let environment = [("ALDIS_SEQUENCER_DEAD_AFTER_S", dead_after_s)];
    Cluster::start_with(folder.join("data"), &["--shards", "1"], &environment)
}

fn dead(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.arg("dead").args(arguments).arg("--data").arg(&cluster.data);
    command.output().expect("the binary runs")
}

/// What the command prints; it ends with 0.
fn printed(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = dead(cluster, arguments);
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {why}");
    String::from_utf8(output.stdout).expect("text")
}

fn failed(convo: &str, seq: u64, id: &str) -> Value {
    json!({"t": "failed", "convo": convo, "seq": seq, "id": id})
}

#[test]
fn what_nobody_takes_fails_and_can_be_put_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = start(folder.path(), "2");
    let (mut alice, _) = Client::connect_synced(&cluster.url("user=alice&device=phone"));
    alice.send("alice", "self-1", "a note");
    alice.send("bob", "a1", "attack at dawn");
    assert_eq!(alice.expect("failed"), failed("dm:alice:bob", 1, "a1"));
    let mut laptop = Client::connect(&cluster.url("user=alice&device=laptop"));
    assert_eq!(laptop.expect("failed"), failed("dm:alice:bob", 1, "a1"), "at each connect");
    assert_eq!(alice.next(QUIET), None, "once, and nothing of what she sent herself");

    assert_eq!(printed(&cluster, &["list"]), "bob\tdm:alice:bob\t1\talice\ta1\n");
    assert_eq!(printed(&cluster, &["list", "--user", "carol"]), "");
    let shown = printed(&cluster, &["show", "--convo", "dm:alice:bob", "--seq", "1"]);
    assert!(!shown.contains("attack") && shown.contains("\"body_bytes\":14"), "{shown}");
    let shown = printed(&cluster, &["show", "--convo", "dm:alice:bob", "--seq", "1", "--body"]);
    assert!(shown.contains("attack at dawn"), "{shown}");
    let exported = printed(&cluster, &["export"]);
    let exported: Value = serde_json::from_str(&exported).expect("one line of JSON");
    assert_eq!((&exported["user"], &exported["msg"]["seq"]), (&json!("bob"), &json!(1)));
    assert_eq!(exported["msg"]["body"], "attack at dawn");
    assert_eq!(cluster.metric("sequencer", "aldis_dead_letters_total"), Some(1.0));

    // It is in no inbox any more, and in the history.
    let (mut bob, backlog) = Client::connect_synced(&cluster.url("user=bob&device=phone"));
    assert_eq!(backlog, Vec::<Value>::new());
    bob.say(json!({"t": "history", "convo": "dm:alice:bob"}));
    assert_eq!(bob.expect("page")["msgs"].as_array().map(Vec::len), Some(1));

    let replay = ["replay", "--user", "bob", "--convo", "dm:alice:bob"];
    assert_eq!(printed(&cluster, &replay), "{\"replayed\":1}\n");
    let put_back = bob.expect("msg");
    assert_eq!((&put_back["seq"], &put_back["body"]), (&json!(1), &json!("attack at dawn")));
    bob.say(json!({"t": "ack", "convo": "dm:alice:bob", "seq": 1, "kind": "delivered"}));
    assert_eq!(alice.expect("receipt")["by"], "bob");
    assert_eq!(printed(&cluster, &["list"]), "");
    let again = dead(&cluster, &replay);
    assert_eq!(again.status.code(), Some(1), "there is none");

    // Whatever dies, a sender is told for a day.
    cluster.kill_all();
    cluster.restart();
    let mut alice = Client::connect(&cluster.url("user=alice&device=phone"));
    assert_eq!(alice.expect("failed"), failed("dm:alice:bob", 1, "a1"));
}

#[test]
fn a_group_is_told_once_for_each_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(folder.path(), "2");
    let (mut ann, _) = Client::connect_synced(&cluster.url("user=ann&device=phone"));
    ann.say(json!({"t": "group.create", "convo": "crew", "members": ["ben", "cid"]}));
    ann.expect("group");
    ann.say(json!({"t": "send", "convo": "crew", "id": "g1", "body": "hello"}));
    ann.expect("sent");
    assert_eq!(ann.expect("failed"), failed("crew", 2, "g1"));
    let lines = || printed(&cluster, &["list", "--convo", "crew"]).lines().count();
    wait_until("both have two dead letters", PATIENCE, || lines() == 4);
    assert_eq!(ann.next(QUIET), None, "once");
}

#[test]
fn one_device_is_enough_and_the_others_keep_their_inbox() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(folder.path(), "2");
    for device in ["phone", "laptop"] {
        drop(Client::connect_synced(&cluster.url(&format!("user=bob&device={device}"))));
    }
    let (mut phone, _) = Client::connect_synced(&cluster.url("user=bob&device=phone"));
    let (mut alice, _) = Client::connect_synced(&cluster.url("user=alice"));
    alice.send("bob", "a1", "hello");
    phone.expect("msg");
    phone.say(json!({"t": "ack", "convo": "dm:alice:bob", "seq": 1, "kind": "delivered"}));
    phone.barrier();
    alice.expect("receipt");
    assert_eq!(alice.next(Duration::from_secs(6)), None, "nothing fails");
    let (_laptop, backlog) = Client::connect_synced(&cluster.url("user=bob&device=laptop"));
    assert_eq!(backlog.len(), 1);
    assert_eq!(printed(&cluster, &["list"]), "");
}

#[test]
fn an_outage_makes_no_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = start(folder.path(), "4");
    let (mut alice, _) = Client::connect_synced(&cluster.url("user=alice"));
    alice.send("bob", "a1", "hello");
    cluster.kill_all();
    sleep(Duration::from_secs(6));
    cluster.restart();
    let (mut bob, backlog) = Client::connect_synced(&cluster.url("user=bob"));
    assert_eq!(backlog.len(), 1, "it is in his inbox still");
    bob.say(json!({"t": "ack", "convo": "dm:alice:bob", "seq": 1, "kind": "delivered"}));
    bob.barrier();
    assert_eq!(printed(&cluster, &["list"]), "");
}

#[test]
fn who_has_not_the_secret_is_told_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(folder.path(), "2592000");
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, "x".repeat(64)).expect("written");
    let wrong = wrong.to_str().expect("text");
    let output = dead(&cluster, &["list", "--secret-file", wrong]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the secret is needed"));
    let nowhere = folder.path().join("nowhere");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    let output = command.args(["dead", "list", "--data"]).arg(nowhere).output();
    assert_eq!(output.expect("the binary runs").status.code(), Some(2));
}
