//! What leaves when: one send per turn and connection, bounded queues, slow clients.

use super::*;

#[test]
fn a_batch_of_pipelined_frames_is_answered_with_one_send() {
    let mut stage = Stage::new();
    stage.open_busy(7);
    let batch: Vec<u8> =
        (0..200u8).flat_map(|byte| client_frame(Opcode::Binary, &[byte; 20])).collect();
    let token = stage.ring().receives[&Socket::Direct(7)];
    for segment in batch.chunks(1_000) {
        stage.ring().arrive(token, segment, true);
    }
    stage.settle();
    assert_eq!(stage.ring().sends.len(), 1, "all segments of a turn together");
    let expected: Vec<u8> =
        (0..200u8).flat_map(|byte| server_frame(Opcode::Binary, &[byte; 20])).collect();
    assert_eq!(stage.sent(), expected);
    assert_eq!(stage.shard.counters().messages, 200);
}

#[test]
fn what_queues_behind_a_send_leaves_together() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    for _ in 0..50 {
        stage.arrive(7, &client_frame(Opcode::Text, b"again"));
    }
    stage.arrive(7, &client_frame(Opcode::Ping, b"!"));
    assert_eq!(stage.ring().sends.len(), 1);
    stage.ring().let_go();
    stage.settle();
    assert_eq!(stage.ring().sends.len(), 2);
    let sent = stage.sent();
    assert!(sent[7..].starts_with(&server_frame(Opcode::Pong, b"!")), "ahead of data");
    assert_eq!(sent.len(), 50 * 7 + 3);
}

#[test]
fn a_long_message_leaves_in_several_sends() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.arrive(7, &client_frame(Opcode::Binary, &[1; 100_000]));
    assert_eq!(stage.ring().sends.len(), 2);
    assert!(stage.sent() == server_frame(Opcode::Binary, &[1; 100_000]));
}

#[test]
fn a_client_that_reads_nothing_is_cut_at_its_bound() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    for _ in 0..10 {
        stage.arrive(7, &client_frame(Opcode::Binary, &[1; 50_000]));
    }
    assert_eq!(stage.shard.parts().0.full, 1, "what comes after the cut is not heard");
    assert_eq!(stage.told(), ["closed 0 Slow"]);
    assert_eq!(stage.shard.counters().slow, 1);
    stage.pass_ms(CLOSE_MS + 200);
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
}

#[test]
fn a_send_without_progress_is_cut() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Text, b"x"));
    for _ in 0..PROGRESS_MS / 1_000 - 1 {
        stage.pass_ms(1_000);
        stage.arrive(7, PONG);
    }
    assert_eq!(stage.told(), [""; 0]);
    stage.pass_ms(1_100);
    assert_eq!(stage.told(), ["closed 0 Slow"]);
    stage.pass_ms(CLOSE_MS + 200);
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
}

#[test]
fn a_cut_client_that_reads_after_all_hears_why() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Text, b"x"));
    stage.arrive(7, &client_frame(Opcode::Text, b"dropped"));
    stage.pass_ms(PROGRESS_MS + 200);
    stage.ring().let_go();
    stage.settle();
    let mut expected = server_frame(Opcode::Text, b"x");
    expected.extend(server_frame(Opcode::Close, &close_payload(4003, "slow")));
    assert_eq!(stage.sent(), expected);
}

#[test]
fn a_cut_inside_a_frame_says_nothing_more() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Binary, &[1; 100_000]));
    stage.pass_ms(PROGRESS_MS + 200);
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
    assert_eq!(stage.told(), ["closed 0 Slow"]);
    assert_eq!(stage.shard.counters().slow, 1);
}

#[test]
fn a_watched_queue_tells_when_it_is_empty() {
    let mut stage = Stage::new();
    stage.open(7);
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Text, b"x"));
    stage.arrive(7, &client_frame(Opcode::Text, b"watch me"));
    assert_eq!(stage.told(), [""; 0]);
    stage.ring().let_go();
    stage.settle();
    assert_eq!(stage.told(), ["drained 0"]);
    stage.arrive(7, &client_frame(Opcode::Text, b"watch me"));
    assert_eq!(stage.told(), ["drained 0"], "at once when it is empty already");
}
