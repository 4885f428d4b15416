//! One thread's connections: opened, upgraded, and turned. What is said on them is the workload's.
//!
//! All that a turn's completions make a workload say leaves at its end, in one send per connection.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::kernel::{BufferId, Completion, Request, Ring};
use crate::target::Target;
use crate::websocket::{self, Opcode};

/// Connections that are opened at the same time: fewer than a listener's usual backlog.
const OPENING_MAX: usize = 256;
/// Vectors kept for reuse.
const SPARE_MAX: usize = 1024;

/// Nanoseconds since one moment that all threads share.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub Instant);

impl Clock {
    pub fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What is said on connections. Indices are the thread's own, from 0.
pub trait Conversation {
    /// Path and query of the upgrade.
    fn path(&self, index: usize) -> String;

    /// A text or binary message of the server.
    fn message(&mut self, index: usize, payload: &[u8], now_ns: u64, outboxes: &mut Outboxes);

    /// Everything of one receive has been passed to [`Conversation::message`].
    fn paused(&mut self, _index: usize, _outboxes: &mut Outboxes) {}

    /// The connection is gone, after it was open.
    fn lost(&mut self, index: usize);
}

/// See the module.
pub struct Fleet {
    ring: Ring,
    clock: Clock,
    target: Target,
    /// Place of connection 0 among those of all threads.
    first_position: usize,
    connections: Vec<Connection>,
    outboxes: Outboxes,
    completions: Vec<Completion>,
    begun_count: usize,
    open_count: usize,
    losses: Losses,
}

/// Connections that ended while they were needed.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    pub count: usize,
    pub first_reason: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Upgrading,
    Open,
    Gone,
}

struct Connection {
    phase: Phase,
    /// Bytes of a frame or response that is not whole yet.
    arriving: Vec<u8>,
}

impl Fleet {
    pub fn new(
        target: Target,
        positions: std::ops::Range<usize>,
        clock: Clock,
    ) -> anyhow::Result<Fleet> {
        let count = positions.len();
        let ring = Ring::new(target.address, count).context(
            "cannot set up io_uring (it needs Linux 6.1, and a container or sysctl that allows it)",
        )?;
        let new = || Connection { phase: Phase::New, arriving: Vec::new() };
        Ok(Fleet {
            ring,
            clock,
            target,
            first_position: positions.start,
            connections: std::iter::repeat_with(new).take(count).collect(),
            outboxes: Outboxes::new(count, positions.start as u64),
            completions: Vec::new(),
            begun_count: 0,
            open_count: 0,
            losses: Losses::default(),
        })
    }

    pub fn count(&self) -> usize {
        self.connections.len()
    }

    pub fn is_open(&self) -> bool {
        self.open_count == self.count()
    }

    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    pub fn outboxes(&mut self) -> &mut Outboxes {
        &mut self.outboxes
    }

    /// Begins further connections, as many at a time as is polite.
    pub fn open_more(&mut self) -> anyhow::Result<()> {
        while self.begun_count < self.count()
            && self.begun_count - self.open_count - self.losses.count < OPENING_MAX
        {
            let index = self.begun_count;
            self.ring
                .connect(index, self.first_position + index)
                .context("cannot open a socket (see `ulimit -n`)")?;
            self.begun_count += 1;
        }
        Ok(())
    }

    /// Sends what is queued, waits at most `wait` for completions, and runs them.
    pub fn turn(&mut self, talk: &mut dyn Conversation, wait: Duration) -> anyhow::Result<()> {
        self.outboxes.flush(&mut self.ring);
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.turn(wait, &mut completions).context("io_uring failed")?;
        for completion in completions.drain(..) {
            self.complete(completion, talk)?;
        }
        self.completions = completions;
        Ok(())
    }

    fn complete(
        &mut self,
        completion: Completion,
        talk: &mut dyn Conversation,
    ) -> anyhow::Result<()> {
        let Completion { index, result, of } = completion;
        match of {
            Request::Connect => self.connected(index, result, talk),
            Request::Send => {
                self.outboxes.sent(index, self.ring.take_sent(index));
                if result < 0 {
                    self.lose(index, talk, &format!("send: {}", errno_text(result)))?;
                }
                Ok(())
            }
            Request::Receive { buffer, armed } => {
                if let Some(buffer) = buffer {
                    self.received(index, buffer, result as usize, talk)?;
                }
                match (armed, result) {
                    (true, _) => Ok(()),
                    (false, 0) => self.lose(index, talk, "the server closed the connection"),
                    (false, _) if result > 0 || result == -libc::ENOBUFS => {
                        self.ring.receive(index);
                        Ok(())
                    }
                    _ => self.lose(index, talk, &format!("receive: {}", errno_text(result))),
                }
            }
        }
    }

    fn connected(
        &mut self,
        index: usize,
        result: i32,
        talk: &mut dyn Conversation,
    ) -> anyhow::Result<()> {
        if result == -libc::ECONNREFUSED {
            bail!("{}: connection refused; is the server running there?", self.target.name);
        }
        if result < 0 {
            bail!("{}: cannot connect: {}", self.target.name, errno_text(result));
        }
        self.connections[index].phase = Phase::Upgrading;
        self.ring.receive(index);
        let request = websocket::upgrade_request(&self.target.name, &talk.path(index));
        self.outboxes.send_raw(index, &request);
        Ok(())
    }

    fn received(
        &mut self,
        index: usize,
        buffer: BufferId,
        size: usize,
        talk: &mut dyn Conversation,
    ) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        let arrived = self.ring.bytes(buffer, size);
        let mut input = Input {
            index,
            now_ns: self.clock.now_ns(),
            is_newly_open: false,
            phase: connection.phase,
            outboxes: &mut self.outboxes,
            talk,
        };
        // Only what an earlier receive began has to be joined with this one.
        let outcome = if connection.arriving.is_empty() {
            let outcome = input.take(arrived);
            connection.arriving.extend_from_slice(&arrived[input_rest(&outcome, size)..]);
            outcome
        } else {
            let mut joined = std::mem::take(&mut connection.arriving);
            joined.extend_from_slice(arrived);
            let outcome = input.take(&joined);
            joined.drain(..input_rest(&outcome, joined.len()));
            connection.arriving = joined;
            outcome
        };
        connection.phase = input.phase;
        self.open_count += usize::from(input.is_newly_open);
        self.ring.release(buffer);
        match outcome {
            Ok(_) => {
                talk.paused(index, &mut self.outboxes);
                Ok(())
            }
            Err(End::Refused(said)) => bail!("{} did not upgrade: {said}", self.target.name),
            Err(End::Lost(reason)) => self.lose(index, talk, &reason),
        }
    }

    /// A connection that ends before all are open is an error of the whole run.
    fn lose(
        &mut self,
        index: usize,
        talk: &mut dyn Conversation,
        reason: &str,
    ) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.connections[index].phase, Phase::Gone);
        if before == Phase::Gone {
            return Ok(());
        }
        self.ring.close(index);
        self.outboxes.forget(index);
        if before != Phase::Open {
            bail!("{}: a connection ended before its upgrade: {reason}", self.target.name);
        }
        self.losses.count += 1;
        self.losses.first_reason.get_or_insert_with(|| reason.to_owned());
        talk.lost(index);
        Ok(())
    }
}

/// Why a connection cannot go on.
enum End {
    Refused(String),
    Lost(String),
}

/// Received bytes on their way to the conversation.
struct Input<'a> {
    index: usize,
    now_ns: u64,
    is_newly_open: bool,
    phase: Phase,
    outboxes: &'a mut Outboxes,
    talk: &'a mut dyn Conversation,
}

impl Input<'_> {
    /// Takes what is whole at the front of `bytes`, and returns its size.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, End> {
        let mut taken = 0;
        if self.phase == Phase::Upgrading {
            match websocket::upgrade_response(bytes) {
                Ok(Some(size)) => taken = size,
                Ok(None) => return Ok(0),
                Err(refused) => return Err(End::Refused(refused.0)),
            }
            self.phase = Phase::Open;
            self.is_newly_open = true;
        }
        while self.phase == Phase::Open {
            let next = websocket::decode(&bytes[taken..]);
            let next = next.map_err(|violation| End::Lost(violation.to_string()))?;
            let Some((frame, size)) = next else {
                break;
            };
            taken += size;
            match frame.opcode {
                Opcode::Text | Opcode::Binary => {
                    self.talk.message(self.index, frame.payload, self.now_ns, self.outboxes);
                }
                Opcode::Ping => self.outboxes.send(self.index, Opcode::Pong, frame.payload),
                Opcode::Pong => {}
                Opcode::Close => return Err(End::Lost(close_text(frame.payload))),
            }
        }
        Ok(taken)
    }
}

/// How many bytes need not be kept; all of them when the connection ends.
fn input_rest(outcome: &Result<usize, End>, size: usize) -> usize {
    outcome.as_ref().map_or(size, |taken| *taken)
}

/// What waits to be sent, by connection.
pub struct Outboxes {
    outboxes: Vec<Outbox>,
    /// Those with something to send and no send under way.
    due: Vec<usize>,
    spare: Vec<Vec<u8>>,
    random: u64,
}

#[derive(Default)]
struct Outbox {
    pending: Vec<u8>,
    is_sending: bool,
    is_due: bool,
    is_gone: bool,
}

impl Outboxes {
    pub fn new(count: usize, seed: u64) -> Outboxes {
        Outboxes {
            outboxes: std::iter::repeat_with(Outbox::default).take(count).collect(),
            due: Vec::new(),
            spare: Vec::new(),
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Queues a message or control frame. On a connection that is gone it goes nowhere.
    pub fn send(&mut self, index: usize, opcode: Opcode, payload: &[u8]) {
        let mask = self.next_mask();
        self.queue(index, |pending| websocket::encode(pending, opcode, mask, payload));
    }

    fn send_raw(&mut self, index: usize, bytes: &[u8]) {
        self.queue(index, |pending| pending.extend_from_slice(bytes));
    }

    fn queue(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let outbox = &mut self.outboxes[index];
        if outbox.is_gone {
            return;
        }
        write(&mut outbox.pending);
        if !outbox.is_sending && !outbox.is_due {
            outbox.is_due = true;
            self.due.push(index);
        }
    }

    fn flush(&mut self, ring: &mut Ring) {
        for index in self.due.drain(..) {
            let outbox = &mut self.outboxes[index];
            outbox.is_due = false;
            if outbox.is_gone {
                continue;
            }
            outbox.is_sending = true;
            let spare = self.spare.pop().unwrap_or_default();
            ring.send(index, std::mem::replace(&mut outbox.pending, spare));
        }
    }

    fn sent(&mut self, index: usize, emptied: Vec<u8>) {
        let outbox = &mut self.outboxes[index];
        outbox.is_sending = false;
        if !outbox.pending.is_empty() && !outbox.is_due {
            outbox.is_due = true;
            self.due.push(index);
        }
        if self.spare.len() < SPARE_MAX {
            self.spare.push(emptied);
        }
    }

    fn forget(&mut self, index: usize) {
        self.outboxes[index].is_gone = true;
        self.outboxes[index].pending = Vec::new();
    }

    /// Xorshift: a mask must only be unlike the one before.
    fn next_mask(&mut self) -> [u8; 4] {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 32) as u32).to_ne_bytes()
    }
}

pub fn close_text(payload: &[u8]) -> String {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return "the server closed without a code".to_owned();
    };
    let code = u16::from_be_bytes(*code);
    format!("the server closed with {code} {}", String::from_utf8_lossy(reason))
}

pub fn errno_text(result: i32) -> String {
    std::io::Error::from_raw_os_error(-result).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it hears.
    #[derive(Default)]
    struct Heard(Vec<Vec<u8>>);

    impl Conversation for Heard {
        fn path(&self, _: usize) -> String {
            "/".to_owned()
        }

        fn message(&mut self, _: usize, payload: &[u8], _: u64, _: &mut Outboxes) {
            self.0.push(payload.to_vec());
        }

        fn lost(&mut self, _: usize) {}
    }

    #[test]
    fn whole_frames_are_taken_and_the_rest_is_left() {
        let (mut heard, mut outboxes) = (Heard::default(), Outboxes::new(1, 0));
        let mut input = Input {
            index: 0,
            now_ns: 0,
            is_newly_open: false,
            phase: Phase::Open,
            outboxes: &mut outboxes,
            talk: &mut heard,
        };
        let bytes = b"\x81\x02hi\x89\x01p\x82\x01x\x81\x05ab";
        assert!(matches!(input.take(bytes), Ok(10)));
        assert!(matches!(input.take(b"\x88\x02\x03\xe8"), Err(End::Lost(reason)) if
            reason == "the server closed with 1000 "));
        assert_eq!(heard.0, [b"hi".to_vec(), b"x".to_vec()]);
        let pong = &outboxes.outboxes[0].pending;
        assert_eq!((pong[0], pong.len()), (0x8a, 7));
    }

    #[test]
    fn a_gone_connection_takes_nothing() {
        let mut outboxes = Outboxes::new(2, 1);
        outboxes.forget(0);
        outboxes.send(0, Opcode::Text, b"lost");
        outboxes.send(1, Opcode::Text, b"kept");
        outboxes.send(1, Opcode::Text, b"kept");
        assert_eq!(outboxes.due, [1]);
        assert!(outboxes.outboxes[0].pending.is_empty());
    }
}
