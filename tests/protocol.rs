//! The protocol page, from outside: one `aldis up`, and what a client may rely on.
//!
//! Each check uses users of its own. The checks about links come last: they move the most bytes.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Client, Cluster};

const BODY_SIZE_MAX: usize = 65_536;
const FRAME_SIZE_MAX: usize = 131_072;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

#[test]
fn the_protocol_page_holds() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    handshakes_are_refused_by_their_code(&cluster);
    tickets_suffice_and_are_checked(&cluster);
    frames_are_held_to_the_rules(&cluster);
    values_are_held_to_the_rules(&cluster);
    direct_conversations_have_one_spelling(&cluster);
    resends_get_the_first_answer(&cluster);
    acknowledgements_move_receipts_forward(&cluster);
    nothing_comes_before_a_manual_sync(&cluster);
    the_second_connection_replaces_the_first(&cluster);
    quick_reconnects_miss_nothing(&cluster);
    an_abandoned_sync_holds_nobody_up(&cluster);
    assert_eq!(cluster.metric("sequencer", "aldis_messages_unaccounted"), Some(0.0));
    let log = std::fs::read_to_string(cluster.data.with_extension("log")).expect("written");
    assert!(!log.contains("MARKER"), "a body got into a log");
    assert!(!log.contains("panic"), "{log}");
}

fn handshakes_are_refused_by_their_code(cluster: &Cluster) {
    let good = Request { query: "user=handshake", ..Request::default() };
    assert_eq!(good.status(cluster), (101, None));
    for (request, status) in [
        (Request { host: Some("evil.example"), ..good }, 403),
        (Request { host: None, ..good }, 400),
        (Request { more: "Host: 127.0.0.1\r\n", ..good }, 400),
        (Request { more: "Origin: http://evil.example\r\n", ..good }, 403),
        (Request { more: "Origin: null\r\n", ..good }, 403),
        (Request { more: "Sec-WebSocket-Protocol: other\r\n", ..good }, 400),
        (Request { more: "Sec-WebSocket-Protocol: bearer.x, other\r\n", ..good }, 400),
        (Request { key: "dG9vIHNob3J0", ..good }, 400),
        (Request { version: "12", ..good }, 426),
        (Request { upgrade: "h2c", ..good }, 426),
        (Request { path: "/v1/nothing", ..good }, 404),
        (Request { query: "device=phone", ..good }, 401),
        (Request { query: "user=", ..good }, 400),
        (Request { query: "user=%FF", ..good }, 400),
        (Request { query: "user=a%00", ..good }, 400),
        (Request { query: "ticket=none", ..good }, 401),
    ] {
        let (found, refusal) = request.status(cluster);
        assert_eq!(found, status, "{:?}", request.text());
        let refusal = refusal.expect("a refusal is JSON");
        assert!(refusal["code"].is_string() && refusal["message"].is_string(), "{refusal}");
    }
    let long = format!("user={}", "u".repeat(65));
    assert_eq!(Request { query: &long, ..good }.status(cluster).0, 400);
    let bearer = "Sec-WebSocket-Protocol: bearer.x, aldis.v1.json\r\n";
    assert_eq!(Request { more: bearer, ..good }.status(cluster), (101, None));
}

fn tickets_suffice_and_are_checked(cluster: &Cluster) {
    let mut client = Client::try_connect(&cluster.url("user=a%2Bb+%3A%C3%A9&device=d%25")).unwrap();
    let welcome = client.expect("welcome");
    assert_eq!((&welcome["user"], &welcome["device"]), (&json!("a+b+:\u{e9}"), &json!("d%")));
    let ticket = welcome["ticket"].as_str().expect("text").to_owned();
    let mut client = Client::try_connect(&cluster.url(&format!("ticket={ticket}"))).unwrap();
    assert_eq!(client.expect("welcome")["user"], welcome["user"]);
    for index in 0..ticket.len() {
        let other = if ticket.as_bytes()[index] == b'A' { "B" } else { "A" };
        let tampered = [&ticket[..index], other, &ticket[index + 1..]].concat();
        let query = format!("ticket={tampered}");
        assert_eq!(Request { query: &query, ..<_>::default() }.status(cluster).0, 401, "{index}");
    }
}

fn frames_are_held_to_the_rules(cluster: &Cluster) {
    let connect = || Client::connect_synced(&cluster.url("user=frames")).0;
    let mut client = connect();
    let spaced = |size: usize| format!("{{}}{}", " ".repeat(size - 2));
    client.say_raw(&spaced(FRAME_SIZE_MAX));
    assert_eq!(client.expect("error")["code"], "bad_request");
    client.say_raw(&spaced(FRAME_SIZE_MAX + 1));
    assert_eq!(client.expect_close(), Some(1009));
    let mut client = connect();
    client.say_binary(b"{}");
    assert_eq!(client.expect_close(), Some(1003));
}

fn values_are_held_to_the_rules(cluster: &Cluster) {
    let (mut client, _) = Client::connect_synced(&cluster.url("user=values"));
    for malformed in [
        "",
        "[]",
        "{",
        r#"{"t":1}"#,
        r#"{"t":null}"#,
        r#"{"t":"ping","ref":"1"}"#,
        r#"{"t":"ping","ref":9007199254740992}"#,
        r#"{"t":"send","to":"bob","id":"1","body":"\ud800"}"#,
        r#"{"t":"send","to":"bob","id":"1","body64":"eB=="}"#,
        r#"{"t":"send","to":"bob","id":"1","body64":"eA"}"#,
        r#"{"t":"send","to":"bob","id":"1","body":"x","body64":"eA=="}"#,
        r#"{"t":"send","to":"bob","convo":"dm:bob:values","id":"1","body":"x"}"#,
        r#"{"t":"send","to":"bob","id":"1","body":null}"#,
        r#"{"t":"send","to":"bob","id":"","body":"x"}"#,
        r#"{"t":"ack","convo":"dm:bob:values","seq":1,"kind":"seen"}"#,
        r#"{"t":"sync","convos":[]}"#,
    ] {
        client.say_raw(malformed);
        assert_eq!(client.expect("error")["code"], "bad_request", "{malformed}");
    }
    client.say(json!({"t": "nonsense", "ref": -9_007_199_254_740_991_i64}));
    let error = client.expect("error");
    assert_eq!(
        (&error["code"], error["ref"].as_i64()),
        (&json!("unknown_op"), Some(-(1 << 53) + 1))
    );
    let two_bytes = "\u{e9}".repeat(BODY_SIZE_MAX / 2);
    assert_eq!(client.send("bob", "fits", &two_bytes)["dup"], false);
    let over = format!("{two_bytes}x");
    client.say(json!({"t": "send", "to": "bob", "id": "over", "body": over, "ref": 3}));
    let error = client.expect("error");
    assert_eq!((&error["code"], &error["id"]), (&json!("too_large"), &json!("over")));
    let nested = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    client.say_raw(&format!(r#"{{"t":"ping","x":{nested}}}"#));
    client.barrier();
}

fn direct_conversations_have_one_spelling(cluster: &Cluster) {
    let (mut client, _) = Client::connect_synced(&cluster.url("user=names"));
    for (user, convo) in [
        ("a:%", "dm:a%3A%25:names"),
        ("~", "dm:names:~"),
        ("\u{e9}", "dm:names:\u{e9}"),
        ("names", "dm:names:names"),
    ] {
        assert_eq!(client.send(user, "1", "x")["convo"], convo);
    }
    for (convo, code) in [
        ("dm:names:a%3A%25", "bad_request"),
        ("dm:a%3a%25:names", "bad_request"),
        ("dm:n%61mes:~", "bad_request"),
        ("dm:names", "bad_request"),
        ("dm:names:", "bad_request"),
        ("dm:others:others", "not_member"),
        ("no-such-group", "no_such_convo"),
    ] {
        client.say(json!({"t": "send", "convo": convo, "id": "2", "body": "x", "ref": 1}));
        let error = client.expect("error");
        let found = (&error["code"], &error["id"], &error["ref"]);
        assert_eq!(found, (&json!(code), &json!("2"), &json!(1)), "{convo}");
    }
}

fn resends_get_the_first_answer(cluster: &Cluster) {
    let (mut phone, _) = Client::connect_synced(&cluster.url("user=again&device=phone"));
    let mut first = phone.send("bob", "1", "MARKER one");
    first["dup"] = json!(true);
    assert_eq!(phone.send("bob", "1", "MARKER two"), first);
    let (mut laptop, _) = Client::connect_synced(&cluster.url("user=again&device=laptop"));
    assert_eq!(laptop.send("bob", "1", "MARKER three"), first);
    for process in ["store", "sequencer"] {
        assert!(cluster.kill(process));
        assert_eq!(laptop.send("bob", "1", "MARKER four"), first);
    }
    assert_eq!(laptop.send("carol", "1", "x")["dup"], false);
}

fn acknowledgements_move_receipts_forward(cluster: &Cluster) {
    let (mut writer, _) = Client::connect_synced(&cluster.url("user=writer"));
    for id in 1..=3 {
        writer.send("zoe", &id.to_string(), "MARKER");
    }
    let (mut phone, messages) = Client::connect_synced(&cluster.url("user=zoe&device=phone"));
    assert_eq!(seqs(&messages), [1, 2, 3]);
    let (mut laptop, _) = Client::connect_synced(&cluster.url("user=zoe&device=laptop"));
    let ack =
        |seq: i64, kind| json!({"t": "ack", "convo": "dm:writer:zoe", "seq": seq, "kind": kind});
    for beyond in [-1, 4] {
        phone.say(ack(beyond, "read"));
        assert_eq!(phone.expect("error")["code"], "bad_request");
    }
    phone.say(ack(2, "read"));
    let read =
        json!({"t": "receipt", "convo": "dm:writer:zoe", "seq": 2, "kind": "read", "by": "zoe"});
    assert_eq!(writer.expect("receipt")["kind"], "delivered");
    assert_eq!(writer.expect("receipt"), read);
    assert_eq!(laptop.expect("receipt"), read);
    phone.say(ack(1, "read"));
    phone.say(ack(3, "delivered"));
    assert_eq!(writer.expect("receipt")["seq"], 3);
    drop(phone);
    let (_phone, messages) = Client::connect_synced(&cluster.url("user=zoe&device=phone"));
    assert!(messages.is_empty(), "all of it was acknowledged");
}

fn nothing_comes_before_a_manual_sync(cluster: &Cluster) {
    let (mut writer, _) = Client::connect_synced(&cluster.url("user=talker"));
    writer.send("waiter", "1", "x");
    let mut client = Client::connect(&cluster.url("user=waiter&sync=manual"));
    writer.send("waiter", "2", "x");
    assert!(client.next(Duration::from_millis(200)).is_none());
    client.say(json!({"t": "sync", "convos": {"dm:nobody:waiter": 0}}));
    assert_eq!(client.expect("error")["code"], "no_such_convo");
    client.say(json!({"t": "sync"}));
    assert_eq!(seqs(&client.until_synced()), [1, 2]);
    writer.send("waiter", "3", "x");
    assert_eq!(client.expect("msg")["seq"], 3);
}

fn the_second_connection_replaces_the_first(cluster: &Cluster) {
    let (mut first, _) = Client::connect_synced(&cluster.url("user=twin"));
    let (mut second, _) = Client::connect_synced(&cluster.url("user=twin"));
    assert_eq!(first.expect("goaway")["reason"], "replaced");
    assert_eq!(first.expect_close(), Some(4001));
    second.barrier();
}

/// A connection replaced while its backlog was read left an answer that the next one took for its
/// own: messages were skipped, or the sequencer ended.
fn quick_reconnects_miss_nothing(cluster: &Cluster) {
    let (mut writer, _) = Client::connect_synced(&cluster.url("user=hasty&device=writer"));
    for id in 0..60 {
        writer.send("hasty", &id.to_string(), &"MARKER".repeat(1_000));
    }
    for _ in 0..60 {
        drop(Client::connect(&cluster.url("user=hasty&device=phone")));
    }
    let (_phone, messages) = Client::connect_synced(&cluster.url("user=hasty&device=phone"));
    assert_eq!(seqs(&messages), (1..=60).collect::<Vec<u64>>());
}

/// An entry that is never answered holds back the link's acknowledgements: after 64 MiB of window
/// nobody on that shard would have been served any more.
fn an_abandoned_sync_holds_nobody_up(cluster: &Cluster) {
    let (mut writer, _) = Client::connect_synced(&cluster.url("user=bulk&device=writer"));
    // More than the buffers of one socket hold, so that the sync cannot end.
    many(&mut writer, "before", 250);
    let mut deaf = Client::connect(&cluster.url("user=sink&sync=manual"));
    deaf.say(json!({"t": "sync", "convos": {"dm:bulk:sink": 0}}));
    std::thread::sleep(Duration::from_millis(500));
    drop(deaf);
    many(&mut writer, "after", 1_100);
    writer.barrier();
}

fn many(writer: &mut Client, name: &str, count: usize) {
    let body = "b".repeat(BODY_SIZE_MAX);
    for index in 0..count {
        let id = format!("{name}{index}");
        writer.say(json!({"t": "send", "to": "sink", "id": id, "body": body}));
        if index % 25 == 24 {
            (0..25).for_each(|_| assert!(writer.expect("sent")["seq"].is_u64()));
        }
    }
}

fn seqs(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|message| message["seq"].as_u64().expect("a number")).collect()
}

/// A request for the upgrade, with what may be wrong about it.
#[derive(Clone, Copy)]
struct Request<'a> {
    path: &'a str,
    query: &'a str,
    /// `None`: no such header; the default stands for the address itself.
    host: Option<&'a str>,
    key: &'a str,
    version: &'a str,
    upgrade: &'a str,
    more: &'a str,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Request {
            path: "/v1/connect",
            query: "",
            host: Some("localhost"),
            key: KEY,
            version: "13",
            upgrade: "websocket",
            more: "",
        }
    }
}

impl Request<'_> {
    /// The status, and the refusal if there is one.
    fn status(&self, cluster: &Cluster) -> (u16, Option<Value>) {
        let mut socket = TcpStream::connect(&cluster.address).expect("it listens");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
        socket.write_all(self.text().as_bytes()).expect("it reads");
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let size = socket.read(&mut piece).expect("it answers");
            answer.extend_from_slice(&piece[..size]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let status = head[9..12].parse().expect("a status line");
            let refusal = serde_json::from_str(body).ok();
            if status == 101 || refusal.is_some() || size == 0 {
                return (status, refusal.filter(|_| status != 101));
            }
        }
    }

    fn text(&self) -> String {
        let Request { path, query, key, version, upgrade, more, .. } = self;
        let host = self.host.map_or(String::new(), |host| format!("Host: {host}\r\n"));
        format!(
            "GET {path}?{query} HTTP/1.1\r\n{host}Connection: Upgrade\r\nUpgrade: {upgrade}\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: {version}\r\n{more}\r\n"
        )
    }
}
