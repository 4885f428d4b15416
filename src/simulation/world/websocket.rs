//! The client's side of RFC 6455, for simulated clients. Written apart from the server's framer, so
//! that a mistake in one is not excused by the other.

/// The key of every client: 16 bytes in base64, as RFC 6455 1.3 has them.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// And what a server must make of it.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What came of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The upgrade was granted.
    Opened,
    /// It was refused, with this status.
    Refused(u16),
    Text(String),
    Ping(Vec<u8>),
    Close(Option<u16>),
}

/// Collects received bytes and gives out what they mean.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    is_open: bool,
}

impl Inbox {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole thing; `None` until more bytes come; an error is a breach by the server.
    pub fn take_incoming(&mut self) -> Result<Option<Incoming>, String> {
        if self.is_open { self.next_frame() } else { self.next_response() }
    }

    fn next_response(&mut self) -> Result<Option<Incoming>, String> {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else { return Ok(None) };
        let head: Vec<u8> = self.bytes.drain(..end + 4).collect();
        let head = String::from_utf8(head).map_err(|error| error.to_string())?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        match status.ok_or_else(|| format!("no status in {head:?}"))? {
            101 if head.contains(ACCEPT) => {
                self.is_open = true;
                Ok(Some(Incoming::Opened))
            }
            101 => Err(format!("the key was not answered in {head:?}")),
            status => Ok(Some(Incoming::Refused(status))),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Incoming>, String> {
        let Some((first, second)) = self.bytes.first().zip(self.bytes.get(1)) else {
            return Ok(None);
        };
        if first & 0xf0 != 0x80 || second & 0x80 != 0 {
            return Err(format!("a frame begins with {first:#x} {second:#x}"));
        }
        let (size_bytes, opcode) = (usize::from(second & 0x7f), first & 0x0f);
        let extra = match size_bytes {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(field) = self.bytes.get(2..2 + extra) else { return Ok(None) };
        let wide = field.iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
        let size = if extra == 0 { size_bytes } else { wide };
        if self.bytes.len() < 2 + extra + size {
            return Ok(None);
        }
        let payload: Vec<u8> = self.bytes.drain(..2 + extra + size).skip(2 + extra).collect();
        let code = || Some(u16::from_be_bytes([*payload.first()?, *payload.get(1)?]));
        Ok(Some(match opcode {
            1 => Incoming::Text(String::from_utf8(payload).map_err(|error| error.to_string())?),
            8 => Incoming::Close(code()),
            9 => Incoming::Ping(payload),
            _ => return Err(format!("a frame with opcode {opcode}")),
        }))
    }
}

/// The request that asks for the upgrade.
pub fn request(host: &str, query: &str) -> Vec<u8> {
    format!(
        "GET /v1/connect?{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Appends one masked frame.
pub fn write(opcode: u8, payload: &[u8], mask: u32, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        size @ 0..=125 => out.push(0x80 | size as u8),
        size @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_waits_and_the_whole_is_read() {
        let mut bytes = format!("HTTP/1.1 101 x\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        bytes.push('\u{1}');
        let mut bytes = bytes.into_bytes();
        bytes.pop();
        bytes.extend_from_slice(b"\x81\x02hi\x88\x02\x03\xe9");
        let mut seen = Vec::new();
        let mut inbox = Inbox::default();
        for byte in bytes {
            inbox.push(&[byte]);
            seen.extend(inbox.take_incoming().expect("well formed"));
        }
        let text = Incoming::Text("hi".to_owned());
        assert_eq!(seen, [Incoming::Opened, text, Incoming::Close(Some(1001))]);
    }
}
