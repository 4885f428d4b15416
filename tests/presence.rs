//! Presence, privacy and typing from outside: one `aldis up`, and what the protocol page says.
//!
//! Each check uses users of its own.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};

/// How long what must not come is waited for.
const QUIET: Duration = Duration::from_millis(400);

#[test]
fn presence_is_as_the_protocol_page_says() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    nobody_looks_and_nothing_is_told(&cluster);
    who_comes_and_goes_is_told(&cluster);
    the_last_frame_answers(&cluster);
    subscriptions_are_bounded(&cluster);
    who_hides_was_never_there(&cluster);
    typing_reaches_members_that_are_there(&cluster);
    assert_eq!(cluster.metric("sequencer", "aldis_messages_unaccounted"), Some(0.0));
    assert_eq!(cluster.metric("edge", "aldis_unknown_answers_total"), Some(0.0));
    let log = std::fs::read_to_string(cluster.data.with_extension("log")).expect("written");
    assert!(!log.contains("panic"), "{log}");
}

fn nobody_looks_and_nothing_is_told(cluster: &Cluster) {
    let crowd: Vec<Client> = (0..50).map(|n| connect(cluster, &format!("crowd{n}"))).collect();
    drop(crowd);
    for (process, name) in
        [("edge", "aldis_presence_frames_total"), ("sequencer", "aldis_presence_told_total")]
    {
        assert_eq!(cluster.metric(process, name), Some(0.0), "{name}");
    }
    assert_eq!(cluster.metric("sequencer", "aldis_presence_watched"), Some(0.0));
}

fn who_comes_and_goes_is_told(cluster: &Cluster) {
    let mut ann = connect(cluster, "ann");
    let never = subscribe(&mut ann, &["ben"]);
    assert_eq!(never, [json!({"t":"presence","ref":7,"user":"ben","state":"offline"})]);
    let mut phone = connect_device(cluster, "ben", "phone");
    let came = ann.expect("presence");
    assert_eq!((&came["user"], &came["state"]), (&json!("ben"), &json!("online")));
    assert!(came["last_seen"].is_u64() && came.get("ref").is_none(), "{came}");
    let mut tv = connect_device(cluster, "ben", "tv");
    phone.close();
    assert_eq!(ann.next(Duration::from_secs(6)), None, "he has another device");
    tv.close();
    let closed = Instant::now();
    // A quick return shows nothing.
    std::thread::sleep(Duration::from_millis(500));
    let mut tv = connect_device(cluster, "ben", "tv");
    assert_eq!(ann.next(Duration::from_secs(6)), None, "he was back: {:?}", closed.elapsed());
    tv.close();
    let closed = Instant::now();
    let gone = ann.expect("presence");
    assert_eq!((&gone["user"], &gone["state"]), (&json!("ben"), &json!("offline")));
    assert!(closed.elapsed() < Duration::from_secs(5), "{:?}", closed.elapsed());
    assert!(gone["last_seen"].is_u64(), "{gone}");
    assert_eq!(subscribe(&mut ann, &["ben"])[0]["last_seen"], gone["last_seen"]);
    ann.say(json!({"t":"presence.unsub","users":["ben"]}));
    ann.barrier();
    let _phone = connect_device(cluster, "ben", "phone");
    assert_eq!(ann.next(QUIET), None, "nobody looks any more");
    wait_until("nobody looks", Duration::from_secs(5), || {
        cluster.metric("sequencer", "aldis_presence_watched") == Some(0.0)
    });
}

fn the_last_frame_answers(cluster: &Cluster) {
    let mut cid = connect(cluster, "cid");
    let _dee = connect(cluster, "dee");
    let told = subscribe(&mut cid, &["dee", "nobody", "cid"]);
    let told: Vec<_> = told
        .iter()
        .map(|frame| (frame["user"].as_str(), frame["state"].as_str(), frame["ref"].as_i64()))
        .collect();
    assert_eq!(
        told,
        [
            (Some("dee"), Some("online"), None),
            (Some("nobody"), Some("offline"), None),
            (Some("cid"), Some("online"), Some(7)),
        ]
    );
}

fn subscriptions_are_bounded(cluster: &Cluster) {
    let mut eva = connect(cluster, "eva");
    let users = |range: std::ops::Range<u32>| -> Vec<String> {
        range.map(|number| format!("star{number}")).collect()
    };
    let refused = |eva: &mut Client, users: Value| {
        eva.say(json!({"t":"presence.sub","ref":7,"users":users}));
        eva.next(Duration::from_secs(15)).expect("an answer")
    };
    let error = refused(&mut eva, json!(users(0..501)));
    assert_eq!((&error["t"], &error["limit"]), (&json!("error"), &json!(500)));
    let all = users(0..500);
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(subscribe(&mut eva, &names).len(), 500);
    let error = refused(&mut eva, json!(["star0", "one-more"]));
    assert_eq!((&error["code"], &error["limit"]), (&json!("rate_limited"), &json!(500)));
    assert_eq!(subscribe(&mut eva, &["star0", "star499"]).len(), 2, "they are counted once");
    let _one_more = connect(cluster, "one-more");
    let _star = connect(cluster, "star7");
    let frame = eva.expect("presence");
    assert_eq!(frame["user"], "star7", "what was refused changed nothing");
    for users in [json!([]), json!(null), json!("star1"), json!([""])] {
        assert_eq!(refused(&mut eva, users)["code"], "bad_request");
    }
}

fn who_hides_was_never_there(cluster: &Cluster) {
    let mut fay = connect(cluster, "fay");
    let mut gil = connect(cluster, "gil");
    assert_eq!(subscribe(&mut fay, &["gil"])[0]["state"], "online");
    assert_eq!(subscribe(&mut gil, &["gil"])[0]["state"], "online");
    gil.say(json!({"t":"privacy","ref":8,"presence":"nobody"}));
    assert_eq!(gil.expect("privacy"), json!({"t":"privacy","ref":8,"presence":"nobody"}));
    let hidden = json!({"t":"presence","user":"gil","state":"offline"});
    assert_eq!(fay.expect("presence"), hidden, "as if he had never been there");
    let mut hal = connect(cluster, "hal");
    let mut first = subscribe(&mut hal, &["gil"]).remove(0);
    first.as_object_mut().expect("an object").remove("ref");
    assert_eq!(first, hidden);
    let other = connect_device(cluster, "gil", "other");
    drop(other);
    assert_eq!(fay.next(QUIET), None);
    assert_eq!(subscribe(&mut gil, &["gil"])[0]["state"], "online", "he sees himself");
    gil.say(json!({"t":"privacy","presence":"everyone"}));
    for watcher in [&mut fay, &mut hal] {
        assert_eq!(watcher.expect("presence")["state"], "online");
    }
    gil.say(json!({"t":"privacy","ref":9,"presence":"friends"}));
    assert_eq!(gil.expect("error")["code"], "bad_request");
}

fn typing_reaches_members_that_are_there(cluster: &Cluster) {
    let mut ida = connect(cluster, "ida");
    let mut desk = connect_device(cluster, "ida", "desk");
    let mut joe = connect(cluster, "joe");
    let mut kay = connect(cluster, "kay");
    let typing = |client: &mut Client, convo: &str| {
        client.say(json!({"t":"typing","convo":convo}));
        client.barrier();
    };
    typing(&mut ida, "dm:ida:joe");
    let told = json!({"t":"typing","convo":"dm:ida:joe","from":"ida"});
    for client in [&mut joe, &mut desk] {
        assert_eq!(client.next(Duration::from_secs(5)).as_ref(), Some(&told));
    }
    typing(&mut ida, "dm:ida:joe");
    typing(&mut desk, "dm:ida:joe");
    for client in [&mut joe, &mut desk, &mut ida, &mut kay] {
        assert_eq!(client.next(QUIET), None, "one in three seconds, and not to whoever types");
    }
    ida.say(json!({"t":"group.create","ref":7,"convo":"typists","members":["joe"]}));
    for client in [&mut ida, &mut desk, &mut joe] {
        client.expect("msg");
    }
    ida.kept.clear();
    typing(&mut joe, "typists");
    let told = json!({"t":"typing","convo":"typists","from":"joe"});
    for client in [&mut ida, &mut desk] {
        assert_eq!(client.expect("typing"), told);
    }
    for (convo, code) in
        [("typists", "not_member"), ("dm:ida:joe", "not_member"), ("nothing", "no_such_convo")]
    {
        kay.say(json!({"t":"typing","ref":7,"convo":convo}));
        assert_eq!(kay.expect("error")["code"], code, "{convo}");
    }
    std::thread::sleep(Duration::from_secs(3));
    typing(&mut ida, "dm:ida:joe");
    assert_eq!(joe.expect("typing")["from"], "ida");
}

/// Subscriptions outlive the sequencer, whose restart shows nobody gone; and the wish to be hidden
/// outlives everything.
#[test]
fn presence_survives_kill_nine() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut watcher = connect(&cluster, "watcher");
    let mut here = connect(&cluster, "here");
    let mut shy = connect(&cluster, "shy");
    shy.say(json!({"t":"privacy","presence":"nobody"}));
    shy.expect("privacy");
    let told = subscribe(&mut watcher, &["here", "shy", "away"]);
    assert_eq!(states(&told), ["online", "offline", "offline"]);
    assert!(cluster.kill("sequencer"));
    wait_until("it serves again", Duration::from_secs(20), || {
        here.say(json!({"t":"devices","ref":7}));
        here.next(Duration::from_secs(15)).is_some_and(|frame| frame["t"] == "devices")
    });
    let quiet = Instant::now();
    while let Some(frame) = watcher.next(Duration::from_secs(6).saturating_sub(quiet.elapsed())) {
        assert_ne!(frame["t"], "presence", "nothing has changed");
    }
    let _away = connect(&cluster, "away");
    let came = watcher.expect("presence");
    assert_eq!((&came["user"], &came["state"]), (&json!("away"), &json!("online")));
    here.close();
    let closed = Instant::now();
    let gone = watcher.expect("presence");
    assert_eq!((&gone["user"], &gone["state"]), (&json!("here"), &json!("offline")));
    assert!(closed.elapsed() < Duration::from_secs(5), "{:?}", closed.elapsed());
    cluster.kill_all();
    cluster.restart();
    let mut watcher = connect(&cluster, "watcher");
    let _shy = connect(&cluster, "shy");
    let told = subscribe(&mut watcher, &["shy", "here", "away"]);
    assert_eq!(states(&told), ["offline", "offline", "offline"]);
    assert_eq!(told[0].get("last_seen"), None, "he hides still");
    assert!(told[1]["last_seen"].is_u64() && told[2]["last_seen"].is_u64(), "{told:?}");
}

/// A client whose network is gone, and those of an edge that is killed, are gone 45 s after their
/// last sign of life.
#[test]
fn who_vanishes_is_gone_after_45_seconds() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut watcher = connect(&cluster, "watcher");
    // It reads nothing any more, and so answers no ping.
    let _mute = connect(&cluster, "mute");
    let heard = Instant::now();
    assert_eq!(states(&subscribe(&mut watcher, &["mute"])), ["online"]);
    loop {
        // The watcher itself answers pings while it waits.
        match watcher.next(Duration::from_secs(1)) {
            Some(frame) if frame["t"] == "presence" => {
                assert_eq!(frame["state"], "offline", "{frame}");
                break;
            }
            _ => assert!(heard.elapsed() < Duration::from_secs(50), "{:?}", heard.elapsed()),
        }
    }
    let after = heard.elapsed();
    assert!((Duration::from_secs(43)..Duration::from_secs(49)).contains(&after), "{after:?}");
}

fn connect(cluster: &Cluster, user: &str) -> Client {
    connect_device(cluster, user, "phone")
}

fn connect_device(cluster: &Cluster, user: &str, device: &str) -> Client {
    let query = format!("user={user}&device={device}");
    Client::connect_synced(&cluster.url(&query)).0
}

/// Subscribes, and takes the frames of the answer.
fn subscribe(client: &mut Client, users: &[&str]) -> Vec<Value> {
    client.say(json!({"t":"presence.sub","ref":7,"users":users}));
    let mut told = Vec::new();
    loop {
        told.push(client.expect("presence"));
        if told.last().is_some_and(|frame| frame["ref"] == 7) {
            return told;
        }
    }
}

fn states(told: &[Value]) -> Vec<&str> {
    told.iter().map(|frame| frame["state"].as_str().expect("text")).collect()
}
