//! The audit: whether every message that was accepted is in the log, in the index, and either with
//! those it was for or in their inboxes. It reads, and changes nothing.
//!
//! One pass over the log, as of one position: that which the index has applied. Three questions, of
//! which none is answered by another's numbers:
//!
//! - `walk`: is the log whole, every byte of every record? Its own checksums, its chain of commits,
//!   and what is known to have been durable say so.
//! - `expected`: is the index what the log makes of it, row for row, the hash chains included?
//! - `obligations`: is every (message, device) that the log alone says is owed to be found as
//!   acknowledged, marked, or above the fan-out position, in the rows as they are stored?

pub mod expected;
pub mod obligations;
pub mod online;
pub mod walk;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::expected::{Expected, Origin};
use self::obligations::Obligations;
use self::walk::{Walk, Witness, Wrong};
use super::Batch;
use super::device::{LogReader, SegmentInfo};
use super::index::{Change, Index, IndexFault, Keyspace};
use super::ledger::{self, Reach};
use super::log_format::{COMMIT_HEADER_SIZE, Commit, checksum_of};
use super::positions::{Place, records_offset};
use super::rows::{self, Location, State};
use crate::link::record::Record;
use crate::link::wire::{Reader, Wire};

/// Findings that are told one by one; the others are counted.
const FINDING_COUNT_MAX: usize = 100;
/// Commits between two words of progress.
const PROGRESS_COMMITS: u64 = 1_024;

/// Something that is wrong, and where, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub what: String,
    pub segment: Option<u64>,
    pub offset: Option<u64>,
    pub lsn: Option<u64>,
    pub convo: Option<String>,
    pub seq: Option<u64>,
}

impl Finding {
    fn at(what: String, origin: Origin, convo: &str, seq: Option<u64>) -> Finding {
        let Origin { segment, offset, lsn } = origin;
        let (segment, offset, lsn) = (Some(segment), Some(offset), Some(lsn));
        Finding { what, segment, offset, lsn, convo: Some(convo.to_owned()), seq }
    }
}

/// What was found, in the order of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    pub told: Vec<Finding>,
    pub total: u64,
}

impl Findings {
    pub fn push(&mut self, finding: Finding) {
        self.total += 1;
        if self.told.len() < FINDING_COUNT_MAX {
            self.told.push(finding);
        }
    }
}

/// Messages times those that each is owed to, sorted by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliveries {
    /// By the log alone.
    pub owed: u64,
    pub delivered: u64,
    pub in_inboxes: u64,
    /// Above the fan-out position, so pushed or marked after any crash.
    pub in_flight: u64,
    /// Acknowledged by no device within the time for it; what he wrote himself too.
    pub dead_lettered: u64,
    /// None yet: nothing expires.
    pub expired: u64,
    /// Of an earlier stay in a group, to who has left it and come back.
    pub left: u64,
    /// In none of these: lost.
    pub unaccounted: u64,
}

impl Deliveries {
    /// What is owed and found nowhere.
    pub fn difference(&self) -> i128 {
        let found = [
            self.delivered,
            self.in_inboxes,
            self.in_flight,
            self.dead_lettered,
            self.expired,
            self.left,
        ];
        i128::from(self.owed) - found.into_iter().map(i128::from).sum::<i128>()
    }
}

/// What an audit found. All numbers are as of `applied_lsn`, but for those of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub applied_lsn: u64,
    pub log_end_lsn: u64,
    pub fanned_out_lsn: u64,
    pub segments: u64,
    pub commits: u64,
    pub records: u64,
    pub log_bytes: u64,
    pub conversations: u64,
    pub index_rows: u64,
    /// By the heads of the conversations, as the index has them.
    pub accepted: u64,
    /// Messages that were read from the log.
    pub durable: u64,
    /// Those that a repair was told to give up.
    pub given_up: u64,
    pub deliveries: Deliveries,
    /// The accounts were drawn up; not so if the log breaks off before the index's position.
    pub is_complete: bool,
    pub notes: Vec<String>,
    pub findings: Findings,
}

impl Report {
    /// Messages that were accepted and are not there, or the other way round.
    pub fn difference(&self) -> i128 {
        i128::from(self.accepted) - i128::from(self.durable) - i128::from(self.given_up)
    }

    /// Takes what is wrong with the index's rows. Of what a repair gave up the index may know more
    /// than the log, by what it had before: then that cannot be called wrong.
    fn take_rows(&mut self, rows: Findings, is_anything_given_up: bool) {
        match rows.told.first() {
            Some(first) if is_anything_given_up => self.notes.push(format!(
                "{} rows are not what the log makes; they may be of records that a repair gave \
                 up. The first: {}",
                rows.total, first.what
            )),
            _ => {
                let untold = rows.total - rows.told.len() as u64;
                rows.told.into_iter().for_each(|finding| self.findings.push(finding));
                self.findings.total += untold;
            }
        }
    }

    pub fn is_balanced(&self) -> bool {
        self.is_complete
            && self.findings.total == 0
            && self.difference() == 0
            && self.deliveries.difference() == 0
    }
}

/// The log could not be read. (An index that cannot be read is a finding.)
#[derive(Debug, thiserror::Error)]
pub enum AuditFault {
    #[error("reading the log failed: {0}")]
    Log(#[from] std::io::Error),
    #[error("the index failed: {0}")]
    Index(#[from] IndexFault),
}

/// Audits a store. `is_live`: what is above the index's position is being written, and not read.
/// `progress` is told how many bytes of the log were read.
pub fn audit<R: LogReader, I: Index>(
    reader: &mut R,
    segments: &[SegmentInfo],
    index: &I,
    is_live: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, AuditFault> {
    let mut report = Report::default();
    match audit_with(reader, segments, index, is_live, progress, &mut report) {
        Err(AuditFault::Index(fault)) => {
            report.is_complete = false;
            let what = format!("the index cannot be read: {fault}");
            report.findings.push(Finding { what, ..Finding::default() });
            Ok(report)
        }
        result => result.map(|()| report),
    }
}

fn audit_with<R: LogReader, I: Index>(
    reader: &mut R,
    segments: &[SegmentInfo],
    index: &I,
    is_live: bool,
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) -> Result<(), AuditFault> {
    let state = rows::load_state(index)?;
    let log_id = (state.applied_lsn > 0).then_some(state.log_id);
    let upto = is_live.then_some(state.applied_lsn);
    let witness = Witness { log_id, applied_lsn: state.applied_lsn, upto };
    let has_chains = has_chains(index, state.applied_lsn, report)?;
    let mut books = Books::new(state, has_chains, report);
    let mut commits = 0;
    let walk = walk::walk(reader, segments, witness, &mut |place, commit| {
        commits += 1;
        if commits % PROGRESS_COMMITS == 0 {
            progress(commit.header.size_on_disk() + books.report.log_bytes);
        }
        books.report.log_bytes += commit.header.size_on_disk();
        books.commit(place, commit, index)
    })?;
    books.close(&walk, reader, segments, index)
}

/// Whether the index has hash chains to be compared. They may be missing, or be under way; but what
/// says so must make sense.
fn has_chains(
    index: &impl Index,
    applied_lsn: u64,
    report: &mut Report,
) -> Result<bool, IndexFault> {
    let mut is_empty = true;
    index.scan(Keyspace::Chains, &[], &[], &mut |_, _| {
        is_empty = false;
        false
    })?;
    let why = "the index has no whole hash chains yet: they are made when the store starts";
    match ledger::reach(index)? {
        None if is_empty && applied_lsn == 0 => return Ok(true),
        None if is_empty => report.notes.push(why.to_owned()),
        Some(Reach { lsn, is_whole: false }) if lsn < applied_lsn => {
            report.notes.push(why.to_owned());
        }
        Some(Reach { lsn, is_whole: true }) if lsn == applied_lsn => return Ok(true),
        reach => {
            let what = format!(
                "index: the hash chains cannot reach {reach:?}, and the rows to {applied_lsn}"
            );
            report.findings.push(Finding { what, ..Finding::default() });
        }
    }
    Ok(false)
}

/// What is drawn up while the log is read.
struct Books<'a> {
    /// As the index has it, and as the log makes it.
    stored: State,
    replayed: State,
    has_chains: bool,
    expected: Expected,
    obligations: Obligations,
    report: &'a mut Report,
}

impl<'a> Books<'a> {
    fn new(stored: State, has_chains: bool, report: &'a mut Report) -> Books<'a> {
        let obligations = Obligations::new(stored.fanned_out);
        let (replayed, expected) = (State::default(), Expected::default());
        Books { stored, replayed, has_chains, expected, obligations, report }
    }

    fn commit(
        &mut self,
        place: Place,
        commit: &Commit,
        index: &impl Index,
    ) -> Result<(), AuditFault> {
        let mut reader = Reader::new(commit.records.clone());
        for lsn in commit.header.first_lsn..=commit.header.last_lsn() {
            let start = commit.records.len() - reader.remaining();
            let offset = records_offset(place) + start as u64;
            let origin = Origin { segment: place.segment, offset, lsn };
            if Record::read(&mut reader).is_err() {
                let what = "an intact commit holds a record that cannot be decoded".to_owned();
                self.report.findings.push(Finding::at(what, origin, "", None));
                return Ok(());
            }
            self.report.records += 1;
            if lsn <= self.stored.applied_lsn {
                let records =
                    commit.records.slice(start..commit.records.len() - reader.remaining());
                let (first_lsn, segment) = (lsn, place.segment);
                let batch = Batch { first_lsn, count: 1, segment, offset, records };
                self.replayed.log_id = commit.header.log_id;
                self.record(batch, origin, index)?;
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        batch: Batch,
        origin: Origin,
        index: &impl Index,
    ) -> Result<(), AuditFault> {
        let Books { obligations, report, .. } = self;
        let mut chain = None;
        let expected = &mut self.expected;
        let changes = rows::changes_of(index, &[batch], &mut self.replayed, &mut |record| {
            chain = obligations.note(record, origin, &mut report.findings);
            if let Record::Revoked { revocation } = record {
                expected.forget(Keyspace::Cursors, &[&revocation.user, &revocation.device]);
            }
        });
        // It was decoded once already.
        let mut changes = changes.unwrap_or_default();
        if let Some((convo, chain)) = chain.filter(|_| self.has_chains) {
            let mut rows = BTreeMap::new();
            ledger::note_rows(&convo, &chain, &mut rows);
            changes.extend(rows.into_iter().map(|((keyspace, key), value)| Change {
                keyspace,
                key,
                value: Some(value),
            }));
        }
        for change in changes {
            self.expected.note(change, origin, index)?;
        }
        Ok(())
    }

    fn close<R: LogReader>(
        self,
        walk: &Walk,
        reader: &mut R,
        segments: &[SegmentInfo],
        index: &impl Index,
    ) -> Result<(), AuditFault> {
        self.report.applied_lsn = self.stored.applied_lsn;
        self.report.fanned_out_lsn = self.stored.fanned_out;
        self.report.log_end_lsn = walk.next_lsn - 1;
        self.report.segments = walk.segments;
        self.report.commits = walk.commits;
        self.report.conversations = self.obligations.conversation_count();
        self.report.durable = self.obligations.messages;
        self.report.given_up = self.obligations.given_up;
        if let Some(torn) = &walk.torn {
            let Place { segment, offset } = torn.place;
            let what = &torn.what;
            self.report.notes.push(format!("segment {segment} offset {offset}: {what}"));
        }
        if let Some(wrong) = &walk.broken {
            let finding = name_wrong(wrong, reader, segments, index)?;
            // Before what the missing rest makes of the rows.
            self.report.findings.told.insert(0, finding);
            self.report.findings.total += 1;
        }
        for wrong in &walk.padding {
            self.report.findings.push(finding_of(wrong));
        }
        if walk.next_lsn <= self.stored.applied_lsn {
            return Ok(());
        }
        self.balance(index)
    }

    fn balance(mut self, index: &impl Index) -> Result<(), AuditFault> {
        let report = self.report;
        let mut rows = Findings::default();
        if self.stored != self.replayed {
            let what = format!(
                "index: its state {:?} is not what the log says: {:?}",
                self.stored, self.replayed
            );
            rows.push(Finding { what, ..Finding::default() });
        }
        let mut skip = Vec::new();
        if self.has_chains {
            if self.stored.applied_lsn > 0 {
                let reach = Reach { lsn: self.stored.applied_lsn, is_whole: true };
                let change = ledger::reach_change(reach);
                self.expected.note(change, Origin::default(), index)?;
            }
        } else {
            skip.extend([Keyspace::Chains, Keyspace::Links]);
        }
        report.index_rows = self.expected.finish(index, &skip, &mut rows)?;
        report.take_rows(rows, self.obligations.is_anything_given_up());
        let settled = self.obligations.settle(index, &mut report.findings)?;
        (report.deliveries, report.accepted, report.given_up) = settled;
        report.is_complete = true;
        Ok(())
    }
}

fn finding_of(wrong: &Wrong) -> Finding {
    let Place { segment, offset } = wrong.place;
    let (segment, offset, lsn) = (Some(segment), Some(offset), Some(wrong.lsn));
    Finding { what: format!("log: {}", wrong.what), segment, offset, lsn, ..Finding::default() }
}

/// Which message it is that is wrong: the first that the index has there and that the log does not
/// hold as it was.
fn name_wrong<R: LogReader>(
    wrong: &Wrong,
    reader: &mut R,
    segments: &[SegmentInfo],
    index: &impl Index,
) -> Result<Finding, IndexFault> {
    let mut finding = finding_of(wrong);
    let mut first: Option<(u64, u64, String, u64)> = None;
    let extent = wrong.place.offset..wrong.place.offset + wrong.size;
    index.scan(Keyspace::Messages, &[], &[], &mut |row, value| {
        let Some((convo, seq, location)) = rows::message_row(row, value) else { return true };
        let Location { segment, offset, .. } = location;
        let here = segment == wrong.place.segment && extent.contains(&offset);
        let gone = !segments.iter().any(|info| info.number == segment);
        let earlier = first.as_ref().is_none_or(|first| (segment, offset) < (first.0, first.1));
        if earlier && (gone || (here && !is_there(location, reader))) {
            first = Some((segment, offset, convo.to_owned(), seq));
        }
        true
    })?;
    if let Some((segment, offset, convo, seq)) = first {
        finding.lsn = Some(lsn_at(wrong, (segment, offset), reader));
        (finding.segment, finding.offset) = (Some(segment), Some(offset));
        (finding.convo, finding.seq) = (Some(convo), Some(seq));
    }
    Ok(finding)
}

fn is_there(location: Location, reader: &mut impl LogReader) -> bool {
    let mut bytes = vec![0; location.size as usize];
    reader.read(location.segment, location.offset, &mut bytes).is_ok()
        && checksum_of(&bytes) == location.checksum
}

/// The position of the record at `offset` in a wrong commit, if what stands before it can be read.
fn lsn_at(wrong: &Wrong, (segment, offset): (u64, u64), reader: &mut impl LogReader) -> u64 {
    let mut bytes = vec![0; wrong.size as usize];
    if segment != wrong.place.segment
        || reader.read(segment, wrong.place.offset, &mut bytes).is_err()
        || bytes.len() < COMMIT_HEADER_SIZE
    {
        return wrong.lsn;
    }
    let records = bytes.split_off(COMMIT_HEADER_SIZE);
    let (size, mut records) = (records.len() as u64, Reader::new(records.into()));
    let mut lsn = wrong.lsn;
    while records_offset(wrong.place) + size - (records.remaining() as u64) < offset {
        if Record::read(&mut records).is_err() {
            return wrong.lsn;
        }
        lsn += 1;
    }
    lsn
}

/// The names in a row's key, and its seq if it is of a message.
fn names_of(keyspace: Keyspace, key: &[u8]) -> (Vec<String>, Option<u64>) {
    let by_seq = matches!(keyspace, Keyspace::Messages | Keyspace::Links);
    let (names, seq) = match key.split_last_chunk::<8>().filter(|_| by_seq) {
        Some((names, seq)) => (names, Some(u64::from_be_bytes(*seq))),
        None => (key, None),
    };
    let names = rows::texts(names).unwrap_or_default();
    (names.into_iter().map(str::to_owned).collect(), seq)
}

fn conversation_of(keyspace: Keyspace, names: &[String]) -> Option<String> {
    let index = match keyspace {
        Keyspace::Meta | Keyspace::Devices | Keyspace::Edges | Keyspace::Times => return None,
        Keyspace::Revoked | Keyspace::Hidden => return None,
        Keyspace::Cursors => 2,
        Keyspace::Memberships | Keyspace::Subscriptions | Keyspace::DeadFloors => 1,
        _ => 0,
    };
    names.get(index).cloned()
}
