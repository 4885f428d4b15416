//! The byte layout of the log: segments of 4,096-byte blocks, one header block, then commits.
//!
//! A commit starts on a fresh block, is padded with zeros to the end of its last block, and is
//! never rewritten. Everything is little endian (`link::wire`). What tells a commit that belongs at
//! a place from an older one that a recycled file still holds, or from one that was torn by a power
//! cut: checksum, log id, position, and the checksum of the commit before it.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use crate::link::wire::{Malformed, Wire, wire_struct};

/// Unit of every write; at least the logical block size of any disk in use.
pub const BLOCK_SIZE: usize = 4096;
/// Bytes of a commit before its records.
pub const COMMIT_HEADER_SIZE: usize = 72;

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"ASEG");
const COMMIT_MAGIC: u32 = u32::from_le_bytes(*b"ACOM");
const FORMAT_VERSION: u32 = 1;
/// Magic and checksum themselves, which no checksum covers.
const UNCHECKED_SIZE: usize = 8;
/// Bytes of a segment's first block that say something.
pub const SEGMENT_HEADER_SIZE: usize = 56;

wire_struct! {
    /// 16 random bytes, drawn when a log is made: no other log's commits pass for this one's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LogId {
        pub high: u64,
        pub low: u64,
    }
}

wire_struct! {
    /// The first block of a segment, written together with its first commit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SegmentHeader {
        pub log_id: LogId,
        pub version: u32,
        /// Checksum of the last commit before this segment; 0: there is none.
        pub previous_checksum: u32,
        /// The segment's number, as its file is named: a recycled file still says the old one.
        pub number: u64,
        /// Position of the first record in it. Whatever an earlier segment holds from here on was
        /// never durable and was cut.
        pub first_lsn: u64,
        /// The life of the store that wrote it.
        pub incarnation: u64,
    }
}

wire_struct! {
    /// What precedes the records of a commit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommitHeader {
        pub log_id: LogId,
        /// The life of the store that wrote it.
        pub incarnation: u64,
        /// The sequencer epoch that the batch belongs to.
        pub epoch: u64,
        /// Position of the first record.
        pub first_lsn: u64,
        /// Everything up to here was durable when this commit was written.
        pub known_durable: u64,
        /// Records, at least 1.
        pub count: u32,
        /// Bytes of records after this header.
        pub payload_size: u32,
        /// Checksum of the commit before it; 0: it is the first.
        pub previous_checksum: u32,
        /// 0; or, in a commit that `repair` put in the place of a lost one: the checksum of that
        /// one, which the commit after it repeats. So the chain holds without writing on.
        pub stands_for: u32,
    }
}

impl CommitHeader {
    /// Position of the last record. A count that would overflow saturates and fails the chain.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn.saturating_add(u64::from(self.count)).saturating_sub(1)
    }

    /// Bytes the commit takes in its segment, whole blocks.
    pub fn size_on_disk(&self) -> u64 {
        padded_size(self.payload_size as usize) as u64
    }
}

/// A commit as read back, with the checksum that the next one repeats: its own, or that of the
/// commit that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub header: CommitHeader,
    pub checksum: u32,
    pub records: Bytes,
}

/// Why bytes are no header or commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("too short")]
    Short,
    #[error("other magic")]
    Magic,
    #[error("format version {0} is not known")]
    Version(u32),
    #[error("the checksum does not match")]
    Checksum,
    #[error("no records")]
    Empty,
}

impl From<Malformed> for Invalid {
    fn from(_: Malformed) -> Invalid {
        Invalid::Short
    }
}

/// Whole blocks that a commit with `payload_size` bytes of records takes.
pub const fn padded_size(payload_size: usize) -> usize {
    (COMMIT_HEADER_SIZE + payload_size).next_multiple_of(BLOCK_SIZE)
}

/// Appends the header block.
pub fn encode_segment_header(header: &SegmentHeader, out: &mut Vec<u8>) {
    let start = out.len();
    begin(SEGMENT_MAGIC, out);
    header.write(out);
    seal(start, out);
}

/// A header block that says of itself that it is intact. Whether it belongs here is for the caller
/// to see: log id, number, position.
pub fn decode_segment_header(block: &[u8]) -> Result<SegmentHeader, Invalid> {
    let bytes = block.get(..SEGMENT_HEADER_SIZE).ok_or(Invalid::Short)?;
    expect_magic(bytes, SEGMENT_MAGIC)?;
    if checksum_of(&bytes[UNCHECKED_SIZE..]) != u32_at(bytes, 4) {
        return Err(Invalid::Checksum);
    }
    let body = Bytes::copy_from_slice(&bytes[UNCHECKED_SIZE..]);
    let header = SegmentHeader::from_bytes(body)?;
    if header.version == FORMAT_VERSION {
        Ok(header)
    } else {
        Err(Invalid::Version(header.version))
    }
}

/// The version that this program writes.
pub fn format_version() -> u32 {
    FORMAT_VERSION
}

/// Appends a commit, padded to whole blocks, and returns its checksum.
pub fn encode_commit(header: &CommitHeader, records: &[u8], out: &mut Vec<u8>) -> u32 {
    debug_assert_eq!(header.payload_size as usize, records.len());
    let start = out.len();
    begin(COMMIT_MAGIC, out);
    header.write(out);
    out.extend_from_slice(records);
    seal(start, out)
}

/// The header of a commit, unverified: only good for knowing how many bytes to read, and for
/// stepping over a commit that was verified when the log was opened.
pub fn peek_commit(block: &[u8]) -> Result<CommitHeader, Invalid> {
    let bytes = block.get(..COMMIT_HEADER_SIZE).ok_or(Invalid::Short)?;
    expect_magic(bytes, COMMIT_MAGIC)?;
    let header = CommitHeader::from_bytes(Bytes::copy_from_slice(&bytes[UNCHECKED_SIZE..]))?;
    if header.count == 0 {
        return Err(Invalid::Empty);
    }
    Ok(header)
}

/// A commit that says of itself that it is intact. Whether it belongs here is for the caller to
/// see.
pub fn decode_commit(bytes: &Bytes) -> Result<Commit, Invalid> {
    let header = peek_commit(bytes)?;
    let end = COMMIT_HEADER_SIZE + header.payload_size as usize;
    let checked = bytes.get(UNCHECKED_SIZE..end).ok_or(Invalid::Short)?;
    let checksum = u32_at(bytes, 4);
    if checksum_of(checked) != checksum {
        return Err(Invalid::Checksum);
    }
    let checksum = if header.stands_for == 0 { checksum } else { header.stands_for };
    Ok(Commit { header, checksum, records: bytes.slice(COMMIT_HEADER_SIZE..end) })
}

/// CRC-32C, as commits and the rows that point into them carry it.
pub fn checksum_of(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn begin(magic: u32, out: &mut Vec<u8>) {
    magic.write(out);
    0u32.write(out);
}

/// Fills in the checksum of what was written since `start`, then pads to whole blocks.
fn seal(start: usize, out: &mut Vec<u8>) -> u32 {
    let checksum = checksum_of(&out[start + UNCHECKED_SIZE..]);
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    let size = (out.len() - start).next_multiple_of(BLOCK_SIZE);
    out.resize(start + size, 0);
    checksum
}

fn expect_magic(bytes: &[u8], magic: u32) -> Result<(), Invalid> {
    if u32_at(bytes, 0) == magic { Ok(()) } else { Err(Invalid::Magic) }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("sliced with that size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(payload_size: usize) -> (CommitHeader, Vec<u8>) {
        let header = CommitHeader {
            log_id: LogId { high: 1, low: 2 },
            incarnation: 3,
            epoch: 4,
            first_lsn: 5,
            known_durable: 4,
            count: 6,
            payload_size: payload_size as u32,
            previous_checksum: 7,
            stands_for: 0,
        };
        (header, (0..payload_size).map(|index| index as u8).collect())
    }

    fn segment() -> SegmentHeader {
        let log_id = LogId { high: 1, low: 2 };
        let version = FORMAT_VERSION;
        SegmentHeader {
            log_id,
            version,
            previous_checksum: 3,
            number: 4,
            first_lsn: 5,
            incarnation: 6,
        }
    }

    #[test]
    fn a_commit_survives_encoding_and_fills_whole_blocks() {
        for payload_size in [0, 1, BLOCK_SIZE - COMMIT_HEADER_SIZE, BLOCK_SIZE, 3 * BLOCK_SIZE + 1]
        {
            let (header, records) = commit(payload_size);
            let mut out = Vec::new();
            let checksum = encode_commit(&header, &records, &mut out);
            assert_eq!(out.len(), padded_size(payload_size));
            assert_eq!(out.len() as u64, header.size_on_disk());
            let records = Bytes::from(records);
            let expected = Commit { header, checksum, records };
            assert_eq!(decode_commit(&Bytes::from(out)), Ok(expected));
        }
    }

    #[test]
    fn every_prefix_of_a_commit_is_refused() {
        let (header, records) = commit(100);
        let mut out = Vec::new();
        encode_commit(&header, &records, &mut out);
        let out = Bytes::from(out);
        for size in 0..COMMIT_HEADER_SIZE + 100 {
            assert!(decode_commit(&out.slice(..size)).is_err(), "prefix of {size} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (header, records) = commit(50);
        let mut commit = Vec::new();
        encode_commit(&header, &records, &mut commit);
        for bit in 0..(COMMIT_HEADER_SIZE + 50) * 8 {
            let mut bad = commit.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_commit(&Bytes::from(bad)).is_err(), "bit {bit}");
        }
        let mut block = Vec::new();
        encode_segment_header(&segment(), &mut block);
        for bit in 0..SEGMENT_HEADER_SIZE * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_segment_header(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_segment_header_survives_and_its_prefixes_are_refused() {
        let mut block = Vec::new();
        encode_segment_header(&segment(), &mut block);
        assert_eq!(block.len(), BLOCK_SIZE);
        assert_eq!(decode_segment_header(&block), Ok(segment()));
        for size in 0..SEGMENT_HEADER_SIZE {
            assert!(decode_segment_header(&block[..size]).is_err(), "prefix of {size} bytes");
        }
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720 B.4: 32 bytes of zeros.
        assert_eq!(checksum_of(&[0; 32]), 0x8a91_36aa);
    }
}
