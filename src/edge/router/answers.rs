//! What the sequencer answers to what clients asked.

use bytes::Bytes;

use super::requests::Unanswered;
use super::{ConnectionId, EXPIRED_CODE, RETRY_MS, Router, Surroundings};
use crate::edge::ticket::TICKET_LIFETIME_MS;
use crate::limits::GROUP_MEMBER_COUNT_MAX;
use crate::link::message::{Code, SessionNumber, ToEdge, ToSequencer};
use crate::link::record::Id;
use crate::link::wire::Wire;
use crate::protocol::operation::{ErrorCode, Event, Goodbye};

impl Router {
    /// One entry of the sequencer's.
    pub(super) fn entry(&mut self, entry: Bytes, around: &mut Surroundings) {
        let Ok(message) = ToEdge::from_bytes(entry) else {
            self.counters.malformed_entries += 1;
            return;
        };
        if let ToEdge::Serving { epoch } = message {
            return self.serving(epoch);
        }
        if self.refuses_sequencer {
            return;
        }
        match message {
            ToEdge::Serving { .. } => unreachable!("taken above"),
            ToEdge::Opened { to, session } => self.session_opened(to, session, around),
            ToEdge::Sent { to, .. } => {
                self.answer(to, around, |router, request, around| {
                    router.sent(request, &message, around);
                });
            }
            ToEdge::Refused { to, code, message, retry_ms } => {
                let retry_ms = (retry_ms > 0).then_some(u64::from(retry_ms));
                let retry_ms = retry_ms.or((code == Code::Unavailable).then_some(RETRY_MS));
                self.refused(to, (code, message, retry_ms), None, around);
            }
            ToEdge::Limited { to, code, message, limit, retry_ms } => {
                let retry_ms = (retry_ms > 0).then_some(u64::from(retry_ms));
                self.refused(to, (code, message, retry_ms), Some(limit), around);
            }
            ToEdge::Group { .. }
            | ToEdge::Channel { .. }
            | ToEdge::Page { .. }
            | ToEdge::Conversations { .. } => self.told(message, around),
            ToEdge::Done { to } => self.answer(to, around, |_, _, _| {}),
            ToEdge::Deliver { message, targets } => self.deliver(&message, &targets, around),
            ToEdge::Backlog { target, messages, wants_room } => {
                self.backlog(&target, &messages, wants_room, around);
            }
            ToEdge::Synced { target, to, heads } => self.synced(&target, to, &heads, around),
            ToEdge::Receipt { target, convo, seq, watermark, by, tally } => {
                let event = Event::Receipt { convo: &convo, seq, watermark, by: &by, tally };
                self.push(&target, &event, around);
            }
            ToEdge::Failed { target, convo, seq, id } => {
                self.push(&target, &Event::Failed { convo: &convo, seq, id: &id }, around);
            }
            ToEdge::Replaced { target } => {
                if let Some(id) = self.addressee(&target) {
                    self.cut(id, Goodbye::Replaced, None, around);
                }
            }
            other => self.entry_of_users(other, around),
        }
    }

    /// What it says of users: their devices, and whether they are there.
    fn entry_of_users(&mut self, message: ToEdge, around: &mut Surroundings) {
        match message {
            ToEdge::Devices { to, devices } => {
                self.answer(to, around, |router, request, around| {
                    let reference = request.reference;
                    router.say(
                        request.asker,
                        &Event::Devices { reference, devices: &devices },
                        around,
                    );
                })
            }
            ToEdge::Revoked { revocations } => {
                self.revoked.note(revocations, around.now.unix_ms);
            }
            ToEdge::Cut { target } => self.cut_revoked(&target, around),
            ToEdge::Privacy { to, hidden } => self.answer(to, around, |router, request, around| {
                let reference = request.reference;
                router.say(request.asker, &Event::Privacy { reference, hidden }, around);
            }),
            ToEdge::Watched { to, rows } => self.answer(to, around, |router, request, around| {
                if let ToSequencer::Watch { users, .. } = &request.message {
                    router.watched(request.asker, request.reference, (users, rows), around);
                }
            }),
            ToEdge::Presence { rows } => self.presence_news(rows),
            ToEdge::Typing { convo, from, targets } => {
                self.typing(&convo, &from, &targets, around);
            }
            _ => unreachable!("the caller takes the others"),
        }
    }

    /// The answer to a question, or to a change of a group or a channel.
    fn told(&mut self, message: ToEdge, around: &mut Surroundings) {
        match message {
            ToEdge::Group { to, group } => self.answer(to, around, |router, request, around| {
                let reference = request.reference;
                router.say(request.asker, &Event::Group { reference, group: &group }, around);
            }),
            ToEdge::Channel { to, convo, owner, subscribers } => {
                self.answer(to, around, |router, request, around| {
                    let (reference, convo, owner) = (request.reference, &*convo, &*owner);
                    let event = Event::Channel { reference, convo, owner, subscribers };
                    router.say(request.asker, &event, around);
                });
            }
            ToEdge::Page { to, convo, messages, first } => {
                let more = messages.first().is_some_and(|oldest| oldest.seq > first);
                self.answer(to, around, |router, request, around| {
                    let (reference, messages) = (request.reference, &messages[..]);
                    let page = Event::Page { reference, convo: &convo, messages, more };
                    router.say(request.asker, &page, around);
                });
            }
            ToEdge::Conversations { to, rows } => {
                self.answer(to, around, |router, request, around| {
                    let reference = request.reference;
                    let list = Event::Conversations { reference, convos: &rows };
                    router.say(request.asker, &list, around);
                })
            }
            _ => unreachable!("the caller hands on nothing else"),
        }
    }

    fn refused(
        &mut self,
        to: u64,
        (code, message, retry_ms): (Code, Id, Option<u64>),
        limit: Option<u64>,
        around: &mut Surroundings,
    ) {
        self.answer(to, around, |router, request, around| {
            router.counters.refused += 1;
            let is_full = (code == Code::GroupFull).then_some(GROUP_MEMBER_COUNT_MAX as u64);
            let error = (code.into(), &*message, retry_ms);
            router.refuse_with(request, error, limit.or(is_full), around);
        });
    }

    /// A sequencer names its epoch. A lower one than was served before is that of a sequencer which
    /// was paused, and superseded meanwhile: nothing that it says is heard any more.
    fn serving(&mut self, epoch: u64) {
        if epoch < self.epoch {
            self.refuses_sequencer = true;
            self.counters.stale_sequencers += 1;
        }
        self.epoch = self.epoch.max(epoch);
    }

    /// Takes the request off the table, lets `say` answer it, and then the pings behind it.
    pub(super) fn answer(
        &mut self,
        to: u64,
        around: &mut Surroundings,
        say: impl FnOnce(&mut Router, &Unanswered, &mut Surroundings),
    ) {
        let Some((turn, request)) = self.requests.answered(to) else {
            self.counters.unknown_answers += 1;
            return;
        };
        say(self, &request, around);
        self.settle(turn, &request, around);
    }

    /// The request is answered: frees its place, and says the pongs that waited for it alone.
    pub(super) fn settle(&mut self, turn: u64, request: &Unanswered, around: &mut Surroundings) {
        let id = request.asker;
        let Some(connection) = self.connection(id) else {
            return;
        };
        if matches!(request.message, ToSequencer::Open { .. }) {
            return;
        }
        connection.answered(turn, request.size);
        while let Some(reference) = self.connection(id).and_then(|it| it.next_pong()) {
            self.pong(id, reference, around);
        }
        let draining = self.is_draining();
        if self.connection(id).is_some_and(|it| draining && it.is_settled()) {
            self.close_drained(id, around);
        }
    }

    /// Says `error` to whoever asked, if he still stands.
    pub(super) fn refuse(
        &mut self,
        request: &Unanswered,
        error: (ErrorCode, &str, Option<u64>),
        around: &mut Surroundings,
    ) {
        self.refuse_with(request, error, None, around);
    }

    /// The same, with the limit that was hit.
    fn refuse_with(
        &mut self,
        request: &Unanswered,
        (code, message, retry_ms): (ErrorCode, &str, Option<u64>),
        limit: Option<u64>,
        around: &mut Surroundings,
    ) {
        let asker = request.asker;
        if self.connection(asker).is_none() {
            return;
        }
        let id = match &request.message {
            ToSequencer::Open { .. } if code == ErrorCode::Forbidden => {
                self.counters.cut_revoked += 1;
                self.close(asker, EXPIRED_CODE, "the device was revoked", around);
                return;
            }
            ToSequencer::Open { .. } => {
                self.cut(asker, Goodbye::Overload, retry_ms.or(Some(RETRY_MS)), around);
                return;
            }
            ToSequencer::Send { id, .. } => Some(&**id),
            ToSequencer::Watch { users, .. } => {
                self.unsubscribe(asker, users, around);
                None
            }
            _ => None,
        };
        let reference = request.reference;
        let error = Event::Error { reference, id, code, message, limit, retry_ms };
        self.say(asker, &error, around);
    }

    fn session_opened(&mut self, to: u64, session: SessionNumber, around: &mut Surroundings) {
        self.answer(to, around, |router, request, around| {
            let ToSequencer::Open { address, user, device, .. } = &request.message else {
                router.counters.unknown_answers += 1;
                return;
            };
            let (address, user, device) = (*address, user.clone(), device.clone());
            let id = request.asker;
            let Some(connection) = router.connection(id) else {
                let close = ToSequencer::Close { address, session, user, device };
                router.requests.tell(close, around.outlet);
                return;
            };
            let manual = connection.manual;
            let opening = connection.open(session).unwrap_or_default();
            router.unpark(Some(&opening));
            router.welcome(id, session, opening.ticket_ends_unix_ms, around);
            let confirm = ToSequencer::Confirm { address, session, user, device, manual };
            router.requests.tell(confirm, around.outlet);
            for frame in opening.parked.frames {
                router.handle(id, frame, around);
            }
        });
    }

    fn welcome(
        &mut self,
        id: ConnectionId,
        session: SessionNumber,
        ticket_ends_unix_ms: u64,
        around: &mut Surroundings,
    ) {
        let Some((user, device)) = self.names(id) else {
            return;
        };
        let ticket_ends = around.now.unix_ms + TICKET_LIFETIME_MS;
        let ticket_ends = ticket_ends.min(ticket_ends_unix_ms);
        self.counters.welcomed += 1;
        let ticket = self.options.tickets.issue_until(&user, &device, session, ticket_ends);
        let server = self.options.server.clone();
        let welcome = Event::Welcome {
            user: &user,
            device: &device,
            session: &format!("{}-{}", session.epoch, session.counter),
            heartbeat_ms: self.options.heartbeat_ms,
            ticket: &ticket,
            server: &server,
        };
        self.say(id, &welcome, around);
    }

    fn sent(&mut self, request: &Unanswered, answer: &ToEdge, around: &mut Surroundings) {
        let ToSequencer::Send { id, .. } = &request.message else {
            self.counters.unknown_answers += 1;
            return;
        };
        let ToEdge::Sent { convo, seq, mid, ts, dup, .. } = answer else {
            return;
        };
        self.counters.sent += 1;
        let now_us = around.now.monotonic_us;
        self.send_latency.record(now_us.saturating_sub(request.asked_at_us));
        if self.connection(request.asker).is_none() {
            return;
        }
        let (reference, seq, mid, ts, dup) = (request.reference, *seq, *mid, *ts, *dup);
        let event = Event::Sent { reference, convo, id, seq, mid, ts, dup };
        self.say(request.asker, &event, around);
    }
}
