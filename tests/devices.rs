//! Devices from outside: one `aldis up`, what the protocol page says of revoking one, `kill -9`.
//!
//! Each check uses users of its own.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};
use tungstenite::Error;

/// How long what must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn devices_are_as_the_protocol_page_says() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    a_user_has_devices_and_sees_when_they_were_there(&cluster);
    a_revoked_device_is_cut_and_its_ticket_is_void(&cluster);
    its_own_device_hears_the_answer_first(&cluster);
    what_was_acknowledged_stays_acknowledged(&cluster);
    what_the_last_device_has_not_seen_waits_for_the_next(&cluster);
    bad_requests_change_nothing(&cluster);
    devices_that_are_known_write_nothing_when_they_come(&cluster);
    assert_eq!(cluster.metric("sequencer", "aldis_messages_unaccounted"), Some(0.0));
    let log = std::fs::read_to_string(cluster.data.with_extension("log")).expect("written");
    assert!(!log.contains("panic"), "{log}");
}

fn a_user_has_devices_and_sees_when_they_were_there(cluster: &Cluster) {
    let before = now_ms();
    let mut phone = connect(cluster, "dan", "phone");
    let mut tv = connect(cluster, "dan", "tv");
    let both = devices(&mut phone);
    assert_eq!(names(&both), ["phone", "tv"]);
    assert!(both.iter().all(|(_, seen)| (before..=now_ms()).contains(seen)), "{both:?}");
    let left = now_ms();
    tv.close();
    wait_until("the tv has left", Duration::from_secs(5), || {
        let now = now_ms();
        let seen = devices(&mut phone)[1].1;
        assert!((before..=now).contains(&seen), "{seen}");
        seen < now - 300
    });
    let seen = devices(&mut phone)[1].1;
    assert!((left..left + 1_000).contains(&seen), "{seen}, it left at {left}");
    assert_eq!(names(&devices(&mut connect(cluster, "dana", "phone"))), ["phone"]);
}

fn a_revoked_device_is_cut_and_its_ticket_is_void(cluster: &Cluster) {
    let mut phone = connect(cluster, "eve", "phone");
    let (mut lost, ticket) = connect_for_ticket(cluster, "user=eve&device=lost");
    let mut bob = connect(cluster, "eves-friend", "phone");
    bob.send("eve", "m1", "before");
    assert_eq!(phone.expect("msg")["seq"], 1);
    assert_eq!(lost.expect("msg")["seq"], 1);
    let left = ask(&mut phone, json!({"t":"device.revoke","device":"lost"}));
    assert_eq!((&left["t"], names(&listed(&left))), (&json!("devices"), vec!["phone".to_owned()]));
    bob.send("eve", "m2", "after");
    assert_eq!(phone.expect("msg")["seq"], 2);
    let mut heard = Vec::new();
    while let Some(frame) = lost.next(Duration::from_secs(5)) {
        heard.push(frame);
    }
    assert!(heard.iter().all(|frame| frame["seq"] != 2), "{heard:?}");
    assert_eq!(lost.expect_close(), Some(4004));
    let refused = |query: &str| match Client::try_connect(&cluster.url(query)) {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("{:?}", other.map(|_| "taken")),
    };
    for query in [format!("ticket={ticket}"), format!("user=eve&device=lost&ticket={ticket}")] {
        assert_eq!(refused(&query), 401, "{query}");
    }
    // Of the same name, a new device: the old ticket stays void, its own is good.
    let (fresh, own) = connect_for_ticket(cluster, "user=eve&device=lost");
    assert_eq!(refused(&format!("ticket={ticket}")), 401);
    drop(fresh);
    let (_again, _) = connect_for_ticket(cluster, &format!("ticket={own}"));
    assert_eq!(names(&devices(&mut phone)), ["lost", "phone"]);
}

fn its_own_device_hears_the_answer_first(cluster: &Cluster) {
    let mut only = connect(cluster, "finn", "only");
    let left = ask(&mut only, json!({"t":"device.revoke","device":"only"}));
    assert_eq!(left["devices"], json!([]));
    assert_eq!(only.expect_close(), Some(4004));
    let mut again = connect(cluster, "finn", "only");
    assert_eq!(names(&devices(&mut again)), ["only"]);
}

/// The device that was furthest goes: no watermark of its user falls, no receipt is taken back.
fn what_was_acknowledged_stays_acknowledged(cluster: &Cluster) {
    let mut gus = connect(cluster, "gus", "desk");
    let mut fast = connect(cluster, "hal", "fast");
    let mut slow = connect(cluster, "hal", "slow");
    for seq in 1..=5 {
        gus.send("hal", &format!("m{seq}"), "x");
    }
    read_upto(&mut slow, 2, "delivered");
    assert_eq!(until_receipt(&mut gus, 2, "delivered")["by"], "hal");
    read_upto(&mut fast, 4, "read");
    until_receipt(&mut gus, 4, "read");
    ask(&mut slow, json!({"t":"device.revoke","device":"fast"}));
    assert_eq!(fast.expect_close(), Some(4004));
    let row = &ask(&mut slow, json!({"t":"convos"}))["convos"][0];
    assert_eq!(
        (&row["delivered"], &row["read"], &row["unread"]),
        (&json!(4), &json!(4), &json!(1))
    );
    read_upto(&mut slow, 3, "read");
    assert_eq!(gus.next(QUIET), None, "nothing that was told is told again");
    read_upto(&mut slow, 5, "delivered");
    assert_eq!(until_receipt(&mut gus, 5, "delivered")["by"], "hal");
    let (_new, backlog) = Client::connect_synced(&cluster.url("user=hal&device=new"));
    assert_eq!(backlog, Vec::<Value>::new(), "it starts where the user stands");
}

fn what_the_last_device_has_not_seen_waits_for_the_next(cluster: &Cluster) {
    let mut ida = connect(cluster, "ida", "desk");
    let mut old = connect(cluster, "jon", "old");
    for seq in 1..=3 {
        ida.send("jon", &format!("m{seq}"), "x");
    }
    read_upto(&mut old, 1, "delivered");
    until_receipt(&mut ida, 1, "delivered");
    ask(&mut old, json!({"t":"device.revoke","device":"old"}));
    assert_eq!(old.expect_close(), Some(4004));
    ida.send("jon", "m4", "while there is no device");
    let (_new, backlog) = Client::connect_synced(&cluster.url("user=jon&device=old"));
    let seqs: Vec<u64> = backlog.iter().filter_map(|frame| frame["seq"].as_u64()).collect();
    assert_eq!(seqs, [2, 3, 4]);
}

fn bad_requests_change_nothing(cluster: &Cluster) {
    let mut kim = connect(cluster, "kim", "phone");
    connect(cluster, "lea", "tv");
    for refused in [
        json!({"t":"device.revoke"}),
        json!({"t":"device.revoke","device":""}),
        json!({"t":"device.revoke","device":7}),
        json!({"t":"device.revoke","device":"nope"}),
        json!({"t":"device.revoke","device":"tv"}),
    ] {
        let error = ask(&mut kim, refused.clone());
        assert_eq!((&error["t"], &error["code"]), (&json!("error"), &json!("bad_request")));
    }
    assert_eq!(names(&devices(&mut kim)), ["phone"]);
}

fn devices_that_are_known_write_nothing_when_they_come(cluster: &Cluster) {
    let known = || connect(cluster, "moe", "phone");
    drop(known());
    let records = || cluster.metric("store", "aldis_log_records_total").expect("a metrics page");
    let mut before = records();
    wait_until("the log is at rest", Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(1_500));
        std::mem::replace(&mut before, records()) == records()
    });
    for _ in 0..20 {
        known().close();
    }
    // Longer than what is gathered for the log waits.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(records(), before);
}

/// `kill -9` of everything: a revoked device stays away, and what was told of devices stays true.
#[test]
fn a_revocation_survives_kill_nine() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut phone = connect(&cluster, "ann", "phone");
    let mut tickets = Vec::new();
    for round in 0..6 {
        let name = format!("pad{round}");
        let (mut pad, ticket) = connect_for_ticket(&cluster, &format!("user=ann&device={name}"));
        let answer = ask(&mut phone, json!({"t":"device.revoke","device":name}));
        if round % 2 == 1 {
            cluster.kill(["sequencer", "store"][round / 2 % 2]);
        }
        assert_eq!(names(&listed(&answer)), ["phone"], "{answer}");
        assert_eq!(pad.expect_close(), Some(4004), "{name}");
        tickets.push(ticket);
        wait_until("it goes on", Duration::from_secs(20), || {
            ask(&mut phone, json!({"t":"devices"}))["t"] == "devices"
        });
        assert_eq!(names(&devices(&mut phone)), ["phone"]);
    }
    cluster.kill_all();
    cluster.restart();
    let mut phone = connect(&cluster, "ann", "phone");
    assert_eq!(names(&devices(&mut phone)), ["phone"]);
    for ticket in &tickets {
        match Client::try_connect(&cluster.url(&format!("ticket={ticket}"))) {
            Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), 401),
            other => panic!("{:?}", other.map(|_| "taken")),
        }
    }
    assert_eq!(cluster.metric("sequencer", "aldis_messages_unaccounted"), Some(0.0));
}

fn connect(cluster: &Cluster, user: &str, device: &str) -> Client {
    let query = format!("user={user}&device={device}");
    Client::connect_synced(&cluster.url(&query)).0
}

fn connect_for_ticket(cluster: &Cluster, query: &str) -> (Client, String) {
    let mut client = Client::try_connect(&cluster.url(query)).expect("it may connect");
    let ticket = client.expect("welcome")["ticket"].as_str().expect("text").to_owned();
    client.until_synced();
    (client, ticket)
}

/// Says an operation and waits for what answers it.
fn ask(client: &mut Client, mut operation: Value) -> Value {
    operation["ref"] = json!(7);
    client.say(operation);
    let mut others = Vec::new();
    let answer = loop {
        let frame = client.next(Duration::from_secs(15)).expect("an answer");
        match frame["ref"] == 7 {
            true => break frame,
            false => others.push(frame),
        }
    };
    others.into_iter().rev().for_each(|frame| client.kept.push_front(frame));
    answer
}

fn devices(client: &mut Client) -> Vec<(String, u64)> {
    listed(&ask(client, json!({"t":"devices"})))
}

fn listed(answer: &Value) -> Vec<(String, u64)> {
    let devices = answer["devices"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let device = |entry: &Value| {
        let name = entry["device"].as_str().expect("text").to_owned();
        (name, entry["last_seen"].as_u64().expect("a time"))
    };
    devices.iter().map(device).collect()
}

fn names(devices: &[(String, u64)]) -> Vec<String> {
    devices.iter().map(|(name, _)| name.clone()).collect()
}

fn read_upto(client: &mut Client, seq: u64, kind: &str) {
    let convo = match client.kept.iter().find(|frame| frame["t"] == "msg") {
        Some(frame) => frame["convo"].clone(),
        None => {
            let frame = client.expect("msg");
            let convo = frame["convo"].clone();
            client.kept.push_front(frame);
            convo
        }
    };
    client.say(json!({"t":"ack","convo":convo,"seq":seq,"kind":kind}));
    let kept = std::mem::take(&mut client.kept);
    client.barrier();
    client.kept = kept;
}

fn until_receipt(client: &mut Client, seq: u64, kind: &str) -> Value {
    loop {
        let receipt = client.expect("receipt");
        if receipt["seq"] == seq && receipt["kind"] == kind {
            return receipt;
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis() as u64
}
