//! From accept to open, plain requests, and what never gets there.

use super::*;

#[test]
fn frames_behind_the_request_in_one_segment_are_accepted() {
    let mut stage = Stage::new();
    stage.accept(7);
    let mut bytes = UPGRADE.to_vec();
    bytes.extend(client_frame(Opcode::Text, b"early"));
    stage.arrive(7, &bytes);
    let sent = stage.sent();
    assert!(sent.ends_with(&server_frame(Opcode::Text, b"early")));
    assert!(sent.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(stage.told(), ["opened 0"]);
}

#[test]
fn every_cut_of_a_conversation_is_answered_the_same() {
    let mut bytes = UPGRADE.to_vec();
    bytes.extend(client_frame(Opcode::Text, b"one"));
    bytes.extend(client_frame(Opcode::Binary, &[2; 200]));
    let whole = {
        let mut stage = Stage::new();
        stage.accept(7);
        stage.arrive(7, &bytes);
        stage.sent()
    };
    for cut in 1..bytes.len() {
        let mut stage = Stage::new();
        stage.accept(7);
        stage.arrive(7, &bytes[..cut]);
        stage.arrive(7, &bytes[cut..]);
        assert!(stage.sent() == whole, "cut at {cut}");
    }
    let mut stage = Stage::new();
    stage.accept(7);
    bytes.chunks(1).for_each(|byte| stage.arrive(7, byte));
    assert!(stage.sent() == whole);
}

#[test]
fn a_request_that_does_not_come_is_dropped_after_ten_seconds() {
    let mut stage = Stage::new();
    stage.accept(7);
    stage.pass_ms(HANDSHAKE_MS / 2);
    stage.arrive(7, &UPGRADE[..20]);
    stage.pass_ms(HANDSHAKE_MS / 2 - 100);
    assert_eq!(stage.closed(), []);
    stage.pass_ms(200);
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
    assert_eq!(stage.told(), [""; 0]);
    assert_eq!(stage.shard.connection_count(), 0);
}

#[test]
fn a_plain_request_is_answered_and_closed_at_once() {
    let mut stage = Stage::new();
    stage.accept(7);
    let request = b"POST /plain HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for piece in request.chunks(30) {
        assert_eq!(stage.closed(), []);
        stage.arrive(7, piece);
    }
    let text = stage.sent_text();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nhello"));
    assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
}

#[test]
fn what_is_malformed_or_too_large_is_refused() {
    for (request, status) in [
        (&b"nonsense\r\n\r\n"[..], "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "426"),
        (b"POST /plain HTTP/1.1\r\nContent-Length: 101\r\n\r\n", "413"),
        (&[b'a'; 9000], "431"),
    ] {
        let mut stage = Stage::new();
        stage.accept(7);
        stage.arrive(7, request);
        let text = stage.sent_text();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        if stage.ring().closed.is_empty() {
            stage.end_of_stream(7);
        }
        assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
    }
}

#[test]
fn over_the_cap_the_answer_is_503_and_never_a_hang() {
    let mut stage = Stage::new();
    stage.open(0);
    stage.open(1);
    stage.accept(2);
    let text = stage.sent_text();
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("\r\nRetry-After: "), "{text}");
    stage.arrive(2, UPGRADE);
    assert_eq!(stage.sent(), b"");
    stage.pass_ms(CLOSE_MS + 100);
    assert_eq!(stage.closed(), [(Socket::Direct(2), false)]);
    for socket in 2..2 + SPARE_COUNT as u32 {
        stage.accept(socket);
    }
    assert_eq!(stage.closed(), []);
    stage.accept(1_000);
    assert_eq!(stage.closed(), [(Socket::Direct(1_000), true)]);
    assert_eq!(stage.shard.counters().refused, [2 + SPARE_COUNT as u64, 0, 0, 0]);
}

#[test]
fn an_accept_that_ended_is_armed_again_and_a_failed_one_later() {
    let mut stage = Stage::new();
    let token = stage.ring().accepts[0];
    stage.ring().complete(token, 7, false, None);
    stage.settle();
    assert_eq!(stage.ring().accepts.len(), 2);
    stage.ring().complete(token, -libc::ENFILE, false, None);
    stage.settle();
    assert_eq!(stage.ring().accepts.len(), 2);
    stage.pass_ms(ACCEPT_RETRY_MS);
    assert_eq!(stage.ring().accepts.len(), 3);
}

#[test]
fn a_starved_receive_is_armed_again_when_buffers_are_free() {
    let mut stage = Stage::new();
    stage.accept(7);
    let token = stage.ring().receives[&Socket::Direct(7)];
    stage.ring().has_no_buffers = true;
    stage.ring().complete(token, -libc::ENOBUFS, false, None);
    stage.settle();
    stage.pass_ms(200);
    let once = (Socket::Direct(7), Armed::Once);
    assert_eq!(stage.ring().asked, [once]);
    stage.ring().has_no_buffers = false;
    stage.settle();
    assert_eq!(stage.ring().asked, [once; 2]);
    assert_eq!(stage.shard.counters().starved, 1);
}

#[test]
fn completions_of_an_earlier_life_are_dropped_and_counted() {
    let mut stage = Stage::new();
    stage.open(7);
    let token = stage.ring().receives[&Socket::Direct(7)];
    stage.end_of_stream(7);
    assert_eq!(stage.told(), ["closed 0 Lost"]);
    stage.open(7);
    let bytes = client_frame(Opcode::Text, b"ghost");
    stage.ring().arrive(token, &bytes, true);
    stage.settle();
    assert_eq!(stage.sent(), b"");
    assert_eq!(stage.shard.counters().stale, 1);
}
