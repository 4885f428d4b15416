//! What is different when memory is scarce, and what is not.

use super::*;

fn push(stage: &mut Stage, slot: u32, seq: u64) {
    let target = stage.target(slot, 1);
    stage.entry(ToEdge::Deliver { message: message(seq), targets: vec![target] });
}

#[test]
fn the_bound_of_being_behind_falls_with_what_is_left() {
    for (pressure, left, queued, is_behind) in [
        (Pressure::None, None, BEHIND_SIZE, false),
        (Pressure::None, None, BEHIND_SIZE + 1, true),
        (Pressure::Quiet, Some(0), BEHIND_SIZE, false),
        (Pressure::Behind, Some(160_000), 10_000, false),
        (Pressure::Behind, Some(160_000), 10_001, true),
        (Pressure::Behind, Some(usize::MAX), BEHIND_SIZE, false),
        (Pressure::Refuse, Some(0), 0, false),
        (Pressure::Refuse, Some(0), 1, true),
    ] {
        let mut stage = Stage::with_clients(&[0]);
        stage.audience.pressure = pressure;
        stage.audience.memory_left = left;
        stage.audience.queued.insert(id(0), queued);
        push(&mut stage, 0, 1);
        let expected = if is_behind { "behind" } else { "msg" };
        let heard = stage.heard_briefly(0);
        assert_eq!(heard, brief(&[(expected, None)]), "{pressure:?} {left:?} {queued}");
    }
}

#[test]
fn a_queue_of_answers_is_cut_earlier() {
    for (pressure, queued, is_cut) in [
        (Pressure::None, SLOW_SIZE, false),
        (Pressure::Behind, SLOW_SIZE / 8, false),
        (Pressure::Behind, SLOW_SIZE / 8 + 1, true),
    ] {
        let mut stage = Stage::with_clients(&[0]);
        stage.audience.pressure = pressure;
        stage.audience.queued.insert(id(0), queued);
        stage.say(0, r#"{"t":"ping"}"#);
        assert_eq!(!stage.audience.closes.is_empty(), is_cut, "{pressure:?} {queued}");
    }
}

/// A body of 64 KiB: sixteen are over the floor.
fn large_frame(reference: i64) -> String {
    send_frame(reference, &format!("id-{reference}"))
        .replace("\"x\"", &format!("{:?}", "x".repeat(65_536)))
}

#[test]
fn without_memory_a_few_operations_are_taken_and_the_rest_is_unavailable() {
    let mut stage = Stage::with_clients(&[0]);
    stage.audience.pressure = Pressure::Refuse;
    stage.audience.memory_left = Some(0);
    for reference in 1..=16 {
        stage.say(0, &large_frame(reference));
    }
    let heard = stage.heard(0);
    assert_eq!((&heard[0]["code"], &heard[0]["ref"]), (&"unavailable".into(), &16.into()));
    let to = stage.number_of_send("id-1");
    stage.sent(to, 1);
    stage.say(0, &send_frame(17, "small"));
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(1))]), "taken up");
}

#[test]
fn without_memory_whoever_talks_before_the_welcome_is_told_to_come_later() {
    let mut stage = Stage::connected();
    stage.audience.pressure = Pressure::Refuse;
    stage.audience.memory_left = Some(0);
    for slot in 0..4 {
        stage.open(slot);
        for reference in 0..5 {
            stage.say(slot, &large_frame(reference));
        }
    }
    assert_eq!(stage.audience.closes, [(id(3), 1013)]);
}

#[test]
fn what_is_parked_or_unanswered_is_held_until_it_is_not() {
    let mut stage = Stage::connected();
    assert_eq!(stage.router.held().operations, 0);
    stage.open(0);
    stage.open(1);
    let opening = stage.router.held();
    stage.say(0, &send_frame(1, "a"));
    stage.say(1, &send_frame(1, "b"));
    let parked = stage.router.held();
    assert!(parked.operations >= opening.operations + 256, "{parked:?} after {opening:?}");
    assert_eq!(parked.sessions, opening.sessions);
    stage.welcome(0);
    let to = stage.number_of_send("a");
    stage.sent(to, 1);
    stage.run(|router, around| router.closed(id(1), None, around));
    let rest = stage.router.held().operations;
    assert!(rest < opening.operations, "{rest}: a request for a session at most");
    stage.welcome(1);
    assert_eq!(stage.router.held().operations, 0);
}

#[test]
fn without_memory_those_who_are_behind_get_their_backlog_one_after_the_other() {
    let mut stage = Stage::with_clients(&[0, 1, 2]);
    stage.audience.pressure = Pressure::Refuse;
    stage.audience.memory_left = Some(0);
    stage.audience.is_full_of_queues = true;
    let mut large = message(1);
    large.body = Body::Text { text: Bytes::from(vec![b'x'; 3_000]) };
    let targets = [0, 1, 2].map(|slot| stage.target(slot, 1));
    stage.entry(ToEdge::Deliver { message: large, targets: targets.into() });
    for slot in [0, 1, 2] {
        assert_eq!(stage.heard_briefly(slot), brief(&[("behind", None)]));
        let target = stage.target(slot, 2);
        stage.entry(ToEdge::Backlog { target, messages: Vec::new(), wants_room: true });
        stage.run(|router, around| router.drained(id(slot), around));
    }
    push(&mut stage, 1, 2);
    assert_eq!(stage.heard_briefly(1), brief(&[("msg", None)]), "what is small passes");
    stage.submitted();
    stage.tick_after(1);
    assert_eq!(stage.submitted(), [""; 0]);
    stage.audience.is_full_of_queues = false;
    for _ in 0..3 {
        stage.tick_after(20);
        assert_eq!(stage.submitted().len(), 1, "one each");
    }
    stage.tick_after(20);
    assert_eq!(stage.submitted(), [""; 0]);
}
