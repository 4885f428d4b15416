//! A model of the durable log: consumes what the disk made durable, in order, and checks what must
//! hold of the records alone.
//!
//! It shares the byte layout of commits and records with the store, and none of its logic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::channels::Channels;
use super::deaths::Deaths;
use crate::link::message::Watermark;
use crate::link::record::{
    ConversationName, Cursor, GroupRole, Id, Member, Message, Record, Revocation,
};
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
    groups: BTreeMap<ConversationName, Membership>,
    pub channels: Channels,
    /// Position and last session of each device's last revocation.
    revoked: BTreeMap<(Id, Id), (u64, (u64, u64))>,
    fanned_out: u64,
    epoch: u64,
    last_mid: u64,
    last_ts: u64,
    pub deaths: Deaths,
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

    /// Conversations of a user that have messages; not the groups that he has left.
    pub fn conversations_of(&self, user: &str) -> Vec<ConversationName> {
        let names = self.messages.keys();
        names.filter(|convo| self.is_member(user, convo)).cloned().collect()
    }

    /// The same, with the groups that he has left.
    pub fn conversations_heard_by(&self, user: &str) -> Vec<ConversationName> {
        let heard = |convo: &&ConversationName| match self.groups.get(*convo) {
            Some(group) => group.stay(user).is_some(),
            None if self.channels.is_one(convo) => self.channels.hears(user, convo),
            None => direct_members(convo).contains(&user),
        };
        self.messages.keys().filter(heard).cloned().collect()
    }

    /// Whether this send is in the log.
    pub fn is_accepted(&self, convo: &str, user: &str, id: &str) -> bool {
        self.ids.contains(&(convo.into(), user.into(), id.into()))
    }

    /// The durable version of a group; 0: there is none.
    pub fn version(&self, convo: &str) -> u64 {
        let version = self.groups.get(convo).map(|group| group.version);
        version.unwrap_or_else(|| self.channels.version(convo))
    }

    /// Of all who ever were in the group, but for `user`: who has come to `seq`, or joined later.
    pub fn reached_count(&self, convo: &str, seq: u64, kind: Watermark, user: &str) -> u64 {
        let Some(group) = self.groups.get(convo) else { return 0 };
        let others = group.stays.keys().filter(|other| &***other != user);
        let reached = others.filter(|other| {
            let begins_after = self.range(other, convo).0 - 1;
            self.watermark(other, convo, kind).max(begins_after) >= seq
        });
        reached.count() as u64
    }

    /// The last message of a user in a conversation; 0: there is none.
    pub fn last_of(&self, convo: &str, user: &str) -> u64 {
        let messages = self.messages.get(convo).into_iter().flatten().rev();
        let own = |message: &&Message| *message.from == *user && !message.is_system();
        messages.map(|(_, message)| message).find(own).map_or(0, |message| message.seq)
    }

    /// Whether the user is in the conversation, durably.
    pub fn is_member(&self, user: &str, convo: &str) -> bool {
        match self.groups.get(convo) {
            Some(group) => group.stay(user).is_some_and(|(_, left)| left.is_none()),
            None if self.channels.is_one(convo) => self.channels.is_member(user, convo),
            None => direct_members(convo).contains(&user),
        }
    }

    /// Who is in the conversation, durably.
    pub fn members<'a>(&'a self, convo: &'a str) -> Vec<&'a str> {
        match self.groups.get(convo) {
            Some(group) => {
                let users = group.stays.keys().map(|user| &**user);
                users.filter(|user| self.is_member(user, convo)).collect()
            }
            None if self.channels.is_one(convo) => self.channels.writers(convo),
            None => direct_members(convo),
        }
    }

    /// Whether the message is for the user: he was in the conversation then.
    pub fn is_for(&self, user: &str, convo: &str, seq: u64) -> bool {
        match self.groups.get(convo) {
            Some(group) => group.was_in(user, seq),
            None if self.channels.is_one(convo) => self.channels.may_hear(user, convo, seq),
            None => direct_members(convo).contains(&user),
        }
    }

    /// What the user sees of a conversation: from the first seq to the last one, both his.
    pub fn range(&self, user: &str, convo: &str) -> (u64, u64) {
        if self.channels.is_one(convo) {
            return (self.channels.since(user, convo), self.head(convo));
        }
        let stay = self.groups.get(convo).and_then(|group| group.stay(user));
        let (joined, left) = stay.unwrap_or((1, None));
        (joined, left.unwrap_or_else(|| self.head(convo)))
    }

    /// The rows of a change say what its message says.
    fn check_group(&self, convo: &str, version: u64, rows: &[Member]) -> Verdict {
        let group = &self.groups[convo];
        if version != group.version {
            return Err(format!("{convo} has version {version}, not {}", group.version));
        }
        for row in rows {
            let stay = row.last_stay();
            let said = (stay.joined, Some(stay.left).filter(|left| *left != 0));
            if group.stay(&row.user) != Some(said) || row.version != version {
                return Err(format!("{convo}: {row:?} is {:?}", group.stay(&row.user)));
            }
        }
        let owners = rows.iter().filter(|row| row.role == GroupRole::Owner && row.is_in());
        if owners.count() > 1 {
            return Err(format!("{convo} has two owners"));
        }
        Ok(())
    }

    /// Where a device begins in a conversation: what is older it does not get by itself.
    pub fn start(&self, user: &str, device: &str, convo: &str) -> u64 {
        self.starts.get(&(user.into(), device.into(), convo.into())).copied().unwrap_or(0)
    }

    /// Whether a device of this name was ever revoked.
    pub fn was_revoked(&self, user: &str, device: &str) -> bool {
        self.revoked.contains_key(&(user.into(), device.into()))
    }

    /// Whether this session was of a device that was revoked.
    pub fn is_revoked(&self, user: &str, device: &str, session: (u64, u64)) -> bool {
        let revoked = self.revoked.get(&(user.into(), device.into()));
        revoked.is_some_and(|(_, upto)| session <= *upto)
    }

    /// What a session of a revoked device hears was there before the revocation.
    pub fn check_heard(
        &self,
        (user, device): (&str, &str),
        session: (u64, u64),
        convo: &str,
        seq: u64,
    ) -> Verdict {
        let revoked = self.revoked.get(&(user.into(), device.into()));
        let Some((revoked_lsn, _)) = revoked.filter(|(_, upto)| session <= *upto) else {
            return Ok(());
        };
        let at = |index: usize| self.messages.get(convo).and_then(|messages| messages.get(index));
        match at(seq as usize - 1) {
            Some((lsn, _)) if lsn > revoked_lsn => Err(format!(
                "{convo} {seq}, at {lsn}, reaches a session of {user}/{device}, revoked at \
                 {revoked_lsn}"
            )),
            _ => Ok(()),
        }
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
            Record::Group { message, version, members } => {
                let convo = message.convo.clone();
                self.take_message(lsn, message)?;
                self.check_group(&convo, version, &members)
            }
            Record::Channel { message, channel } => {
                self.channels.take(&message, &channel)?;
                self.take_message(lsn, message)
            }
            Record::Subscription { convo, user, subscription, subscribers } => {
                let head = self.head(&convo);
                self.channels.take_subscription((&convo, &user), subscription, subscribers, head)
            }
            Record::Cursors { cursors } => {
                cursors.into_iter().try_for_each(|cursor| self.take_cursor(cursor))
            }
            Record::Device { user, device, .. } => {
                for convo in self.conversations_heard_by(&user) {
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
            Record::Edge { .. } | Record::Seen { .. } | Record::Privacy { .. } => Ok(()),
            Record::Revoked { revocation } => self.take_revoked(lsn, &revocation),
            Record::ServiceTime { ms } => self.take_service_time(lsn, ms),
            Record::Dead { user, convo, last, at, letters } => {
                self.take_dead((&user, &convo), last, at, &letters)
            }
            Record::Replayed { user, convo, first, .. } => self.take_replayed(&user, &convo, first),
            Record::Told { user, failures } => self.check_told(&user, &failures),
            Record::Forgotten { .. } => Ok(()),
            Record::Lost { .. } => Err(format!("position {lsn} is lost")),
        }
    }

    /// The device is gone; what its user's devices had acknowledged stays acknowledged.
    fn take_revoked(&mut self, lsn: u64, revocation: &Revocation) -> Verdict {
        let Revocation { user, device, epoch, counter, .. } = revocation;
        let place = (user.clone(), device.clone());
        self.revoked.insert(place, (lsn, (*epoch, *counter)));
        let known = self.devices.get_mut(user).is_some_and(|devices| devices.remove(device));
        if !known {
            return Err(format!("{user}/{device} is revoked, and there is no such device"));
        }
        let of_device = |place: &Place| place.0 == *user && place.1 == *device;
        let convos: Vec<Cursor> = self
            .cursors
            .iter()
            .filter(|(place, _)| of_device(place))
            .map(|it| it.1.clone())
            .collect();
        self.cursors.retain(|place, _| !of_device(place));
        self.starts.retain(|place, _| !of_device(place));
        for Cursor { convo, delivered, read, .. } in convos {
            for (kind, before) in [(Watermark::Delivered, delivered), (Watermark::Read, read)] {
                let begins_after = self.range(user, &convo).0 - 1;
                let after = self.watermark(user, &convo, kind).max(begins_after);
                if after < before {
                    return Err(format!("{user} falls from {before} to {after} of {convo}"));
                }
            }
            self.check_position(&convo)?;
        }
        Ok(())
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
        if message.is_system() && self.channels.is_one(convo) {
            // Taken with its record.
        } else if message.is_system() {
            let groups = self.groups.entry(convo.clone()).or_default();
            groups.take(&message).map_err(|wrong| format!("{convo} {seq}: {wrong}"))?;
        } else if !self.ids.insert((convo.clone(), from.clone(), id.clone())) {
            return Err(format!("{id} of {from} is in {convo} twice, again at {seq}"));
        }
        let writes = match self.channels.is_one(convo) {
            true => self.channels.writers(convo).contains(&&**from),
            false => self.is_for(from, convo, *seq),
        };
        if !writes {
            return Err(format!("{from} is no member of {convo}"));
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

    /// The time that passes: service time is never ahead of it.
    pub fn pass(&mut self, monotonic_us: u64) {
        self.deaths.monotonic_us = monotonic_us;
    }

    /// A message and its position.
    pub(super) fn logged(&self, convo: &str, seq: u64) -> Option<(u64, &Message)> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.messages.get(convo)?.get(index).map(|(lsn, message)| (*lsn, message))
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
    pub(super) fn check_position(&self, convo: &ConversationName) -> Verdict {
        let messages = self.messages.get(convo).map_or(&[][..], Vec::as_slice);
        let passed = messages.partition_point(|(lsn, _)| *lsn <= self.fanned_out) as u64;
        if passed == 0 {
            return Ok(());
        }
        let everybody: Vec<&str> = match self.groups.get(convo) {
            Some(group) => group.stays.keys().map(|user| &**user).collect(),
            None => direct_members(convo),
        };
        for user in everybody {
            let (joined, last) = self.range(user, convo);
            let passed = passed.min(last);
            if passed < joined {
                continue;
            }
            let nobody = BTreeSet::from([Id::from("")]);
            let devices = self.devices.get(user).filter(|devices| !devices.is_empty());
            for device in devices.unwrap_or(&nobody) {
                let cursor = self.cursors.get(&(user.into(), device.clone(), convo.clone()));
                let dead = self.floor(user, convo);
                // What is dead is so for every device, also for one without a row.
                let (delivered, marker) = cursor.map_or((0, 0), |it| (it.delivered, it.marker));
                let reached = delivered.max(dead);
                let safe = reached >= passed || (marker != 0 && marker <= reached + 1);
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

/// A group's members, by what its system messages say, and nothing else.
#[derive(Default)]
struct Membership {
    version: u64,
    /// When each came and, if so, went.
    stays: BTreeMap<Id, Vec<(u64, Option<u64>)>>,
}

impl Membership {
    fn stay(&self, user: &str) -> Option<(u64, Option<u64>)> {
        self.stays.get(user)?.last().copied()
    }

    fn was_in(&self, user: &str, seq: u64) -> bool {
        let mut stays = self.stays.get(user).into_iter().flatten();
        stays.any(|(joined, left)| *joined <= seq && left.is_none_or(|left| seq <= left))
    }

    fn take(&mut self, message: &Message) -> Verdict {
        let body: serde_json::Value =
            serde_json::from_slice(message.body.bytes()).map_err(|error| error.to_string())?;
        let op = body["op"].as_str().unwrap_or_default();
        let users = body["users"].as_array().cloned().unwrap_or_default();
        let users: Vec<&str> = users.iter().filter_map(|user| user.as_str()).collect();
        if users.is_empty() || (op == "create") != (message.seq == 1) {
            return Err(format!("a system message says {body}"));
        }
        self.version += 1;
        for user in users {
            let is_in = self.stay(user).is_some_and(|(_, left)| left.is_none());
            let stays = self.stays.entry(user.into()).or_default();
            match (op, is_in) {
                ("create" | "add", false) => stays.push((message.seq, None)),
                ("remove" | "leave", true) => {
                    stays.last_mut().expect("he is in").1 = Some(message.seq);
                }
                ("role", true) => {}
                _ => return Err(format!("{op} of {user}, who is in: {is_in}")),
            }
        }
        Ok(())
    }
}

/// The two of a direct conversation, or the one.
pub fn direct_members(convo: &str) -> Vec<&str> {
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
