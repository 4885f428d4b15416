//! Client sessions and link sessions: how they begin, change and end.

use super::*;
use crate::edge::ticket::TICKET_LIFETIME_MS;

#[test]
fn a_client_is_welcomed_once_it_has_a_session() {
    let mut stage = Stage::connected();
    stage.open(5);
    assert_eq!(stage.submitted_kept(), ["open 5"]);
    assert!(stage.heard(5).is_empty());
    stage.welcome(5);
    let heard = stage.heard(5);
    let [welcome] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(welcome["t"], "welcome");
    assert_eq!((&welcome["user"], &welcome["device"]), (&"alice".into(), &"phone".into()));
    assert_eq!((&welcome["session"], &welcome["server"]), (&"3-5".into(), &"edge-1".into()));
    assert_eq!(welcome["heartbeat_ms"], 30_000);
    let ticket = welcome["ticket"].as_str().expect("text");
    let ticket = Tickets::new(b"secret").check(ticket, 5_001).expect("valid");
    assert_eq!((&*ticket.user, &*ticket.device), ("alice", "phone"));
    assert_eq!(ticket.expires_unix_ms, 5_000 + TICKET_LIFETIME_MS);
    assert_eq!(stage.submitted(), ["open 5", "confirm 5"]);
}

#[test]
fn what_comes_before_the_welcome_is_done_after_it() {
    let mut stage = Stage::connected();
    stage.open(0);
    stage.say(0, r#"{"t":"ping","ref":1}"#);
    stage.say(0, "garbage");
    stage.say(0, &send_frame(2, "a"));
    stage.say(0, &send_frame(3, "b"));
    stage.say(0, r#"{"t":"ping","ref":4}"#);
    assert!(stage.heard(0).is_empty());
    stage.welcome(0);
    let wanted = [("welcome", None), ("pong", Some(1)), ("error", None)];
    assert_eq!(stage.heard_briefly(0), brief(&wanted));
    assert_eq!(stage.submitted(), ["open 0", "confirm 0", "send a", "send b"]);
}

#[test]
fn a_connection_gone_before_its_session_closes_it() {
    let mut stage = Stage::connected();
    stage.open(0);
    stage.run(|router, around| router.closed(id(0), around));
    assert_eq!(stage.submitted_kept(), ["open 0"]);
    stage.welcome(0);
    assert_eq!(stage.submitted(), ["open 0", "close 0 0"]);
    assert!(stage.audience.frames.is_empty());
    assert_eq!(stage.router.counters().connections, 0);
}

#[test]
fn a_refused_session_ends_the_connection() {
    let mut stage = Stage::connected();
    stage.open(0);
    let to = stage.number_of(|message| word(message) == "open 0");
    stage.refuse(to, Code::Unavailable, 300);
    let heard = stage.heard(0);
    assert_eq!((&heard[0]["t"], &heard[0]["reason"]), (&"goaway".into(), &"overload".into()));
    assert_eq!(heard[0]["reconnect_ms"], 300);
    assert_eq!(stage.audience.closes, [(id(0), 1013)]);
}

#[test]
fn without_a_sequencer_everything_waits_in_order() {
    let mut stage = Stage::alone();
    stage.open(0);
    stage.open(1);
    stage.say(0, &send_frame(1, "a"));
    assert!(stage.submitted().is_empty());
    stage.began();
    assert_eq!(stage.submitted_kept(), ["retold", "open 0", "open 1"]);
    stage.welcome(1);
    stage.welcome(0);
    let wanted = ["retold", "open 0", "open 1", "confirm 1", "confirm 0", "send a"];
    assert_eq!(stage.submitted(), wanted);
}

#[test]
fn a_new_link_session_is_told_everything_again_in_order() {
    let mut stage = Stage::with_clients(&[0, 1, 3]);
    stage.open(2);
    stage.say(0, &send_frame(1, "a"));
    stage.say(1, &send_frame(1, "b"));
    stage.say(0, r#"{"t":"ack","convo":"team","seq":4,"kind":"read"}"#);
    stage.say(0, &send_frame(2, "c"));
    stage.say(1, r#"{"t":"sync","ref":2}"#);
    stage.say(3, &send_frame(1, "gone"));
    let b = stage.number_of_send("b");
    stage.sent(b, 1);
    stage.run(|router, around| router.closed(id(3), around));
    stage.submitted();
    stage.ended();
    stage.say(1, &send_frame(3, "d"));
    assert!(stage.submitted().is_empty());
    stage.began();
    let wanted =
        ["retell 0", "retell 1", "retold", "open 2", "send a", "ack 4", "send c", "sync", "send d"];
    assert_eq!(stage.submitted_kept(), wanted);
    let [a, c, d] = ["a", "c", "d"].map(|id| stage.number_of_send(id));
    stage.heard(1);
    stage.sent(d, 4);
    stage.sent(a, 2);
    stage.sent(c, 3);
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(1)), ("sent", Some(2))]));
    assert_eq!(stage.heard_briefly(1), brief(&[("sent", Some(3))]));
    stage.welcome(2);
    assert_eq!(stage.heard_briefly(2), brief(&[("welcome", None)]));
    assert_eq!(stage.router.counters().unknown_answers, 0);
}

#[test]
fn a_session_that_changes_without_an_end_forgets_old_numbers() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, &send_frame(1, "a"));
    stage.say(0, r#"{"t":"ping","ref":2}"#);
    let old = stage.number_of_send("a");
    stage.began();
    let new = stage.number_of_send("a");
    assert_ne!(old, new);
    stage.sent(new, 1);
    assert_eq!(stage.heard_briefly(0), brief(&[("sent", Some(1)), ("pong", Some(2))]));
    assert_eq!(stage.router.counters().link_sessions, 2);
}

#[test]
fn a_session_that_ends_while_it_is_being_retold_is_retold_whole() {
    let mut stage = Stage::with_clients(&[0, 1]);
    stage.script.full = true;
    stage.began();
    stage.say(0, &send_frame(1, "a"));
    assert!(stage.submitted().is_empty());
    stage.script.full = false;
    stage.began();
    assert_eq!(stage.submitted(), ["retell 0", "retell 1", "retold", "send a"]);
}

#[test]
fn events_of_other_peers_are_not_ours() {
    let mut stage = Stage::with_clients(&[0]);
    let peer = PeerId(9);
    stage.run(|router, around| router.link_event(LinkEvent::Ended { peer }, around));
    stage.say(0, &send_frame(1, "a"));
    assert_eq!(stage.submitted(), ["send a"]);
}

#[test]
fn a_drain_tells_each_client_when_to_come_back() {
    let slots: Vec<u32> = (0..64).collect();
    let mut stage = Stage::with_clients(&slots);
    stage.say(7, &send_frame(1, "a"));
    let to = stage.number_of_send("a");
    stage.run(|router, around| router.drain(8_000, around));
    assert!(stage.router.is_draining());
    let mut delays: Vec<u64> = Vec::new();
    for slot in slots {
        let heard = stage.heard(slot);
        assert_eq!(heard[0]["reason"], "drain");
        delays.push(heard[0]["reconnect_ms"].as_u64().expect("an integer"));
    }
    delays.sort_unstable();
    assert!(delays[8] < 4_000 && delays[55] > 4_000 && delays[63] < 8_000, "{delays:?}");
    assert_eq!(stage.audience.closes.len(), 63, "one waits for its answer");
    stage.sent(to, 1);
    assert_eq!(stage.heard_briefly(7), brief(&[("sent", Some(1))]));
    assert_eq!(stage.audience.closes.last(), Some(&(id(7), 1001)));
    assert_eq!(stage.router.counters().connections, 0);
}

#[test]
fn a_drain_does_not_wait_for_ever() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, &send_frame(1, "a"));
    stage.run(|router, around| router.drain(8_000, around));
    stage.say(0, &send_frame(2, "b"));
    assert_eq!(stage.heard(0)[1]["code"], "unavailable");
    stage.tick_after(DRAIN_GRACE_MS - 1);
    assert!(stage.audience.closes.is_empty());
    stage.tick_after(1);
    assert_eq!(stage.audience.closes, [(id(0), 1001)]);
}

#[test]
fn a_superseded_sequencer_is_refused_and_not_heard() {
    let mut stage = Stage::connected();
    stage.open(0);
    stage.entry(ToEdge::Serving { epoch: 7 });
    assert!(!stage.router.refuses_sequencer());
    stage.began();
    stage.entry(ToEdge::Serving { epoch: 6 });
    assert!(stage.router.refuses_sequencer());
    stage.welcome(0);
    assert!(stage.heard(0).is_empty(), "what it says reaches nobody");
    assert_eq!(stage.router.counters().stale_sequencers, 1);
    stage.began();
    stage.entry(ToEdge::Serving { epoch: 8 });
    assert!(!stage.router.refuses_sequencer());
}

#[test]
fn a_change_of_a_group_is_not_asked_again_of_another_life() {
    let mut stage = Stage::with_clients(&[0]);
    stage.say(0, r#"{"t":"group.add","ref":1,"convo":"team","members":["bob"]}"#);
    stage.say(0, r#"{"t":"group.info","ref":2,"convo":"team"}"#);
    stage.say(0, &send_frame(3, "a"));
    stage.say(0, r#"{"t":"ping","ref":4}"#);
    stage.script.full = true;
    stage.say(0, r#"{"t":"group.remove","ref":5,"convo":"team","members":["bob"]}"#);
    assert_eq!(stage.submitted(), ["group team", "group team", "send a"]);
    stage.ended();
    let heard = stage.heard(0);
    assert_eq!(
        (heard.len(), &heard[0]["ref"], &heard[0]["code"]),
        (1, &1.into(), &"unavailable".into())
    );
    assert!(heard[0]["retry_ms"].is_u64());
    stage.script.full = false;
    stage.began();
    // What never left the edge is asked: it has happened nowhere.
    let asked = ["retell 0", "retold", "group team", "send a", "group team"];
    assert_eq!(stage.submitted(), asked);
}

#[test]
fn an_idle_connection_holds_no_box_and_a_busy_one_only_while_it_is() {
    let mut stage = Stage::connected();
    stage.open(0);
    let is_small = |stage: &mut Stage| stage.router.connection(id(0)).expect("open").is_small();
    assert!(!is_small(&mut stage), "it waits for its session");
    stage.welcome(0);
    assert!(is_small(&mut stage));
    stage.say(0, &send_frame(1, "a"));
    stage.say(0, r#"{"t":"ping","ref":2}"#);
    assert!(!is_small(&mut stage));
    let to = stage.number_of_send("a");
    stage.sent(to, 1);
    assert!(is_small(&mut stage));
    let target = stage.target(0, 1);
    stage.audience.queued.insert(id(0), BEHIND_SIZE + 1);
    stage.entry(ToEdge::Deliver { message: message(1), targets: vec![target] });
    stage.entry(ToEdge::Backlog { target, messages: vec![message(2)], wants_room: true });
    assert!(!is_small(&mut stage));
    stage.audience.queued.clear();
    stage.run(|router, around| router.drained(id(0), around));
    let target = stage.target(0, 2);
    stage.entry(ToEdge::Synced { target, to: 0, heads: Vec::new() });
    assert!(is_small(&mut stage));
    assert_eq!(stage.router.held().sessions, size_of::<Option<Connection>>());
}

#[test]
fn names_of_any_length_are_kept_and_counted_while_they_are() {
    let mut stage = Stage::connected();
    let names = |length: usize| "n".repeat(length);
    for (slot, length) in [1, 19, 20, 21, 64].into_iter().enumerate() {
        let admitted = Admitted { device: names(length).into(), ..admitted(&names(length), None) };
        stage.run(|router, around| router.opened(id(slot as u32), admitted, around));
        stage.welcome(slot as u32);
        let welcome = &stage.heard(slot as u32)[0];
        assert_eq!(
            (&welcome["user"], &welcome["device"]),
            (&names(length).into(), &names(length).into())
        );
    }
    let places = 5 * size_of::<Option<Connection>>();
    assert!(stage.router.held().sessions > places + 21 + 64);
    for slot in 0..5 {
        let state = stage.router.client_state(id(slot)).expect("it is open");
        let mut other = Stage::connected();
        other.router.continue_client(state.clone()).expect("it is a client's");
        assert_eq!(other.router.client_state(id(slot)), Some(state));
        stage.run(|router, around| router.closed(id(slot), around));
    }
    assert_eq!(stage.router.held().sessions, places);
    assert_eq!(stage.router.devices.count(), 0);
}

#[test]
fn what_waits_for_a_session_is_handed_over_with_its_size() {
    let mut stage = Stage::connected();
    stage.open(0);
    stage.say(0, &send_frame(1, "a"));
    let state = stage.router.client_state(id(0)).expect("it waits");
    let mut other = Stage::connected();
    other.router.continue_client(state.clone()).expect("it is a client's");
    assert_eq!(other.router.client_state(id(0)), Some(state));
    assert_eq!(other.router.held().operations, stage.router.parked_size);
    other.run(|router, around| router.closed(id(0), around));
    assert_eq!(other.router.held().operations, 0);
}
