//! Every refusal at the door, and every way in.

mod published;
mod tokens;

use proptest::prelude::*;

use super::*;
use crate::edge::ticket::TICKET_LIFETIME_MS;

const SESSION: SessionNumber = SessionNumber { epoch: 1, counter: 7 };

fn ticket(secret: &[u8]) -> String {
    let ends_unix_ms = 4_000 + TICKET_LIFETIME_MS;
    Tickets::new(secret).issue_until("alice", "phone", SESSION, ends_unix_ms)
}

fn door() -> Door {
    Door::new(
        vec!["chat.example.org".into()],
        vec!["https://app.example.org".into()],
        Tickets::new(b"secret"),
        Identities::Development,
    )
}

/// A connect request with this query and these further header fields.
fn head(query: &str, fields: &str) -> Vec<u8> {
    let head = format!(
        "GET /v1/connect{query} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    );
    head.into_bytes()
}

fn admit(query: &str, fields: &str) -> Result<Admitted, u16> {
    let fields = format!("Host: 127.0.0.1:8080\r\n{fields}");
    let head = head(query, &fields);
    let (request, _) = Request::parse(&head).expect("valid").expect("complete");
    door().admit(&request, 5_000).map_err(|refusal| refusal.status)
}

fn identity(query: &str) -> Result<(String, String), u16> {
    admit(query, "").map(|admitted| (admitted.user.to_string(), admitted.device.to_string()))
}

fn pair(user: &str, device: &str) -> Result<(String, String), u16> {
    Ok((user.to_owned(), device.to_owned()))
}

#[test]
fn a_client_is_who_it_says() {
    assert_eq!(identity("?user=alice&device=phone"), pair("alice", "phone"));
    assert_eq!(identity("?user=alice"), pair("alice", "default"));
    assert_eq!(identity("?token=x.y.z&user=alice&color=%20"), pair("alice", "default"));
    assert_eq!(identity("?user=a+b%2B%3A%25"), pair("a+b+:%", "default"));
    assert_eq!(identity("?user=%e4%B8%ad"), pair("\u{4e2d}", "default"));
    assert_eq!(identity("?%75ser=alice"), pair("alice", "default"));
    let longest = "x".repeat(64);
    assert_eq!(identity(&format!("?user={longest}&device={longest}")), pair(&longest, &longest));
}

#[test]
fn who_says_it_badly_is_refused() {
    for query in ["", "?", "?device=phone", "?token=abc", "?User=alice"] {
        assert_eq!(identity(query), Err(401), "{query}");
    }
    let long = "x".repeat(65);
    let queries = [
        "?user=",
        "?user",
        "?user=a&device=",
        "?user=%ff",
        "?user=%",
        "?user=%4",
        "?user=%zz",
        "?user=a%00",
        "?user=a%0a",
        "?user=%C2%85",
        "?user=a&user=b",
        "?user=a&user=a",
        "?user=a&device=%ED%A0%80",
        "?user=a&other=%ff",
        "?device=%ff",
    ];
    let long = [format!("?user={long}"), format!("?user=a&device={long}")];
    for query in queries.into_iter().chain(long.iter().map(String::as_str)) {
        assert_eq!(identity(query), Err(400), "{query}");
    }
}

#[test]
fn a_ticket_alone_suffices() {
    let ticket = ticket(b"secret");
    assert_eq!(identity(&format!("?ticket={ticket}")), pair("alice", "phone"));
    assert_eq!(identity(&format!("?user=alice&ticket={ticket}")), pair("alice", "phone"));
    let foreign = ticket(b"other");
    let refused = [
        format!("?ticket={foreign}"),
        format!("?user=alice&ticket={foreign}"),
        format!("?user=bob&ticket={ticket}"),
        format!("?user=alice&device=laptop&ticket={ticket}"),
        format!("?ticket={ticket}x"),
        "?ticket=".to_owned(),
        "?user=alice&ticket=nonsense".to_owned(),
    ];
    for query in refused {
        assert_eq!(identity(&query), Err(401), "{query}");
    }
}

#[test]
fn what_is_believed_has_no_end() {
    let ticket = ticket(b"secret");
    for query in ["?user=alice".to_owned(), format!("?ticket={ticket}")] {
        assert_eq!(admit(&query, "").map(|admitted| admitted.term), Ok(Term::default()));
    }
}

#[test]
fn only_a_manual_client_is_left_alone_at_first() {
    for (query, manual) in [("", false), ("&sync=manual", true), ("&sync=auto", false)] {
        let admitted = admit(&format!("?user=alice{query}"), "").expect("admitted");
        assert_eq!(admitted.manual, manual);
    }
}

#[test]
fn the_first_known_subprotocol_is_chosen() {
    let chosen = |offered: &str| {
        let field = match offered {
            "" => String::new(),
            offered => format!("Sec-WebSocket-Protocol: {offered}\r\n"),
        };
        admit("?user=alice", &field).map(|admitted| admitted.subprotocol)
    };
    assert_eq!(chosen(""), Ok(None));
    assert_eq!(chosen("aldis.v1.json"), Ok(Some(Subprotocol::Json)));
    assert_eq!(chosen("chat, aldis.v1.json, bearer.abc"), Ok(Some(Subprotocol::Json)));
    assert_eq!(chosen("bearer.abc"), Ok(None));
    assert_eq!(chosen("aldis.v1"), Ok(Some(Subprotocol::Binary)));
    assert_eq!(chosen("aldis.v2, aldis.v1, aldis.v1.json"), Ok(Some(Subprotocol::Binary)));
    assert_eq!(chosen("bearer.abc, aldis.v1.json, aldis.v1"), Ok(Some(Subprotocol::Json)));
    for unknown in ["chat", "ALDIS.V1.JSON", "bearer.abc, chat", "aldis.v1.json2"] {
        assert_eq!(chosen(unknown), Err(400), "{unknown}");
    }
}

#[test]
fn only_pages_of_this_host_connect() {
    let with_origin = |origin: &str| admit("?user=a", &format!("Origin: {origin}\r\n")).map(|_| ());
    for origin in ["http://127.0.0.1:8080", "https://127.0.0.1:8080", "https://APP.example.org"] {
        assert_eq!(with_origin(origin), Ok(()), "{origin}");
    }
    let others = [
        "null",
        "",
        "http://127.0.0.1:8081",
        "http://127.0.0.1",
        "http://localhost:8080",
        "https://app.example.org.evil.org",
        "http://app.example.org",
        "127.0.0.1:8080",
        "file://127.0.0.1:8080",
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8080\r\nOrigin: http://127.0.0.1:8080",
    ];
    for origin in others {
        assert_eq!(with_origin(origin), Err(403), "{origin}");
    }
}

#[test]
fn only_known_hosts_are_served() {
    let checked = |fields: &str| {
        let head = head("", fields);
        let (request, _) = Request::parse(&head).expect("valid").expect("complete");
        door().check_host(&request).map_err(|refusal| refusal.status)
    };
    let served = [
        "127.0.0.1",
        "127.0.0.1:1",
        "127.8.9.1:8080",
        "[::1]",
        "[::1]:8080",
        "localhost",
        "LocalHost:65535",
        "chat.example.org",
        "Chat.Example.Org:443",
    ];
    for host in served {
        assert_eq!(checked(&format!("Host: {host}\r\n")), Ok(()), "{host}");
    }
    let refused = [
        "example.org",
        "127.0.0.1.example.org",
        "localhost.example.org",
        "10.0.0.1",
        "::1",
        "[::2]",
        "localhost:",
        "localhost:x",
        "localhost:+1",
        "localhost:65536",
        "localhost:1:2",
        "[::1",
        "[::1]8080",
        "[127.0.0.1]",
        "user@localhost",
        "0.0.0.0",
        "2130706433",
        "localhost.",
    ];
    for host in refused {
        assert_eq!(checked(&format!("Host: {host}\r\n")), Err(403), "{host}");
    }
    assert_eq!(checked(""), Err(400));
    assert_eq!(checked("Host: localhost\r\nHost: localhost\r\n"), Err(400));
}

#[test]
fn what_is_no_upgrade_is_told_so() {
    let head = b"GET /v1/connect?user=a HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (request, _) = Request::parse(head).expect("valid").expect("complete");
    assert_eq!(door().admit(&request, 0).map_err(|refusal| refusal.status), Err(426));
}

proptest! {
    #[test]
    fn decoding_is_the_inverse_of_encoding(text in "\\PC{0,20}", everything in any::<bool>()) {
        let mut encoded = String::new();
        for byte in text.bytes() {
            if everything || !byte.is_ascii_alphanumeric() {
                encoded.push_str(&format!("%{byte:02x}"));
            } else {
                encoded.push(char::from(byte));
            }
        }
        prop_assert_eq!(percent_decode(&encoded), Some(text));
    }
}
