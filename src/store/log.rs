//! The log as it is written: one commit in flight, rolling from segment to segment.
//!
//! A segment is made ready while the one before it fills, so that rolling does not wait. After
//! recovery writing always starts in a new segment: what a dying process left in the old one is
//! never written over.

use bytes::Bytes;

use super::device::{DeviceEvent, LogDevice, LogReader, SegmentInfo};
use super::log_format::{
    BLOCK_SIZE, COMMIT_HEADER_SIZE, CommitHeader, LogId, SegmentHeader, encode_commit,
    encode_segment_header, format_version, padded_size,
};
use super::positions::{Extent, Place, PositionMap, ReadError, records_offset};
use super::recovery::Recovered;
use super::{Batch, StoreFault};
use crate::clock::Now;
use crate::limits::LINK_ENTRY_SIZE_MAX;

/// How often a segment that found no space is tried again.
const SPACE_RETRY_US: u64 = 1_000_000;

/// Bytes of the first segment of each life, unless all are smaller: it is made while appends wait.
const FIRST_SEGMENT_SIZE: u64 = 16 * 1024 * 1024;

/// Bytes of the first write of a segment: its header and a batch that a link can carry.
const FIRST_WRITE_SIZE_MAX: usize = LINK_ENTRY_SIZE_MAX + 2 * BLOCK_SIZE;

// A batch that a link can carry fits every segment.
const _: () = assert!(FIRST_SEGMENT_SIZE as usize > FIRST_WRITE_SIZE_MAX);

/// What a log is opened with.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes per segment, whole blocks.
    pub segment_size: u64,
    /// Random, new at every start of the process.
    pub incarnation: u64,
    /// Random; used if there is no log yet.
    pub new_log_id: LogId,
}

/// One commit to be written.
#[derive(Clone, Debug)]
pub struct Append {
    pub epoch: u64,
    pub count: u32,
    pub records: Bytes,
}

/// The log of one store. Not durable until [`Log::poll`] says so.
pub struct Log<D: LogDevice> {
    device: D,
    reader: D::Reader,
    options: LogOptions,
    positions: PositionMap,
    next_lsn: u64,
    previous_checksum: u32,
    active: Option<Active>,
    next: Preparation,
    writing: Option<Writing>,
    /// Times that a segment found no space, since the start.
    no_space_count: u64,
    write_us: u64,
}

/// The segment that commits go to.
#[derive(Clone, Copy, Debug)]
struct Active {
    /// Where the next commit goes.
    place: Place,
    size: u64,
}

/// The segment after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Preparation {
    segment: u64,
    size: u64,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Creating,
    Ready,
    NoSpace { retry_us: u64 },
}

struct Writing {
    batch: Batch,
    place: Place,
    /// Where the device was told to write: the place, or the segment's header before it.
    write_offset: u64,
    size: u64,
    checksum: u32,
}

impl<D: LogDevice> Log<D> {
    /// Goes on after what was recovered. `device` had made that durable ([`LogDevice::flush`]).
    pub fn new(mut device: D, recovered: Recovered, options: LogOptions) -> Log<D> {
        let log_id = recovered.log_id.unwrap_or(options.new_log_id);
        let mut reader = device.reader();
        let spare = spare(&mut reader, &recovered, options);
        let positions = recovered.positions.with_log_id(log_id);
        for unused in &recovered.unused_segments {
            if spare.is_none_or(|spare| spare.number != unused.number) {
                device.remove(unused.number);
            }
        }
        let (segment, size) = match spare {
            Some(spare) => (spare.number, spare.size),
            None => (recovered.segment_max + 1, first_size(options)),
        };
        match spare {
            Some(_) => device.reopen(segment, size),
            None => device.create(segment, size),
        }
        Log {
            reader,
            device,
            options,
            positions,
            next_lsn: recovered.next_lsn,
            previous_checksum: recovered.previous_checksum,
            active: None,
            next: Preparation { segment, size, progress: Progress::Creating },
            writing: None,
            no_space_count: 0,
            write_us: 0,
        }
    }

    /// Where the next record goes. Everything below it is durable, unless a commit is in flight.
    pub fn next_lsn(&self) -> u64 {
        self.next_lsn
    }

    pub fn log_id(&self) -> LogId {
        self.positions.log_id()
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    pub fn no_space_count(&self) -> u64 {
        self.no_space_count
    }

    /// How long the disk took for the last commit.
    pub fn write_us(&self) -> u64 {
        self.write_us
    }

    /// Bytes of records that fit a commit.
    pub fn payload_size_max(&self) -> usize {
        first_size(self.options) as usize - BLOCK_SIZE - COMMIT_HEADER_SIZE
    }

    /// Starts writing, unless a commit is in flight or there is no segment for it yet: then false.
    /// `append` must be within [`Log::payload_size_max`] and not empty.
    pub fn append(&mut self, append: &Append) -> bool {
        let size = padded_size(append.records.len()) as u64;
        if self.writing.is_some() || !self.make_room(size) {
            return false;
        }
        let Some(Active { place, .. }) = self.active else {
            return false;
        };
        let mut data = Vec::with_capacity(size as usize + BLOCK_SIZE);
        let starts_segment = place.offset == BLOCK_SIZE as u64;
        if starts_segment {
            encode_segment_header(&self.segment_header(place.segment), &mut data);
        }
        let header = self.commit_header(append);
        let checksum = encode_commit(&header, &append.records, &mut data);
        let write_offset = if starts_segment { 0 } else { place.offset };
        self.device.write(place.segment, write_offset, data);
        let batch = Batch {
            first_lsn: self.next_lsn,
            count: append.count,
            segment: place.segment,
            offset: records_offset(place),
            records: append.records.clone(),
        };
        self.writing = Some(Writing { batch, place, write_offset, size, checksum });
        true
    }

    /// Takes what the device has done; returns the batch that became durable, if one did.
    pub fn poll(&mut self, now: Now) -> Result<Option<Batch>, StoreFault> {
        self.retry_creation(now);
        while let Some(event) = self.device.poll()? {
            match event {
                DeviceEvent::Created { segment } => {
                    if self.next.segment == segment {
                        self.next.progress = Progress::Ready;
                    }
                }
                DeviceEvent::NoSpace { .. } => {
                    let retry_us = now.monotonic_us + SPACE_RETRY_US;
                    self.next.progress = Progress::NoSpace { retry_us };
                    self.no_space_count += 1;
                }
                DeviceEvent::Written { segment, offset, took_us } => {
                    self.write_us = took_us;
                    if let Some(batch) = self.written(segment, offset) {
                        return Ok(Some(batch));
                    }
                }
                DeviceEvent::Removed { .. } => {}
            }
        }
        Ok(None)
    }

    /// Whether `records` are what the log durably holds from `first_lsn` on.
    pub fn holds(&mut self, first_lsn: u64, count: u32, records: &[u8]) -> Result<bool, ReadError> {
        let end_lsn = self.next_lsn;
        let extent = Extent { first_lsn, end_lsn, count_max: count, size_max: usize::MAX };
        let run = self.positions.read(&mut self.reader, extent)?;
        Ok(run.count == count && run.records == records)
    }

    /// When [`Log::poll`] has something to do without the device.
    pub fn deadline_us(&self) -> Option<u64> {
        match self.next.progress {
            Progress::NoSpace { retry_us } => Some(retry_us),
            Progress::Creating | Progress::Ready => None,
        }
    }

    fn written(&mut self, segment: u64, offset: u64) -> Option<Batch> {
        let writing = self.writing.take_if(|writing| {
            writing.place.segment == segment && writing.write_offset == offset
        })?;
        self.positions.note(writing.batch.first_lsn, writing.place);
        self.next_lsn = writing.batch.last_lsn() + 1;
        self.previous_checksum = writing.checksum;
        if let Some(active) = &mut self.active {
            active.place.offset += writing.size;
        }
        Some(writing.batch)
    }

    /// Rolls if the active segment is too full; false while there is no next one.
    fn make_room(&mut self, size: u64) -> bool {
        let fits = |active: Active| active.place.offset + size <= active.size;
        if self.active.is_some_and(fits) {
            return true;
        }
        let Preparation { segment, size, progress: Progress::Ready } = self.next else {
            return false;
        };
        let offset = BLOCK_SIZE as u64;
        self.active = Some(Active { place: Place { segment, offset }, size });
        self.prepare(segment + 1, self.options.segment_size);
        true
    }

    fn retry_creation(&mut self, now: Now) {
        let Preparation { segment, size, progress } = self.next;
        if let Progress::NoSpace { retry_us } = progress
            && now.monotonic_us >= retry_us
        {
            self.prepare(segment, size);
        }
    }

    fn prepare(&mut self, segment: u64, size: u64) {
        self.device.create(segment, size);
        self.next = Preparation { segment, size, progress: Progress::Creating };
    }

    fn segment_header(&self, number: u64) -> SegmentHeader {
        SegmentHeader {
            log_id: self.positions.log_id(),
            version: format_version(),
            previous_checksum: self.previous_checksum,
            number,
            first_lsn: self.next_lsn,
            incarnation: self.options.incarnation,
        }
    }

    fn commit_header(&self, append: &Append) -> CommitHeader {
        CommitHeader {
            log_id: self.positions.log_id(),
            incarnation: self.options.incarnation,
            epoch: append.epoch,
            first_lsn: self.next_lsn,
            known_durable: self.next_lsn - 1,
            count: append.count,
            payload_size: append.records.len() as u32,
            previous_checksum: self.previous_checksum,
            stands_for: 0,
        }
    }
}

/// The segment that a predecessor prepared last, if it is as good as a new one. At most its first
/// write was ever under way in it: if those blocks are zeros, all of it is.
fn spare(
    reader: &mut impl LogReader,
    recovered: &Recovered,
    options: LogOptions,
) -> Option<SegmentInfo> {
    let last = recovered.unused_segments.iter().find(|segment| {
        let size = first_size(options)..=options.segment_size;
        segment.number == recovered.segment_max && size.contains(&segment.size)
    })?;
    let mut blocks = vec![0; (last.size as usize).min(FIRST_WRITE_SIZE_MAX)];
    let read = reader.read(last.number, 0, &mut blocks).is_ok();
    (read && blocks.iter().all(|&byte| byte == 0)).then_some(*last)
}

fn first_size(options: LogOptions) -> u64 {
    options.segment_size.min(FIRST_SEGMENT_SIZE)
}
