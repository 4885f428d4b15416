//! The generator against the real server, small: both must come out of it without a fault.
//!
//! `aldis` is another package's binary. `cargo test --workspace` builds it, for that package's own
//! tests need it, and leaves it beside ours; where it is not, these tests fail rather than pass.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const LOADGEN: &str = env!("CARGO_BIN_EXE_aldis-loadgen");
const START_MAX: Duration = Duration::from_secs(20);

/// A server process; killed with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts `aldis` and waits for a line of its output that contains `ready`.
    fn start(arguments: &[&str], ready: &'static str) -> Server {
        let address = free_address();
        let mut child = Command::new(aldis())
            .args(arguments)
            .args(["--listen", &address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("aldis can be executed");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the server never writes into a closed pipe.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line.contains(ready) {
                    let _gone = sender.send(());
                }
            }
        });
        let server = Server { child, address };
        receiver.recv_timeout(START_MAX).expect("aldis is ready in time");
        server
    }

    /// Runs a scenario against it; returns its output and the report it wrote.
    fn load(&self, scenario: &str, arguments: &[&str]) -> (Output, serde_json::Value) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let json = directory.path().join("report.json");
        let output = Command::new(LOADGEN)
            .args([scenario, "--target", &self.address])
            .args(arguments)
            .arg("--json")
            .arg(&json)
            .output()
            .expect("the generator can be executed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{scenario} failed:\n{said}");
        let report = std::fs::read(&json).expect("it wrote its report");
        (output, serde_json::from_slice(&report).expect("its report is JSON"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn echo_brings_every_message_back() {
    let server = Server::start(&["echo"], "listening on");
    let arguments = ["--connections", "20", "--depth", "4", "--seconds", "1.5", "--warmup", "0.5"];
    let (output, report) = server.load("echo", &arguments);
    assert!(String::from_utf8_lossy(&output.stdout).contains("verified: every message"));
    assert!(report["accounts"]["acknowledged"].as_u64().is_some_and(|count| count > 100));
    assert!(report["latencies"][0]["p50_us"].as_f64().is_some_and(|us| us > 0.0));
}

#[test]
fn echo_of_frames_longer_than_a_buffer_by_two_threads() {
    let server = Server::start(&["echo", "--shards", "2"], "listening on");
    let arguments = "--connections 4 --threads 2 --size 100000 --messages 40";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (_, report) = server.load("echo", &arguments);
    assert_eq!(report["accounts"]["delivered"], 40);
    assert_eq!(report["threads"], 2);
}

#[test]
fn chat_accounts_for_every_message_to_its_receipt() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let data = data.path().to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "1", "--data", data], "ready");
    let arguments = ["--connections", "20", "--rate", "100", "--seconds", "1.5", "--warmup", "0.5"];
    let (_, report) = server.load("chat", &arguments);
    let accounts = &report["accounts"];
    assert_eq!(accounts["sent"], 200, "{accounts}");
    assert_eq!(accounts["acknowledged"], 200, "{accounts}");
    assert_eq!(accounts["delivered"], 200, "{accounts}");
    assert_eq!(report["rate_wanted"], 100.0);
}

#[test]
fn fanout_accounts_for_every_member_of_every_group() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let data = data.path().to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "1", "--data", data], "ready");
    let arguments = ["--connections", "40", "--members", "20", "--rate", "50"];
    let pid = server.child.id().to_string();
    let others = ["--seconds", "1.5", "--warmup", "0.5", "--server-pid", &pid];
    let (output, report) = server.load("fanout", &[&arguments[..], &others].concat());
    let accounts = &report["accounts"];
    assert_eq!(accounts["sent"], 100, "{accounts}");
    assert_eq!(accounts["acknowledged"], 100, "{accounts}");
    assert_eq!(accounts["delivered"], 100 * 19, "{accounts}");
    let said = String::from_utf8_lossy(&output.stdout);
    for name in ["edge", "sequencer", "store", "server"] {
        let name = format!("{name}: processor time per delivery");
        assert!(figure(&report, &name).is_some_and(|us| us >= 0.0), "{name} in {report}");
        assert!(said.contains(&name), "{name} in {said}");
    }
    assert!(figure(&report, "server: processor time per delivery").is_some_and(|us| us > 0.0));
}

#[test]
fn every_scenario_file_is_a_command_line() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = std::fs::read_dir(folder).expect("they are there");
    let paths: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    for mode in ["churn", "fanout", "idle", "slow", "storm"] {
        assert!(paths.iter().any(|path| path.ends_with(format!("{mode}.toml"))), "{mode}");
    }
    for path in paths {
        let output = Command::new(LOADGEN)
            .args(["--scenario".as_ref(), path.as_os_str(), "--target".as_ref()])
            .args(["127.0.0.1:1", "--server-pid", "4294967295"])
            .output()
            .expect("it can be executed");
        // 2 would be wrong usage, and what is out of bounds is said before this.
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{}: {said}", path.display());
        assert!(said.contains("4294967295: there is none"), "{}: {said}", path.display());
    }
}

#[test]
fn a_server_that_dies_under_load_is_a_failure_and_is_reported() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (json, html) = (data.path().join("r.json"), data.path().join("r.html"));
    let folder = data.path().join("data");
    let folder = folder.to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "1", "--data", folder], "ready");
    let load = Command::new(LOADGEN)
        .args(["chat", "--target", &server.address, "--connections", "20", "--rate", "200"])
        .args(["--seconds", "3", "--drain", "1"])
        .args(["--json".as_ref(), json.as_os_str(), "--html".as_ref(), html.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the generator can be executed");
    thread::sleep(Duration::from_secs(2));
    drop(server);
    let output = load.wait_with_output().expect("it ends by itself");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: ") && !said.contains("verified"), "{said}");
    let report = std::fs::read(&json).expect("it wrote its report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("it is JSON");
    assert!(report["failures"].as_array().is_some_and(|failures| !failures.is_empty()));
    assert!(std::fs::read_to_string(&html).expect("it wrote its page").contains("Failed: "));
}

#[test]
fn messages_may_begin_long_after_the_crowd() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let data = data.path().to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "1", "--data", data], "ready");
    // Longer than the time that 20 connections may take to open.
    let arguments = "--connections 60 --rate 10 --quiet 11 --seconds 1";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (_, report) = server.load("idle", &arguments);
    assert!(report["accounts"]["delivered"].as_u64().is_some_and(|count| count >= 10));
}

#[test]
fn crowds_stand_are_cut_come_and_go_and_stop_reading() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let data = data.path().to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "2", "--data", data], "ready");
    let pid = server.child.id().to_string();
    let load = |scenario: &str, arguments: &str| {
        let crowd = format!("--connections 120 --per-ring 40 --seconds 1.5 --server-pid {pid}");
        let arguments = format!("{crowd} {arguments}");
        let arguments: Vec<&str> = arguments.split(' ').collect();
        server.load(scenario, &arguments).1
    };
    let idle = load("idle", "--rate 10 --quiet 0.5");
    assert_eq!(idle["crowd"]["open_at_end"], 100, "20 connections carry messages: {idle}");
    assert_eq!(idle["crowd"]["rings"], 3);
    assert!(idle["accounts"]["delivered"].as_u64().is_some_and(|count| count >= 10));
    assert!(figure(&idle, "connections open") == Some(100.0));
    assert!(figure(&idle, "edge: user memory per connection").is_some());
    let storm = load("storm", "--rate 10 --spread 0.2");
    assert_eq!(storm["crowd"]["cut"], 100);
    assert_eq!(storm["crowd"]["opened"], 200);
    assert!(figure(&storm, "all of them back after").is_some_and(|seconds| seconds > 0.0));
    let churn = load("churn", "--rate 100");
    assert!(churn["crowd"]["cut"].as_u64().is_some_and(|count| count >= 20), "{churn}");
    assert_eq!(churn["crowd"]["open_at_end"], 120);
    let slow = load("slow", "--rate 200 --chat-rate 10 --calm 0.5 --size 2000");
    let accounts = &slow["accounts"];
    assert!(accounts["delivered"].as_u64().is_some_and(|count| count >= 100), "{accounts}");
    assert_eq!(accounts["sent"], accounts["delivered"], "{accounts}");
}

#[test]
fn the_whole_proof_is_one_command_small() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (json, html) = (directory.path().join("m.json"), directory.path().join("m.html"));
    let scenario = directory.path().join("small.toml");
    let text = "mode = \"million\"\nconnections = 300\nrate = 20\nquiet = 0.5\nseconds = 1.5\n";
    std::fs::write(&scenario, text).expect("written");
    let output = Command::new(LOADGEN)
        .env_remove("CARGO")
        .args(["--scenario".as_ref(), scenario.as_os_str(), "--connections".as_ref()])
        .args(["200".as_ref(), "--aldis".as_ref(), aldis().as_os_str()])
        .args(["--json".as_ref(), json.as_os_str(), "--html".as_ref(), html.as_os_str()])
        .output()
        .expect("the generator can be executed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(&json).expect("it wrote its report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("it is JSON");
    assert_eq!(report["connections"], 200, "flags go before the file");
    assert_eq!(figure(&report, "connections open"), Some(160.0));
    for name in ["edge", "sequencer", "store"] {
        let memory = figure(&report, &format!("{name}: user memory per connection"));
        assert!(memory.is_some(), "{name} in {said}");
    }
    let page = std::fs::read_to_string(&html).expect("it wrote its page");
    assert!(page.contains("<svg") && page.ends_with("</html>\n"));
}

fn figure(report: &serde_json::Value, name: &str) -> Option<f64> {
    let figures = report["figures"].as_array()?;
    figures.iter().find(|figure| figure["name"] == name)?["value"].as_f64()
}

#[test]
fn a_server_that_is_not_there_or_is_another_one_is_an_error_in_words() {
    let error = |scenario: &str, target: &str| {
        let arguments = [scenario, "--target", target, "--connections", "2"];
        let output = Command::new(LOADGEN).args(arguments).output().expect("it can be executed");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let nobody = error("echo", &free_address());
    assert!(nobody.contains("connection refused"), "{nobody}");
    let data = tempfile::tempdir().expect("a temporary directory");
    let data = data.path().to_str().expect("a name in UTF-8");
    let server = Server::start(&["up", "--shards", "1", "--data", data], "ready");
    let refused = error("echo", &server.address);
    assert!(refused.contains("did not upgrade"), "{refused}");
}

/// The server's binary, which cargo puts beside the generator's.
fn aldis() -> PathBuf {
    let path = Path::new(LOADGEN).with_file_name("aldis");
    let hint = "run `cargo test --workspace`, or `cargo build --bin aldis` before";
    assert!(path.is_file(), "{} is not there: {hint}", path.display());
    path
}

/// A loopback address that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}
