//! Who is let in by a real edge: the cap, the rate, the addresses, and slow requests.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use support::{Client, Cluster};

const PATIENCE: Duration = Duration::from_secs(30);
const SLOW_COUNT: usize = 1_000;

fn start(folder: &tempfile::TempDir, environment: &[(&str, &str)]) -> Cluster {
    Cluster::start_with(folder.path().join("data"), &["--shards", "1"], environment)
}

/// A connection from an address of this machine.
fn dial(cluster: &Cluster, from: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source: SocketAddr = format!("{from}:0").parse().expect("an address");
    socket.bind(&SockAddr::from(source)).expect("a free port");
    let address: SocketAddr = cluster.address.parse().expect("an address");
    socket.connect(&SockAddr::from(address)).expect("the edge accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn upgrade(cluster: &Cluster, user: &str) -> String {
    format!(
        "GET /v1/connect?user={user} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        cluster.address
    )
}

/// Asks to be let in, and the head of the answer with the body of a refusal.
fn ask(cluster: &Cluster, from: &str, user: &str) -> (TcpStream, String) {
    let mut stream = dial(cluster, from);
    // The refused may have been told before they ask.
    let _told = stream.write_all(upgrade(cluster, user).as_bytes());
    let (mut answer, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        let size = stream.read(&mut buffer).expect("an answer");
        answer.extend_from_slice(&buffer[..size]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let is_whole = text.contains("\r\n\r\n") && (is_in(&text) || text.ends_with('}'));
        if size == 0 || is_whole {
            return (stream, text);
        }
    }
}

fn is_in(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 101 ")
}

/// Checks a refusal's form; the seconds after which to come again.
fn retry_after_s(answer: &str, status: &str, code: &str) -> u64 {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["code"], code, "{answer}");
    let line = head.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    line.expect("when to come again").parse().expect("seconds")
}

fn refused(cluster: &Cluster, reason: &str) -> Option<f64> {
    cluster.metric("edge", &format!("aldis_refused_connections_total{{reason=\"{reason}\"}}"))
}

#[test]
fn over_the_cap_clients_hear_503_until_somebody_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, &[("ALDIS_EDGE_CONNECTIONS", "5")]);
    let mut inside: Vec<Client> =
        (0..5).map(|index| Client::connect(&cluster.url(&format!("user=user-{index}")))).collect();
    for index in 0..10 {
        let (_, answer) = ask(&cluster, "127.0.0.1", &format!("late-{index}"));
        assert!((2..10).contains(&retry_after_s(&answer, "503", "full")), "{answer}");
    }
    let refused_count = refused(&cluster, "full");
    assert!(refused_count.is_some_and(|count| count >= 10.0), "{refused_count:?}");
    inside.pop();
    let started = Instant::now();
    while !is_in(&ask(&cluster, "127.0.0.1", "later").1) {
        assert!(started.elapsed() < PATIENCE, "there is room again");
        std::thread::sleep(Duration::from_millis(20));
    }
    inside.iter_mut().for_each(Client::barrier);
}

#[test]
fn over_the_rate_clients_hear_429_and_come_in_when_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, &[("ALDIS_EDGE_HANDSHAKES_PER_SECOND", "20")]);
    std::thread::sleep(Duration::from_millis(1_100));
    let started = Instant::now();
    let mut asked = 0;
    let wait_s = loop {
        let (_, answer) = ask(&cluster, "127.0.0.1", "alice");
        if !is_in(&answer) {
            break retry_after_s(&answer, "429", "rate_limited");
        }
        asked += 1;
    };
    let most = 20.0 + started.elapsed().as_secs_f64() * 20.0;
    assert!(asked >= 20 && f64::from(asked) <= most, "{asked} of at most {most}");
    assert_eq!(wait_s, 1);
    let count = refused(&cluster, "rate");
    assert!(count.is_some_and(|count| count >= 1.0), "{count:?}");
    std::thread::sleep(Duration::from_secs(wait_s));
    assert!(is_in(&ask(&cluster, "127.0.0.1", "alice").1));
}

#[test]
fn an_address_has_its_connections_and_others_have_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, &[("ALDIS_EDGE_CONNECTIONS_PER_ADDRESS", "3")]);
    let mut inside = Vec::new();
    for index in 0..3 {
        let (stream, answer) = ask(&cluster, "127.0.0.9", &format!("user-{index}"));
        assert!(is_in(&answer), "{answer}");
        inside.push(stream);
    }
    for _ in 0..50 {
        let (_, answer) = ask(&cluster, "127.0.0.9", "one-more");
        retry_after_s(&answer, "429", "rate_limited");
    }
    for host in 10..60 {
        let (stream, answer) = ask(&cluster, &format!("127.0.0.{host}"), &format!("host-{host}"));
        assert!(is_in(&answer), "{answer}");
        inside.push(stream);
    }
    let count = refused(&cluster, "address");
    assert!(count.is_some_and(|count| count >= 50.0), "{count:?}");
    drop(inside.remove(0));
    let started = Instant::now();
    while !is_in(&ask(&cluster, "127.0.0.9", "later").1) {
        assert!(started.elapsed() < PATIENCE, "there is room again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A thousand send a byte a second. Each is cut after ten seconds, and a client is served beside
/// them all the time, as new ones are.
#[test]
fn a_thousand_slow_requests_harm_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(&folder, &[]);
    aldis::sys::raise_open_files_limit().expect("raising to the hard limit is allowed");
    let mut alice = Client::connect(&cluster.url("user=alice&device=phone"));
    let mut slow: Vec<TcpStream> = (0..SLOW_COUNT).map(|_| dial(&cluster, "127.0.0.2")).collect();
    let request = upgrade(&cluster, "slow");
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for second in 0..14 {
        for stream in &mut slow {
            // It fails once they are cut, which is what is asked for below.
            let _cut = stream.write_all(&request.as_bytes()[second..=second]);
        }
        let asked = Instant::now();
        assert_eq!(alice.send("bob", &format!("id-{second}"), "hello")["seq"], second + 1);
        slowest = slowest.max(asked.elapsed());
        let mut bob = Client::connect(&cluster.url(&format!("user=bob-{second}&device=phone")));
        bob.barrier();
        let next = Duration::from_secs(second as u64 + 1);
        std::thread::sleep(next.saturating_sub(started.elapsed()));
    }
    println!("the slowest answer took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    for stream in &mut slow {
        let end = stream.read(&mut [0; 64]).map_err(|error| error.kind());
        assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    }
    let count = cluster.metric("edge", "aldis_handshake_timeouts_total");
    assert_eq!(count, Some(SLOW_COUNT as f64));
}
