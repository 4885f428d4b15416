//! Every bound answers `unavailable` with when to come back, and forgets nothing silently.

use super::connection::{OUTSTANDING_SIZE_MAX, PARKED_COUNT_MAX};
use super::requests::{IN_FLIGHT_COUNT_MAX, IN_FLIGHT_SIZE_MAX};
use super::*;

#[test]
fn a_full_link_makes_everything_wait_in_order() {
    let mut stage = Stage::with_clients(&[0, 1]);
    stage.script.full = true;
    stage.say(0, &send_frame(1, "a"));
    stage.say(0, &send_frame(2, "b"));
    stage.run(|router, around| router.closed(id(1), around));
    stage.tick_after(10);
    stage.script.full = false;
    stage.say(0, &send_frame(3, "c"));
    assert!(stage.submitted().is_empty(), "what waits goes first");
    stage.tick_after(10);
    assert_eq!(stage.submitted(), ["send a", "send b", "close 1 1", "send c"]);
}

#[test]
fn an_operation_waits_for_the_link_only_so_long() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, &send_frame(1, "in the sequencer's hands"));
    stage.ended();
    stage.say(0, &send_frame(2, "a"));
    stage.tick_after(10_000);
    stage.say(0, &send_frame(3, "b"));
    stage.say(0, r#"{"t":"ping","ref":4}"#);
    stage.tick_after(WAIT_MS_MAX - 10_000);
    let heard = stage.heard(0);
    let wanted = [(1, "in the sequencer's hands"), (2, "a")];
    for (frame, (reference, id)) in heard.iter().zip(wanted) {
        assert_eq!((&frame["code"], &frame["ref"]), (&"unavailable".into(), &reference.into()));
        assert_eq!((&frame["id"], &frame["retry_ms"]), (&id.into(), &RETRY_MS.into()));
    }
    assert_eq!(heard.len(), 2);
    stage.submitted();
    stage.began();
    assert_eq!(stage.submitted_kept(), ["retell 0", "retold", "send b"]);
    let b = stage.number_of_send("b");
    stage.sent(b, 1);
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(3)), ("pong", Some(4))]));
    assert_eq!(stage.router.counters().expired, 2);
}

#[test]
fn what_the_sequencer_has_does_not_expire() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, &send_frame(1, "a"));
    let to = stage.number_of_send("a");
    stage.tick_after(10 * WAIT_MS_MAX);
    assert!(stage.heard(0).is_empty());
    stage.sent(to, 1);
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(1))]));
}

#[test]
fn a_request_for_a_session_waits_as_long_as_it_takes() {
    let mut stage = Stage::alone();
    stage.open(0);
    stage.tick_after(10 * WAIT_MS_MAX);
    stage.began();
    stage.welcome(0);
    assert_eq!(stage.heard_briefly(0), brief(&[("welcome", None)]));
}

#[test]
fn a_connection_has_only_so_many_operations_unanswered() {
    let mut stage = Stage::with_clients(&[0, 1]);
    for index in 0..OUTSTANDING_COUNT_MAX {
        stage.say(0, &send_frame(index as i64, "a"));
    }
    assert!(stage.heard(0).is_empty());
    for (frame, id) in [(send_frame(-1, "over"), Some("over")), (r#"{"t":"sync"}"#.into(), None)] {
        stage.say(0, &frame);
        let heard = stage.heard(0);
        assert_eq!(
            (&heard[0]["code"], &heard[0]["limit"]),
            (&"unavailable".into(), &16_384.into())
        );
        assert_eq!((heard[0]["id"].as_str(), heard[0]["retry_ms"].as_u64()), (id, Some(RETRY_MS)));
    }
    stage.say(1, r#"{"t":"ping"}"#);
    assert_eq!(stage.heard_briefly(1), brief(&[("pong", None)]), "the others are not concerned");
    let to = stage.number_of_send("a");
    stage.sent(to, 1);
    stage.say(0, &send_frame(-2, "again"));
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(16_383))]));
    assert_eq!(stage.router.counters().overloaded, 2);
}

#[test]
fn a_connection_has_only_so_many_bytes_unanswered() {
    let mut stage = Stage::with_clients(&[0]);
    let body = "x".repeat(65_536);
    let frame = format!(r#"{{"t":"send","to":"bob","id":"a","body":"{body}"}}"#);
    let count = OUTSTANDING_SIZE_MAX / (65_536 + 128);
    for _ in 0..count {
        stage.say(0, &frame);
    }
    assert!(stage.heard(0).is_empty());
    stage.say(0, &frame);
    assert_eq!(stage.heard(0)[0]["code"], "unavailable");
    assert_eq!(stage.submitted().len(), count);
}

#[test]
fn what_waits_for_the_welcome_is_bounded() {
    let mut stage = Stage::connected();
    stage.open(0);
    for index in 0..PARKED_COUNT_MAX + 1 {
        stage.say(0, &send_frame(index as i64, "a"));
    }
    stage.say(0, r#"{"t":"ping","ref":-1}"#);
    stage.welcome(0);
    let heard = stage.heard(0);
    let codes: Vec<_> = heard.iter().map(|frame| frame["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("unavailable"), Some("unavailable")]);
    assert_eq!((&heard[1]["ref"], &heard[1]["id"]), (&PARKED_COUNT_MAX.into(), &"a".into()));
    assert_eq!(heard[2]["ref"], -1);
    assert_eq!(stage.submitted().len(), 2 + PARKED_COUNT_MAX);
}

#[test]
fn a_flood_before_the_welcome_is_cut() {
    let mut stage = Stage::connected();
    stage.open(0);
    for _ in 0..2 * PARKED_COUNT_MAX {
        stage.say(0, "garbage");
    }
    assert!(stage.audience.closes.is_empty());
    stage.say(0, "garbage");
    assert_eq!(stage.audience.closes, [(id(0), 1013)]);
}

#[test]
fn the_sequencer_has_only_so_many_requests_at_a_time_and_a_lasting_overload_is_refused() {
    let clients: Vec<u32> = (0..5).collect();
    let mut stage = Stage::with_clients(&clients);
    let share = IN_FLIGHT_COUNT_MAX / 4;
    for client in 0..4 {
        for _ in 0..share {
            stage.say(client, &send_frame(1, "a"));
        }
    }
    let to = stage.number_of_send("a");
    assert_eq!(stage.submitted().len(), IN_FLIGHT_COUNT_MAX);
    stage.say(4, &send_frame(2, "waits"));
    stage.tick_after(1_999);
    assert!(stage.heard(4).is_empty() && stage.submitted().is_empty());
    stage.tick_after(1);
    stage.say(4, &send_frame(3, "refused"));
    let refused = &stage.heard(4)[0];
    assert_eq!((&refused["code"], &refused["ref"]), (&"unavailable".into(), &3.into()));
    assert_eq!(refused["retry_ms"].as_u64(), Some(RETRY_MS));
    stage.sent(to, 1);
    assert_eq!(stage.submitted(), ["send waits"]);
    // A new session is given everything again, as far as it may have it.
    stage.ended();
    stage.began();
    let again = stage.submitted().iter().filter(|it| it.starts_with("send")).count();
    assert_eq!(again, IN_FLIGHT_COUNT_MAX);
}

#[test]
fn the_sequencer_has_only_so_many_bytes_of_requests_at_a_time() {
    let clients: Vec<u32> = (0..5).collect();
    let mut stage = Stage::with_clients(&clients);
    let body = "x".repeat(65_536);
    let frame = format!(r#"{{"t":"send","to":"bob","id":"a","body":"{body}"}}"#);
    for client in 0..5 {
        for _ in 0..OUTSTANDING_SIZE_MAX / (65_536 + 128) {
            stage.say(client, &frame);
        }
    }
    assert_eq!(stage.submitted().len(), IN_FLIGHT_SIZE_MAX / (65_536 + 128));
}
