//! `aldis conform` against `aldis up`: every sentence of the vectors is true of it, and the program
//! says so when one is not.

mod support;

use std::process::{Command, Output};

use support::Cluster;

fn conform(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.arg("conform").args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// What this version does not do yet.
const NOT_YET: &str = "either side of a direct conversation sets when its messages expire";

#[test]
fn every_sentence_but_one_holds() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    let outcome = conform(&[&cluster.url("")]);
    let said = text(&outcome.stdout);
    let of = |mark: &str| -> Vec<String> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(mark));
        lines.map(|line| line.trim_start().to_owned()).collect()
    };
    assert_eq!(of("FAIL"), [format!("3. {NOT_YET}")], "{said}");
    assert!(of("ok").len() > 50 && outcome.status.code() == Some(1), "{said}");
}

#[test]
fn what_is_no_such_server_fails_and_says_why() {
    let outcome = conform(&["ws://127.0.0.1:1/v1/connect", "--only", "welcome", "--json"]);
    assert_eq!(outcome.status.code(), Some(1));
    let said = text(&outcome.stdout);
    assert!(said.contains(r#""failed":[{"#) && said.contains("refused"), "{said}");
    for bad in [&["nonsense url"][..], &["ws://x/", "--only", "no such case"], &[]] {
        assert_eq!(conform(bad).status.code(), Some(2), "{bad:?}");
    }
}
