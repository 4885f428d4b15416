//! Subprotocol `aldis.v1`: one operation or event in each binary message.
//!
//! A message is one byte that says what it is, and fields. A field is one byte, its tag, and its
//! value. The lowest bit of the tag says how the value is written, known or not: 0, one varint; 1,
//! a varint and as many bytes. So whoever does not know a tag skips it. A varint is unsigned LEB128
//! in its shortest form, at most 64 bits. Of a tag that comes twice the last one counts.
//! `docs/protocol.md` has the tables.

use bytes::Bytes;

use super::conversation;
use super::operation::{
    CONVERSATIONS_COUNT_DEFAULT, ErrorCode, Event, Goodbye, HISTORY_COUNT_DEFAULT, INTEGER_MAX,
    LATER, Operation, PAGE_COUNT_MAX, Rejected, Request, Standing,
};
use super::page::newest_entries;
use crate::limits::BODY_SIZE_MAX;
use crate::link::message::{Target, Watermark};
use crate::link::record::{Body, ConversationName, Id, Message};

/// First bytes of messages to the server.
mod operation_type {
    pub const SEND: u8 = 0x01;
    pub const ACK: u8 = 0x02;
    pub const SYNC: u8 = 0x03;
    pub const HISTORY: u8 = 0x04;
    pub const CONVOS: u8 = 0x05;
    pub const PING: u8 = 0x06;
    /// The first of `LATER`; the others follow.
    pub const LATER_FIRST: u8 = 0x07;
}

/// First bytes of messages to the client.
mod event_type {
    pub const WELCOME: u8 = 0x81;
    pub const SENT: u8 = 0x82;
    pub const MSG: u8 = 0x83;
    pub const RECEIPT: u8 = 0x84;
    pub const SYNCED: u8 = 0x85;
    pub const PAGE: u8 = 0x86;
    pub const CONVOS: u8 = 0x87;
    pub const PONG: u8 = 0x88;
    pub const GOAWAY: u8 = 0x89;
    pub const BEHIND: u8 = 0x8a;
    pub const ERROR: u8 = 0x8b;
}

/// Fields, by the names that they have in JSON. Even: a varint; odd: a length and bytes.
mod tag {
    pub const CONVO: u8 = 0x01;
    pub const REF: u8 = 0x02;
    pub const TO: u8 = 0x03;
    pub const SEQ: u8 = 0x04;
    pub const ID: u8 = 0x05;
    pub const MID: u8 = 0x06;
    pub const BODY: u8 = 0x07;
    pub const TS: u8 = 0x08;
    /// `body64`, as it is.
    pub const BODY_BYTES: u8 = 0x09;
    pub const KIND: u8 = 0x0a;
    pub const FROM: u8 = 0x0b;
    pub const DUP: u8 = 0x0c;
    pub const CONVOS: u8 = 0x0d;
    pub const BEFORE: u8 = 0x0e;
    pub const MSGS: u8 = 0x0f;
    pub const LIMIT: u8 = 0x10;
    pub const AFTER: u8 = 0x11;
    pub const MORE: u8 = 0x12;
    pub const USER: u8 = 0x13;
    pub const RETRY_MS: u8 = 0x14;
    pub const DEVICE: u8 = 0x15;
    pub const RECONNECT_MS: u8 = 0x16;
    pub const SESSION: u8 = 0x17;
    pub const HEARTBEAT_MS: u8 = 0x18;
    pub const TICKET: u8 = 0x19;
    pub const HEAD: u8 = 0x1a;
    pub const SERVER: u8 = 0x1b;
    pub const DELIVERED: u8 = 0x1c;
    pub const BY: u8 = 0x1d;
    pub const READ: u8 = 0x1e;
    pub const MESSAGE: u8 = 0x1f;
    pub const UNREAD: u8 = 0x20;
    pub const OTHERS_DELIVERED: u8 = 0x22;
    pub const OTHERS_READ: u8 = 0x24;
    pub const REASON: u8 = 0x26;
    pub const CODE: u8 = 0x28;
}

/// Reads one binary message.
pub fn decode(message: &[u8]) -> Result<Request, Rejected> {
    let Some((&kind, rest)) = message.split_first() else {
        return Err(rejected(None, None, bad("the message is empty")));
    };
    let mut fields = Fields::default();
    let read = fields.read(rest);
    let id = if kind == operation_type::SEND { send_id(&fields) } else { None };
    let Ok(reference) = reference(fields.reference) else {
        return Err(rejected(None, id, bad("ref is beyond 2^53-1")));
    };
    match read.and_then(|()| operation(kind, &fields)) {
        Ok(operation) => Ok(Request { reference, operation }),
        Err(fault) => Err(rejected(reference, id, fault)),
    }
}

/// Appends one binary message to `out`.
pub fn encode(event: &Event, out: &mut Vec<u8>) {
    match *event {
        Event::Welcome { user, device, session, heartbeat_ms, ticket, server } => {
            let mut frame = Frame::begin(out, event_type::WELCOME);
            frame.text(tag::USER, user).text(tag::DEVICE, device).text(tag::SESSION, session);
            frame.integer(tag::HEARTBEAT_MS, heartbeat_ms).text(tag::TICKET, ticket);
            frame.text(tag::SERVER, server);
        }
        Event::Sent { reference, convo, id, seq, mid, ts, dup } => {
            let mut frame = Frame::begin(out, event_type::SENT);
            frame.reference(reference).text(tag::CONVO, convo).text(tag::ID, id);
            frame.integer(tag::SEQ, seq).integer(tag::MID, mid).integer(tag::TS, ts);
            frame.integer(tag::DUP, dup.into());
        }
        Event::Message(message) => {
            out.push(event_type::MSG);
            message_fields(message, out);
        }
        Event::Receipt { convo, seq, watermark, by } => {
            let mut frame = Frame::begin(out, event_type::RECEIPT);
            frame.text(tag::CONVO, convo).integer(tag::SEQ, seq);
            frame.integer(tag::KIND, watermark_number(watermark)).text(tag::BY, by);
        }
        Event::Synced { reference, heads } => {
            let entries: Vec<Vec<u8>> = heads.iter().map(head_entry).collect();
            let mut frame = Frame::begin(out, event_type::SYNCED);
            frame.reference(reference).list(tag::CONVOS, &entries);
        }
        Event::Page { reference, convo, messages, more } => {
            let entries = newest_entries(messages, message_fields);
            let mut frame = Frame::begin(out, event_type::PAGE);
            frame.reference(reference).text(tag::CONVO, convo).list(tag::MSGS, &entries);
            frame.integer(tag::MORE, (more || entries.len() < messages.len()).into());
        }
        Event::Conversations { reference, convos } => {
            let entries: Vec<Vec<u8>> = convos.iter().map(standing_entry).collect();
            let mut frame = Frame::begin(out, event_type::CONVOS);
            frame.reference(reference).list(tag::CONVOS, &entries);
        }
        Event::Pong { reference, ts } => {
            Frame::begin(out, event_type::PONG).reference(reference).integer(tag::TS, ts);
        }
        Event::Goaway { goodbye, reconnect_ms } => {
            let mut frame = Frame::begin(out, event_type::GOAWAY);
            frame.integer(tag::REASON, goodbye_number(goodbye));
            frame.optional(tag::RECONNECT_MS, reconnect_ms);
        }
        Event::Behind => out.push(event_type::BEHIND),
        Event::Error { reference, id, code, message, limit, retry_ms } => {
            let mut frame = Frame::begin(out, event_type::ERROR);
            frame.reference(reference);
            if let Some(id) = id {
                frame.text(tag::ID, id);
            }
            frame.integer(tag::CODE, code_number(code)).text(tag::MESSAGE, message);
            frame.optional(tag::LIMIT, limit).optional(tag::RETRY_MS, retry_ms);
        }
    }
}

/// The fields that any operation of this version has, not yet looked into.
#[derive(Default)]
struct Fields<'a> {
    reference: Option<u64>,
    seq: Option<u64>,
    kind: Option<u64>,
    before: Option<u64>,
    limit: Option<u64>,
    convo: Option<&'a [u8]>,
    to: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    body: Option<&'a [u8]>,
    body_bytes: Option<&'a [u8]>,
    convos: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// What was read before a fault stays.
    fn read(&mut self, mut rest: &'a [u8]) -> Result<(), Fault> {
        while let Some((&tag, value)) = rest.split_first() {
            rest = value;
            if tag % 2 == 0 {
                let value = varint(&mut rest).ok_or(bad("a varint is cut off or not one"))?;
                if let Some(slot) = self.integer_slot(tag) {
                    *slot = Some(value);
                }
            } else {
                let value = sized(&mut rest).ok_or(bad("a field is longer than the message"))?;
                if let Some(slot) = self.bytes_slot(tag) {
                    *slot = Some(value);
                }
            }
        }
        Ok(())
    }

    fn integer_slot(&mut self, tag: u8) -> Option<&mut Option<u64>> {
        Some(match tag {
            tag::REF => &mut self.reference,
            tag::SEQ => &mut self.seq,
            tag::KIND => &mut self.kind,
            tag::BEFORE => &mut self.before,
            tag::LIMIT => &mut self.limit,
            _ => return None,
        })
    }

    fn bytes_slot(&mut self, tag: u8) -> Option<&mut Option<&'a [u8]>> {
        Some(match tag {
            tag::CONVO => &mut self.convo,
            tag::TO => &mut self.to,
            tag::ID => &mut self.id,
            tag::BODY => &mut self.body,
            tag::BODY_BYTES => &mut self.body_bytes,
            tag::CONVOS => &mut self.convos,
            tag::AFTER => &mut self.after,
            _ => return None,
        })
    }
}

/// What is wrong with a message.
struct Fault {
    code: ErrorCode,
    message: &'static str,
    limit: Option<u64>,
}

const fn bad(message: &'static str) -> Fault {
    Fault { code: ErrorCode::BadRequest, message, limit: None }
}

fn rejected(reference: Option<i64>, id: Option<Id>, fault: Fault) -> Rejected {
    let Fault { code, message, limit } = fault;
    Rejected { reference, id, code, message, limit }
}

/// The id of a `send`, for its `error`.
fn send_id(fields: &Fields) -> Option<Id> {
    text(fields.id).map(Into::into)
}

/// Zigzag: 0, -1, 1, -2, 2, ... are written 0, 1, 2, 3, 4, ...
fn reference(written: Option<u64>) -> Result<Option<i64>, Fault> {
    let Some(written) = written else {
        return Ok(None);
    };
    let half = i64::try_from(written / 2).map_err(|_| bad("beyond 63 bits"))?;
    let value = if written % 2 == 0 { half } else { -half - 1 };
    let within = (-INTEGER_MAX..=INTEGER_MAX).contains(&value);
    if within { Ok(Some(value)) } else { Err(bad("beyond 2^53-1")) }
}

fn operation(kind: u8, fields: &Fields) -> Result<Operation, Fault> {
    match kind {
        operation_type::SEND => send(fields),
        operation_type::ACK => acknowledge(fields),
        operation_type::SYNC => sync(fields),
        operation_type::HISTORY => history(fields),
        operation_type::CONVOS => conversations(fields),
        operation_type::PING => Ok(Operation::Ping),
        other => {
            let index = other.checked_sub(operation_type::LATER_FIRST);
            let later = index.and_then(|index| LATER.get(usize::from(index)).copied());
            let (code, limit) = (ErrorCode::UnknownOperation, None);
            let unknown = Fault { code, message: "no such operation", limit };
            later.map(Operation::Later).ok_or(unknown)
        }
    }
}

fn send(fields: &Fields) -> Result<Operation, Fault> {
    let target = match (fields.convo, fields.to) {
        (Some(_), None) => Target::Conversation { name: convo(fields.convo)? },
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
    match (fields.body, fields.body_bytes) {
        (body @ Some(_), None) => {
            let text = text(body).ok_or(bad("body is not text"))?;
            Ok(Body::Text { text: Bytes::copy_from_slice(text.as_bytes()) })
        }
        (None, Some(bytes)) => Ok(Body::Binary { bytes: Bytes::copy_from_slice(bytes) }),
        _ => Err(bad("exactly one of the two bodies is wanted")),
    }
}

fn acknowledge(fields: &Fields) -> Result<Operation, Fault> {
    let convo = convo(fields.convo)?;
    let seq = fields.seq.filter(within).ok_or(bad("seq is missing or beyond 2^53-1"))?;
    let watermark = match fields.kind {
        Some(1) => Watermark::Delivered,
        Some(2) => Watermark::Read,
        _ => return Err(bad("kind is neither 1 nor 2")),
    };
    Ok(Operation::Acknowledge { convo, seq, watermark })
}

/// Sorted by name; of one that comes twice, the last.
fn sync(fields: &Fields) -> Result<Operation, Fault> {
    let Some(mut rest) = fields.convos else {
        return Ok(Operation::Sync { convos: None });
    };
    let mut convos = std::collections::BTreeMap::new();
    while !rest.is_empty() {
        let entry = sized(&mut rest).ok_or(bad("an entry of convos is cut off"))?;
        let mut fields = Fields::default();
        fields.read(entry)?;
        let seq = fields.seq.filter(within).ok_or(bad("an entry of convos has no seq"))?;
        convos.insert(convo(fields.convo)?, seq);
    }
    Ok(Operation::Sync { convos: Some(convos.into_iter().collect()) })
}

fn history(fields: &Fields) -> Result<Operation, Fault> {
    let convo = convo(fields.convo)?;
    let is_wrong = |before: u64| before < 1 || !within(&before);
    if fields.before.is_some_and(is_wrong) {
        return Err(bad("before is not an integer of at least 1"));
    }
    let limit = limit(fields, HISTORY_COUNT_DEFAULT)?;
    Ok(Operation::History { convo, before: fields.before, limit })
}

fn conversations(fields: &Fields) -> Result<Operation, Fault> {
    let after = fields.after.map(|after| convo(Some(after))).transpose();
    let after = after.map_err(|_| bad("after is not the name of a conversation"))?;
    Ok(Operation::Conversations { after, limit: limit(fields, CONVERSATIONS_COUNT_DEFAULT)? })
}

fn limit(fields: &Fields, default: u32) -> Result<u32, Fault> {
    let limit = u32::try_from(fields.limit.unwrap_or(default.into())).ok();
    let limit = limit.filter(|limit| (1..=PAGE_COUNT_MAX).contains(limit));
    limit.ok_or(bad("limit is not an integer of 1 to 200"))
}

fn convo(field: Option<&[u8]>) -> Result<ConversationName, Fault> {
    let name = text(field).filter(|name| conversation::parse(name).is_ok());
    name.map(Into::into).ok_or(bad("convo is not the name of a conversation"))
}

fn id(field: Option<&[u8]>) -> Option<Id> {
    text(field).filter(|id| conversation::is_id(id)).map(Into::into)
}

fn text(field: Option<&[u8]>) -> Option<&str> {
    simdutf8::basic::from_utf8(field?).ok()
}

fn within(value: &u64) -> bool {
    *value <= INTEGER_MAX as u64
}

/// Takes a varint off the front.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        value |= bits << shift;
        if byte & 0x80 == 0 {
            // The tenth byte has one bit to give; a last byte of zero were a longer spelling.
            let overflows = shift == 63 && bits > 1;
            let is_shortest = byte != 0 || shift == 0;
            return (is_shortest && !overflows).then_some(value);
        }
    }
    None
}

/// Takes a length and as many bytes off the front.
fn sized<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let size = usize::try_from(varint(rest)?).ok()?;
    let (value, after) = rest.split_at_checked(size)?;
    *rest = after;
    Some(value)
}

fn watermark_number(watermark: Watermark) -> u64 {
    match watermark {
        Watermark::Delivered => 1,
        Watermark::Read => 2,
    }
}

fn goodbye_number(goodbye: Goodbye) -> u64 {
    match goodbye {
        Goodbye::Drain => 1,
        Goodbye::Replaced => 2,
        Goodbye::Overload => 3,
        Goodbye::Slow => 4,
    }
}

fn code_number(code: ErrorCode) -> u64 {
    match code {
        ErrorCode::BadRequest => 1,
        ErrorCode::UnknownOperation => 2,
        ErrorCode::NotMember => 3,
        ErrorCode::NoSuchConversation => 4,
        ErrorCode::TooLarge => 5,
        ErrorCode::RateLimited => 6,
        ErrorCode::GroupFull => 7,
        ErrorCode::Forbidden => 8,
        ErrorCode::Unavailable => 9,
        ErrorCode::Internal => 10,
    }
}

fn message_fields(message: &Message, out: &mut Vec<u8>) {
    let mut frame = Frame { out };
    frame.text(tag::CONVO, &message.convo).integer(tag::SEQ, message.seq);
    frame.integer(tag::MID, message.mid).text(tag::FROM, &message.from);
    frame.text(tag::ID, &message.id).integer(tag::TS, message.ts);
    match &message.body {
        Body::Text { text } => frame.bytes(tag::BODY, text),
        Body::Binary { bytes } => frame.bytes(tag::BODY_BYTES, bytes),
    };
}

fn head_entry((convo, head): &(ConversationName, u64)) -> Vec<u8> {
    let mut entry = Vec::new();
    Frame { out: &mut entry }.text(tag::CONVO, convo).integer(tag::HEAD, *head);
    entry
}

fn standing_entry(standing: &Standing) -> Vec<u8> {
    let mut entry = Vec::new();
    let mut frame = Frame { out: &mut entry };
    frame.text(tag::CONVO, &standing.convo).integer(tag::HEAD, standing.head);
    frame.integer(tag::DELIVERED, standing.delivered).integer(tag::READ, standing.read);
    frame.integer(tag::UNREAD, standing.unread);
    frame.integer(tag::OTHERS_DELIVERED, standing.others_delivered);
    frame.integer(tag::OTHERS_READ, standing.others_read);
    entry
}

/// One message under construction.
struct Frame<'a> {
    out: &'a mut Vec<u8>,
}

impl Frame<'_> {
    fn begin(out: &mut Vec<u8>, kind: u8) -> Frame<'_> {
        out.push(kind);
        Frame { out }
    }

    fn integer(&mut self, tag: u8, value: u64) -> &mut Self {
        self.out.push(tag);
        put_varint(value, self.out);
        self
    }

    fn optional(&mut self, tag: u8, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.integer(tag, value),
            None => self,
        }
    }

    fn reference(&mut self, reference: Option<i64>) -> &mut Self {
        // Doubled, and every bit turned when it is negative: zigzag without a branch.
        let zigzag = |value: i64| ((value << 1) ^ (value >> 63)).cast_unsigned();
        self.optional(tag::REF, reference.map(zigzag))
    }

    fn bytes(&mut self, tag: u8, value: &[u8]) -> &mut Self {
        self.out.push(tag);
        put_varint(value.len() as u64, self.out);
        self.out.extend_from_slice(value);
        self
    }

    fn text(&mut self, tag: u8, value: &str) -> &mut Self {
        self.bytes(tag, value.as_bytes())
    }

    /// Each entry with its length before it.
    fn list(&mut self, tag: u8, entries: &[Vec<u8>]) -> &mut Self {
        let mut list = Vec::new();
        for entry in entries {
            put_varint(entry.len() as u64, &mut list);
            list.extend_from_slice(entry);
        }
        self.bytes(tag, &list)
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
