//! Plays every example of `docs/protocol.md` against a real `aldis up`, first to last.
//!
//! An example is a block that begins with three backticks and `aldis`. Its lines, NAME being any
//! connection's:
//!
//! - `NAME connects QUERY [as SUBPROTOCOL]`, or `NAME refused STATUS QUERY [as SUBPROTOCOL]`
//! - `NAME > MESSAGE` is said by the client; `NAME < MESSAGE` is the next that it hears
//! - `NAME closed CODE`: the next that it hears is this close
//!
//! A message is JSON, or bytes in hex with texts in quotes. `<word>` stands for what varies: in
//! JSON the same value all over its block; in bytes a whole varint, or a length and bytes.

mod support;

use std::collections::HashMap;
use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use support::Cluster;
use tungstenite::client::IntoClientRequest;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Error, Message, WebSocket};

type Socket = WebSocket<MaybeTlsStream<TcpStream>>;

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn every_example_of_the_page_is_true() {
    let page = fs::read_to_string("docs/protocol.md").expect("the page is here");
    let folder = tempfile::tempdir().expect("a directory for the test");
    let cluster = Cluster::start(folder.path().join("data"), &[]);
    let mut play = Play { cluster, sockets: HashMap::new(), bound: HashMap::new() };
    let mut count = 0;
    let mut inside = false;
    for (number, line) in (1..).zip(page.lines()) {
        match line {
            "```aldis" => {
                inside = true;
                play.bound.clear();
            }
            "```" => inside = false,
            line if inside => {
                count += 1;
                play.line(line).unwrap_or_else(|wrong| {
                    panic!("docs/protocol.md:{number}: {line}\n{wrong}");
                });
            }
            _ => {}
        }
    }
    assert!(count > 40, "only {count} lines of examples were found");
}

/// A running system, and who is connected.
struct Play {
    cluster: Cluster,
    sockets: HashMap<String, Socket>,
    /// What each placeholder of the block stands for.
    bound: HashMap<String, Value>,
}

impl Play {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (name, rest) = line.split_once(' ').ok_or("no verb")?;
        let (verb, object) = rest.split_once(' ').ok_or("no object")?;
        match verb {
            "connects" => {
                let socket = self.connect(object).map_err(|error| error.to_string())?;
                self.sockets.insert(name.to_owned(), socket);
                Ok(())
            }
            "refused" => {
                let (status, query) = object.split_once(' ').ok_or("no query")?;
                match self.connect(query) {
                    Err(Error::Http(response)) if response.status().as_str() == status => Ok(()),
                    Err(other) => Err(format!("{other}")),
                    Ok(_) => Err("is taken".to_owned()),
                }
            }
            ">" => {
                let message = match object.starts_with('{') {
                    true => Message::text(object),
                    false => Message::binary(self.bytes(object, &[])?),
                };
                let socket = self.sockets.get_mut(name).ok_or("not connected")?;
                socket.send(message).map_err(|error| error.to_string())
            }
            "<" | "closed" => self.hear(name, object),
            _ => Err("no such verb".to_owned()),
        }
    }

    fn connect(&self, object: &str) -> Result<Socket, Error> {
        let (query, subprotocol) = match object.split_once(" as ") {
            Some((query, subprotocol)) => (query, Some(subprotocol)),
            None => (object, None),
        };
        let url = format!("ws://{}{query}", self.cluster.address);
        let mut request = url.into_client_request()?;
        if let Some(subprotocol) = subprotocol {
            let value = subprotocol.parse().expect("a name of the page is a good header");
            request.headers_mut().insert("Sec-WebSocket-Protocol", value);
        }
        let (socket, response) = tungstenite::connect(request)?;
        let chosen = response.headers().get("Sec-WebSocket-Protocol");
        let first = subprotocol.and_then(|offered| offered.split(", ").next());
        assert_eq!(chosen.and_then(|it| it.to_str().ok()), first, "the chosen subprotocol");
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        }
        Ok(socket)
    }

    fn hear(&mut self, name: &str, expected: &str) -> Result<(), String> {
        let socket = self.sockets.get_mut(name).ok_or("not connected")?;
        let heard = loop {
            match socket.read().map_err(|error| error.to_string())? {
                Message::Ping(_) | Message::Pong(_) => {}
                other => break other,
            }
        };
        match heard {
            Message::Text(text) => {
                let heard: Value = serde_json::from_str(&text).expect("the server sends JSON");
                let expected = parse(expected)?;
                self.same(&expected, &heard).map_err(|wrong| format!("{heard}\n{wrong}"))
            }
            Message::Binary(bytes) => {
                let expected = self.bytes(expected, &bytes)?;
                match expected == *bytes {
                    true => Ok(()),
                    false => Err(format!("{bytes:02x?}\nand not\n{expected:02x?}")),
                }
            }
            Message::Close(Some(frame)) if frame.code.to_string() == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Values that vary are texts that begin with `<`, or with `#<` where the page has no quotes.
    fn same(&mut self, expected: &Value, heard: &Value) -> Result<(), String> {
        match (expected, heard) {
            (Value::String(text), heard) if text.starts_with(['<', '#']) => {
                if text.starts_with('<') != heard.is_string() {
                    return Err(format!("{text} is {heard}"));
                }
                let word = text.trim_start_matches('#').to_owned();
                let bound = self.bound.entry(word).or_insert_with(|| heard.clone());
                if bound == heard { Ok(()) } else { Err(format!("{text} was {bound}")) }
            }
            (Value::Object(expected), Value::Object(heard)) => {
                if !expected.keys().eq(heard.keys()) {
                    return Err("other fields".to_owned());
                }
                expected.iter().try_for_each(|(name, value)| self.same(value, &heard[name]))
            }
            (Value::Array(expected), Value::Array(heard)) if expected.len() == heard.len() => {
                expected.iter().zip(heard).try_for_each(|(one, other)| self.same(one, other))
            }
            _ if expected == heard => Ok(()),
            _ => Err(format!("{expected} is {heard}")),
        }
    }

    /// The bytes that `text` says; for its placeholders, those that `heard` has there.
    fn bytes(&self, text: &str, heard: &[u8]) -> Result<Vec<u8>, String> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word = match rest.strip_prefix('"') {
                Some(quoted) => &rest[..quoted.find('"').ok_or("no end of a text")? + 2],
                None => rest.split(' ').next().unwrap_or_default(),
            };
            rest = rest[word.len()..].trim_start();
            if word.starts_with('"') {
                bytes.extend_from_slice(word.trim_matches('"').as_bytes());
            } else if word.starts_with('<') {
                let tag = bytes.last().ok_or("a placeholder needs a tag")?;
                bytes.extend_from_slice(value_at(heard, bytes.len(), *tag)?);
            } else {
                bytes.push(u8::from_str_radix(word, 16).map_err(|_| format!("{word} is not hex"))?);
            }
        }
        Ok(bytes)
    }
}

/// The value of a field of `tag` at `start`: a varint, or a length below 128 and as many bytes.
fn value_at(message: &[u8], start: usize, tag: u8) -> Result<&[u8], String> {
    let rest = message.get(start..).ok_or(format!("{message:02x?} is too short"))?;
    let varint = rest.iter().position(|byte| *byte < 128).ok_or("no varint")? + 1;
    let size = if tag.is_multiple_of(2) {
        varint
    } else if varint == 1 {
        1 + usize::from(rest[0])
    } else {
        2 + usize::from(rest[0] - 128) + 128 * usize::from(rest[1])
    };
    rest.get(..size).ok_or(format!("{message:02x?} is too short"))
}

/// JSON in which `<word>` may stand instead of a number.
fn parse(text: &str) -> Result<Value, String> {
    let json = text.replace(":<", ":\"#<").replace(">,", ">\",").replace(">}", ">\"}");
    serde_json::from_str(&json).map_err(|error| format!("{error}: {json}"))
}
