//! Rates of sending from outside: who is over a limit hears which one and when to come back, and
//! then it is so.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Client, Cluster};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, connect};

#[test]
fn a_user_is_limited_over_all_his_connections_and_told_when_to_come_back() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let environment =
        [("ALDIS_SEQUENCER_USER_SENDS_PER_SECOND", "2"), ("ALDIS_SEQUENCER_USER_SENDS_BURST", "4")];
    let cluster = Cluster::start_with(folder.path().join("data"), &["--shards", "2"], &environment);
    let mut phone = Client::connect_synced(&cluster.url("user=alice&device=phone")).0;
    let mut laptop = Client::connect_synced(&cluster.url("user=alice&device=laptop")).0;
    let mut bob = Client::connect_synced(&cluster.url("user=bob")).0;
    let start = Instant::now();
    assert_eq!(post(&mut phone, "bob", "m1")["seq"], 1);
    assert_eq!(post(&mut laptop, "carol", "m2")["seq"], 1);
    assert_eq!(post(&mut phone, "bob", "m3")["seq"], 2);
    assert_eq!(post(&mut laptop, "bob", "m4")["seq"], 3);
    let (refused, wait_ms) = limited(post(&mut phone, "bob", "m5"), 2);
    assert!(start.elapsed() < Duration::from_millis(400), "too slow to be limited");
    assert!((1..=500).contains(&wait_ms), "{refused}");
    assert_eq!(refused["id"], "m5");
    limited(post(&mut laptop, "carol", "m6"), 2);
    assert_eq!(post(&mut bob, "alice", "b1")["seq"], 4, "others are not concerned");
    // What was accepted is answered again, and does not count: the next one passes all the same.
    for _ in 0..5 {
        let again = post(&mut laptop, "bob", "m1");
        assert_eq!((&again["seq"], &again["dup"]), (&json!(1), &json!(true)));
    }
    std::thread::sleep(Duration::from_millis(wait_ms));
    assert_eq!(post(&mut phone, "bob", "m5")["seq"], 5, "after retry_ms it passes");
    for index in 0..4 {
        let id = format!("n{index}");
        let mut answer = post(&mut phone, "bob", &id);
        if answer["t"] == "error" {
            let (_, wait_ms) = limited(answer, 2);
            std::thread::sleep(Duration::from_millis(wait_ms));
            answer = post(&mut phone, "bob", &id);
        }
        assert_eq!(answer["seq"], 6 + index, "{answer}");
    }
    // 9 new ones passed: the burst of 4, and the others at 2 a second.
    assert!(start.elapsed() >= Duration::from_millis(2_500), "{:?}", start.elapsed());
    let refused = "aldis_operations_refused_total{code=\"rate_limited\"}";
    assert!(cluster.metric("sequencer", refused).is_some_and(|count| count >= 2.0));
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(cluster.metric("sequencer", "aldis_limited_keys"), Some(0.0), "all are full again");
    assert_eq!(heard(&mut bob), [1, 2, 3, 5, 6, 7, 8, 9], "what was refused is nowhere");
}

#[test]
fn a_conversation_is_limited_whoever_writes_and_both_subprotocols_say_so() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let file = folder.path().join("aldis.toml");
    let text = "[sequencer]\nconvo-sends-per-second = 1\nconvo-sends-burst = 3\n";
    std::fs::write(&file, text).expect("written");
    let config = file.to_str().expect("text").to_owned();
    let cluster = Cluster::start(folder.path().join("data"), &["--config", &config]);
    let mut ann = Client::connect_synced(&cluster.url("user=ann")).0;
    let mut ben = Client::connect_synced(&cluster.url("user=ben")).0;
    assert_eq!(post(&mut ann, "ben", "a1")["seq"], 1);
    assert_eq!(post(&mut ben, "ann", "b1")["seq"], 2);
    assert_eq!(post(&mut ann, "ben", "a2")["seq"], 3);
    let (_, wait_ms) = limited(post(&mut ben, "ann", "b2"), 1);
    assert_eq!(post(&mut ben, "cid", "b3")["seq"], 1, "another conversation");
    let fields = binary_error(&cluster.url("user=ann&device=other"), "dm:ann:ben", "a3");
    assert_eq!(fields.get(&0x28), Some(&6), "the code of rate_limited");
    assert_eq!(fields.get(&0x10), Some(&1), "limit");
    assert!(fields.get(&0x14).is_some_and(|retry_ms| (1..=1_000).contains(retry_ms)));
    std::thread::sleep(Duration::from_millis(wait_ms));
    assert_eq!(post(&mut ben, "ann", "b2")["seq"], 4);
}

#[test]
fn without_limits_nobody_is_refused() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let mut fast = Client::connect_synced(&cluster.url("user=fast")).0;
    for index in 0..5_000 {
        fast.say(json!({"t":"send","to":"bob","id":format!("f{index}"),"body":"x"}));
    }
    for index in 0..5_000u64 {
        assert_eq!(fast.next(support::client::PATIENCE).expect("sent")["seq"], index + 1);
    }
    assert_eq!(cluster.metric("sequencer", "aldis_limited_keys"), Some(0.0));
    let body = "x".repeat(65_537);
    let error = ask(&mut fast, json!({"t":"send","to":"bob","id":"large","body":body}));
    assert_eq!((&error["code"], &error["limit"]), (&json!("too_large"), &json!(65_536)));
}

/// The refusal and its `retry_ms`.
fn limited(refused: Value, limit: u64) -> (Value, u64) {
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    assert_eq!(refused["limit"], limit, "{refused}");
    let wait_ms = refused["retry_ms"].as_u64().unwrap_or_else(|| panic!("{refused}"));
    (refused, wait_ms)
}

/// Sends by the binary subprotocol: the numbers in the answer, which is an error, by their tags.
fn binary_error(url: &str, convo: &str, id: &str) -> BTreeMap<u8, u64> {
    let mut request = url.into_client_request().expect("a URL");
    let offer = "aldis.v1".parse().expect("a header");
    request.headers_mut().insert("Sec-WebSocket-Protocol", offer);
    let (mut socket, _response) = connect(request).expect("the server upgrades");
    let text = |tag: u8, text: &str| [&[tag, text.len() as u8], text.as_bytes()].concat();
    let send = [vec![1], text(1, convo), text(5, id), text(7, "x")].concat();
    socket.send(Message::binary(send)).expect("it is open");
    let frame = loop {
        match socket.read().expect("it stays open") {
            Message::Binary(frame) if frame[0] == 0x8b => break frame,
            _ => {}
        }
    };
    let mut rest = &frame[1..];
    let mut numbers = BTreeMap::new();
    while let Some((tag, value)) = rest.split_first() {
        let (number, value) = varint(value);
        rest = if tag % 2 == 0 { value } else { &value[number as usize..] };
        numbers.insert(*tag, number);
    }
    numbers
}

fn varint(bytes: &[u8]) -> (u64, &[u8]) {
    let size = bytes.iter().position(|byte| byte & 0x80 == 0).expect("it ends") + 1;
    let bits = bytes[..size].iter().rev();
    (bits.fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)), &bytes[size..])
}

/// The seqs of the messages that have come.
fn heard(client: &mut Client) -> Vec<u64> {
    let frames = std::iter::from_fn(|| client.next(Duration::from_millis(200)));
    let messages = frames.filter(|frame| frame["t"] == "msg");
    messages.map(|frame| frame["seq"].as_u64().expect("a number")).collect()
}

fn post(client: &mut Client, to: &str, id: &str) -> Value {
    ask(client, json!({"t":"send","to":to,"id":id,"body":"text"}))
}

/// The answer to an operation.
fn ask(client: &mut Client, mut operation: Value) -> Value {
    operation["ref"] = json!(7);
    client.say(operation);
    let mut before = std::collections::VecDeque::new();
    loop {
        let frame = client.next(support::client::PATIENCE).expect("an answer comes");
        if frame["ref"] == 7 {
            client.kept.append(&mut before);
            return frame;
        }
        before.push_back(frame);
    }
}
