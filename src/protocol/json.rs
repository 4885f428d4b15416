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

use super::conversation;
use super::operation::{ErrorCode, Event, INTEGER_MAX, LATER, Operation, Rejected, Request};
use crate::limits::BODY_SIZE_MAX;
use crate::link::message::{Target, Watermark};
use crate::link::record::{Body, ConversationName, Id, Message};

/// Reads one text frame.
pub fn decode(frame: &[u8]) -> Result<Request, Rejected> {
    let Ok(fields) = Fields::split(frame) else {
        return Err(rejected(None, None, BAD_JSON));
    };
    let reference = match integer(fields.reference) {
        Ok(reference) => reference,
        Err(Wrong) => {
            return Err(rejected(None, send_id(&fields), bad("ref is not an integer")));
        }
    };
    match operation(&fields) {
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
        Event::Message(message) => encode_message(message, out),
        Event::Receipt { convo, seq, watermark, by } => {
            let mut frame = Frame::begin(out, "receipt");
            frame.text("convo", convo).integer("seq", seq);
            frame.text("kind", watermark_text(watermark)).text("by", by).end();
        }
        Event::Synced { reference, heads } => {
            let mut frame = Frame::begin(out, "synced");
            frame.reference(reference).heads(heads).end();
        }
        Event::Pong { reference, ts } => {
            Frame::begin(out, "pong").reference(reference).integer("ts", ts).end();
        }
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
    }
}

/// The raw text of the fields that any operation of this version has; absent and `null` are `None`.
#[derive(Default)]
struct Fields<'a> {
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
}

impl<'a> Fields<'a> {
    fn split(frame: &'a [u8]) -> Result<Fields<'a>, serde_json::Error> {
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
            _ => return None,
        })
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
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

/// What is wrong with a frame.
struct Fault {
    code: ErrorCode,
    message: &'static str,
    limit: Option<u64>,
}

const BAD_JSON: Fault = bad("the frame is not a JSON object");

const fn bad(message: &'static str) -> Fault {
    Fault { code: ErrorCode::BadRequest, message, limit: None }
}

fn rejected(reference: Option<i64>, id: Option<Id>, fault: Fault) -> Rejected {
    let Fault { code, message, limit } = fault;
    Rejected { reference, id, code, message, limit }
}

/// The id of a frame that says it is a `send`, for its `error`.
fn send_id(fields: &Fields) -> Option<Id> {
    let operation = text(fields.operation).ok()??;
    let id = text(fields.id).ok()??;
    (operation == "send").then(|| id.into())
}

fn operation(fields: &Fields) -> Result<Operation, Fault> {
    let name = text(fields.operation).map_err(|Wrong| bad("t is not text"))?;
    match &*name.ok_or(bad("t is missing"))? {
        "send" => send(fields),
        "ack" => acknowledge(fields),
        "sync" => sync(fields),
        "ping" => Ok(Operation::Ping),
        other => match LATER.iter().find(|later| **later == other) {
            Some(later) => Ok(Operation::Later(later)),
            None => Err(Fault {
                code: ErrorCode::UnknownOperation,
                message: "no such operation",
                limit: None,
            }),
        },
    }
}

fn send(fields: &Fields) -> Result<Operation, Fault> {
    let target = match (fields.convo, fields.to) {
        (Some(_), None) => Target::Conversation { name: convo(fields)? },
        (None, Some(_)) => {
            let user = id(fields.to).ok_or(bad("to is not an id of 1 to 64 bytes"))?;
            Target::User { user }
        }
        _ => return Err(bad("exactly one of convo and to is wanted")),
    };
    let id = id(fields.id).ok_or(bad("id is not an id of 1 to 64 bytes"))?;
    let body = body(fields)?;
    if body.bytes().len() > BODY_SIZE_MAX {
        return Err(Fault {
            code: ErrorCode::TooLarge,
            message: "the body is too large",
            limit: Some(BODY_SIZE_MAX as u64),
        });
    }
    Ok(Operation::Send { target, id, body })
}

fn body(fields: &Fields) -> Result<Body, Fault> {
    match (fields.body, fields.body64) {
        (body @ Some(_), None) => match text(body) {
            Ok(Some(text)) => Ok(Body::Text { text: Bytes::copy_from_slice(text.as_bytes()) }),
            _ => Err(bad("body is not text")),
        },
        (None, body64 @ Some(_)) => {
            let encoded = text(body64).ok().flatten().ok_or(bad("body64 is not text"))?;
            let decoded = STANDARD.decode(&*encoded);
            let bytes = decoded.map_err(|_| bad("body64 is not standard base64 with padding"))?;
            Ok(Body::Binary { bytes: bytes.into() })
        }
        _ => Err(bad("exactly one of body and body64 is wanted")),
    }
}

fn acknowledge(fields: &Fields) -> Result<Operation, Fault> {
    let convo = convo(fields)?;
    let seq = unsigned(fields.seq).ok_or(bad("seq is not an integer of at least 0"))?;
    let kind = text(fields.kind).ok().flatten();
    let watermark = match kind.as_deref() {
        Some("delivered") => Watermark::Delivered,
        Some("read") => Watermark::Read,
        _ => return Err(bad("kind is neither delivered nor read")),
    };
    Ok(Operation::Acknowledge { convo, seq, watermark })
}

fn sync(fields: &Fields) -> Result<Operation, Fault> {
    let Some(raw) = fields.convos else {
        return Ok(Operation::Sync { convos: None });
    };
    let mut decoder = serde_json::Deserializer::from_str(raw.get());
    let entries = decoder.deserialize_map(EntriesVisitor);
    let entries = entries.map_err(|_| bad("convos is not an object"))?;
    let mut convos: Vec<(ConversationName, u64)> = Vec::with_capacity(entries.len());
    for (name, seq) in entries {
        conversation::parse(&name).map_err(|_| bad("convos has a name that cannot be one"))?;
        let seq = unsigned(Some(seq)).ok_or(bad("convos has a seq that is not an integer"))?;
        convos.push((name.into(), seq));
    }
    Ok(Operation::Sync { convos: Some(convos) })
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

fn convo(fields: &Fields) -> Result<ConversationName, Fault> {
    let fault = bad("convo is not the name of a conversation");
    match text(fields.convo) {
        Ok(Some(name)) if conversation::parse(&name).is_ok() => Ok(name.into()),
        _ => Err(fault),
    }
}

fn id(field: Option<&RawValue>) -> Option<Id> {
    let id = text(field).ok()??;
    conversation::is_id(&id).then(|| id.into())
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

fn encode_message(message: &Message, out: &mut Vec<u8>) {
    let mut frame = Frame::begin(out, "msg");
    frame.text("convo", &message.convo).integer("seq", message.seq).decimal("mid", message.mid);
    frame.text("from", &message.from).text("id", &message.id).integer("ts", message.ts);
    match &message.body {
        Body::Text { text } => {
            // The edge that took it had checked it; a foreign byte becomes a replacement mark.
            match simdutf8::basic::from_utf8(text) {
                Ok(text) => frame.text("body", text),
                Err(_) => frame.text("body", &String::from_utf8_lossy(text)),
            };
        }
        Body::Binary { bytes } => {
            frame.raw("body64", format_args!("\"{}\"", STANDARD.encode(bytes)));
        }
    }
    frame.end();
}

/// One object under construction.
struct Frame<'a> {
    out: &'a mut Vec<u8>,
}

const INFALLIBLE: &str = "writing to a vector does not fail";

impl Frame<'_> {
    fn begin<'a>(out: &'a mut Vec<u8>, kind: &str) -> Frame<'a> {
        out.extend_from_slice(b"{\"t\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Frame { out }
    }

    /// `name` is a literal that needs no escape, `value` is JSON.
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

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
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
        self.out.extend_from_slice(b",\"convos\":{");
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
