//! Opening a log that was damaged: nothing that is not intact is handed on, nothing that is known
//! to have been durable is cut, and what one opening has found the next one finds again.

use bytes::Bytes;

use super::choices::Choices;
use crate::link::record::Record;
use crate::link::wire::Wire;
use crate::simulation::disk::SimDisk;
use crate::store::device::LogDevice;
use crate::store::index::MemoryIndex;
use crate::store::log::LogOptions;
use crate::store::log_format::{
    BLOCK_SIZE, COMMIT_HEADER_SIZE, Commit, CommitHeader, LogId, SegmentHeader, decode_commit,
    encode_commit, encode_segment_header, format_version,
};
use crate::store::reader::InlineIndex;
use crate::store::recovery::{Known, recover};
use crate::store::{Batch, open_on};

const BLOCK: u64 = BLOCK_SIZE as u64;
const SEGMENT_SIZE: u64 = 8 * BLOCK;
const SEGMENT_COUNT_MAX: u64 = 8;
const STEP_COUNT_MAX: usize = 64;
const LOG_ID: LogId = LogId { high: 7, low: 1 };

/// The input is a script: what a store writes, and what then happens to it.
pub fn recovery(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut past = Past::default();
    for _ in 0..STEP_COUNT_MAX {
        if choices.is_over() {
            break;
        }
        match choices.byte() % 16 {
            0..=5 => past.commit(&mut choices),
            6 | 7 => past.roll(),
            8 => past.forge(&mut choices),
            _ => past.damage(&mut choices),
        }
    }
    let applied_lsn = match past.is_forged {
        true => choices.number(),
        false => choices.below(past.next_lsn as usize) as u64,
    };
    past.check(Known { applied_lsn, log_id: (applied_lsn > 0).then_some(LOG_ID) });
}

/// A store that was, and its disk.
struct Past {
    disk: SimDisk,
    segment: u64,
    offset: u64,
    next_lsn: u64,
    previous_checksum: u32,
    is_damaged: bool,
    /// The disk holds what no store would write.
    is_forged: bool,
}

impl Default for Past {
    fn default() -> Past {
        Past {
            disk: SimDisk::new(1),
            segment: 0,
            offset: SEGMENT_SIZE,
            next_lsn: 1,
            previous_checksum: 0,
            is_damaged: false,
            is_forged: false,
        }
    }
}

impl Past {
    fn header(&self) -> CommitHeader {
        CommitHeader {
            log_id: LOG_ID,
            incarnation: 3,
            epoch: 1,
            first_lsn: self.next_lsn,
            known_durable: self.next_lsn - 1,
            count: 1,
            payload_size: 0,
            previous_checksum: self.previous_checksum,
            stands_for: 0,
        }
    }

    fn commit(&mut self, choices: &mut Choices) {
        let count = 1 + choices.below(3) as u32;
        let mut records = Vec::new();
        for _ in 0..count {
            let record = match choices.byte() % 4 {
                0 => Record::Edge { name: "x".repeat(4_000).as_str().into(), present: true },
                lsn => Record::FannedOut { lsn: lsn.into() },
            };
            record.write(&mut records);
        }
        let header = CommitHeader { count, payload_size: records.len() as u32, ..self.header() };
        if self.offset + header.size_on_disk() > SEGMENT_SIZE {
            self.roll();
        }
        if self.offset + header.size_on_disk() > SEGMENT_SIZE {
            return;
        }
        let mut bytes = Vec::new();
        self.previous_checksum = encode_commit(&header, &records, &mut bytes);
        self.disk.place(self.segment, self.offset, &bytes);
        self.offset += bytes.len() as u64;
        self.next_lsn += u64::from(count);
    }

    /// A segment is begun together with its first commit; one without was never used.
    fn roll(&mut self) {
        if self.segment == SEGMENT_COUNT_MAX || self.offset == BLOCK {
            return;
        }
        self.segment += 1;
        let header = SegmentHeader {
            log_id: LOG_ID,
            version: format_version(),
            previous_checksum: self.previous_checksum,
            number: self.segment,
            first_lsn: self.next_lsn,
            incarnation: 3,
        };
        let mut bytes = Vec::new();
        encode_segment_header(&header, &mut bytes);
        bytes.resize(SEGMENT_SIZE as usize, 0);
        self.disk.place(self.segment, 0, &bytes);
        self.offset = BLOCK;
    }

    /// An intact commit of this log that has no place in it.
    fn forge(&mut self, choices: &mut Choices) {
        let block = 1 + choices.below(7) as u64;
        let count = choices.number() as u32;
        let (first_lsn, known_durable) = (choices.number(), choices.number());
        let mut header = CommitHeader { count, first_lsn, known_durable, ..self.header() };
        header.stands_for = choices.byte().into();
        if choices.byte().is_multiple_of(2) {
            header.previous_checksum = 0;
        }
        let records = choices.bytes(8);
        header.payload_size = records.len() as u32;
        let mut bytes = Vec::new();
        encode_commit(&header, records, &mut bytes);
        let segment = 1 + choices.below(SEGMENT_COUNT_MAX as usize) as u64;
        self.disk.place(segment, block * BLOCK, &bytes);
        self.is_forged = true;
    }

    fn damage(&mut self, choices: &mut Choices) {
        let segment = 1 + choices.below(SEGMENT_COUNT_MAX as usize) as u64;
        let size = self.disk.content(segment).map_or(0, |content| content.len());
        if size == 0 {
            return;
        }
        self.is_damaged = true;
        let offset = choices.below(size) as u64;
        let block = offset - offset % BLOCK;
        match choices.byte() % 4 {
            0 => self.disk.corrupt(segment, offset),
            1 => self.disk.place(segment, block, &[0; BLOCK_SIZE]),
            2 => self.disk.truncate(segment, offset),
            _ => self.disk.lose(segment),
        }
    }

    fn check(mut self, known: Known) {
        let found = open(&mut self.disk, known);
        if !self.is_damaged && !self.is_forged {
            assert_eq!(found.as_ref().map(|found| found.next_lsn), Some(self.next_lsn));
        }
        let Some(found) = found else { return };
        self.is_intact(known, &found);
        if !self.is_forged {
            let durable = known_durable(&self.disk).max(known.applied_lsn);
            assert!(durable < found.next_lsn, "{durable} was durable");
        }
        self.opens_again();
    }

    /// Every batch lies where it is said to, whole, and they follow each other.
    fn is_intact(&mut self, known: Known, found: &Found) {
        let mut next_lsn = None;
        for batch in &found.batches {
            let start = batch.offset - COMMIT_HEADER_SIZE as u64;
            let content = self.disk.content(batch.segment).expect("read from there");
            let bytes = Bytes::from(content).slice(start as usize..);
            let commit = decode_commit(&bytes).expect("intact");
            assert_eq!(commit.records, batch.records);
            assert_eq!((commit.header.log_id, commit.header.first_lsn), (LOG_ID, batch.first_lsn));
            assert!(next_lsn.is_none_or(|next_lsn| next_lsn == batch.first_lsn));
            assert!(next_lsn.is_some() || batch.first_lsn <= known.applied_lsn.saturating_add(1));
            next_lsn = Some(batch.last_lsn() + 1);
        }
        assert!(next_lsn.is_none_or(|next_lsn| next_lsn == found.next_lsn));
    }

    /// A whole store opens on it twice, the second time on what the first one has left.
    fn opens_again(&mut self) {
        let first = self.life(2);
        assert!(first.is_none() || self.life(3) == first, "the next life finds the same");
    }

    /// The next position that a store finds which then dies; `None` if it refuses to start.
    fn life(&mut self, incarnation: u64) -> Option<u64> {
        let options =
            LogOptions { segment_size: SEGMENT_SIZE, incarnation, new_log_id: LogId::default() };
        let worker = |reader| Ok(InlineIndex::new(reader, 16));
        drop(open_on(self.disk.clone(), MemoryIndex::default(), options, || 0, worker).ok()?);
        self.disk.settle();
        let found = open(&mut self.disk, Known::default());
        Some(found.expect("what opened opens").next_lsn)
    }
}

struct Found {
    next_lsn: u64,
    batches: Vec<Batch>,
}

fn open(disk: &mut SimDisk, known: Known) -> Option<Found> {
    let segments = disk.segments().expect("a simulated disk lists its segments");
    let mut batches = Vec::new();
    let recovered = recover(disk, &segments, known, &mut |_, batch| {
        batches.push(batch);
        Ok(())
    });
    Some(Found { next_lsn: recovered.ok()?.next_lsn, batches })
}

/// The naive twin: the highest position that any intact commit on the disk knew to be durable. One
/// in a block that was cut off does not count: neither recovery nor repair looks into those.
fn known_durable(disk: &SimDisk) -> u64 {
    let mut durable = 0;
    for segment in disk.numbers() {
        let content = Bytes::from(disk.content(segment).expect("it is listed"));
        for start in (BLOCK_SIZE..content.len()).step_by(BLOCK_SIZE) {
            let commit = decode_commit(&content.slice(start..));
            let is_whole = |commit: &Commit| {
                start as u64 + commit.header.size_on_disk() <= content.len() as u64
            };
            if let Some(commit) = commit.ok().filter(is_whole) {
                durable = durable.max(commit.header.known_durable);
            }
        }
    }
    durable
}
