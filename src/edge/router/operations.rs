//! What clients ask, taken up or refused.

use super::connection::{OUTSTANDING_COUNT_MAX, cost};
use super::pressed::unanswered_size_max;
use super::requests::Unanswered;
use super::{ConnectionId, RETRY_MS, Router, Surroundings};
use crate::link::message::{Address, SessionNumber, ToSequencer};
use crate::protocol::operation::{ErrorCode, Event, Operation, Rejected, Request};

impl Router {
    /// Does what a client of an open session asked, or says why not.
    pub(super) fn handle(
        &mut self,
        id: ConnectionId,
        decoded: Result<Request, Rejected>,
        around: &mut Surroundings,
    ) {
        match decoded {
            Err(rejected) => self.reject(id, &rejected, around),
            Ok(Request { reference, operation: Operation::Later(_) }) => {
                let unknown = Rejected {
                    reference,
                    id: None,
                    code: ErrorCode::UnknownOperation,
                    message: "not in this version",
                    limit: None,
                };
                self.reject(id, &unknown, around);
            }
            Ok(request) => self.take_up(id, request, around),
        }
    }

    fn take_up(&mut self, id: ConnectionId, request: Request, around: &mut Surroundings) {
        let size = cost(&request.operation);
        let full = self.is_draining()
            || self.requests.is_overloaded(around.now)
            || self.requests.size() + size > unanswered_size_max(around.clients);
        let turn_last = self.requests.turn_last();
        let address = self.address(id);
        let Some(connection) = self.connection(id) else {
            return;
        };
        if full || !connection.has_room(size) {
            self.counters.overloaded += 1;
            let rejected = overload(&request, OUTSTANDING_COUNT_MAX);
            self.answer_rejected(id, &rejected, around);
            return;
        }
        let Request { reference, operation } = request;
        if operation == Operation::Ping {
            if connection.ping(turn_last, reference) {
                self.pong(id, reference, around);
            }
            return;
        }
        let session = connection.session();
        let Some(message) = self.request_of(id, session, address, operation) else {
            return;
        };
        let Some(connection) = self.connection(id) else {
            return;
        };
        connection.asked(size);
        let asked_at_us = around.now.monotonic_us;
        let request = Unanswered { asker: id, reference, message, size, asked_at_us, entry: None };
        self.requests.ask(request, around.outlet);
    }

    pub(super) fn pong(
        &mut self,
        id: ConnectionId,
        reference: Option<i64>,
        around: &mut Surroundings,
    ) {
        self.say(id, &Event::Pong { reference, ts: around.now.unix_ms }, around);
    }

    fn reject(&mut self, id: ConnectionId, rejected: &Rejected, around: &mut Surroundings) {
        self.counters.rejected += 1;
        self.answer_rejected(id, rejected, around);
    }

    fn answer_rejected(
        &mut self,
        id: ConnectionId,
        rejected: &Rejected,
        around: &mut Surroundings,
    ) {
        let Rejected { reference, id: send_id, code, message, limit } = rejected;
        let event = Event::Error {
            reference: *reference,
            id: send_id.as_deref(),
            code: *code,
            message,
            limit: *limit,
            retry_ms: (*code == ErrorCode::Unavailable).then_some(RETRY_MS),
        };
        self.say(id, &event, around);
    }

    /// What the sequencer is asked for an operation; `None` for those that it does not hear of.
    fn request_of(
        &self,
        id: ConnectionId,
        session: Option<SessionNumber>,
        address: Address,
        operation: Operation,
    ) -> Option<ToSequencer> {
        let session = session?;
        let (user, device) = self.names(id)?;
        match operation {
            Operation::Send { target, id, body } => {
                Some(ToSequencer::Send { address, user, device, target, id, body })
            }
            Operation::Acknowledge { convo, seq, watermark } => {
                Some(ToSequencer::Acknowledge { address, user, device, convo, seq, watermark })
            }
            Operation::Sync { convos } => {
                Some(ToSequencer::Sync { address, session, user, device, convos })
            }
            Operation::History { convo, before, limit } => {
                let before = before.unwrap_or(0);
                Some(ToSequencer::History { address, user, convo, before, limit })
            }
            Operation::Conversations { after, limit } => {
                Some(ToSequencer::Conversations { address, user, after, limit })
            }
            Operation::Group { convo, change } => {
                Some(ToSequencer::Group { address, user, convo, change })
            }
            Operation::Ping | Operation::Later(_) => None,
        }
    }
}

/// What is said instead of taking the request up when a bound is reached.
pub(super) fn overload(request: &Request, count_max: usize) -> Rejected {
    let id = match &request.operation {
        Operation::Send { id, .. } => Some(id.clone()),
        _ => None,
    };
    Rejected {
        reference: request.reference,
        id,
        code: ErrorCode::Unavailable,
        message: "too much is waiting for its answer",
        limit: Some(count_max as u64),
    }
}
