//! The HTTP/1.1 side of a connection: the request head, the upgrade's conditions (RFC 6455 4.2.1),
//! and the answers.
//!
//! Plain requests are understood as far as the embedded page and the small POSTs need it: a body
//! with `Content-Length`, no transfer codings, one request per connection.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest as _, Sha1};

use crate::limits::{REQUEST_HEAD_SIZE_MAX, REQUEST_HEADER_COUNT_MAX};

mod extensions;

pub use extensions::DeflateAgreement;

/// Appended to the key before hashing (RFC 6455 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Padding as the standard has it; bits behind the sixteenth byte are nobody's business.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A request that is answered by an HTTP error instead of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// For programs; the status's meaning in one word.
    pub code: &'static str,
    /// For people.
    pub message: &'static str,
}

impl Refusal {
    const fn malformed(message: &'static str) -> Refusal {
        let (status, code) = (400, "bad_request");
        Refusal { status, code, message }
    }

    const fn no_upgrade(message: &'static str) -> Refusal {
        let (status, code) = (426, "upgrade_required");
        Refusal { status, code, message }
    }

    const fn too_large(message: &'static str) -> Refusal {
        let (status, code) = (431, "too_large");
        Refusal { status, code, message }
    }

    /// The whole HTTP response.
    pub fn response(&self) -> Vec<u8> {
        let extra: &[(&str, &str)] = match self.status {
            426 => &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            _ => &[],
        };
        refusal_response(self.status, self.code, self.message, extra)
    }
}

/// A request head, borrowed from the receive buffer. Not `Debug`: fields and query carry tokens.
pub struct Request<'a> {
    pub method: &'a str,
    /// The target before any `?`, as sent: percent-encoded.
    pub path: &'a str,
    /// The target behind the first `?`, as sent.
    pub query: Option<&'a str>,
    /// The minor of HTTP/1.x.
    pub version_minor: u8,
    headers: [httparse::Header<'a>; REQUEST_HEADER_COUNT_MAX],
    header_count: usize,
}

impl<'a> Request<'a> {
    /// Parses the head at the front of `bytes`. Yields it with its size in bytes, or `None` while
    /// the empty line that ends it is missing.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Request<'a>, usize)>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; REQUEST_HEADER_COUNT_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let size = match head.parse(bytes) {
            Ok(httparse::Status::Complete(size)) if size <= REQUEST_HEAD_SIZE_MAX => size,
            Ok(httparse::Status::Partial) if bytes.len() < REQUEST_HEAD_SIZE_MAX => {
                return Ok(None);
            }
            Ok(_) => return Err(Refusal::too_large("the request head is too large")),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal::too_large("the request has too many header fields"));
            }
            Err(_) => return Err(Refusal::malformed("this is not an HTTP/1.1 request")),
        };
        let header_count = head.headers.len();
        let (Some(method), Some(target), Some(version_minor)) =
            (head.method, head.path, head.version)
        else {
            return Err(Refusal::malformed("this is not an HTTP/1.1 request"));
        };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let request = Request { method, path, query, version_minor, headers, header_count };
        Ok(Some((request, size)))
    }

    /// Every field of this name, in order, its value without surrounding white space.
    pub fn headers<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'a [u8]> + 'r {
        self.headers[..self.header_count]
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    }

    /// The value of the first field of this name, when it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Bytes of body that follow the head.
    pub fn body_size(&self) -> Result<usize, Refusal> {
        if self.headers("transfer-encoding").next().is_some() {
            return Err(Refusal::malformed("transfer codings are not understood"));
        }
        let mut sizes = self.headers("content-length");
        let Some(size) = sizes.next() else {
            return Ok(0);
        };
        let is_repeated = sizes.any(|other| other != size);
        parse_decimal(size)
            .filter(|_| !is_repeated)
            .ok_or(Refusal::malformed("Content-Length is not a number"))
    }

    /// Whether the request asks for any upgrade to WebSocket, well or badly.
    pub fn wants_upgrade(&self) -> bool {
        self.lists("upgrade", "websocket")
    }

    /// Checks every condition of RFC 6455 4.2.1.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, Refusal> {
        if !self.wants_upgrade() || !self.lists("connection", "upgrade") {
            return Err(Refusal::no_upgrade("this address speaks WebSocket"));
        }
        if self.method != "GET" {
            return Err(Refusal::malformed("only GET can be upgraded"));
        }
        if self.version_minor < 1 {
            return Err(Refusal::malformed("an upgrade needs HTTP/1.1"));
        }
        self.check_host()?;
        self.check_version()?;
        Ok(Upgrade {
            key: self.key()?,
            subprotocols: self.subprotocols()?,
            deflate: extensions::agree(self.headers("sec-websocket-extensions"))?,
        })
    }

    fn check_host(&self) -> Result<(), Refusal> {
        let mut hosts = self.headers("host");
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if !host.is_empty() => Ok(()),
            _ => Err(Refusal::malformed("exactly one Host is needed")),
        }
    }

    fn check_version(&self) -> Result<(), Refusal> {
        let mut versions = self.headers("sec-websocket-version");
        match (versions.next(), versions.next()) {
            (Some(b"13"), None) => Ok(()),
            (_, Some(_)) => Err(Refusal::malformed("exactly one Sec-WebSocket-Version is needed")),
            _ => Err(Refusal::no_upgrade("Sec-WebSocket-Version 13 is needed")),
        }
    }

    fn key(&self) -> Result<&'a [u8], Refusal> {
        let mut keys = self.headers("sec-websocket-key");
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(Refusal::malformed("exactly one Sec-WebSocket-Key is needed"));
        };
        let mut decoded = [0; 18];
        match BASE64.decode_slice(key, &mut decoded) {
            Ok(16) => Ok(key),
            _ => Err(Refusal::malformed("Sec-WebSocket-Key is not 16 bytes in base64")),
        }
    }

    /// All that was offered, over repeated fields, in the client's order.
    fn subprotocols(&self) -> Result<Vec<&'a str>, Refusal> {
        let refusal = Refusal::malformed("Sec-WebSocket-Protocol is not a list of tokens");
        let mut offered = Vec::new();
        for value in self.headers("sec-websocket-protocol") {
            let count_before = offered.len();
            for element in list(value).filter(|element| !element.is_empty()) {
                offered.push(token(element).ok_or(refusal)?);
            }
            if offered.len() == count_before {
                return Err(refusal);
            }
        }
        Ok(offered)
    }

    /// Whether the comma-separated fields of this name contain the token, in any case.
    fn lists(&self, name: &str, token: &str) -> bool {
        self.headers(name)
            .flat_map(list)
            .any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// An upgrade request that fulfils every condition.
#[derive(Clone, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key`, checked.
    key: &'a [u8],
    /// What the client offers, in its order.
    pub subprotocols: Vec<&'a str>,
    /// What the client's offers of permessage-deflate come to, for a server that wants it.
    pub deflate: Option<DeflateAgreement>,
}

impl Upgrade<'_> {
    /// Appends the 101 response. `subprotocol` is one of those offered, or none; `deflate` is
    /// [`Upgrade::deflate`], or none.
    pub fn write_response(
        &self,
        subprotocol: Option<&str>,
        deflate: Option<DeflateAgreement>,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\n\
            Upgrade: websocket\r\n\
            Connection: Upgrade\r\n\
            Sec-WebSocket-Accept: ",
        );
        out.extend_from_slice(accept_key(self.key).as_bytes());
        if let Some(subprotocol) = subprotocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(subprotocol.as_bytes());
        }
        if let Some(deflate) = deflate {
            out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
            out.extend_from_slice(deflate.answer().as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 4.2.2).
pub fn accept_key(key: &[u8]) -> String {
    let hash = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    BASE64.encode(hash)
}

/// A whole HTTP response, after which the connection closes.
pub fn response(status: u16, content_type: &str, extra: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
        Connection: close\r\n",
        reason_phrase(status),
        body.len(),
    );
    for (name, value) in extra {
        head.extend([*name, ": ", *value, "\r\n"]);
    }
    head.push_str("\r\n");
    let mut whole = head.into_bytes();
    whole.extend_from_slice(body);
    whole
}

/// A refusal as `application/json`: `{"code":"...","message":"..."}`.
pub fn refusal_response(status: u16, code: &str, message: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let body = serde_json::json!({ "code": code, "message": message }).to_string();
    response(status, "application/json", extra, body.as_bytes())
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Response",
    }
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// The element as text when it is a token (RFC 9110 5.6.2).
fn token(element: &[u8]) -> Option<&str> {
    let is_token = !element.is_empty() && element.iter().all(is_token_byte);
    std::str::from_utf8(element).ok().filter(|_| is_token)
}

fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn parse_decimal(digits: &[u8]) -> Option<usize> {
    let is_decimal = digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_decimal)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests;
