//! One connection of a command-line client: the WebSocket, its welcome, its frames as text.
//! Blocking, with a time on every wait, so that a signal is noticed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::client::generate_key;
use tungstenite::http::{Request, StatusCode, header};
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::Unreached;
use super::address::Address;
use crate::cli::failure::Usage;
use crate::protocol::Subprotocol;

/// For a connection with its welcome, and for one write.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Who connects, and how it proves that.
pub struct Credentials<'a> {
    /// Not looked at where a token is asked for.
    pub user: Option<&'a str>,
    pub device: &'a str,
    pub token: Option<&'a str>,
    /// Goes before all else, if it is there.
    pub ticket: Option<&'a str>,
}

/// Why a session was not opened.
pub enum Refused {
    /// 401: who one is was not believed.
    Unbelieved,
    Unreached(Unreached),
}

/// The first frame of the server.
#[derive(Clone, Debug, Deserialize)]
pub struct Welcome {
    pub user: String,
    pub heartbeat_ms: u64,
    pub ticket: String,
}

/// What came within the time given.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Frame(String),
    /// Nothing, or only a sign of life.
    Nothing,
    /// With the code of the server's close frame, if there was one.
    Closed(Option<u16>),
}

/// See the module.
pub struct Session {
    socket: WebSocket<Box<dyn Stream>>,
    tcp: TcpStream,
    heard_at: Instant,
    pub welcome: Welcome,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Session {
    /// Connects and takes the welcome until `deadline`, and for [`PATIENCE`] at the most. `manual`:
    /// nothing is pushed before the first `sync`.
    pub fn open(
        address: &Address,
        who: &Credentials<'_>,
        manual: bool,
        deadline: Instant,
    ) -> Result<Session, Refused> {
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let request = request(address, who, manual)?;
        let tcp = connect(address, deadline)?;
        let stream = secure(address, tcp.try_clone().map_err(later)?)?;
        let (socket, _response) =
            tungstenite::client(request, stream).map_err(|error| refused(address, error))?;
        let nothing = Welcome { user: String::new(), heartbeat_ms: 0, ticket: String::new() };
        let mut session = Session { socket, tcp, heard_at: Instant::now(), welcome: nothing };
        loop {
            match session.hear(until(deadline)) {
                Heard::Frame(text) => {
                    session.welcome = serde_json::from_str(&text)
                        .map_err(|_| never(format!("{address} is no edge of Aldis")))?;
                    return Ok(session);
                }
                Heard::Nothing if Instant::now() < deadline => {}
                Heard::Nothing => return Err(later("it says nothing").into()),
                Heard::Closed(_) => return Err(later("it closed the connection at once").into()),
            }
        }
    }

    /// Hands a frame to the kernel. `false`: the connection is gone.
    pub fn say(&mut self, frame: &serde_json::Value) -> bool {
        self.socket.send(Message::text(frame.to_string())).is_ok()
    }

    /// Waits for the next frame, at most for `wait`; a signal ends it early.
    pub fn hear(&mut self, wait: Duration) -> Heard {
        // Zero would mean for ever.
        let wait = wait.max(Duration::from_millis(1));
        if self.tcp.set_read_timeout(Some(wait)).is_err() {
            return Heard::Closed(None);
        }
        match self.socket.read() {
            Ok(Message::Text(text)) => {
                self.heard_at = Instant::now();
                Heard::Frame(text.as_str().to_owned())
            }
            Ok(Message::Close(frame)) => {
                // The answer to it; the server may be gone already.
                let _ = self.socket.flush();
                Heard::Closed(frame.map(|frame| frame.code.into()))
            }
            Ok(_) => {
                self.heard_at = Instant::now();
                Heard::Nothing
            }
            Err(Error::Io(error)) if is_only_time(&error) => Heard::Nothing,
            Err(_) => Heard::Closed(None),
        }
    }

    /// Two heartbeats without a sign of life are death (section 1 of the protocol).
    pub fn is_silent(&self) -> bool {
        self.heard_at.elapsed() > 2 * Duration::from_millis(self.welcome.heartbeat_ms)
    }

    /// Says goodbye and waits a moment for the answer, so that nothing said before is lost.
    pub fn close(mut self) {
        if self.socket.close(None).is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if let Heard::Closed(_) = self.hear(Duration::from_millis(100)) {
                return;
            }
        }
    }
}

fn request(
    address: &Address,
    who: &Credentials<'_>,
    manual: bool,
) -> Result<Request<()>, Unreached> {
    let mut parameters = match who.ticket {
        Some(ticket) => vec![("ticket", ticket)],
        None => vec![("device", who.device)],
    };
    if who.ticket.is_none() {
        parameters.extend(who.user.map(|user| ("user", user)));
    }
    if manual {
        parameters.push(("sync", "manual"));
    }
    let mut request = Request::builder()
        .uri(address.with(&parameters))
        .header(header::HOST, address.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, Subprotocol::Json.name());
    if let (Some(token), None) = (who.token, who.ticket) {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    // Not the error's own text, which may quote a token.
    request.body(()).map_err(|_| never(format!("{address} or the token cannot be sent as it is")))
}

fn connect(address: &Address, deadline: Instant) -> Result<TcpStream, Unreached> {
    let addresses = (address.host.as_str(), address.port).to_socket_addrs().map_err(|error| {
        later(format!("{:?} cannot be looked up: {error}; is --url right?", address.host))
    })?;
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for one in addresses {
        match TcpStream::connect_timeout(&one, until(deadline)) {
            Ok(tcp) => {
                tcp.set_nodelay(true).map_err(later)?;
                tcp.set_read_timeout(Some(until(deadline))).map_err(later)?;
                tcp.set_write_timeout(Some(PATIENCE)).map_err(later)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    let hint = match last.kind() {
        ErrorKind::ConnectionRefused => "; is `aldis up` running? Else say where with --url",
        _ => "; is --url right?",
    };
    Err(later(format!("{last}{hint}")))
}

fn secure(address: &Address, tcp: TcpStream) -> Result<Box<dyn Stream>, Unreached> {
    if !address.is_secure {
        return Ok(Box::new(tcp));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier())
        .map_err(|error| never(format!("no TLS here: {error}")))?
        .with_no_client_auth();
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| never(format!("{:?} is no name for TLS", address.host)))?;
    let connection = rustls::ClientConnection::new(Arc::new(config), name)
        .map_err(|error| never(format!("no TLS with {address}: {error}")))?;
    Ok(Box::new(rustls::StreamOwned::new(connection, tcp)))
}

fn refused<R>(address: &Address, error: HandshakeError<R>) -> Refused
where
    R: tungstenite::handshake::HandshakeRole,
{
    let error = match error {
        HandshakeError::Failure(error) => error,
        HandshakeError::Interrupted(_) => {
            return later("no answer to the handshake in time").into();
        }
    };
    let response = match error {
        Error::Http(response) => response,
        Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            return never(format!("no TLS with {address}: {error}")).into();
        }
        Error::Io(error) => return later(error).into(),
        Error::ConnectionClosed | Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            return later("it closed the connection at once").into();
        }
        other => return never(format!("{address} is no edge of Aldis: {other}")).into(),
    };
    let body = response.body().as_deref().unwrap_or_default();
    let said = serde_json::from_slice::<serde_json::Value>(body).ok();
    let said = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
    let status = response.status();
    let unreached = match status {
        StatusCode::UNAUTHORIZED => return Refused::Unbelieved,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let after = response.headers().get(header::RETRY_AFTER);
            let seconds = after.and_then(|after| after.to_str().ok()?.parse().ok());
            let reason = format!("refused for now, {status}: {said}");
            Unreached::Later { reason, retry: seconds.map(Duration::from_secs) }
        }
        StatusCode::NOT_FOUND => {
            never(format!("{address} serves no clients, 404: is the path of --url right?"))
        }
        _ => never(format!("{address} refuses, {status}: {said}")),
    };
    unreached.into()
}

impl From<Unreached> for Refused {
    fn from(unreached: Unreached) -> Refused {
        Refused::Unreached(unreached)
    }
}

/// What is left, but never nothing: zero would mean for ever.
fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn is_only_time(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn later(reason: impl ToString) -> Unreached {
    Unreached::Later { reason: reason.to_string(), retry: None }
}

fn never(reason: String) -> Unreached {
    Unreached::Never(Usage(reason))
}
