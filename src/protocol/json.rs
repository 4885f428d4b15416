//! Subprotocol `aldis.v1.json`: one JSON object in each text frame.
//!
//! The decoder first splits the object into the raw text of its known fields, and then reads each
//! of them alone. So a fault in one field (a lone surrogate, an integer beyond every type) leaves
//! `ref` and `id` readable for the `error`, and unknown fields are skipped whatever they hold, at
//! any depth, without recursion. Of a name that comes twice the last one counts, as in every
//! browser. An integer is written without fraction and exponent: `1.0` and `1e3` are wrong types.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::{Fault, Field, Fields, bad, conversation_name, operation, rejected};
use super::operation::{Event, INTEGER_MAX, Rejected, Request, Standing};
use super::page::newest_entries;
use crate::link::message::Watermark;
use crate::link::record::{Body, ConversationName, Id, Message};

/// Reads one text frame.
pub fn decode(frame: &[u8]) -> Result<Request, Rejected> {
    let Ok(fields) = RawFields::split(frame) else {
        return Err(rejected(None, None, BAD_JSON));
    };
    let reference = match integer(fields.reference) {
        Ok(reference) => reference,
        Err(Wrong) => {
            return Err(rejected(None, send_id(&fields), bad("ref is not an integer")));
        }
    };
    let name = match text(fields.operation) {
        Ok(Some(name)) => Ok(name),
        Ok(None) => Err(bad("t is missing")),
        Err(Wrong) => Err(bad("t is not text")),
    };
    match name.and_then(|name| operation(&name, &fields)) {
        Ok(operation) => Ok(Request { reference, operation }),
        Err(fault) => Err(rejected(reference, send_id(&fields), fault)),
    }
}

/// Appends one text frame's payload to `out`.
pub fn encode(event: &Event, out: &mut Vec<u8>) {
    match *event {
        Event::Welcome { user, device, session, heartbeat_ms, ticket, server } => {
            let mut frame = Frame::begin(out, "welcome");
            frame.text("user", user).text("device", device).text("session", session);
            frame.integer("heartbeat_ms", heartbeat_ms).text("ticket", ticket);
            frame.text("server", server).end();
        }
        Event::Sent { reference, convo, id, seq, mid, ts, dup } => {
            let mut frame = Frame::begin(out, "sent");
            frame.reference(reference).text("convo", convo).text("id", id);
            frame.integer("seq", seq).decimal("mid", mid).integer("ts", ts);
            frame.raw("dup", format_args!("{dup}")).end();
        }
        Event::Message(message) => {
            let mut frame = Frame::begin(out, "msg");
            frame.message(message).end();
        }
        Event::Receipt { convo, seq, watermark, by, tally } => {
            let mut frame = Frame::begin(out, "receipt");
            frame.text("convo", convo).integer("seq", seq);
            frame.text("kind", watermark_text(watermark)).text("by", by);
            frame.optional("count", tally.map(|tally| tally.count));
            frame.optional("of", tally.map(|tally| tally.of)).end();
        }
        Event::Channel { .. } => channel(event, out),
        Event::Synced { reference, heads } => {
            let mut frame = Frame::begin(out, "synced");
            frame.reference(reference).heads(heads).end();
        }
        Event::Page { reference, convo, messages, more } => {
            let entries = newest_entries(messages, page_entry);
            let mut frame = Frame::begin(out, "page");
            frame.reference(reference).text("convo", convo).list("msgs", &entries);
            frame.raw("more", format_args!("{}", more || entries.len() < messages.len())).end();
        }
        Event::Conversations { reference, convos } => {
            let entries: Vec<Vec<u8>> = convos.iter().map(standing).collect();
            let mut frame = Frame::begin(out, "convos");
            frame.reference(reference).list("convos", &entries).end();
        }
        Event::Pong { reference, ts } => {
            Frame::begin(out, "pong").reference(reference).integer("ts", ts).end();
        }
        Event::Failed { convo, seq, id } => failed(convo, seq, id, out),
        Event::Goaway { goodbye, reconnect_ms } => {
            let mut frame = Frame::begin(out, "goaway");
            frame.text("reason", goodbye.reason());
            frame.optional("reconnect_ms", reconnect_ms).end();
        }
        Event::Behind => Frame::begin(out, "behind").end(),
        Event::Error { reference, id, code, message, limit, retry_ms } => {
            let mut frame = Frame::begin(out, "error");
            frame.reference(reference);
            if let Some(id) = id {
                frame.text("id", id);
            }
            frame.text("code", code.text()).text("message", message);
            frame.optional("limit", limit).optional("retry_ms", retry_ms).end();
        }
        _ => encode_of_users(event, out),
    }
}

/// What is told of users: their groups, their devices, and whether they are there.
fn encode_of_users(event: &Event, out: &mut Vec<u8>) {
    match *event {
        Event::Group { reference, group } => {
            let mut frame = Frame::begin(out, "group");
            frame.reference(reference).text("convo", &group.convo);
            if let Some(owner) = &group.owner {
                frame.text("owner", owner);
            }
            frame.names("admins", &group.admins).names("members", &group.members);
            frame.integer("version", group.version).end();
        }
        Event::Devices { reference, devices } => {
            let entries: Vec<Vec<u8>> = devices.iter().map(device_entry).collect();
            let mut frame = Frame::begin(out, "devices");
            frame.reference(reference).list("devices", &entries).end();
        }
        Event::Privacy { reference, hidden } => {
            let presence = if hidden { "nobody" } else { "everyone" };
            Frame::begin(out, "privacy").reference(reference).text("presence", presence).end();
        }
        Event::Presence { reference, user, online, last_seen } => {
            let mut frame = Frame::begin(out, "presence");
            frame.reference(reference).text("user", user);
            frame.text("state", if online { "online" } else { "offline" });
            frame.optional("last_seen", last_seen).end();
        }
        Event::Typing { convo, from } => {
            Frame::begin(out, "typing").text("convo", convo).text("from", from).end();
        }
        _ => unreachable!("the caller encodes the others"),
    }
}

fn failed(convo: &str, seq: u64, id: &str, out: &mut Vec<u8>) {
    Frame::begin(out, "failed").text("convo", convo).integer("seq", seq).text("id", id).end();
}

/// The raw text of the fields that any operation of this version has; absent and `null` are `None`.
#[derive(Default)]
struct RawFields<'a> {
    operation: Option<&'a RawValue>,
    reference: Option<&'a RawValue>,
    convo: Option<&'a RawValue>,
    to: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
    body64: Option<&'a RawValue>,
    seq: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    convos: Option<&'a RawValue>,
    before: Option<&'a RawValue>,
    after: Option<&'a RawValue>,
    limit: Option<&'a RawValue>,
    members: Option<&'a RawValue>,
    role: Option<&'a RawValue>,
    device: Option<&'a RawValue>,
    users: Option<&'a RawValue>,
    presence: Option<&'a RawValue>,
}

impl<'a> RawFields<'a> {
    fn split(frame: &'a [u8]) -> Result<RawFields<'a>, serde_json::Error> {
        let text = simdutf8::basic::from_utf8(frame).map_err(serde::de::Error::custom)?;
        let mut decoder = serde_json::Deserializer::from_str(text);
        let fields = decoder.deserialize_map(FieldsVisitor)?;
        decoder.end()?;
        Ok(fields)
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<&'a RawValue>> {
        Some(match name {
            "t" => &mut self.operation,
            "ref" => &mut self.reference,
            "convo" => &mut self.convo,
            "to" => &mut self.to,
            "id" => &mut self.id,
            "body" => &mut self.body,
            "body64" => &mut self.body64,
            "seq" => &mut self.seq,
            "kind" => &mut self.kind,
            "convos" => &mut self.convos,
            "before" => &mut self.before,
            "after" => &mut self.after,
            "limit" => &mut self.limit,
            "members" => &mut self.members,
            "role" => &mut self.role,
            "device" => &mut self.device,
            "users" => &mut self.users,
            "presence" => &mut self.presence,
            _ => return None,
        })
    }

    fn raw(&self, field: Field) -> Option<&'a RawValue> {
        match field {
            Field::Convo => self.convo,
            Field::To => self.to,
            Field::Id => self.id,
            Field::Seq => self.seq,
            Field::Before => self.before,
            Field::After => self.after,
            Field::Limit => self.limit,
            Field::Device => self.device,
        }
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = RawFields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFields<'de>, A::Error> {
        let mut fields = RawFields::default();
        // A name is taken raw too: one with a lone surrogate is merely unknown.
        while let Some(name) = map.next_key::<Name>()? {
            match fields.slot(&name.0) {
                Some(slot) => *slot = present(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

/// A field's name. Read as bytes, which lets a lone surrogate pass; nothing known contains one.
struct Name<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name<'de>, D::Error> {
        deserializer.deserialize_bytes(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_borrowed_bytes<E>(self, name: &'de [u8]) -> Result<Name<'de>, E> {
        Ok(Name(String::from_utf8_lossy(name)))
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Name<'de>, E> {
        Ok(Name(String::from_utf8_lossy(name).into_owned().into()))
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
        Ok(Name(name.into()))
    }

    fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
        Ok(Name(name.to_owned().into()))
    }
}

/// A field does not hold what it is to hold.
struct Wrong;

const BAD_JSON: Fault = bad("the frame is not a JSON object");

/// The id of a frame that says it is a `send`, for its `error`.
fn send_id(fields: &RawFields) -> Option<Id> {
    let operation = text(fields.operation).ok()??;
    let id = text(fields.id).ok()??;
    (operation == "send").then(|| id.into())
}

impl Fields for RawFields<'_> {
    fn has(&self, field: Field) -> bool {
        self.raw(field).is_some()
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        text(self.raw(field)).ok().flatten()
    }

    fn integer(&self, field: Field) -> Option<u64> {
        unsigned(self.raw(field))
    }

    fn body(&self) -> Result<Body, Fault> {
        match (self.body, self.body64) {
            (body @ Some(_), None) => match text(body) {
                Ok(Some(text)) => Ok(Body::Text { text: Bytes::copy_from_slice(text.as_bytes()) }),
                _ => Err(bad("body is not text")),
            },
            (None, body64 @ Some(_)) => {
                let encoded = text(body64).ok().flatten().ok_or(bad("body64 is not text"))?;
                let decoded = STANDARD.decode(&*encoded);
                let fault = bad("body64 is not standard base64 with padding");
                Ok(Body::Binary { bytes: decoded.map_err(|_| fault)?.into() })
            }
            _ => Err(bad("exactly one of body and body64 is wanted")),
        }
    }

    fn watermark(&self) -> Option<Watermark> {
        match &*text(self.kind).ok()?? {
            "delivered" => Some(Watermark::Delivered),
            "read" => Some(Watermark::Read),
            _ => None,
        }
    }

    fn admin(&self) -> Option<bool> {
        match &*text(self.role).ok()?? {
            "admin" => Some(true),
            "member" => Some(false),
            _ => None,
        }
    }

    fn members(&self) -> Option<Vec<Cow<'_, str>>> {
        texts(self.members?)
    }

    fn users(&self) -> Option<Vec<Cow<'_, str>>> {
        texts(self.users?)
    }

    fn hidden(&self) -> Option<bool> {
        match &*text(self.presence).ok()?? {
            "nobody" => Some(true),
            "everyone" => Some(false),
            _ => None,
        }
    }

    fn heads(&self) -> Result<Option<Vec<(ConversationName, u64)>>, Fault> {
        let Some(raw) = self.convos else {
            return Ok(None);
        };
        let mut decoder = serde_json::Deserializer::from_str(raw.get());
        let entries = decoder.deserialize_map(EntriesVisitor);
        let entries = entries.map_err(|_| bad("convos is not an object"))?;
        let head = |(name, seq): (String, &RawValue)| {
            let name = conversation_name(&name);
            let name = name.ok_or(bad("convos has a name that cannot be one"))?;
            let seq = unsigned(Some(seq)).ok_or(bad("convos has a seq that is not an integer"))?;
            Ok((name, seq))
        };
        entries.into_iter().map(head).collect::<Result<Vec<_>, Fault>>().map(Some)
    }
}

/// The entries of an object that are not null; of a name that comes twice, the last.
struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = std::collections::BTreeMap<String, &'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Self::Value::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            match present(value) {
                Some(value) => entries.insert(name, value),
                None => entries.remove(&name),
            };
        }
        Ok(entries)
    }
}

fn present(raw: &RawValue) -> Option<&RawValue> {
    (raw.get() != "null").then_some(raw)
}

/// `Ok(None)` when absent, `Err` when it is something else than text of whole characters.
fn text(field: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, Wrong> {
    let Some(raw) = field.map(RawValue::get) else {
        return Ok(None);
    };
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or(Wrong)?;
    // The splitting saw no control character in it, so without escapes it stands for itself.
    if !inner.contains('\\') {
        return Ok(Some(inner.into()));
    }
    let unescaped: String = serde_json::from_str(raw).map_err(|_| Wrong)?;
    Ok(Some(unescaped.into()))
}

/// A list of texts.
fn texts(raw: &RawValue) -> Option<Vec<Cow<'_, str>>> {
    let entries: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
    entries.into_iter().map(|entry| text(Some(entry)).ok()?).collect()
}

fn integer(field: Option<&RawValue>) -> Result<Option<i64>, Wrong> {
    let Some(raw) = field else {
        return Ok(None);
    };
    // Rust's own grammar is wider (`+1`), but the splitting passed JSON numbers only.
    let value: i64 = raw.get().parse().map_err(|_| Wrong)?;
    if !(-INTEGER_MAX..=INTEGER_MAX).contains(&value) {
        return Err(Wrong);
    }
    Ok(Some(value))
}

fn unsigned(field: Option<&RawValue>) -> Option<u64> {
    u64::try_from(integer(field).ok()??).ok()
}

fn watermark_text(watermark: Watermark) -> &'static str {
    match watermark {
        Watermark::Delivered => "delivered",
        Watermark::Read => "read",
    }
}

fn channel(event: &Event, out: &mut Vec<u8>) {
    let Event::Channel { reference, convo, owner, subscribers } = *event else { return };
    let mut frame = Frame::begin(out, "channel");
    frame.reference(reference).text("convo", convo).text("owner", owner);
    frame.integer("subscribers", subscribers).end();
}

fn page_entry(message: &Message, out: &mut Vec<u8>) {
    Frame::begin_entry(out).message(message).end();
}

fn device_entry((device, last_seen): &(Id, u64)) -> Vec<u8> {
    let mut entry = Vec::new();
    Frame::begin_entry(&mut entry).text("device", device).integer("last_seen", *last_seen).end();
    entry
}

fn standing(standing: &Standing) -> Vec<u8> {
    let mut entry = Vec::new();
    let mut frame = Frame::begin_entry(&mut entry);
    frame.text("convo", &standing.convo).integer("head", standing.head);
    frame.integer("delivered", standing.delivered).integer("read", standing.read);
    frame.integer("unread", standing.unread);
    frame.integer("others_delivered", standing.others_delivered);
    frame.integer("others_read", standing.others_read).end();
    entry
}

/// One object under construction.
struct Frame<'a> {
    out: &'a mut Vec<u8>,
    /// No field is there yet.
    empty: bool,
}

const INFALLIBLE: &str = "writing to a vector does not fail";

impl Frame<'_> {
    fn begin<'a>(out: &'a mut Vec<u8>, kind: &str) -> Frame<'a> {
        out.extend_from_slice(b"{\"t\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Frame { out, empty: false }
    }

    /// An object within a frame, which has no `t`.
    fn begin_entry(out: &mut Vec<u8>) -> Frame<'_> {
        out.push(b'{');
        Frame { out, empty: true }
    }

    /// A literal that needs no escape.
    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// `value` is JSON.
    fn raw(&mut self, name: &str, value: fmt::Arguments) -> &mut Self {
        self.name(name);
        self.out.write_fmt(value).expect(INFALLIBLE);
        self
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        write_text(self.out, value);
        self
    }

    fn message(&mut self, message: &Message) -> &mut Self {
        self.text("convo", &message.convo).integer("seq", message.seq).decimal("mid", message.mid);
        self.text("from", &message.from);
        match message.is_system() {
            true => self.text("kind", "system"),
            false => self.text("id", &message.id),
        };
        self.integer("ts", message.ts);
        match &message.body {
            // The edge that took it had checked it; a foreign byte becomes a replacement mark.
            Body::Text { text } => match simdutf8::basic::from_utf8(text) {
                Ok(text) => self.text("body", text),
                Err(_) => self.text("body", &String::from_utf8_lossy(text)),
            },
            Body::Binary { bytes } => {
                self.raw("body64", format_args!("\"{}\"", STANDARD.encode(bytes)))
            }
        }
    }

    /// `entries` are JSON.
    fn list(&mut self, name: &str, entries: &[Vec<u8>]) -> &mut Self {
        self.name(name);
        self.out.push(b'[');
        self.out.extend_from_slice(&entries.join(&b','));
        self.out.push(b']');
        self
    }

    fn integer(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name);
        write_decimal(self.out, value);
        self
    }

    fn decimal(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name);
        self.out.push(b'"');
        write_decimal(self.out, value);
        self.out.push(b'"');
        self
    }

    fn names(&mut self, name: &str, names: &[Id]) -> &mut Self {
        let quoted = |name: &Id| {
            let mut text = Vec::with_capacity(name.len() + 2);
            write_text(&mut text, name);
            text
        };
        let entries: Vec<Vec<u8>> = names.iter().map(quoted).collect();
        self.list(name, &entries)
    }

    fn optional(&mut self, name: &str, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.integer(name, value),
            None => self,
        }
    }

    fn reference(&mut self, reference: Option<i64>) -> &mut Self {
        match reference {
            Some(reference) => self.raw("ref", format_args!("{reference}")),
            None => self,
        }
    }

    fn heads(&mut self, heads: &[(ConversationName, u64)]) -> &mut Self {
        self.name("convos");
        self.out.push(b'{');
        for (index, (convo, head)) in heads.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write_text(self.out, convo);
            self.out.push(b':');
            write_decimal(self.out, *head);
        }
        self.out.push(b'}');
        self
    }

    fn end(&mut self) {
        self.out.push(b'}');
    }
}

/// A body is mostly what needs no escape, which one look at its bytes tells.
fn write_text(out: &mut Vec<u8>, value: &str) {
    // Looks at every byte, also after one that needs an escape: so it compiles to vector code.
    let needs_escape = |byte: &u8| (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    if !value.as_bytes().iter().fold(false, |found, byte| found | needs_escape(byte)) {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, value).expect(INFALLIBLE);
    }
}

fn write_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests;
