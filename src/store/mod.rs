//! The store: keeps the commit log, which is the truth, and the index derived from it.
//!
//! It never decides order and never knows a session. Records come in batches from a sequencer,
//! become durable in the log (`log`, `recovery`, `log_format` over `device`), are then applied to
//! the index (`rows` over `index`) by a worker (`reader`) that also answers every read, and `core`
//! ties them to the messages of the link.
//!
//! The invariant that everything here serves: what was answered `Durable` is read back after any
//! crash, at its position, byte for byte; or the store refuses to start and says where it is
//! broken.

pub mod audit;
pub mod core;
mod dead_letters;
pub mod device;
pub mod directory;
pub mod fjall_index;
pub mod index;
pub mod index_thread;
pub mod ledger;
pub mod log;
pub mod log_format;
pub mod metrics;
pub mod options;
pub mod positions;
pub mod process;
mod published;
mod queries;
pub mod reader;
pub mod recovery;
pub mod repair;
pub mod retention;
pub mod rows;
pub mod uring_device;
mod user_rows;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use bytes::Bytes;

use self::core::Opened;
pub use self::core::{Problem, Store};
use self::device::LogDevice;
use self::directory::Directory;
use self::fjall_index::{FjallIndex, Views};
use self::index::Index;
use self::index_thread::ThreadedIndex;
use self::log::{Log, LogOptions};
use self::log_format::{BLOCK_SIZE, LogId};
use self::reader::{IndexReader, IndexWorker};
use self::uring_device::UringDevice;
use crate::clock::Now;
use crate::sys::Waker;
pub use process::run;

/// A run of records that is durable in the log, on its way to the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub first_lsn: u64,
    pub count: u32,
    /// Where the bytes of `records` begin.
    pub segment: u64,
    pub offset: u64,
    pub records: Bytes,
}

impl Batch {
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.count) - 1
    }
}

/// Why the store cannot start or cannot go on: the process exits with it.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    #[error(transparent)]
    Device(#[from] device::DeviceFault),
    #[error(
        "the log is corrupt: segment {segment} at offset {offset} should hold the commit of \
         position {expected_lsn}, and position {known_durable} is known to have been durable; \
         restore the segment from a copy, or see what `aldis repair` would do; nothing was changed"
    )]
    Corrupt { segment: u64, offset: u64, expected_lsn: u64, known_durable: u64 },
    #[error(
        "segment {segment}, the first of the log, begins at position {first_lsn}, but the index \
         has applied only {applied_lsn}: the segments before it are missing; restore them from a \
         copy, or see what `aldis repair` would do; nothing was changed"
    )]
    BeginningMissing { segment: u64, first_lsn: u64, applied_lsn: u64 },
    #[error(
        "durable data is lost: peer {peer:?} has seen position {seen} durable, this log ends at \
         {end}"
    )]
    Lost { peer: String, seen: u64, end: u64 },
    #[error("the index failed: {0}")]
    Index(#[from] index::IndexFault),
    #[error("a durable record of position {lsn} cannot be decoded: {reason}")]
    Record { lsn: u64, reason: crate::link::wire::Malformed },
    #[error("{path} is in use by another store process (waited {waited_s} s)")]
    Locked { path: String, waited_s: u64 },
    #[error("cannot {operation} {path}: {source}")]
    Directory { operation: &'static str, path: String, source: std::io::Error },
    #[error("thread {0} ended unexpectedly")]
    ThreadEnded(&'static str),
    #[error("a segment size of {0} bytes cannot be used; it is at least {1} and whole blocks")]
    SegmentSize(u64, u64),
}

/// What the store of a directory is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of log and index; made if it is missing.
    pub directory: PathBuf,
    /// Bytes per log segment, whole blocks.
    pub segment_size: u64,
    /// Random, new at every start of the process.
    pub incarnation: u64,
    /// 16 random bytes; they name the log if there is none yet.
    pub new_log_id: [u8; 16],
}

/// The store of the real process.
pub type DiskStore = Store<UringDevice, ThreadedIndex>;

/// Opens the store of a directory. Blocks until the log is read; waits up to 10 s for a predecessor
/// that is dying. The host watches `waker.raw()` and calls [`Store::poll`] when it is woken.
pub fn open(options: &Options, waker: &Waker) -> Result<DiskStore, StoreFault> {
    open_with_views(options, waker).map(|(store, _)| store)
}

/// As [`open`], with what makes views of its index.
pub fn open_with_views(options: &Options, waker: &Waker) -> Result<(DiskStore, Views), StoreFault> {
    let directory = Directory::open(&options.directory)?;
    let log_path = directory.log_path();
    let index = FjallIndex::open(&directory.index_path())?;
    let views = index.views();
    let device = UringDevice::open(directory, waker.clone())
        .map_err(|source| directory::fault("open the log in", &log_path, source))?;
    let [high, low] = [0, 8].map(|start| {
        let half = options.new_log_id[start..start + 8].try_into();
        u64::from_le_bytes(half.expect("sliced with that size"))
    });
    let log_options = LogOptions {
        segment_size: options.segment_size,
        incarnation: options.incarnation,
        new_log_id: LogId { high, low },
    };
    let clock_us = || Now::read().monotonic_us;
    let store = open_on(device, index, log_options, clock_us, |reader| {
        ThreadedIndex::start(reader, waker.clone())
            .map_err(|source| directory::fault("start the index in", &log_path, source))
    });
    Ok((store?, views))
}

/// Opens the log on `device` under `index`: makes durable what is there, reads what the index
/// lacks, and goes on in a new segment. `worker` puts the index where it will run. `clock_us` is
/// read before and after.
pub fn open_on<D, I, W>(
    mut device: D,
    index: I,
    options: LogOptions,
    clock_us: impl Fn() -> u64,
    worker: impl FnOnce(IndexReader<I, D::Reader>) -> Result<W, StoreFault>,
) -> Result<Store<D, W>, StoreFault>
where
    D: LogDevice,
    I: Index,
    W: IndexWorker,
{
    let started_us = clock_us();
    check_segment_size(options.segment_size)?;
    let mut applier = IndexReader::open(index, device.reader())?;
    let segments = device.segments()?;
    // Before anything is read, or the index could come to know what a power cut then takes back.
    let numbers: Vec<_> = segments.iter().map(|segment| segment.number).collect();
    device.flush(&numbers)?;
    let known = applier.known();
    let mut records_replayed = 0;
    let mut log_reader = device.reader();
    let recovered = recovery::recover(&mut log_reader, &segments, known, &mut |header, batch| {
        records_replayed += u64::from(batch.count);
        applier.apply(header.log_id, &[batch])
    })?;
    let epoch = recovered.epoch.max(applier.state().epoch);
    let positions = recovered.positions.clone();
    let log = Log::new(device, recovered, options);
    applier.set_log(log.log_id(), positions.with_log_id(log.log_id()));
    applier.chain_the_rest()?;
    let recovery_us = clock_us().saturating_sub(started_us);
    let incarnation = options.incarnation;
    let opened = Opened { epoch, incarnation, recovery_us, records_replayed };
    Ok(Store::new(log, worker(applier)?, opened))
}

fn check_segment_size(size: u64) -> Result<(), StoreFault> {
    // A header, and one commit that holds at least a small batch.
    let size_min = 4 * BLOCK_SIZE as u64;
    if size < size_min || !size.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(StoreFault::SegmentSize(size, size_min));
    }
    Ok(())
}
