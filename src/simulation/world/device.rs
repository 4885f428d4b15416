//! A simulated client: one device of one user, which behaves as the protocol page asks, now and
//! then rudely, and checks everything it hears.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::connection::{Connection, Said};
use super::ledger::{Ledger, Verdict};
use super::trace::Trace;
use super::websocket::Incoming;
use super::witness::{Told, Witness};
use crate::link::message::Watermark;
use crate::protocol::conversation::direct;
use crate::simulation::kernel::{ClientSocket, SimNetwork};

/// What a device acts in.
pub struct Around<'a> {
    pub network: &'a SimNetwork,
    pub edge: SocketAddr,
    pub ledger: &'a Ledger,
    pub witness: &'a mut Witness,
    pub trace: &'a Trace,
}

/// A message on its way until it is answered.
#[derive(Clone, Debug)]
struct Outgoing {
    id: String,
    convo: String,
    body: String,
    /// Not to be said again before; `None`: it is said and may be answered.
    say_after_us: Option<u64>,
}

/// See the module.
pub struct Device {
    pub user: String,
    pub device: String,
    pub connection: Option<Connection>,
    /// Connections that were left without a word.
    abandoned: Vec<ClientSocket>,
    unanswered: VecDeque<Outgoing>,
    sent_count: u64,
    seen: BTreeMap<String, BTreeSet<u64>>,
    receipts: BTreeMap<(String, String, String), u64>,
    /// By conversation, kind and seq: the last count, of how many, and the group's
    /// version then.
    tallies: BTreeMap<(String, String, u64), (u64, u64, u64)>,
    replaced_count: u64,
    /// Of whose death it was told.
    failed: BTreeSet<(String, u64)>,
}

impl Device {
    pub fn new(user: &str, device: &str) -> Device {
        Device {
            user: user.into(),
            device: device.into(),
            connection: None,
            abandoned: Vec::new(),
            unanswered: VecDeque::new(),
            sent_count: 0,
            seen: BTreeMap::new(),
            receipts: BTreeMap::new(),
            tallies: BTreeMap::new(),
            replaced_count: 0,
            failed: BTreeSet::new(),
        }
    }

    pub fn name(&self) -> String {
        format!("{}/{}", self.user, self.device)
    }

    /// Whether it is welcome and caught up.
    pub fn is_synced(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_synced)
    }

    pub fn unanswered_count(&self) -> usize {
        self.unanswered.len()
    }

    /// Begins a new connection, whatever became of the last one.
    pub fn connect(&mut self, manual: bool, around: &mut Around) {
        self.note(around, format_args!("connects, manual {manual}"));
        let socket = around.network.dial(around.edge);
        let sync = if manual { "&sync=manual" } else { "" };
        let query = format!("user={}&device={}{sync}", self.user, self.device);
        let mut connection = Connection::new(socket, manual, around.network.now_us());
        connection.request(&around.edge.to_string(), &query);
        self.connection = Some(connection);
    }

    /// Leaves: in order, with a reset, or without a word.
    pub fn leave(&mut self, manner: Leaving, around: &mut Around) {
        let Some(connection) = self.connection.take() else { return };
        self.note(around, format_args!("leaves, {manner:?}"));
        let mut socket = connection.into_socket();
        match manner {
            Leaving::Orderly => socket.close(),
            Leaving::Reset => socket.reset(),
            Leaving::Silent => self.abandoned.push(socket),
        }
    }

    /// Lets go of the sockets that it left without a word.
    pub fn forget_abandoned(&mut self) {
        self.abandoned.clear();
    }

    /// Sends a message to a user.
    pub fn send(&mut self, to: &str, size: usize, around: &mut Around) {
        let convo = direct(&self.user, to);
        self.post(&convo, size, around);
    }

    /// Sends a message to a conversation.
    pub fn post(&mut self, convo: &str, size: usize, around: &mut Around) {
        self.sent_count += 1;
        let id = format!("{}-{}-{}", self.user, self.device, self.sent_count);
        let body = format!("{id} {}", "x".repeat(size));
        let outgoing = Outgoing { id, convo: convo.into(), body, say_after_us: Some(0) };
        self.unanswered.push_back(outgoing);
        self.say_due(around);
    }

    /// Says what is to be said now of what is unanswered.
    pub fn say_due(&mut self, around: &mut Around) {
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        let now_us = around.network.now_us();
        for outgoing in &mut self.unanswered {
            if outgoing.say_after_us.is_none_or(|after_us| after_us > now_us) {
                continue;
            }
            outgoing.say_after_us = None;
            let Outgoing { id, convo, body, .. } = outgoing;
            let said = Said::Send { id: id.clone(), convo: convo.clone() };
            connection.say(json!({"t": "send", "convo": convo, "id": id, "body": body}), said);
        }
    }

    /// Asks something of a group, once: whether it happened, the log will tell.
    pub fn ask_group(&mut self, op: &str, convo: &str, members: &[&str], admin: bool) {
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        let role = if admin { "admin" } else { "member" };
        let (t, convo) = (format!("group.{op}"), convo.to_owned());
        let frame = json!({"t": t, "convo": convo, "members": members, "role": role});
        connection.say(frame, Said::Group { convo });
    }

    /// Asks something of a channel, once.
    pub fn ask_channel(&mut self, op: &str, convo: &str) {
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        let (t, convo) = (format!("channel.{op}"), convo.to_owned());
        connection.say(json!({"t": t, "convo": convo}), Said::Channel { convo });
    }

    /// Revokes a device of its user, once: whether it happened, the log will tell.
    pub fn revoke(&mut self, device: &str) {
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        let frame = json!({"t": "device.revoke", "device": device});
        connection.say(frame, Said::Revoke { device: device.to_owned() });
    }

    /// Its session is one of a device that was revoked.
    pub fn is_revoked(&self, ledger: &Ledger) -> bool {
        let connection = self.connection.as_ref().filter(|connection| connection.is_welcome);
        connection.is_some_and(|it| ledger.is_revoked(&self.user, &self.device, it.session))
    }

    /// Acknowledges everything it has, where that is more than it said on this connection.
    pub fn acknowledge(&mut self, kind: Watermark, around: &mut Around) {
        let marks: Vec<(String, u64)> = self
            .seen
            .keys()
            .map(|convo| (convo.clone(), self.watermark(convo, around.ledger)))
            .collect();
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        for (convo, seq) in marks {
            connection.acknowledge(&convo, seq, kind);
        }
    }

    pub fn ping(&mut self) {
        if let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) {
            connection.say(json!({"t": "ping"}), Said::Ping);
        }
    }

    /// Asks for everything behind, or by name from its watermarks less `back`.
    pub fn sync(&mut self, back: Option<u64>, around: &mut Around) {
        let mut convos = serde_json::Map::new();
        let named = self.seen.keys().filter(|convo| around.ledger.is_member(&self.user, convo));
        for convo in named {
            let seq = self.watermark(convo, around.ledger).saturating_sub(back.unwrap_or(0));
            convos.insert(convo.clone(), seq.into());
        }
        let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) else { return };
        let request = match back {
            Some(_) => json!({"t": "sync", "convos": convos}),
            None => json!({"t": "sync"}),
        };
        connection.say(request, Said::Sync);
    }

    /// Asks for whole conversations.
    pub fn sync_whole(&mut self, convos: &[String]) {
        let whole = convos.iter().map(|convo| (convo.clone(), 0.into()));
        let convos: serde_json::Map<String, Value> = whole.collect();
        if let Some(connection) = self.connection.as_mut().filter(|it| it.is_open) {
            connection.say(json!({"t": "sync", "convos": convos}), Said::Sync);
        }
    }

    /// What it has seen of a conversation.
    pub fn seen(&self, convo: &str) -> Vec<u64> {
        self.seen.get(convo).into_iter().flatten().copied().collect()
    }

    /// The highest receipt that it heard of somebody.
    pub fn receipt(&self, convo: &str, kind: Watermark, by: &str) -> u64 {
        let key = (convo.to_owned(), format!("{kind:?}"), by.to_owned());
        self.receipts.get(&key).copied().unwrap_or(0)
    }

    /// Takes nothing off its socket until then.
    pub fn stop_reading(&mut self, until_us: u64) {
        if let Some(connection) = &mut self.connection {
            connection.reads_after_us = until_us;
        }
    }

    /// Moves bytes, and takes everything that has come.
    pub fn turn(&mut self, around: &mut Around) -> Verdict {
        let now_us = around.network.now_us();
        while let Some(connection) = &mut self.connection {
            connection.exchange(now_us);
            let incoming = match connection.take_incoming() {
                Ok(Some(incoming)) => incoming,
                Ok(None) if connection.is_over(now_us) => {
                    self.note(around, format_args!("is cut off"));
                    self.lose_connection();
                    break;
                }
                Ok(None) => break,
                Err(breach) => return Err(format!("{}: {breach}", self.name())),
            };
            self.take(incoming, around).map_err(|why| format!("{}: {why}", self.name()))?;
        }
        Ok(())
    }

    /// A message of its user that failed, and it does not know.
    pub fn untold(&self, ledger: &Ledger) -> Option<(String, u64)> {
        ledger.failed_of(&self.user).difference(&self.failed).next().cloned()
    }

    /// Everything it is to have of a conversation, up to the head of the log, it has seen.
    pub fn missing(&self, ledger: &Ledger) -> Option<(String, u64, u64)> {
        ledger.conversations_heard_by(&self.user).into_iter().find_map(|convo| {
            let (_, head) = ledger.range(&self.user, &convo);
            let watermark = self.watermark(&convo, ledger);
            (watermark < head).then(|| (convo.to_string(), watermark, head))
        })
    }

    /// The highest seq up to which it has everything.
    pub fn watermark(&self, convo: &str, ledger: &Ledger) -> u64 {
        let joined = ledger.range(&self.user, convo).0;
        let start = ledger.start(&self.user, &self.device, convo).max(joined - 1);
        let start = start.max(ledger.floor(&self.user, convo));
        let Some(seen) = self.seen.get(convo) else { return start };
        let later = seen.range(start + 1..).zip(start + 1..);
        start + later.take_while(|(seq, expected)| *seq == expected).count() as u64
    }

    fn lose_connection(&mut self) {
        self.connection = None;
        for outgoing in &mut self.unanswered {
            outgoing.say_after_us = Some(0);
        }
    }

    fn take(&mut self, incoming: Incoming, around: &mut Around) -> Verdict {
        match incoming {
            Incoming::Opened => {
                for outgoing in &mut self.unanswered {
                    outgoing.say_after_us = Some(0);
                }
                self.say_due(around);
                Ok(())
            }
            Incoming::Refused(status) => {
                self.note(around, format_args!("is refused with {status}"));
                self.lose_connection();
                Ok(())
            }
            Incoming::Ping(payload) => {
                self.connection.as_mut().into_iter().for_each(|it| it.pong(&payload));
                Ok(())
            }
            Incoming::Close(code) => {
                self.note(around, format_args!("is closed with {code:?}"));
                self.lose_connection();
                match code {
                    Some(4001 | 4002 | 4003 | 1001 | 1013) => Ok(()),
                    Some(4004) if around.ledger.was_revoked(&self.user, &self.device) => Ok(()),
                    Some(4004) => Err("closed with 4004, and its revocation is not durable".into()),
                    code => Err(format!("closed with {code:?}")),
                }
            }
            Incoming::Text(text) => {
                self.note(around, format_args!("hears {}", text.get(..150).unwrap_or(&text)));
                let frame = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                self.take_frame(&frame, around)
            }
        }
    }

    fn take_frame(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let connection = self.connection.as_mut().expect("it heard this");
        let kind = text(frame, "t")?;
        if !std::mem::replace(&mut connection.is_welcome, true) && kind != "welcome" {
            return Err(format!("`{kind}` comes before `welcome`"));
        }
        match kind.as_str() {
            "welcome" => {
                let session = text(frame, "session")?;
                let numbers = session.split_once('-').ok_or("a session has two numbers")?;
                let number = |text: &str| text.parse().map_err(|_| "a session has two numbers");
                connection.session = (number(numbers.0)?, number(numbers.1)?);
                Ok(())
            }
            "behind" => Ok(()),
            "sent" => self.take_sent(frame, around),
            "msg" => self.take_message(frame, around),
            "receipt" => self.take_receipt(frame, around),
            "synced" => self.take_synced(frame, around),
            "pong" => self.take_pong(frame, around),
            "group" => self.take_group(frame, around),
            "channel" => self.take_channel(frame, around),
            "devices" => self.take_devices(frame, around),
            "error" => self.take_error(frame, around),
            "failed" => self.take_failed(frame, around),
            "goaway" => {
                self.replaced_count += 1;
                Ok(())
            }
            _ => Err(format!("{frame} is unknown")),
        }
    }

    fn take_failed(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let (convo, seq, id) = (text(frame, "convo")?, number(frame, "seq")?, text(frame, "id")?);
        around.ledger.check_failed(&self.user, &convo, seq, &id)?;
        self.failed.insert((convo, seq));
        Ok(())
    }

    fn take_sent(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let told = told(frame, &self.user, None)?;
        around.witness.sent(&told, around.ledger)?;
        let connection = self.connection.as_mut().expect("it heard this");
        connection.answered_send(frame, &told)?;
        self.unanswered.retain(|outgoing| outgoing.id != told.id);
        self.seen.entry(told.convo).or_default().insert(told.seq);
        Ok(())
    }

    fn take_message(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let told = told(frame, &text(frame, "from")?, Some(text(frame, "body")?))?;
        around.witness.message(&self.user, &told, around.ledger)?;
        let Told { convo, seq, .. } = told;
        let session = self.connection.as_ref().expect("it heard this").session;
        around.ledger.check_heard((&self.user, &self.device), session, &convo, seq)?;
        let connection = self.connection.as_mut().expect("it heard this");
        connection.heard(&convo);
        if !self.seen.get(&convo).is_some_and(|seen| seen.contains(&seq)) {
            self.nothing_skipped(&convo, seq, around.ledger)?;
        }
        self.seen.entry(convo).or_default().insert(seq);
        Ok(())
    }

    /// Live never overtakes backlog: at a first sight, everything before was seen. What the device
    /// sent itself is told by `sent`, on its own way.
    fn nothing_skipped(&self, convo: &str, upto: u64, ledger: &Ledger) -> Verdict {
        // Where a device began that is no more, nobody knows any more.
        if self.is_revoked(ledger) {
            return Ok(());
        }
        let first = self.watermark(convo, ledger) + 1;
        let seen = self.seen.get(convo);
        for seq in first..upto {
            let was_seen = seen.is_some_and(|seen| seen.contains(&seq));
            let message = ledger.message(convo, seq);
            let own =
                message.is_some_and(|it| *it.from == *self.user && *it.device == *self.device);
            let dead = seq <= ledger.floor(&self.user, convo);
            if !was_seen && !own && !dead {
                return Err(format!("{convo} {seq} was skipped: {upto} comes first"));
            }
        }
        Ok(())
    }

    fn take_receipt(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let (convo, by, seq) = (text(frame, "convo")?, text(frame, "by")?, number(frame, "seq")?);
        let kind = match text(frame, "kind")?.as_str() {
            "delivered" => Watermark::Delivered,
            "read" => Watermark::Read,
            _ => return Err(format!("{frame} is of no kind")),
        };
        around.witness.receipt(&convo, seq, kind, &by, around.ledger)?;
        if around.ledger.channels.is_one(&convo) {
            return Err(format!("a receipt of a channel: {frame}"));
        }
        if frame["of"].is_u64() {
            return self.take_tally(&convo, seq, kind, frame, around);
        }
        let key = (convo, format!("{kind:?}"), by);
        let before = self.receipts.insert(key, seq).unwrap_or(0);
        if before > seq {
            return Err(format!("a receipt moves back from {before}: {frame}"));
        }
        Ok(())
    }

    /// How many have come to a message of a group: no more than durably have.
    fn take_tally(
        &mut self,
        convo: &str,
        seq: u64,
        kind: Watermark,
        frame: &Value,
        around: &mut Around,
    ) -> Verdict {
        let (count, of) = (number(frame, "count")?, number(frame, "of")?);
        let reached = around.ledger.reached_count(convo, seq, kind, &self.user);
        if count > of || count > reached {
            return Err(format!("{frame}, but durable is {reached}"));
        }
        let key = (convo.to_owned(), format!("{kind:?}"), seq);
        let version = around.ledger.version(convo);
        let before = self.tallies.insert(key, (count, of, version));
        let falls = |(before, same_of, then): (u64, u64, u64)| {
            then == version && same_of == of && before > count
        };
        if let Some((before, ..)) = before.filter(|before| falls(*before)) {
            return Err(format!("a count falls from {before}: {frame}"));
        }
        Ok(())
    }

    /// The last count that it heard for a message of a group.
    pub fn tally(&self, convo: &str, kind: Watermark, seq: u64) -> u64 {
        let key = (convo.to_owned(), format!("{kind:?}"), seq);
        self.tallies.get(&key).map_or(0, |(count, ..)| *count)
    }

    /// A group as it durably was at some time.
    fn take_group(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        let connection = self.connection.as_mut().expect("it heard this");
        let said = connection.answered(reference)?;
        let (convo, version) = (text(frame, "convo")?, number(frame, "version")?);
        if said != (Said::Group { convo: convo.clone() }) {
            return Err(format!("{said:?} is answered by {frame}"));
        }
        let durable = around.ledger.version(&convo);
        if version > durable {
            return Err(format!("{frame} is beyond the durable version {durable}"));
        }
        let members: Vec<&str> =
            frame["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if version == durable && members != around.ledger.members(&convo) {
            return Err(format!("{frame}: in it are {:?}", around.ledger.members(&convo)));
        }
        Ok(())
    }

    fn take_channel(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        let connection = self.connection.as_mut().expect("it heard this");
        let said = connection.answered(reference)?;
        let convo = text(frame, "convo")?;
        let owner = around.ledger.channels.owner(&convo);
        let is_answer = said == Said::Channel { convo: convo.clone() };
        if !is_answer || owner != frame["owner"].as_str() || !frame["subscribers"].is_u64() {
            return Err(format!("{said:?} is answered by {frame}, the owner is {owner:?}"));
        }
        Ok(())
    }

    /// A revocation is answered: it is durable, and the device is gone or new.
    fn take_devices(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        let connection = self.connection.as_mut().expect("it heard this");
        let Said::Revoke { device } = connection.answered(reference)? else {
            return Err(format!("{frame} answers no revocation"));
        };
        match around.ledger.was_revoked(&self.user, &device) {
            true => Ok(()),
            false => Err(format!("{device} of {frame} is not revoked durably")),
        }
    }

    fn take_synced(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let heads = frame["convos"].as_object().ok_or_else(|| format!("{frame} has no heads"))?;
        for (convo, head) in heads {
            let head = head.as_u64().ok_or_else(|| format!("{frame} has a head that is none"))?;
            if head > around.ledger.head(convo) {
                return Err(format!("{frame} is above the durable head"));
            }
            self.nothing_skipped(convo, head + 1, around.ledger)?;
        }
        let connection = self.connection.as_mut().expect("it heard this");
        connection.is_synced = true;
        match frame["ref"].as_i64() {
            Some(reference) => connection.answered(reference).map(drop),
            None => Ok(()),
        }
    }

    fn take_pong(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        let connection = self.connection.as_mut().expect("it heard this");
        for said in connection.passed(reference)? {
            let Said::Acknowledge { convo, seq, kind } = said else {
                return Err(format!("the pong {reference} overtakes {said:?}"));
            };
            let durable = around.ledger.acknowledged(&self.user, &self.device, &convo, kind);
            // What was there before he joined is none of his, and needs no record.
            let durable = durable.max(around.ledger.range(&self.user, &convo).0 - 1);
            if durable < seq && !self.is_revoked(around.ledger) {
                return Err(format!("{kind:?} {seq} of {convo} is done, durable is {durable}"));
            }
        }
        Ok(())
    }

    fn take_error(&mut self, frame: &Value, around: &mut Around) -> Verdict {
        let reference = frame["ref"].as_i64().ok_or_else(|| format!("{frame} has no ref"))?;
        let connection = self.connection.as_mut().expect("it heard this");
        let said = connection.answered(reference)?;
        let code = text(frame, "code")?;
        let outside = matches!(code.as_str(), "not_member" | "no_such_convo");
        match &said {
            _ if code == "unavailable" => {}
            Said::Group { .. } | Said::Channel { .. } if outside || code == "forbidden" => {
                return Ok(());
            }
            // He was subscribed when he heard what he acknowledges.
            Said::Acknowledge { convo, .. } if outside && around.ledger.channels.is_one(convo) => {
                return Ok(());
            }
            Said::Sync if outside => return Ok(()),
            Said::Revoke { .. } if code == "bad_request" => return Ok(()),
            Said::Send { id, convo }
                if (outside || code == "forbidden") && !convo.starts_with("dm:") =>
            {
                self.unanswered.retain(|outgoing| outgoing.id != *id);
                let accepted = around.ledger.is_accepted(convo, &self.user, id);
                let why = format!("{id} is in {convo} and refused: {frame}");
                return if accepted { Err(why) } else { Ok(()) };
            }
            _ => return Err(format!("{said:?} is refused: {frame}")),
        }
        let again_us = around.network.now_us() + frame["retry_ms"].as_u64().unwrap_or(0) * 1_000;
        if let Said::Send { id, .. } = said {
            let unanswered = self.unanswered.iter_mut().filter(|outgoing| outgoing.id == id);
            unanswered.for_each(|outgoing| outgoing.say_after_us = Some(again_us));
        }
        Ok(())
    }

    fn note(&self, around: &Around, event: std::fmt::Arguments) {
        let who = format_args!("{}/{} {event}", self.user, self.device).to_string();
        around.trace.note(around.network.now_us(), format_args!("{who}"));
    }
}

/// How a connection is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    Orderly,
    Reset,
    Silent,
}

fn told(frame: &Value, from: &str, body: Option<String>) -> Result<Told, String> {
    let mid = text(frame, "mid")?;
    Ok(Told {
        convo: text(frame, "convo")?,
        seq: number(frame, "seq")?,
        mid: mid.parse().map_err(|_| format!("{mid} is no mid"))?,
        ts: number(frame, "ts")?,
        from: from.to_owned(),
        id: if frame["kind"] == "system" { String::new() } else { text(frame, "id")? },
        body: body.map(String::into_bytes),
    })
}

fn text(frame: &Value, field: &str) -> Result<String, String> {
    let value = frame[field].as_str().map(str::to_owned);
    value.ok_or_else(|| format!("no text {field} in {frame}"))
}

fn number(frame: &Value, field: &str) -> Result<u64, String> {
    frame[field].as_u64().ok_or_else(|| format!("no number {field} in {frame}"))
}
