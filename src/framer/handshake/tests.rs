//! The conditions of the upgrade, one by one, and the answers.

use proptest::prelude::*;

use super::*;

const GOOD: &str = "GET /chat?x=1&y=2 HTTP/1.1\r\n\
    Host: server.example.com\r\n\
    Upgrade: websocket\r\n\
    Connection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat, superchat\r\n\
    Sec-WebSocket-Protocol: bearer.a-b_c.d\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

fn parse(text: &str) -> Request<'_> {
    Request::parse(text.as_bytes()).expect("well-formed").expect("whole").0
}

/// The status that `GOOD` gets once `from` in it is `to`.
fn status_with(from: &str, to: &str) -> u16 {
    assert!(GOOD.contains(from));
    let text = GOOD.replacen(from, to, 1);
    match Request::parse(text.as_bytes()) {
        Err(refusal) => refusal.status,
        Ok(parsed) => match parsed.expect("whole").0.upgrade() {
            Err(refusal) => refusal.status,
            Ok(_) => 101,
        },
    }
}

#[test]
fn the_example_of_the_rfc() {
    assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let request = parse(GOOD);
    assert_eq!((request.path, request.query), ("/chat", Some("x=1&y=2")));
    let upgrade = request.upgrade().expect("good");
    assert_eq!(upgrade.subprotocols, ["chat", "superchat", "bearer.a-b_c.d"]);
    let mut out = Vec::new();
    upgrade.write_response(Some("chat"), None, &mut out);
    assert_eq!(
        String::from_utf8(out).expect("ASCII"),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    );
}

#[test]
fn every_prefix_is_incomplete() {
    for end in 0..GOOD.len() {
        let parsed = Request::parse(&GOOD.as_bytes()[..end]).expect("no prefix is malformed");
        assert!(parsed.is_none(), "at {end}");
    }
    let with_frames = [GOOD.as_bytes(), b"\x81\x80...."].concat();
    let (_, size) = Request::parse(&with_frames).expect("good").expect("whole");
    assert_eq!(size, GOOD.len());
}

#[test]
fn each_condition_is_enforced() {
    for (from, to, status) in [
        ("GET", "POST", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("HTTP/1.1", "HTTP/3.1", 400),
        ("Host: server.example.com\r\n", "", 400),
        ("Host: server.example.com", "Host: ", 400),
        ("Upgrade: websocket\r\n", "", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("Upgrade: websocket", "UPGRADE: h2c, WebSocket", 101),
        ("keep-alive, Upgrade", "keep-alive", 426),
        ("keep-alive, Upgrade", "upgrade", 101),
        ("Version: 13", "Version: 8", 426),
        ("Version: 13", "Version: 013", 426),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("Version: 13\r\n", "Version: 13\r\nSec-WebSocket-Version: 13\r\n", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWVl", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "", 400),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("chat, superchat", "chat superchat", 400),
        ("chat, superchat", "", 400),
        ("chat, superchat", "chat,, superchat", 101),
        ("Host: ", "Host : ", 400),
    ] {
        assert_eq!(status_with(from, to), status, "{from} -> {to}");
    }
    let two_keys = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHost: ";
    assert_eq!(status_with("Host: ", two_keys), 400);
    assert_eq!(status_with("Host: ", "Host: a\r\nHost: "), 400);
}

fn refused(bytes: &[u8]) -> Option<u16> {
    Request::parse(bytes).err().map(|refusal| refusal.status)
}

#[test]
fn what_is_too_large_is_refused() {
    let endless = format!("GET /{} ", "a".repeat(REQUEST_HEAD_SIZE_MAX));
    assert_eq!(refused(endless.as_bytes()), Some(431));
    let fields = "a: b\r\n".repeat(REQUEST_HEADER_COUNT_MAX + 1);
    let many = format!("GET / HTTP/1.1\r\n{fields}\r\n");
    assert_eq!(refused(many.as_bytes()), Some(431));
    assert!(Request::parse(&[0x16, 3, 1, 2, 0]).is_err(), "a TLS hello");
}

#[test]
fn bodies_are_measured_by_their_length_alone() {
    let post = |fields: &str| format!("POST /kill HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let size = |fields: &str| parse(&post(fields)).body_size().map_err(|refusal| refusal.status);
    assert_eq!(size(""), Ok(0));
    assert_eq!(size("Content-Length: 12\r\n"), Ok(12));
    assert_eq!(size("Content-Length: 12\r\nContent-Length: 12\r\n"), Ok(12));
    assert_eq!(size("Content-Length: 12\r\nContent-Length: 13\r\n"), Err(400));
    assert_eq!(size("Content-Length: +1\r\n"), Err(400));
    assert_eq!(size("Content-Length: \r\n"), Err(400));
    assert_eq!(size("Transfer-Encoding: chunked\r\n"), Err(400));
}

#[test]
fn a_refusal_says_what_to_do() {
    let plain = parse("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let Err(refusal) = plain.upgrade() else {
        panic!("it asks for no upgrade");
    };
    let text = String::from_utf8(refusal.response()).expect("ASCII");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
    for field in [
        "Content-Type: application/json",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Connection: close",
        &format!("Content-Length: {}", body.len()),
    ] {
        assert!(head.lines().any(|line| line == field), "{field} in {head}");
    }
    assert_eq!(body, r#"{"code":"upgrade_required","message":"this address speaks WebSocket"}"#);
}

proptest! {
    #[test]
    fn damaged_requests_never_panic_and_are_whole_only_with_their_end(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = GOOD.as_bytes().to_vec();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(Some((request, size))) = Request::parse(&bytes) {
            prop_assert!(bytes[..size].ends_with(b"\n"));
            prop_assert!(Request::parse(&bytes[..size - 1]).is_ok_and(|whole| whole.is_none()));
            let mut out = Vec::new();
            if let Ok(upgrade) = request.upgrade() {
                upgrade.write_response(None, upgrade.deflate, &mut out);
                prop_assert!(out.ends_with(b"\r\n\r\n"));
            }
            let _ = request.body_size();
        }
    }
}
