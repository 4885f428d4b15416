//! A chat client for tests: one connection, one JSON object a frame.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::CloseFrame;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Error, Message, WebSocket};

/// How long an expected frame may take.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
pub struct Client {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    /// Set once the server closed, with its close frame if there was one.
    pub closed: Option<Option<CloseFrame>>,
    /// Frames that were read before their turn: the next ones.
    pub kept: VecDeque<Value>,
}

impl Client {
    /// Connects, or says why not.
    pub fn try_connect(url: &str) -> Result<Client, Error> {
        let (socket, _response) = tungstenite::connect(url)?;
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        }
        Ok(Client { socket, closed: None, kept: VecDeque::new() })
    }

    /// Connects over a stream that is open, and takes `welcome`.
    pub fn over(url: &str, stream: TcpStream) -> Client {
        let stream = MaybeTlsStream::Plain(stream);
        let (socket, _response) = tungstenite::client(url, stream).expect("the server upgrades");
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(Duration::from_millis(2))).expect("set");
        }
        let mut client = Client { socket, closed: None, kept: VecDeque::new() };
        client.expect("welcome");
        client
    }

    /// Connects and takes `welcome`.
    pub fn connect(url: &str) -> Client {
        let mut client = Client::try_connect(url).expect("the server takes connections");
        let welcome = client.expect("welcome");
        assert!(welcome["session"].is_string() && welcome["ticket"].is_string(), "{welcome}");
        client
    }

    /// Connects and takes everything up to the first `synced`; returns the messages before it.
    pub fn connect_synced(url: &str) -> (Client, Vec<Value>) {
        let mut client = Client::connect(url);
        let messages = client.until_synced();
        (client, messages)
    }

    /// The `msg` frames up to the next `synced`.
    pub fn until_synced(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let frame = self.next(PATIENCE).expect("synced comes");
            match frame["t"].as_str() {
                Some("msg") => messages.push(frame),
                Some("synced") => return messages,
                _ => {}
            }
        }
    }

    /// Sends one frame. `false`: the connection is gone.
    pub fn say(&mut self, frame: Value) -> bool {
        self.say_raw(&frame.to_string())
    }

    pub fn say_raw(&mut self, frame: &str) -> bool {
        self.socket.send(Message::text(frame)).is_ok()
    }

    pub fn say_binary(&mut self, frame: &[u8]) -> bool {
        self.socket.send(Message::binary(frame.to_vec())).is_ok()
    }

    /// The next frame that comes within `limit`.
    pub fn next(&mut self, limit: Duration) -> Option<Value> {
        if let Some(frame) = self.kept.pop_front() {
            return Some(frame);
        }
        let end = Instant::now() + limit;
        while self.closed.is_none() {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return Some(serde_json::from_str(&text).expect("the server sends JSON"));
                }
                Ok(Message::Close(frame)) => self.closed = Some(frame),
                Ok(_) => {}
                Err(Error::Io(error)) if is_timeout(&error) => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
                Err(_) => self.closed = Some(None),
            }
        }
        None
    }

    /// The next frame with this `t`; others are skipped.
    pub fn expect(&mut self, t: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let frame = self.next(end.saturating_duration_since(Instant::now()));
            let frame = frame.unwrap_or_else(|| panic!("`{t}` comes; closed: {:?}", self.closed));
            if frame["t"] == t {
                return frame;
            }
        }
    }

    /// Waits for the server to close; the code of its close frame.
    pub fn expect_close(&mut self) -> Option<u16> {
        while self.next(PATIENCE).is_some() {}
        let frame = self.closed.as_ref().expect("the server closes").as_ref();
        frame.map(|frame| frame.code.into())
    }

    /// Says farewell, and waits until the server has.
    pub fn close(&mut self) {
        // Whoever is cut off has been heard no less.
        let _gone = self.socket.close(None);
        while self.next(PATIENCE).is_some() {}
    }

    /// Sends a message to a user and waits for `sent`.
    pub fn send(&mut self, to: &str, id: &str, body: &str) -> Value {
        self.say(json!({"t": "send", "to": to, "id": id, "body": body}));
        self.expect("sent")
    }

    /// Waits until everything said before is done.
    pub fn barrier(&mut self) {
        self.say(json!({"t": "ping", "ref": 4242}));
        while self.expect("pong")["ref"] != 4242 {}
    }
}

/// Nothing has come yet. A read with a timeout is also interrupted when the whole process is
/// stopped and goes on, and then begins no more by itself (signal(7)).
fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
