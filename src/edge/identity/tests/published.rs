//! Sets of keys that are published and change, by a server of this test.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::super::jwks::{self, Pace, Place};
use super::*;
use crate::admin::Registry;

const PATIENCE: Duration = Duration::from_secs(10);
const FAST: Pace = Pace {
    period: Duration::from_secs(3_600),
    pause: Duration::from_millis(10),
    pause_max: Duration::from_millis(40),
    patience: Duration::from_millis(500),
};

/// Answers every request with what was last put there. Its thread ends with the test's process.
struct Publisher {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    requests: Arc<Mutex<usize>>,
}

impl Publisher {
    fn start(document: &Value) -> Publisher {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let publisher = Publisher {
            address: listener.local_addr().expect("bound"),
            answer: Arc::default(),
            requests: Arc::default(),
        };
        publisher.publish(document);
        let (answer, requests) =
            (Arc::clone(&publisher.answer), Arc::clone(&publisher.requests));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let mut lines = BufReader::new(stream.try_clone().expect("cloned")).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                *requests.lock().expect("no panic") += 1;
                let answer = answer.lock().expect("no panic").clone();
                let _client_may_be_gone = stream.write_all(answer.as_bytes());
            }
        });
        publisher
    }

    fn respond(&self, status: &str, body: &str) {
        let size = body.len();
        *self.answer.lock().expect("no panic") = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n{body}"
        );
    }

    fn publish(&self, document: &Value) {
        self.respond("200 OK", &document.to_string());
    }

    fn place(&self) -> Place {
        format!("http://{}/keys?a=b", self.address).parse().expect("a loopback address")
    }

    fn request_count(&self) -> usize {
        *self.requests.lock().expect("no panic")
    }
}

fn secret(id: &str) -> Vec<u8> {
    format!("the secret with the id {id} and with enough bytes").into_bytes()
}

fn set(ids: &[&str]) -> Value {
    let key = |id: &&str| json!({"kty": "oct", "kid": id, "k": URL_SAFE_NO_PAD.encode(secret(id))});
    json!({"keys": ids.iter().map(key).collect::<Vec<_>>()})
}

fn token(id: &str) -> String {
    let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(&secret(id));
    jsonwebtoken::encode(&header, &json!({"sub": "alice", "exp": 9_999}), &key).expect("signed")
}

fn tokens(place: Place) -> Tokens {
    let keys = jwks::start(place, FAST, &Registry::new("edge")).expect("started");
    Tokens { keys, issuer: None, audience: None }
}

fn outcome(tokens: &mut Tokens, id: &str) -> Result<(), Doubt> {
    tokens.check(&token(id), 5_000).map(|_| ())
}

/// Tries again, as a client would, until it is so.
fn becomes(tokens: &mut Tokens, id: &str, wanted: Result<(), Doubt>) {
    let end = Instant::now() + PATIENCE;
    while outcome(tokens, id) != wanted {
        assert!(Instant::now() < end, "{id} never was {wanted:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn keys_come_and_go_with_the_document() {
    let publisher = Publisher::start(&set(&["a"]));
    let mut tokens = tokens(publisher.place());
    assert_eq!(outcome(&mut tokens, "a"), Ok(()));
    publisher.publish(&set(&["a", "b"]));
    becomes(&mut tokens, "b", Ok(()));
    assert_eq!(outcome(&mut tokens, "a"), Ok(()), "old keys stay as long as they are published");
    publisher.publish(&set(&["b"]));
    assert_eq!(outcome(&mut tokens, "a"), Ok(()), "nothing made anybody look yet");
    assert_eq!(outcome(&mut tokens, "c"), Err(Doubt::UnknownKey));
    becomes(&mut tokens, "a", Err(Doubt::UnknownKey));
    assert_eq!(outcome(&mut tokens, "b"), Ok(()));
    publisher.publish(&json!({"keys": []}));
    becomes(&mut tokens, "b", Err(Doubt::UnknownKey)).to_owned();
}

#[test]
fn a_failure_leaves_the_last_good_set() {
    let publisher = Publisher::start(&set(&["a"]));
    let mut tokens = tokens(publisher.place());
    let large = json!({"keys": [], "x": "x".repeat(300_000)}).to_string();
    let many = json!({"keys": vec![json!({}); 65]}).to_string();
    let failures = [
        ("500 Internal Server Error", "{\"keys\":[]}"),
        ("404 Not Found", ""),
        ("200 OK", ""),
        ("200 OK", "<html>log in first</html>"),
        ("302 Found\r\nLocation: http://127.0.0.1:1/", "{\"keys\":[]}"),
        ("200 OK", &large),
        ("200 OK", &many),
    ];
    for (status, body) in failures {
        publisher.respond(status, body);
        let before = publisher.request_count();
        let end = Instant::now() + PATIENCE;
        while publisher.request_count() < before + 2 {
            assert_eq!(outcome(&mut tokens, "x"), Err(Doubt::UnknownKey));
            assert_eq!(outcome(&mut tokens, "a"), Ok(()), "{status}");
            assert!(Instant::now() < end, "nobody came for it");
            thread::sleep(Duration::from_millis(2));
        }
    }
    publisher.publish(&set(&["x"]));
    becomes(&mut tokens, "x", Ok(()));
}

#[test]
fn unknown_keys_cause_few_fetches_and_known_ones_none() {
    let publisher = Publisher::start(&set(&["a"]));
    let mut tokens = tokens(publisher.place());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        assert_eq!(outcome(&mut tokens, "a"), Ok(()));
    }
    assert_eq!(publisher.request_count(), 1);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        assert_eq!(outcome(&mut tokens, "x"), Err(Doubt::UnknownKey));
    }
    let count = publisher.request_count();
    assert!((2..=14).contains(&count), "{count} fetches, 40 ms apart at the least");
}

#[test]
fn what_cannot_be_reached_at_first_is_tried_again() {
    let probe = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = probe.local_addr().expect("bound");
    drop(probe);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let mut nowhere = tokens(format!("http://{address}/").parse().expect("loopback"));
    assert_eq!(outcome(&mut nowhere, "a"), Err(Doubt::NoKeys));
    let mut file = tokens(Place::File(path.clone()));
    assert_eq!(outcome(&mut file, "a"), Err(Doubt::NoKeys));
    std::fs::write(&path, set(&["a"]).to_string()).expect("written");
    becomes(&mut file, "a", Ok(()));
}

#[test]
fn keys_come_only_over_ways_on_which_nobody_can_put_in_others() {
    let url = |text: &str| text.parse::<Place>().map(|place| matches!(place, Place::Url(_)));
    for good in [
        "https://id.example.org/keys",
        "http://127.0.0.1:8081/keys",
        "http://localhost/keys",
        "http://[::1]:99",
    ] {
        assert_eq!(url(good), Ok(true), "{good}");
    }
    for bad in [
        "http://id.example.org/keys",
        "http://localhost.example.org/",
        "http://127.0.0.1@example.org/",
        "http://",
        "https://",
        "https:///keys",
        "https://user:secret@id.example.org/",
        "ftp://127.0.0.1/keys",
        "file:///keys",
    ] {
        assert!(url(bad).is_err(), "{bad}");
    }
    assert_eq!("keys.json".parse(), Ok(Place::File(PathBuf::from("keys.json"))));
}
