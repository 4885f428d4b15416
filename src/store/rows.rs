//! The pure mapping from records to rows, and from rows to answers.
//!
//! Applying a record twice, or a stretch of the log again from an earlier position, ends in the
//! same rows: every row is put whole, and what must not fall is a maximum. Keys are built of texts
//! with their size before them, so that a prefix never matches half a name.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::index::{Change, Index, IndexFault, Keyspace};
use super::log_format::{LogId, checksum_of};
use super::{Batch, StoreFault, ledger};
use crate::link::fingerprint;
use crate::link::message::Accepted;
use crate::link::record::{ConversationName, Cursor, Id, LostMessage, Member, Message, Record};
use crate::link::wire::{Reader, Wire, wire_struct};

/// Above this many dedup entries a conversation's fingerprints are not listed.
pub const FINGERPRINT_COUNT_MAX: usize = 65_536;

const STATE_KEY: &[u8] = b"state";
/// Bytes of a cursor in an answer beside its names, which its key holds.
const CURSOR_SIZE: usize = 24;

wire_struct! {
    /// What the index knows about the log as a whole; one row, changed with every batch.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct State {
        pub log_id: LogId,
        /// Everything up to here is in the rows.
        pub applied_lsn: u64,
        pub epoch: u64,
        pub fanned_out: u64,
        /// The highest of any message.
        pub mid: u64,
        pub ts: u64,
    }
}

wire_struct! {
    /// Where a message's record lies in the log.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Location {
        pub segment: u64,
        pub offset: u64,
        pub size: u32,
        /// CRC-32C of the record's bytes: a range read does not see the commit's.
        pub checksum: u32,
        /// [`sender_hash`] of who sent it: what is unread is counted without a read of the log.
        pub sender: u64,
    }
}

wire_struct! {
    /// The value of a cursor row.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CursorRow {
        pub delivered: u64,
        pub read: u64,
        pub marker: u64,
    }
}

/// The state row, or the state of an index that has applied nothing.
pub fn load_state(index: &impl Index) -> Result<State, IndexFault> {
    match index.get(Keyspace::Meta, STATE_KEY)? {
        Some(value) => decode(Keyspace::Meta, &value),
        None => Ok(State::default()),
    }
}

/// The changes that durable batches make, its new state among them: all of them or none are
/// applied. Every record is shown to `seen`.
pub fn changes_of(
    batches: &[Batch],
    state: &mut State,
    seen: &mut dyn FnMut(&Record),
) -> Result<Vec<Change>, StoreFault> {
    let mut rows = BTreeMap::new();
    for batch in batches {
        note_batch(batch, state, &mut rows, seen)?;
    }
    rows.insert((Keyspace::Meta, STATE_KEY.to_vec()), Some(state.to_bytes()));
    let change = |((keyspace, key), value)| Change { keyspace, key, value };
    Ok(rows.into_iter().map(change).collect())
}

/// The highest seq of a conversation; 0: none.
pub fn head(index: &impl Index, convo: &str) -> Result<u64, IndexFault> {
    match index.get(Keyspace::Heads, &key(&[convo]))? {
        Some(value) => decode(Keyspace::Heads, &value),
        None => Ok(0),
    }
}

/// The fingerprint of every message ever accepted in it, and whether the list is complete.
pub fn fingerprints(index: &impl Index, convo: &str) -> Result<(Vec<u64>, bool), IndexFault> {
    let prefix = key(&[convo]);
    let mut found = Vec::new();
    let mut complete = true;
    let mut broken = false;
    index.scan(Keyspace::Dedup, &prefix, &prefix, &mut |row, _| {
        complete = found.len() < FINGERPRINT_COUNT_MAX;
        if complete {
            match texts(&row[prefix.len()..]).as_deref() {
                Some([user, id]) => found.push(fingerprint(user, id)),
                _ => broken = true,
            }
        }
        complete && !broken
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Dedup)) } else { Ok((found, complete)) }
}

/// The first answer to a send, if it was ever accepted.
pub fn accepted(
    index: &impl Index,
    convo: &str,
    user: &str,
    id: &str,
) -> Result<Option<Accepted>, IndexFault> {
    match index.get(Keyspace::Dedup, &key(&[convo, user, id]))? {
        Some(value) => decode(Keyspace::Dedup, &value).map(Some),
        None => Ok(None),
    }
}

/// A piece of what is kept of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPiece {
    pub devices: Vec<Id>,
    pub cursors: Vec<Cursor>,
    pub groups: Vec<(ConversationName, Member)>,
    /// Empty, or where the next piece begins: a keyspace's tag and the key of the first row.
    pub next: Bytes,
}

/// The devices of a user, their cursors, and his groups, from `after` on, as many as fit `size_max`
/// bytes but at least one row. What was not made by [`UserPiece::next`] is taken for the start.
pub fn user(
    index: &impl Index,
    user: &str,
    after: &[u8],
    size_max: usize,
) -> Result<UserPiece, IndexFault> {
    let prefix = key(&[user]);
    let mut piece = UserPiece::default();
    let mut size = 0;
    let kinds = [Keyspace::Devices, Keyspace::Cursors, Keyspace::Memberships];
    let begun = kinds.iter().position(|kind| after.first() == Some(&(*kind as u8)));
    for (place, keyspace) in kinds.into_iter().enumerate().skip(begun.unwrap_or(0)) {
        let start = if begun == Some(place) { &after[1..] } else { prefix.as_slice() };
        let mut broken = false;
        index.scan(keyspace, &prefix, start, &mut |row, value| {
            let row_size = row.len() + value.len() + CURSOR_SIZE;
            size += row_size;
            if size > size_max && size > row_size {
                piece.next = [&[keyspace as u8], row].concat().into();
                return false;
            }
            broken = !piece.take(keyspace, user, &row[prefix.len()..], value);
            !broken
        })?;
        if broken {
            return Err(IndexFault::Row(keyspace));
        }
        if !piece.next.is_empty() {
            break;
        }
    }
    Ok(piece)
}

impl UserPiece {
    /// Adds a row; false if it cannot be decoded.
    fn take(&mut self, keyspace: Keyspace, user: &str, rest: &[u8], value: &[u8]) -> bool {
        if keyspace == Keyspace::Cursors {
            let cursor = cursor(user, rest, value);
            let good = cursor.is_some();
            self.cursors.extend(cursor);
            return good;
        }
        if keyspace == Keyspace::Memberships {
            let member = decode::<Member>(keyspace, value);
            return match (texts(rest).as_deref(), member) {
                (Some([convo]), Ok(member)) => {
                    self.groups.push((Id::from(*convo), member));
                    true
                }
                _ => false,
            };
        }
        match texts(rest).as_deref() {
            Some([device]) => self.devices.push(Id::from(*device)),
            _ => return false,
        }
        true
    }
}

/// A piece of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPiece {
    /// 0: there is no such group.
    pub version: u64,
    /// Who is in it, and who was.
    pub members: Vec<Member>,
    /// Empty, or the key of the row that the next piece begins with.
    pub next: Bytes,
}

/// The members of a group, from `after` on, as many as fit `size_max` bytes but at least one.
pub fn group(
    index: &impl Index,
    convo: &str,
    after: &[u8],
    size_max: usize,
) -> Result<GroupPiece, IndexFault> {
    let prefix = key(&[convo]);
    let mut piece = GroupPiece::default();
    if let Some(value) = index.get(Keyspace::Groups, &prefix)? {
        piece.version = decode(Keyspace::Groups, &value)?;
    }
    let start = if after.is_empty() { &prefix } else { after };
    let (mut size, mut broken) = (0, false);
    index.scan(Keyspace::Members, &prefix, start, &mut |row, value| {
        size += value.len();
        if size > size_max && !piece.members.is_empty() {
            piece.next = Bytes::copy_from_slice(row);
            return false;
        }
        match decode(Keyspace::Members, value) {
            Ok(member) => piece.members.push(member),
            Err(_) => broken = true,
        }
        !broken
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Members)) } else { Ok(piece) }
}

/// The row of one user in one group, if he ever was in it.
pub fn member(index: &impl Index, convo: &str, user: &str) -> Result<Option<Member>, IndexFault> {
    match index.get(Keyspace::Members, &key(&[convo, user]))? {
        Some(value) => decode(Keyspace::Members, &value).map(Some),
        None => Ok(None),
    }
}

/// The edge shards that are present.
pub fn edges(index: &impl Index) -> Result<Vec<Id>, IndexFault> {
    let mut names = Vec::new();
    index.scan(Keyspace::Edges, &[], &[], &mut |row, _| {
        if let Some([name]) = texts(row).as_deref() {
            names.push(Id::from(*name));
        }
        true
    })?;
    Ok(names)
}

/// Calls `visit` with seq and location of the messages from `first` on, in order.
pub fn locations(
    index: &impl Index,
    convo: &str,
    first: u64,
    visit: &mut dyn FnMut(u64, Location) -> bool,
) -> Result<(), IndexFault> {
    let prefix = key(&[convo]);
    let start = message_key(convo, first);
    let mut broken = false;
    index.scan(Keyspace::Messages, &prefix, &start, &mut |row, value| {
        let seq = row[prefix.len()..].try_into().map(u64::from_be_bytes);
        match (seq, decode::<Location>(Keyspace::Messages, value)) {
            (Ok(seq), Ok(location)) => visit(seq, location),
            _ => {
                broken = true;
                false
            }
        }
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Messages)) } else { Ok(()) }
}

/// Stands for a message's sender in its row.
pub fn sender_hash(user: &str) -> u64 {
    fingerprint(user, "")
}

/// Where one device of a user stands in one conversation, if it ever was anywhere.
pub fn cursor_of(
    index: &impl Index,
    user: &str,
    device: &str,
    convo: &str,
) -> Result<Option<CursorRow>, IndexFault> {
    match index.get(Keyspace::Cursors, &key(&[user, device, convo]))? {
        Some(value) => decode(Keyspace::Cursors, &value).map(Some),
        None => Ok(None),
    }
}

/// The devices of a user.
pub fn devices(index: &impl Index, user: &str) -> Result<Vec<Id>, IndexFault> {
    let prefix = key(&[user]);
    let mut devices = Vec::new();
    let mut broken = false;
    index.scan(Keyspace::Devices, &prefix, &prefix, &mut |row, _| {
        match texts(&row[prefix.len()..]).as_deref() {
            Some([device]) => devices.push(Id::from(*device)),
            _ => broken = true,
        }
        !broken
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Devices)) } else { Ok(devices) }
}

/// Conversation, seq and location of a row of `Keyspace::Messages`.
pub fn message_row<'a>(row: &'a [u8], value: &[u8]) -> Option<(&'a str, u64, Location)> {
    let (texts_of, seq) = row.split_last_chunk::<8>()?;
    let location = decode::<Location>(Keyspace::Messages, value).ok()?;
    match texts(texts_of)?.as_slice() {
        [convo] => Some((convo, u64::from_be_bytes(*seq), location)),
        _ => None,
    }
}

/// Calls `visit` with every message that was ever accepted in a conversation, in no order.
pub fn visit_accepted(
    index: &impl Index,
    convo: &str,
    visit: &mut dyn FnMut(LostMessage),
) -> Result<(), IndexFault> {
    let prefix = key(&[convo]);
    index.scan(Keyspace::Dedup, &prefix, &prefix, &mut |row, value| {
        let accepted = decode::<Accepted>(Keyspace::Dedup, value);
        if let (Ok(Accepted { seq, mid, ts }), Some([from, id])) =
            (accepted, texts(&row[prefix.len()..]).as_deref())
        {
            let (convo, from, id) = (convo.into(), Id::from(*from), Id::from(*id));
            visit(LostMessage { convo, seq, mid, ts, from, id });
        }
        true
    })
}

/// Whether a row can be read at all.
pub fn is_row(keyspace: Keyspace, row: &[u8], value: &[u8]) -> bool {
    let value_is =
        |good: bool, count: usize| good && texts(row).is_some_and(|texts| texts.len() == count);
    match keyspace {
        Keyspace::Meta => row == STATE_KEY && decode::<State>(keyspace, value).is_ok(),
        Keyspace::Messages => message_row(row, value).is_some(),
        Keyspace::Dedup => value_is(decode::<Accepted>(keyspace, value).is_ok(), 3),
        Keyspace::Heads => value_is(decode::<u64>(keyspace, value).is_ok(), 1),
        Keyspace::Cursors => value_is(decode::<CursorRow>(keyspace, value).is_ok(), 3),
        Keyspace::Devices => value_is(decode::<u64>(keyspace, value).is_ok(), 2),
        Keyspace::Edges => value_is(value.is_empty(), 1),
        Keyspace::Members | Keyspace::Memberships => {
            value_is(decode::<Member>(keyspace, value).is_ok(), 2)
        }
        Keyspace::Groups => value_is(decode::<u64>(keyspace, value).is_ok(), 1),
        Keyspace::Chains => ledger::is_chain_row(row, value),
        Keyspace::Links => ledger::is_link_row(row, value),
    }
}

type NewRows = BTreeMap<(Keyspace, Vec<u8>), Option<Vec<u8>>>;

fn note_batch(
    batch: &Batch,
    state: &mut State,
    rows: &mut NewRows,
    seen: &mut dyn FnMut(&Record),
) -> Result<(), StoreFault> {
    let mut reader = Reader::new(batch.records.clone());
    for index in 0..u64::from(batch.count) {
        let start = batch.records.len() - reader.remaining();
        let record = Record::read(&mut reader)
            .map_err(|reason| StoreFault::Record { lsn: batch.first_lsn + index, reason })?;
        let bytes = batch.records.slice(start..batch.records.len() - reader.remaining());
        let location = Location {
            segment: batch.segment,
            offset: batch.offset + start as u64,
            size: bytes.len() as u32,
            checksum: checksum_of(&bytes),
            sender: sender_of(&record),
        };
        seen(&record);
        note_record(&record, location, state, rows);
    }
    state.applied_lsn = batch.last_lsn();
    Ok(())
}

fn sender_of(record: &Record) -> u64 {
    match record {
        Record::Message { message } | Record::Group { message, .. } => sender_hash(&message.from),
        _ => 0,
    }
}

fn note_record(record: &Record, location: Location, state: &mut State, rows: &mut NewRows) {
    match record {
        Record::Message { message } => note_message(message, location, state, rows),
        Record::Cursors { cursors } => {
            for cursor in cursors {
                let Cursor { delivered, read, marker, .. } = *cursor;
                let row = key(&[&cursor.user, &cursor.device, &cursor.convo]);
                let value = CursorRow { delivered, read, marker }.to_bytes();
                rows.insert((Keyspace::Cursors, row), Some(value));
            }
        }
        Record::Device { user, device, ts } => {
            let row = key(&[user, device]);
            rows.insert((Keyspace::Devices, row), Some(ts.to_bytes()));
        }
        Record::FannedOut { lsn } => state.fanned_out = state.fanned_out.max(*lsn),
        Record::Edge { name, present } => {
            let value = present.then(Vec::new);
            rows.insert((Keyspace::Edges, key(&[name])), value);
        }
        Record::Epoch { epoch, .. } => state.epoch = state.epoch.max(*epoch),
        Record::Lost { message: Some(message) } => note_lost(message, state, rows),
        Record::Lost { message: None } => {}
        Record::Group { message, version, members } => {
            note_message(message, location, state, rows);
            let convo = &message.convo;
            rows.insert((Keyspace::Groups, key(&[convo])), Some(version.to_bytes()));
            for member in members {
                let (by_group, by_user) =
                    (key(&[convo, &member.user]), key(&[&member.user, convo]));
                rows.insert((Keyspace::Members, by_group), Some(member.to_bytes()));
                rows.insert((Keyspace::Memberships, by_user), Some(member.to_bytes()));
            }
        }
    }
}

/// What was promised of a lost message stays: its seq, its mid, the answer to a repeated send. Only
/// its row is not there, so that whoever reads across it counts it as missing.
fn note_lost(message: &LostMessage, state: &mut State, rows: &mut NewRows) {
    let LostMessage { seq, mid, ts, .. } = *message;
    let convo = &message.convo;
    rows.insert((Keyspace::Messages, message_key(convo, seq)), None);
    let dedup = key(&[convo, &message.from, &message.id]);
    rows.insert((Keyspace::Dedup, dedup), Some(Accepted { seq, mid, ts }.to_bytes()));
    rows.insert((Keyspace::Heads, key(&[convo])), Some(seq.to_bytes()));
    state.mid = state.mid.max(mid);
    state.ts = state.ts.max(ts);
}

fn note_message(message: &Message, location: Location, state: &mut State, rows: &mut NewRows) {
    let Message { seq, mid, ts, .. } = *message;
    let convo = &message.convo;
    rows.insert((Keyspace::Messages, message_key(convo, seq)), Some(location.to_bytes()));
    if !message.is_system() {
        let dedup = key(&[convo, &message.from, &message.id]);
        rows.insert((Keyspace::Dedup, dedup), Some(Accepted { seq, mid, ts }.to_bytes()));
    }
    // Within a conversation seq rises along the log, so the last one put is the head.
    rows.insert((Keyspace::Heads, key(&[convo])), Some(seq.to_bytes()));
    state.mid = state.mid.max(mid);
    state.ts = state.ts.max(ts);
}

/// The key of a row that there is one of per conversation.
pub fn conversation_key(convo: &str) -> Vec<u8> {
    key(&[convo])
}

/// Whether a key is made of one text.
pub fn is_name(key: &[u8]) -> bool {
    texts(key).is_some_and(|texts| texts.len() == 1)
}

/// Each text with its size before it.
pub fn key(texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(texts.iter().map(|text| text.len() + 2).sum());
    for text in texts {
        let size = u16::try_from(text.len()).expect("names came over the wire with a u16 size");
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// The key of a message's row.
pub fn message_key(convo: &str, seq: u64) -> Vec<u8> {
    let mut out = key(&[convo]);
    out.extend_from_slice(&seq.to_be_bytes());
    out
}

/// The texts that a key is made of.
pub fn texts(mut key: &[u8]) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    while let Some((size, rest)) = key.split_first_chunk::<2>() {
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
        found.push(std::str::from_utf8(text).ok()?);
        key = rest;
    }
    key.is_empty().then_some(found)
}

fn cursor(user: &str, rest: &[u8], value: &[u8]) -> Option<Cursor> {
    let row = decode::<CursorRow>(Keyspace::Cursors, value).ok()?;
    let texts = texts(rest)?;
    let [device, convo] = texts.as_slice() else {
        return None;
    };
    Some(Cursor {
        user: user.into(),
        device: Id::from(*device),
        convo: Id::from(*convo),
        delivered: row.delivered,
        read: row.read,
        marker: row.marker,
    })
}

/// A row's value.
pub fn decode<T: Wire>(keyspace: Keyspace, value: &[u8]) -> Result<T, IndexFault> {
    T::from_bytes(Bytes::copy_from_slice(value)).map_err(|_| IndexFault::Row(keyspace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_user_are_the_whole_user() {
        let mut index = crate::store::index::MemoryIndex::default();
        let put = |keyspace, texts: &[&str], value| Change { keyspace, key: key(texts), value };
        let row = CursorRow { delivered: 1, read: 2, marker: 3 }.to_bytes();
        let mut changes = Vec::new();
        for device in ["pad", "phone", "tv"] {
            changes.push(put(Keyspace::Devices, &["bob", device], Some(7u64.to_bytes())));
            for convo in ["dm:a:bob", "dm:bob:c", "g"] {
                let names = ["bob", device, convo];
                changes.push(put(Keyspace::Cursors, &names, Some(row.clone())));
            }
        }
        changes.push(put(Keyspace::Devices, &["bobby", "x"], Some(7u64.to_bytes())));
        index.apply(changes).expect("in memory");
        let whole = user(&index, "bob", &[], usize::MAX).expect("good rows");
        assert_eq!((whole.devices.len(), whole.cursors.len()), (3, 9));
        for size_max in [0, 1, 50, 90, 150, 400] {
            let mut pieces = UserPiece::default();
            loop {
                let piece = user(&index, "bob", &pieces.next, size_max).expect("good rows");
                assert!(piece.devices.len() + piece.cursors.len() > 0, "it goes on");
                pieces.devices.extend(piece.devices);
                pieces.cursors.extend(piece.cursors);
                pieces.next = piece.next;
                if pieces.next.is_empty() {
                    break;
                }
            }
            assert_eq!(pieces, whole, "pieces of {size_max} bytes");
        }
    }

    #[test]
    fn keys_sort_and_split_by_whole_names() {
        assert_eq!(texts(&key(&["a", "", "bc"])), Some(vec!["a", "", "bc"]));
        assert!(!key(&["ab", "c"]).starts_with(&key(&["a"])));
        assert!(message_key("a", 255) < message_key("a", 256));
        let whole = key(&["abc", "de"]);
        for size in 1..whole.len() {
            assert_ne!(texts(&whole[..size]), Some(vec!["abc", "de"]), "prefix of {size} bytes");
        }
        assert_eq!(texts(&whole[..3]), None);
    }
}
