//! One connection of a simulated client: bytes both ways, and what was said on it and not answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::HEARTBEAT_MS;
use super::ledger::Verdict;
use super::websocket::{self, Inbox, Incoming};
use super::witness::Told;
use crate::link::message::Watermark;
use crate::simulation::kernel::ClientSocket;

/// Clients may take twice the heartbeat of silence for death.
const SILENCE_US: u64 = 2 * 1_000 * HEARTBEAT_MS as u64;

/// An operation that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Send { id: String, convo: String },
    Acknowledge { convo: String, seq: u64, kind: Watermark },
    Sync,
    Ping,
    Group { convo: String },
    Channel { convo: String },
}

/// See the module.
pub struct Connection {
    socket: ClientSocket,
    inbox: Inbox,
    out: Vec<u8>,
    /// The upgrade was granted.
    pub is_open: bool,
    pub is_welcome: bool,
    /// It has heard `synced` once.
    pub is_synced: bool,
    /// It asked for nothing to be pushed before its first `sync`.
    pub manual: bool,
    pub reads_after_us: u64,
    last_heard_us: u64,
    /// By `ref`, which rises.
    open: BTreeMap<i64, Said>,
    last_ref: i64,
    acknowledged: BTreeMap<(String, bool), u64>,
    /// Ids said on this connection, and those said twice.
    said_ids: BTreeSet<String>,
    repeated_ids: BTreeSet<String>,
    /// Per conversation: `ref` and seq of what was said once and answered.
    placed: BTreeMap<String, BTreeMap<i64, u64>>,
}

impl Connection {
    pub fn new(socket: ClientSocket, manual: bool, now_us: u64) -> Connection {
        Connection {
            socket,
            inbox: Inbox::default(),
            out: Vec::new(),
            is_open: false,
            is_welcome: false,
            is_synced: false,
            manual,
            reads_after_us: 0,
            last_heard_us: now_us,
            open: BTreeMap::new(),
            last_ref: 0,
            acknowledged: BTreeMap::new(),
            said_ids: BTreeSet::new(),
            repeated_ids: BTreeSet::new(),
            placed: BTreeMap::new(),
        }
    }

    pub fn into_socket(self) -> ClientSocket {
        self.socket
    }

    /// Asks for the upgrade.
    pub fn request(&mut self, host: &str, query: &str) {
        self.out.extend_from_slice(&websocket::request(host, query));
    }

    /// Says one operation under the next `ref`.
    pub fn say(&mut self, mut frame: Value, said: Said) {
        self.last_ref += 1;
        frame["ref"] = json!(self.last_ref);
        if let Said::Send { id, .. } = &said
            && !self.said_ids.insert(id.clone())
        {
            self.repeated_ids.insert(id.clone());
        }
        self.open.insert(self.last_ref, said);
        self.write(1, frame.to_string().as_bytes());
    }

    /// Acknowledges, if that is more than was acknowledged on this connection.
    pub fn acknowledge(&mut self, convo: &str, seq: u64, kind: Watermark) {
        let is_read = kind == Watermark::Read;
        let before = self.acknowledged.entry((convo.to_owned(), is_read)).or_default();
        if *before >= seq {
            return;
        }
        *before = seq;
        let name = if is_read { "read" } else { "delivered" };
        let said = Said::Acknowledge { convo: convo.to_owned(), seq, kind };
        self.say(json!({"t": "ack", "convo": convo, "seq": seq, "kind": name}), said);
    }

    /// A message of this conversation came, perhaps again: it is acknowledged again.
    pub fn heard(&mut self, convo: &str) {
        self.acknowledged.remove(&(convo.to_owned(), false));
    }

    pub fn pong(&mut self, payload: &[u8]) {
        self.write(10, payload);
    }

    /// Writes what fits; reads what is there, unless it does not read now.
    pub fn exchange(&mut self, now_us: u64) {
        let written = self.socket.write(&self.out);
        self.out.drain(..written);
        if now_us >= self.reads_after_us {
            let bytes = self.socket.read();
            if !bytes.is_empty() {
                self.last_heard_us = now_us;
            }
            self.inbox.push(&bytes);
        }
    }

    pub fn take_incoming(&mut self) -> Result<Option<Incoming>, String> {
        let incoming = self.inbox.take_incoming()?;
        self.is_open |= incoming == Some(Incoming::Opened);
        Ok(incoming)
    }

    /// Nothing more will come: it ended, or was silent for too long.
    pub fn is_over(&self, now_us: u64) -> bool {
        let heard_us = self.last_heard_us.max(self.reads_after_us);
        self.socket.is_closed() || now_us > heard_us.saturating_add(SILENCE_US)
    }

    /// A `sync` is under way.
    pub fn has_asked(&self) -> bool {
        self.open.values().any(|said| *said == Said::Sync)
    }

    /// An operation is answered.
    pub fn answered(&mut self, reference: i64) -> Result<Said, String> {
        self.open.remove(&reference).ok_or_else(|| format!("nobody asked for {reference}"))
    }

    /// A send is answered: it is the one with this `ref`, and sends got their places in order.
    pub fn answered_send(&mut self, frame: &Value, told: &Told) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        match self.answered(reference)? {
            Said::Send { id, convo } if id == told.id && convo == told.convo => {}
            said => return Err(format!("{said:?} is answered by {frame}")),
        }
        if frame["dup"] == true || self.repeated_ids.contains(&told.id) {
            return Ok(());
        }
        let placed = self.placed.entry(told.convo.clone()).or_default();
        placed.insert(reference, told.seq);
        let before = placed.range(..reference).next_back().is_none_or(|(_, seq)| *seq < told.seq);
        let after = placed.range(reference + 1..).next().is_none_or(|(_, seq)| *seq > told.seq);
        if before && after { Ok(()) } else { Err(format!("sends are out of order: {placed:?}")) }
    }

    /// A ping is answered: gives out what was said before it and got no answer.
    pub fn passed(&mut self, reference: i64) -> Result<Vec<Said>, String> {
        if self.answered(reference)? != Said::Ping {
            return Err(format!("{reference} was no ping"));
        }
        let later = self.open.split_off(&reference);
        let before = std::mem::replace(&mut self.open, later);
        Ok(before.into_values().collect())
    }

    fn write(&mut self, opcode: u8, payload: &[u8]) {
        let mask = (self.last_ref as u32).wrapping_mul(0x9e37_79b9) | 1;
        websocket::write(opcode, payload, mask, &mut self.out);
    }
}
