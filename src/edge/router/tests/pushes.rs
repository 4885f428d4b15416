//! Pushes reach exactly whom they name, and a slow client costs only itself.

use serde_json::json;

use super::*;
use crate::link::message::Watermark;

fn deliver(stage: &mut Stage, seq: u64, targets: Vec<PushTarget>) {
    stage.entry(ToEdge::Deliver { message: message(seq), targets });
}

#[test]
fn a_message_reaches_all_its_targets() {
    let mut stage = Stage::with_clients(&[0, 1, 2]);
    let targets = vec![stage.target(0, 1), stage.target(2, 1)];
    deliver(&mut stage, 4, targets);
    let frame = json!({"t":"msg","convo":"dm:alice:bob","seq":4,"mid":"1004","from":"bob",
                       "id":"m","ts":9,"body":"hello"});
    for slot in [0, 2] {
        assert_eq!(stage.heard(slot), std::slice::from_ref(&frame));
    }
    assert!(stage.heard(1).is_empty());
    assert_eq!(stage.router.counters().pushed, 2);
}

#[test]
fn a_push_for_an_earlier_life_reaches_nobody() {
    let mut stage = Stage::with_clients(&[0]);
    stage.open(1);
    let good = stage.target(0, 1);
    let mut stale = vec![stage.target(1, 1), stage.target(99, 1), good, good, good];
    stale[2].address.incarnation += 1;
    stale[3].address.generation += 1;
    stale[4].session.counter += 1;
    let count = stale.len() as u64;
    for target in &stale {
        let target = *target;
        let messages = vec![message(1)];
        stage.entry(ToEdge::Backlog { target, messages, wants_room: true });
        stage.entry(ToEdge::Synced { target, to: 0, heads: Vec::new() });
        stage.entry(ToEdge::Replaced { target });
    }
    deliver(&mut stage, 1, stale);
    assert!(stage.audience.frames.is_empty());
    assert!(stage.audience.closes.is_empty());
    assert_eq!(stage.submitted(), ["open 1"]);
    assert_eq!(stage.router.counters().stale_pushes, 4 * count);
}

#[test]
fn a_connection_that_is_behind_gets_no_live_pushes_until_it_caught_up() {
    let mut stage = Stage::with_clients(&[0, 1]);
    let (slow, other) = (stage.target(0, 1), stage.target(1, 1));
    stage.audience.queued.insert(id(0), BEHIND_SIZE + 1);
    deliver(&mut stage, 1, vec![slow, other]);
    deliver(&mut stage, 2, vec![slow, other]);
    stage.audience.queued.insert(id(0), 0);
    deliver(&mut stage, 3, vec![slow, other]);
    assert_eq!(stage.heard(0), [json!({"t":"behind"})], "said once, and nothing after it");
    assert_eq!(stage.heard_briefly(1).len(), 3);
    assert_eq!(stage.submitted(), ["dropped 1 1", "dropped 2 1", "dropped 3 1"]);
    let target = stage.target(0, 2);
    let messages = vec![message(1), message(2), message(3)];
    stage.entry(ToEdge::Backlog { target, messages, wants_room: false });
    stage.entry(ToEdge::Synced { target, to: 0, heads: vec![("dm:alice:bob".into(), 3)] });
    deliver(&mut stage, 4, vec![target]);
    let heard: Vec<_> = stage.heard(0).into_iter().map(|frame| frame["seq"].clone()).collect();
    assert_eq!(heard, [json!(1), json!(2), json!(3), json!(null), json!(4)]);
    assert!(stage.submitted().is_empty());
    assert_eq!(stage.router.counters().behind, 1);
}

#[test]
fn a_backlog_asks_for_more_once_the_queue_has_drained() {
    let mut stage = Stage::with_clients(&[0]);
    let target = stage.target(0, 3);
    let backlog = || ToEdge::Backlog { target, messages: vec![message(1)], wants_room: true };
    stage.entry(backlog());
    assert_eq!(stage.submitted(), ["room 3"]);
    stage.audience.queued.insert(id(0), ROOM_SIZE + 1);
    stage.entry(backlog());
    assert!(stage.submitted().is_empty());
    assert_eq!(stage.audience.watched, [id(0)]);
    stage.run(|router, around| router.drained(id(0), around));
    stage.run(|router, around| router.drained(id(0), around));
    assert_eq!(stage.submitted(), ["room 3"], "asked for once");
}

#[test]
fn a_new_link_session_counts_catchings_up_anew() {
    let mut stage = Stage::with_clients(&[0]);
    let target = stage.target(0, 5);
    stage.audience.queued.insert(id(0), BEHIND_SIZE + 1);
    deliver(&mut stage, 1, vec![target]);
    let messages = vec![message(1)];
    stage.entry(ToEdge::Backlog { target, messages, wants_room: true });
    stage.began();
    stage.submitted();
    stage.audience.queued.insert(id(0), 0);
    stage.run(|router, around| router.drained(id(0), around));
    let target = stage.target(0, 1);
    deliver(&mut stage, 2, vec![target]);
    assert!(stage.submitted().is_empty());
    assert_eq!(stage.heard(0).last().map(|frame| frame["seq"].clone()), Some(json!(2)));
}

#[test]
fn receipts_and_replacement() {
    let mut stage = Stage::with_clients(&[0]);
    let target = stage.target(0, 1);
    let (convo, by, watermark) = ("team".into(), "bob".into(), Watermark::Delivered);
    stage.entry(ToEdge::Receipt { target, convo, seq: 2, watermark, by, tally: None });
    stage.entry(ToEdge::Replaced { target });
    assert_eq!(
        stage.heard(0),
        [
            json!({"t":"receipt","convo":"team","seq":2,"kind":"delivered","by":"bob"}),
            json!({"t":"goaway","reason":"replaced"}),
        ]
    );
    assert_eq!(stage.audience.closes, [(id(0), 4001)]);
    stage.run(|router, around| router.closed(id(0), None, around));
    assert_eq!(stage.router.counters().connections, 0);
    assert_eq!(stage.submitted(), ["lost 0 0 0"]);
}

#[test]
fn a_client_that_reads_nothing_is_cut() {
    let mut stage = Stage::with_clients(&[0, 1]);
    stage.audience.queued.insert(id(0), SLOW_SIZE + 1);
    stage.say(0, r#"{"t":"ping"}"#);
    assert_eq!(stage.audience.closes, [(id(0), 4003)]);
    stage.audience.full = true;
    let target = stage.target(1, 1);
    let messages = vec![message(1), message(2)];
    stage.entry(ToEdge::Backlog { target, messages, wants_room: true });
    assert_eq!(stage.audience.closes, [(id(0), 4003), (id(1), 4003)], "no frame is lost silently");
    assert_eq!(stage.submitted(), ["lost 0 0 0", "lost 1 1 0"]);
    assert_eq!(stage.router.counters().cut_slow, 2);
}

#[test]
fn each_target_hears_a_message_in_its_own_subprotocol() {
    let mut stage = Stage::with_clients(&[0, 2]);
    let binary = admitted("alice", Some(Subprotocol::Binary));
    stage.run(|router, around| router.opened(id(1), binary, around));
    stage.welcome(1);
    let targets = vec![stage.target(0, 1), stage.target(1, 1), stage.target(2, 1)];
    deliver(&mut stage, 4, targets);
    let mut expected = Vec::new();
    Subprotocol::Binary.encode(&Event::Message(&message(4)), &mut expected);
    let frames = &stage.audience.binary_frames[&id(1)];
    assert_eq!(frames.len(), 2, "welcome, and the message");
    assert_eq!(frames[1], expected);
    assert_eq!((stage.heard(0).len(), stage.heard(2).len()), (1, 1));
    assert!(stage.heard(1).is_empty());
    stage.run(|router, around| router.message(id(1), Subprotocol::Binary, &[0x70], around));
    assert_eq!(
        stage.audience.binary_frames[&id(1)].last().expect("an error")[..3],
        [0x8b, 0x28, 2]
    );
    stage.run(|router, around| router.message(id(1), Subprotocol::Json, b"{}", around));
    assert_eq!(stage.audience.closes, [(id(1), 1003)]);
}
