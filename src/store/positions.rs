//! Where in the log a position is, and reading records from there on.
//!
//! Sparse: the first commit of every segment, and about one commit in each MiB of what was written
//! or scanned in this life. A reader steps over commits by their headers from the nearest one.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::device::LogReader;
use super::log_format::{
    BLOCK_SIZE, COMMIT_HEADER_SIZE, Commit, CommitHeader, LogId, decode_commit, padded_size,
    peek_commit,
};
use crate::link::record::Record;
use crate::link::wire::{Reader, Wire};

/// Log bytes between two noted commits of one segment.
const NOTE_DISTANCE: u64 = 1024 * 1024;

/// Where a commit begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub segment: u64,
    pub offset: u64,
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading the log failed: {0}")]
    Device(#[from] io::Error),
    #[error("segment {segment} at offset {offset} does not hold the commit of position {lsn}")]
    Content { segment: u64, offset: u64, lsn: u64 },
}

/// A run of records as they lie in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub records: Vec<u8>,
    pub count: u32,
}

/// How much to read: at most `count_max` records, at most about `size_max` bytes but at least one
/// record, none at or after position `end_lsn`.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub first_lsn: u64,
    pub end_lsn: u64,
    pub count_max: u32,
    pub size_max: usize,
}

/// The map from positions to places.
#[derive(Clone, Debug, Default)]
pub struct PositionMap {
    log_id: LogId,
    places: BTreeMap<u64, Place>,
    last: Option<Place>,
}

impl PositionMap {
    pub fn new(log_id: LogId) -> PositionMap {
        PositionMap { log_id, ..PositionMap::default() }
    }

    /// The same places, of a log whose id is known by now.
    pub fn with_log_id(self, log_id: LogId) -> PositionMap {
        PositionMap { log_id, ..self }
    }

    pub fn log_id(&self) -> LogId {
        self.log_id
    }

    /// The commit that begins with `lsn` is at `place`. Kept if it starts a segment or is far
    /// enough from the last one kept. Called in the order of the log.
    pub fn note(&mut self, lsn: u64, place: Place) {
        let near = self.last.is_some_and(|last| {
            last.segment == place.segment && place.offset < last.offset + NOTE_DISTANCE
        });
        if !near || place.offset == BLOCK_SIZE as u64 {
            self.places.insert(lsn, place);
            self.last = Some(place);
        }
    }

    /// The lowest position that is noted, which is the first of the log.
    pub fn first_lsn(&self) -> Option<u64> {
        self.places.keys().next().copied()
    }

    /// Reads the records of `extent`; fewer if the log has no more.
    pub fn read(&self, reader: &mut impl LogReader, extent: Extent) -> Result<Run, ReadError> {
        let mut run = Run::default();
        let Some((&start_lsn, &start)) = self.places.range(..=extent.first_lsn).next_back() else {
            return Ok(run);
        };
        let (mut lsn, mut place) = (start_lsn, start);
        while lsn < extent.end_lsn && run.count < extent.count_max {
            place = self.places.get(&lsn).copied().unwrap_or(place);
            let Place { segment, offset } = place;
            let wrong = ReadError::Content { segment, offset, lsn };
            let Some((header, block)) = read_block(reader, place, lsn, self.log_id)? else {
                return Err(wrong);
            };
            if header.last_lsn() >= extent.first_lsn {
                let commit = read_commit(reader, place, &block)?.ok_or(wrong)?;
                if !take_records(&commit, extent, &mut run) {
                    return Ok(run);
                }
            }
            lsn = header.last_lsn() + 1;
            place.offset += header.size_on_disk();
        }
        Ok(run)
    }
}

/// The first block of the commit at `place`, if it is the one of `lsn`.
fn read_block(
    reader: &mut impl LogReader,
    place: Place,
    lsn: u64,
    log_id: LogId,
) -> io::Result<Option<(CommitHeader, Vec<u8>)>> {
    let mut block = vec![0; BLOCK_SIZE];
    reader.read(place.segment, place.offset, &mut block)?;
    let header = peek_commit(&block).ok();
    let fits = header.filter(|header| header.log_id == log_id && header.first_lsn == lsn);
    Ok(fits.map(|header| (header, block)))
}

/// The whole commit of which `block` is the first block; `None` if it is not intact.
pub fn read_commit(
    reader: &mut impl LogReader,
    place: Place,
    block: &[u8],
) -> io::Result<Option<Commit>> {
    let Ok(header) = peek_commit(block) else {
        return Ok(None);
    };
    let mut bytes = block.to_vec();
    bytes.resize(padded_size(header.payload_size as usize), 0);
    if bytes.len() > BLOCK_SIZE {
        let offset = place.offset + BLOCK_SIZE as u64;
        reader.read(place.segment, offset, &mut bytes[BLOCK_SIZE..])?;
    }
    Ok(decode_commit(&Bytes::from(bytes)).ok())
}

/// Where the records of a commit begin.
pub fn records_offset(place: Place) -> u64 {
    place.offset + COMMIT_HEADER_SIZE as u64
}

/// Appends what `extent` wants of this commit; false once it wants no more.
fn take_records(commit: &Commit, extent: Extent, run: &mut Run) -> bool {
    let mut reader = Reader::new(commit.records.clone());
    for lsn in commit.header.first_lsn..=commit.header.last_lsn() {
        let start = commit.records.len() - reader.remaining();
        if lsn >= extent.end_lsn || Record::read(&mut reader).is_err() {
            return false;
        }
        let bytes = &commit.records[start..commit.records.len() - reader.remaining()];
        if lsn < extent.first_lsn {
            continue;
        }
        let full = run.records.len() + bytes.len() > extent.size_max && run.count > 0;
        if full || run.count == extent.count_max {
            return false;
        }
        run.records.extend_from_slice(bytes);
        run.count += 1;
    }
    true
}
