//! A router as plain data, for the next process to go on with. It keeps its incarnation and its
//! link session, so the sequencer notices nothing, and what is unanswered stays asked.

use std::collections::VecDeque;

use super::connection::{Barrier, Client, Connection, Ping};
use super::requests::{Unanswered, Waiting};
use super::{ConnectionId, ErrorCode, Router};
use crate::link::message::{SessionNumber, Target, ToSequencer, Watermark};
use crate::link::record::{Body, ConversationName, Id};
use crate::link::wire::{wire_enum, wire_struct};
use crate::protocol::Subprotocol;
use crate::protocol::operation::{Operation, Rejected, Request};

wire_struct! {
    /// All but the clients.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct RouterState {
        pub epoch: u64,
        pub refuses_sequencer: bool,
        pub in_session: bool,
        pub turn_last: u64,
        pub unanswered: Vec<UnansweredState>,
        pub waiting: Vec<WaitingState>,
        /// When connections end because their client's proof does: time and connection.
        pub deadlines: Vec<(u64, (u32, u32))>,
    }
}

wire_struct! {
    /// One request.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct UnansweredState {
        pub turn: u64,
        /// Slot and generation.
        pub asker: (u32, u32),
        pub reference: Option<i64>,
        pub message: ToSequencer,
        pub size: u64,
        pub asked_at_us: u64,
        pub entry: Option<u64>,
    }
}

wire_enum! {
    /// What the link has not taken yet.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum WaitingState {
        1 = Request { turn: u64, },
        2 = Notice { message: ToSequencer, },
    }
}

wire_struct! {
    /// One client.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ClientState {
        pub slot: u32,
        pub generation: u32,
        pub user: Id,
        pub device: Id,
        pub manual: bool,
        /// Its place in [`Subprotocol::ALL`].
        pub subprotocol: u8,
        pub ticket_ends_unix_ms: u64,
        /// `None`: it waits for one.
        pub session: Option<SessionNumber>,
        pub parked: Vec<ParkedState>,
        pub outstanding_count: u32,
        pub outstanding_size: u32,
        pub pings: Vec<PingState>,
        pub tail: u32,
        pub behind: Option<u64>,
        pub room_wanted: Option<u64>,
    }
}

wire_struct! {
    /// A ping that waits for the answers before it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PingState {
        pub turn: u64,
        pub reference: Option<i64>,
        pub unanswered: u32,
    }
}

wire_struct! {
    /// A frame that waits for the session.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ParkedState {
        pub reference: Option<i64>,
        pub operation: ParkedOperation,
    }
}

wire_enum! {
    /// What it asks for. Whatever is not named here is answered `unavailable` by the next process:
    /// its client asks again.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ParkedOperation {
        1 = Send { target: Target, id: Id, body: Body, },
        2 = Acknowledge { convo: ConversationName, seq: u64, watermark: Watermark, },
        3 = Sync { convos: Option<Vec<(ConversationName, u64)>>, },
        4 = Ping,
        5 = Other { id: Option<Id>, },
    }
}

impl Router {
    /// All but the clients.
    pub fn state(&self) -> RouterState {
        let unanswered = self.requests.unanswered.iter().map(|(turn, request)| UnansweredState {
            turn: *turn,
            asker: (request.asker.slot, request.asker.generation),
            reference: request.reference,
            message: request.message.clone(),
            size: request.size as u64,
            asked_at_us: request.asked_at_us,
            entry: request.entry,
        });
        let waiting = self.requests.waiting.iter().map(|waiting| match waiting {
            Waiting::Request { turn } => WaitingState::Request { turn: *turn },
            Waiting::Notice { message } => WaitingState::Notice { message: message.clone() },
        });
        RouterState {
            epoch: self.epoch,
            refuses_sequencer: self.refuses_sequencer,
            in_session: self.requests.in_session,
            turn_last: self.requests.turn_last,
            unanswered: unanswered.collect(),
            waiting: waiting.collect(),
            deadlines: self
                .deadlines
                .iter()
                .map(|(at_ms, id)| (at_ms, (id.slot, id.generation)))
                .collect(),
        }
    }

    /// Makes a router that has just been made go on with a state. The clients follow.
    pub fn continue_from(&mut self, state: RouterState) {
        self.epoch = state.epoch;
        self.refuses_sequencer = state.refuses_sequencer;
        for (at_ms, (slot, generation)) in state.deadlines {
            self.deadlines.insert(at_ms, ConnectionId { slot, generation });
        }
        let requests = &mut self.requests;
        requests.in_session = state.in_session;
        requests.turn_last = state.turn_last;
        for request in state.unanswered {
            let (slot, generation) = request.asker;
            let size = usize::try_from(request.size).unwrap_or_default();
            requests.size += size;
            if let Some(entry) = request.entry {
                requests.turn_of_entry.insert(entry, request.turn);
                requests.in_flight_count += usize::from(size > 0);
                requests.in_flight_size += size;
            }
            let unanswered = Unanswered {
                asker: ConnectionId { slot, generation },
                reference: request.reference,
                message: request.message,
                size,
                asked_at_us: request.asked_at_us,
                entry: request.entry,
            };
            requests.unanswered.insert(request.turn, unanswered);
        }
        requests.waiting = VecDeque::from_iter(state.waiting.into_iter().map(|it| match it {
            WaitingState::Request { turn } => Waiting::Request { turn },
            WaitingState::Notice { message } => Waiting::Notice { message },
        }));
    }

    /// The client of a connection; `None` when it has none.
    pub fn client_state(&self, id: ConnectionId) -> Option<ClientState> {
        let connection = self.connections.get(id.slot as usize)?.as_ref()?;
        let current = connection.generation == id.generation;
        current.then(|| self.state_of(id.slot, connection))
    }

    /// Takes a client over. `None`: no client has such a state.
    pub fn continue_client(&mut self, state: ClientState) -> Option<()> {
        let slot = state.slot;
        let client = Client {
            generation: state.generation,
            user: state.user,
            device: state.device,
            manual: state.manual,
            subprotocol: *Subprotocol::ALL.get(usize::from(state.subprotocol))?,
        };
        let mut connection = Connection::new(client, &mut self.devices);
        match (state.session, connection.opening_mut()) {
            (None, Some(opening)) => {
                opening.ticket_ends_unix_ms = state.ticket_ends_unix_ms;
                for frame in state.parked {
                    // What was parked within the bounds is within them again.
                    opening.parked.park(frame.frame(), |_| asked_too_early(None));
                }
                self.parked_size += opening.parked.size();
            }
            (Some(session), _) => drop(connection.open(session)),
            (None, None) => {}
        }
        let pings = state.pings.into_iter().map(|ping| Ping {
            turn: ping.turn,
            reference: ping.reference,
            unanswered: ping.unanswered,
        });
        let pings: VecDeque<Ping> = pings.collect();
        let barrier = Barrier {
            pings: Some(pings).filter(|pings| !pings.is_empty()).map(Box::new),
            tail: state.tail,
        };
        let outstanding = (state.outstanding_count, state.outstanding_size);
        connection.restore_outstanding(outstanding, barrier);
        connection.set_behind(state.behind);
        connection.set_room_wanted(state.room_wanted);
        self.keep(slot, connection);
        Some(())
    }

    fn state_of(&self, slot: u32, connection: &Connection) -> ClientState {
        let opening = connection.opening();
        let parked = opening.iter().flat_map(|opening| &opening.parked.frames);
        let barrier = connection.barrier();
        let pings = barrier.and_then(|barrier| barrier.pings.as_ref());
        let (outstanding_count, outstanding_size) = connection.outstanding();
        ClientState {
            slot,
            generation: connection.generation,
            user: connection.user(),
            device: connection.device(&self.devices),
            manual: connection.manual,
            subprotocol: connection.subprotocol.index() as u8,
            ticket_ends_unix_ms: opening.map_or(u64::MAX, |it| it.ticket_ends_unix_ms),
            session: connection.session(),
            parked: parked.map(ParkedState::of).collect(),
            outstanding_count,
            outstanding_size,
            pings: pings.into_iter().flat_map(|pings| pings.iter()).map(PingState::of).collect(),
            tail: barrier.map_or(0, |barrier| barrier.tail),
            behind: connection.behind(),
            room_wanted: connection.room_wanted(),
        }
    }
}

impl PingState {
    fn of(ping: &Ping) -> PingState {
        let Ping { turn, reference, unanswered } = *ping;
        PingState { turn, reference, unanswered }
    }
}

impl ParkedState {
    fn of(frame: &Result<Request, Rejected>) -> ParkedState {
        let (reference, operation) = match frame {
            Err(rejected) => {
                (rejected.reference, ParkedOperation::Other { id: rejected.id.clone() })
            }
            Ok(Request { reference, operation }) => (*reference, ParkedOperation::of(operation)),
        };
        ParkedState { reference, operation }
    }

    fn frame(self) -> Result<Request, Rejected> {
        let operation = match self.operation {
            ParkedOperation::Send { target, id, body } => Operation::Send { target, id, body },
            ParkedOperation::Acknowledge { convo, seq, watermark } => {
                Operation::Acknowledge { convo, seq, watermark }
            }
            ParkedOperation::Sync { convos } => Operation::Sync { convos },
            ParkedOperation::Ping => Operation::Ping,
            ParkedOperation::Other { id } => {
                return Err(Rejected { reference: self.reference, ..asked_too_early(id) });
            }
        };
        Ok(Request { reference: self.reference, operation })
    }
}

impl ParkedOperation {
    fn of(operation: &Operation) -> ParkedOperation {
        match operation.clone() {
            Operation::Send { target, id, body } => ParkedOperation::Send { target, id, body },
            Operation::Acknowledge { convo, seq, watermark } => {
                ParkedOperation::Acknowledge { convo, seq, watermark }
            }
            Operation::Sync { convos } => ParkedOperation::Sync { convos },
            Operation::Ping => ParkedOperation::Ping,
            _ => ParkedOperation::Other { id: None },
        }
    }
}

fn asked_too_early(id: Option<Id>) -> Rejected {
    Rejected {
        reference: None,
        id,
        code: ErrorCode::Unavailable,
        message: "it came before the welcome, while the server changed; ask again",
        limit: None,
    }
}
