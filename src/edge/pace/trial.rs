//! What a handshake costs here: the work of one, done in memory, before anybody is listened to.

use std::hint::black_box;

use crate::clock::Now;
use crate::edge::identity::{Door, Identities};
use crate::edge::site::{Answer, Site};
use crate::edge::ticket::Tickets;
use crate::framer::{Opcode, Request, encode_frame};
use crate::protocol::json;
use crate::protocol::operation::Event;

/// Handshakes between two looks at the clock.
const BATCH: u64 = 128;
/// The trial ends after this, or after so many batches. The best of them counts: the others were
/// interrupted.
const TRIAL_US_MAX: u64 = 5_000;
const BATCHES_MAX: u64 = 16;
/// A handshake costs an edge and the sequencer beside it so many times what is tried here: the rest
/// is the kernel's (accept, receive, send, close), the shard's own, the link's and the session's.
/// Measured: `benches/record/2026-11-25-handshakes.txt`.
const WHOLE: u64 = 12;
const NS_PER_S: u64 = 1_000_000_000;
const USER: &str = "a-user-who-returns";
const DEVICE: &str = "phone";

/// One client who returns with his ticket, again and again.
pub struct Trial {
    site: Site,
    tickets: Tickets,
    request: Vec<u8>,
    out: Vec<u8>,
}

impl Trial {
    /// With a secret of its own, and without a clock: times are given.
    pub fn new(now: Now) -> Trial {
        let tickets = Tickets::new(b"of nobody but this trial: 32 bytes");
        let ticket = tickets.issue(USER, DEVICE, now.unix_ms);
        let request = format!(
            "GET /v1/connect?ticket={ticket} HTTP/1.1\r\nHost: localhost\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let door = Door::new(Vec::new(), Vec::new(), tickets.clone(), Identities::Development);
        let site = Site { door, has_kill_buttons: false, control: None };
        Trial { site, tickets, request: request.into_bytes(), out: Vec::new() }
    }

    /// Nanoseconds of one, by this clock.
    pub fn run(&mut self, clock: &mut dyn FnMut() -> Now) -> u64 {
        let mut from = clock();
        let end_us = from.monotonic_us + TRIAL_US_MAX;
        let mut best_us = u64::MAX;
        for _ in 0..BATCHES_MAX {
            for _ in 0..BATCH {
                assert!(self.handshake(from.unix_ms), "the ticket has just been issued");
            }
            let now = clock();
            best_us = best_us.min(now.monotonic_us.saturating_sub(from.monotonic_us));
            from = now;
            if now.monotonic_us >= end_us {
                break;
            }
        }
        (best_us * 1_000 / BATCH).max(1)
    }

    /// Reads the request, knows the client, and writes the answer and the `welcome`. Whether he is
    /// let in.
    fn handshake(&mut self, now_unix_ms: u64) -> bool {
        let Ok(Some((request, _))) = Request::parse(black_box(&self.request)) else {
            return false;
        };
        let Answer::Connect(admitted) = self.site.answer(&request, false, now_unix_ms) else {
            return false;
        };
        let Ok(upgrade) = request.upgrade() else {
            return false;
        };
        self.out.clear();
        upgrade.write_response(None, None, &mut self.out);
        let ticket = self.tickets.issue(&admitted.user, &admitted.device, now_unix_ms);
        let welcome = Event::Welcome {
            user: &admitted.user,
            device: &admitted.device,
            session: "0",
            heartbeat_ms: 0,
            ticket: &ticket,
            server: "edge",
        };
        let mut text = Vec::new();
        json::encode(&welcome, &mut text);
        encode_frame(Opcode::Text, &text, &mut self.out);
        black_box(self.out.len()) > 0
    }
}

/// Handshakes per second that a process bears whose trial took `trial_ns` each, with so many shards
/// on so many processors: shards beyond the processors share them.
pub fn process_capacity(trial_ns: u64, processors: usize, shards: usize) -> u64 {
    let each = NS_PER_S / trial_ns.max(1).saturating_mul(WHOLE);
    (each * processors.min(shards).max(1) as u64).max(1)
}
