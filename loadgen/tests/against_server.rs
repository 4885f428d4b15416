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
