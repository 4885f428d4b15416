//! A crowd: many connections that mostly keep still. Each thread has a ring with a socket table of
//! its own and one share of them; somebody else watches and gives orders.
//!
//! A member of the crowd costs this process 4 bytes, and the kernel a socket and a poll. It answers
//! the server's pings, comes back when it was cut (exponential backoff, full jitter), and its
//! handshake counts from when it was to begin, not from when there was room for it.

pub mod orders;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;

use crate::fleet::{Clock, close_text, errno_text};
use crate::kernel::direct::{Completion, ConnectionId, DirectRing, RECEIVE_SIZE, Request};
use crate::processor::{Shares, ThreadTime};
use crate::run::latency_histogram;
use crate::target::Target;
use crate::websocket::{self, Opcode};
use orders::{Orders, Stage, Tally, add, subtract};

const NS_PER_S: f64 = 1e9;
/// Between attempts, in nanoseconds: drawn from 0 to this, doubled with each attempt.
const BACKOFF_NS: u64 = 200_000_000;
const BACKOFF_DOUBLINGS_MAX: u8 = 6;
/// A turn of a thread with nothing to begin: this long, or until as many completions are there.
const STILL_TURN: Duration = Duration::from_millis(20);
const STILL_COMPLETIONS: usize = 32;
/// A turn of a thread with something to begin.
const BUSY_TURN: Duration = Duration::from_millis(1);
/// Connections that one thread may have on their way, at least.
const WINDOW_MIN: usize = 4;
/// Due entries looked at in one turn.
const BEGUN_PER_TURN_MAX: usize = 256;

/// Everything about a crowd.
#[derive(Clone, Debug)]
pub struct CrowdPlan {
    pub target: Target,
    pub clock: Clock,
    pub count: usize,
    /// Connections of one thread at most: what its ring's table holds.
    pub thread_count_max: usize,
    /// Users are numbered from here.
    pub first_position: usize,
    /// The path of every upgrade; `None`: a user of its own each, and a `welcome` is waited for.
    pub path: Option<String>,
    /// Part of every user's name.
    pub run: String,
    /// Connections on their way at the same time, over all threads.
    pub window: usize,
    /// Connections begun per second; `None`: as the window allows.
    pub ramp: Option<f64>,
    /// Those who are cut come back within this time, evenly.
    pub spread: Duration,
    /// Connections that leave and come back per second, in [`Stage::Churn`].
    pub churn: f64,
    /// Each member pings once in this time; `None`: it only answers.
    pub beat: Option<Duration>,
    /// Bytes that the kernel keeps of what is not read; `None`: as many as it likes.
    pub receive_buffer: Option<usize>,
}

/// What messages are to a crowd. `slot` counts from 0 on each thread.
pub trait Hearing: Send {
    /// The upgrade was answered.
    fn opened(&mut self, _slot: usize) {}

    /// A text or binary message. What is returned is said to the server.
    fn message(&mut self, _slot: usize, _payload: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// Hears nothing.
pub struct Indifferent;

impl Hearing for Indifferent {}

/// What one thread found.
pub struct CrowdOutcome<H> {
    /// From when a connection was to be begun to when it was open: first openings, and returns.
    pub opening: Histogram<u64>,
    pub returning: Histogram<u64>,
    pub shares: Shares,
    pub hearing: H,
}

/// The ranges of positions of each thread.
pub fn deal(plan: &CrowdPlan) -> Vec<Range<usize>> {
    let threads = plan.count.div_ceil(plan.thread_count_max).max(1);
    let bound = |thread: usize| plan.first_position + plan.count * thread / threads;
    (0..threads).map(|thread| bound(thread)..bound(thread + 1)).collect()
}

/// Starts the threads of a crowd. They end with [`Stage::Leave`], or by an error.
pub fn start<'scope, 'env, H: Hearing + 'scope>(
    scope: &'scope thread::Scope<'scope, 'env>,
    plan: &'env CrowdPlan,
    orders: &'env Orders,
    tally: &'env Tally,
    mut make: impl FnMut(Range<usize>) -> H,
) -> Vec<thread::ScopedJoinHandle<'scope, anyhow::Result<CrowdOutcome<H>>>> {
    let ranges = deal(plan);
    let threads = ranges.len();
    let mut begin = |range: Range<usize>| {
        let hearing = make(range.clone());
        scope.spawn(move || Crowd::new(plan, threads, range, orders, tally, hearing)?.run())
    };
    ranges.into_iter().map(&mut begin).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Absent,
    Connecting,
    Upgrading,
    /// Upgraded, not yet welcomed.
    Greeting,
    Open,
}

#[derive(Clone, Copy)]
struct Member {
    generation: u16,
    phase: Phase,
    attempts: u8,
}

const _: () = assert!(size_of::<Member>() == 4);

/// A member that is not open, and was to be.
struct Opening {
    intended_ns: u64,
    is_first: bool,
}

struct Crowd<'a, H> {
    plan: &'a CrowdPlan,
    orders: &'a Orders,
    tally: &'a Tally,
    ring: DirectRing,
    first_position: usize,
    members: Vec<Member>,
    openings: HashMap<u32, Opening>,
    /// The beginnings of frames and responses that are not whole yet.
    arriving: HashMap<u32, Vec<u8>>,
    /// Members to be begun, by time.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    /// The next member that was never begun.
    next_new: u32,
    in_flight: usize,
    window: usize,
    /// This thread's share of all rates.
    share: f64,
    stage: Stage,
    stage_from_ns: u64,
    from_ns: u64,
    /// Members that have left since the churn began.
    churned: u64,
    beaten: u64,
    hearing: H,
    opening: Histogram<u64>,
    returning: Histogram<u64>,
    random: u64,
}

impl<'a, H: Hearing> Crowd<'a, H> {
    fn new(
        plan: &'a CrowdPlan,
        threads: usize,
        positions: Range<usize>,
        orders: &'a Orders,
        tally: &'a Tally,
        hearing: H,
    ) -> anyhow::Result<Crowd<'a, H>> {
        let count = positions.len();
        let ring = DirectRing::new(plan.target.address, count.max(1) as u32, plan.receive_buffer)
            .context(
            "cannot set up io_uring for a crowd (it needs Linux 6.1, and is allowed)",
        )?;
        let now_ns = plan.clock.now_ns();
        Ok(Crowd {
            plan,
            orders,
            tally,
            ring,
            first_position: positions.start,
            members: vec![Member { generation: 0, phase: Phase::Absent, attempts: 0 }; count],
            openings: HashMap::new(),
            arriving: HashMap::new(),
            due: BinaryHeap::new(),
            next_new: 0,
            in_flight: 0,
            window: (plan.window / threads).max(WINDOW_MIN),
            share: count as f64 / plan.count.max(1) as f64,
            stage: Stage::Stay,
            stage_from_ns: now_ns,
            from_ns: now_ns,
            churned: 0,
            beaten: 0,
            hearing,
            opening: latency_histogram(),
            returning: latency_histogram(),
            random: (positions.start as u64 + 1) ^ 0x9e37_79b9_7f4a_7c15,
        })
    }

    fn run(mut self) -> anyhow::Result<CrowdOutcome<H>> {
        let began = ThreadTime::read(self.plan.clock.now_ns());
        let mut completions = Vec::new();
        loop {
            let now_ns = self.plan.clock.now_ns();
            let stage = self.orders.stage();
            if stage == Stage::Leave {
                break;
            }
            self.follow(stage, now_ns)?;
            self.begin_due(now_ns);
            self.beat(now_ns);
            let (many, wait) = match self.is_busy(now_ns) {
                true => (1, BUSY_TURN),
                false => (STILL_COMPLETIONS, STILL_TURN),
            };
            self.ring.turn(many, wait, &mut completions).context("io_uring failed")?;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
        }
        let shares = began.until(ThreadTime::read(self.plan.clock.now_ns()));
        self.close_all()?;
        let (opening, returning) = (self.opening, self.returning);
        Ok(CrowdOutcome { opening, returning, shares, hearing: self.hearing })
    }

    /// Something is on its way, or soon to be begun.
    fn is_busy(&self, now_ns: u64) -> bool {
        let soon_ns = now_ns + STILL_TURN.as_nanos() as u64;
        let is_due = self.due.peek().is_some_and(|Reverse((due_ns, _))| *due_ns < soon_ns);
        let has_new = (self.next_new as usize) < self.members.len();
        let may_open = self.orders.may_open();
        self.in_flight > 0 || ((is_due || has_new) && may_open) || self.stage == Stage::Churn
    }

    fn follow(&mut self, stage: Stage, now_ns: u64) -> anyhow::Result<()> {
        if stage != self.stage {
            let before = std::mem::replace(&mut self.stage, stage);
            (self.stage_from_ns, self.churned) = (now_ns, 0);
            match stage {
                Stage::Cut => self.cut_all(now_ns)?,
                _ if before == Stage::Deaf => self.listen_again(),
                _ => {}
            }
        }
        if stage == Stage::Churn {
            self.churn(now_ns)?;
        }
        Ok(())
    }

    /// Begins what is due, as far as the window allows.
    fn begin_due(&mut self, now_ns: u64) {
        if !self.orders.may_open() {
            return;
        }
        for _ in 0..BEGUN_PER_TURN_MAX {
            if self.in_flight >= self.window {
                return;
            }
            let due = self.due.peek().filter(|Reverse((due_ns, _))| *due_ns <= now_ns);
            if due.is_some() {
                let Some(Reverse((_, slot))) = self.due.pop() else { return };
                self.begin(slot, now_ns);
                continue;
            }
            let slot = self.next_new;
            let intended_ns = match self.plan.ramp {
                Some(rate) => {
                    let after_s = f64::from(slot) / (rate * self.share);
                    self.from_ns + (after_s * NS_PER_S) as u64
                }
                None => now_ns,
            };
            if slot as usize >= self.members.len() || intended_ns > now_ns {
                return;
            }
            self.next_new += 1;
            self.openings.insert(slot, Opening { intended_ns, is_first: true });
            self.begin(slot, now_ns);
        }
    }

    fn begin(&mut self, slot: u32, now_ns: u64) {
        let member = &mut self.members[slot as usize];
        if member.phase != Phase::Absent {
            return;
        }
        member.generation = member.generation.wrapping_add(1);
        member.phase = Phase::Connecting;
        self.in_flight += 1;
        let id = self.id(slot);
        if let Err(error) = self.ring.connect(id, self.first_position + slot as usize) {
            self.fail(slot, &format!("cannot open a socket: {error}"), now_ns);
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { id, result, of } = completion;
        let member = self.members[id.slot as usize];
        let is_current = member.generation == id.generation && member.phase != Phase::Absent;
        match of {
            Request::Receive(bytes) => {
                if is_current {
                    self.received(id, result, &bytes);
                }
                self.ring.give_back(bytes);
            }
            _ if !is_current => {}
            Request::Connect => self.connected(id, result),
            Request::Watch { armed } => {
                if !armed && result >= 0 {
                    self.ring.watch(id);
                }
                if self.stage != Stage::Deaf || member.phase != Phase::Open {
                    self.ring.receive(id);
                }
            }
            Request::Send if result < 0 => self.end(id, &format!("send: {}", errno_text(result))),
            Request::Send => {}
        }
    }

    fn connected(&mut self, id: ConnectionId, result: i32) {
        if result < 0 {
            let reason = format!("cannot connect: {}", errno_text(result));
            return self.end(id, &reason);
        }
        self.members[id.slot as usize].phase = Phase::Upgrading;
        let path = self.path(id.slot as usize);
        let request = websocket::upgrade_request(&self.plan.target.name, &path);
        self.ring.watch(id);
        self.ring.send(id, |out| out.extend_from_slice(&request));
    }

    fn path(&self, slot: usize) -> String {
        match &self.plan.path {
            Some(path) => path.clone(),
            None => connect_path(&self.plan.run, self.first_position + slot),
        }
    }

    fn received(&mut self, id: ConnectionId, result: i32, bytes: &[u8]) {
        let size = match result {
            0 => return self.end(id, "the server closed the connection"),
            size if size > 0 => size as usize,
            error if error == -libc::EAGAIN => return,
            error => return self.end(id, &format!("receive: {}", errno_text(error))),
        };
        let outcome = match self.arriving.remove(&id.slot) {
            None => self.take(id, &bytes[..size]).map(|taken| bytes[taken..size].to_vec()),
            Some(mut joined) => {
                joined.extend_from_slice(&bytes[..size]);
                let outcome = self.take(id, &joined);
                outcome.map(|taken| {
                    joined.drain(..taken);
                    joined
                })
            }
        };
        match outcome {
            Ok(rest) => {
                if !rest.is_empty() {
                    self.arriving.insert(id.slot, rest);
                }
                if size == RECEIVE_SIZE {
                    self.ring.receive(id);
                }
            }
            Err(reason) => self.end(id, &reason),
        }
    }

    /// Takes what is whole at the front of `bytes`, and returns its size.
    fn take(&mut self, id: ConnectionId, bytes: &[u8]) -> Result<usize, String> {
        let slot = id.slot as usize;
        let mut taken = 0;
        if self.members[slot].phase == Phase::Upgrading {
            match websocket::upgrade_response(bytes) {
                Ok(Some(size)) => taken = size,
                Ok(None) => return Ok(0),
                Err(refused) => return Err(format!("refused: {}", refused.0)),
            }
            self.members[slot].phase = Phase::Greeting;
            self.hearing.opened(slot);
            if self.plan.path.is_some() {
                self.open(id.slot);
            }
        }
        loop {
            let next = websocket::decode(&bytes[taken..]).map_err(|broken| broken.to_string())?;
            let Some((frame, size)) = next else {
                return Ok(taken);
            };
            taken += size;
            match frame.opcode {
                Opcode::Text | Opcode::Binary => self.message(id, frame.payload),
                Opcode::Ping => {
                    add(&self.tally.pings, 1);
                    self.say(id, Opcode::Pong, frame.payload);
                }
                Opcode::Pong => {}
                Opcode::Close => return Err(close_text(frame.payload)),
            }
        }
    }

    fn message(&mut self, id: ConnectionId, payload: &[u8]) {
        add(&self.tally.messages, 1);
        if self.members[id.slot as usize].phase == Phase::Greeting && is_welcome(payload) {
            self.open(id.slot);
        }
        if let Some(answer) = self.hearing.message(id.slot as usize, payload) {
            self.say(id, Opcode::Text, &answer);
        }
    }

    fn say(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        let mask = (self.next_random() as u32).to_ne_bytes();
        self.ring.send(id, |out| websocket::encode(out, opcode, mask, payload));
    }

    fn open(&mut self, slot: u32) {
        let member = &mut self.members[slot as usize];
        (member.phase, member.attempts) = (Phase::Open, 0);
        self.in_flight -= 1;
        add(&self.tally.open, 1);
        add(&self.tally.opened, 1);
        if let Some(opening) = self.openings.remove(&slot) {
            let took_ns = self.plan.clock.now_ns().saturating_sub(opening.intended_ns);
            match opening.is_first {
                true => self.opening.saturating_record(took_ns),
                false => self.returning.saturating_record(took_ns),
            }
        }
    }

    /// The connection ended, and nobody here ended it.
    fn end(&mut self, id: ConnectionId, reason: &str) {
        let now_ns = self.plan.clock.now_ns();
        if self.members[id.slot as usize].phase == Phase::Open {
            add(&self.tally.lost, 1);
            self.tally.trouble(reason);
            self.leave(id);
            self.come_back(id.slot, now_ns, now_ns);
        } else {
            self.fail(id.slot, reason, now_ns);
        }
    }

    /// An attempt failed; another follows.
    fn fail(&mut self, slot: u32, reason: &str, now_ns: u64) {
        add(&self.tally.retried, 1);
        self.tally.trouble(reason);
        self.leave(self.id(slot));
        let member = &mut self.members[slot as usize];
        member.attempts = member.attempts.saturating_add(1);
        let doublings = (member.attempts - 1).min(BACKOFF_DOUBLINGS_MAX);
        let wait_ns = self.next_random() % (BACKOFF_NS << doublings);
        self.due.push(Reverse((now_ns + wait_ns, slot)));
    }

    /// Takes a member off its socket.
    fn leave(&mut self, id: ConnectionId) {
        let phase = std::mem::replace(&mut self.members[id.slot as usize].phase, Phase::Absent);
        match phase {
            Phase::Open => subtract(&self.tally.open, 1),
            Phase::Absent => return,
            _ => self.in_flight -= 1,
        }
        self.arriving.remove(&id.slot);
        if let Err(error) = self.ring.close(id) {
            self.tally.trouble(&format!("cannot close a socket: {error}"));
        }
    }

    fn come_back(&mut self, slot: u32, intended_ns: u64, due_ns: u64) {
        self.openings.insert(slot, Opening { intended_ns, is_first: false });
        self.due.push(Reverse((due_ns, slot)));
    }

    fn cut_all(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let count = self.members.len() as u32;
        self.close_all()?;
        self.arriving.clear();
        let spread_ns = (self.plan.spread.as_nanos() as u64).max(1);
        for slot in 0..count {
            let phase = std::mem::replace(&mut self.members[slot as usize].phase, Phase::Absent);
            match phase {
                Phase::Open => {
                    subtract(&self.tally.open, 1);
                    add(&self.tally.cut, 1);
                }
                Phase::Absent => continue,
                _ => {}
            }
            let due_ns = now_ns + self.next_random() % spread_ns;
            self.come_back(slot, due_ns, due_ns);
        }
        self.in_flight = 0;
        Ok(())
    }

    fn close_all(&mut self) -> anyhow::Result<()> {
        let count = self.members.len() as u32;
        let ids: Vec<ConnectionId> = (0..count).map(|slot| self.id(slot)).collect();
        self.ring.close_all(&ids).context("cannot close sockets")
    }

    /// One after the other leaves and begins to come back, when its time has come.
    fn churn(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let rate = self.plan.churn * self.share;
        for _ in 0..BEGUN_PER_TURN_MAX {
            let after_s = self.churned as f64 / rate;
            let intended_ns = self.stage_from_ns + (after_s * NS_PER_S) as u64;
            if intended_ns > now_ns {
                break;
            }
            let slot = (self.churned % self.members.len() as u64) as u32;
            self.churned += 1;
            // Whoever is still on the way from the last round stays on it.
            if self.members[slot as usize].phase == Phase::Open {
                add(&self.tally.cut, 1);
                self.leave(self.id(slot));
                self.come_back(slot, intended_ns, intended_ns);
            }
        }
        Ok(())
    }

    /// What came while nobody was reading is there all at once.
    fn listen_again(&mut self) {
        for slot in 0..self.members.len() as u32 {
            if self.members[slot as usize].phase == Phase::Open {
                self.ring.receive(self.id(slot));
            }
        }
    }

    /// Members ping in turn, evenly.
    fn beat(&mut self, now_ns: u64) {
        let Some(beat) = self.plan.beat else {
            return;
        };
        let every_ns = beat.as_nanos() as f64 / self.members.len().max(1) as f64;
        let due = ((now_ns - self.from_ns) as f64 / every_ns) as u64;
        // After a pause only the last round is made up for.
        self.beaten = self.beaten.max(due.saturating_sub(self.members.len() as u64));
        while self.beaten < due {
            let slot = (self.beaten % self.members.len() as u64) as u32;
            self.beaten += 1;
            if self.members[slot as usize].phase == Phase::Open {
                self.say(self.id(slot), Opcode::Ping, b"");
            }
        }
    }

    fn id(&self, slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: self.members[slot as usize].generation }
    }

    /// Xorshift.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// The upgrade's path of the user at `position`.
pub fn connect_path(run: &str, position: usize) -> String {
    format!("/v1/connect?user={}&device=l", user_name(run, position))
}

/// At most 16 bytes for a run's name of 8: `run-position`, in base 36.
pub fn user_name(run: &str, position: usize) -> String {
    format!("{run}-{}", base_36(position as u64))
}

/// Digits 0 to z.
pub fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = (number % 36) as u32;
        digits.push(char::from_digit(digit, 36).expect("it is below 36"));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

fn is_welcome(payload: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Told<'a> {
        t: &'a str,
    }
    serde_json::from_slice::<Told>(payload).is_ok_and(|told| told.t == "welcome")
}

#[cfg(test)]
mod tests;
