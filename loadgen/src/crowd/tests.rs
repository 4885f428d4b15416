//! A crowd against a server of a few lines.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Instant;

use orders::count;

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(20);

fn plan(target: Target, count: usize) -> CrowdPlan {
    CrowdPlan {
        target,
        clock: Clock(Instant::now()),
        count,
        thread_count_max: 2,
        first_position: 35,
        path: None,
        run: "r".to_owned(),
        window: 8,
        ramp: None,
        spread: Duration::ZERO,
        churn: 0.0,
        beat: None,
        receive_buffer: None,
    }
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Accepts one connection and reads its request; returns its first line.
fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut peer, _) = listener.accept().expect("it connects");
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        peer.read_exact(&mut byte).expect("it asks");
        request.push(byte[0]);
    }
    let text = String::from_utf8(request).expect("ASCII");
    let line = text.lines().next().expect("a line").to_owned();
    (peer, line)
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, payload.len() as u8];
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn users_have_names_of_their_own() {
    assert_eq!(base_36(0), "0");
    assert_eq!(base_36(35), "z");
    assert_eq!(base_36(36 * 36), "100");
    assert!(user_name("mf3k2a9z", 9_999_999).len() <= 16);
    let plan = plan("127.0.0.1:1".parse().expect("an address"), 5);
    assert_eq!(deal(&plan), [35..36, 36..38, 38..40]);
}

/// Remembers what it heard.
struct Heard<'a>(&'a Mutex<Vec<(usize, Vec<u8>)>>);

impl Hearing for Heard<'_> {
    fn message(&mut self, slot: usize, payload: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().expect("whole").push((slot, payload.to_vec()));
        (payload == b"ask").then(|| b"told".to_vec())
    }
}

#[test]
fn members_are_welcomed_answer_pings_and_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("bound").to_string().parse().expect("an address");
    let plan = plan(target, 1);
    let (orders, tally, heard) = (Orders::new(), Tally::default(), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let crowd = start(scope, &plan, &orders, &tally, |_| Heard(&heard));
        let (mut peer, line) = accept(&listener);
        assert_eq!(line, "GET /v1/connect?user=r-z&device=l HTTP/1.1");
        // In pieces, and a frame behind the response.
        peer.write_all(&UPGRADED[..20]).expect("it is there");
        thread::sleep(Duration::from_millis(20));
        let rest = [&UPGRADED[20..], &frame(0x81, br#"{"t":"welcome"}"#)[..5]].concat();
        peer.write_all(&rest).expect("it is there");
        assert_eq!(count(&tally.open), 0);
        peer.write_all(&frame(0x81, br#"{"t":"welcome"}"#)[5..]).expect("it is there");
        wait_for("the welcome", || count(&tally.open) == 1);
        peer.write_all(&[frame(0x89, b"p"), frame(0x81, b"ask")].concat()).expect("there");
        let mut pong = [0; 7];
        peer.read_exact(&mut pong).expect("it answers");
        assert_eq!((pong[0], pong[1], pong[6] ^ pong[2]), (0x8a, 0x81, b'p'));
        let mut told = [0; 10];
        peer.read_exact(&mut told).expect("it answers");
        assert_eq!(told[..2], [0x81, 0x84]);
        // A close is a loss; it comes back, is refused, and comes back again.
        peer.write_all(&frame(0x88, &[0x03, 0xe9])).expect("it is there");
        let (mut second, _) = accept(&listener);
        assert_eq!((count(&tally.open), count(&tally.lost)), (0, 1));
        second.write_all(b"HTTP/1.1 503 Busy\r\n\r\n").expect("it is there");
        let (mut third, _) = accept(&listener);
        let welcome = frame(0x81, br#"{"t":"welcome"}"#);
        third.write_all(&[UPGRADED, &welcome].concat()).expect("it is there");
        wait_for("the return", || count(&tally.open) == 1);
        orders.give(Stage::Cut);
        let (_fourth, _) = accept(&listener);
        assert_eq!((count(&tally.cut), count(&tally.open)), (1, 0));
        orders.give(Stage::Leave);
        let outcomes: Vec<_> = crowd.into_iter().map(|thread| thread.join()).collect();
        let outcome = outcomes.into_iter().next().expect("one").expect("no panic").expect("good");
        assert_eq!((outcome.opening.len(), outcome.returning.len()), (1, 1));
    });
    assert_eq!(heard.lock().expect("whole").len(), 3);
    let troubles = tally.troubles();
    let said = |text: &str| troubles.iter().any(|(reason, _)| reason.contains(text));
    assert!(said("the server closed with 1001") && said("503"), "{troubles:?}");
    assert_eq!(count(&tally.retried), 1);
}
