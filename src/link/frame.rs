//! One frame of a link: a fixed header and a payload, checked by CRC-32C.
//!
//! Invariant of the reader: `parsed <= received`, and no payload leaves it whose checksum is wrong.

use bytes::{Bytes, BytesMut};
use crc_fast::CrcAlgorithm::Crc32Iscsi;

use super::wire::{Malformed, Reader, Wire, wire_enum, wire_struct};
use crate::limits::{LINK_ENTRY_SIZE_MAX, LINK_GREETING_SIZE_MAX};

/// Bytes of an encoded [`Header`].
pub const HEADER_SIZE: usize = 4 + 4 + 1 + 8 + 8;

wire_enum! {
    /// What a frame carries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FrameKind {
        /// Opens the greeting (initiator).
        1 = Hello,
        /// Answers it (responder): its own hello and its proof of the secret.
        2 = Challenge,
        /// The initiator's proof, and the session it would continue.
        3 = Proof,
        /// The responder's word on that; entries follow.
        4 = Begin,
        /// One entry of the session.
        5 = Entry,
        /// Nothing but a sign of life and an acknowledgement.
        6 = Beat,
    }
}

wire_struct! {
    /// Precedes every payload.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Header {
        /// Payload bytes; `u32`, as entries are bounded by `LINK_ENTRY_SIZE_MAX`.
        pub size: u32,
        /// CRC-32C (Castagnoli) of the payload: TCP's own sum misses one error in 65,536.
        pub checksum: u32,
        pub kind: FrameKind,
        /// An `Entry`'s number in its session; otherwise 0.
        pub number: u64,
        /// Every entry of the other side up to this number is answered.
        pub acknowledged: u64,
    }
}

/// Why a link's bytes are refused; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkViolation {
    #[error("a frame is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("a frame of {0} bytes is beyond the limit")]
    TooLarge(u32),
    #[error("a frame's checksum is wrong")]
    Checksum,
    #[error("a frame of this kind has no place here")]
    Unexpected,
    #[error("the peer does not know the link secret")]
    Secret,
    #[error("the peer speaks link version {0}")]
    Version(u16),
    #[error("entry {got} came where {expected} was due")]
    Number { expected: u64, got: u64 },
    #[error("entry {0} is acknowledged and was never sent")]
    Acknowledged(u64),
}

/// Appends one frame.
pub fn write_frame(
    kind: FrameKind,
    number: u64,
    acknowledged: u64,
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let size = u32::try_from(payload.len()).expect("payloads are bounded by limits.rs");
    let checksum = checksum(payload);
    Header { size, checksum, kind, number, acknowledged }.write(out);
    out.extend_from_slice(payload);
}

/// Collects received bytes and gives out whole frames: those of a greeting, until the peer has
/// shown that it knows the secret.
pub struct FrameReader {
    received: BytesMut,
    size_max: usize,
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader { received: BytesMut::new(), size_max: LINK_GREETING_SIZE_MAX }
    }
}

impl FrameReader {
    /// The peer is who it says: from now on whole entries are taken.
    pub fn trust(&mut self) {
        self.size_max = LINK_ENTRY_SIZE_MAX;
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come.
    pub fn take_frame(&mut self) -> Result<Option<(Header, Bytes)>, LinkViolation> {
        if self.received.len() < HEADER_SIZE {
            return Ok(None);
        }
        // The size stands first; the rest of the header is read once the frame is whole, from the
        // same bytes as its payload.
        let (size, _) = self.received.split_first_chunk().expect("a header is longer");
        let size = u32::from_le_bytes(*size);
        if size as usize > self.size_max {
            return Err(LinkViolation::TooLarge(size));
        }
        let total = HEADER_SIZE + size as usize;
        if self.received.len() < total {
            return Ok(None);
        }
        let mut frame = Reader::new(self.received.split_to(total).freeze());
        let header = Header::read(&mut frame)?;
        let payload = frame.take(size as usize)?;
        if checksum(&payload) != header.checksum {
            return Err(LinkViolation::Checksum);
        }
        Ok(Some((header, payload)))
    }
}

fn checksum(payload: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, payload) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(FrameKind::Entry, 7, 3, b"entry", &mut out);
        out
    }

    #[test]
    fn a_frame_comes_out_once_it_is_whole() {
        let bytes = frame();
        let mut reader = FrameReader::default();
        for byte in &bytes[..bytes.len() - 1] {
            reader.push(&[*byte]);
            assert_eq!(reader.take_frame(), Ok(None));
        }
        reader.push(&bytes[bytes.len() - 1..]);
        let (header, payload) = reader.take_frame().expect("well formed").expect("whole");
        assert_eq!((header.number, header.acknowledged, &payload[..]), (7, 3, &b"entry"[..]));
        assert_eq!(reader.take_frame(), Ok(None));
    }

    #[test]
    fn a_changed_byte_is_refused() {
        for index in HEADER_SIZE..frame().len() {
            let mut bytes = frame();
            bytes[index] ^= 1;
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            assert_eq!(reader.take_frame(), Err(LinkViolation::Checksum));
        }
    }

    #[test]
    fn a_huge_size_is_refused_before_its_bytes_come() {
        let mut bytes = frame();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reader = FrameReader::default();
        reader.push(&bytes);
        assert_eq!(reader.take_frame(), Err(LinkViolation::TooLarge(u32::MAX)));
    }

    #[test]
    fn a_stranger_is_given_room_for_a_greeting_and_no_more() {
        let entry = |size: usize| {
            let mut out = Vec::new();
            write_frame(FrameKind::Entry, 1, 0, &vec![7; size], &mut out);
            out
        };
        let taken = |trusted: bool, size: usize| {
            let mut reader = FrameReader::default();
            if trusted {
                reader.trust();
            }
            reader.push(&entry(size));
            reader.take_frame().map(|frame| frame.map(|(_, payload)| payload.len()))
        };
        let over = LINK_GREETING_SIZE_MAX + 1;
        assert_eq!(taken(false, over - 1), Ok(Some(over - 1)));
        assert_eq!(taken(false, over), Err(LinkViolation::TooLarge(over as u32)));
        assert_eq!(taken(true, over), Ok(Some(over)));
        let huge = LINK_ENTRY_SIZE_MAX + 1;
        assert_eq!(taken(true, huge), Err(LinkViolation::TooLarge(huge as u32)));
    }
}
