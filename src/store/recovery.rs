//! Opening a log: finds where it ends, and refuses when durable commits before that end are broken.
//!
//! Reading starts in the segment of the first position that the index lacks, or up to
//! [`VERIFIED_SIZE`] before it, so its time does not depend on the size of the log. What is there
//! has been made durable before. The first commit that
//! is missing or broken is the end, unless a position at or above it is known to have been durable:
//! by the header of a later segment or commit, or because the index has applied it. Then the log is
//! corrupt.

use std::io;

use bytes::Bytes;

use super::device::{DeviceFault, LogReader, Operation, SegmentInfo};
use super::log_format::{
    BLOCK_SIZE, Commit, CommitHeader, LogId, SegmentHeader, decode_commit, decode_segment_header,
    padded_size, peek_commit,
};
use super::positions::{Place, PositionMap, read_commit, records_offset};
use super::{Batch, StoreFault};
use crate::limits::LINK_ENTRY_SIZE_MAX;

/// Bytes on disk of the largest commit; as many zeros are the end of what was written.
const COMMIT_SIZE_MAX: usize = padded_size(LINK_ENTRY_SIZE_MAX);
/// Bytes per read when a segment is searched for commits that should not be there.
const SEARCH_SIZE: usize = 1024 * 1024;

/// Bytes of segments below the index's position that are read again at every start: they need no
/// replay, but damage that happened while everything was stopped is better found now than by the
/// first client that asks for its history.
const VERIFIED_SIZE: u64 = 256 * 1024 * 1024;

/// What is known of the log before it is read, from the index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Highest position applied, so durable before.
    pub applied_lsn: u64,
    /// `None`: the index is new.
    pub log_id: Option<LogId>,
}

/// What was found.
#[derive(Debug)]
pub struct Recovered {
    /// `None`: there is no log yet.
    pub log_id: Option<LogId>,
    pub next_lsn: u64,
    /// Checksum of the last commit; 0: none.
    pub previous_checksum: u32,
    /// The highest epoch in the headers that were read.
    pub epoch: u64,
    /// The highest number that a segment file has; new ones are numbered above it.
    pub segment_max: u64,
    pub positions: PositionMap,
    /// Segments without a header of this log: prepared and never used.
    pub unused_segments: Vec<SegmentInfo>,
}

/// Reads the log and hands every commit above the index to `replay`, in order.
pub fn recover<R: LogReader>(
    reader: &mut R,
    segments: &[SegmentInfo],
    known: Known,
    replay: &mut dyn FnMut(&CommitHeader, Batch) -> Result<(), StoreFault>,
) -> Result<Recovered, StoreFault> {
    let survey = survey(reader, segments, known)?;
    let mut scan = Scan::new(reader, &survey, known, replay);
    scan.refuse_broken_headers(&survey)?;
    if let Some(start) = survey.start(known)? {
        scan.run(&survey, start)?;
    } else {
        scan.refuse_if_durable(&survey, None)?;
    }
    let mut recovered = scan.recovered;
    recovered.log_id = survey.log_id;
    recovered.segment_max = segments.iter().map(|segment| segment.number).max().unwrap_or(0);
    recovered.unused_segments = survey.unused;
    Ok(recovered)
}

/// All segments, sorted into those that belong to this log and the others.
struct Survey {
    log_id: Option<LogId>,
    used: Vec<(SegmentInfo, SegmentHeader)>,
    unused: Vec<SegmentInfo>,
}

impl Survey {
    /// Index of the segment to begin in: that with the first position that the index lacks, or one
    /// before it.
    fn start(&self, known: Known) -> Result<Option<usize>, StoreFault> {
        let Some((segment, first)) = self.used.first() else {
            return Ok(None);
        };
        let next = known.applied_lsn.saturating_add(1);
        let start = self.used.iter().rposition(|(_, header)| header.first_lsn <= next);
        let first_lsn = first.first_lsn;
        let applied_lsn = known.applied_lsn;
        let segment = segment.number;
        let missing = StoreFault::BeginningMissing { segment, first_lsn, applied_lsn };
        let start = start.ok_or(missing)?;
        Ok(Some(self.verified_from(start)))
    }

    fn verified_from(&self, mut start: usize) -> usize {
        let mut left = VERIFIED_SIZE;
        while start > 0
            && let Some(rest) = left.checked_sub(self.used[start - 1].0.size)
        {
            left = rest;
            start -= 1;
        }
        start
    }
}

fn survey<R: LogReader>(
    reader: &mut R,
    segments: &[SegmentInfo],
    known: Known,
) -> Result<Survey, StoreFault> {
    let mut survey = Survey { log_id: known.log_id, used: Vec::new(), unused: Vec::new() };
    let mut block = vec![0; BLOCK_SIZE];
    for &segment in segments {
        let readable = segment.size >= BLOCK_SIZE as u64;
        if readable {
            read(reader, Place { segment: segment.number, offset: 0 }, &mut block)?;
        }
        let header = decode_segment_header(&block).ok().filter(|header| {
            let first_lsn_min = survey.used.last().map_or(1, |(_, last)| last.first_lsn);
            readable
                && header.number == segment.number
                && header.first_lsn >= first_lsn_min
                && survey.log_id.is_none_or(|id| id == header.log_id)
        });
        match header {
            Some(header) => {
                survey.log_id = Some(header.log_id);
                survey.used.push((segment, header));
            }
            None => survey.unused.push(segment),
        }
    }
    Ok(survey)
}

struct Scan<'a, R> {
    reader: &'a mut R,
    known: Known,
    replay: &'a mut dyn FnMut(&CommitHeader, Batch) -> Result<(), StoreFault>,
    recovered: Recovered,
}

impl<'a, R: LogReader> Scan<'a, R> {
    fn new(
        reader: &'a mut R,
        survey: &Survey,
        known: Known,
        replay: &'a mut dyn FnMut(&CommitHeader, Batch) -> Result<(), StoreFault>,
    ) -> Self {
        let mut positions = PositionMap::new(survey.log_id.unwrap_or_default());
        for (segment, header) in &survey.used {
            let place = Place { segment: segment.number, offset: BLOCK_SIZE as u64 };
            positions.note(header.first_lsn, place);
        }
        let recovered = Recovered {
            log_id: None,
            next_lsn: 1,
            previous_checksum: 0,
            epoch: 0,
            segment_max: 0,
            positions,
            unused_segments: Vec::new(),
        };
        Scan { reader, known, replay, recovered }
    }

    fn run(&mut self, survey: &Survey, start: usize) -> Result<(), StoreFault> {
        let header = survey.used[start].1;
        self.recovered.next_lsn = header.first_lsn;
        self.recovered.previous_checksum = header.previous_checksum;
        for index in start..survey.used.len() {
            let (segment, header) = survey.used[index];
            let successor = survey.used.get(index + 1).map(|(_, header)| header.first_lsn);
            if header.previous_checksum != self.recovered.previous_checksum {
                let place = Place { segment: segment.number, offset: 0 };
                return Err(self.corrupt(place, header.first_lsn));
            }
            let end = self.scan_segment(segment, successor)?;
            match successor {
                Some(first_lsn) if first_lsn != self.recovered.next_lsn => {
                    return Err(self.corrupt(end, first_lsn - 1));
                }
                Some(_) => {}
                None => self.refuse_if_durable(survey, Some((segment, end)))?,
            }
        }
        Ok(())
    }

    /// Follows the chain from the segment's start; returns the place after its last good commit.
    fn scan_segment(
        &mut self,
        segment: SegmentInfo,
        successor: Option<u64>,
    ) -> Result<Place, StoreFault> {
        let mut place = Place { segment: segment.number, offset: BLOCK_SIZE as u64 };
        // What lies beyond the successor's first position was cut when the successor was begun.
        while successor != Some(self.recovered.next_lsn) {
            let Some(commit) = self.commit_at(place, segment.size)? else {
                break;
            };
            let size = commit.header.size_on_disk();
            self.accept(place, commit)?;
            place.offset += size;
        }
        Ok(place)
    }

    /// The commit at `place`, if it is intact and the next one of this log.
    fn commit_at(&mut self, place: Place, end: u64) -> Result<Option<Commit>, StoreFault> {
        if place.offset + BLOCK_SIZE as u64 > end {
            return Ok(None);
        }
        let mut block = vec![0; BLOCK_SIZE];
        read(self.reader, place, &mut block)?;
        let fits =
            peek_commit(&block).is_ok_and(|header| place.offset + header.size_on_disk() <= end);
        if !fits {
            return Ok(None);
        }
        let commit =
            read_commit(self.reader, place, &block).map_err(|source| read_fault(place, source))?;
        Ok(commit.filter(|commit| {
            commit.header.log_id == self.recovered.positions.log_id()
                && commit.header.first_lsn == self.recovered.next_lsn
                && commit.header.previous_checksum == self.recovered.previous_checksum
        }))
    }

    fn accept(&mut self, place: Place, commit: Commit) -> Result<(), StoreFault> {
        let header = commit.header;
        let recovered = &mut self.recovered;
        recovered.positions.note(header.first_lsn, place);
        recovered.next_lsn = header.last_lsn() + 1;
        recovered.previous_checksum = commit.checksum;
        recovered.epoch = recovered.epoch.max(header.epoch);
        if header.last_lsn() <= self.known.applied_lsn {
            return Ok(());
        }
        let batch = Batch {
            first_lsn: header.first_lsn,
            count: header.count,
            segment: place.segment,
            offset: records_offset(place),
            records: commit.records,
        };
        (self.replay)(&header, batch)
    }

    /// The log ends here, unless something says that the next position was durable.
    fn refuse_if_durable(
        &mut self,
        survey: &Survey,
        end: Option<(SegmentInfo, Place)>,
    ) -> Result<(), StoreFault> {
        let mut worst = self.known.applied_lsn;
        let mut place = end.map_or(Place { segment: 1, offset: 0 }, |(_, place)| place);
        if let Some((segment, end)) = end {
            worst = worst.max(self.durable_by(survey, segment, end.offset + BLOCK_SIZE as u64)?);
        }
        for &segment in &survey.unused {
            // What an unused segment shows can only have been durable with its header intact.
            let found = self.durable_by(survey, segment, BLOCK_SIZE as u64)?;
            if found > worst {
                worst = found;
                place = Place { segment: segment.number, offset: 0 };
            }
        }
        if worst >= self.recovered.next_lsn { Err(self.corrupt(place, worst)) } else { Ok(()) }
    }

    /// A segment whose header is broken must not pass for one that was never used, or it would be
    /// removed: what it holds below the next segment's first position was durable.
    fn refuse_broken_headers(&mut self, survey: &Survey) -> Result<(), StoreFault> {
        for &segment in &survey.unused {
            let mut later = survey.used.iter();
            let Some((_, successor)) = later.find(|(used, _)| used.number > segment.number) else {
                continue;
            };
            let mut lost = None;
            self.search(survey, segment, BLOCK_SIZE as u64, &mut |header| {
                if header.last_lsn() < successor.first_lsn {
                    lost.get_or_insert(header.first_lsn);
                }
            })?;
            if let Some(expected_lsn) = lost {
                return Err(StoreFault::Corrupt {
                    segment: segment.number,
                    offset: 0,
                    expected_lsn,
                    known_durable: successor.first_lsn - 1,
                });
            }
        }
        Ok(())
    }

    /// The highest position that an intact commit of this log from `offset` on knew to be durable.
    fn durable_by(
        &mut self,
        survey: &Survey,
        segment: SegmentInfo,
        offset: u64,
    ) -> Result<u64, StoreFault> {
        let mut highest = 0;
        self.search(survey, segment, offset, &mut |header| {
            highest = highest.max(header.known_durable);
        })?;
        Ok(highest)
    }

    /// Visits the intact commits of this log that begin at any block from `offset` on, up to more
    /// zeros than one commit can be long: a segment is zeros until it is written, from its start.
    fn search(
        &mut self,
        survey: &Survey,
        segment: SegmentInfo,
        offset: u64,
        visit: &mut dyn FnMut(&CommitHeader),
    ) -> Result<(), StoreFault> {
        let mut place = Place { segment: segment.number, offset };
        let mut window = vec![0; SEARCH_SIZE];
        let mut zero_size = 0;
        while zero_size < COMMIT_SIZE_MAX && place.offset + BLOCK_SIZE as u64 <= segment.size {
            let size = ((segment.size - place.offset) as usize).min(SEARCH_SIZE);
            let size = size - size % BLOCK_SIZE;
            read(self.reader, place, &mut window[..size])?;
            for block in (0..size).step_by(BLOCK_SIZE) {
                let offset = place.offset + block as u64;
                let at = Place { offset, ..place };
                let bytes = &window[block..][..BLOCK_SIZE];
                if bytes == [0; BLOCK_SIZE] {
                    zero_size += BLOCK_SIZE;
                    continue;
                }
                zero_size = 0;
                if let Some(header) = self.intact_commit(survey, at, segment.size, bytes)? {
                    visit(&header);
                }
            }
            place.offset += size as u64;
        }
        Ok(())
    }

    /// The commit of this log that begins with this block, if one does.
    fn intact_commit(
        &mut self,
        survey: &Survey,
        place: Place,
        end: u64,
        block: &[u8],
    ) -> Result<Option<CommitHeader>, StoreFault> {
        let Ok(header) = peek_commit(block) else {
            return Ok(None);
        };
        let size = padded_size(header.payload_size as usize);
        let ours = survey.log_id.is_none_or(|id| id == header.log_id);
        if !ours || place.offset + size as u64 > end {
            return Ok(None);
        }
        let mut bytes = vec![0; size];
        read(self.reader, place, &mut bytes)?;
        Ok(decode_commit(&Bytes::from(bytes)).ok().map(|commit| commit.header))
    }

    fn corrupt(&self, place: Place, known_durable: u64) -> StoreFault {
        StoreFault::Corrupt {
            segment: place.segment,
            offset: place.offset,
            expected_lsn: self.recovered.next_lsn,
            known_durable,
        }
    }
}

fn read(reader: &mut impl LogReader, place: Place, buffer: &mut [u8]) -> Result<(), StoreFault> {
    reader.read(place.segment, place.offset, buffer).map_err(|source| read_fault(place, source))
}

fn read_fault(place: Place, source: io::Error) -> StoreFault {
    let Place { segment, offset } = place;
    StoreFault::Device(DeviceFault { operation: Operation::Read, segment, offset, source })
}
