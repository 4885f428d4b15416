//! Every rule of the protocol page for frames of clients, as tables; and frames to clients.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::{BODY_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
use crate::link::message::Target;
use crate::protocol::operation::{ErrorCode, Goodbye, LATER, Operation};

fn decoded(frame: &str) -> Operation {
    decode(frame.as_bytes()).unwrap_or_else(|rejected| panic!("{frame}: {rejected:?}")).operation
}

fn refused(frame: &str) -> Rejected {
    match decode(frame.as_bytes()) {
        Err(rejected) => rejected,
        Ok(request) => panic!("{frame}: taken as {request:?}"),
    }
}

fn to(user: &str) -> Target {
    Target::User { user: user.into() }
}

fn within(name: &str) -> Target {
    Target::Conversation { name: name.into() }
}

fn text_body(text: &str) -> Body {
    Body::Text { text: Bytes::copy_from_slice(text.as_bytes()) }
}

fn binary_body(bytes: &[u8]) -> Body {
    Body::Binary { bytes: Bytes::copy_from_slice(bytes) }
}

fn send(target: Target, id: &str, body: Body) -> Operation {
    Operation::Send { target, id: id.into(), body }
}

fn history(convo: &str, before: Option<u64>, limit: u32) -> Operation {
    Operation::History { convo: convo.into(), before, limit }
}

fn conversations(after: Option<&str>, limit: u32) -> Operation {
    Operation::Conversations { after: after.map(Into::into), limit }
}

fn good_frames() -> Vec<(&'static str, Operation)> {
    let acknowledge = |convo: &str, seq, watermark| Operation::Acknowledge {
        convo: convo.into(),
        seq,
        watermark,
    };
    vec![
        (
            r#"{"t":"send","ref":7,"to":"bob","id":"c1","body":"hi"}"#,
            send(to("bob"), "c1", text_body("hi")),
        ),
        (
            r#"{"t":"send","convo":"dm:a:b","id":"c1","body":""}"#,
            send(within("dm:a:b"), "c1", text_body("")),
        ),
        (
            r#"{"t":"send","convo":"team","id":"\u00e4\"","body64":"AAH/","to":null,"body":null}"#,
            send(within("team"), "\u{e4}\"", binary_body(&[0, 1, 255])),
        ),
        (
            r#"{"t":"send","to":"b","id":"c","body":"\ud83d\ude00\u0000\n"}"#,
            send(to("b"), "c", text_body("\u{1f600}\0\n")),
        ),
        (
            r#"{"t":"ack","convo":"team","seq":9007199254740991,"kind":"read"}"#,
            acknowledge("team", INTEGER_MAX as u64, Watermark::Read),
        ),
        (
            r#" { "kind" : "delivered" , "seq" : 0 , "convo" : "dm:a:b" , "t" : "ack" } "#,
            acknowledge("dm:a:b", 0, Watermark::Delivered),
        ),
        (r#"{"t":"sync"}"#, Operation::Sync { convos: None }),
        (r#"{"t":"sync","convos":null}"#, Operation::Sync { convos: None }),
        (r#"{"t":"sync","convos":{}}"#, Operation::Sync { convos: Some(Vec::new()) }),
        (
            r#"{"t":"sync","convos":{"team":3,"dm:a:b":0,"gone":null}}"#,
            Operation::Sync { convos: Some(vec![("dm:a:b".into(), 0), ("team".into(), 3)]) },
        ),
        (r#"{"t":"ping","ref":-9007199254740991}"#, Operation::Ping),
        (r#"{"t":"devices","convo":"x"}"#, Operation::Devices),
        (r#"{"t":"history","convo":"x"}"#, history("x", None, 50)),
        (
            r#"{"t":"history","convo":"dm:a:b","before":1,"limit":200}"#,
            history("dm:a:b", Some(1), 200),
        ),
        (r#"{"t":"history","convo":"x","before":null,"limit":1}"#, history("x", None, 1)),
        (r#"{"t":"convos"}"#, conversations(None, 200)),
        (r#"{"t":"convos","after":null,"limit":1}"#, conversations(None, 1)),
        (r#"{"t":"convos","after":"dm:a:b","limit":7}"#, conversations(Some("dm:a:b"), 7)),
    ]
}

#[test]
fn good_frames_are_read() {
    for (frame, operation) in good_frames() {
        assert_eq!(decoded(frame), operation, "{frame}");
    }
}

#[test]
fn every_prefix_of_a_good_frame_is_refused() {
    for (frame, _) in good_frames() {
        let frame = frame.trim_end();
        for size in 0..frame.len() {
            let rejected = decode(&frame.as_bytes()[..size]).expect_err("a prefix");
            assert_eq!(rejected.code, ErrorCode::BadRequest, "{size} bytes of {frame}");
        }
    }
}

#[test]
fn the_reference_is_optional_and_bounded() {
    let reference = |frame: &str| decode(frame.as_bytes()).map(|request| request.reference);
    assert_eq!(reference(r#"{"t":"ping"}"#), Ok(None));
    assert_eq!(reference(r#"{"t":"ping","ref":null}"#), Ok(None));
    assert_eq!(reference(r#"{"t":"ping","ref":0}"#), Ok(Some(0)));
    assert_eq!(reference(r#"{"t":"ping","ref":-0}"#), Ok(Some(0)));
    for wrong in [
        "9007199254740992",
        "-9007199254740992",
        "99999999999999999999999",
        "1e400",
        "1.5",
        "1.0",
        "1e3",
        "\"1\"",
        "true",
        "[1]",
        "{}",
    ] {
        let rejected = refused(&format!(r#"{{"t":"ping","ref":{wrong}}}"#));
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{wrong}");
        assert_eq!(rejected.reference, None);
    }
}

#[test]
fn wrong_frames_are_bad_requests() {
    let long = format!(r#""{}""#, "x".repeat(65));
    let frames = [
        String::new(),
        "null".into(),
        "[]".into(),
        "\"ping\"".into(),
        "{}".into(),
        "{'t':'ping'}".into(),
        r#"{"t":"ping",}"#.into(),
        r#"{"t":"ping"}{}"#.into(),
        "\u{feff}{\"t\":\"ping\"}".into(),
        r#"{"t":null}"#.into(),
        r#"{"t":1}"#.into(),
        r#"{"t":["ping"]}"#.into(),
        r#"{"t":"\ud800"}"#.into(),
        "{\"t\":\"send\",\"to\":\"b\",\"id\":\"c\",\"body\":\"\n\"}".into(),
        r#"{"t":"ack","convo":"team","seq":-1,"kind":"read"}"#.into(),
        r#"{"t":"ack","convo":"team","seq":1.5,"kind":"read"}"#.into(),
        r#"{"t":"ack","convo":"team","seq":"1","kind":"read"}"#.into(),
        r#"{"t":"ack","convo":"team","seq":9007199254740992,"kind":"read"}"#.into(),
        r#"{"t":"ack","convo":"team","kind":"read"}"#.into(),
        r#"{"t":"ack","convo":"team","seq":1}"#.into(),
        r#"{"t":"ack","convo":"team","seq":1,"kind":"seen"}"#.into(),
        r#"{"t":"ack","convo":"dm:b:a","seq":1,"kind":"read"}"#.into(),
        r#"{"t":"ack","convo":["team"],"seq":1,"kind":"read"}"#.into(),
        r#"{"t":"ack","seq":1,"kind":"read"}"#.into(),
        r#"{"t":"sync","convos":[]}"#.into(),
        r#"{"t":"sync","convos":"team"}"#.into(),
        r#"{"t":"sync","convos":{"team":-1}}"#.into(),
        r#"{"t":"sync","convos":{"team":"1"}}"#.into(),
        r#"{"t":"sync","convos":{"":1}}"#.into(),
        r#"{"t":"sync","convos":{"dm:b:a":1}}"#.into(),
        r#"{"t":"sync","convos":{"\ud800":1}}"#.into(),
        format!(r#"{{"t":"sync","convos":{{{long}:1}}}}"#),
        r#"{"t":"history"}"#.into(),
        r#"{"t":"history","convo":""}"#.into(),
        r#"{"t":"history","convo":"dm:b:a"}"#.into(),
        r#"{"t":"history","convo":"x","before":0}"#.into(),
        r#"{"t":"history","convo":"x","before":-1}"#.into(),
        r#"{"t":"history","convo":"x","before":"1"}"#.into(),
        r#"{"t":"history","convo":"x","before":9007199254740992}"#.into(),
        r#"{"t":"history","convo":"x","limit":0}"#.into(),
        r#"{"t":"history","convo":"x","limit":201}"#.into(),
        r#"{"t":"history","convo":"x","limit":-1}"#.into(),
        r#"{"t":"history","convo":"x","limit":1.5}"#.into(),
        r#"{"t":"history","convo":"x","limit":4294967297}"#.into(),
        r#"{"t":"convos","limit":0}"#.into(),
        r#"{"t":"convos","limit":201}"#.into(),
        r#"{"t":"convos","limit":"7"}"#.into(),
        r#"{"t":"convos","after":""}"#.into(),
        r#"{"t":"convos","after":7}"#.into(),
        r#"{"t":"convos","after":"dm:b:a"}"#.into(),
        format!(r#"{{"t":"convos","after":{long}}}"#),
    ];
    for frame in frames {
        assert_eq!(refused(&frame).code, ErrorCode::BadRequest, "{frame}");
    }
    assert_eq!(decode(b"{\"t\":\"\xff\"}").map_err(|r| r.code), Err(ErrorCode::BadRequest));
}

#[test]
fn a_refused_send_carries_its_reference_and_id() {
    let long = "x".repeat(65);
    let rests = [
        r#""body":"x""#.to_owned(),
        r#""to":"b""#.into(),
        r#""to":"b","convo":"team","body":"x""#.into(),
        r#""to":null,"convo":null,"body":"x""#.into(),
        r#""to":"b","body":"x","body64":"eA==""#.into(),
        r#""to":"b","body":7"#.into(),
        r#""to":"b","body":"\ud800""#.into(),
        r#""to":"b","body":"\udc00\ud800""#.into(),
        r#""to":"b","body":["x"]"#.into(),
        r#""to":"b","body64":"eA=""#.into(),
        r#""to":"b","body64":"eA""#.into(),
        r#""to":"b","body64":"eB==""#.into(),
        r#""to":"b","body64":"-_8=""#.into(),
        r#""to":"b","body64":"eA==\n""#.into(),
        r#""to":"b","body64":null"#.into(),
        r#""to":"","body":"x""#.into(),
        r#""to":"b\u0007","body":"x""#.into(),
        r#""to":{"user":"b"},"body":"x""#.into(),
        r#""convo":"dm:b:a","body":"x""#.into(),
        r#""convo":"dm:a:b%3a","body":"x""#.into(),
        r#""convo":"","body":"x""#.into(),
        format!(r#""to":"{long}","body":"x""#),
        format!(r#""convo":"{long}","body":"x""#),
    ];
    for rest in rests {
        let rejected = refused(&format!(r#"{{"t":"send","ref":5,"id":"c9",{rest}}}"#));
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{rest}");
        assert_eq!(rejected.reference, Some(5), "{rest}");
        assert_eq!(rejected.id.as_deref(), Some("c9"), "{rest}");
    }
    let rejected = refused(&format!(r#"{{"t":"send","ref":5,"id":"{long}","to":"b","body":""}}"#));
    assert_eq!(rejected.id.as_deref(), Some(&*long));
    let rejected = refused(r#"{"t":"send","ref":5,"id":9,"to":"b","body":""}"#);
    assert_eq!((rejected.reference, rejected.id), (Some(5), None));
    let rejected = refused(r#"{"t":"send","ref":"5","id":"c9","to":"b","body":""}"#);
    assert_eq!((rejected.reference, rejected.id.as_deref()), (None, Some("c9")));
    // Only a send has an id to carry.
    assert_eq!(refused(r#"{"t":"ack","id":"c9"}"#).id, None);
}

#[test]
fn a_body_is_bounded_as_decoded() {
    let frame = |field: &str, body: &str| {
        format!(r#"{{"t":"send","ref":1,"id":"c","to":"b","{field}":"{body}"}}"#)
    };
    let at_most = "x".repeat(BODY_SIZE_MAX);
    assert_eq!(decoded(&frame("body", &at_most)), send(to("b"), "c", text_body(&at_most)));
    let encoded = STANDARD.encode(&at_most);
    assert_eq!(
        decoded(&frame("body64", &encoded)),
        send(to("b"), "c", binary_body(at_most.as_bytes()))
    );
    let over = "x".repeat(BODY_SIZE_MAX + 1);
    for frame in [frame("body", &over), frame("body64", &STANDARD.encode(&over))] {
        let rejected = refused(&frame);
        assert_eq!(rejected.code, ErrorCode::TooLarge);
        assert_eq!((rejected.reference, rejected.limit), (Some(1), Some(65_536)));
        assert_eq!(rejected.id.as_deref(), Some("c"));
    }
    // 65,534 bytes escaped as more count as what they stand for.
    let escaped = "\\u00e4".repeat(10_000);
    assert_eq!(
        decoded(&frame("body", &escaped)),
        send(to("b"), "c", text_body(&"\u{e4}".repeat(10_000)))
    );
}

#[test]
fn unknown_operations_and_fields() {
    for name in ["nonsense", "", "PING", "send "] {
        let rejected = refused(&format!(r#"{{"t":"{name}","ref":3}}"#));
        assert_eq!((rejected.code, rejected.reference), (ErrorCode::UnknownOperation, Some(3)));
    }
    for later in LATER {
        assert_eq!(decoded(&format!(r#"{{"t":"{later}"}}"#)), Operation::Later(later));
    }
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for extra in [r#""\ud800""#, "1e999", r#"{"t":[{}]}"#, &deep] {
        assert_eq!(decoded(&format!(r#"{{"x":{extra},"t":"ping","\udfff":1}}"#)), Operation::Ping);
    }
    let rejected = refused(&format!(r#"{{"t":"send","ref":1,"id":"c","to":"b","body":{deep}}}"#));
    assert_eq!(rejected.code, ErrorCode::BadRequest);
    assert_eq!(refused(&"{\"a\":".repeat(50_000)).code, ErrorCode::BadRequest);
    assert_eq!(refused(&format!(r#"{{"t":"sync","convos":{deep}}}"#)).code, ErrorCode::BadRequest);
}

#[test]
fn of_a_name_that_comes_twice_the_last_counts() {
    let request = decode(br#"{"t":"send","ref":1,"t":"ping","ref":2}"#).expect("valid");
    assert_eq!(request, Request { reference: Some(2), operation: Operation::Ping });
    assert_eq!(
        decoded(r#"{"t":"sync","convos":{"a":1,"a":2,"b":1,"b":null}}"#),
        Operation::Sync { convos: Some(vec![("a".into(), 2)]) }
    );
}

fn encoded(event: Event) -> Value {
    let mut out = b"kept".to_vec();
    encode(&event, &mut out);
    serde_json::from_slice(&out[4..]).expect("JSON")
}

fn message(body: Body) -> Message {
    Message {
        convo: "dm:a:\"".into(),
        seq: 3,
        mid: u64::MAX,
        ts: 1_700_000_000_000,
        from: "a".into(),
        device: "d".into(),
        id: "c\\1".into(),
        body,
    }
}

#[test]
fn answers_have_the_fields_of_the_page() {
    let sent = Event::Sent {
        reference: Some(-4),
        convo: "team",
        id: "c",
        seq: 1,
        mid: 1 << 60,
        ts: 5,
        dup: true,
    };
    assert_eq!(
        encoded(sent),
        json!({"t":"sent","ref":-4,"convo":"team","id":"c","seq":1,"mid":"1152921504606846976",
               "ts":5,"dup":true})
    );
    assert_eq!(
        encoded(Event::Synced { reference: None, heads: &[] }),
        json!({"t":"synced","convos":{}})
    );
    let heads = [("a\"".into(), 1), ("b".into(), 2)];
    assert_eq!(
        encoded(Event::Synced { reference: Some(1), heads: &heads }),
        json!({"t":"synced","ref":1,"convos":{"a\"":1,"b":2}})
    );
    assert_eq!(encoded(Event::Pong { reference: None, ts: 9 }), json!({"t":"pong","ts":9}));
    let error = Event::Error {
        reference: Some(1),
        id: Some("c"),
        code: ErrorCode::Unavailable,
        message: "m",
        limit: None,
        retry_ms: Some(250),
    };
    assert_eq!(
        encoded(error),
        json!({"t":"error","ref":1,"id":"c","code":"unavailable","message":"m","retry_ms":250})
    );
}

#[test]
fn pushes_have_the_fields_of_the_page() {
    let welcome = Event::Welcome {
        user: "a",
        device: "d",
        session: "1-2",
        heartbeat_ms: 30_000,
        ticket: "x",
        server: "e",
    };
    assert_eq!(
        encoded(welcome),
        json!({"t":"welcome","user":"a","device":"d","session":"1-2","heartbeat_ms":30000,
               "ticket":"x","server":"e"})
    );
    assert_eq!(
        encoded(Event::Message(&message(text_body("\u{0}\u{2028}\"")))),
        json!({"t":"msg","convo":"dm:a:\"","seq":3,"mid":"18446744073709551615","from":"a",
               "id":"c\\1","ts":1_700_000_000_000_u64,"body":"\u{0}\u{2028}\""})
    );
    let binary = encoded(Event::Message(&message(binary_body(&[255]))));
    assert_eq!((&binary["body64"], &binary["body"]), (&json!("/w=="), &Value::Null));
    let (watermark, tally) = (Watermark::Read, None);
    let receipt = Event::Receipt { convo: "c", seq: 2, watermark, by: "b", tally };
    assert_eq!(encoded(receipt), json!({"t":"receipt","convo":"c","seq":2,"kind":"read","by":"b"}));
    let goodbye = Goodbye::Drain;
    assert_eq!(
        encoded(Event::Goaway { goodbye, reconnect_ms: Some(7) }),
        json!({"t":"goaway","reason":"drain","reconnect_ms":7})
    );
    assert_eq!(encoded(Event::Behind), json!({"t":"behind"}));
    assert_eq!(
        encoded(Event::Failed { convo: "dm:a:b", seq: 7, id: "x" }),
        json!({"t":"failed","convo":"dm:a:b","seq":7,"id":"x"})
    );
}

#[test]
fn what_is_told_of_users_has_the_fields_of_the_page() {
    let devices = [("a\"".into(), 7), ("b".into(), 8)];
    assert_eq!(
        encoded(Event::Devices { reference: Some(1), devices: &devices }),
        json!({"t":"devices","ref":1,"devices":[{"device":"a\"","last_seen":7},
               {"device":"b","last_seen":8}]})
    );
    let presence = |reference, online, last_seen| {
        encoded(Event::Presence { reference, user: "u", online, last_seen })
    };
    assert_eq!(
        presence(Some(2), true, Some(5)),
        json!({"t":"presence","ref":2,"user":"u","state":"online","last_seen":5})
    );
    assert_eq!(presence(None, false, None), json!({"t":"presence","user":"u","state":"offline"}));
    for (hidden, presence) in [(true, "nobody"), (false, "everyone")] {
        let event = Event::Privacy { reference: None, hidden };
        assert_eq!(encoded(event), json!({"t":"privacy","presence":presence}));
    }
    assert_eq!(
        encoded(Event::Typing { convo: "c", from: "u" }),
        json!({"t":"typing","convo":"c","from":"u"})
    );
}

#[test]
fn operations_on_devices_and_presence() {
    let users = |names: &[&str]| names.iter().map(|name| Id::from(*name)).collect::<Vec<Id>>();
    for (frame, operation) in [
        (r#"{"t":"device.revoke","device":"tv"}"#, Operation::Revoke { device: "tv".into() }),
        (r#"{"t":"privacy","presence":"nobody"}"#, Operation::Privacy { hidden: true }),
        (r#"{"t":"privacy","presence":"everyone"}"#, Operation::Privacy { hidden: false }),
        (
            r#"{"t":"presence.sub","users":["b","a","b"]}"#,
            Operation::PresenceSubscribe { users: users(&["b", "a"]) },
        ),
        (
            r#"{"t":"presence.unsub","users":[]}"#,
            Operation::PresenceUnsubscribe { users: users(&[]) },
        ),
        (r#"{"t":"typing","convo":"team"}"#, Operation::Typing { convo: "team".into() }),
    ] {
        assert_eq!(decoded(frame), operation, "{frame}");
    }
    for frame in [
        r#"{"t":"device.revoke"}"#,
        r#"{"t":"device.revoke","device":""}"#,
        r#"{"t":"privacy"}"#,
        r#"{"t":"privacy","presence":"friends"}"#,
        r#"{"t":"presence.sub"}"#,
        r#"{"t":"presence.sub","users":[]}"#,
        r#"{"t":"presence.sub","users":"a"}"#,
        r#"{"t":"presence.sub","users":["a",1]}"#,
        r#"{"t":"presence.unsub","users":[""]}"#,
        r#"{"t":"typing","convo":"dm:x"}"#,
    ] {
        assert_eq!(refused(frame).code, ErrorCode::BadRequest, "{frame}");
    }
}

#[test]
fn the_worst_body_stays_below_the_bound_of_a_frame() {
    let mut out = Vec::new();
    let worst = message(text_body(&"\u{1}".repeat(BODY_SIZE_MAX)));
    encode(&Event::Message(&worst), &mut out);
    assert!(out.len() < SERVER_FRAME_SIZE_MAX);
}

#[test]
fn pages_have_the_fields_of_the_page() {
    let page = |reference, messages: &[Message], more| {
        encoded(Event::Page { reference, convo: "t\"", messages, more })
    };
    assert_eq!(page(None, &[], false), json!({"t":"page","convo":"t\"","msgs":[],"more":false}));
    let messages = [message(text_body("x")), message(binary_body(&[1]))];
    let mut entries = messages.each_ref().map(|message| encoded(Event::Message(message)));
    for entry in &mut entries {
        entry.as_object_mut().expect("an object").remove("t");
    }
    assert_eq!(
        page(Some(2), &messages, true),
        json!({"t":"page","ref":2,"convo":"t\"","msgs":entries,"more":true})
    );
}

#[test]
fn a_page_that_would_pass_the_bound_of_a_frame_keeps_the_newest() {
    let size_max = SERVER_FRAME_SIZE_MAX;
    for (body, count) in [("\u{1}".repeat(BODY_SIZE_MAX), 1), ("x".repeat(BODY_SIZE_MAX), 7)] {
        let mut messages = vec![message(text_body(&body)); 10];
        (1u64..).zip(&mut messages).for_each(|(seq, message)| message.seq = seq);
        let mut out = Vec::new();
        encode(
            &Event::Page { reference: None, convo: "c", messages: &messages, more: false },
            &mut out,
        );
        assert!(out.len() < size_max, "{}", out.len());
        let page: Value = serde_json::from_slice(&out).expect("JSON");
        let entries = page["msgs"].as_array().expect("a list");
        assert_eq!((entries.len(), &page["more"]), (count, &json!(true)));
        assert_eq!(entries.last().expect("one at least")["seq"], 10);
    }
}

#[test]
fn conversations_have_the_fields_of_the_page() {
    let convos = [Standing {
        convo: "dm:a:b".into(),
        head: 6,
        delivered: 5,
        read: 4,
        unread: 1,
        others_delivered: 3,
        others_read: 2,
    }];
    let event = Event::Conversations { reference: Some(1), convos: &convos };
    assert_eq!(
        encoded(event),
        json!({"t":"convos","ref":1,"convos":[{"convo":"dm:a:b","head":6,"delivered":5,"read":4,
               "unread":1,"others_delivered":3,"others_read":2}]})
    );
    let none = Event::Conversations { reference: None, convos: &[] };
    assert_eq!(encoded(none), json!({"t":"convos","convos":[]}));
}

/// The decoder's naive twin for frames without faults: a whole document, looked at by name.
fn naive(frame: &str) -> Option<(Option<i64>, String)> {
    let value: Value = serde_json::from_str(frame).ok()?;
    let object = value.as_object()?;
    Some((object.get("ref").and_then(Value::as_i64), object.get("t")?.as_str()?.to_owned()))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn mutilated_frames_never_panic(
        index in 0usize..18, at in 0usize..80, byte in any::<u8>(), cut in 0usize..80,
    ) {
        let mut bytes = good_frames()[index].0.as_bytes().to_vec();
        let size = bytes.len();
        bytes[at % size] = byte;
        bytes.remove(cut % size);
        let _ = decode(&bytes);
    }

    #[test]
    fn the_splitting_agrees_with_a_whole_parse(
        reference in -INTEGER_MAX..=INTEGER_MAX, body in "\\PC{0,40}", id in "[a-z\"\\\\]{1,9}",
    ) {
        let frame = json!({"id":id,"body":body,"to":"b","ref":reference,"t":"send","x":[body]});
        let frame = frame.to_string();
        let request = decode(frame.as_bytes()).expect("valid");
        prop_assert_eq!(naive(&frame), Some((request.reference, "send".to_owned())));
        prop_assert_eq!(request.operation, send(to("b"), &id, text_body(&body)));
    }
}

proptest! {
    #[test]
    fn texts_and_numbers_are_written_as_serde_writes_them(text: String, plain in "[ -~]*", n: u64) {
        for value in [&text, &plain] {
            let mut out = Vec::new();
            write_text(&mut out, value);
            prop_assert_eq!(&out, &serde_json::to_vec(value).expect("text"));
        }
        for value in [n, n % 10, 0, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(&mut out, value);
            prop_assert_eq!(out, value.to_string().into_bytes());
        }
    }
}
