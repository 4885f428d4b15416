//! The pure mapping from records to rows, and from rows to answers.
//!
//! Applying a record twice, or a stretch of the log again from an earlier position, ends in the
//! same rows: every row is put whole, and what must not fall is a maximum. Keys are built of texts
//! with their size before them, so that a prefix never matches half a name.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::index::{Change, Index, IndexFault, Keyspace};
use super::log_format::{LogId, checksum_of};
use super::{Batch, StoreFault, dead_letters, ledger, retention};
use crate::link::fingerprint;
use crate::link::message::Accepted;
use crate::link::record::{
    ChannelState, Cursor, Id, LostMessage, Member, Message, Record, Revocation, Subscription,
};
use crate::link::wire::{Reader, Wire, wire_struct};

/// Above this many dedup entries a conversation's fingerprints are not listed.
pub const FINGERPRINT_COUNT_MAX: usize = 65_536;

pub(super) const STATE_KEY: &[u8] = b"state";

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
    index: &impl Index,
    batches: &[Batch],
    state: &mut State,
    seen: &mut dyn FnMut(&Record),
) -> Result<Vec<Change>, StoreFault> {
    let mut rows = BTreeMap::new();
    for batch in batches {
        note_batch(index, batch, state, &mut rows, seen)?;
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

/// Devices that were revoked at `since_ms` or later, from the row `after` on, as many as fit
/// `size_max` bytes, and the row of the next piece, if there is one.
pub fn revoked(
    index: &impl Index,
    since_ms: u64,
    after: &[u8],
    size_max: usize,
) -> Result<(Vec<Revocation>, Bytes), IndexFault> {
    let (mut found, mut next) = (Vec::new(), Bytes::new());
    let (mut size, mut broken) = (0, false);
    index.scan(Keyspace::Revoked, &[], after, &mut |row, value| {
        let Ok(revocation) = decode::<Revocation>(Keyspace::Revoked, value) else {
            broken = true;
            return false;
        };
        if revocation.ts < since_ms {
            return true;
        }
        size += value.len();
        if size > size_max && !found.is_empty() {
            next = Bytes::copy_from_slice(row);
            return false;
        }
        found.push(revocation);
        true
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Revoked)) } else { Ok((found, next)) }
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

/// A channel and how many are subscribed to it, if there is one of this name.
pub fn channel(index: &impl Index, convo: &str) -> Result<Option<(ChannelState, u64)>, IndexFault> {
    let Some(value) = index.get(Keyspace::Channels, &key(&[convo]))? else { return Ok(None) };
    let channel = decode(Keyspace::Channels, &value)?;
    let count = match index.get(Keyspace::SubscriberCounts, &key(&[convo]))? {
        Some(value) => decode(Keyspace::SubscriberCounts, &value)?,
        None => 0,
    };
    Ok(Some((channel, count)))
}

/// What a user is to a channel, if he ever was anything.
pub fn subscription(
    index: &impl Index,
    user: &str,
    convo: &str,
) -> Result<Option<Subscription>, IndexFault> {
    match index.get(Keyspace::Subscriptions, &key(&[user, convo]))? {
        Some(value) => decode(Keyspace::Subscriptions, &value).map(Some),
        None => Ok(None),
    }
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
        Keyspace::Meta if row == retention::SERVICE_KEY => decode::<u64>(keyspace, value).is_ok(),
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
        Keyspace::Groups | Keyspace::SubscriberCounts => {
            value_is(decode::<u64>(keyspace, value).is_ok(), 1)
        }
        Keyspace::Channels => value_is(decode::<ChannelState>(keyspace, value).is_ok(), 1),
        Keyspace::Subscriptions => value_is(decode::<Subscription>(keyspace, value).is_ok(), 2),
        Keyspace::Revoked => value_is(decode::<Revocation>(keyspace, value).is_ok(), 2),
        Keyspace::Hidden => value_is(value.is_empty(), 1),
        Keyspace::Dead | Keyspace::DeadFloors | Keyspace::Failures => {
            dead_letters::is_row(keyspace, row, value)
        }
        Keyspace::Times => retention::is_time_row(row, value),
        Keyspace::Chains => ledger::is_chain_row(row, value),
        Keyspace::Links => ledger::is_link_row(row, value),
    }
}

pub(super) type NewRows = BTreeMap<(Keyspace, Vec<u8>), Option<Vec<u8>>>;

fn note_batch(
    index: &impl Index,
    batch: &Batch,
    state: &mut State,
    rows: &mut NewRows,
    seen: &mut dyn FnMut(&Record),
) -> Result<(), StoreFault> {
    let mut reader = Reader::new(batch.records.clone());
    for place in 0..u64::from(batch.count) {
        let start = batch.records.len() - reader.remaining();
        let record = Record::read(&mut reader)
            .map_err(|reason| StoreFault::Record { lsn: batch.first_lsn + place, reason })?;
        let bytes = batch.records.slice(start..batch.records.len() - reader.remaining());
        let location = Location {
            segment: batch.segment,
            offset: batch.offset + start as u64,
            size: bytes.len() as u32,
            checksum: checksum_of(&bytes),
            sender: sender_of(&record),
        };
        if let Record::Revoked { revocation } = &record {
            note_revoked(index, revocation, rows)?;
        }
        seen(&record);
        note_record(&record, location, state, rows);
    }
    state.applied_lsn = batch.last_lsn();
    Ok(())
}

fn sender_of(record: &Record) -> u64 {
    match record {
        Record::Message { message }
        | Record::Group { message, .. }
        | Record::Channel { message, .. } => sender_hash(&message.from),
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
        Record::Revoked { revocation } => {
            let row = key(&[&revocation.user, &revocation.device]);
            rows.insert((Keyspace::Devices, row.clone()), None);
            rows.insert((Keyspace::Revoked, row), Some(revocation.to_bytes()));
        }
        Record::Seen { devices } => {
            for seen in devices {
                let row = key(&[&seen.user, &seen.device]);
                rows.insert((Keyspace::Devices, row), Some(seen.ts.to_bytes()));
            }
        }
        Record::Privacy { user, hidden } => {
            rows.insert((Keyspace::Hidden, key(&[user])), hidden.then(Vec::new));
        }
        Record::FannedOut { lsn } => state.fanned_out = state.fanned_out.max(*lsn),
        Record::Edge { name, present } => {
            let value = present.then(Vec::new);
            rows.insert((Keyspace::Edges, key(&[name])), value);
        }
        Record::Dead { user, convo, last, at, letters } => {
            dead_letters::note_dead((user, convo), *last, *at, letters, rows);
        }
        Record::Replayed { user, convo, first, at, seqs } => {
            dead_letters::note_replayed((user, convo), *first, *at, seqs, rows);
        }
        Record::Told { user, failures } => dead_letters::note_told(user, failures, rows),
        Record::Forgotten { user, failures } => dead_letters::note_forgotten(user, failures, rows),
        Record::ServiceTime { ms } => retention::note_time(*ms, location, rows),
        Record::Epoch { epoch, .. } => state.epoch = state.epoch.max(*epoch),
        Record::Lost { message: Some(message) } => note_lost(message, state, rows),
        Record::Lost { message: None } => {}
        Record::Channel { message, channel } => {
            note_message(message, location, state, rows);
            let convo = &message.convo;
            rows.insert((Keyspace::Channels, key(&[convo])), Some(channel.to_bytes()));
            if channel.version == 1 {
                let row = Subscription::of_owner(message.seq);
                note_subscription(convo, &channel.owner, row, 0, rows);
            }
        }
        Record::Subscription { convo, user, subscription, subscribers } => {
            note_subscription(convo, user, *subscription, *subscribers, rows);
        }
        Record::Group { message, version, members } => {
            note_message(message, location, state, rows);
            note_group(&message.convo, *version, members, rows);
        }
    }
}

fn note_group(convo: &str, version: u64, members: &[Member], rows: &mut NewRows) {
    rows.insert((Keyspace::Groups, key(&[convo])), Some(version.to_bytes()));
    for member in members {
        let (by_group, by_user) = (key(&[convo, &member.user]), key(&[&member.user, convo]));
        rows.insert((Keyspace::Members, by_group), Some(member.to_bytes()));
        rows.insert((Keyspace::Memberships, by_user), Some(member.to_bytes()));
    }
}

fn note_subscription(
    convo: &str,
    user: &str,
    subscription: Subscription,
    subscribers: u64,
    rows: &mut NewRows,
) {
    rows.insert((Keyspace::Subscriptions, key(&[user, convo])), Some(subscription.to_bytes()));
    rows.insert((Keyspace::SubscriberCounts, key(&[convo])), Some(subscribers.to_bytes()));
}

/// The cursors of a device that goes: those in the index, and those that the same changes put.
fn note_revoked(
    index: &impl Index,
    revocation: &Revocation,
    rows: &mut NewRows,
) -> Result<(), IndexFault> {
    let prefix = key(&[&revocation.user, &revocation.device]);
    let put = rows.range_mut((Keyspace::Cursors, prefix.clone())..);
    let put = put.take_while(|((keyspace, row), _)| {
        *keyspace == Keyspace::Cursors && row.starts_with(&prefix)
    });
    put.for_each(|(_, value)| *value = None);
    index.scan(Keyspace::Cursors, &prefix, &prefix, &mut |row, _| {
        rows.insert((Keyspace::Cursors, row.to_vec()), None);
        true
    })
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

/// A row of `Keyspace::Cursors`.
pub(super) fn cursor_row(row: &[u8], value: &[u8]) -> Option<Cursor> {
    let (size, _) = row.split_first_chunk::<2>()?;
    let (user, rest) = row.split_at_checked(2 + usize::from(u16::from_be_bytes(*size)))?;
    match texts(user)?.as_slice() {
        [user] => cursor(user, rest, value),
        _ => None,
    }
}

pub(super) fn cursor(user: &str, rest: &[u8], value: &[u8]) -> Option<Cursor> {
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
    use super::super::user_rows::{UserPiece, user};
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
    fn a_channel_is_its_state_a_number_and_a_row_for_each_user() {
        let body = crate::link::record::Body::Text { text: Bytes::from_static(b"{}") };
        let (convo, owner) = (Id::from("news"), Id::from("alice"));
        let message = Message {
            convo: convo.clone(),
            seq: 1,
            mid: 9,
            ts: 8,
            from: owner.clone(),
            device: "".into(),
            id: "".into(),
            body,
        };
        let state = ChannelState { version: 1, owner, admins: Vec::new() };
        let made = Record::Channel { message, channel: state.clone() };
        let subscribed = |user: &str, is_active, subscribers| Record::Subscription {
            convo: convo.clone(),
            user: user.into(),
            subscription: Subscription { since: 2, is_active, is_counted: is_active },
            subscribers,
        };
        let records = [
            made,
            subscribed("bob", true, 1),
            subscribed("cid", true, 2),
            subscribed("bob", false, 1),
        ];
        let mut index = crate::store::index::MemoryIndex::default();
        let location = Location { segment: 1, offset: 2, size: 3, checksum: 4, sender: 5 };
        // Once more from an earlier position, as after a crash: it ends in the same.
        for record in records.iter().chain(&records[1..]) {
            let (mut new, mut log) = (BTreeMap::new(), State::default());
            note_record(record, location, &mut log, &mut new);
            let change = |((keyspace, key), value)| Change { keyspace, key, value };
            index.apply(new.into_iter().map(change).collect()).expect("in memory");
        }
        assert_eq!(channel(&index, "news").expect("good rows"), Some((state, 1)));
        assert_eq!(channel(&index, "new").expect("good rows"), None);
        let row = |user: &str| subscription(&index, user, "news").expect("good rows");
        assert_eq!(row("alice"), Some(Subscription::of_owner(1)));
        assert_eq!(row("bob").map(|row| row.is_active), Some(false));
        let piece = user(&index, "cid", &[], usize::MAX).expect("good rows");
        assert_eq!(piece.channels, [(convo.clone(), row("cid").expect("subscribed"))]);
        assert_eq!(head(&index, "news").expect("good rows"), 1);
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
