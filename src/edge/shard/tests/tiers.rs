//! Idle and busy connections, and how they change.

use super::super::super::tiers::Tiers;
use super::*;

const SOCKET: Socket = Socket::Direct(7);

fn stage(promote_after: u8) -> Stage {
    let tiers = Tiers { promote_after, quiet_ms: 1_000 };
    Stage::with(ShardOptions { tiers, ..ShardOptions::default() })
}

/// An open connection of the busy tier.
fn busy() -> Stage {
    let mut stage = stage(3);
    stage.open_busy(7);
    stage
}

#[test]
fn an_idle_connection_polls_and_receives_when_readable() {
    let mut stage = stage(3);
    stage.open(7);
    for _ in 0..5 {
        stage.pass_ms(1_100);
        stage.arrive(7, &client_frame(Opcode::Text, b"x"));
        assert_eq!(stage.sent(), server_frame(Opcode::Text, b"x"));
        let asked = std::mem::take(&mut stage.ring().asked);
        assert_eq!(asked[asked.len() - 2..], [(SOCKET, Armed::Once), (SOCKET, Armed::Poll)]);
        stage.ring().asked.push((SOCKET, Armed::Poll));
    }
    assert_eq!(stage.shard.counters().promoted, 0);
}

#[test]
fn who_is_heard_often_is_busy_until_he_is_quiet() {
    let mut stage = busy();
    let bytes = client_frame(Opcode::Text, b"x");
    let token = stage.ring().receives[&SOCKET];
    for _ in 0..5 {
        stage.pass_ms(900);
        stage.ring().arrive(token, &bytes, true);
        stage.settle();
    }
    assert_eq!(stage.ring().armed(SOCKET), Armed::Stream, "still the first one");
    assert_eq!(stage.ring().cancelled, []);
    stage.pass_ms(1_300);
    assert_eq!(stage.ring().cancelled, [token]);
    assert_eq!(stage.ring().armed(SOCKET), Armed::Poll);
    let counters = stage.shard.counters();
    assert_eq!((counters.promoted, counters.calmed), (1, 1));
    // And it is heard as before.
    stage.sent();
    stage.arrive(7, &bytes);
    assert_eq!(stage.sent(), server_frame(Opcode::Text, b"x"));
}

#[test]
fn bytes_that_come_while_a_receive_is_being_ended_are_heard() {
    let mut stage = busy();
    let token = stage.ring().receives[&SOCKET];
    stage.pass_ms(900);
    stage.now.monotonic_us += 400_000;
    let now = stage.now;
    stage.shard.turn(&mut || now);
    assert_eq!(stage.ring().cancelled, [token]);
    // The kernel had taken them off the socket before it saw the cancel.
    let cancelled = stage.ring().pending.pop().expect("the end of the receive");
    stage.ring().arrive(token, &client_frame(Opcode::Text, b"x"), true);
    stage.ring().pending.push(cancelled);
    stage.settle();
    assert_eq!(stage.sent(), server_frame(Opcode::Text, b"x"));
    assert_eq!(stage.ring().armed(SOCKET), Armed::Poll);
}

#[test]
fn a_busy_receive_that_ended_with_bytes_is_armed_again() {
    let mut stage = busy();
    let token = stage.ring().receives[&SOCKET];
    stage.ring().asked.clear();
    stage.ring().arrive(token, &client_frame(Opcode::Text, b"x"), false);
    stage.settle();
    assert_eq!(stage.ring().asked, [(SOCKET, Armed::Stream)]);
    assert_eq!(stage.sent(), server_frame(Opcode::Text, b"x"));
}

#[test]
fn all_are_busy_for_ever_when_told_so() {
    let mut stage = stage(0);
    stage.open(7);
    stage.pass_ms(20_000);
    assert_eq!(stage.ring().asked, [(SOCKET, Armed::Stream)]);
    assert_eq!(stage.ring().cancelled, []);
    assert_eq!(stage.shard.counters().calmed, 0);
}

#[test]
fn a_poll_that_completes_for_nothing_costs_a_receive_and_nothing_else() {
    let mut stage = stage(3);
    stage.open(7);
    let (token, armed) = stage.readable(7);
    assert_eq!(armed, Armed::Once);
    stage.pass_ms(5_000);
    assert_eq!(stage.ring().armed(SOCKET), Armed::Once, "it waits for bytes");
    stage.ring().arrive(token, PONG, false);
    stage.settle();
    assert_eq!(stage.ring().armed(SOCKET), Armed::Poll);
}

#[test]
fn a_connection_that_leaves_takes_its_poll_along() {
    let mut stage = stage(3);
    stage.open(7);
    let token = stage.ring().receives[&SOCKET];
    stage.pass_ms(100_000);
    assert!(stage.ring().cancelled.contains(&token));
    assert_eq!(stage.closed(), [(SOCKET, false)]);
    assert_eq!(stage.shard.connection_count(), 0);
}
