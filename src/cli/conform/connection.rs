//! A connection of a case: says frames, hears frames in their order, notices the end.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::handshake::client::generate_key;
use tungstenite::http::{Request, header};
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use crate::cli::client::Address;

const LOOK: Duration = Duration::from_millis(5);

/// How the server took the upgrade.
pub enum Opened {
    Connection(Box<Connection>),
    /// HTTP status and body.
    Refused(u16, Value),
}

/// See the module.
pub struct Connection {
    socket: WebSocket<TcpStream>,
    /// Frames that were read and not asked for yet.
    heard: Vec<Value>,
    /// Once the server closed: its code.
    closed: Option<Option<u16>>,
}

/// What a request says beside its URL.
pub struct Asked<'a> {
    pub parameters: &'a [(&'a str, &'a str)],
    pub subprotocols: &'a [String],
    pub token: Option<&'a str>,
}

impl Connection {
    pub fn open(address: &Address, asked: &Asked, patience: Duration) -> Result<Opened, String> {
        let tcp = TcpStream::connect((address.host.as_str(), address.port))
            .map_err(|error| format!("{address}: {error}"))?;
        let timed = tcp.set_nodelay(true).and_then(|()| tcp.set_read_timeout(Some(patience)));
        timed.map_err(|error| error.to_string())?;
        let mut request = Request::builder()
            .uri(address.with(asked.parameters))
            .header(header::HOST, address.authority())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key());
        if !asked.subprotocols.is_empty() {
            let all = asked.subprotocols.join(", ");
            request = request.header(header::SEC_WEBSOCKET_PROTOCOL, all);
        }
        if let Some(token) = asked.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        match tungstenite::client(request, tcp) {
            Ok((socket, _response)) => {
                let timed = socket.get_ref().set_read_timeout(Some(LOOK));
                timed.map_err(|error| error.to_string())?;
                let connection = Connection { socket, heard: Vec::new(), closed: None };
                Ok(Opened::Connection(Box::new(connection)))
            }
            Err(HandshakeError::Failure(Error::Http(response))) => {
                let body = response.body().as_deref().unwrap_or_default();
                let body = serde_json::from_slice(body).unwrap_or_default();
                Ok(Opened::Refused(response.status().as_u16(), body))
            }
            Err(HandshakeError::Failure(error)) => Err(format!("the upgrade failed: {error}")),
            Err(HandshakeError::Interrupted(_)) => Err("no answer to the upgrade".to_owned()),
        }
    }

    pub fn say(&mut self, message: Message) -> Result<(), String> {
        self.socket.send(message).map_err(|error| format!("it could not be said: {error}"))
    }

    /// The next frame with this `t`. Others stay for later steps.
    pub fn hear(&mut self, t: &Value, patience: Duration) -> Result<Value, String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(index) = self.heard.iter().position(|frame| frame["t"] == *t) {
                return Ok(self.heard.remove(index));
            }
            if let Some(code) = self.closed {
                return Err(format!("the server closed ({code:?}) instead of saying {t}"));
            }
            if Instant::now() >= deadline {
                // What came instead says more than that nothing did.
                let error = self.heard.iter().find(|frame| frame["t"] == "error");
                let instead = error.map_or(String::new(), |frame| format!("; instead: {frame}"));
                return Err(format!("{t} did not come within {patience:?}{instead}"));
            }
            self.read()?;
        }
    }

    /// The code with which the server closes.
    pub fn closed(&mut self, patience: Duration) -> Result<Option<u16>, String> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && self.closed.is_none() {
            self.read()?;
        }
        self.closed.ok_or_else(|| format!("the server did not close within {patience:?}"))
    }

    pub fn close(mut self) {
        let _gone = self.socket.close(None);
        let _gone = self.socket.flush();
    }

    /// Takes what comes within a moment.
    fn read(&mut self) -> Result<(), String> {
        match self.socket.read() {
            Ok(Message::Text(text)) => {
                let frame: Value = serde_json::from_str(&text)
                    .map_err(|error| format!("a frame is no JSON: {error}"))?;
                self.heard.push(frame);
            }
            Ok(Message::Binary(_)) => {
                return Err("a binary frame, where text was agreed".to_owned());
            }
            Ok(Message::Close(frame)) => {
                self.closed = Some(frame.map(|frame| frame.code.into()));
                let _gone = self.socket.flush();
            }
            Ok(_) => {}
            Err(Error::Io(error)) if is_only_time(&error) => {}
            Err(_) => self.closed = Some(self.closed.flatten()),
        }
        Ok(())
    }
}

fn is_only_time(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
