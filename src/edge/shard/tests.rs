//! A shard over a ring of its own that a test scripts: what arrives, what is free, what is held.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::super::application::{Decision, End, Message};
use super::super::connection::{CLOSE_MS, HANDSHAKE_MS, PROGRESS_MS};
use super::super::connections::{SPARE_COUNT, SendError};
use super::*;
use crate::framer::handshake::response;
use crate::framer::{Opcode, Request, encode_frame};
use crate::ring::BufferId;

mod admitting;
mod closing;
mod compressing;
mod memory;
mod opening;
mod sending;
mod simulated;
mod tiers;

/// Completes every send at once, unless told to hold them.
#[derive(Default)]
struct ScriptedRing {
    pending: Vec<Completion>,
    receives: HashMap<Socket, Token>,
    /// What was asked for, in order.
    asked: Vec<(Socket, Armed)>,
    cancelled: Vec<Token>,
    accepts: Vec<Token>,
    buffers: Vec<Option<Vec<u8>>>,
    has_no_buffers: bool,
    holds_sends: bool,
    held: Vec<(Token, usize)>,
    sends: Vec<(Socket, Vec<u8>)>,
    closed: Vec<(Socket, bool)>,
}

impl ScriptedRing {
    fn complete(&mut self, token: Token, result: i32, more: bool, buffer: Option<BufferId>) {
        self.pending.push(Completion { token, result, more, buffer });
    }

    fn arrive(&mut self, token: Token, bytes: &[u8], more: bool) {
        let buffer = BufferId(self.buffers.len() as u16);
        self.buffers.push(Some(bytes.to_vec()));
        self.complete(token, bytes.len() as i32, more, Some(buffer));
    }

    fn ask(&mut self, socket: Socket, token: Token, armed: Armed) {
        self.receives.insert(socket, token);
        self.asked.push((socket, armed));
    }

    /// What was asked for last.
    fn armed(&self, socket: Socket) -> Armed {
        let asked = self.asked.iter().rev().find(|(of, _)| *of == socket);
        asked.map_or(Armed::Nothing, |(_, armed)| *armed)
    }

    fn let_go(&mut self) {
        self.holds_sends = false;
        for (token, size) in std::mem::take(&mut self.held) {
            self.complete(token, size as i32, false, None);
        }
    }
}

impl Ring for ScriptedRing {
    fn accept(&mut self, _: Socket, token: Token) {
        self.accepts.push(token);
    }

    fn accept_one(&mut self, _: Socket, token: Token) {
        self.accepts.push(token);
    }

    fn take_peer(&mut self, _: Token) -> Option<SocketAddr> {
        None
    }

    fn accepted(&self, result: u32) -> Socket {
        Socket::Direct(result)
    }

    fn connect(&mut self, _: SocketAddr, _: Token) -> Result<Socket, i32> {
        Err(libc::ECONNREFUSED)
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        self.ask(socket, token, Armed::Stream);
    }

    fn receive_once(&mut self, socket: Socket, token: Token) {
        self.ask(socket, token, Armed::Once);
    }

    fn poll(&mut self, socket: Socket, token: Token) {
        self.ask(socket, token, Armed::Poll);
    }

    fn send(&mut self, socket: Socket, data: Vec<u8>, token: Token) {
        assert!(!self.held.iter().any(|(held, _)| *held == token), "one send per socket");
        let size = data.len();
        self.sends.push((socket, data));
        match self.holds_sends {
            true => self.held.push((token, size)),
            false => self.complete(token, size as i32, false, None),
        }
    }

    fn take_sent(&mut self, _: Token) -> Option<Vec<u8>> {
        Some(Vec::new())
    }

    fn take_unsent(&mut self, _: Token) -> Option<Vec<u8>> {
        Some(Vec::new())
    }

    fn watch(&mut self, _: RawFd, _: Token) {}

    fn cancel(&mut self, token: Token) {
        self.cancelled.push(token);
        self.complete(token, -libc::ECANCELED, false, None);
    }

    fn close(&mut self, socket: Socket, reset: bool) {
        self.closed.push((socket, reset));
    }

    fn turn(&mut self, _: u64, completions: &mut Vec<Completion>) {
        completions.append(&mut self.pending);
    }

    fn bytes(&mut self, buffer: BufferId, size: usize) -> &mut [u8] {
        let held = self.buffers[usize::from(buffer.0)].as_mut();
        &mut held.expect("not released yet")[..size]
    }

    fn release(&mut self, buffer: BufferId) {
        let held = self.buffers[usize::from(buffer.0)].take();
        held.expect("released once");
    }

    fn buffers_free(&self) -> usize {
        if self.has_no_buffers { 0 } else { 16 }
    }
}

/// Echoes, and does what a few words say. Notes what it was told.
#[derive(Default)]
struct Scripted {
    told: Vec<String>,
    full: usize,
}

impl<R: Ring> Application<R> for Scripted {
    fn request(&mut self, _: Now, _: ConnectionId, request: &Request, body: &[u8]) -> Decision {
        match request.path {
            "/plain" => Decision::Respond(response(200, "text/plain", &[], body)),
            _ => Decision::Upgrade { subprotocol: None },
        }
    }

    fn opened(&mut self, _: Now, id: ConnectionId, connections: &mut Connections) {
        self.told.push(format!("opened {}", id.slot));
        assert!(connections.is_open(id));
    }

    fn message(
        &mut self,
        _: Now,
        id: ConnectionId,
        message: Message,
        connections: &mut Connections,
    ) {
        let queued = match message {
            Message::Text("close me") => return connections.close(id, 4001, "replaced"),
            Message::Text("watch me") => return connections.watch_drained(id),
            Message::Text(text) => connections.send_text(id, text),
            Message::Binary(bytes) => connections.send_binary(id, bytes),
        };
        if queued == Err(SendError::Full) {
            self.full += 1;
            connections.cut(id, 4003, "slow", End::Slow);
        }
    }

    fn closed(&mut self, _: Now, id: ConnectionId, end: End, connections: &mut Connections) {
        assert!(!connections.is_open(id));
        self.told.push(format!("closed {} {end:?}", id.slot));
    }

    fn drained(&mut self, _: Now, id: ConnectionId, _: &mut Connections) {
        self.told.push(format!("drained {}", id.slot));
    }
}

struct Stage {
    shard: Shard<ScriptedRing, Scripted>,
    now: Now,
}

const UPGRADE: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
const PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

impl Stage {
    fn new() -> Stage {
        Stage::with(ShardOptions {
            connection_count_max: 2,
            message_size_max: 100_000,
            queue_size_max: 300_000,
            body_size_max: 100,
            ..ShardOptions::default()
        })
    }

    fn with(options: ShardOptions) -> Stage {
        let now = Now { monotonic_us: 5_000_000, unix_ms: 0 };
        let (ring, application) = (ScriptedRing::default(), Scripted::default());
        let mut shard = Shard::new(ring, application, options, now);
        shard.add_listener(Socket::Ordinary(3));
        Stage { shard, now }
    }

    fn ring(&mut self) -> &mut ScriptedRing {
        self.shard.parts().1
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.shard.parts().0.told)
    }

    /// Turns until nothing is under way.
    fn settle(&mut self) {
        loop {
            let now = self.now;
            self.shard.turn(&mut || now);
            self.shard.connections.check_ledger();
            if self.ring().pending.is_empty() {
                break;
            }
        }
        let all_released = self.ring().buffers.iter().all(Option::is_none);
        assert!(all_released, "every receive buffer is given back");
    }

    fn pass_ms(&mut self, time_ms: u64) {
        let end_us = self.now.monotonic_us + time_ms * 1_000;
        while self.now.monotonic_us < end_us {
            self.now.monotonic_us = end_us.min(self.now.monotonic_us + 100_000);
            self.settle();
        }
    }

    fn accept(&mut self, socket: u32) {
        let token = self.ring().accepts[0];
        self.ring().complete(token, socket as i32, true, None);
        self.settle();
    }

    fn arrive(&mut self, socket: u32, bytes: &[u8]) {
        let (token, armed) = self.readable(socket);
        self.ring().arrive(token, bytes, armed == Armed::Stream);
        self.settle();
    }

    /// Whoever polls is told, and receives.
    fn readable(&mut self, socket: u32) -> (Token, Armed) {
        let socket = Socket::Direct(socket);
        let token = self.ring().receives[&socket];
        if self.ring().armed(socket) == Armed::Poll {
            self.ring().complete(token, 1, false, None);
            self.settle();
        }
        (token, self.ring().armed(socket))
    }

    fn end_of_stream(&mut self, socket: u32) {
        let (token, _) = self.readable(socket);
        self.ring().complete(token, 0, false, None);
        self.settle();
    }

    /// What was sent since the last call, joined.
    fn sent(&mut self) -> Vec<u8> {
        let sends = std::mem::take(&mut self.ring().sends);
        sends.into_iter().flat_map(|(_, data)| data).collect()
    }

    fn sent_text(&mut self) -> String {
        String::from_utf8_lossy(&self.sent()).into_owned()
    }

    /// Accepts and upgrades, forgetting the answer.
    fn open(&mut self, socket: u32) {
        self.accept(socket);
        self.arrive(socket, UPGRADE);
        assert!(self.sent_text().starts_with("HTTP/1.1 101 "));
        self.told();
    }

    /// Opens, and makes it busy.
    fn open_busy(&mut self, socket: u32) {
        self.open(socket);
        while self.ring().armed(Socket::Direct(socket)) != Armed::Stream {
            self.arrive(socket, PONG);
        }
    }

    fn closed(&mut self) -> Vec<(Socket, bool)> {
        std::mem::take(&mut self.ring().closed)
    }
}

fn server_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(opcode, payload, &mut frame);
    frame
}

/// Masked with a key of zeros.
fn client_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = server_frame(opcode, payload);
    let header_size = frame.len() - payload.len();
    frame[1] |= 0x80;
    frame.splice(header_size..header_size, [0; 4]);
    frame
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}
