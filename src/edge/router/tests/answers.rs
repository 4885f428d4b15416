//! Answers find who asked, whatever their order; pings wait for what came before them.

use serde_json::json;

use super::*;

#[test]
fn answers_in_another_order_find_their_requests() {
    let mut stage = Stage::with_clients(&[0, 1]);
    stage.say(0, &send_frame(1, "a"));
    stage.say(1, &send_frame(1, "b"));
    stage.say(0, &send_frame(2, "c"));
    let [a, b, c] = ["a", "b", "c"].map(|id| stage.number_of_send(id));
    stage.sent(c, 7);
    stage.sent(b, 5);
    stage.refuse(a, Code::NotMember, 0);
    assert_eq!(
        stage.heard(0),
        [
            json!({"t":"sent","ref":2,"convo":"dm:alice:bob","id":"c","seq":7,"mid":"1007","ts":9,
                   "dup":false}),
            json!({"t":"error","ref":1,"id":"a","code":"not_member","message":"no"}),
        ]
    );
    assert_eq!(stage.heard_briefly(1), brief(&[("sent", Some(1))]));
    assert_eq!(stage.router.counters().unknown_answers, 0);
    stage.sent(c, 7);
    assert_eq!(stage.router.counters().unknown_answers, 1);
    assert!(stage.heard(0).is_empty());
}

#[test]
fn an_acknowledgement_is_answered_only_when_refused() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, r#"{"t":"ack","ref":1,"convo":"team","seq":4,"kind":"read"}"#);
    stage.say(0, r#"{"t":"ack","ref":2,"convo":"team","seq":900,"kind":"read"}"#);
    let first = stage.number_of(|message| word(message) == "ack 4");
    let second = stage.number_of(|message| word(message) == "ack 900");
    stage.entry(ToEdge::Done { to: first });
    stage.refuse(second, Code::BadRequest, 0);
    assert_eq!(stage.heard_briefly(0), brief(&[("error", Some(2))]));
}

#[test]
fn a_sync_is_answered_behind_its_messages() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, r#"{"t":"sync","ref":3}"#);
    let to = stage.number_of(|message| word(message) == "sync");
    let target = stage.target(0, 2);
    let messages = vec![message(1), message(2)];
    stage.entry(ToEdge::Backlog { target, messages, wants_room: false });
    stage.entry(ToEdge::Synced { target, to, heads: vec![("dm:alice:bob".into(), 2)] });
    stage.entry(ToEdge::Synced { target, to: 0, heads: Vec::new() });
    let heard = stage.heard_briefly(0);
    let wanted = [("msg", None), ("msg", None), ("synced", Some(3)), ("synced", None)];
    assert_eq!(heard, brief(&wanted));
}

#[test]
fn a_ping_waits_for_earlier_operations_and_blocks_none() {
    let mut stage = Stage::with_clients(&[0, 1]);
    stage.say(0, r#"{"t":"ping","ref":1}"#);
    assert_eq!(stage.heard(0), [json!({"t":"pong","ref":1,"ts":5000})]);
    stage.say(0, &send_frame(2, "a"));
    stage.say(0, r#"{"t":"ack","convo":"team","seq":4,"kind":"read"}"#);
    stage.say(0, r#"{"t":"ping","ref":3}"#);
    stage.say(0, &send_frame(4, "b"));
    stage.say(0, r#"{"t":"ping","ref":5}"#);
    stage.say(1, r#"{"t":"ping","ref":6}"#);
    let [a, b] = ["a", "b"].map(|id| stage.number_of_send(id));
    let acknowledgement = stage.number_of(|message| word(message) == "ack 4");
    assert!(stage.heard(0).is_empty());
    assert_eq!(stage.heard_briefly(1), brief(&[("pong", Some(6))]), "another client's waits not");
    assert_eq!(stage.submitted().len(), 3, "the later send left as well");
    stage.sent(b, 2);
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(4))]), "not before earlier ones");
    stage.entry(ToEdge::Done { to: acknowledgement });
    assert!(stage.heard(0).is_empty());
    stage.sent(a, 1);
    let wanted = [("sent", Some(2)), ("pong", Some(3)), ("pong", Some(5))];
    assert_eq!(stage.heard_briefly(0), brief(&wanted));
}

#[test]
fn rejected_frames_and_later_operations_are_answered_at_once() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, r#"{"t":"convo.set","ref":1,"convo":"team"}"#);
    stage.say(0, r#"{"t":"dance","ref":2}"#);
    stage.say(0, r#"{"t":"send","ref":3,"id":"c","to":"b"}"#);
    stage.say(0, "garbage");
    let codes: Vec<_> = stage.heard(0).into_iter().map(|frame| frame["code"].clone()).collect();
    assert_eq!(codes, ["unknown_op", "unknown_op", "bad_request", "bad_request"]);
    assert_eq!(stage.router.counters().rejected, 4);
    assert!(stage.submitted().is_empty());
    assert!(stage.audience.closes.is_empty());
}

#[test]
fn a_binary_frame_closes_the_connection() {
    let mut stage = Stage::with_clients(&[0]);
    stage.run(|router, around| router.message(id(0), Subprotocol::Binary, &[6], around));
    assert_eq!(stage.audience.closes, [(id(0), 1003)]);
    assert_eq!(stage.submitted(), ["lost 0 0 0"]);
    stage.say(0, r#"{"t":"ping"}"#);
    assert!(stage.heard(0).is_empty());
}

#[test]
fn answers_for_a_gone_connection_reach_nobody() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, &send_frame(1, "a"));
    stage.say(0, r#"{"t":"ping","ref":2}"#);
    let to = stage.number_of_send("a");
    stage.run(|router, around| router.closed(id(0), None, around));
    let tenant = ConnectionId { slot: 0, generation: 2 };
    stage.run(|router, around| {
        router.opened(tenant, admitted("carol", None), around);
    });
    stage.sent(to, 1);
    assert!(stage.audience.frames.is_empty());
    assert_eq!(stage.router.counters().sent, 1);
    assert_eq!(stage.submitted(), ["send a", "close 0 0", "open 0"]);
}

#[test]
fn malformed_entries_are_counted_and_answered() {
    let mut stage = Stage::with_clients(&[0]);
    let good = ToEdge::Done { to: 1 }.to_bytes();
    for size in 0..good.len() {
        stage.entry_last += 1;
        let number = stage.entry_last;
        let entry = Bytes::copy_from_slice(&good[..size]);
        let event = LinkEvent::Entry { peer: SEQUENCER, number, entry };
        stage.run(|router, around| router.link_event(event, around));
        assert_eq!(stage.script.answered.last(), Some(&number));
    }
    assert_eq!(stage.router.counters().malformed_entries, good.len() as u64);
}

#[test]
fn pages_and_lists_are_asked_for_and_answered() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, r#"{"t":"history","ref":1,"convo":"dm:alice:bob","before":9,"limit":2}"#);
    stage.say(0, r#"{"t":"convos","ref":2}"#);
    assert_eq!(stage.submitted_kept(), ["history 9", "conversations 200"]);
    let list = stage.number_of(|message| word(message) == "conversations 200");
    stage.entry(ToEdge::Conversations { to: list, rows: Vec::new() });
    let page = stage.number_of(|message| word(message) == "history 9");
    let convo = "dm:alice:bob".into();
    stage.entry(ToEdge::Page { to: page, convo, messages: Vec::new(), first: 1 });
    let wanted = [("convos", Some(2)), ("page", Some(1))];
    assert_eq!(stage.heard_briefly(0), brief(&wanted));
}
