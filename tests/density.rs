//! What an idle chat connection costs: many of them in one shard of a real edge, each with a
//! session and synced, and how much larger its process is for them.
//!
//! The first thousand talk before they are idle, and so touch all of the receive buffers, which are
//! taken once and which all connections share. They leave free memory behind, too, that later ones
//! use: the truth about one connection is between the two numbers that are printed.
//!
//! `ALDIS_IDLE=15000` in release mode is the measurement (`.ci/stages/45-density`); the size that
//! runs with all other tests only shows that it works.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use support::cluster::Cluster;

/// Bytes of the edge's process for each connection, at most: all of its growth over the empty
/// one. 507 to 620 were measured (benches/record).
const WHOLE_MAX: u64 = 768;
/// The same beyond the first thousand: 9 to 234 were measured, for 1 MiB more or less that the
/// allocator keeps makes 75.
const FURTHER_MAX: u64 = 400;
/// Below this many a page more or less decides.
const COUNT_TELLING: u64 = 10_000;
/// The first ones, and how often each of them says something: more often than there are buffers,
/// altogether.
const FIRST_COUNT: u64 = 1_000;
const FIRST_ROUNDS: usize = 10;
/// Handshakes under way at a time.
const BURST: u64 = 200;
/// Connections of one client address: far from the number of its ports.
const PER_ADDRESS: u64 = 5_000;

#[test]
fn idle_connections_are_small() {
    let count =
        std::env::var("ALDIS_IDLE").ok().map_or(400, |text| text.parse().expect("a number"));
    aldis::sys::raise_open_files_limit().expect("raising to the hard limit is allowed");
    let folder = tempfile::tempdir().expect("a folder");
    // These clients answer no heartbeat.
    let patient = [("ALDIS_EDGE_HEARTBEAT_MS", "3600000")];
    let data = folder.path().join("data");
    let cluster = Cluster::start_with(data, &["--shards", "1"], &patient);
    let pids = ["edge", "sequencer"].map(|name| cluster.child(name).expect("it runs"));
    let empty = pids.map(resident_size);
    let first_count = FIRST_COUNT.min(count / 2);
    let mut clients = Vec::new();
    open(&mut clients, &cluster, first_count);
    for _ in 0..FIRST_ROUNDS {
        all_answer(&mut clients);
    }
    let first = pids.map(resident_size);
    open(&mut clients, &cluster, count);
    let all = pids.map(resident_size);
    let per_connection = |index: usize| {
        let whole = all[index].saturating_sub(empty[index]) / count;
        let further = all[index].saturating_sub(first[index]) / (count - first_count);
        (whole, further)
    };
    println!("{count} idle chat connections in one shard");
    for (index, name) in ["edge", "sequencer"].into_iter().enumerate() {
        let [empty, first, all] = [empty, first, all].map(|sizes| sizes[index] / 1024);
        let (whole, further) = per_connection(index);
        println!(
            "{name}: {empty} KiB empty, {first} KiB with {first_count}, {all} KiB with all: \
             {whole} bytes for each, {further} for each beyond the first {first_count}"
        );
    }
    assert_eq!(cluster.metric("edge", "aldis_connections"), Some(count as f64));
    all_answer(&mut clients);
    clients.iter().for_each(reset_at_close);
    if count >= COUNT_TELLING {
        let (whole, further) = per_connection(0);
        assert!(whole <= WHOLE_MAX, "{whole} bytes are more than {WHOLE_MAX}");
        assert!(further <= FURTHER_MAX, "{further} bytes are more than {FURTHER_MAX}");
    }
}

/// Connects further users until there are so many, and waits until each is synced.
fn open(clients: &mut Vec<TcpStream>, cluster: &Cluster, count: u64) {
    let address: SocketAddr = cluster.address.parse().expect("an address");
    while (clients.len() as u64) < count {
        let first = clients.len() as u64;
        let last = (first + BURST).min(count);
        clients.extend((first..last).map(|index| begin(address, index)));
        for client in &mut clients[first as usize..] {
            read_until(client, "\"t\":\"synced\"");
        }
    }
}

fn begin(address: SocketAddr, index: u64) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source: SocketAddr = format!("127.0.0.{}:0", 2 + index / PER_ADDRESS).parse().expect("one");
    socket.bind(&SockAddr::from(source)).expect("a free port");
    socket.connect(&SockAddr::from(address)).expect("the edge accepts");
    let mut client = TcpStream::from(socket);
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let request = format!(
        "GET /v1/connect?user=user-{index}&device=phone HTTP/1.1\r\nHost: {address}\r\n\
         Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    client.write_all(request.as_bytes()).expect("it takes the request");
    client
}

/// Every one of them is still there: a masked ping with an empty payload has its pong.
fn all_answer(clients: &mut [TcpStream]) {
    for client in clients {
        client.write_all(&[0x89, 0x80, 0, 0, 0, 0]).expect("it is open");
        read_until(client, "\u{8a}\0");
    }
}

/// Reads until this has come. Bytes are taken as characters of the same number.
fn read_until(client: &mut TcpStream, wanted: &str) {
    let (mut buffer, mut said) = ([0; 4096], String::new());
    while !said.contains(wanted) {
        match client.read(&mut buffer) {
            Ok(size) if size > 0 => {
                said.extend(buffer[..size].iter().map(|byte| char::from(*byte)));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            end => panic!("{end:?} instead of {wanted:?}, after {said:?}"),
        }
    }
}

/// So that no port waits for its last packets, which would be too few for the next run.
fn reset_at_close(client: &TcpStream) {
    SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("it is a socket");
}

/// Bytes of a process that are in memory (`VmRSS` of proc(5)).
fn resident_size(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let digits = line.trim().strip_suffix("kB").expect("in KiB").trim();
    digits.parse::<u64>().expect("a number") * 1024
}
