//! Subprotocol `aldis.v1`: one operation or event in each binary message.
//!
//! A message is one byte that says what it is, and fields. A field is one byte, its tag, and its
//! value. The lowest bit of the tag says how the value is written, known or not: 0, one varint; 1,
//! a varint and as many bytes. So whoever does not know a tag skips it. A varint is unsigned LEB128
//! in its shortest form, at most 64 bits. Of a tag that comes twice the last one counts.
//! `docs/protocol.md` has the tables.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use super::fields::{
    Fault, Field, Fields, UNKNOWN_OPERATION, bad, conversation_name, operation, rejected,
};
use super::operation::{
    ErrorCode, Event, Goodbye, INTEGER_MAX, LATER, Rejected, Request, Standing,
};
use super::page::newest_entries;
use crate::link::message::Watermark;
use crate::link::record::{Body, ConversationName, Id, Message};

/// First bytes of messages to the server.
mod operation_type {
    pub const SEND: u8 = 0x01;
    pub const ACK: u8 = 0x02;
    pub const SYNC: u8 = 0x03;
    pub const HISTORY: u8 = 0x04;
    pub const CONVOS: u8 = 0x05;
    pub const PING: u8 = 0x06;
    pub const GROUP_CREATE: u8 = 0x07;
    pub const GROUP_ADD: u8 = 0x08;
    pub const GROUP_REMOVE: u8 = 0x09;
    pub const GROUP_ROLE: u8 = 0x0a;
    pub const GROUP_LEAVE: u8 = 0x0b;
    pub const GROUP_INFO: u8 = 0x0c;
    pub const CHANNEL_CREATE: u8 = 0x0d;
    pub const CHANNEL_SUBSCRIBE: u8 = 0x0e;
    pub const CHANNEL_UNSUBSCRIBE: u8 = 0x0f;
    /// The first of `LATER`; the others follow.
    pub const LATER_FIRST: u8 = 0x10;
    pub const DEVICES: u8 = 0x11;
    pub const DEVICE_REVOKE: u8 = 0x12;
    pub const PRIVACY: u8 = 0x13;
    pub const PRESENCE_SUB: u8 = 0x14;
    pub const PRESENCE_UNSUB: u8 = 0x15;
    pub const TYPING: u8 = 0x16;
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
    pub const GROUP: u8 = 0x8c;
    pub const CHANNEL: u8 = 0xbc;
    pub const DEVICES: u8 = 0x90;
    pub const PRIVACY: u8 = 0x91;
    pub const PRESENCE: u8 = 0x92;
    pub const TYPING: u8 = 0x93;
    pub const FAILED: u8 = 0xc6;
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
    pub const MEMBERS: u8 = 0x21;
    pub const ADMINS: u8 = 0x23;
    pub const OWNER: u8 = 0x25;
    pub const ROLE: u8 = 0x2a;
    pub const VERSION: u8 = 0x2c;
    pub const COUNT: u8 = 0x2e;
    pub const OF: u8 = 0x30;
    pub const SUBSCRIBERS: u8 = 0x3c;
    pub const DEVICES: u8 = 0x29;
    pub const USERS: u8 = 0x2b;
    pub const LAST_SEEN: u8 = 0x34;
    pub const STATE: u8 = 0x36;
    pub const PRESENCE: u8 = 0x38;
}

/// The `kind` of a system message.
const KIND_SYSTEM: u64 = 3;

/// Reads one binary message.
pub fn decode(message: &[u8]) -> Result<Request, Rejected> {
    let Some((&kind, rest)) = message.split_first() else {
        return Err(rejected(None, None, bad("the message is empty")));
    };
    let mut fields = RawFields::default();
    let read = fields.read(rest);
    let id = if kind == operation_type::SEND { send_id(&fields) } else { None };
    let Ok(reference) = reference(fields.reference) else {
        return Err(rejected(None, id, bad("ref is beyond 2^53-1")));
    };
    let named = read.and_then(|()| operation_name(kind).ok_or(UNKNOWN_OPERATION));
    match named.and_then(|name| operation(name, &fields)) {
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
        Event::Receipt { convo, seq, watermark, by, tally } => {
            let mut frame = Frame::begin(out, event_type::RECEIPT);
            frame.text(tag::CONVO, convo).integer(tag::SEQ, seq);
            frame.integer(tag::KIND, watermark_number(watermark)).text(tag::BY, by);
            frame.optional(tag::COUNT, tally.map(|tally| tally.count));
            frame.optional(tag::OF, tally.map(|tally| tally.of));
        }
        Event::Channel { .. } => channel(event, out),
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
        Event::Failed { convo, seq, id } => failed(convo, seq, id, out),
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
        _ => encode_of_users(event, out),
    }
}

/// What is told of users: their groups, their devices, and whether they are there.
fn encode_of_users(event: &Event, out: &mut Vec<u8>) {
    match *event {
        Event::Group { reference, group } => {
            let mut frame = Frame::begin(out, event_type::GROUP);
            frame.reference(reference).text(tag::CONVO, &group.convo);
            group.owner.iter().for_each(|owner| frame.add_owner(owner));
            frame.list(tag::ADMINS, &names(&group.admins));
            let members = frame.list(tag::MEMBERS, &names(&group.members));
            members.integer(tag::VERSION, group.version);
        }
        Event::Devices { reference, devices } => {
            let entries: Vec<Vec<u8>> = devices.iter().map(device_entry).collect();
            let mut frame = Frame::begin(out, event_type::DEVICES);
            frame.reference(reference).list(tag::DEVICES, &entries);
        }
        Event::Privacy { reference, hidden } => {
            let mut frame = Frame::begin(out, event_type::PRIVACY);
            frame.reference(reference).integer(tag::PRESENCE, if hidden { 2 } else { 1 });
        }
        Event::Presence { reference, user, online, last_seen } => {
            let mut frame = Frame::begin(out, event_type::PRESENCE);
            frame.reference(reference).text(tag::USER, user);
            frame.integer(tag::STATE, if online { 1 } else { 2 });
            frame.optional(tag::LAST_SEEN, last_seen);
        }
        Event::Typing { convo, from } => {
            let mut frame = Frame::begin(out, event_type::TYPING);
            frame.text(tag::CONVO, convo).text(tag::FROM, from);
        }
        _ => unreachable!("the caller encodes the others"),
    }
}

fn failed(convo: &str, seq: u64, id: &str, out: &mut Vec<u8>) {
    let mut frame = Frame::begin(out, event_type::FAILED);
    frame.text(tag::CONVO, convo).integer(tag::SEQ, seq).text(tag::ID, id);
}

/// The fields that any operation of this version has, not yet looked into.
#[derive(Default)]
struct RawFields<'a> {
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
    members: Option<&'a [u8]>,
    role: Option<u64>,
    device: Option<&'a [u8]>,
    users: Option<&'a [u8]>,
    presence: Option<u64>,
}

impl<'a> RawFields<'a> {
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
            tag::ROLE => &mut self.role,
            tag::PRESENCE => &mut self.presence,
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
            tag::MEMBERS => &mut self.members,
            tag::DEVICE => &mut self.device,
            tag::USERS => &mut self.users,
            _ => return None,
        })
    }

    fn bytes(&self, field: Field) -> Option<&'a [u8]> {
        match field {
            Field::Convo => self.convo,
            Field::To => self.to,
            Field::Id => self.id,
            Field::After => self.after,
            Field::Device => self.device,
            Field::Seq | Field::Before | Field::Limit => None,
        }
    }

    fn number(&self, field: Field) -> Option<u64> {
        match field {
            Field::Seq => self.seq,
            Field::Before => self.before,
            Field::Limit => self.limit,
            Field::Convo | Field::To | Field::Id | Field::After | Field::Device => None,
        }
    }
}

/// The id of a `send`, for its `error`.
fn send_id(fields: &RawFields) -> Option<Id> {
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

/// As JSON calls it.
fn operation_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        operation_type::SEND => "send",
        operation_type::ACK => "ack",
        operation_type::SYNC => "sync",
        operation_type::HISTORY => "history",
        operation_type::CONVOS => "convos",
        operation_type::PING => "ping",
        operation_type::GROUP_CREATE => "group.create",
        operation_type::GROUP_ADD => "group.add",
        operation_type::GROUP_REMOVE => "group.remove",
        operation_type::GROUP_ROLE => "group.role",
        operation_type::GROUP_LEAVE => "group.leave",
        operation_type::GROUP_INFO => "group.info",
        operation_type::CHANNEL_CREATE => "channel.create",
        operation_type::CHANNEL_SUBSCRIBE => "channel.subscribe",
        operation_type::CHANNEL_UNSUBSCRIBE => "channel.unsubscribe",
        operation_type::DEVICES => "devices",
        operation_type::DEVICE_REVOKE => "device.revoke",
        operation_type::PRIVACY => "privacy",
        operation_type::PRESENCE_SUB => "presence.sub",
        operation_type::PRESENCE_UNSUB => "presence.unsub",
        operation_type::TYPING => "typing",
        other => {
            let index = other.checked_sub(operation_type::LATER_FIRST)?;
            LATER.get(usize::from(index))?
        }
    })
}

impl Fields for RawFields<'_> {
    fn has(&self, field: Field) -> bool {
        self.bytes(field).is_some() || self.number(field).is_some()
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        text(self.bytes(field)).map(Cow::Borrowed)
    }

    fn integer(&self, field: Field) -> Option<u64> {
        self.number(field).filter(|value| *value <= INTEGER_MAX as u64)
    }

    fn body(&self) -> Result<Body, Fault> {
        match (self.body, self.body_bytes) {
            (body @ Some(_), None) => {
                let text = text(body).ok_or(bad("body is not text"))?;
                Ok(Body::Text { text: Bytes::copy_from_slice(text.as_bytes()) })
            }
            (None, Some(bytes)) => Ok(Body::Binary { bytes: Bytes::copy_from_slice(bytes) }),
            _ => Err(bad("exactly one of the two bodies is wanted")),
        }
    }

    fn watermark(&self) -> Option<Watermark> {
        match self.kind? {
            1 => Some(Watermark::Delivered),
            2 => Some(Watermark::Read),
            _ => None,
        }
    }

    fn admin(&self) -> Option<bool> {
        match self.role? {
            1 => Some(true),
            2 => Some(false),
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
        match self.presence? {
            1 => Some(false),
            2 => Some(true),
            _ => None,
        }
    }

    /// Of a name that comes twice, the last.
    fn heads(&self) -> Result<Option<Vec<(ConversationName, u64)>>, Fault> {
        let Some(mut rest) = self.convos else {
            return Ok(None);
        };
        let mut heads = BTreeMap::new();
        while !rest.is_empty() {
            let entry = sized(&mut rest).ok_or(bad("an entry of convos is cut off"))?;
            let mut fields = RawFields::default();
            fields.read(entry)?;
            let seq = fields.integer(Field::Seq).ok_or(bad("an entry of convos has no seq"))?;
            let name = text(fields.convo).and_then(conversation_name);
            heads.insert(name.ok_or(bad("convos has a name that cannot be one"))?, seq);
        }
        Ok(Some(heads.into_iter().collect()))
    }
}

fn text(field: Option<&[u8]>) -> Option<&str> {
    simdutf8::basic::from_utf8(field?).ok()
}

/// A list of texts.
fn texts(mut rest: &[u8]) -> Option<Vec<Cow<'_, str>>> {
    let mut texts = Vec::new();
    while !rest.is_empty() {
        texts.push(Cow::Borrowed(text(Some(sized(&mut rest)?))?));
    }
    Some(texts)
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

fn channel(event: &Event, out: &mut Vec<u8>) {
    let Event::Channel { reference, convo, owner, subscribers } = *event else { return };
    let mut frame = Frame::begin(out, event_type::CHANNEL);
    frame.reference(reference).text(tag::CONVO, convo).text(tag::OWNER, owner);
    frame.integer(tag::SUBSCRIBERS, subscribers);
}

fn message_fields(message: &Message, out: &mut Vec<u8>) {
    let mut frame = Frame { out };
    frame.text(tag::CONVO, &message.convo).integer(tag::SEQ, message.seq);
    frame.integer(tag::MID, message.mid).text(tag::FROM, &message.from);
    match message.is_system() {
        true => frame.integer(tag::KIND, KIND_SYSTEM),
        false => frame.text(tag::ID, &message.id),
    };
    frame.integer(tag::TS, message.ts);
    match &message.body {
        Body::Text { text } => frame.bytes(tag::BODY, text),
        Body::Binary { bytes } => frame.bytes(tag::BODY_BYTES, bytes),
    };
}

fn names(names: &[Id]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn device_entry((device, last_seen): &(Id, u64)) -> Vec<u8> {
    let mut entry = Vec::new();
    Frame { out: &mut entry }.text(tag::DEVICE, device).integer(tag::LAST_SEEN, *last_seen);
    entry
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

    fn add_owner(&mut self, owner: &str) {
        self.text(tag::OWNER, owner);
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
