//! A real edge with a small memory budget, and two thousand clients who are written to and never
//! read: it stays within the budget, lets nobody else in, serves whoever reads, and recovers.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use support::cluster::wait_until;
use support::{Client, Cluster};

const BUDGET: u64 = 64 << 20;
const READERS: usize = 2_000;
/// The readers are devices of so many users: what is said to one of these reaches a hundred.
const USERS: usize = 20;
/// What is said to each of them: 1.6 MB for every reader, 3.2 GB for all.
const ROUNDS: usize = 40;
const BODY_SIZE: usize = 40_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Time in which some of those who hold the excess are cut.
const REST: Duration = Duration::from_secs(5);
/// Handshakes under way at a time.
const BURST: usize = 100;

fn dial(cluster: &Cluster) -> TcpStream {
    let address: SocketAddr = cluster.address.parse().expect("an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // Little is to hide in the kernel.
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&SockAddr::from(address)).expect("the edge accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Asks to be let in; what is answered is for the caller to read.
fn ask(cluster: &Cluster, user: &str, device: &str) -> TcpStream {
    let mut stream = dial(cluster);
    let request = format!(
        "GET /v1/connect?user={user}&device={device} HTTP/1.1\r\nHost: {}\r\n\
         Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        cluster.address
    );
    // The refused may have been told before they ask.
    let _told = stream.write_all(request.as_bytes());
    stream
}

/// Reads until one of these has come, or the end.
fn read_until(stream: &mut TcpStream, wanted: &[&str]) -> String {
    let (mut buffer, mut said) = ([0; 4096], String::new());
    while !wanted.iter().any(|wanted| said.contains(wanted)) {
        match stream.read(&mut buffer) {
            Ok(size) if size > 0 => said.push_str(&String::from_utf8_lossy(&buffer[..size])),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    said
}

fn is_let_in(cluster: &Cluster, user: &str) -> bool {
    let answer = read_until(&mut ask(cluster, user, "phone"), &["\"t\":\"welcome\"", "\"}"]);
    if !answer.starts_with("HTTP/1.1 101 ") {
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nRetry-After: "), "{answer}");
        assert!(answer.contains("{\"code\":\"full\""), "{answer}");
        return false;
    }
    true
}

/// Watches the resident size of a process.
struct Sampler {
    most: Arc<AtomicU64>,
    stops: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sampler {
    fn new(pid: u32) -> Sampler {
        let (most, stops) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, is_over) = (Arc::clone(&most), Arc::clone(&stops));
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                seen.fetch_max(resident_size(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Sampler { most, stops, thread: Some(thread) }
    }

    fn most(mut self) -> u64 {
        self.stops.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("it has no panic");
        self.most.load(Ordering::Relaxed)
    }
}

/// `VmRSS` of proc(5).
fn resident_size(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let digits = line.trim().strip_suffix("kB").expect("in KiB").trim();
    digits.parse::<u64>().expect("a number") * 1024
}

fn show(cluster: &Cluster, pid: u32, when: &str) {
    let metric = |name: &str| cluster.metric("edge", name).expect("it answers");
    println!(
        "{when}: {} KiB resident, {} KiB used, pressure {}, sockets {} KiB, their buffers {} KiB, \
         queues {} KiB, unseen {} KiB, {} behind",
        resident_size(pid) / 1024,
        metric("aldis_memory_used_bytes") / 1024.0,
        metric("aldis_memory_pressure"),
        metric("aldis_memory_bytes{class=\"sockets\"}") / 1024.0,
        metric("aldis_memory_bytes{class=\"socket_buffers\"}") / 1024.0,
        metric("aldis_memory_bytes{class=\"queues\"}") / 1024.0,
        metric("aldis_memory_bytes{class=\"unseen\"}") / 1024.0,
        metric("aldis_behind_total"),
    );
}

/// Connects them all, and waits until each is synced.
fn open_readers(cluster: &Cluster) -> Vec<TcpStream> {
    let mut readers: Vec<TcpStream> = Vec::new();
    while readers.len() < READERS {
        let first = readers.len();
        for index in first..first + BURST {
            let (user, device) = (format!("user-{}", index % USERS), format!("device-{index}"));
            readers.push(ask(cluster, &user, &device));
        }
        for reader in &mut readers[first..] {
            let answer = read_until(reader, &["\"t\":\"synced\""]);
            assert!(answer.contains("\"t\":\"synced\""), "{first}: {answer}");
        }
    }
    readers
}

/// Two who read, and whoever writes to those who do not.
struct Others {
    alice: Client,
    bob: Client,
    writer: Client,
    slowest: Duration,
    count: usize,
}

impl Others {
    fn new(cluster: &Cluster) -> Others {
        Others {
            alice: Client::connect(&cluster.url("user=alice&device=phone")),
            bob: Client::connect_synced(&cluster.url("user=bob&device=phone")).0,
            writer: Client::connect(&cluster.url("user=writer&device=phone")),
            slowest: Duration::ZERO,
            count: 0,
        }
    }

    fn write_to_readers(&mut self, round: usize) {
        let body = "x".repeat(BODY_SIZE);
        for user in 0..USERS {
            let (to, id) = (format!("user-{user}"), format!("{round}-{user}"));
            self.writer.say(json!({"t": "send", "to": to, "id": id, "body": body}));
            self.writer.expect("sent");
        }
    }

    fn round_trip(&mut self) {
        let asked = Instant::now();
        self.count += 1;
        self.alice.send("bob", &format!("id-{}", self.count), "hello");
        assert_eq!(self.bob.expect("msg")["body"], "hello");
        self.slowest = self.slowest.max(asked.elapsed());
    }
}

#[test]
fn readers_that_never_read_do_not_exhaust_the_memory() {
    aldis::sys::raise_open_files_limit().expect("raising to the hard limit is allowed");
    let folder = tempfile::tempdir().expect("a folder");
    let budget = BUDGET.to_string();
    let environment =
        [("ALDIS_EDGE_MEMORY_BUDGET", &*budget), ("ALDIS_EDGE_HEARTBEAT_MS", "3600000")];
    let data = folder.path().join("data");
    let cluster = Cluster::start_with(data, &["--shards", "1"], &environment);
    let pid = cluster.child("edge").expect("it runs");
    let mut others = Others::new(&cluster);
    let readers = open_readers(&cluster);
    show(&cluster, pid, "all readers are there");

    let sampler = Sampler::new(pid);
    for round in 0..ROUNDS {
        others.write_to_readers(round);
        others.round_trip();
    }
    show(&cluster, pid, "all is said");
    assert!(!is_let_in(&cluster, "late"), "nobody is let in");
    let pressed = Instant::now();
    wait_until("the kernel's memory is within the budget too", PATIENCE, || {
        others.round_trip();
        let used = cluster.metric("edge", "aldis_memory_used_bytes");
        pressed.elapsed() > REST && used.is_some_and(|used| used <= BUDGET as f64)
    });
    show(&cluster, pid, &format!("{:?} later", pressed.elapsed()));
    let left = cluster.metric("edge", "aldis_connections").expect("it answers");
    let (most, slowest) = (sampler.most(), others.slowest);
    println!("at most {} KiB resident, {left} left, round trips below {slowest:?}", most / 1024);
    assert!(most <= BUDGET, "{most} bytes are more than {BUDGET}");
    assert!(left >= READERS as f64 / 4.0, "{left} connections are left");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    let refused = cluster.metric("edge", "aldis_refused_connections_total{reason=\"memory\"}");
    assert!(refused.is_some_and(|count| count >= 1.0), "{refused:?}");

    for reader in &readers {
        SockRef::from(reader).set_linger(Some(Duration::ZERO)).expect("it is a socket");
    }
    drop(readers);
    wait_until("there is room again", PATIENCE, || is_let_in(&cluster, "afterwards"));
    show(&cluster, pid, "the readers are gone");
    // The allocator gives back what was freed as it is used; an idle edge keeps it.
    wait_until("nobody is treated worse", PATIENCE, || {
        others.write_to_readers(ROUNDS + others.count);
        others.round_trip();
        cluster.metric("edge", "aldis_memory_pressure").is_some_and(|pressure| pressure <= 2.0)
    });
    others.round_trip();
}
