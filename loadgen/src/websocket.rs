//! RFC 6455 as a client speaks it, written for this generator alone: the server's own framer has no
//! part in it, so a mistake there cannot hide here.

use std::fmt;

/// The largest frame that is taken from a server.
const PAYLOAD_SIZE_MAX: u64 = 64 * 1024 * 1024;
/// The longest answer to a request for an upgrade that is waited for.
const RESPONSE_SIZE_MAX: usize = 64 * 1024;
/// The RFC's own example of a key and the answer to it (section 1.3). A key protects nothing but
/// proxies that cache; a constant one needs no hash here.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: Opcode,
    pub payload: &'a [u8],
}

/// What a server must not send, or what this client does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    ReservedBits,
    ReservedOpcode(u8),
    Fragmented,
    Masked,
    LengthNotMinimal,
    TooBig(u64),
}

/// The server did not upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Violation::ReservedBits => write!(out, "a frame has reserved bits set"),
            Violation::ReservedOpcode(opcode) => write!(out, "a frame has opcode {opcode}"),
            Violation::Fragmented => write!(out, "a message is fragmented, which is not taken"),
            Violation::Masked => write!(out, "a server's frame is masked"),
            Violation::LengthNotMinimal => write!(out, "a length takes more bytes than it needs"),
            Violation::TooBig(size) => write!(out, "a frame of {size} bytes is not taken"),
        }
    }
}

/// The request that asks for an upgrade. `path` includes the query.
pub fn upgrade_request(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// The size of a whole answer that upgrades; `None` while it is not there to its end.
pub fn upgrade_response(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        if bytes.len() > RESPONSE_SIZE_MAX {
            return Err(Refused("an answer without an end".to_owned()));
        }
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        let body = String::from_utf8_lossy(&bytes[end + 4..]);
        return Err(Refused(format!("`{status}` {}", body.trim())));
    }
    let accept = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-accept"))
        .map(|(_, value)| value.trim());
    if accept != Some(ACCEPT) {
        return Err(Refused("a wrong Sec-WebSocket-Accept".to_owned()));
    }
    Ok(Some(end + 4))
}

/// Appends a masked frame, which is a message of its own.
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, mask: [u8; 4], payload: &[u8]) {
    out.push(0x80 | opcode as u8);
    match payload.len() {
        size @ 0..126 => out.push(0x80 | size as u8),
        size @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// The first frame of `bytes` and its size with the header; `None` while it is not whole.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Violation> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    let opcode = check_first_byte(*first)?;
    if second & 0x80 != 0 {
        return Err(Violation::Masked);
    }
    let Some((size, length_size)) = payload_size(second & 0x7f, rest)? else {
        return Ok(None);
    };
    if size > PAYLOAD_SIZE_MAX {
        return Err(Violation::TooBig(size));
    }
    let (start, end) = (2 + length_size, 2 + length_size + size as usize);
    let Some(payload) = bytes.get(start..end) else {
        return Ok(None);
    };
    Ok(Some((Frame { opcode, payload }, end)))
}

fn check_first_byte(first: u8) -> Result<Opcode, Violation> {
    if first & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    if first & 0x80 == 0 || first & 0x0f == 0 {
        return Err(Violation::Fragmented);
    }
    match first & 0x0f {
        1 => Ok(Opcode::Text),
        2 => Ok(Opcode::Binary),
        8 => Ok(Opcode::Close),
        9 => Ok(Opcode::Ping),
        10 => Ok(Opcode::Pong),
        opcode => Err(Violation::ReservedOpcode(opcode)),
    }
}

/// The payload's size, and in how many bytes beyond the first two it is written.
fn payload_size(short: u8, rest: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let (size, length_size, size_min) = match short {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2, 126),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 8, 0x1_0000),
            None => return Ok(None),
        },
        size => (u64::from(size), 0, 0),
    };
    if size < size_min {
        return Err(Violation::LengthNotMinimal);
    }
    Ok(Some((size, length_size)))
}

fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn the_masked_hello_of_the_rfc() {
        let mut out = Vec::new();
        encode(&mut out, Opcode::Text, MASK, b"Hello");
        let expected = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(out, expected);
    }

    #[test]
    fn masks_of_every_length_agree_with_the_plain_loop() {
        for size in 0..40 {
            let plain: Vec<u8> = (0..size).collect();
            let mut masked = plain.clone();
            apply_mask(&mut masked, MASK);
            let naive = plain.iter().enumerate().map(|(index, byte)| byte ^ MASK[index % 4]);
            assert!(naive.eq(masked.iter().copied()), "{size} bytes");
        }
    }

    #[test]
    fn frames_of_every_length_form_are_taken_and_no_prefix_is() {
        for size in [0, 5, 125, 126, 127, 0xffff, 0x1_0000] {
            let bytes = server_frame(2, size);
            let (frame, end) = decode(&bytes).expect("good").expect("whole");
            assert_eq!(
                (frame.opcode, frame.payload.len(), end),
                (Opcode::Binary, size, bytes.len())
            );
            let heads = (0..bytes.len()).filter(|end| *end < 20 || end + 2 > bytes.len());
            for end in heads {
                assert_eq!(decode(&bytes[..end]), Ok(None), "{end} of {size}");
            }
        }
    }

    #[test]
    fn bad_frames_are_named() {
        let cases = [
            (vec![0xc2, 0], Violation::ReservedBits),
            (vec![0x83, 0], Violation::ReservedOpcode(3)),
            (vec![0x01, 0], Violation::Fragmented),
            (vec![0x80, 0], Violation::Fragmented),
            (vec![0x82, 0x80], Violation::Masked),
            (vec![0x82, 126, 0, 125], Violation::LengthNotMinimal),
            (vec![0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Violation::LengthNotMinimal),
            (vec![0x82, 127, 0, 0, 0, 0, 0x10, 0, 0, 0], Violation::TooBig(1 << 28)),
        ];
        for (bytes, violation) in cases {
            assert_eq!(decode(&bytes), Err(violation));
        }
    }

    #[test]
    fn an_upgrade_is_recognised_on_no_prefix() {
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
             SEC-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        );
        let bytes = response.as_bytes();
        assert_eq!(upgrade_response(bytes), Ok(Some(bytes.len())));
        for end in 0..bytes.len() {
            assert_eq!(upgrade_response(&bytes[..end]), Ok(None));
        }
    }

    #[test]
    fn refusals_say_what_the_server_said() {
        let refused = upgrade_response(b"HTTP/1.1 401 Unauthorized\r\n\r\n{\"code\":\"x\"}");
        let expected = Refused("`HTTP/1.1 401 Unauthorized` {\"code\":\"x\"}".to_owned());
        assert_eq!(refused, Err(expected));
        let wrong = b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: abc\r\n\r\n";
        assert!(upgrade_response(wrong).is_err());
    }

    fn server_frame(opcode: u8, size: usize) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        match size {
            0..126 => bytes.push(size as u8),
            126..0x1_0000 => {
                bytes.push(126);
                bytes.extend_from_slice(&(size as u16).to_be_bytes());
            }
            _ => {
                bytes.push(127);
                bytes.extend_from_slice(&(size as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + size, 7);
        bytes
    }
}
