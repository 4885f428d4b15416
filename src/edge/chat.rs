//! The messenger on a shard: joins the shard's connections, the router and the links.

use std::net::SocketAddr;

use super::application::{Application, ConnectionId, Decision, End, Held, Message};
use super::connections::{Connections, SendError};
use super::handover::ChatState;
use super::identity::Admitted;
use super::ledger::{Class, Pressure};
use super::pace::Slots;
use super::router::{self, ClientState, Clients, Router, Surroundings};
use super::site::{Answer, Site};
use super::ticket::Tickets;
use crate::clock::Now;
use crate::framer::{Opcode, Request};
use crate::link::PeerId;
use crate::link::greeting::{Role, Secret};
use crate::link::host::{LinkOptions, Links};
use crate::protocol::Subprotocol;
use crate::ring::{Completion, Ring};

/// The longest a turn waits when nothing is due.
const WAIT_US_MAX: u64 = 100_000;
/// An operation that is unanswered for so long says that no operation is answered.
const UNREADY_US: u64 = 2_000_000;

/// What one shard's chat is made of.
pub struct ChatOptions {
    /// The shard's name on its link: `<edge>/<index>`.
    pub name: String,
    /// The edge's name, as `welcome` tells it.
    pub server: String,
    /// Random, new at every start, except at one that goes on where another process stood.
    pub incarnation: u64,
    pub secret: Vec<u8>,
    pub sequencer: SocketAddr,
    pub heartbeat_ms: u32,
    /// What plain HTTP gets, and who may connect.
    pub site: Site,
}

/// See the module.
pub struct Chat {
    router: Router,
    links: Links,
    sequencer: PeerId,
    incarnation: u64,
    site: Site,
    /// Whose upgrade is being answered: `opened` follows at once, or never.
    arriving: Option<(ConnectionId, Admitted)>,
    /// A session with the sequencer has begun.
    linked: bool,
    now_us: u64,
}

impl Chat {
    pub fn new(options: ChatOptions) -> Chat {
        let ChatOptions { incarnation, .. } = options;
        let mut links = Links::new(LinkOptions {
            role: Role::Edge,
            name: options.name.into(),
            incarnation,
            secret: Secret::new(&options.secret),
        });
        let sequencer = links.dial(options.sequencer);
        let router = Router::new(router::Options {
            sequencer,
            incarnation,
            server: options.server,
            heartbeat_ms: u64::from(options.heartbeat_ms),
            tickets: Tickets::new(&options.secret),
            seed: incarnation,
        });
        Chat {
            router,
            links,
            sequencer,
            incarnation,
            site: options.site,
            arriving: None,
            linked: false,
            now_us: 0,
        }
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The time of the present turn.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Whether the sequencer has been there since the start.
    pub fn is_linked(&self) -> bool {
        self.linked
    }

    /// Why clients had better go to another edge just now.
    pub fn unready(&self) -> Option<&'static str> {
        if self.router.is_draining() {
            return Some("draining");
        }
        if !self.links.is_reachable(self.sequencer) {
            return Some("no link to the sequencer");
        }
        let is_stuck = self.router.longest_wait_us(self.now_us) > UNREADY_US;
        is_stuck.then_some("the sequencer has not answered for 2 s; does its store run?")
    }

    /// Tells every client when to come back.
    pub fn drain(&mut self, now: Now, slots: Slots, connections: &mut Connections) {
        self.with_router(now, connections, |router, around| router.drain(slots, around));
    }

    /// All but the clients, once the shard stands still.
    pub fn state(&self) -> ChatState {
        ChatState {
            incarnation: self.incarnation,
            router: self.router.state(),
            link: self.links.state(self.sequencer),
        }
    }

    /// Makes a chat that has just been made, with the incarnation of the state, go on from there.
    pub fn continue_from(&mut self, state: ChatState, nonce: u64, now: Now) {
        self.linked = state.link.session.is_some();
        self.router.continue_from(state.router);
        self.links.continue_from(self.sequencer, state.link, nonce, now);
    }

    /// The client of a connection, if it has one.
    pub fn client_state(&self, id: ConnectionId) -> Option<ClientState> {
        self.router.client_state(id)
    }

    /// Takes a client over. `None`: no client has such a state.
    pub fn continue_client(&mut self, state: ClientState) -> Option<()> {
        self.router.continue_client(state)
    }

    fn take_events<R: Ring>(&mut self, now: Now, ring: &mut R, connections: &mut Connections) {
        while let Some(event) = self.links.next_event() {
            self.linked = true;
            self.with_router(now, connections, |router, around| router.link_event(event, around));
            if self.router.refuses_sequencer() {
                self.links.end(self.sequencer, ring);
            }
        }
    }

    fn with_router(
        &mut self,
        now: Now,
        connections: &mut Connections,
        act: impl FnOnce(&mut Router, &mut Surroundings),
    ) {
        let mut around = Surroundings { now, clients: connections, outlet: &mut self.links };
        act(&mut self.router, &mut around);
    }
}

impl<R: Ring> Application<R> for Chat {
    fn request(&mut self, now: Now, id: ConnectionId, request: &Request, _: &[u8]) -> Decision {
        match self.site.answer(request, self.router.is_draining(), now.unix_ms) {
            Answer::Connect(admitted) => {
                let subprotocol = admitted.subprotocol.map(Subprotocol::name);
                self.arriving = Some((id, admitted));
                Decision::Upgrade { subprotocol }
            }
            Answer::Respond(response) => Decision::Respond(response),
        }
    }

    fn opened(&mut self, now: Now, id: ConnectionId, connections: &mut Connections) {
        let Some((_, admitted)) = self.arriving.take_if(|(arriving, _)| *arriving == id) else {
            return;
        };
        let term = admitted.term;
        self.with_router(now, connections, |router, around| {
            router.opened(id, admitted, around);
            router.limit(id, term, around.now);
        });
    }

    fn message(
        &mut self,
        now: Now,
        id: ConnectionId,
        message: Message,
        connections: &mut Connections,
    ) {
        let (subprotocol, message) = match message {
            Message::Text(text) => (Subprotocol::Json, text.as_bytes()),
            Message::Binary(bytes) => (Subprotocol::Binary, bytes),
        };
        self.with_router(now, connections, |router, around| {
            router.message(id, subprotocol, message, around);
        });
    }

    fn closed(&mut self, now: Now, id: ConnectionId, _: End, connections: &mut Connections) {
        self.with_router(now, connections, |router, around| router.closed(id, around));
    }

    fn drained(&mut self, now: Now, id: ConnectionId, connections: &mut Connections) {
        self.with_router(now, connections, |router, around| router.drained(id, around));
    }

    fn other_completion(
        &mut self,
        now: Now,
        completion: Completion,
        ring: &mut R,
        connections: &mut Connections,
    ) {
        self.links.complete(now, completion, ring);
        self.take_events(now, ring, connections);
    }

    fn turn_end(&mut self, now: Now, ring: &mut R, connections: &mut Connections) {
        self.now_us = now.monotonic_us;
        self.with_router(now, connections, |router, around| router.tick(around));
        self.links.flush(now, ring);
        // A lease that ran out is noticed while flushing.
        self.take_events(now, ring, connections);
    }

    fn stopping(&mut self, _: Now, connections: &mut Connections) {
        connections.close_all(1001, "drain");
    }

    fn standing_still(&mut self, _: Now, ring: &mut R) {
        self.links.hang_up(ring);
    }

    fn held(&self) -> Held {
        self.router.held()
    }

    fn next_deadline_us(&self) -> Option<u64> {
        Some(self.now_us + self.links.wait_us(WAIT_US_MAX))
    }
}

impl Clients for Connections {
    fn send(&mut self, id: ConnectionId, subprotocol: Subprotocol, frame: &[u8]) -> bool {
        let opcode = match subprotocol {
            Subprotocol::Json => Opcode::Text,
            Subprotocol::Binary => Opcode::Binary,
        };
        self.send_frame(id, opcode, frame) != Err(SendError::Full)
    }

    fn queued(&self, id: ConnectionId) -> usize {
        self.queued_bytes(id)
    }

    fn watch_drained(&mut self, id: ConnectionId) {
        Connections::watch_drained(self, id);
    }

    fn close(&mut self, id: ConnectionId, code: u16, reason: &str) {
        Connections::close(self, id, code, reason);
    }

    fn cut_slow(&mut self, id: ConnectionId, code: u16, reason: &str) {
        self.cut(id, code, reason, End::Slow);
    }

    fn pressure(&self) -> Pressure {
        self.ledger().pressure()
    }

    fn memory_left(&self) -> usize {
        self.ledger().free()
    }

    fn may_queue(&self) -> bool {
        self.ledger().has_room(Class::Queues)
    }
}
