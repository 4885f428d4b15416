//! `aldis audit` as an operator meets it: of a store that runs and of one that is stopped, healthy
//! and damaged, with its exit codes.

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Client, Cluster};

const BLOCK_SIZE: usize = 4096;

fn audit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.arg("audit").args(arguments).output().expect("the binary runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Messages between two, one of whom reads a part and goes, and to one who never came.
fn filled(data: &Path) -> Cluster {
    let cluster = Cluster::start(data.to_owned(), &["--shards", "1"]);
    let mut alice = Client::connect_synced(&cluster.url("user=alice")).0;
    let mut bob = Client::connect_synced(&cluster.url("user=bob")).0;
    for id in 0..20 {
        for to in ["bob", "carol"] {
            let id = format!("{to}-{id}");
            alice.say(json!({"t": "send", "to": to, "id": id, "body": "a body of some length"}));
            while alice.next(Duration::from_secs(10)).expect("an answer")["t"] != "sent" {}
        }
    }
    bob.say(json!({"t": "ack", "convo": "dm:alice:bob", "seq": 10}));
    std::thread::sleep(Duration::from_millis(300));
    drop((alice, bob));
    std::thread::sleep(Duration::from_secs(3));
    cluster
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("store/log")).expect("a log").flatten();
    let mut paths: Vec<_> = files.map(|entry| entry.path()).collect();
    paths.sort();
    paths.retain(|path| {
        let bytes = fs::read(path).expect("it can be read");
        bytes[..2 * BLOCK_SIZE].iter().any(|&byte| byte != 0)
    });
    paths
}

#[test]
fn a_healthy_store_balances_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let data = folder.path().join("data");
    let mut cluster = filled(&data);
    let running = cluster.audit();
    assert!(running.contains("accepted 40 = durable 40"), "{running}");
    let json = folder.path().join("report.json");
    let [data_text, json_text] = [&data, &json].map(|path| path.to_str().expect("UTF-8"));
    let admin = fs::read_to_string(data.join("run/store.admin")).expect("it is listed");
    let asked = audit(&["--admin", admin.trim(), "--json", json_text]);
    assert_eq!(asked.status.code(), Some(0), "{}", text(&asked));
    let report: Value = serde_json::from_slice(&fs::read(&json).expect("written")).expect("JSON");
    assert_eq!((&report["balanced"], &report["accepted"]), (&json!(true), &json!(40)));
    let deliveries = &report["deliveries"];
    assert_eq!(deliveries["owed"], 80, "{deliveries}");
    assert_eq!(deliveries["unaccounted"], 0, "{deliveries}");
    assert!(deliveries["in_inboxes"].as_u64() >= Some(30), "{deliveries}");
    cluster.kill_all();
    cluster.audit();
    for path in segments(&data) {
        let away = path.with_extension("away");
        fs::rename(&path, &away).expect("moved");
        let missing = audit(&["--data", data_text]);
        assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
        assert!(text(&missing).contains("WRONG: log:"), "{}", text(&missing));
        fs::rename(&away, &path).expect("moved back");
    }
    flip_each_commit(&data, data_text);
    cluster.audit();
    cluster.restart();
    cluster.audit();
}

/// One byte of each commit in turn, the last one too.
fn flip_each_commit(data: &Path, data_text: &str) {
    let path = segments(data).pop().expect("a segment");
    let bytes = fs::read(&path).expect("it can be read");
    let file = OpenOptions::new().write(true).open(&path).expect("it can be written");
    let starts = (BLOCK_SIZE..bytes.len()).step_by(BLOCK_SIZE);
    let used: Vec<_> = starts.filter(|&at| bytes[at..][..4] == *b"ACOM").collect();
    assert!(used.len() > 10, "{} commits", used.len());
    let picked = used.iter().step_by(used.len() / 8).chain(used.last());
    for &start in picked {
        let at = (start + 90) as u64;
        file.write_all_at(&[bytes[start + 90] ^ 4], at).expect("written");
        let named = audit(&["--data", data_text]);
        assert_eq!(named.status.code(), Some(1), "offset {at}: {}", text(&named));
        assert!(text(&named).contains("segment "), "{}", text(&named));
        file.write_all_at(&[bytes[start + 90]], at).expect("written");
    }
}

#[test]
fn what_cannot_be_audited_is_code_2_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let path = folder.path().to_str().expect("UTF-8");
    let nothing = audit(&["--data", path]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(text(&nothing).contains("there is no store in"), "{}", text(&nothing));
    assert!(!folder.path().join("log").exists(), "nothing is made");
    let nobody = audit(&["--admin", &support::cluster::free_address()]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody).contains("no store answers at"), "{}", text(&nobody));
}
