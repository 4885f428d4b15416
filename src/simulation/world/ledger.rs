//! A model of the durable log: consumes what the disk made durable, in order, and checks what must
//! hold of the records alone.
//!
//! It shares the byte layout of commits and records with the store, and none of its logic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::link::message::Watermark;
use crate::link::record::{ConversationName, Cursor, Id, Message, Record};
use crate::link::wire::{Reader, Wire};
use crate::simulation::disk::{DurableWrite, SimDisk};
use crate::store::log_format::{BLOCK_SIZE, Commit, decode_commit, decode_segment_header};

/// What a check says: why a promise is broken.
pub type Verdict = Result<(), String>;

type Place = (Id, Id, ConversationName);

/// See the module.
#[derive(Default)]
pub struct Ledger {
    /// By position, from 1 on.
    records: Vec<Bytes>,
    /// By conversation and seq, from 1 on.
    messages: BTreeMap<ConversationName, Vec<(u64, Message)>>,
    ids: BTreeSet<(ConversationName, Id, Id)>,
    cursors: BTreeMap<Place, Cursor>,
    /// Where a device stood when it became known.
    starts: BTreeMap<Place, u64>,
    devices: BTreeMap<Id, BTreeSet<Id>>,
    fanned_out: u64,
    epoch: u64,
    last_mid: u64,
    last_ts: u64,
}

impl Ledger {
    /// Highest durable position.
    pub fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// The highest epoch granted.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The durable fan-out position.
    pub fn fanned_out(&self) -> u64 {
        self.fanned_out
    }

    /// Position of the last message of all.
    pub fn last_message_lsn(&self) -> u64 {
        let last = self.messages.values().filter_map(|messages| messages.last());
        last.map(|(lsn, _)| *lsn).max().unwrap_or(0)
    }

    pub fn message(&self, convo: &str, seq: u64) -> Option<&Message> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.messages.get(convo)?.get(index).map(|(_, message)| message)
    }

    pub fn head(&self, convo: &str) -> u64 {
        self.messages.get(convo).map_or(0, |messages| messages.len() as u64)
    }

    /// Conversations of a user that have messages.
    pub fn conversations_of(&self, user: &str) -> Vec<ConversationName> {
        let names = self.messages.keys();
        names
            .filter(|convo| members(convo).iter().any(|member| **member == *user))
            .cloned()
            .collect()
    }

    /// Where a device begins in a conversation: what is older it does not get by itself.
    pub fn start(&self, user: &str, device: &str, convo: &str) -> u64 {
        self.starts.get(&(user.into(), device.into(), convo.into())).copied().unwrap_or(0)
    }

    /// How far a device has durably acknowledged.
    pub fn acknowledged(&self, user: &str, device: &str, convo: &str, kind: Watermark) -> u64 {
        let cursor = self.cursors.get(&(user.into(), device.into(), convo.into()));
        cursor.map_or(0, |cursor| watermark_of(cursor, kind))
    }

    /// How far any device of a user has durably acknowledged.
    pub fn watermark(&self, user: &str, convo: &str, kind: Watermark) -> u64 {
        let rows = self.cursors.values().filter(|row| *row.user == *user && *row.convo == *convo);
        rows.map(|row| watermark_of(row, kind)).max().unwrap_or(0)
    }

    /// A write became durable.
    pub fn take_write(&mut self, write: DurableWrite) -> Verdict {
        let skipped = if write.offset == 0 { BLOCK_SIZE } else { 0 };
        let bytes = Bytes::from(write.data).slice(skipped..);
        let commit = decode_commit(&bytes).map_err(|error| {
            format!("what was written to {} is no commit: {error}", write.segment)
        })?;
        if commit.header.first_lsn != self.end() + 1 {
            let (lsn, end) = (commit.header.first_lsn, self.end());
            return Err(format!("position {lsn} is written while the durable log ends at {end}"));
        }
        self.take_commit(&commit)
    }

    /// A store has recovered: the log begins with everything that ever was durable.
    pub fn take_recovered(&mut self, disk: &SimDisk) -> Verdict {
        let mut position = 0;
        for commit in durable_chain(disk) {
            let known = commit.header.last_lsn() <= self.end();
            if known {
                for bytes in split(&commit)? {
                    if self.records[position] != bytes {
                        return Err(format!("the record at {} is another one", position + 1));
                    }
                    position += 1;
                }
            } else if commit.header.first_lsn == self.end() + 1 && position == self.records.len() {
                self.take_commit(&commit)?;
                position = self.records.len();
            } else {
                let (lsn, end) = (commit.header.first_lsn, self.end());
                return Err(format!("a commit from {lsn} on overlaps the durable end {end}"));
            }
        }
        match self.records.len() - position {
            0 => Ok(()),
            lost => Err(format!("{lost} durable records are gone, from {} on", position + 1)),
        }
    }

    fn take_commit(&mut self, commit: &Commit) -> Verdict {
        for bytes in split(commit)? {
            let record = Record::from_bytes(bytes.clone()).map_err(|error| error.to_string())?;
            self.records.push(bytes);
            self.take_record(self.end(), record)?;
        }
        Ok(())
    }

    fn take_record(&mut self, lsn: u64, record: Record) -> Verdict {
        match record {
            Record::Message { message } => self.take_message(lsn, message),
            Record::Cursors { cursors } => {
                cursors.into_iter().try_for_each(|cursor| self.take_cursor(cursor))
            }
            Record::Device { user, device, .. } => {
                for convo in self.conversations_of(&user) {
                    let place = (user.clone(), device.clone(), convo);
                    let start = self.cursors.get(&place).map_or(0, |cursor| cursor.delivered);
                    self.starts.entry(place).or_insert(start);
                }
                self.devices.entry(user).or_default().insert(device);
                Ok(())
            }
            Record::FannedOut { lsn: position } => self.take_position(lsn, position),
            Record::Epoch { epoch, .. } if epoch <= self.epoch => {
                Err(format!("epoch {epoch} is granted after {}", self.epoch))
            }
            Record::Epoch { epoch, .. } => {
                self.epoch = epoch;
                Ok(())
            }
            Record::Edge { .. } => Ok(()),
            Record::Lost { .. } => Err(format!("position {lsn} is lost")),
        }
    }

    fn take_message(&mut self, lsn: u64, message: Message) -> Verdict {
        let Message { convo, seq, mid, ts, from, id, .. } = &message;
        let head = self.head(convo);
        if *seq != head + 1 {
            return Err(format!("{convo} goes from {head} to {seq}"));
        }
        if *mid <= self.last_mid || *ts < self.last_ts {
            return Err(format!("mid {mid} or ts {ts} of {convo} {seq} falls"));
        }
        if !members(convo).contains(&&**from) {
            return Err(format!("{from} is no member of {convo}"));
        }
        if !self.ids.insert((convo.clone(), from.clone(), id.clone())) {
            return Err(format!("{id} of {from} is in {convo} twice, again at {seq}"));
        }
        (self.last_mid, self.last_ts) = (*mid, *ts);
        self.messages.entry(convo.clone()).or_default().push((lsn, message));
        Ok(())
    }

    fn take_cursor(&mut self, cursor: Cursor) -> Verdict {
        let Cursor { user, device, convo, delivered, read, .. } = &cursor;
        let place = (user.clone(), device.clone(), convo.clone());
        let head = self.head(convo);
        if *delivered > head || read > delivered {
            return Err(format!(
                "{user}/{device} is at {delivered}, {read} of {convo}, head {head}"
            ));
        }
        if let Some(old) = self.cursors.get(&place)
            && (old.delivered > *delivered || old.read > *read)
        {
            return Err(format!("a cursor moves back: {old:?} becomes {cursor:?}"));
        }
        let convo = convo.clone();
        self.cursors.insert(place, cursor);
        self.check_position(&convo)
    }

    fn take_position(&mut self, lsn: u64, position: u64) -> Verdict {
        if position >= lsn || position <= self.fanned_out {
            return Err(format!("position {position} at {lsn} after {}", self.fanned_out));
        }
        self.fanned_out = position;
        let convos: Vec<ConversationName> = self.messages.keys().cloned().collect();
        convos.iter().try_for_each(|convo| self.check_position(convo))
    }

    /// Nothing at or below the position lacks an acknowledgement or a marker at any target device.
    fn check_position(&self, convo: &ConversationName) -> Verdict {
        let messages = self.messages.get(convo).map_or(&[][..], Vec::as_slice);
        let passed = messages.partition_point(|(lsn, _)| *lsn <= self.fanned_out) as u64;
        if passed == 0 {
            return Ok(());
        }
        for user in members(convo) {
            let nobody = BTreeSet::from([Id::from("")]);
            for device in self.devices.get(user).unwrap_or(&nobody) {
                let cursor = self.cursors.get(&(user.into(), device.clone(), convo.clone()));
                let safe = cursor.is_some_and(|cursor| {
                    let marked = cursor.marker != 0 && cursor.marker <= cursor.delivered + 1;
                    cursor.delivered >= passed || marked
                });
                if !safe {
                    let position = self.fanned_out;
                    return Err(format!(
                        "the position {position} passes {convo} {passed}, which {user}/{device} \
                         has neither acknowledged nor marked: {cursor:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The two of a direct conversation, or the one.
pub fn members(convo: &str) -> Vec<&str> {
    let plain = convo.strip_prefix("dm:").and_then(|names| names.split_once(':'));
    match plain {
        Some((first, second)) if first == second => vec![first],
        Some((first, second)) => vec![first, second],
        None => Vec::new(),
    }
}

fn watermark_of(cursor: &Cursor, kind: Watermark) -> u64 {
    match kind {
        Watermark::Delivered => cursor.delivered,
        Watermark::Read => cursor.read,
    }
}

fn split(commit: &Commit) -> Result<Vec<Bytes>, String> {
    let mut reader = Reader::new(commit.records.clone());
    let mut records = Vec::new();
    for _ in 0..commit.header.count {
        let record = Record::read(&mut reader).map_err(|error| error.to_string())?;
        records.push(record.to_bytes().into());
    }
    Ok(records)
}

/// Every commit that would survive a power cut now, in order, without what was cut.
fn durable_chain(disk: &SimDisk) -> Vec<Commit> {
    let mut chain: Vec<Commit> = Vec::new();
    for segment in disk.numbers() {
        let content = Bytes::from(disk.durable_content(segment).unwrap_or_default());
        let header = content.get(..BLOCK_SIZE).map(decode_segment_header);
        let Some(Ok(header)) = header else { continue };
        if header.number != segment {
            continue;
        }
        chain.retain(|commit| commit.header.first_lsn < header.first_lsn);
        let mut offset = BLOCK_SIZE;
        while let Some(commit) = (offset < content.len())
            .then(|| decode_commit(&content.slice(offset..)).ok())
            .flatten()
            .filter(|commit| follows(chain.last(), commit))
        {
            offset += commit.header.size_on_disk() as usize;
            chain.push(commit);
        }
    }
    chain
}

fn follows(last: Option<&Commit>, commit: &Commit) -> bool {
    let (lsn, checksum) = last.map_or((0, 0), |last| (last.header.last_lsn(), last.checksum));
    commit.header.first_lsn == lsn + 1 && commit.header.previous_checksum == checksum
}
