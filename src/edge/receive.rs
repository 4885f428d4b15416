//! What received bytes mean, by the phase of their connection: a request, frames, or nothing more.
//! Needs no ring: the bytes lie in a receive buffer, and what is answered is queued.

use crate::framer::frame::CONTROL_SIZE_MAX;
use crate::framer::handshake::refusal_response;
use crate::framer::{Event, Framer, Input, Opcode, Refusal, Request, Violation};
use crate::limits::REQUEST_HEAD_SIZE_MAX;
use crate::ring::Ring;

use super::application::{Application, ConnectionId, Decision, End, Message};
use super::connection::{ArrivingRequest, Listening, Phase};
use super::connections::Connections;

/// A masked close frame without payload.
const CLOSE_FRAME_SIZE_MIN: usize = 6;
const CLOSE_FRAME_SIZE_MAX: usize = CLOSE_FRAME_SIZE_MIN + CONTROL_SIZE_MAX;
/// Final, close.
const CLOSE_FIRST_BYTE: u8 = 0x88;

/// Handles bytes of a connection.
pub(super) fn received<R: Ring, A: Application<R>>(
    application: &mut A,
    connections: &mut Connections,
    id: ConnectionId,
    bytes: &mut [u8],
) {
    let Some(connection) = connections.get_mut(id) else {
        return;
    };
    match (connection.phase, connection.listening) {
        (Phase::Request, _) => match connections.take_request(id) {
            None => request(application, connections, id, bytes),
            Some(arriving) => more_of_request(application, connections, id, arriving, bytes),
        },
        (Phase::Open, _) | (Phase::Closing, Listening::Frames) => {
            frames(application, connections, id, bytes);
        }
        (Phase::Closing, Listening::CloseFrame) if ends_in_close_frame(bytes) => {
            connections.peer_done(id);
        }
        (Phase::Closing | Phase::Gone, _) => {}
    }
}

/// Handles the end of a connection's stream.
pub(super) fn ended(connections: &mut Connections, id: ConnectionId) {
    match connections.get(id).map(|connection| connection.phase) {
        Some(Phase::Closing) => connections.peer_done(id),
        Some(Phase::Request | Phase::Open) => connections.lost(id, false),
        Some(Phase::Gone) | None => {}
    }
}

/// Adds to a request that earlier receives began. It is parsed again only when it may have become
/// whole, so that one that arrives byte by byte costs little.
fn more_of_request<R: Ring, A: Application<R>>(
    application: &mut A,
    connections: &mut Connections,
    id: ConnectionId,
    mut arriving: Box<ArrivingRequest>,
    bytes: &[u8],
) {
    arriving.bytes.extend_from_slice(bytes);
    let size = arriving.bytes.len();
    let is_maybe_whole = match arriving.size_needed {
        Some(size_needed) => size >= size_needed,
        None => bytes.contains(&b'\n') || size >= REQUEST_HEAD_SIZE_MAX,
    };
    if is_maybe_whole {
        let mut bytes = std::mem::take(&mut arriving.bytes);
        request(application, connections, id, &mut bytes);
    } else {
        connections.keep_request(id, arriving);
    }
}

/// Handles all that has arrived of a request, and of frames behind it.
fn request<R: Ring, A: Application<R>>(
    application: &mut A,
    connections: &mut Connections,
    id: ConnectionId,
    bytes: &mut [u8],
) {
    let whole = match whole_request(bytes, connections.options.body_size_max) {
        Ok(whole) => whole,
        Err(NotWhole::Arriving { size_needed }) => {
            let bytes = bytes.to_vec();
            let arriving = Box::new(ArrivingRequest { bytes, size_needed });
            return connections.keep_request(id, arriving);
        }
        Err(NotWhole::Refused(response)) => {
            return connections.respond(id, &response, Listening::EndOfStream);
        }
    };
    let (head, body, size) = whole;
    let decision = application.request(connections.now, id, &head, body);
    let listening = match size == bytes.len() {
        true => Listening::Nothing,
        false => Listening::EndOfStream,
    };
    let subprotocol = match decision {
        Decision::Upgrade { subprotocol } => subprotocol,
        Decision::Respond(response) => return connections.respond(id, &response, listening),
    };
    let mut response = connections.spare_vector();
    let deflate = match head.upgrade() {
        Ok(upgrade) => {
            let deflate = upgrade.deflate.filter(|_| connections.options.deflate);
            upgrade.write_response(subprotocol, deflate, &mut response);
            deflate
        }
        Err(refusal) => return connections.respond(id, &refusal.response(), listening),
    };
    connections.queue(id, |outbound| outbound.push_response(&response));
    response.clear();
    connections.recycle_vector(response);
    connections.open(id, deflate);
    application.opened(connections.now, id, connections);
    frames(application, connections, id, &mut bytes[size..]);
}

enum NotWhole {
    Arriving { size_needed: Option<usize> },
    Refused(Vec<u8>),
}

impl From<Refusal> for NotWhole {
    fn from(refusal: Refusal) -> NotWhole {
        NotWhole::Refused(refusal.response())
    }
}

/// The request at the front of `bytes`, its body, and the size of both.
fn whole_request(
    bytes: &[u8],
    body_size_max: usize,
) -> Result<(Request<'_>, &[u8], usize), NotWhole> {
    let Some((head, head_size)) = Request::parse(bytes)? else {
        return Err(NotWhole::Arriving { size_needed: None });
    };
    let body_size = head.body_size()?;
    if body_size > body_size_max {
        let refusal = refusal_response(413, "too_large", "the body is too large", &[]);
        return Err(NotWhole::Refused(refusal));
    }
    let size = head_size + body_size;
    match bytes.get(head_size..size) {
        Some(body) => Ok((head, body, size)),
        None => Err(NotWhole::Arriving { size_needed: Some(size) }),
    }
}

/// Runs bytes through the framer, which is out of its slot meanwhile, as the inflater is: the
/// application may do anything to any connection while it looks at a message.
fn frames<R: Ring, A: Application<R>>(
    application: &mut A,
    connections: &mut Connections,
    id: ConnectionId,
    bytes: &mut [u8],
) {
    let Some(connection) = connections.get_mut(id) else {
        return;
    };
    let mut framer = connection.reading.take_framer();
    let held_before = framer.held_size();
    let mut inflater = connections.inflater.take();
    let mut input = Input::with_inflater(bytes, inflater.as_deref_mut());
    loop {
        match framer.next(&mut input) {
            Ok(Some(event)) => handle(application, connections, id, event),
            Ok(None) => break,
            Err(violation) => {
                violated(connections, id, violation);
                break;
            }
        }
    }
    connections.inflater = inflater;
    connections.put_back(id, framer, held_before);
}

fn handle<R: Ring, A: Application<R>>(
    application: &mut A,
    connections: &mut Connections,
    id: ConnectionId,
    event: Event,
) {
    let is_open = connections.is_open(id);
    connections.heard(id);
    let message = match event {
        Event::Close { code, .. } => {
            return closed_by_client(connections, id, code);
        }
        Event::Ping(payload) if is_open => {
            return connections.queue(id, |outbound| outbound.push_control(Opcode::Pong, payload));
        }
        Event::Text(text) if is_open => Message::Text(text),
        Event::Binary(bytes) if is_open => Message::Binary(bytes),
        _ => return,
    };
    connections.counters.messages += 1;
    application.message(connections.now, id, message, connections);
}

/// Answers a close frame with its own code, or takes it as the answer to ours. Both sides have then
/// closed, and the server closes the socket first (RFC 6455 7.1.1).
fn closed_by_client(connections: &mut Connections, id: ConnectionId, code: Option<u16>) {
    if connections.is_open(id) {
        connections.begin_close(id, code, "", End::Client, Listening::Nothing);
    } else {
        connections.peer_done(id);
    }
}

fn violated(connections: &mut Connections, id: ConnectionId, violation: Violation) {
    let (code, reason) = (violation.close_code(), violation.to_string());
    let listening = match violation.is_in_close_frame() {
        true => Listening::Nothing,
        false => Listening::CloseFrame,
    };
    if connections.is_open(id) {
        connections.begin_close(id, Some(code), &reason, End::Violation, listening);
    } else if listening == Listening::Nothing {
        connections.peer_done(id);
    } else if let Some(connection) = connections.get_mut(id) {
        connection.listening = listening;
    }
}

/// Whether a whole good close frame is at the end of these bytes, as the peer's answer to ours is.
/// Where the frames before it begin is not known any more after a violation. To be wrong about it
/// only ends the discarding early.
fn ends_in_close_frame(bytes: &[u8]) -> bool {
    let size_max = bytes.len().min(CLOSE_FRAME_SIZE_MAX);
    (CLOSE_FRAME_SIZE_MIN..=size_max).any(|size| {
        let candidate = &bytes[bytes.len() - size..];
        let is_sized = usize::from(candidate[1] & 0x7f) == size - CLOSE_FRAME_SIZE_MIN;
        candidate[0] == CLOSE_FIRST_BYTE && is_sized && is_close_frame(candidate)
    })
}

fn is_close_frame(bytes: &[u8]) -> bool {
    let mut copy = bytes.to_vec();
    let mut framer = Framer::new(0);
    let mut input = Input::new(&mut copy);
    matches!(framer.next(&mut input), Ok(Some(Event::Close { .. })))
}
