//! `kill -9` of each process, of two at once, and of the whole tree, at random moments under load.
//!
//! Real processes, real disk, clients that behave as the protocol page asks. What must hold: every
//! message that was answered `sent` is delivered exactly once after dedup, in order, at the seq and
//! mid that were promised; seq has no gap; receipts never move back; a phone that reconnects all
//! the time misses nothing.
//!
//! `ALDIS_KILLS` sets the number of kills (8 in the ordinary test run).

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::wait_until;
use support::{Client, Cluster};

const PAIRS: usize = 4;
/// Sends of one device that are unanswered at a time.
const OUTSTANDING_MAX: usize = 4;

/// What the clients were told, compared as they are told it.
#[derive(Default)]
struct Witness {
    /// (user, convo, id) -> (seq, mid) of the first `sent`.
    promised: HashMap<(String, String, String), (u64, String)>,
    /// (convo, seq) -> (mid, from, id) as anyone heard it.
    heard: BTreeMap<(String, u64), (String, String, String)>,
    repeats: u64,
}

impl Witness {
    fn sent(&mut self, user: &str, frame: &Value) -> (String, u64) {
        let convo = text(frame, "convo");
        let key = (user.to_owned(), convo.clone(), text(frame, "id"));
        let answer = (number(frame, "seq"), text(frame, "mid"));
        let first = self.promised.entry(key).or_insert_with(|| answer.clone());
        assert_eq!(*first, answer, "a resend gets the first answer");
        (convo, answer.0)
    }

    fn message(&mut self, frame: &Value) -> (String, u64) {
        let place = (text(frame, "convo"), number(frame, "seq"));
        let message = (text(frame, "mid"), text(frame, "from"), text(frame, "id"));
        let first = self.heard.entry(place.clone()).or_insert_with(|| message.clone());
        assert_eq!(*first, message, "everyone hears the same at {place:?}");
        place
    }

    fn heads(&self) -> BTreeMap<String, u64> {
        let mut heads = BTreeMap::new();
        for ((_, convo, _), (seq, _)) in &self.promised {
            let head: &mut u64 = heads.entry(convo.clone()).or_default();
            *head = (*head).max(*seq);
        }
        heads
    }
}

/// What all devices of a run share.
#[derive(Clone)]
struct Run {
    address: Arc<str>,
    witness: Arc<Mutex<Witness>>,
    /// No new messages.
    winding_down: Arc<AtomicBool>,
    /// Devices go home.
    over: Arc<AtomicBool>,
}

/// One device of one user.
struct Device {
    run: Run,
    user: String,
    device: String,
    /// Sends to this user, if at all.
    to: Option<String>,
    /// Reconnects by itself every so often.
    restless: bool,
    sent_count: u64,
    unanswered: VecDeque<(String, String)>,
    /// Per conversation: what was seen, as `msg` or as our own `sent`.
    seen: BTreeMap<String, BTreeSet<u64>>,
    acked: BTreeMap<String, u64>,
    /// Highest seq of others that was seen, per conversation: first sights must rise.
    order: BTreeMap<String, u64>,
    receipts: HashMap<(String, String, String), u64>,
    random: u64,
}

impl Device {
    fn new(run: &Run, user: &str, device: &str, to: Option<&str>) -> Device {
        Device {
            run: run.clone(),
            user: user.into(),
            device: device.into(),
            to: to.map(Into::into),
            restless: device == "phone",
            sent_count: 0,
            unanswered: VecDeque::new(),
            seen: BTreeMap::new(),
            acked: BTreeMap::new(),
            order: BTreeMap::new(),
            receipts: HashMap::new(),
            random: user.bytes().chain(device.bytes()).map(u64::from).sum(),
        }
    }

    /// Lives until the run is over; returns itself for the final checks.
    fn live(mut self) -> Device {
        while !self.run.over.load(Ordering::Relaxed) {
            let url = format!(
                "ws://{}/v1/connect?user={}&device={}",
                self.run.address, self.user, self.device
            );
            match Client::try_connect(&url) {
                Ok(client) => self.chat(client),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self
    }

    fn chat(&mut self, mut client: Client) {
        let stay = Duration::from_millis(if self.restless { self.below(250) } else { 3_600_000 });
        let start = Instant::now();
        for (id, to) in self.unanswered.clone() {
            client.say(message(&to, &id));
        }
        while client.closed.is_none()
            && start.elapsed() < stay
            && !self.run.over.load(Ordering::Relaxed)
        {
            self.send_more(&mut client);
            while let Some(frame) = client.next(Duration::from_millis(2)) {
                self.take(&frame, &mut client);
            }
            self.acknowledge(&mut client);
        }
    }

    fn send_more(&mut self, client: &mut Client) {
        let Some(to) = self.to.clone() else { return };
        let resting = self.run.winding_down.load(Ordering::Relaxed);
        if resting || self.unanswered.len() >= OUTSTANDING_MAX {
            return;
        }
        self.sent_count += 1;
        let id = format!("{}-{}-{}", self.user, self.device, self.sent_count);
        self.unanswered.push_back((id.clone(), to.clone()));
        client.say(message(&to, &id));
    }

    fn take(&mut self, frame: &Value, client: &mut Client) {
        match frame["t"].as_str().expect("every frame has a type") {
            "sent" => {
                let (convo, seq) = self.witness().sent(&self.user, frame);
                let id = text(frame, "id");
                self.unanswered.retain(|(unanswered, _)| *unanswered != id);
                self.seen.entry(convo).or_default().insert(seq);
            }
            "msg" => self.take_message(frame),
            "receipt" => {
                let key = (text(frame, "convo"), text(frame, "kind"), text(frame, "by"));
                let seq = number(frame, "seq");
                let before = self.receipts.insert(key.clone(), seq).unwrap_or(0);
                assert!(seq >= before, "receipt {key:?} moved back from {before} to {seq}");
            }
            "error" => {
                assert_eq!(frame["code"], "unavailable", "{frame}");
                let id = frame["id"].as_str().unwrap_or_default();
                let again = self.unanswered.iter().find(|(unanswered, _)| unanswered == id);
                if let Some((id, to)) = again {
                    std::thread::sleep(Duration::from_millis(20));
                    client.say(message(to, id));
                }
            }
            _ => {}
        }
    }

    fn take_message(&mut self, frame: &Value) {
        let (convo, seq) = self.witness().message(frame);
        if !self.seen.entry(convo.clone()).or_default().insert(seq) {
            self.witness().repeats += 1;
            return;
        }
        if frame["from"] != self.user.as_str() {
            let highest = self.order.entry(convo.clone()).or_default();
            let device = format!("{}/{}", self.user, self.device);
            assert!(seq > *highest, "{device} saw {convo} {seq} first after {highest}");
            *highest = seq;
        }
    }

    fn acknowledge(&mut self, client: &mut Client) {
        for (convo, seen) in &self.seen {
            let acked = self.acked.entry(convo.clone()).or_default();
            let watermark = watermark(seen);
            if watermark > *acked {
                *acked = watermark;
                let kind = if watermark.is_multiple_of(3) { "read" } else { "delivered" };
                client.say(json!({"t": "ack", "convo": convo, "seq": watermark, "kind": kind}));
            }
        }
    }

    fn witness(&self) -> std::sync::MutexGuard<'_, Witness> {
        self.run.witness.lock().expect("no device panicked while it held the witness")
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % bound
    }
}

#[test]
fn nothing_is_lost_repeated_or_reordered_by_kill_nine() {
    let kills = std::env::var("ALDIS_KILLS").map_or(8, |count| count.parse().expect("a number"));
    let directory = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(directory.path().join("data"), &[]);
    let run = Run {
        address: cluster.address.as_str().into(),
        witness: Arc::default(),
        winding_down: Arc::default(),
        over: Arc::default(),
    };
    let devices = start_devices(&run);
    let mut random = std::process::id() as u64;
    for kill in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(150 + (random >> 33) % 500));
        strike(&mut cluster, kill);
        let dead = devices.iter().filter(|device| device.is_finished()).count();
        assert_eq!(dead, 0, "a device found something wrong after kill {kill}");
    }
    run.winding_down.store(true, Ordering::Relaxed);
    let devices = settle(&run, devices);
    audit(&run, &cluster, &devices);
    println!("{}", cluster.audit());
    cluster.kill_all();
    cluster.audit();
}

/// One kill: which one goes by its number, so that every kind has its turn.
fn strike(cluster: &mut Cluster, kill: u64) {
    match kill % 8 {
        0 | 4 => drop(cluster.kill("store")),
        1 | 5 => drop(cluster.kill("sequencer")),
        2 => drop(cluster.kill("edge")),
        3 => {
            cluster.kill("sequencer");
            cluster.kill("store");
        }
        6 => {
            cluster.kill("edge");
            cluster.kill("sequencer");
        }
        _ => {
            cluster.kill_all();
            cluster.restart();
        }
    }
}

fn start_devices(run: &Run) -> Vec<JoinHandle<Device>> {
    let mut devices = Vec::new();
    for pair in 0..PAIRS {
        let (alice, bob) = (format!("alice{pair}"), format!("bob{pair}"));
        devices.push(Device::new(run, &alice, "laptop", Some(&bob)));
        devices.push(Device::new(run, &bob, "laptop", Some(&alice)));
        devices.push(Device::new(run, &bob, "phone", None));
    }
    devices.into_iter().map(|device| std::thread::spawn(move || device.live())).collect()
}

/// Lets everything arrive, then takes the devices home.
fn settle(run: &Run, devices: Vec<JoinHandle<Device>>) -> Vec<Device> {
    std::thread::sleep(Duration::from_secs(4));
    run.over.store(true, Ordering::Relaxed);
    let ended = devices.into_iter().map(|device| device.join().expect("no assertion failed"));
    ended.collect()
}

fn audit(run: &Run, cluster: &Cluster, devices: &[Device]) {
    let witness = run.witness.lock().expect("all devices ended");
    let heads = witness.heads();
    assert_eq!(heads.len(), PAIRS, "every pair got through");
    for device in devices {
        let who = format!("{}/{}", device.user, device.device);
        assert!(device.unanswered.is_empty(), "{who} is owed {:?}", device.unanswered);
        for (convo, seen) in &device.seen {
            assert_eq!(watermark(seen), heads[convo], "{who} has a hole in {convo}");
            assert_eq!(seen.len() as u64, heads[convo], "{who} saw a seq nobody promised");
        }
    }
    for (convo, head) in &heads {
        let user = convo.rsplit(':').next().expect("a direct conversation");
        let query = format!("user={user}&device=auditor&sync=manual");
        let mut client = Client::connect(&cluster.url(&query));
        client.say(json!({"t": "sync", "ref": 1, "convos": {convo.as_str(): 0}}));
        let messages = client.until_synced();
        let seqs: Vec<u64> = messages.iter().map(|frame| number(frame, "seq")).collect();
        assert_eq!(seqs, (1..=*head).collect::<Vec<_>>(), "no gap, no repetition");
        let mut ids = BTreeSet::new();
        for frame in &messages {
            let (from, id) = (text(frame, "from"), text(frame, "id"));
            assert!(ids.insert((from.clone(), id.clone())), "{from} {id} is in the log twice");
            let promised = &witness.promised[&(from, convo.clone(), id)];
            assert_eq!(*promised, (number(frame, "seq"), text(frame, "mid")));
        }
    }
    let total: u64 = heads.values().sum();
    println!("{total} messages, {} seen again and dropped by clients", witness.repeats);
    for process in ["sequencer", "store"] {
        let unaccounted = || cluster.metric(process, "aldis_messages_unaccounted");
        wait_until("a metrics page", Duration::from_secs(5), || unaccounted().is_some());
        assert_eq!(unaccounted(), Some(0.0), "{process}");
    }
}

fn message(to: &str, id: &str) -> Value {
    json!({"t": "send", "to": to, "id": id, "body": format!("body of {id}")})
}

/// The highest seq up to which everything was seen.
fn watermark(seen: &BTreeSet<u64>) -> u64 {
    seen.iter().zip(1..).take_while(|(seq, expected)| *seq == expected).count() as u64
}

fn text(frame: &Value, field: &str) -> String {
    frame[field].as_str().unwrap_or_else(|| panic!("{field} of {frame}")).to_owned()
}

fn number(frame: &Value, field: &str) -> u64 {
    frame[field].as_u64().unwrap_or_else(|| panic!("{field} of {frame}"))
}
