//! Channels from outside: real processes, and what the protocol page says of them.
//!
//! Each check uses users and channels of its own.

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};

/// How long what must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn channels_are_as_the_protocol_page_says() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "2"]);
    few_write_and_who_subscribes_hears(&cluster);
    names_are_shared_with_groups(&cluster);
    who_was_away_is_caught_up_from_where_he_was(&cluster);
    every_device_hears_but_the_one_that_sent(&cluster);
    roles_are_given_by_the_owner(&cluster);
    what_was_asked_behind_a_subscription_waits_for_it(&cluster);
    wait_until("the fan-out has passed it all", Duration::from_secs(5), || {
        cluster.metric("sequencer", "aldis_fanout_lag") == Some(0.0)
    });
    let markers = cluster.metric("sequencer", "aldis_markers_total");
    assert_eq!(markers, Some(2.0), "for the one group's two members, and none for channels");
    for process in ["sequencer", "store"] {
        assert_eq!(cluster.metric(process, "aldis_messages_unaccounted"), Some(0.0));
    }
    let log = std::fs::read_to_string(cluster.data.with_extension("log")).expect("written");
    assert!(!log.contains("panic"), "{log}");
}

fn few_write_and_who_subscribes_hears(cluster: &Cluster) {
    let mut alice = connect(cluster, "alice");
    let mut bob = connect(cluster, "bob");
    let mut carol = connect(cluster, "carol");
    let made = ask(&mut alice, json!({"t":"channel.create","convo":"news"}));
    let state = json!({"t":"channel","ref":7,"convo":"news","owner":"alice","subscribers":0});
    assert_eq!(made, state);
    let created = alice.expect("msg");
    assert_eq!((seq(&created), &created["kind"]), (1, &json!("system")));
    assert_eq!(ask(&mut alice, json!({"t":"channel.create","convo":"news"})), state);
    assert_eq!(post(&mut alice, "news", "a2")["seq"], 2);
    for (refused, code) in [
        (json!({"t":"channel.create","convo":"news"}), "forbidden"),
        (json!({"t":"send","convo":"news","id":"c1","body":"x"}), "not_member"),
        (json!({"t":"history","convo":"news"}), "not_member"),
        (json!({"t":"sync","convos":{"news":0}}), "not_member"),
        (json!({"t":"ack","convo":"news","seq":1,"kind":"read"}), "not_member"),
        (json!({"t":"channel.subscribe","convo":"olds"}), "no_such_convo"),
        (json!({"t":"channel.unsubscribe","convo":"olds"}), "no_such_convo"),
        (json!({"t":"channel.create","convo":"dm:alice:bob"}), "forbidden"),
        (json!({"t":"channel.create","convo":""}), "bad_request"),
        (json!({"t":"channel.subscribe"}), "bad_request"),
    ] {
        assert_eq!(ask(&mut carol, refused.clone())["code"], code, "{refused}");
    }
    let subscribed = ask(&mut bob, json!({"t":"channel.subscribe","convo":"news"}));
    assert_eq!(subscribed["subscribers"], 1);
    let again = ask(&mut bob, json!({"t":"channel.subscribe","convo":"news"}));
    assert_eq!(again, subscribed, "nothing changes");
    assert_eq!(post(&mut alice, "news", "a3")["seq"], 3);
    let heard = bob.expect("msg");
    assert_eq!((seq(&heard), &heard["id"], &heard["from"]), (3, &json!("a3"), &json!("alice")));
    assert_eq!(post(&mut bob, "news", "b1")["code"], "forbidden");
    let page = ask(&mut bob, json!({"t":"history","convo":"news"}));
    assert_eq!((seqs(&page["msgs"]), &page["more"]), (vec![1, 2, 3], &json!(false)));
    bob.say(json!({"t":"sync","ref":8,"convos":{"news":0}}));
    assert_eq!(seqs(&json!(bob.until_synced())), vec![1, 2, 3]);
    let row = |delivered: u64, unread: u64| {
        json!([{"convo":"news","head":3,"delivered":delivered,"read":2,"unread":unread,
            "others_delivered":0,"others_read":0}])
    };
    assert_eq!(ask(&mut bob, json!({"t":"convos"}))["convos"], row(2, 1));
    bob.say(json!({"t":"ack","convo":"news","seq":3,"kind":"delivered"}));
    bob.barrier();
    assert_eq!(ask(&mut bob, json!({"t":"convos"}))["convos"], row(3, 1));
    assert_eq!(
        ask(&mut bob, json!({"t":"ack","convo":"news","seq":4,"kind":"read"}))["code"],
        "bad_request"
    );
    assert_eq!(alice.next(QUIET), None, "no receipts");
    let left = ask(&mut bob, json!({"t":"channel.unsubscribe","convo":"news"}));
    assert_eq!(left["subscribers"], 0);
    post(&mut alice, "news", "a4");
    assert_eq!(bob.next(QUIET), None, "nothing later");
    assert_eq!(ask(&mut bob, json!({"t":"convos"}))["convos"], json!([]));
    assert_eq!(ask(&mut bob, json!({"t":"history","convo":"news"}))["code"], "not_member");
    assert_eq!(post(&mut bob, "news", "b1")["code"], "not_member");
    let gone = ask(&mut bob, json!({"t":"channel.unsubscribe","convo":"news"}));
    assert_eq!(gone, left, "nothing changes");
    let (_bob, backlog) = Client::connect_synced(&cluster.url("user=bob"));
    assert_eq!(backlog, Vec::<Value>::new());
    assert_eq!(carol.next(QUIET), None);
}

fn names_are_shared_with_groups(cluster: &Cluster) {
    let mut ann = connect(cluster, "ann");
    let mut ben = connect(cluster, "ben");
    ask(&mut ann, json!({"t":"group.create","convo":"a-group","members":["ben"]}));
    ask(&mut ann, json!({"t":"channel.create","convo":"a-channel"}));
    for refused in [
        json!({"t":"channel.create","convo":"a-group"}),
        json!({"t":"channel.subscribe","convo":"a-group"}),
        json!({"t":"channel.unsubscribe","convo":"a-group"}),
        json!({"t":"group.create","convo":"a-channel","members":[]}),
        json!({"t":"group.add","convo":"a-channel","members":["ben"]}),
        json!({"t":"group.remove","convo":"a-channel","members":["ben"]}),
        json!({"t":"group.leave","convo":"a-channel"}),
    ] {
        for client in [&mut ann, &mut ben] {
            assert_eq!(ask(client, refused.clone())["code"], "forbidden", "{refused}");
        }
    }
    assert_eq!(ask(&mut ben, json!({"t":"group.info","convo":"a-channel"}))["code"], "forbidden");
}

fn who_was_away_is_caught_up_from_where_he_was(cluster: &Cluster) {
    let mut host = connect(cluster, "host");
    ask(&mut host, json!({"t":"channel.create","convo":"log"}));
    post(&mut host, "log", "h2");
    let mut guest = connect(cluster, "guest");
    ask(&mut guest, json!({"t":"channel.subscribe","convo":"log"}));
    drop(guest);
    for index in 3..=6 {
        assert_eq!(post(&mut host, "log", &format!("h{index}"))["seq"], index);
    }
    let (mut guest, backlog) = Client::connect_synced(&cluster.url("user=guest"));
    assert_eq!(seqs(&json!(backlog)), vec![3, 4, 5, 6], "from the subscription on");
    guest.say(json!({"t":"ack","convo":"log","seq":4,"kind":"delivered"}));
    guest.barrier();
    drop(guest);
    post(&mut host, "log", "h7");
    let (mut guest, backlog) = Client::connect_synced(&cluster.url("user=guest"));
    assert_eq!(seqs(&json!(backlog)), vec![5, 6, 7], "from what was acknowledged on");
    post(&mut host, "log", "h8");
    assert_eq!(seq(&guest.expect("msg")), 8, "and then it is live");
    let mut manual = Client::connect(&cluster.url("user=guest&device=manual&sync=manual"));
    post(&mut host, "log", "h9");
    assert_eq!(manual.next(QUIET), None, "nothing before the first sync");
    manual.say(json!({"t":"sync","ref":1,"convos":{"log":7}}));
    assert_eq!(seqs(&json!(manual.until_synced())), vec![8, 9]);
    post(&mut host, "log", "h10");
    assert_eq!(seq(&manual.expect("msg")), 10);
    guest.say(json!({"t":"ack","convo":"log","seq":10,"kind":"read"}));
    guest.barrier();
    let (_guest, backlog) = Client::connect_synced(&cluster.url("user=guest&device=third"));
    assert_eq!(backlog, Vec::<Value>::new(), "a new device begins where the others are");
}

fn every_device_hears_but_the_one_that_sent(cluster: &Cluster) {
    let mut phone = Client::connect_synced(&cluster.url("user=dj&device=phone")).0;
    let mut desk = Client::connect_synced(&cluster.url("user=dj&device=desk")).0;
    ask(&mut phone, json!({"t":"channel.create","convo":"radio"}));
    assert_eq!((seq(&phone.expect("msg")), seq(&desk.expect("msg"))), (1, 1));
    let mut fan = Client::connect_synced(&cluster.url("user=fan&device=one")).0;
    let mut other = Client::connect_synced(&cluster.url("user=fan&device=two")).0;
    ask(&mut fan, json!({"t":"channel.subscribe","convo":"radio"}));
    post(&mut phone, "radio", "p2");
    post(&mut desk, "radio", "d3");
    for client in [&mut fan, &mut other] {
        assert_eq!((seq(&client.expect("msg")), seq(&client.expect("msg"))), (2, 3));
    }
    assert_eq!((seq(&desk.expect("msg")), seq(&phone.expect("msg"))), (2, 3));
    for client in [&mut phone, &mut desk, &mut fan, &mut other] {
        assert_eq!(client.next(Duration::from_millis(50)), None, "each hears it once");
    }
    let again = post(&mut phone, "radio", "p2");
    assert_eq!((&again["seq"], &again["dup"]), (&json!(2), &json!(true)));
}

fn roles_are_given_by_the_owner(cluster: &Cluster) {
    let mut king = connect(cluster, "king");
    let mut queen = connect(cluster, "queen");
    let mut jack = connect(cluster, "jack");
    ask(&mut king, json!({"t":"channel.create","convo":"court"}));
    ask(&mut jack, json!({"t":"channel.subscribe","convo":"court"}));
    let role =
        |role: &str| json!({"t":"group.role","convo":"court","members":["queen"],"role":role});
    assert_eq!(ask(&mut queen, role("admin"))["code"], "forbidden");
    assert_eq!(post(&mut queen, "court", "q1")["code"], "not_member");
    let named = ask(&mut king, role("admin"));
    let state = json!({"t":"group","ref":7,"convo":"court","owner":"king","admins":["queen"],
        "members":["king","queen"],"version":2});
    assert_eq!(named, state);
    assert_eq!(ask(&mut king, role("admin")), state, "nothing changes");
    assert_eq!(ask(&mut queen, json!({"t":"group.info","convo":"court"})), state);
    assert_eq!(post(&mut queen, "court", "q1")["seq"], 3);
    assert_eq!((seq(&jack.expect("msg")), seq(&jack.expect("msg"))), (2, 3));
    assert_eq!(queen.next(QUIET), None, "she is not subscribed");
    assert_eq!(ask(&mut king, role("member"))["version"], 3);
    assert_eq!(post(&mut queen, "court", "q2")["code"], "not_member");
    assert_eq!(post(&mut queen, "court", "q1")["dup"], true, "what was accepted is answered");
}

fn what_was_asked_behind_a_subscription_waits_for_it(cluster: &Cluster) {
    let mut owner = connect(cluster, "owner");
    ask(&mut owner, json!({"t":"channel.create","convo":"quick"}));
    post(&mut owner, "quick", "o2");
    let mut hasty = connect(cluster, "hasty");
    hasty.say(json!({"t":"channel.subscribe","ref":1,"convo":"quick"}));
    hasty.say(json!({"t":"history","ref":2,"convo":"quick"}));
    hasty.say(json!({"t":"sync","ref":3,"convos":{"quick":1}}));
    hasty.say(json!({"t":"channel.unsubscribe","ref":4,"convo":"quick"}));
    hasty.say(json!({"t":"history","ref":5,"convo":"quick"}));
    assert_eq!(hasty.expect("channel")["subscribers"], 1);
    assert_eq!(seqs(&hasty.expect("page")["msgs"]), vec![1, 2]);
    hasty.barrier();
    assert_eq!(ask(&mut hasty, json!({"t":"history","convo":"quick"}))["code"], "not_member");
    let back = ask(&mut hasty, json!({"t":"channel.subscribe","convo":"quick"}));
    assert_eq!(back["subscribers"], 1);
}

/// `kill -9` of the sequencer and of the store while a channel talks, and readers come and go.
#[test]
fn a_channel_survives_kill_nine() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut alice = connect(&cluster, "alice");
    ask(&mut alice, json!({"t":"channel.create","convo":"g"}));
    let mut bob = connect(&cluster, "bob");
    insist(&mut bob, json!({"t":"channel.subscribe","convo":"g"}));
    let mut promised = BTreeSet::from([1]);
    for round in 0..9 {
        if round % 3 == 1 {
            cluster.kill(["sequencer", "store"][round / 3 % 2]);
        }
        for index in 0..5 {
            let send = json!({"t":"send","convo":"g","id":format!("a{round}-{index}"),"body":"x"});
            promised.insert(seq(&insist(&mut alice, send)));
        }
        let mut reader = connect(&cluster, &format!("reader{round}"));
        insist(&mut reader, json!({"t":"channel.subscribe","convo":"g"}));
        if round % 2 == 1 {
            insist(&mut reader, json!({"t":"channel.unsubscribe","convo":"g"}));
        }
    }
    let head = *promised.last().expect("some");
    assert_eq!(promised, (1..=head).collect(), "each place is given once");
    let mut heard = BTreeSet::new();
    let start = Instant::now();
    while heard.len() < head as usize - 1 {
        let frame = bob.next(Duration::from_millis(50));
        heard.extend(frame.filter(|frame| frame["t"] == "msg").map(|frame| seq(&frame)));
        assert!(start.elapsed() < Duration::from_secs(30), "bob misses some of {head}: {heard:?}");
    }
    cluster.kill_all();
    cluster.restart();
    let (mut bob, backlog) = Client::connect_synced(&cluster.url("user=bob"));
    assert_eq!(seqs(&json!(backlog)), (2..=head).collect::<Vec<u64>>(), "from his subscription");
    let state = ask(&mut bob, json!({"t":"channel.subscribe","convo":"g"}));
    assert_eq!(state["subscribers"], 1 + 5, "bob, and every second reader");
    let mut left = Client::connect_synced(&cluster.url("user=reader1")).0;
    assert_eq!(ask(&mut left, json!({"t":"history","convo":"g"}))["code"], "not_member");
    let mut stayed = Client::connect_synced(&cluster.url("user=reader8")).0;
    let mut alice = Client::connect_synced(&cluster.url("user=alice")).0;
    post(&mut alice, "g", "last");
    assert_eq!(seq(&stayed.expect("msg")), head + 1, "he is live again");
    assert_eq!(seq(&bob.expect("msg")), head + 1);
    assert_eq!(left.next(QUIET), None);
    for process in ["sequencer", "store"] {
        assert_eq!(cluster.metric(process, "aldis_messages_unaccounted"), Some(0.0), "{process}");
    }
}

/// What the rate leaves out is a gap, which `sync` closes; the last message comes by itself.
#[test]
fn the_rate_leaves_out_what_sync_brings() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let environment = [("ALDIS_SEQUENCER_CHANNEL_PUSHES_PER_SECOND", "20")];
    let cluster = Cluster::start_with(folder.path().join("data"), &["--shards", "1"], &environment);
    let mut owner = connect(&cluster, "owner");
    ask(&mut owner, json!({"t":"channel.create","convo":"busy"}));
    let mut readers: Vec<Client> =
        (0..9).map(|index| connect(&cluster, &format!("r{index}"))).collect();
    for reader in &mut readers {
        ask(reader, json!({"t":"channel.subscribe","convo":"busy"}));
    }
    for index in 2..=60 {
        assert_eq!(post(&mut owner, "busy", &format!("m{index}"))["seq"], index);
    }
    for reader in &mut readers {
        let mut heard = Vec::new();
        while heard.last() != Some(&60) {
            heard.push(seq(&reader.expect("msg")));
        }
        assert!(heard.is_sorted_by(|one, other| one < other), "{heard:?}");
        assert!(heard.len() < 30, "ten sessions hear two messages a second: {heard:?}");
        reader.say(json!({"t":"sync","ref":1,"convos":{"busy":1}}));
        assert_eq!(seqs(&json!(reader.until_synced())), (2..=60).collect::<Vec<u64>>());
    }
    let left_out = cluster.metric("sequencer", "aldis_channel_pushes_left_out_total");
    assert!(left_out.is_some_and(|count| count >= 300.0), "{left_out:?}");
    assert_eq!(cluster.metric("sequencer", "aldis_channel_listeners"), Some(10.0));
    drop(readers);
    wait_until("they are gone", Duration::from_secs(5), || {
        cluster.metric("sequencer", "aldis_channel_listeners") == Some(1.0)
    });
}

/// Groups and channels that one user owns are bounded, however fast he asks.
#[test]
fn a_user_owns_only_so_many() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let environment = [("ALDIS_SEQUENCER_GROUPS_PER_USER", "3")];
    let mut cluster = Cluster::start_with(folder.path().join("data"), &[], &environment);
    let mut alice = connect(&cluster, "alice");
    for index in 0..6 {
        let t = ["group.create", "channel.create"][index % 2];
        alice.say(json!({"t":t,"ref":index,"convo":format!("c{index}"),"members":[]}));
    }
    let mut frames = Vec::new();
    while frames.len() < 6 {
        let frame = alice.next(support::client::PATIENCE).expect("an answer");
        frames.extend(frame["ref"].is_u64().then_some(frame));
    }
    let made = frames.iter().filter(|frame| frame["t"] != "error").count();
    let refused = frames.iter().filter(|frame| frame["code"] == "forbidden");
    assert_eq!((made, refused.filter(|frame| frame["limit"] == 3).count()), (3, 3), "{frames:?}");
    cluster.kill_all();
    cluster.restart();
    let mut alice = connect(&cluster, "alice");
    let refused = ask(&mut alice, json!({"t":"group.create","convo":"c9","members":[]}));
    assert_eq!((&refused["code"], &refused["limit"]), (&json!("forbidden"), &json!(3)));
    let again = ask(&mut alice, json!({"t":"group.create","convo":"c0","members":[]}));
    assert_eq!(again["t"], "group", "what he has he may ask for");
    ask(&mut alice, json!({"t":"group.leave","convo":"c0"}));
    let made = ask(&mut alice, json!({"t":"group.create","convo":"c9","members":[]}));
    assert_eq!(made["t"], "group");
    let mut bob = connect(&cluster, "bob");
    assert_eq!(ask(&mut bob, json!({"t":"channel.create","convo":"b"}))["t"], "channel");
}

/// As large as asked for: `ALDIS_SUBSCRIBERS=100000 ALDIS_LISTENERS=10000 cargo test --release
/// --test channels -- --nocapture crowd`, with 10,100 descriptors for each process.
#[test]
fn a_crowd_hears_its_channel_and_the_sender_waits_for_none() {
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let present = number("ALDIS_LISTENERS", 100);
    let report = crowd(number("ALDIS_SUBSCRIBERS", 500), present, 50);
    println!("{report:?}");
    assert_eq!(report.heard, present as u64 * 50, "each hears each once");
}

/// What a crowd was like.
#[derive(Debug)]
struct Report {
    /// Messages that the live subscribers heard, all together.
    heard: u64,
    #[expect(dead_code, reason = "printed")]
    subscribed_in: Duration,
    /// From `send` to `sent`, in a channel without subscribers and in the large one.
    #[expect(dead_code, reason = "printed")]
    alone_median_and_max: (Duration, Duration),
    #[expect(dead_code, reason = "printed")]
    crowded_median_and_max: (Duration, Duration),
    /// From the last `sent` until the last of them heard it.
    #[expect(dead_code, reason = "printed")]
    heard_after: Duration,
}

/// `subscribers` of one channel, of whom `present` are connected while it gets `count` messages.
fn crowd(subscribers: usize, present: usize, count: usize) -> Report {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    // They answer no ping.
    let environment = [("ALDIS_EDGE_HEARTBEAT_MS", "3600000")];
    let cluster = Cluster::start_with(folder.path().join("data"), &["--shards", "1"], &environment);
    let mut sender = connect(&cluster, "sender");
    for convo in ["alone", "crowd"] {
        ask(&mut sender, json!({"t":"channel.create","convo":convo}));
    }
    let start = Instant::now();
    let threads: Vec<_> = [0, 1]
        .map(|part| {
            let address = cluster.address.clone();
            std::thread::spawn(move || subscribe_part(&address, part, subscribers, present))
        })
        .into();
    let streams = threads.into_iter().flat_map(|thread| thread.join().expect("no panic"));
    let streams: Vec<TcpStream> = streams.collect();
    let subscribed_in = start.elapsed();
    let state = ask(&mut sender, json!({"t":"channel.subscribe","convo":"crowd"}));
    assert_eq!(state["subscribers"], subscribers as u64 + 1);
    let (heard, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let reader = {
        let (heard, done) = (heard.clone(), done.clone());
        std::thread::spawn(move || count_messages(streams, &heard, &done))
    };
    let alone_median_and_max = send_times(&mut sender, "alone", count);
    let crowded_median_and_max = send_times(&mut sender, "crowd", count);
    let start = Instant::now();
    wait_until("all have heard all", Duration::from_secs(60), || {
        heard.load(Ordering::Relaxed) >= (present * count) as u64
    });
    let heard_after = start.elapsed();
    std::thread::sleep(QUIET);
    done.store(true, Ordering::Relaxed);
    reader.join().expect("no panic");
    let heard = heard.load(Ordering::Relaxed);
    for metric in ["aldis_messages_unaccounted", "aldis_channel_pushes_left_out_total"] {
        assert_eq!(cluster.metric("sequencer", metric), Some(0.0), "{metric}");
    }
    Report { heard, subscribed_in, alone_median_and_max, crowded_median_and_max, heard_after }
}

/// Every second one subscribes; the first `present` of all stay.
fn subscribe_part(
    address: &str,
    part: usize,
    subscribers: usize,
    present: usize,
) -> Vec<TcpStream> {
    let mut stay = Vec::new();
    for index in (part..subscribers).step_by(2) {
        let stream = subscribe(address, index);
        if index < present {
            stream.set_nonblocking(true).expect("a socket can");
            stay.push(stream);
        }
    }
    stay
}

/// Connects as a user of his own, and subscribes.
fn subscribe(address: &str, index: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server takes connections");
    stream.set_read_timeout(Some(support::client::PATIENCE)).expect("a socket can");
    let mut said = format!(
        "GET /v1/connect?user=s{index} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    .into_bytes();
    let frame = br#"{"t":"channel.subscribe","ref":1,"convo":"crowd"}"#;
    // A mask of zeros is a mask.
    said.extend([0x81, 0x80 | frame.len() as u8, 0, 0, 0, 0]);
    said.extend(frame);
    stream.write_all(&said).expect("it is open");
    let mut heard = Vec::new();
    let mut piece = [0; 2_048];
    while !heard.windows(13).any(|window| window == br#""t":"channel""#) {
        let size = stream.read(&mut piece).expect("an answer comes");
        assert!(size > 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend(&piece[..size]);
    }
    stream
}

/// Counts what comes until it is done. A message is known by the field that nothing else has.
fn count_messages(mut streams: Vec<TcpStream>, heard: &AtomicU64, done: &AtomicBool) {
    let mark = br#""mid":"#;
    let mut rest: Vec<Vec<u8>> = vec![Vec::new(); streams.len()];
    let mut piece = vec![0; 65_536];
    while !done.load(Ordering::Relaxed) {
        for (stream, rest) in streams.iter_mut().zip(&mut rest) {
            match stream.read(&mut piece) {
                Ok(size) => {
                    assert!(size > 0, "it is not cut");
                    rest.extend(&piece[..size]);
                    let found = rest.windows(mark.len()).filter(|window| window == mark).count();
                    heard.fetch_add(found as u64, Ordering::Relaxed);
                    rest.drain(..rest.len().saturating_sub(mark.len() - 1));
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends, one after the other, at most a hundred a second.
fn send_times(sender: &mut Client, convo: &str, count: usize) -> (Duration, Duration) {
    let mut times = Vec::new();
    for index in 0..count {
        let start = Instant::now();
        assert_eq!(post(sender, convo, &format!("{convo}{index}"))["t"], "sent");
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    times.sort();
    (times[count / 2], times[count - 1])
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

/// Asks until the answer is not `unavailable`.
fn insist(client: &mut Client, operation: Value) -> Value {
    loop {
        let answer = ask(client, operation.clone());
        if answer["t"] != "error" {
            return answer;
        }
        assert_eq!(answer["code"], "unavailable", "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
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
