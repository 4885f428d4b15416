//! `aldis upgrade` with real processes under load: nobody is parted, nothing is lost, nothing comes
//! twice, and a successor that fails changes nothing.
//!
//! `ALDIS_UPGRADES` sets the number of upgrades, `ALDIS_UPGRADE_CLIENTS` that of idle clients.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use support::cluster::{free_address, kill_nine, wait_until};
use support::{Client, Cluster};

const PATIENCE: Duration = Duration::from_secs(60);
const PAIRS: usize = 6;
/// Sends of one device that are unanswered at a time.
const OUTSTANDING_MAX: usize = 8;

fn number_from(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn upgrade(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.arg("upgrade").args(arguments.iter().map(|argument| argument.as_ref()));
    command.stdin(Stdio::null()).output().expect("the binary runs")
}

/// One upgrade that is to succeed; what it printed last.
fn upgraded(cluster: &Cluster) -> String {
    let before = cluster.child("edge").expect("it runs");
    let output = upgrade(&[&"--data", &cluster.data]);
    assert!(output.status.success(), "{output:?}");
    wait_until("the old edge is gone", PATIENCE, || {
        cluster.child("edge").is_some_and(|edge| edge != before)
    });
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().last().expect("it says so").to_owned()
}

/// Two users who write to each other until they are told to stop, and check what they are told.
fn pair(cluster: &Cluster, index: usize, stop: &Arc<AtomicBool>) -> [JoinHandle<u64>; 2] {
    let (url, stop) = (cluster.url(&format!("user=w{index}")), Arc::clone(stop));
    let mut writer = Client::connect_synced(&url).0;
    let mut reader = Client::connect_synced(&cluster.url(&format!("user=r{index}"))).0;
    let writing = std::thread::spawn(move || {
        let (mut said, mut answered) = (0, 0);
        while !stop.load(Ordering::Relaxed) || answered < said {
            if said - answered < OUTSTANDING_MAX as u64 && !stop.load(Ordering::Relaxed) {
                said += 1;
                let to = format!("r{index}");
                let frame = json!({"t": "send", "ref": said, "to": to, "id": said.to_string(),
                    "body": "x".repeat(said as usize % 300)});
                assert!(writer.say(frame), "the writer is connected");
                continue;
            }
            let frame = writer.next(PATIENCE).expect("an answer comes");
            if frame["t"] == "sent" {
                answered += 1;
                assert_eq!((&frame["ref"], &frame["seq"]), (&json!(answered), &json!(answered)));
                assert_eq!(frame["dup"], json!(false), "{frame}");
            } else {
                assert_eq!(frame["t"], "receipt", "{frame}");
            }
        }
        said
    });
    let reading = std::thread::spawn(move || {
        let mut seq = 0;
        loop {
            let Some(frame) = reader.next(Duration::from_secs(5)) else {
                assert!(reader.closed.is_none(), "the reader is connected");
                return seq;
            };
            assert_ne!(frame["t"], "error", "{frame}");
            if frame["t"] == "msg" {
                seq += 1;
                assert_eq!(frame["seq"], json!(seq), "each once, and in order");
                let convo = &frame["convo"];
                let ack = json!({"t": "ack", "convo": convo, "seq": seq, "kind": "delivered"});
                assert!(reader.say(ack));
            }
        }
    });
    [writing, reading]
}

/// A client whose bytes the test writes by itself.
struct Raw {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Raw {
    fn dial(address: &str) -> Raw {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Raw { stream, heard: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it is connected");
    }

    /// Reads until `wanted` was heard, which is then forgotten with all before it.
    fn expect(&mut self, wanted: &str) {
        let wanted = wanted.as_bytes();
        loop {
            let found = self.heard.windows(wanted.len()).position(|bytes| bytes == wanted);
            if let Some(at) = found {
                self.heard.drain(..at + wanted.len());
                return;
            }
            let mut bytes = [0; 4096];
            let size = self.stream.read(&mut bytes).expect("it comes in time");
            assert!(size > 0, "the connection is open");
            self.heard.extend_from_slice(&bytes[..size]);
        }
    }
}

fn request(address: &str, user: &str) -> Vec<u8> {
    format!(
        "GET /v1/connect?user={user} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

fn masked(text: &str) -> Vec<u8> {
    let (key, size) = ([1, 2, 3, 4], text.len() as u16);
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend(size.to_be_bytes());
    frame.extend(key);
    frame.extend(text.bytes().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Takes nothing off its socket, which takes little, until it is told to.
fn slow_reader(cluster: &Cluster) -> Client {
    let address: SocketAddr = cluster.address.parse().expect("an address");
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    socket.connect(&address.into()).expect("it listens");
    let mut client = Client::over(&cluster.url("user=slow"), socket.into());
    client.until_synced();
    client
}

#[test]
fn upgrades_under_load_part_nobody_and_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    let idle_count = number_from("ALDIS_UPGRADE_CLIENTS", 2_000);
    let mut idle: Vec<Client> = (0..idle_count)
        .map(|index| Client::connect(&cluster.url(&format!("user=i{index}"))))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let pairs: Vec<_> = (0..PAIRS).map(|index| pair(&cluster, index, &stop)).collect();

    let mut slow = slow_reader(&cluster);
    let mut flood = Client::connect_synced(&cluster.url("user=flood")).0;
    let mut pinger = Client::connect_synced(&cluster.url("user=pinger")).0;
    let mut framer = Raw::dial(&cluster.address);
    framer.write(&request(&cluster.address, "framer"));
    framer.expect("\"synced\"");
    let (mut slow_count, body) = (0, "y".repeat(40_000));
    for round in 0..number_from("ALDIS_UPGRADES", 10) {
        let mut asking = Raw::dial(&cluster.address);
        let asked = request(&cluster.address, &format!("asker{round}"));
        asking.write(&asked[..asked.len() / 2]);
        let id = format!("half{round}");
        let said = json!({"t": "send", "to": "nobody", "id": id, "body": "z".repeat(200)});
        let frame = masked(&said.to_string());
        let (head, tail) = frame.split_at(1 + (2 + round * 20) % 240);
        framer.write(head);
        for _ in 0..20 {
            slow_count += 1;
            flood.say(
                json!({"t": "send", "to": "slow", "id": slow_count.to_string(), "body": body}),
            );
        }
        pinger.say(json!({"t": "send", "ref": 1, "to": "nobody", "id": id, "body": ""}));
        pinger.say(json!({"t": "ping", "ref": 2}));

        upgraded(&cluster);

        asking.write(&asked[asked.len() / 2..]);
        asking.expect("101 Switching Protocols");
        asking.expect("\"synced\"");
        framer.write(tail);
        framer.expect(&id);
        let answers = [pinger.next(PATIENCE), pinger.next(PATIENCE)];
        let kinds = answers.map(|answer| answer.expect("it comes")["t"].clone());
        assert_eq!(kinds, [json!("sent"), json!("pong")]);
        for _ in 0..20 {
            assert_eq!(flood.expect("sent")["dup"], json!(false));
        }
    }
    for seq in 1..=slow_count {
        assert_eq!(slow.expect("msg")["seq"], json!(seq), "each once, and in order");
        let ack = json!({"t": "ack", "convo": "dm:flood:slow", "seq": seq, "kind": "delivered"});
        assert!(slow.say(ack));
    }
    stop.store(true, Ordering::Relaxed);
    for [writing, reading] in pairs {
        let written = writing.join().expect("the writer was content");
        assert_eq!(reading.join().expect("the reader was content"), written);
        assert!(written > 0);
    }
    for client in &mut idle {
        client.barrier();
        assert!(client.closed.is_none());
    }
}

fn script(path: &Path, body: &str) {
    let line = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 700 \"$0\"";
    let status = Command::new("sh").args(["-c", line]).arg(path).arg(body).status();
    assert!(status.expect("sh runs").success());
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    let mut client = Client::connect_synced(&cluster.url("user=alice")).0;
    let edge = cluster.child("edge");
    let program = folder.path().join("program");
    let mut fails = |reason: &str| {
        let output = upgrade(&[&"--data", &cluster.data, &"--binary", &program]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(reason), "{error}");
        client.barrier();
        assert_eq!(cluster.child("edge"), edge);
    };
    script(&program, "exit 1");
    fails("the successor ended at once (exit status: 1); nothing has changed");
    script(&program, "echo refused no luck; exec sleep 60");
    fails("no luck");
    let other_name = format!("exec {} \"$@\" --name other", env!("CARGO_BIN_EXE_aldis"));
    script(&program, &other_name);
    fails("--name is edge-1 there");
    script(&program, "exec sleep 60");
    fails("the successor takes too long");
    fs::write(&program, b"no program").expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("set");
    // As the C library has it, what is no program is given to the shell.
    fails("the successor ended at once");
    let missing = upgrade(&[&"--data", &cluster.data, &"--binary", &"/no/such/program"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    assert!(upgraded(&cluster).contains("1 connections stood still"));
    client.barrier();
}

/// Successors of this `up` that have not taken over, by their flag.
fn successor(cluster: &Cluster) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|number| {
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("--take-over") && line.contains(&*cluster.data.to_string_lossy())
    })
}

#[test]
fn a_successor_killed_in_the_middle_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    let clients = 300;
    let connect = |index| Client::connect_synced(&cluster.url(&format!("user=c{index}"))).0;
    let mut clients: Vec<Client> = (0..clients).map(connect).collect();
    let log = cluster.data.with_extension("log");
    let mut failed = 0;
    for round in 0..40_u64 {
        let data = cluster.data.clone();
        let upgrading = std::thread::spawn(move || upgrade(&[&"--data", &data]));
        let mut found = None;
        while found.is_none() && !upgrading.is_finished() {
            found = successor(&cluster);
        }
        std::thread::sleep(Duration::from_micros(round * 700));
        found.map(kill_nine);
        let output = upgrading.join().expect("it ends");
        let serves = "\"the successor serves\"";
        if output.status.success() || fs::read_to_string(&log).expect("the log").contains(serves) {
            break;
        }
        failed += 1;
        for (index, client) in clients.iter_mut().enumerate() {
            client.barrier();
            if index % 50 == 0 {
                client.send("nobody", &round.to_string(), "still here");
            }
        }
    }
    assert!(failed > 0, "some were killed in time");
}

/// A process of its own, ended with the test.
struct Process(Child);

impl Process {
    fn start(arguments: &[&str], notify: Option<&Path>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(path) = notify {
            command.env("NOTIFY_SOCKET", path);
        }
        Process(command.spawn().expect("the binary runs"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// The number of the process that an upgrade started.
fn started(output: &Output) -> u32 {
    let line = BufReader::new(&output.stdout[..]).lines().last().expect("a line").expect("text");
    line.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// Ends a process that is a child of somebody else by now.
struct Orphan(u32);

impl Drop for Orphan {
    fn drop(&mut self) {
        kill_nine(self.0);
    }
}

#[test]
fn a_lone_edge_is_upgraded_while_its_sequencer_is_away_and_systemd_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let (secret, store, handover) = (path("secret"), path("store"), path("edge.sock"));
    fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
    let notify = PathBuf::from(path("notify"));
    let systemd = UnixDatagram::bind(&notify).expect("bound");
    systemd.set_read_timeout(Some(PATIENCE)).expect("set");
    let [listen, store_link, link] = [(); 3].map(|()| free_address());
    let secret_file = ["--secret-file", &secret];
    let store = [&["store", "--data", &store, "--listen", &store_link][..], &secret_file].concat();
    let _store = Process::start(&store, None);
    let sequencer =
        [&["sequencer", "--listen", &link, "--store", &store_link][..], &secret_file].concat();
    let first_sequencer = Process::start(&sequencer, None);
    let edge = ["edge", "--listen", &listen, "--sequencer", &link, "--auth", "dev"];
    let edge = [&edge[..], &["--shards", "2", "--handover", &handover], &secret_file].concat();
    let mut first_edge = Process::start(&edge, Some(&notify));

    let url = |user: &str| format!("ws://{listen}/v1/connect?user={user}");
    wait_until("the edge listens", PATIENCE, || TcpStream::connect(&listen).is_ok());
    let mut alice = Client::connect_synced(&url("alice")).0;
    let mut bob = Client::connect_synced(&url("bob")).0;
    alice.send("bob", "1", "before");
    assert_eq!(bob.expect("msg")["seq"], 1);
    bob.say(json!({"t": "ack", "convo": "dm:alice:bob", "seq": 1, "kind": "delivered"}));
    bob.barrier();
    assert_eq!(fs::metadata(&handover).expect("a socket").permissions().mode() & 0o777, 0o600);

    drop(first_sequencer);
    alice.say(json!({"t": "send", "ref": 7, "to": "bob", "id": "2", "body": "between"}));
    let output = upgrade(&[&"--handover", &handover]);
    assert!(output.status.success(), "{output:?}");
    let number = started(&output);
    let _second_edge = Orphan(number);
    let status = first_edge.0.wait().expect("it ends");
    assert!(status.success(), "{status}");
    let mut told = [0; 100];
    let size = systemd.recv(&mut told).expect("systemd is told");
    assert_eq!(told[..size], *format!("MAINPID={number}\nREADY=1\n").as_bytes());

    let _second_sequencer = Process::start(&sequencer, None);
    assert_eq!(alice.expect("sent")["ref"], 7);
    assert_eq!(bob.expect("msg")["seq"], 2);

    let again = upgrade(&[&"--handover", &handover]);
    assert!(again.status.success(), "{again:?}");
    let _third_edge = Orphan(started(&again));
    alice.send("bob", "3", "after");
    assert_eq!(bob.expect("msg")["seq"], 3);
    assert!(upgrade(&[&"--handover", &path("nobody.sock")]).status.code() == Some(1));
}
