//! Groups from outside: one `aldis up`, and what the protocol page says of them.
//!
//! Each check uses users and groups of its own.

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    membership_moves_and_history_follows_it(&cluster);
    who_was_away_hears_what_was_his(&cluster);
    roles_are_given_and_inherited(&cluster);
    small_groups_hear_every_step(&cluster);
    a_large_group_hears_and_its_sender_is_not_flooded(&cluster);
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

fn membership_moves_and_history_follows_it(cluster: &Cluster) {
    let mut owner = connect(cluster, "owner");
    let mut ann = connect(cluster, "ann");
    ask(&mut owner, json!({"t":"group.create","convo":"club","members":[]}));
    post(&mut owner, "club", "o2");
    let added = ask(&mut owner, json!({"t":"group.add","convo":"club","members":["ann","ben"]}));
    assert_eq!(
        (&added["version"], &added["members"]),
        (&json!(2), &json!(["ann", "ben", "owner"]))
    );
    let same = ask(&mut owner, json!({"t":"group.add","convo":"club","members":["ann"]}));
    assert_eq!(same, added, "nothing changes");
    assert_eq!(seq(&ann.expect("msg")), 3, "from her joining on");
    post(&mut owner, "club", "o4");
    assert_eq!(seq(&ann.expect("msg")), 4);
    let page = ask(&mut ann, json!({"t":"history","convo":"club"}));
    assert_eq!((seqs(&page["msgs"]), &page["more"]), (vec![3, 4], &json!(false)));
    let page = ask(&mut ann, json!({"t":"history","convo":"club","limit":1}));
    assert_eq!((seqs(&page["msgs"]), &page["more"]), (vec![4], &json!(true)));
    let page = ask(&mut ann, json!({"t":"history","convo":"club","before":3}));
    assert_eq!((seqs(&page["msgs"]), &page["more"]), (vec![], &json!(false)));
    ann.say(json!({"t":"sync","ref":8,"convos":{"club":0}}));
    assert_eq!(seqs(&json!(ann.until_synced())), vec![3, 4]);
    let list = ask(&mut ann, json!({"t":"convos"}));
    let row = json!({"convo":"club","head":4,"delivered":2,"read":2,"unread":2,
        "others_delivered":0,"others_read":0});
    assert_eq!(list["convos"], json!([row]));
    post(&mut ann, "club", "a5");
    let removed =
        ask(&mut owner, json!({"t":"group.remove","convo":"club","members":["ann","eve"]}));
    assert_eq!(removed["members"], json!(["ben", "owner"]));
    let farewell = ann.expect("msg");
    assert_eq!(operation(&farewell), json!({"op":"remove","users":["ann"]}));
    post(&mut owner, "club", "o7");
    assert_eq!(ann.next(QUIET), None, "nothing later");
    let again = post(&mut ann, "club", "a5");
    assert_eq!(
        (&again["t"], &again["seq"], &again["dup"]),
        (&json!("sent"), &json!(5), &json!(true))
    );
    assert_eq!(post(&mut ann, "club", "a8")["code"], "not_member");
    assert_eq!(ask(&mut ann, json!({"t":"convos"}))["convos"], json!([]));
    assert_eq!(ask(&mut ann, json!({"t":"history","convo":"club"}))["code"], "not_member");
    ann.say(json!({"t":"ack","ref":9,"convo":"club","seq":6,"kind":"read"}));
    ann.barrier();
    let beyond = ask(&mut ann, json!({"t":"ack","convo":"club","seq":7,"kind":"read"}));
    assert_eq!(beyond["code"], "not_member");
    ask(&mut owner, json!({"t":"group.add","convo":"club","members":["ann"]}));
    assert_eq!(seq(&ann.expect("msg")), 8, "she sees from the new joining on");
    let page = ask(&mut ann, json!({"t":"history","convo":"club"}));
    assert_eq!(seqs(&page["msgs"]), vec![8]);
}

fn who_was_away_hears_what_was_his(cluster: &Cluster) {
    let mut host = connect(cluster, "host");
    ask(&mut host, json!({"t":"group.create","convo":"away","members":["x","y"]}));
    post(&mut host, "away", "h2");
    ask(&mut host, json!({"t":"group.remove","convo":"away","members":["x"]}));
    post(&mut host, "away", "h4");
    ask(&mut host, json!({"t":"group.add","convo":"away","members":["z"]}));
    post(&mut host, "away", "h6");
    for (user, heard) in [("x", vec![1, 2, 3]), ("y", vec![1, 2, 3, 4, 5, 6]), ("z", vec![5, 6])] {
        let (mut client, backlog) = Client::connect_synced(&cluster.url(&format!("user={user}")));
        assert_eq!(seqs(&json!(backlog)), heard, "{user}");
        let last = heard.last().expect("some");
        client.say(json!({"t":"ack","convo":"away","seq":last,"kind":"delivered"}));
        client.barrier();
        let (_client, backlog) = Client::connect_synced(&cluster.url(&format!("user={user}")));
        assert_eq!(backlog, Vec::<Value>::new(), "{user}");
    }
}

fn roles_are_given_and_inherited(cluster: &Cluster) {
    let mut king = connect(cluster, "king");
    let mut queen = connect(cluster, "queen");
    ask(&mut king, json!({"t":"group.create","convo":"court","members":["queen","jack"]}));
    let add = json!({"t":"group.add","convo":"court","members":["fool"]});
    assert_eq!(ask(&mut queen, add.clone())["code"], "forbidden");
    let role = json!({"t":"group.role","convo":"court","members":["queen"],"role":"admin"});
    assert_eq!(ask(&mut queen, role.clone())["code"], "forbidden");
    assert_eq!(ask(&mut king, role)["admins"], json!(["queen"]));
    assert_eq!(ask(&mut queen, add)["members"], json!(["fool", "jack", "king", "queen"]));
    let left = ask(&mut king, json!({"t":"group.leave","convo":"court"}));
    assert_eq!((&left["owner"], &left["admins"]), (&json!("queen"), &json!([])));
    assert_eq!(ask(&mut king, json!({"t":"group.info","convo":"court"}))["code"], "not_member");
    let many: Vec<String> = (0..1_021).map(|index| format!("page{index}")).collect();
    let add = |members: &[String]| json!({"t":"group.add","convo":"court","members":members});
    let full = ask(&mut queen, add(&[&many[..], &["one".into()]].concat()));
    assert_eq!((&full["code"], &full["limit"]), (&json!("group_full"), &json!(1_024)));
    let grown = ask(&mut queen, add(&many));
    assert_eq!(grown["members"].as_array().map(Vec::len), Some(1_024));
}

/// A group of 1,024, of whom some are there: one write, one frame each, and few receipts.
fn a_large_group_hears_and_its_sender_is_not_flooded(cluster: &Cluster) {
    const PRESENT: usize = 120;
    let mut sender = connect(cluster, "speaker");
    let members: Vec<String> = (0..1_023).map(|index| format!("hearer{index}")).collect();
    ask(&mut sender, json!({"t":"group.create","convo":"hall","members":members}));
    let mut hearers: Vec<Client> =
        members[..PRESENT].iter().map(|member| connect(cluster, member)).collect();
    assert_eq!(post(&mut sender, "hall", "s2")["seq"], 2);
    for hearer in &mut hearers {
        while seq(&hearer.expect("msg")) != 2 {}
        hearer.say(json!({"t":"ack","convo":"hall","seq":2,"kind":"read"}));
    }
    let mut frames = Vec::new();
    let reached = |frames: &[Value], kind: &str| {
        let of_kind =
            frames.iter().filter(|frame| frame["t"] == "receipt" && frame["kind"] == kind);
        of_kind.map(|frame| frame["count"].as_u64().expect("a count")).collect::<Vec<u64>>()
    };
    let start = Instant::now();
    while reached(&frames, "read").last() != Some(&(PRESENT as u64)) {
        frames.extend(sender.next(Duration::from_millis(50)));
        assert!(start.elapsed() < Duration::from_secs(20), "{frames:?}");
    }
    frames.extend(sender.next(Duration::from_secs(1)));
    let windows = start.elapsed().as_millis() as usize / 500 + 3;
    for kind in ["delivered", "read"] {
        let counts = reached(&frames, kind);
        assert!(counts.is_sorted(), "{counts:?}");
        assert!(counts.len() < PRESENT / 2 && counts.len() <= windows + 8, "{counts:?}");
    }
    let receipts = frames.iter().filter(|frame| frame["t"] == "receipt");
    assert!(receipts.into_iter().all(|frame| frame["of"] == 1_023 && frame["seq"] == 2));
}

fn small_groups_hear_every_step(cluster: &Cluster) {
    let mut one = connect(cluster, "one");
    let mut two = connect(cluster, "two");
    let mut three = connect(cluster, "three");
    ask(&mut one, json!({"t":"group.create","convo":"trio","members":["two","three"]}));
    post(&mut one, "trio", "t2");
    two.say(json!({"t":"ack","convo":"trio","seq":2,"kind":"delivered"}));
    let receipt = one.expect("receipt");
    assert_eq!(
        receipt,
        json!({"t":"receipt","convo":"trio","seq":2,"kind":"delivered",
        "by":"two","count":1,"of":2})
    );
    three.say(json!({"t":"ack","convo":"trio","seq":2,"kind":"delivered"}));
    let receipt = one.expect("receipt");
    assert_eq!((&receipt["count"], &receipt["by"]), (&json!(2), &json!("three")));
}

/// `kill -9` of the sequencer and of the store while a group talks and changes.
#[test]
fn a_group_survives_kill_nine() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut alice = connect(&cluster, "alice");
    let mut bob = connect(&cluster, "bob");
    ask(&mut alice, json!({"t":"group.create","convo":"g","members":["bob","carol"]}));
    let mut promised = BTreeMap::new();
    for round in 0..12 {
        if round % 3 == 1 {
            cluster.kill(["sequencer", "store"][round / 3 % 2]);
        }
        for index in 0..5 {
            let id = format!("a{round}-{index}");
            promised.insert(id.clone(), insist_on_send(&mut alice, &id));
        }
        let op = ["group.add", "group.remove"][round % 2];
        let is_in = round % 2 == 0;
        loop {
            let answer = ask(&mut alice, json!({"t":op,"convo":"g","members":["dora"]}));
            match answer["t"].as_str() {
                Some("group") => {
                    let members = answer["members"].as_array().expect("a list");
                    assert_eq!(members.contains(&json!("dora")), is_in);
                    break;
                }
                _ => assert_eq!(answer["code"], "unavailable", "{answer}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let head = post(&mut alice, "g", "last")["seq"].as_u64().expect("sent");
    let mut heard = BTreeSet::new();
    let start = Instant::now();
    while heard.len() < head as usize {
        let frame = bob.next(Duration::from_millis(50));
        heard.extend(frame.filter(|frame| frame["t"] == "msg").map(|frame| seq(&frame)));
        assert!(start.elapsed() < Duration::from_secs(30), "bob misses some of {head}: {heard:?}");
    }
    cluster.kill_all();
    cluster.restart();
    let mut reader = Client::connect(&cluster.url("user=bob&device=reader&sync=manual"));
    reader.say(json!({"t":"sync","ref":1,"convos":{"g":0}}));
    let messages = reader.until_synced();
    assert_eq!(seqs(&json!(messages)), (1..=head).collect::<Vec<u64>>());
    let mut ids = BTreeSet::new();
    for message in messages.iter().filter(|message| message["kind"] != "system") {
        let id = message["id"].as_str().expect("text").to_owned();
        assert!(ids.insert(id.clone()), "{id} is in the log twice");
        if id != "last" {
            assert_eq!(promised.get(&id), Some(&seq(message)), "{id}");
        }
    }
    assert_eq!(ids.len(), promised.len() + 1);
    let system = messages.iter().filter(|message| message["kind"] == "system").count();
    assert_eq!(system, 13, "each change is there once");
    let mut dora = Client::connect(&cluster.url("user=dora&sync=manual"));
    assert_eq!(ask(&mut dora, json!({"t":"group.info","convo":"g"}))["code"], "not_member");
    for process in ["sequencer", "store"] {
        let unaccounted = || cluster.metric(process, "aldis_messages_unaccounted");
        wait_until("a metrics page", Duration::from_secs(5), || unaccounted().is_some());
        assert_eq!(unaccounted(), Some(0.0), "{process}");
    }
    cluster.audit();
    cluster.kill_all();
    cluster.audit();
}

/// Sends until it is answered; the seq.
fn insist_on_send(client: &mut Client, id: &str) -> u64 {
    loop {
        let answer = post(client, "g", id);
        if answer["t"] == "sent" {
            return answer["seq"].as_u64().expect("a number");
        }
        assert_eq!(answer["code"], "unavailable", "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn seq(frame: &Value) -> u64 {
    frame["seq"].as_u64().unwrap_or_else(|| panic!("seq of {frame}"))
}

fn seqs(frames: &Value) -> Vec<u64> {
    frames.as_array().expect("a list").iter().map(seq).collect()
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
