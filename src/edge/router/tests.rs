//! The router against a scripted link and scripted clients.

mod answers;
mod bounds;
mod pressed;
mod pushes;
mod sessions;
mod terms;

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::link::LinkFull;
use crate::link::message::{Code, PushTarget, SessionNumber, ToEdge};
use crate::link::record::{Body, Message};
use crate::link::wire::Wire;

const SEQUENCER: PeerId = PeerId(4);
const INCARNATION: u64 = 77;

/// Records what is submitted; takes nothing while `full`.
#[derive(Default)]
struct Script {
    submitted: Vec<(u64, ToSequencer)>,
    answered: Vec<u64>,
    number_last: u64,
    full: bool,
}

impl Outlet for Script {
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        assert_eq!(peer, SEQUENCER);
        if self.full {
            return Err(LinkFull);
        }
        self.number_last += 1;
        let message = ToSequencer::from_bytes(entry.into()).expect("what the router says");
        self.submitted.push((self.number_last, message));
        Ok(self.number_last)
    }

    fn answered(&mut self, peer: PeerId, number: u64) {
        assert_eq!(peer, SEQUENCER);
        self.answered.push(number);
    }
}

/// Keeps the frames of each client; `queued` says what a test put there.
#[derive(Default)]
struct Audience {
    frames: HashMap<ConnectionId, Vec<Value>>,
    binary_frames: HashMap<ConnectionId, Vec<Vec<u8>>>,
    queued: HashMap<ConnectionId, usize>,
    closes: Vec<(ConnectionId, u16)>,
    watched: Vec<ConnectionId>,
    full: bool,
    pressure: Pressure,
    /// `None`: all that one could want.
    memory_left: Option<usize>,
    is_full_of_queues: bool,
}

impl Clients for Audience {
    fn send(&mut self, id: ConnectionId, subprotocol: Subprotocol, frame: &[u8]) -> bool {
        let closed = self.closes.iter().any(|(closed, _)| *closed == id);
        assert!(!closed, "a frame after the close of {id:?}");
        if subprotocol == Subprotocol::Binary {
            self.binary_frames.entry(id).or_default().push(frame.to_vec());
            return !self.full;
        }
        let frame = serde_json::from_slice(frame).expect("JSON");
        self.frames.entry(id).or_default().push(frame);
        !self.full
    }

    fn watch_drained(&mut self, id: ConnectionId) {
        self.watched.push(id);
    }

    fn cut_slow(&mut self, id: ConnectionId, code: u16, reason: &str) {
        self.close(id, code, reason);
    }

    fn queued(&self, id: ConnectionId) -> usize {
        self.queued.get(&id).copied().unwrap_or_default()
    }

    fn close(&mut self, id: ConnectionId, code: u16, reason: &str) {
        assert!(reason.len() <= 123, "RFC 6455 5.5");
        self.closes.push((id, code));
    }

    fn pressure(&self) -> Pressure {
        self.pressure
    }

    fn memory_left(&self) -> usize {
        self.memory_left.unwrap_or(usize::MAX)
    }

    fn may_queue(&self) -> bool {
        !self.is_full_of_queues
    }
}

/// A router between the two.
struct Stage {
    router: Router,
    script: Script,
    audience: Audience,
    now: Now,
    entry_last: u64,
    session_last: u64,
}

fn id(slot: u32) -> ConnectionId {
    ConnectionId { slot, generation: 1 }
}

fn admitted(user: &str, subprotocol: Option<Subprotocol>) -> Admitted {
    let (user, device, term) = (user.into(), "phone".into(), Term::default());
    Admitted { user, device, term, manual: false, subprotocol }
}

fn session(counter: u64) -> SessionNumber {
    SessionNumber { epoch: 3, counter }
}

fn send_frame(reference: i64, id: &str) -> String {
    format!(r#"{{"t":"send","ref":{reference},"to":"bob","id":"{id}","body":"x"}}"#)
}

fn message(seq: u64) -> Message {
    Message {
        convo: "dm:alice:bob".into(),
        seq,
        mid: seq + 1_000,
        ts: 9,
        from: "bob".into(),
        device: "d".into(),
        id: "m".into(),
        body: Body::Text { text: Bytes::from_static(b"hello") },
    }
}

impl Stage {
    /// Not connected to the sequencer.
    fn alone() -> Stage {
        let options = Options {
            sequencer: SEQUENCER,
            incarnation: INCARNATION,
            server: "edge-1".into(),
            tickets: Tickets::new(b"secret"),
            heartbeat_ms: 30_000,
            seed: 1,
        };
        Stage {
            router: Router::new(options),
            script: Script::default(),
            audience: Audience::default(),
            now: Now { monotonic_us: 1_000_000, unix_ms: 5_000 },
            entry_last: 0,
            session_last: 0,
        }
    }

    fn connected() -> Stage {
        let mut stage = Stage::alone();
        stage.began();
        stage.script.submitted.clear();
        stage
    }

    /// Connected, with these slots open and welcomed; their frames and the link's are forgotten.
    fn with_clients(slots: &[u32]) -> Stage {
        let mut stage = Stage::connected();
        for slot in slots {
            stage.open(*slot);
            stage.welcome(*slot);
        }
        stage.script.submitted.clear();
        stage.audience.frames.clear();
        stage
    }

    fn run<T>(&mut self, act: impl FnOnce(&mut Router, &mut Surroundings) -> T) -> T {
        let mut around =
            Surroundings { now: self.now, clients: &mut self.audience, outlet: &mut self.script };
        act(&mut self.router, &mut around)
    }

    fn open(&mut self, slot: u32) {
        self.run(|router, around| {
            router.opened(id(slot), admitted("alice", None), around);
        });
    }

    /// Answers the last `Open`, with the slot as the session's counter.
    fn welcome(&mut self, slot: u32) {
        let to = self.number_of(
            |message| matches!(message, ToSequencer::Open { address, .. } if address.slot == slot),
        );
        self.entry(ToEdge::Opened { to, session: session(slot.into()) });
    }

    fn number_of(&self, matches: impl Fn(&ToSequencer) -> bool) -> u64 {
        let found = self.script.submitted.iter().rev().find(|(_, message)| matches(message));
        found.expect("submitted").0
    }

    fn number_of_send(&self, send_id: &str) -> u64 {
        self.number_of(
            |message| matches!(message, ToSequencer::Send { id, .. } if &**id == send_id),
        )
    }

    fn say(&mut self, slot: u32, frame: &str) {
        self.run(|router, around| {
            router.message(id(slot), Subprotocol::Json, frame.as_bytes(), around)
        });
    }

    fn entry(&mut self, message: ToEdge) {
        self.entry_last += 1;
        let number = self.entry_last;
        let entry = message.to_bytes().into();
        let event = LinkEvent::Entry { peer: SEQUENCER, number, entry };
        self.run(|router, around| router.link_event(event, around));
        assert_eq!(self.script.answered.last(), Some(&number), "every entry is answered");
    }

    fn began(&mut self) {
        self.script.number_last = 0;
        self.entry_last = 0;
        self.session_last += 1;
        let incarnation = self.session_last;
        let name = "sequencer".into();
        let event = LinkEvent::Began { peer: SEQUENCER, name, incarnation, durable_seen: 0 };
        self.run(|router, around| router.link_event(event, around));
    }

    fn ended(&mut self) {
        self.run(|router, around| router.link_event(LinkEvent::Ended { peer: SEQUENCER }, around));
    }

    fn tick_after(&mut self, elapsed_ms: u64) {
        self.now.monotonic_us += elapsed_ms * 1_000;
        self.run(|router, around| router.tick(around));
    }

    fn sent(&mut self, to: u64, seq: u64) {
        let convo = "dm:alice:bob".into();
        self.entry(ToEdge::Sent { to, convo, seq, mid: seq + 1_000, ts: 9, dup: false });
    }

    fn refuse(&mut self, to: u64, code: Code, retry_ms: u32) {
        self.entry(ToEdge::Refused { to, code, message: "no".into(), retry_ms });
    }

    /// The frames of a client since the last call.
    fn heard(&mut self, slot: u32) -> Vec<Value> {
        self.audience.frames.remove(&id(slot)).unwrap_or_default()
    }

    /// `t` and `ref` of the frames of a client since the last call.
    fn heard_briefly(&mut self, slot: u32) -> Vec<(String, Option<i64>)> {
        let brief = |frame: Value| {
            (frame["t"].as_str().expect("t is text").to_owned(), frame["ref"].as_i64())
        };
        self.heard(slot).into_iter().map(brief).collect()
    }

    /// What the link was given since the last call, in a word each.
    fn submitted(&mut self) -> Vec<String> {
        let taken = std::mem::take(&mut self.script.submitted);
        taken.iter().map(|(_, message)| word(message)).collect()
    }

    /// The same, and the next call hears it again.
    fn submitted_kept(&self) -> Vec<String> {
        self.script.submitted.iter().map(|(_, message)| word(message)).collect()
    }

    fn target(&self, slot: u32, stream: u64) -> PushTarget {
        let address = Address { incarnation: INCARNATION, slot, generation: 1 };
        PushTarget { address, session: session(slot.into()), stream }
    }
}

fn word(message: &ToSequencer) -> String {
    match message {
        ToSequencer::Open { address, .. } => format!("open {}", address.slot),
        ToSequencer::Confirm { address, .. } => format!("confirm {}", address.slot),
        ToSequencer::Retell { address, .. } => format!("retell {}", address.slot),
        ToSequencer::Retold => "retold".into(),
        ToSequencer::Close { address, session, .. } => {
            format!("close {} {}", address.slot, session.counter)
        }
        ToSequencer::Send { id, .. } => format!("send {id}"),
        ToSequencer::Acknowledge { seq, .. } => format!("ack {seq}"),
        ToSequencer::Sync { .. } => "sync".into(),
        ToSequencer::History { before, .. } => format!("history {before}"),
        ToSequencer::Conversations { limit, .. } => format!("conversations {limit}"),
        ToSequencer::Group { convo, .. } => format!("group {convo}"),
        ToSequencer::Channel { convo, .. } => format!("channel {convo}"),
        ToSequencer::Room { stream, .. } => format!("room {stream}"),
        ToSequencer::Dropped { seq, stream, .. } => format!("dropped {seq} {stream}"),
    }
}

fn brief(frames: &[(&str, Option<i64>)]) -> Vec<(String, Option<i64>)> {
    frames.iter().map(|(kind, reference)| ((*kind).to_owned(), *reference)).collect()
}
