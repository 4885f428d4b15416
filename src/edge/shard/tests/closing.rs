//! How connections end, and what the application hears of it: once, with the reason.

use super::*;

#[test]
fn a_client_that_closes_is_answered_and_closed_first_by_the_server() {
    let mut stage = Stage::new();
    stage.open(7);
    let mut bytes = client_frame(Opcode::Text, b"last words");
    bytes.extend(client_frame(Opcode::Close, &close_payload(1000, "bye")));
    bytes.extend(client_frame(Opcode::Text, b"after the end"));
    stage.arrive(7, &bytes);
    let mut expected = server_frame(Opcode::Text, b"last words");
    expected.extend(server_frame(Opcode::Close, &close_payload(1000, "")));
    assert_eq!(stage.sent(), expected);
    assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
    assert_eq!(stage.told(), ["closed 0 Client"]);
    assert_eq!(stage.shard.connection_count(), 0);
}

#[test]
fn the_applications_close_waits_for_the_answer() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.arrive(7, &client_frame(Opcode::Text, b"close me"));
    let close = server_frame(Opcode::Close, &close_payload(4001, "replaced"));
    assert_eq!(stage.sent(), close);
    assert_eq!(stage.told(), ["closed 0 Application"]);
    stage.arrive(7, &client_frame(Opcode::Text, b"not heard any more"));
    assert_eq!((stage.sent(), stage.closed()), (Vec::new(), Vec::new()));
    stage.arrive(7, &client_frame(Opcode::Close, &close_payload(4001, "")));
    assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
    assert_eq!(stage.told(), [""; 0]);
}

#[test]
fn without_an_answer_the_close_ends_after_a_second() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.arrive(7, &client_frame(Opcode::Text, b"close me"));
    stage.pass_ms(CLOSE_MS - 100);
    assert_eq!(stage.closed(), []);
    stage.pass_ms(200);
    assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
}

#[test]
fn a_violation_is_answered_with_its_code() {
    for (bytes, code) in [
        (&[0x83, 0x80, 0, 0, 0, 0][..], 1002),
        (&client_frame(Opcode::Text, b"\xff"), 1007),
        (&client_frame(Opcode::Binary, &[0; 100_001])[..14], 1009),
    ] {
        let mut stage = Stage::new();
        stage.open(7);
        stage.arrive(7, bytes);
        let sent = stage.sent();
        assert_eq!((sent[0], &sent[2..4]), (0x88, &u16::to_be_bytes(code)[..]));
        assert_eq!(stage.told(), ["closed 0 Violation"]);
        stage.arrive(7, b"\x01\x02 whatever else it says");
        assert_eq!(stage.closed(), []);
        let mut bytes = b"in the middle of something".to_vec();
        bytes.extend(client_frame(Opcode::Close, &close_payload(code, "")));
        stage.arrive(7, &bytes);
        assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
        assert_eq!(stage.told(), [""; 0]);
    }
}

#[test]
fn a_bad_close_frame_is_answered_and_nothing_more_is_awaited() {
    for payload in [&b"x"[..], &close_payload(1005, ""), b"\x03\xe8\xff", &[b'a'; 126]] {
        let mut stage = Stage::new();
        stage.open(7);
        stage.arrive(7, &client_frame(Opcode::Close, payload));
        assert_eq!(stage.sent()[0], 0x88);
        assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
        assert_eq!(stage.told(), ["closed 0 Violation"]);
    }
}

#[test]
fn silence_is_answered_by_a_ping_and_then_by_4002() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.pass_ms(20_000);
    stage.arrive(7, &client_frame(Opcode::Text, b"alive"));
    stage.sent();
    stage.pass_ms(29_900);
    assert_eq!(stage.sent(), b"");
    stage.pass_ms(200);
    assert_eq!(stage.sent(), server_frame(Opcode::Ping, b""));
    stage.arrive(7, PONG);
    stage.pass_ms(29_800);
    assert_eq!(stage.sent(), b"");
    stage.pass_ms(400);
    assert_eq!(stage.sent(), server_frame(Opcode::Ping, b""));
    stage.pass_ms(30_100);
    let close = server_frame(Opcode::Close, &close_payload(4002, "heartbeat missed"));
    assert_eq!(stage.sent(), close);
    assert_eq!(stage.told(), ["closed 0 Silent"]);
    stage.pass_ms(CLOSE_MS + 200);
    assert_eq!(stage.closed().len(), 1);
}

#[test]
fn a_failed_receive_or_send_loses_the_connection_at_once() {
    let mut stage = Stage::new();
    stage.open(7);
    let token = stage.ring().receives[&Socket::Direct(7)];
    stage.ring().complete(token, -libc::ECONNRESET, false, None);
    stage.settle();
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
    stage.open(8);
    stage.ring().holds_sends = true;
    stage.arrive(8, &client_frame(Opcode::Text, b"x"));
    let (token, _) = stage.ring().held.pop().expect("a send is held");
    stage.ring().complete(token, -libc::EPIPE, false, None);
    stage.settle();
    assert_eq!(stage.closed(), [(Socket::Direct(8), true)]);
    assert_eq!(stage.told(), ["closed 0 Lost"]);
}

#[test]
fn stopping_closes_everything_with_1001() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.accept(8);
    stage.shard.begin_stop();
    stage.settle();
    assert_eq!(stage.sent(), server_frame(Opcode::Close, &close_payload(1001, "going away")));
    assert_eq!(stage.closed(), [(Socket::Direct(8), false)]);
    stage.end_of_stream(7);
    assert_eq!(stage.closed(), [(Socket::Direct(7), false)]);
    assert_eq!(stage.told(), ["closed 0 Stopping"]);
    stage.accept(9);
    assert_eq!(stage.closed(), [(Socket::Direct(9), true)]);
}

#[test]
fn after_a_stall_the_peers_are_heard_before_they_are_judged() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.pass_ms(30_100);
    assert_eq!(stage.sent(), server_frame(Opcode::Ping, b""));
    stage.now.monotonic_us += 60_000_000;
    stage.settle();
    stage.pass_ms(STALL_MS / 2);
    stage.arrive(7, PONG);
    stage.pass_ms(STALL_MS);
    assert_eq!(stage.told(), [""; 0]);
    stage.now.monotonic_us += 100_000_000;
    stage.settle();
    stage.pass_ms(2 * STALL_MS);
    stage.pass_ms(61_000);
    assert_eq!(stage.told(), ["closed 0 Silent"]);
}
