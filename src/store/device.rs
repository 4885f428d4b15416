//! What the log needs of a disk, as a trait: the real one is `uring_device`, the twin that tears,
//! drops and reorders is `simulation::disk`.
//!
//! Requests return at once; their effects come out of [`LogDevice::poll`]. A `Written` event means
//! that the data would survive a power cut.

use std::fmt;
use std::io;

/// A segment file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub number: u64,
    /// Bytes.
    pub size: u64,
}

/// What became of a request.
#[derive(Debug)]
pub enum DeviceEvent {
    /// The segment is there, zeroed and synced, and so is its name in its directory.
    Created { segment: u64 },
    /// There was no space; nothing of it is left.
    NoSpace { segment: u64 },
    /// The write is durable. `took_us`: the disk's part of the time.
    Written { segment: u64, offset: u64, took_us: u64 },
    /// The segment is gone.
    Removed { segment: u64 },
}

/// The disk failed. Nothing may be assumed of the page cache after it: the process exits and the
/// next one reads what really is there.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of log segment {segment} at offset {offset} failed: {source}")]
pub struct DeviceFault {
    pub operation: Operation,
    pub segment: u64,
    pub offset: u64,
    pub source: io::Error,
}

/// What was being done when the disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    List,
    Create,
    Write,
    Sync,
    Read,
    Remove,
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Operation::List => "listing",
            Operation::Create => "creation",
            Operation::Write => "write",
            Operation::Sync => "sync",
            Operation::Read => "reading",
            Operation::Remove => "removal",
        })
    }
}

/// A directory of segments, each written by one request at a time.
pub trait LogDevice {
    type Reader: LogReader;

    /// Makes a segment of `size` zero bytes, ready for durable writes.
    fn create(&mut self, segment: u64, size: u64);

    /// Makes a segment ready that is there already and holds nothing but zeros. Answered by
    /// `Created`.
    fn reopen(&mut self, segment: u64, size: u64);

    /// Writes whole blocks at a block's start.
    fn write(&mut self, segment: u64, offset: u64, data: Vec<u8>);

    /// Removes a segment that is not being written.
    fn remove(&mut self, segment: u64);

    /// The next thing that happened, if any did.
    fn poll(&mut self) -> Result<Option<DeviceEvent>, DeviceFault>;

    /// The segments that are there, by number. Blocks; for opening only.
    fn segments(&mut self) -> Result<Vec<SegmentInfo>, DeviceFault>;

    /// Makes what can be read of these segments durable. Blocks; for opening only.
    fn flush(&mut self, segments: &[u64]) -> Result<(), DeviceFault>;

    /// A way of reading segments that another thread may own.
    fn reader(&self) -> Self::Reader;
}

/// Reads segments; blocks while it does.
pub trait LogReader {
    /// Fills `buffer` with the bytes from `offset` on; an error if the segment ends before.
    fn read(&mut self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}
