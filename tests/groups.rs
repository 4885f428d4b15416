//! Groups from outside: one `aldis up`, and what the protocol page says of them.
//!
//! Each check uses users and groups of its own.

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};

/// How long what must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn groups_are_as_the_protocol_page_says() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    a_group_is_made_and_every_member_hears(&cluster);
    assert_eq!(cluster.metric("sequencer", "aldis_messages_unaccounted"), Some(0.0));
    let log = std::fs::read_to_string(cluster.data.with_extension("log")).expect("written");
    assert!(!log.contains("panic"), "{log}");
}

fn a_group_is_made_and_every_member_hears(cluster: &Cluster) {
    let mut alice = connect(cluster, "alice");
    let mut bob = connect(cluster, "bob");
    let mut carol = connect(cluster, "carol");
    let made = ask(&mut alice, json!({"t":"group.create","convo":"team","members":["bob"]}));
    let state = json!({"t":"group","ref":7,"convo":"team","owner":"alice","admins":[],
        "members":["alice","bob"],"version":1});
    assert_eq!(made, state);
    for client in [&mut alice, &mut bob] {
        let created = client.expect("msg");
        assert_eq!((&created["seq"], &created["kind"]), (&json!(1), &json!("system")));
        assert_eq!((&created["from"], created.get("id")), (&json!("alice"), None));
        assert_eq!(operation(&created), json!({"op":"create","users":["alice","bob"]}));
    }
    assert_eq!(ask(&mut alice, json!({"t":"group.create","convo":"team","members":[]})), state);
    assert_eq!(ask(&mut bob, json!({"t":"group.info","convo":"team"})), state);
    let sent = post(&mut bob, "team", "b1");
    assert_eq!((sent["t"].as_str(), &sent["seq"]), (Some("sent"), &json!(2)));
    let heard = alice.expect("msg");
    assert_eq!(
        (&heard["seq"], &heard["from"], &heard["id"]),
        (&json!(2), &json!("bob"), &json!("b1"))
    );
    for (refused, code) in [
        (json!({"t":"group.info","convo":"team"}), "not_member"),
        (json!({"t":"group.leave","convo":"team"}), "not_member"),
        (json!({"t":"group.add","convo":"team","members":["carol"]}), "not_member"),
        (json!({"t":"group.create","convo":"team","members":[]}), "forbidden"),
        (json!({"t":"group.create","convo":"dm:team","members":[]}), "forbidden"),
        (json!({"t":"group.create","convo":"other","members":"bob"}), "bad_request"),
        (json!({"t":"group.create","convo":"","members":[]}), "bad_request"),
        (json!({"t":"group.create","convo":"other","members":["a\u{1}"]}), "bad_request"),
        (json!({"t":"group.info","convo":"other"}), "no_such_convo"),
        (json!({"t":"history","convo":"team"}), "not_member"),
        (json!({"t":"history","convo":"other"}), "no_such_convo"),
        (json!({"t":"sync","convos":{"team":0}}), "not_member"),
        (json!({"t":"ack","convo":"team","seq":1,"kind":"read"}), "not_member"),
        (json!({"t":"send","convo":"team","id":"c1","body":"x"}), "not_member"),
        (json!({"t":"send","convo":"other","id":"c1","body":"x"}), "no_such_convo"),
    ] {
        let error = ask(&mut carol, refused.clone());
        assert_eq!(
            (error["t"].as_str(), error["code"].as_str()),
            (Some("error"), Some(code)),
            "{refused}"
        );
    }
    assert_eq!(carol.next(QUIET), None);
}

fn connect(cluster: &Cluster, user: &str) -> Client {
    Client::connect_synced(&cluster.url(&format!("user={user}"))).0
}

/// Says an operation; its answer is the next frame with its `ref`.
fn ask(client: &mut Client, mut operation: Value) -> Value {
    operation["ref"] = json!(7);
    client.say(operation);
    let end = Instant::now() + support::client::PATIENCE;
    let mut before = VecDeque::new();
    loop {
        let frame = client.next(end.saturating_duration_since(Instant::now()));
        let frame = frame.expect("an answer comes");
        if frame["ref"] == 7 {
            client.kept = before;
            return frame;
        }
        before.push_back(frame);
    }
}

fn post(client: &mut Client, convo: &str, id: &str) -> Value {
    ask(client, json!({"t":"send","convo":convo,"id":id,"body":format!("body of {id}")}))
}

/// What a system message says.
fn operation(frame: &Value) -> Value {
    serde_json::from_str(frame["body"].as_str().expect("text")).expect("JSON")
}
