//! The index worker: applies durable batches to the index and answers reads, in one queue.
//!
//! A read waits behind every batch that was durable when it was asked, so its answer covers all of
//! them; and a position that was told to a sequencer is never ahead of what a later read shows.

use std::collections::VecDeque;

use bytes::Bytes;

use super::device::LogReader;
use super::index::Index;
use super::ledger::{Ledger, Stretch};
use super::log_format::{BLOCK_SIZE, LogId, checksum_of};
use super::positions::{Extent, Place, PositionMap, ReadError};
use super::queries::Page;
use super::recovery::Known;
use super::rows::{self, Location, State};
use super::{Batch, StoreFault, retention, user_rows};
use crate::limits::LINK_ENTRY_SIZE_MAX;
use crate::link::PeerId;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::{ConversationName, Message, Record};
use crate::link::wire::{Reader, Wire};

/// Log bytes between two checkpoints of the index: bounds what opening has to read again.
const CHECKPOINT_SIZE: u64 = 64 * 1024 * 1024;
/// Log bytes that a killed process may have to apply again, at most, if it was never idle.
const SETTLE_SIZE: u64 = 4 * 1024 * 1024;
/// Log bytes whose chain is made at once.
const CHAIN_PIECE_SIZE: usize = 4 * 1024 * 1024;
/// Leaves room for an answer's own fields beside its records or messages.
pub(super) const ANSWER_SIZE_MAX: usize = LINK_ENTRY_SIZE_MAX - 128 * 1024;

/// Where an answer goes: entry `number` of the peer's session, if that still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub peer: PeerId,
    /// Counts the sessions of this process; an answer for an older one is dropped.
    pub session: u64,
    pub number: u64,
}

/// What the worker is asked for. Only bytes cross to its thread: decoded names are not `Send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Apply(Batch),
    /// A `ToStore` that reads.
    Answer {
        reply: Reply,
        entry: Bytes,
    },
    /// The grant of an epoch whose record is among the batches before it.
    Grant {
        reply: Reply,
        epoch: u64,
        next_lsn: u64,
    },
}

/// What the worker has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Applied { lsn: u64, bytes: usize },
    Answer { reply: Reply, entry: Vec<u8>, outcome: Outcome },
}

impl Done {
    /// An answer that no link could carry becomes `Unavailable`.
    fn within_limit(self) -> Done {
        match self {
            Done::Answer { reply, entry, .. } if entry.len() > LINK_ENTRY_SIZE_MAX => {
                tracing::error!(size = entry.len(), "an answer is too large for a link");
                let (answer, outcome) = unavailable(reply.number);
                Done::Answer { reply, entry: answer.to_bytes(), outcome }
            }
            other => other,
        }
    }
}

/// How an answer came out, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Messages that should have been there and were not.
    pub unaccounted: u64,
    pub unavailable: bool,
}

/// A queue into the worker and one out of it. Inline in the simulator, a thread in the process.
pub trait IndexWorker {
    /// Queues a task; gives it back if the queue is full.
    fn submit(&mut self, task: Task) -> Result<(), Task>;
    /// The next thing done, in the order of the tasks.
    fn poll(&mut self) -> Result<Option<Done>, StoreFault>;
}

/// The worker's logic.
pub struct IndexReader<I, R> {
    pub(super) index: I,
    log: R,
    positions: PositionMap,
    state: State,
    ledger: Ledger,
    unpersisted_size: u64,
    unsettled_size: u64,
}

impl<I: Index, R: LogReader> IndexReader<I, R> {
    /// Over an index as it was left. The log's positions follow once they are known.
    pub fn open(index: I, log: R) -> Result<IndexReader<I, R>, StoreFault> {
        let state = rows::load_state(&index)?;
        let ledger = Ledger::open(&index)?;
        let positions = PositionMap::default();
        let (unpersisted_size, unsettled_size) = (0, 0);
        Ok(IndexReader { index, log, positions, state, ledger, unpersisted_size, unsettled_size })
    }

    /// What the index says about the log.
    pub fn known(&self) -> Known {
        let log_id = (self.state.applied_lsn > 0).then_some(self.state.log_id);
        Known { applied_lsn: self.state.applied_lsn, log_id }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn log_reader(&mut self) -> &mut R {
        &mut self.log
    }

    /// The log has been opened.
    pub fn set_log(&mut self, log_id: LogId, positions: PositionMap) {
        self.state.log_id = log_id;
        self.positions = positions;
    }

    /// Applies durable batches at once; checkpoints when it is time.
    pub fn apply(&mut self, log_id: LogId, batches: &[Batch]) -> Result<(), StoreFault> {
        self.state.log_id = log_id;
        let before_lsn = self.state.applied_lsn;
        let mut stretch = Stretch::default();
        let mut seen = |record: &Record| stretch.note(record);
        let mut changes = rows::changes_of(&self.index, batches, &mut self.state, &mut seen)?;
        let extent = (before_lsn + 1, self.state.applied_lsn);
        changes.extend(self.ledger.changes(&self.index, extent, extent.1, stretch)?);
        self.index.apply(changes)?;
        let size: u64 = batches.iter().map(|batch| batch.records.len() as u64).sum();
        self.unpersisted_size += size;
        self.unsettled_size += size;
        if self.unpersisted_size >= CHECKPOINT_SIZE {
            self.checkpoint()?;
        } else if self.unsettled_size >= SETTLE_SIZE {
            self.settle()?;
        }
        Ok(())
    }

    /// The chains reach as far as the rows: an index from before there were chains, or one whose
    /// log was repaired, gets them from the log, once. What cannot be read is left to the audit
    /// to name; the store serves without the rest of its chains.
    pub fn chain_the_rest(&mut self) -> Result<(), StoreFault> {
        let applied_lsn = self.state.applied_lsn;
        if self.ledger.chained_lsn() >= applied_lsn {
            return Ok(());
        }
        tracing::info!(
            from = self.ledger.chained_lsn() + 1,
            upto = applied_lsn,
            "the ledger is made for what is in the log already"
        );
        let first_lsn = self.positions.first_lsn().unwrap_or(1);
        let mut next_lsn = first_lsn.max(self.ledger.chained_lsn() + 1);
        while next_lsn <= applied_lsn {
            let (end_lsn, size_max) = (applied_lsn + 1, CHAIN_PIECE_SIZE);
            let extent = Extent { first_lsn: next_lsn, end_lsn, count_max: u32::MAX, size_max };
            let run = match self.positions.read(&mut self.log, extent) {
                Ok(run) if run.count > 0 => run,
                Ok(_) => {
                    tracing::warn!(next_lsn, "the ledger is not made: the log cannot be read");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "the ledger is not made: the log cannot be read");
                    return Ok(());
                }
            };
            let mut reader = Reader::new(run.records.into());
            let mut stretch = Stretch::default();
            while let Ok(record) = Record::read(&mut reader) {
                stretch.note(&record);
            }
            next_lsn += u64::from(run.count);
            let extent = (self.ledger.chained_lsn() + 1, next_lsn - 1);
            let changes = self.ledger.changes(&self.index, extent, applied_lsn, stretch)?;
            self.index.apply(changes)?;
        }
        tracing::info!(upto = self.ledger.chained_lsn(), "the ledger is made");
        self.checkpoint()
    }

    /// Applies batches that were tasks.
    pub fn apply_tasks(&mut self, batches: &[Batch]) -> Result<Done, StoreFault> {
        for batch in batches {
            let offset = batch.offset - batch.offset % BLOCK_SIZE as u64;
            let place = Place { segment: batch.segment, offset };
            self.positions.note(batch.first_lsn, place);
        }
        self.apply(self.positions.log_id(), batches)?;
        let bytes = batches.iter().map(|batch| batch.records.len()).sum();
        Ok(Done::Applied { lsn: self.state.applied_lsn, bytes })
    }

    /// Hands what was applied to the kernel, so that it outlives this process.
    pub fn settle(&mut self) -> Result<(), StoreFault> {
        if self.unsettled_size > 0 {
            self.index.settle()?;
            self.unsettled_size = 0;
        }
        Ok(())
    }

    /// Makes the index durable as it is.
    pub fn checkpoint(&mut self) -> Result<(), StoreFault> {
        self.index.persist()?;
        self.unpersisted_size = 0;
        self.unsettled_size = 0;
        Ok(())
    }

    /// Does one task.
    pub fn run(&mut self, task: Task) -> Result<Done, StoreFault> {
        match task {
            Task::Apply(batch) => self.apply_tasks(&[batch]),
            Task::Answer { reply, entry } => {
                let (answer, outcome) = self.answer(reply.number, entry)?;
                Ok(Done::Answer { reply, entry: answer.to_bytes(), outcome }.within_limit())
            }
            Task::Grant { reply, epoch, next_lsn } => {
                let granted = self.grant(reply.number, epoch, next_lsn)?;
                Ok(Done::Answer { reply, entry: granted.to_bytes(), outcome: Outcome::default() })
            }
        }
    }

    fn grant(&self, to: u64, epoch: u64, next_lsn: u64) -> Result<FromStore, StoreFault> {
        let State { fanned_out, mid, ts, .. } = self.state;
        let edges = rows::edges(&self.index)?;
        let service_ms = retention::service_ms(&self.index)?;
        Ok(FromStore::Granted { to, epoch, next_lsn, fanned_out, mid, ts, edges, service_ms })
    }

    fn answer(&mut self, to: u64, entry: Bytes) -> Result<(FromStore, Outcome), StoreFault> {
        let request = ToStore::from_bytes(entry);
        let answer = match request {
            Ok(ToStore::LoadConversation { convo }) => {
                let head = rows::head(&self.index, &convo)?;
                let (fingerprints, complete) = rows::fingerprints(&self.index, &convo)?;
                FromStore::Conversation { to, head, fingerprints, complete }
            }
            Ok(ToStore::LoadUser { user, after }) => {
                let piece = user_rows::user(&self.index, &user, &after, ANSWER_SIZE_MAX)?;
                piece.into_answer(to)
            }
            Ok(ToStore::LoadRevoked { since_ms, after }) => {
                let (rows, next) = rows::revoked(&self.index, since_ms, &after, ANSWER_SIZE_MAX)?;
                FromStore::Revoked { to, rows, next }
            }
            Ok(ToStore::LoadMembers { convo, after }) => {
                let piece = rows::group(&self.index, &convo, &after, ANSWER_SIZE_MAX)?;
                let rows::GroupPiece { version, members, next } = piece;
                FromStore::Members { to, version, members, next }
            }
            Ok(ToStore::LoadChannel { convo }) => {
                let found = rows::channel(&self.index, &convo)?;
                let subscribers = found.as_ref().map_or(0, |(_, count)| *count);
                FromStore::Channel { to, channel: found.map(|(channel, _)| channel), subscribers }
            }
            Ok(ToStore::Lookup { convo, user, id }) => {
                let message = rows::accepted(&self.index, &convo, &user, &id)?;
                FromStore::Found { to, message }
            }
            Ok(ToStore::Range { convo, first, last, size_max }) => {
                return self.range(to, Range { convo, first, last, size_max });
            }
            Ok(ToStore::ReadLog { first_lsn, size_max }) => {
                return Ok(self.read_log(to, first_lsn, size_max));
            }
            Ok(ToStore::History { convo, before, limit, size_max }) => {
                return self.history(to, &Page { convo, before, limit, size_max });
            }
            Ok(ToStore::FindOverdue { after, now_ms, age_ms }) => {
                self.find_overdue(to, &after, now_ms, age_ms)?
            }
            Ok(ToStore::ListDead { user, convo, after }) => {
                self.list_dead(to, user.as_ref(), convo.as_ref(), &after)?
            }
            Ok(ToStore::LoadWatermarks { convo }) => self.watermarks(to, &convo)?,
            Ok(ToStore::Overview { user, convos }) => self.overviews(to, &user, &convos)?,
            Ok(_) | Err(_) => unavailable(to).0,
        };
        Ok((answer, Outcome::default()))
    }

    fn read_log(&mut self, to: u64, first_lsn: u64, size_max: u32) -> (FromStore, Outcome) {
        let extent = Extent {
            first_lsn,
            end_lsn: self.state.applied_lsn + 1,
            count_max: u32::MAX,
            size_max: (size_max as usize).min(ANSWER_SIZE_MAX),
        };
        match self.positions.read(&mut self.log, extent) {
            Ok(run) => {
                let (records, count) = (run.records.into(), run.count);
                (FromStore::Records { to, records, count }, Outcome::default())
            }
            Err(error) => {
                report(&error);
                unavailable(to)
            }
        }
    }

    fn range(&mut self, to: u64, range: Range) -> Result<(FromStore, Outcome), StoreFault> {
        let last = range.last.min(rows::head(&self.index, &range.convo)?);
        let (found, unaccounted) = self.locate(&range, last)?;
        Ok(self.messages(to, &range.convo, &found, unaccounted))
    }

    /// The messages at these places. One that cannot be read leaves all of them to be asked for
    /// again; `unaccounted` were missing already.
    pub(super) fn messages(
        &mut self,
        to: u64,
        convo: &ConversationName,
        found: &[(u64, Location)],
        unaccounted: u64,
    ) -> (FromStore, Outcome) {
        let read = found.iter().map(|(seq, location)| self.message(convo, *seq, *location));
        match read.collect() {
            Ok(messages) => {
                let outcome = Outcome { unaccounted, unavailable: false };
                (FromStore::Messages { to, messages }, outcome)
            }
            Err(error) => {
                report(&error);
                let (answer, outcome) = unavailable(to);
                (answer, Outcome { unaccounted: unaccounted + 1, ..outcome })
            }
        }
    }

    /// Where the messages of the range are, as many as fit; and how many are missing among them.
    fn locate(&self, range: &Range, last: u64) -> Result<(Vec<(u64, Location)>, u64), StoreFault> {
        let size_max = (range.size_max as usize).min(ANSWER_SIZE_MAX);
        let mut found = Vec::new();
        let (mut size, mut missing) = (0, 0);
        let mut expected = range.first.max(1);
        let mut full = false;
        rows::locations(&self.index, &range.convo, expected, &mut |seq, location| {
            if seq > last {
                return false;
            }
            size += location.size as usize;
            full = size > size_max && !found.is_empty();
            if !full {
                missing += seq - expected;
                expected = seq + 1;
                found.push((seq, location));
            }
            !full
        })?;
        if !full {
            missing += (last + 1).saturating_sub(expected);
        }
        Ok((found, missing))
    }

    pub(super) fn message(
        &mut self,
        convo: &ConversationName,
        seq: u64,
        location: Location,
    ) -> Result<Message, ReadError> {
        let mut bytes = vec![0; location.size as usize];
        self.log.read(location.segment, location.offset, &mut bytes)?;
        let intact = checksum_of(&bytes) == location.checksum;
        match Record::read(&mut Reader::new(bytes.into())) {
            Ok(
                Record::Message { message }
                | Record::Group { message, .. }
                | Record::Channel { message, .. },
            ) if intact && message.seq == seq && message.convo == *convo => Ok(message),
            _ => {
                let Location { segment, offset, .. } = location;
                Err(ReadError::Content { segment, offset, lsn: 0 })
            }
        }
    }
}

struct Range {
    convo: ConversationName,
    first: u64,
    last: u64,
    size_max: u32,
}

fn unavailable(to: u64) -> (FromStore, Outcome) {
    let outcome = Outcome { unaccounted: 0, unavailable: true };
    (FromStore::Unavailable { to }, outcome)
}

fn report(error: &ReadError) {
    tracing::error!(%error, "a read of the log failed; the asker is told to ask again");
}

/// The worker without a thread: each poll does one task.
pub struct InlineIndex<I, R> {
    reader: IndexReader<I, R>,
    tasks: VecDeque<Task>,
    capacity: usize,
}

impl<I: Index, R: LogReader> InlineIndex<I, R> {
    /// Takes at most `capacity` tasks at a time.
    pub fn new(reader: IndexReader<I, R>, capacity: usize) -> InlineIndex<I, R> {
        InlineIndex { reader, tasks: VecDeque::new(), capacity }
    }
}

impl<I: Index, R: LogReader> IndexWorker for InlineIndex<I, R> {
    fn submit(&mut self, task: Task) -> Result<(), Task> {
        if self.tasks.len() == self.capacity {
            return Err(task);
        }
        self.tasks.push_back(task);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Done>, StoreFault> {
        self.tasks.pop_front().map(|task| self.reader.run(task)).transpose()
    }
}
