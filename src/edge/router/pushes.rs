//! What the sequencer pushes to connections: live messages, backlogs, receipts.
//!
//! Every push names its connection, life and session; one that names another reaches nobody.

use super::pressed::{behind_size, may_push};
use super::{ConnectionId, ROOM_SIZE, Router, Surroundings};
use crate::link::message::{PushTarget, ToSequencer};
use crate::link::record::{ConversationName, Message};
use crate::protocol::Subprotocol;
use crate::protocol::operation::Event;

impl Router {
    /// A live message: encoded once in each subprotocol that a target on this shard speaks.
    pub(super) fn deliver(
        &mut self,
        message: &Message,
        targets: &[PushTarget],
        around: &mut Surroundings,
    ) {
        let mut encoded: [Option<Vec<u8>>; Subprotocol::ALL.len()] =
            [const { None }; Subprotocol::ALL.len()];
        for target in targets {
            let Some(id) = self.addressee(target) else {
                continue;
            };
            let size = message.body.bytes().len();
            if self.is_behind(id, target.stream, size, around) {
                self.report_dropped(id, target, message, around);
            } else if let Some(subprotocol) = self.subprotocol(id) {
                let slot = &mut encoded[subprotocol.index()];
                let frame = slot.get_or_insert_with(|| encode(message, subprotocol));
                self.push_message(id, frame, around);
            }
        }
    }

    /// A piece of a connection's backlog. Its sender waits for room, so it is always queued.
    pub(super) fn backlog(
        &mut self,
        target: &PushTarget,
        messages: &[Message],
        wants_room: bool,
        around: &mut Surroundings,
    ) {
        let Some(id) = self.addressee(target) else {
            return;
        };
        for message in messages {
            self.counters.pushed += 1;
            self.say(id, &Event::Message(message), around);
        }
        if !wants_room {
            return;
        }
        let has_room = around.clients.queued(id) <= ROOM_SIZE && around.clients.may_queue();
        if has_room {
            self.tell_room(id, target.stream, around);
        } else if let Some(connection) = self.connection(id) {
            connection.set_room_wanted(Some(target.stream));
            around.clients.watch_drained(id);
        }
    }

    /// The end of a catching up, and perhaps the answer to a `sync`.
    pub(super) fn synced(
        &mut self,
        target: &PushTarget,
        to: u64,
        heads: &[(ConversationName, u64)],
        around: &mut Surroundings,
    ) {
        if to == 0 {
            let event = Event::Synced { reference: None, heads };
            self.push(target, &event, around);
            return;
        }
        if let Some(id) = self.addressee(target)
            && let Some(connection) = self.connection(id)
        {
            // From now on it is pushed to, also after the sequencer was told of it again.
            connection.manual = false;
        }
        self.answer(to, around, |router, request, around| {
            let event = Event::Synced { reference: request.reference, heads };
            router.push(target, &event, around);
        });
    }

    /// Says `event` to the push's addressee.
    pub(super) fn push(&mut self, target: &PushTarget, event: &Event, around: &mut Surroundings) {
        if let Some(id) = self.addressee(target) {
            self.say(id, event, around);
        }
    }

    /// The connection that a push is for, if it still stands in the same session. A push of a newer
    /// catching-up ends the state of being behind in an older one.
    pub(super) fn addressee(&mut self, target: &PushTarget) -> Option<ConnectionId> {
        let id = ConnectionId { slot: target.address.slot, generation: target.address.generation };
        let same_life = target.address.incarnation == self.options.incarnation;
        let found =
            self.connection(id).filter(|it| same_life && it.session() == Some(target.session));
        let Some(connection) = found else {
            self.counters.stale_pushes += 1;
            return None;
        };
        if connection.behind().is_some_and(|stream| stream < target.stream) {
            connection.set_behind(None);
        }
        Some(id)
    }

    pub(super) fn tell_room(&mut self, id: ConnectionId, stream: u64, around: &mut Surroundings) {
        let address = self.address(id);
        let Some(connection) = self.connection(id) else {
            return;
        };
        let Some(session) = connection.session() else {
            return;
        };
        let Some((user, device)) = self.names(id) else {
            return;
        };
        let room = ToSequencer::Room { address, session, user, device, stream };
        self.requests.tell(room, around.outlet);
    }

    /// Whether a live push of catching-up `stream` is to be dropped. Falling behind is told once.
    fn is_behind(
        &mut self,
        id: ConnectionId,
        stream: u64,
        size: usize,
        around: &mut Surroundings,
    ) -> bool {
        let Some(connection) = self.connection(id) else {
            return false;
        };
        if connection.behind().is_some() {
            return true;
        }
        if around.clients.queued(id) <= behind_size(around.clients)
            && may_push(size, around.clients)
        {
            return false;
        }
        connection.set_behind(Some(stream));
        self.counters.behind += 1;
        self.say(id, &Event::Behind, around);
        true
    }

    fn report_dropped(
        &mut self,
        id: ConnectionId,
        target: &PushTarget,
        message: &Message,
        around: &mut Surroundings,
    ) {
        self.counters.dropped_pushes += 1;
        let Some((user, device)) = self.names(id) else {
            return;
        };
        let dropped = ToSequencer::Dropped {
            address: target.address,
            session: target.session,
            user,
            device,
            convo: message.convo.clone(),
            seq: message.seq,
            stream: target.stream,
        };
        self.requests.tell(dropped, around.outlet);
    }

    pub(super) fn subprotocol(&mut self, id: ConnectionId) -> Option<Subprotocol> {
        self.connection(id).map(|connection| connection.subprotocol)
    }

    fn push_message(&mut self, id: ConnectionId, frame: &[u8], around: &mut Surroundings) {
        self.counters.pushed += 1;
        self.queue(id, frame, around);
    }
}

fn encode(message: &Message, subprotocol: Subprotocol) -> Vec<u8> {
    let mut frame = Vec::new();
    subprotocol.encode(&Event::Message(message), &mut frame);
    frame
}
