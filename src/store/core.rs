//! The store's logic between link, log and index: no socket, clock, thread or randomness.
//!
//! Acquires, resumes and appends go through one queue and take effect one at a time, each once
//! everything before it is durable or refused; so an answer never speaks of a position that may yet
//! turn out otherwise. Reads go to the worker at once, behind everything durable.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::device::LogDevice;
use super::log::{Append, Log};
use super::metrics::Metrics;
use super::reader::{Done, IndexWorker, Reply, Task};
use super::{Batch, StoreFault};
use crate::clock::Now;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::{Id, Member, Record};
use crate::link::wire::{Reader, Wire};
use crate::link::{LinkEvent, Outlet, PeerId};

/// Bytes of records that may be durable and not yet in the index before answers are held back.
pub const INDEX_BACKLOG_SIZE_MAX: usize = 64 * 1024 * 1024;
/// How long an append waits for a segment before it is answered `Unavailable`.
pub const SPACE_WAIT_US: u64 = 2_000_000;

/// Why an event could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The peer broke the protocol: the host ends its session.
    #[error("peer {peer:?} sent {what}")]
    Violation { peer: PeerId, what: &'static str },
    /// The process exits.
    #[error(transparent)]
    Fault(#[from] StoreFault),
}

/// What `Store` knows after opening that its log does not.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The highest epoch ever granted.
    pub epoch: u64,
    /// Random, new at every start of the process.
    pub incarnation: u64,
    pub recovery_us: u64,
    pub records_replayed: u64,
}

/// The store of one directory.
pub struct Store<D: LogDevice, W> {
    log: Log<D>,
    worker: W,
    epoch: u64,
    incarnation: u64,
    peers: BTreeMap<PeerId, Peer>,
    session_count: u64,
    queue: VecDeque<Request>,
    flight: Option<Flight>,
    /// Tasks that the worker had no room for.
    waiting: VecDeque<Task>,
    /// Durable, held back until the index has caught up.
    held: Option<(Reply, FromStore)>,
    backlog_size: usize,
    applied_lsn: u64,
    metrics: Metrics,
}

struct Peer {
    session: u64,
    answers: VecDeque<(u64, Vec<u8>)>,
}

struct Request {
    reply: Reply,
    arrived_us: u64,
    kind: RequestKind,
}

enum RequestKind {
    Acquire { incarnation: u64 },
    Resume { epoch: u64 },
    Append { epoch: u64, first_lsn: u64, count: u32, records: Bytes },
}

/// The commit that the log is writing.
struct Flight {
    reply: Reply,
    granting: Option<u64>,
    arrived_us: u64,
    started_us: u64,
}

impl<D: LogDevice, W: IndexWorker> Store<D, W> {
    pub fn new(log: Log<D>, worker: W, opened: Opened) -> Store<D, W> {
        let metrics = Metrics {
            recovery_us: opened.recovery_us,
            records_replayed: opened.records_replayed,
            ..Metrics::default()
        };
        Store {
            applied_lsn: log.next_lsn() - 1,
            log,
            worker,
            epoch: opened.epoch,
            incarnation: opened.incarnation,
            peers: BTreeMap::new(),
            session_count: 0,
            queue: VecDeque::new(),
            flight: None,
            waiting: VecDeque::new(),
            held: None,
            backlog_size: 0,
            metrics,
        }
    }

    /// The highest durable position: what this store's hellos say.
    pub fn known_durable(&self) -> u64 {
        self.log.next_lsn() - 1
    }

    /// The highest epoch granted; only its holder may append.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Random, new at every start of the process.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes one event of the link. A violation concerns its peer alone.
    pub fn handle(
        &mut self,
        now: Now,
        event: LinkEvent,
        outlet: &mut impl Outlet,
    ) -> Result<(), Problem> {
        match event {
            LinkEvent::Began { peer, name, durable_seen, .. } => {
                self.begin(peer, name, durable_seen)?;
            }
            LinkEvent::Ended { peer } => self.end(peer),
            LinkEvent::Entry { peer, number, entry } => self.entry(now, peer, number, entry)?,
        }
        Ok(self.poll(now, outlet)?)
    }

    /// Moves on what the disk, the index or the time has made possible.
    pub fn poll(&mut self, now: Now, outlet: &mut impl Outlet) -> Result<(), StoreFault> {
        loop {
            while let Some(batch) = self.log.poll(now)? {
                self.became_durable(now, batch);
            }
            self.submit_waiting();
            self.take_done()?;
            self.release_held();
            if !self.advance(now) {
                break;
            }
        }
        self.give_up_waiting(now);
        self.metrics.index_lag = self.known_durable() - self.applied_lsn;
        self.metrics.no_space = self.log.no_space_count();
        self.flush(outlet);
        Ok(())
    }

    /// When [`Store::poll`] has something to do although nothing woke the host.
    pub fn deadline_us(&self) -> Option<u64> {
        let waits = self.queue.front().filter(|_| self.flight.is_none());
        let patience = waits.map(|request| request.arrived_us + SPACE_WAIT_US);
        self.log.deadline_us().into_iter().chain(patience).min()
    }

    fn begin(&mut self, peer: PeerId, name: Id, durable_seen: u64) -> Result<(), StoreFault> {
        if durable_seen > self.known_durable() {
            let end = self.known_durable();
            return Err(StoreFault::Lost { peer: name.to_string(), seen: durable_seen, end });
        }
        self.end(peer);
        self.session_count += 1;
        let session = self.session_count;
        self.peers.insert(peer, Peer { session, answers: VecDeque::new() });
        Ok(())
    }

    /// What the session asked for and did not start is void; what is in flight is not undone.
    fn end(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.queue.retain(|request| request.reply.peer != peer);
    }

    fn entry(&mut self, now: Now, peer: PeerId, number: u64, entry: Bytes) -> Result<(), Problem> {
        let Some(session) = self.peers.get(&peer).map(|peer| peer.session) else {
            return Ok(());
        };
        let reply = Reply { peer, session, number };
        let kind = match self.check(&entry) {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                self.waiting.push_back(Task::Answer { reply, entry });
                return Ok(());
            }
            Err(what) => {
                self.metrics.malformed += 1;
                return Err(Problem::Violation { peer, what });
            }
        };
        self.queue.push_back(Request { reply, arrived_us: now.monotonic_us, kind });
        Ok(())
    }

    /// What to do about an entry; `None`: the worker answers it.
    fn check(&self, entry: &Bytes) -> Result<Option<RequestKind>, &'static str> {
        let request = ToStore::from_bytes(entry.clone());
        Ok(match request.map_err(|_| "an entry that cannot be decoded")? {
            ToStore::Acquire { incarnation } => Some(RequestKind::Acquire { incarnation }),
            ToStore::Resume { epoch, .. } => Some(RequestKind::Resume { epoch }),
            ToStore::Append { epoch, first_lsn, count, records } => {
                if records.len() > self.log.payload_size_max() {
                    return Err("a batch that no segment can hold");
                }
                check_records(&records, first_lsn, count)?;
                Some(RequestKind::Append { epoch, first_lsn, count, records })
            }
            _ => None,
        })
    }

    /// Starts or refuses the first request in the queue; false if it has to wait.
    fn advance(&mut self, now: Now) -> bool {
        if self.flight.is_some() || self.backlog_size > INDEX_BACKLOG_SIZE_MAX {
            return false;
        }
        let Some(request) = self.queue.pop_front() else {
            return false;
        };
        let to = request.reply.number;
        let answer = match &request.kind {
            RequestKind::Acquire { incarnation } => {
                let epoch = self.epoch + 1;
                let record = Record::Epoch { epoch, incarnation: *incarnation };
                let append = Append { epoch, count: 1, records: record.to_bytes().into() };
                return self.start(now, request, &append, Some(epoch));
            }
            RequestKind::Resume { epoch } if self.is_current(*epoch) => {
                FromStore::Resumed { to, next_lsn: self.log.next_lsn() }
            }
            RequestKind::Resume { .. } => self.fenced(to),
            RequestKind::Append { epoch, first_lsn, count, records } => {
                let next_lsn = self.log.next_lsn();
                if !self.is_current(*epoch) || *first_lsn > next_lsn {
                    self.fenced(to)
                } else if *first_lsn == next_lsn {
                    let (epoch, count, records) = (*epoch, *count, records.clone());
                    let append = Append { epoch, count, records };
                    return self.start(now, request, &append, None);
                } else {
                    self.again(to, *first_lsn, *count, &records.clone())
                }
            }
        };
        self.answer(request.reply, &answer);
        true
    }

    /// Starts writing, or puts the request back while there is no segment for it.
    fn start(
        &mut self,
        now: Now,
        request: Request,
        append: &Append,
        granting: Option<u64>,
    ) -> bool {
        if !self.log.append(append) {
            self.queue.push_front(request);
            return false;
        }
        // From here on older epochs are refused, whether or not the grant is ever heard.
        self.epoch = granting.unwrap_or(self.epoch);
        let Request { reply, arrived_us, .. } = request;
        let started_us = now.monotonic_us;
        self.flight = Some(Flight { reply, granting, arrived_us, started_us });
        true
    }

    /// An append below the end: a resend after a lost answer, or somebody else's place.
    fn again(&mut self, to: u64, first_lsn: u64, count: u32, records: &[u8]) -> FromStore {
        match self.log.holds(first_lsn, count, records) {
            Ok(true) => FromStore::Durable { to, next_lsn: first_lsn + u64::from(count) },
            Ok(false) => self.fenced(to),
            Err(error) => {
                tracing::error!(%error, "the log could not be compared with a batch sent again");
                self.metrics.unavailable += 1;
                FromStore::Unavailable { to }
            }
        }
    }

    /// Whether its holder may append; 0 was never granted.
    fn is_current(&self, epoch: u64) -> bool {
        epoch == self.epoch && epoch != 0
    }

    fn fenced(&mut self, to: u64) -> FromStore {
        self.metrics.fenced += 1;
        FromStore::Fenced { to, epoch: self.epoch }
    }

    fn became_durable(&mut self, now: Now, batch: Batch) {
        self.metrics.commits += 1;
        self.metrics.records += u64::from(batch.count);
        self.metrics.bytes += batch.records.len() as u64;
        self.backlog_size += batch.records.len();
        self.waiting.push_back(Task::Apply(batch));
        let Some(flight) = self.flight.take() else {
            return;
        };
        let since = |then_us| now.monotonic_us.saturating_sub(then_us);
        self.metrics.append.record(since(flight.arrived_us));
        self.metrics.commit.record(since(flight.started_us));
        self.metrics.write.record(self.log.write_us());
        let (reply, next_lsn) = (flight.reply, self.log.next_lsn());
        match flight.granting {
            Some(epoch) => self.waiting.push_back(Task::Grant { reply, epoch, next_lsn }),
            None => self.held = Some((reply, FromStore::Durable { to: reply.number, next_lsn })),
        }
    }

    fn release_held(&mut self) {
        if self.backlog_size <= INDEX_BACKLOG_SIZE_MAX
            && let Some((reply, answer)) = self.held.take()
        {
            self.answer(reply, &answer);
        }
    }

    fn submit_waiting(&mut self) {
        while let Some(task) = self.waiting.pop_front() {
            if let Err(task) = self.worker.submit(task) {
                self.waiting.push_front(task);
                break;
            }
        }
    }

    fn take_done(&mut self) -> Result<(), StoreFault> {
        while let Some(done) = self.worker.poll()? {
            match done {
                Done::Applied { lsn, bytes } => {
                    self.applied_lsn = lsn;
                    self.backlog_size -= bytes;
                }
                Done::Answer { reply, entry, outcome } => {
                    self.metrics.unaccounted += outcome.unaccounted;
                    self.metrics.unavailable += u64::from(outcome.unavailable);
                    self.answer_bytes(reply, entry);
                }
            }
            self.submit_waiting();
        }
        Ok(())
    }

    /// Once the first has waited too long all are told, or a later one would overtake its resend.
    fn give_up_waiting(&mut self, now: Now) {
        let too_long = self.flight.is_none()
            && self.backlog_size <= INDEX_BACKLOG_SIZE_MAX
            && self
                .queue
                .front()
                .is_some_and(|first| now.monotonic_us >= first.arrived_us + SPACE_WAIT_US);
        if !too_long {
            return;
        }
        for request in std::mem::take(&mut self.queue) {
            self.metrics.unavailable += 1;
            let to = request.reply.number;
            self.answer(request.reply, &FromStore::Unavailable { to });
        }
    }

    fn answer(&mut self, reply: Reply, answer: &FromStore) {
        self.answer_bytes(reply, answer.to_bytes());
    }

    fn answer_bytes(&mut self, reply: Reply, entry: Vec<u8>) {
        if let Some(peer) = self.peers.get_mut(&reply.peer)
            && peer.session == reply.session
        {
            peer.answers.push_back((reply.number, entry));
        }
    }

    fn flush(&mut self, outlet: &mut impl Outlet) {
        for (&id, peer) in &mut self.peers {
            while let Some((number, entry)) = peer.answers.pop_front() {
                // A full link gives nothing back, so what it may refuse is a copy.
                if outlet.submit(id, entry.clone()).is_err() {
                    peer.answers.push_front((number, entry));
                    break;
                }
                outlet.answered(id, number);
            }
        }
    }
}

/// Garbage never enters the log, nor does an epoch that the store did not grant.
fn check_records(records: &Bytes, first_lsn: u64, count: u32) -> Result<(), &'static str> {
    if count == 0 || first_lsn == 0 || first_lsn.checked_add(u64::from(count)).is_none() {
        return Err("a batch without records or without a position");
    }
    let mut reader = Reader::new(records.clone());
    for _ in 0..count {
        match Record::read(&mut reader) {
            Ok(Record::Epoch { .. }) => return Err("an epoch of its own making"),
            Ok(Record::Lost { .. }) => return Err("a loss of its own making"),
            Ok(
                Record::Message { message }
                | Record::Group { message, .. }
                | Record::Channel { message, .. },
            ) if message.seq == 0 => {
                return Err("a message without seq");
            }
            Ok(Record::Group { members, .. }) if members.iter().any(never_joined) => {
                return Err("a member who never joined");
            }
            Ok(Record::Subscription { subscription, .. }) if subscription.since == 0 => {
                return Err("a subscription that never began");
            }
            Ok(_) => {}
            Err(_) => return Err("a record that cannot be decoded"),
        }
    }
    if reader.is_empty() { Ok(()) } else { Err("more bytes than records") }
}

fn never_joined(member: &Member) -> bool {
    member.last_stay().joined == 0
}
