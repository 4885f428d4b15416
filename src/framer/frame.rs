//! The frame header (RFC 6455 5.2): decoded as a server must, encoded as a server does.

use super::Violation;

/// The longest header: two bytes, an eight-byte length, a four-byte key.
pub const HEADER_SIZE_MAX: usize = 14;
/// Payload of a control frame (RFC 6455 5.5).
pub const CONTROL_SIZE_MAX: usize = 125;
/// Reserved bits, as in a header's first byte: none without an extension.
pub const RESERVED_NONE: u8 = 0;
/// RSV1, with which permessage-deflate marks the first frame of a compressed message (RFC 7692 6).
pub const RESERVED_COMPRESSED: u8 = 0x40;

const FINAL_BIT: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED_BIT: u8 = 0x80;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    pub(super) fn from_bits(bits: u8) -> Result<Opcode, Violation> {
        Ok(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            reserved => return Err(Violation::ReservedOpcode(reserved)),
        })
    }

    /// Close, ping or pong.
    pub fn is_control(self) -> bool {
        self as u8 >= Opcode::Close as u8
    }
}

/// A client's frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub is_final: bool,
    /// The message that begins with this frame is compressed.
    pub is_compressed: bool,
    pub opcode: Opcode,
    /// The masking key.
    pub key: [u8; 4],
    /// The payload's size in bytes, below 2^63.
    pub payload_size: u64,
    /// The header's own size in bytes.
    pub header_size: usize,
}

impl Header {
    /// Decodes the header at the front of `bytes`, of which only `reserved_allowed` bits may be
    /// used. `None` while it is cut; a violation is found once its field is there, not later.
    pub fn decode(bytes: &[u8], reserved_allowed: u8) -> Result<Option<Header>, Violation> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let opcode = check_first(first, reserved_allowed)?;
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        check_second(second, opcode)?;
        let Some((payload_size, key_at)) = decode_length(bytes, second & !MASKED_BIT)? else {
            return Ok(None);
        };
        let Some(key) = bytes.get(key_at..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Ok(None);
        };
        Ok(Some(Header {
            is_final: first & FINAL_BIT != 0,
            is_compressed: first & RESERVED_COMPRESSED != 0,
            opcode,
            key: *key,
            payload_size,
            header_size: key_at + 4,
        }))
    }
}

/// Appends one whole unmasked frame, as servers send them.
pub fn encode_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    encode(FINAL_BIT | opcode as u8, payload, out);
}

/// Appends the frame of a whole message whose payload is compressed.
pub fn encode_compressed_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    encode(FINAL_BIT | RESERVED_COMPRESSED | opcode as u8, payload, out);
}

/// Bytes of the unmasked frame at the front of `frames`, which [`encode_frame`] wrote.
pub fn frame_size(frames: &[u8]) -> usize {
    let short = usize::from(frames[1]);
    match short {
        126 => 4 + usize::from(u16::from_be_bytes([frames[2], frames[3]])),
        127 => {
            let wide = frames[2..].first_chunk().map_or(0, |wide| u64::from_be_bytes(*wide));
            10 + wide as usize
        }
        short => 2 + short,
    }
}

/// Appends a close frame. Without a code it is empty; a reason is cut to what a control frame
/// holds, at a character's boundary.
pub fn encode_close(code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
    let Some(code) = code else {
        return encode_frame(Opcode::Close, &[], out);
    };
    let mut size = reason.len().min(CONTROL_SIZE_MAX - 2);
    while !reason.is_char_boundary(size) {
        size -= 1;
    }
    let mut payload = [0; CONTROL_SIZE_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + size].copy_from_slice(&reason.as_bytes()[..size]);
    encode_frame(Opcode::Close, &payload[..2 + size], out);
}

/// Whether an endpoint may send this code: RFC 6455 7.4, and what was registered since (1012 to
/// 1014).
pub fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

fn encode(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(10 + payload.len());
    out.push(first);
    match payload.len() {
        size @ 0..=125 => out.push(size as u8),
        size @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            out.push(127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

fn check_first(first: u8, reserved_allowed: u8) -> Result<Opcode, Violation> {
    if first & RESERVED_BITS & !reserved_allowed != 0 {
        return Err(Violation::ReservedBits);
    }
    let opcode = Opcode::from_bits(first & 0x0f)?;
    // What is left is RSV1: only data messages are compressed, and their first frame says it.
    if first & RESERVED_BITS != 0 && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(Violation::ReservedBits);
    }
    if opcode.is_control() && first & FINAL_BIT == 0 {
        return Err(Violation::ControlFragmented);
    }
    Ok(opcode)
}

fn check_second(second: u8, opcode: Opcode) -> Result<(), Violation> {
    if second & MASKED_BIT == 0 {
        return Err(Violation::Unmasked);
    }
    if opcode.is_control() && usize::from(second & !MASKED_BIT) > CONTROL_SIZE_MAX {
        return Err(match opcode {
            Opcode::Close => Violation::CloseTooLong,
            _ => Violation::ControlTooLong,
        });
    }
    Ok(())
}

/// The payload's size and the index of what follows the length.
fn decode_length(bytes: &[u8], short: u8) -> Result<Option<(u64, usize)>, Violation> {
    let rest = &bytes[2..];
    let (size, size_least, end) = match short {
        126 => match rest.first_chunk::<2>() {
            None => return Ok(None),
            Some(wide) => (u64::from(u16::from_be_bytes(*wide)), 126, 4),
        },
        127 => match rest.first_chunk::<8>() {
            None => return Ok(None),
            Some(wide) => (u64::from_be_bytes(*wide), 0x1_0000, 10),
        },
        short => (u64::from(short), 0, 2),
    };
    if size > i64::MAX as u64 {
        return Err(Violation::LengthOutOfRange);
    }
    if size < size_least {
        return Err(Violation::LengthNotMinimal);
    }
    Ok(Some((size, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Option<Header>, Violation> {
        Header::decode(bytes, RESERVED_NONE)
    }

    #[test]
    fn close_codes_are_those_that_were_registered() {
        let good = [1000..=1003, 1007..=1014, 3000..=4999];
        for code in 0..=u16::MAX {
            assert_eq!(is_close_code(code), good.iter().any(|range| range.contains(&code)));
        }
    }

    #[test]
    fn every_prefix_of_a_good_header_is_incomplete() {
        let headers: [&[u8]; 3] = [
            &[0x81, 0x85, 1, 2, 3, 4],
            &[0x02, 0xfe, 0, 126, 1, 2, 3, 4],
            &[0x80, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4],
        ];
        for (header, size) in headers.into_iter().zip([5, 126, 0x1_0000]) {
            for end in 0..header.len() {
                assert_eq!(decode(&header[..end]), Ok(None));
            }
            let decoded = decode(header).expect("good").expect("whole");
            assert_eq!((decoded.payload_size, decoded.header_size), (size, header.len()));
            assert_eq!(decoded.key, [1, 2, 3, 4]);
        }
    }

    #[test]
    fn each_violation_is_found_with_its_byte() {
        let cases: [(&[u8], Violation); 10] = [
            (&[0xc1], Violation::ReservedBits),
            (&[0x83], Violation::ReservedOpcode(3)),
            (&[0x8b], Violation::ReservedOpcode(11)),
            (&[0x09], Violation::ControlFragmented),
            (&[0x89, 0xfe], Violation::ControlTooLong),
            (&[0x81, 0x05], Violation::Unmasked),
            (&[0x81, 0xfe, 0, 125], Violation::LengthNotMinimal),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 255, 255], Violation::LengthNotMinimal),
            (&[0x81, 0xff, 128, 0, 0, 0, 0, 0, 0, 0], Violation::LengthOutOfRange),
            (&[0x88, 0xff], Violation::CloseTooLong),
        ];
        for (bytes, violation) in cases {
            assert_eq!(decode(bytes), Err(violation));
            assert_eq!(decode(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn only_the_first_frame_of_a_data_message_may_say_that_it_is_compressed() {
        let decode = |bytes: &[u8]| Header::decode(bytes, RESERVED_COMPRESSED);
        for first in [0xc1, 0xc2, 0x41, 0x42] {
            assert_eq!(decode(&[first]), Ok(None));
            let header = decode(&[first, 0x80, 0, 0, 0, 0]).expect("good").expect("whole");
            assert!(header.is_compressed);
        }
        for first in [0xc0, 0x40, 0xc8, 0xc9, 0xca, 0xe1, 0xd1, 0xa2, 0x91] {
            assert_eq!(decode(&[first]), Err(Violation::ReservedBits), "{first:x}");
        }
        let header = decode(&[0x81, 0x80, 0, 0, 0, 0]).expect("good").expect("whole");
        assert!(!header.is_compressed);
    }

    #[test]
    fn lengths_are_written_in_the_fewest_bytes() {
        for (size, header) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 255, 255]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            encode_frame(Opcode::Binary, &vec![7; size], &mut out);
            assert_eq!(&out[..header.len()], header);
            assert_eq!(out.len(), header.len() + size);
            assert_eq!(frame_size(&out), out.len());
            let mut compressed = Vec::new();
            encode_compressed_frame(Opcode::Binary, &vec![7; size], &mut compressed);
            out[0] |= RESERVED_COMPRESSED;
            assert!(compressed == out);
        }
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        encode_close(Some(1001), &"\u{e9}".repeat(100), &mut out);
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
        out.clear();
        encode_close(None, "unused", &mut out);
        assert_eq!(out, [0x88, 0]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_once_masked(size in 0usize..70_000) {
            let mut out = Vec::new();
            encode_frame(Opcode::Binary, &vec![0; size], &mut out);
            let header_size = out.len() - size;
            prop_assert_eq!(decode(&out), Err(Violation::Unmasked));
            out[1] |= MASKED_BIT;
            out.splice(header_size..header_size, [9, 8, 7, 6]);
            let header = decode(&out).expect("good").expect("whole");
            prop_assert_eq!(header.payload_size, size as u64);
            prop_assert_eq!(header.header_size, header_size + 4);
        }
    }
}
