//! Dead letters in the index: what of which inbox is too old, and what has left the inboxes.
//!
//! A search goes through the cursors user by user, a stretch at a time. What it finds is as of
//! everything durable when it was asked; the sequencer compares it with what it knows since.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::StoreFault;
use super::device::LogReader;
use super::index::{Index, IndexFault, Keyspace};
use super::reader::{ANSWER_SIZE_MAX, IndexReader};
use super::retention::{LogPlace, place_at};
use super::rows::{self, Location, NewRows, decode, key, texts};
use crate::link::message::{DeadLetter, FromStore, OverdueInbox};
use crate::link::record::{ConversationName, Cursor, Failure, Id, Letter};
use crate::link::wire::{Wire, wire_struct};

/// Rows of cursors that one stretch looks at, about.
const ROW_COUNT: usize = 4_096;
/// Messages of one inbox in one answer; the rest is found when these are dead.
const LETTERS_PER_INBOX_MAX: usize = 256;
/// Messages in one answer, about.
const LETTER_COUNT: usize = 1_024;
/// Rows of dead letters that one question looks at.
const LISTED_COUNT: usize = 8_192;

wire_struct! {
    /// Up to where the inbox of a user in a conversation was emptied.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Floor {
        pub upto: u64,
        /// Service time of the last replay, which begins a new term; 0: none.
        pub replayed_at: u64,
    }
}

wire_struct! {
    /// The value of a dead letter's row.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LetterRow {
        pub from: Id,
        pub id: Id,
        pub at: u64,
        /// It is back in the inbox; the row stays, since its sender was told.
        pub is_replayed: bool,
    }
}

wire_struct! {
    /// The value of a failure's row.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct FailureRow {
        pub id: Id,
        pub told_at: u64,
    }
}

/// A user's rows, as far as the search has come.
#[derive(Default)]
struct Reader {
    user: Option<Id>,
    /// By conversation: how far the foremost device is, and whether any is marked.
    inboxes: BTreeMap<ConversationName, (u64, bool)>,
}

/// What a search has found.
struct Search {
    now_ms: u64,
    age_ms: u64,
    /// What stands before it is too old.
    horizon: LogPlace,
    rows: Vec<OverdueInbox>,
    letter_count: usize,
}

impl<I: Index, R: LogReader> IndexReader<I, R> {
    pub(super) fn find_overdue(
        &mut self,
        to: u64,
        after: &[u8],
        now_ms: u64,
        age_ms: u64,
    ) -> Result<FromStore, StoreFault> {
        let horizon = match now_ms.checked_sub(age_ms) {
            Some(cut) => place_at(&self.index, cut)?,
            None => None,
        };
        let Some(horizon) = horizon else {
            return Ok(FromStore::Overdue { to, rows: Vec::new(), next: Bytes::new() });
        };
        let mut search = Search { now_ms, age_ms, horizon, rows: Vec::new(), letter_count: 0 };
        let (readers, mut next) = self.readers(after)?;
        for reader in readers {
            let Some(user) = reader.user else { continue };
            if search.letter_count >= LETTER_COUNT {
                next = key(&[&user]).into();
                break;
            }
            for (convo, (delivered, is_marked)) in reader.inboxes {
                if is_marked {
                    self.search_inbox(&user, convo, delivered, &mut search)?;
                }
            }
        }
        Ok(FromStore::Overdue { to, rows: search.rows, next })
    }

    /// The cursors of whole users, from the key `after` on.
    fn readers(&self, after: &[u8]) -> Result<(Vec<Reader>, Bytes), StoreFault> {
        let mut readers: Vec<Reader> = Vec::new();
        let mut next = Bytes::new();
        let (mut count, mut broken) = (0, false);
        self.index.scan(Keyspace::Cursors, &[], after, &mut |row, value| {
            let Some(cursor) = rows::cursor_row(row, value) else {
                broken = true;
                return false;
            };
            let Cursor { user, convo, delivered, marker, .. } = cursor;
            if readers.last().is_none_or(|reader| reader.user.as_ref() != Some(&user)) {
                if count >= ROW_COUNT {
                    next = key(&[&user]).into();
                    return false;
                }
                readers.push(Reader { user: Some(user), inboxes: BTreeMap::new() });
            }
            count += 1;
            let reader = readers.last_mut().expect("pushed above");
            let inbox = reader.inboxes.entry(convo).or_default();
            inbox.0 = inbox.0.max(delivered);
            inbox.1 |= marker != 0;
            true
        })?;
        if broken { Err(IndexFault::Row(Keyspace::Cursors).into()) } else { Ok((readers, next)) }
    }

    fn search_inbox(
        &mut self,
        user: &Id,
        convo: ConversationName,
        delivered: u64,
        search: &mut Search,
    ) -> Result<(), StoreFault> {
        let floor = floor(&self.index, user, &convo)?;
        if floor.replayed_at != 0 && floor.replayed_at + search.age_ms > search.now_ms {
            return Ok(());
        }
        let stay = rows::member(&self.index, &convo, user)?.map(|member| member.last_stay());
        let joined = stay.map_or(1, |stay| stay.joined);
        let left = stay.map_or(0, |stay| stay.left);
        let first = (delivered.max(floor.upto) + 1).max(joined);
        let mut found: Vec<(u64, Location)> = Vec::new();
        rows::locations(&self.index, &convo, first, &mut |seq, location| {
            let is_his = left == 0 || seq <= left;
            let is_old = LogPlace::of(&location) < search.horizon;
            let wanted = is_his && is_old && found.len() < LETTERS_PER_INBOX_MAX;
            if wanted {
                found.push((seq, location));
            }
            wanted
        })?;
        let Some((last, _)) = found.last().copied() else { return Ok(()) };
        let mut letters = Vec::new();
        for (seq, location) in found {
            if location.sender == rows::sender_hash(user) {
                continue;
            }
            // What cannot be read now is found again later.
            let Ok(message) = self.message(&convo, seq, location) else { return Ok(()) };
            let is_news = !is_dead_of_anybody(&self.index, &convo, seq)?;
            letters.push(Letter { seq, from: message.from, id: message.id, is_news });
        }
        search.letter_count += letters.len();
        search.rows.push(OverdueInbox { user: user.clone(), convo, last, letters });
        Ok(())
    }

    pub(super) fn list_dead(
        &self,
        to: u64,
        user: Option<&Id>,
        convo: Option<&ConversationName>,
        after: &[u8],
    ) -> Result<FromStore, StoreFault> {
        let prefix = convo.map(|convo| key(&[convo])).unwrap_or_default();
        let mut found = Vec::new();
        let mut next = Bytes::new();
        let (mut count, mut size, mut broken) = (0, 0, false);
        self.index.scan(Keyspace::Dead, &prefix, after, &mut |row, value| {
            if count == LISTED_COUNT || size > ANSWER_SIZE_MAX / 2 {
                next = Bytes::copy_from_slice(row);
                return false;
            }
            count += 1;
            let Some((letter, is_replayed)) = letter_of(row, value) else {
                broken = true;
                return false;
            };
            if !is_replayed && user.is_none_or(|user| *user == letter.user) {
                size += row.len() + value.len() + 32;
                found.push(letter);
            }
            true
        })?;
        if broken {
            return Err(IndexFault::Row(Keyspace::Dead).into());
        }
        Ok(FromStore::DeadLetters { to, rows: found, next })
    }
}

/// Up to where the inbox of a user was emptied.
pub fn floor(index: &impl Index, user: &str, convo: &str) -> Result<Floor, IndexFault> {
    match index.get(Keyspace::DeadFloors, &key(&[user, convo]))? {
        Some(value) => decode(Keyspace::DeadFloors, &value),
        None => Ok(Floor::default()),
    }
}

fn is_dead_of_anybody(index: &impl Index, convo: &str, seq: u64) -> Result<bool, IndexFault> {
    let prefix = [key(&[convo]), seq.to_be_bytes().to_vec()].concat();
    let mut found = false;
    index.scan(Keyspace::Dead, &prefix, &prefix, &mut |_, _| {
        found = true;
        false
    })?;
    Ok(found)
}

/// What a record of deaths changes.
pub(super) fn note_dead(
    (user, convo): (&Id, &ConversationName),
    last: u64,
    at: u64,
    letters: &[Letter],
    rows: &mut NewRows,
) {
    put_floor(user, convo, Floor { upto: last, replayed_at: 0 }, rows);
    for letter in letters {
        let Letter { seq, from, id, is_news } = letter;
        let row = LetterRow { from: from.clone(), id: id.clone(), at, is_replayed: false };
        rows.insert((Keyspace::Dead, letter_key(convo, *seq, user)), Some(row.to_bytes()));
        if *is_news && !id.is_empty() {
            let row = FailureRow { id: id.clone(), told_at: 0 };
            let place = (Keyspace::Failures, failure_key(from, convo, *seq));
            rows.insert(place, Some(row.to_bytes()));
        }
    }
}

/// What a replay changes.
pub(super) fn note_replayed(
    (user, convo): (&Id, &ConversationName),
    first: u64,
    at: u64,
    seqs: &[u64],
    rows: &mut NewRows,
) {
    put_floor(user, convo, Floor { upto: first - 1, replayed_at: at.max(1) }, rows);
    for seq in seqs {
        let row = LetterRow { from: "".into(), id: "".into(), at, is_replayed: true };
        rows.insert((Keyspace::Dead, letter_key(convo, *seq, user)), Some(row.to_bytes()));
    }
}

/// A sender was told.
pub(super) fn note_told(user: &Id, failures: &[Failure], rows: &mut NewRows) {
    for Failure { convo, seq, id, told_at } in failures {
        let row = FailureRow { id: id.clone(), told_at: *told_at };
        rows.insert((Keyspace::Failures, failure_key(user, convo, *seq)), Some(row.to_bytes()));
    }
}

/// A sender is told no more.
pub(super) fn note_forgotten(user: &Id, of: &[(ConversationName, u64)], rows: &mut NewRows) {
    for (convo, seq) in of {
        rows.insert((Keyspace::Failures, failure_key(user, convo, *seq)), None);
    }
}

/// A failure from what follows the user in its key, and its value.
pub(super) fn failure_of(rest: &[u8], value: &[u8]) -> Option<Failure> {
    let (convo, seq) = rest.split_last_chunk::<8>()?;
    let row = decode::<FailureRow>(Keyspace::Failures, value).ok()?;
    match texts(convo)?.as_slice() {
        [convo] => {
            let (convo, seq) = (ConversationName::from(*convo), u64::from_be_bytes(*seq));
            Some(Failure { convo, seq, id: row.id, told_at: row.told_at })
        }
        _ => None,
    }
}

/// Whether a row of one of the three kinds can be read.
pub(super) fn is_row(keyspace: Keyspace, row: &[u8], value: &[u8]) -> bool {
    match keyspace {
        Keyspace::Dead => letter_of(row, value).is_some(),
        Keyspace::DeadFloors => {
            let names = texts(row).is_some_and(|texts| texts.len() == 2);
            names && decode::<Floor>(keyspace, value).is_ok()
        }
        _ => {
            let names = row.split_last_chunk::<8>().and_then(|(names, _)| texts(names));
            let names = names.is_some_and(|names| names.len() == 2);
            names && decode::<FailureRow>(keyspace, value).is_ok()
        }
    }
}

fn put_floor(user: &Id, convo: &ConversationName, floor: Floor, rows: &mut NewRows) {
    rows.insert((Keyspace::DeadFloors, key(&[user, convo])), Some(floor.to_bytes()));
}

fn letter_key(convo: &str, seq: u64, user: &str) -> Vec<u8> {
    [key(&[convo]), seq.to_be_bytes().to_vec(), key(&[user])].concat()
}

fn failure_key(user: &str, convo: &str, seq: u64) -> Vec<u8> {
    [key(&[user, convo]), seq.to_be_bytes().to_vec()].concat()
}

/// A dead letter, and whether it was replayed.
fn letter_of(row: &[u8], value: &[u8]) -> Option<(DeadLetter, bool)> {
    let (size, _) = row.split_first_chunk::<2>()?;
    let (convo, rest) = row.split_at_checked(2 + usize::from(u16::from_be_bytes(*size)))?;
    let (seq, user) = rest.split_first_chunk::<8>()?;
    let LetterRow { from, id, at, is_replayed } = decode(Keyspace::Dead, value).ok()?;
    match (texts(convo)?.as_slice(), texts(user)?.as_slice()) {
        ([convo], [user]) => {
            let (user, convo) = (Id::from(*user), ConversationName::from(*convo));
            let seq = u64::from_be_bytes(*seq);
            Some((DeadLetter { user, convo, seq, from, id, at }, is_replayed))
        }
        _ => None,
    }
}
