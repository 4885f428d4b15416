//! Drives link sessions over a ring: dials, listens, greets, sends in batches, keeps leases.
//!
//! One send is under way per peer; whatever the logic says in a turn of the loop leaves together.
//! A connection that breaks is made again and its session goes on; a session ends only when a side
//! has a new incarnation, or nothing was heard for [`LEASE_US`].

mod handover;
mod peer;

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;

use super::frame::{FrameKind, Header, LinkViolation, write_frame};
use super::greeting::{Begin, Challenge, Hello, LINK_VERSION, Proof, Role, Secret, check_version};
use super::record::Id;
use super::session::Session;
use super::wire::Wire;
use super::{LinkEvent, LinkFull, Outlet, PeerId};
use crate::clock::Now;
use crate::limits::LINK_WINDOW_SIZE;
use crate::ring::{Completion, Kind, Ring, Socket, Token};
pub use handover::LinkState;
use peer::{Connection, Peer, Stage};

/// A session whose peer was not heard of for this long is over, on both sides.
pub const LEASE_US: u64 = 10_000_000;
/// Something is said at least this often.
const BEAT_US: u64 = 1_000_000;
/// A connection on which nothing was heard for this long is given up and made again.
const SILENCE_US: u64 = 4_000_000;
/// A greeting takes this long at most.
const GREETING_US: u64 = 5_000_000;
/// Between two attempts to connect.
const REDIAL_US: u64 = 20_000;
/// Bytes gathered for one send.
const SEND_SIZE_MAX: usize = 512 * 1024;
/// Connections that are still greeting; strangers cannot pile up beyond it.
const GREETING_COUNT_MAX: usize = 256;

/// Who this process is on its links.
pub struct LinkOptions {
    pub role: Role,
    pub name: Id,
    /// Random, new at every process start.
    pub incarnation: u64,
    pub secret: Secret,
}

/// Counters for the metrics page.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkCounters {
    pub connections_total: u64,
    pub sessions_total: u64,
    pub violations_total: u64,
    pub entries_sent_total: u64,
    pub entries_received_total: u64,
}

/// All links of one process (or of one edge shard).
pub struct Links {
    options: LinkOptions,
    peers: Vec<Peer>,
    connections: Vec<Option<Connection>>,
    generations: Vec<u32>,
    events: VecDeque<LinkEvent>,
    listener: Option<Socket>,
    nonce: u64,
    next_session: u64,
    durable_seen: u64,
    pub counters: LinkCounters,
}

impl Links {
    pub fn new(options: LinkOptions) -> Links {
        Links {
            nonce: options.incarnation,
            options,
            peers: Vec::new(),
            connections: Vec::new(),
            generations: Vec::new(),
            events: VecDeque::new(),
            listener: None,
            next_session: 1,
            durable_seen: 0,
            counters: LinkCounters::default(),
        }
    }

    /// Accepts peers on a listening socket.
    pub fn listen<R: Ring>(&mut self, listener: Socket, ring: &mut R) {
        self.listener = Some(listener);
        ring.accept(listener, Token::new(Kind::LinkAccept, 0, 0));
    }

    /// Keeps a link to the process at `address`, from the next [`Links::flush`] on.
    pub fn dial(&mut self, address: SocketAddr) -> PeerId {
        self.peers.push(Peer::dialed(address));
        PeerId(self.peers.len() as u32 - 1)
    }

    /// Told to every peer in the greeting; never falls.
    pub fn set_durable_seen(&mut self, lsn: u64) {
        self.durable_seen = self.durable_seen.max(lsn);
    }

    /// What happened since, in order.
    pub fn next_event(&mut self) -> Option<LinkEvent> {
        let event = self.events.pop_front()?;
        if let LinkEvent::Began { peer, .. } = &event {
            self.peers[peer.0 as usize].unheard -= 1;
        }
        Some(event)
    }

    /// Whether a session with the peer stands (its connection may be broken just now).
    pub fn is_up(&self, peer: PeerId) -> bool {
        self.peers[peer.0 as usize].session.is_some()
    }

    /// Whether what is said to the peer reaches it just now.
    pub fn is_reachable(&self, peer: PeerId) -> bool {
        self.is_up(peer) && self.peers[peer.0 as usize].connection.is_some()
    }

    /// Cuts the connection and ends the session: the peer broke the protocol, or fell too far
    /// behind.
    pub fn end<R: Ring>(&mut self, peer: PeerId, ring: &mut R) {
        if let Some(slot) = self.peers[peer.0 as usize].connection {
            self.drop_connection(slot, ring);
        }
        self.end_session(peer);
    }

    /// Takes a completion of one of the `Link*` kinds.
    pub fn complete<R: Ring>(&mut self, now: Now, completion: Completion, ring: &mut R) {
        match completion.token.kind() {
            Kind::LinkAccept => self.accepted(now, completion, ring),
            Kind::LinkConnect => self.connected(now, completion, ring),
            Kind::LinkReceive => self.received(now, completion, ring),
            Kind::LinkSend => self.sent(completion, ring),
            kind => unreachable!("{kind:?} is not a link's completion"),
        }
    }

    /// Dials, beats, gives up what is silent, re-arms, and sends what was submitted. Once a turn.
    pub fn flush<R: Ring>(&mut self, now: Now, ring: &mut R) {
        for index in 0..self.peers.len() {
            self.keep_peer(now, PeerId(index as u32), ring);
        }
        for slot in 0..self.connections.len() as u32 {
            self.keep_connection(now, slot, ring);
        }
    }

    /// The microseconds until [`Links::flush`] has something to do by itself, at most `max_us`.
    pub fn wait_us(&self, max_us: u64) -> u64 {
        let down = |peer: &Peer| peer.address.is_some() && peer.connection.is_none();
        if self.peers.iter().any(down) { max_us.min(REDIAL_US) } else { max_us }
    }

    fn accepted<R: Ring>(&mut self, now: Now, completion: Completion, ring: &mut R) {
        if !completion.more {
            let listener = self.listener.expect("only a listener accepts");
            ring.accept(listener, Token::new(Kind::LinkAccept, 0, 0));
        }
        let Ok(slot) = u32::try_from(completion.result) else {
            return;
        };
        let socket = ring.accepted(slot);
        let greeting = self.connections.iter().flatten().filter(|c| c.peer().is_none()).count();
        if greeting >= GREETING_COUNT_MAX {
            ring.close(socket, true);
            return;
        }
        let slot = self.add_connection(Connection::new(socket, Stage::Expecting, now));
        self.arm_receive(slot, ring);
    }

    fn connected<R: Ring>(&mut self, now: Now, completion: Completion, ring: &mut R) {
        let Some(slot) = self.current(completion.token) else {
            return;
        };
        if completion.result < 0 {
            self.drop_connection(slot, ring);
            return;
        }
        let hello = self.hello();
        let connection = self.connections[slot as usize].as_mut().expect("looked up above");
        let Stage::Dialing { peer } = connection.stage else {
            return;
        };
        connection.last_heard_us = now.monotonic_us;
        write_frame(FrameKind::Hello, 0, 0, &hello.to_bytes(), &mut connection.out);
        connection.stage = Stage::Helloed { peer, hello };
        self.arm_receive(slot, ring);
    }

    fn received<R: Ring>(&mut self, now: Now, completion: Completion, ring: &mut R) {
        let slot = self.current(completion.token);
        if let (Some(buffer), Some(slot)) = (completion.buffer, slot) {
            let bytes = ring.bytes(buffer, completion.result.max(0) as usize);
            let connection = self.connections[slot as usize].as_mut().expect("looked up above");
            connection.reader.push(bytes);
            connection.last_heard_us = now.monotonic_us;
        }
        if let Some(buffer) = completion.buffer {
            ring.release(buffer);
        }
        let Some(slot) = slot else { return };
        if !completion.more {
            self.connections[slot as usize].as_mut().expect("looked up above").receiving = false;
        }
        if completion.result <= 0 && completion.result != -libc::ENOBUFS {
            self.drop_connection(slot, ring);
            return;
        }
        if let Err(violation) = self.read_frames(now, slot, ring) {
            self.counters.violations_total += 1;
            tracing::warn!(%violation, "a link is cut");
            self.drop_connection(slot, ring);
        }
    }

    fn sent<R: Ring>(&mut self, completion: Completion, ring: &mut R) {
        let emptied = ring.take_sent(completion.token);
        let Some(slot) = self.current(completion.token) else {
            return;
        };
        let connection = self.connections[slot as usize].as_mut().expect("looked up above");
        connection.sending = false;
        if connection.out.is_empty()
            && let Some(emptied) = emptied
        {
            connection.out = emptied;
        }
        if completion.result < 0 {
            self.drop_connection(slot, ring);
        }
    }

    fn read_frames<R: Ring>(
        &mut self,
        now: Now,
        slot: u32,
        ring: &mut R,
    ) -> Result<(), LinkViolation> {
        loop {
            let Some(connection) = self.connections[slot as usize].as_mut() else {
                return Ok(());
            };
            let Some((header, payload)) = connection.reader.take_frame()? else {
                return Ok(());
            };
            match connection.peer() {
                Some(peer) => self.take_entry(now, peer, &header, payload)?,
                None => self.greet(now, slot, &header, payload, ring)?,
            }
        }
    }

    fn take_entry(
        &mut self,
        now: Now,
        id: PeerId,
        header: &Header,
        entry: Bytes,
    ) -> Result<(), LinkViolation> {
        let peer = &mut self.peers[id.0 as usize];
        peer.last_heard_us = now.monotonic_us;
        let session = peer.session.as_mut().ok_or(LinkViolation::Unexpected)?;
        if session.receive(header)? {
            self.counters.entries_received_total += 1;
            self.events.push_back(LinkEvent::Entry { peer: id, number: header.number, entry });
        }
        Ok(())
    }

    fn greet<R: Ring>(
        &mut self,
        now: Now,
        slot: u32,
        header: &Header,
        payload: Bytes,
        ring: &mut R,
    ) -> Result<(), LinkViolation> {
        let stage = self.connections[slot as usize].as_ref().expect("reading it").stage.clone();
        match (stage, header.kind) {
            (Stage::Expecting, FrameKind::Hello) => self.challenge(slot, payload),
            (Stage::Helloed { peer, hello }, FrameKind::Challenge) => {
                self.prove(slot, peer, &hello, payload)
            }
            (Stage::Challenged { theirs, ours }, FrameKind::Proof) => {
                self.begin(now, slot, &theirs, &ours, payload, ring)
            }
            (Stage::Proved { peer, theirs }, FrameKind::Begin) => {
                self.begun(now, slot, peer, &theirs, payload)
            }
            _ => Err(LinkViolation::Unexpected),
        }
    }

    fn challenge(&mut self, slot: u32, payload: Bytes) -> Result<(), LinkViolation> {
        let theirs = Hello::from_bytes(payload)?;
        check_version(&theirs)?;
        let ours = self.hello();
        let proof = self.options.secret.prove(self.options.role, &theirs, &ours);
        let challenge = Challenge { hello: ours.clone(), proof };
        let connection = self.connections[slot as usize].as_mut().expect("reading it");
        write_frame(FrameKind::Challenge, 0, 0, &challenge.to_bytes(), &mut connection.out);
        connection.stage = Stage::Challenged { theirs, ours };
        Ok(())
    }

    fn prove(
        &mut self,
        slot: u32,
        id: PeerId,
        ours: &Hello,
        payload: Bytes,
    ) -> Result<(), LinkViolation> {
        let challenge = Challenge::from_bytes(payload)?;
        let theirs = challenge.hello;
        check_version(&theirs)?;
        self.options.secret.check(theirs.role, ours, &theirs, &challenge.proof)?;
        let peer = &self.peers[id.0 as usize];
        let goes_on = peer.incarnation == theirs.incarnation;
        let (session, received) = match &peer.session {
            Some(session) if goes_on => (session.id, session.received()),
            _ => (0, 0),
        };
        let proof = self.options.secret.prove(self.options.role, ours, &theirs);
        let proof = Proof { proof, session, received };
        let connection = self.connections[slot as usize].as_mut().expect("reading it");
        write_frame(FrameKind::Proof, 0, 0, &proof.to_bytes(), &mut connection.out);
        connection.stage = Stage::Proved { peer: id, theirs };
        Ok(())
    }

    fn begin<R: Ring>(
        &mut self,
        now: Now,
        slot: u32,
        theirs: &Hello,
        ours: &Hello,
        payload: Bytes,
        ring: &mut R,
    ) -> Result<(), LinkViolation> {
        let proof = Proof::from_bytes(payload)?;
        self.options.secret.check(theirs.role, theirs, ours, &proof.proof)?;
        let id = self.peer_named(theirs);
        if let Some(old) = self.peers[id.0 as usize].connection {
            self.drop_connection(old, ring);
        }
        let peer = &mut self.peers[id.0 as usize];
        let resumed = match &mut peer.session {
            Some(session)
                if peer.incarnation == theirs.incarnation && session.id == proof.session =>
            {
                session.reconnect(proof.received)?;
                true
            }
            _ => false,
        };
        if !resumed {
            let session = self.next_session;
            self.next_session += 1;
            self.start_session(id, session, theirs);
        }
        let session = self.peers[id.0 as usize].session.as_ref().expect("resumed or started");
        let begin = Begin { session: session.id, resumed, received: session.received() };
        self.attach(now, slot, id);
        let connection = self.connections[slot as usize].as_mut().expect("reading it");
        write_frame(FrameKind::Begin, 0, 0, &begin.to_bytes(), &mut connection.out);
        Ok(())
    }

    fn begun(
        &mut self,
        now: Now,
        slot: u32,
        id: PeerId,
        theirs: &Hello,
        payload: Bytes,
    ) -> Result<(), LinkViolation> {
        let begin = Begin::from_bytes(payload)?;
        if begin.resumed {
            let session = self.peers[id.0 as usize].session.as_mut();
            let session = session.filter(|session| session.id == begin.session);
            session.ok_or(LinkViolation::Unexpected)?.reconnect(begin.received)?;
        } else {
            self.start_session(id, begin.session, theirs);
        }
        self.attach(now, slot, id);
        Ok(())
    }

    fn attach(&mut self, now: Now, slot: u32, id: PeerId) {
        let connection = self.connections[slot as usize].as_mut().expect("reading it");
        connection.stage = Stage::Attached { peer: id };
        connection.reader.trust();
        let peer = &mut self.peers[id.0 as usize];
        peer.connection = Some(slot);
        peer.last_heard_us = now.monotonic_us;
        self.counters.connections_total += 1;
    }

    fn start_session(&mut self, id: PeerId, session: u64, theirs: &Hello) {
        self.end_session(id);
        let peer = &mut self.peers[id.0 as usize];
        peer.session = Some(Session::new(session, LINK_WINDOW_SIZE));
        peer.unheard += 1;
        peer.incarnation = theirs.incarnation;
        self.counters.sessions_total += 1;
        self.events.push_back(LinkEvent::Began {
            peer: id,
            name: theirs.name.clone(),
            incarnation: theirs.incarnation,
            durable_seen: theirs.durable_seen,
        });
    }

    fn end_session(&mut self, id: PeerId) {
        if self.peers[id.0 as usize].session.take().is_some() {
            // Entries of the ended session that the logic has not seen yet are void with it.
            self.events
                .retain(|event| !matches!(event, LinkEvent::Entry { peer, .. } if *peer == id));
            self.events.push_back(LinkEvent::Ended { peer: id });
        }
    }

    fn peer_named(&mut self, hello: &Hello) -> PeerId {
        let known = |peer: &Peer| peer.accepted_as(hello.role, &hello.name);
        let index = self.peers.iter().position(known).unwrap_or_else(|| {
            self.peers.push(Peer::accepted(hello.role, hello.name.clone()));
            self.peers.len() - 1
        });
        PeerId(index as u32)
    }

    fn keep_peer<R: Ring>(&mut self, now: Now, id: PeerId, ring: &mut R) {
        let peer = &mut self.peers[id.0 as usize];
        let expired = now.monotonic_us > peer.last_heard_us + LEASE_US;
        if peer.overflowed || (peer.session.is_some() && expired) {
            let why = if peer.overflowed { "too much is unacknowledged" } else { "silence" };
            tracing::warn!(why, peer = %peer.name(), "a link session ends");
            peer.overflowed = false;
            self.end(id, ring);
        }
        let peer = &mut self.peers[id.0 as usize];
        let Some(address) = peer.address else { return };
        if peer.connection.is_some() || peer.dialing || now.monotonic_us < peer.dial_after_us {
            return;
        }
        peer.dial_after_us = now.monotonic_us + REDIAL_US;
        let slot = self.free_slot();
        let token = Token::new(Kind::LinkConnect, slot, self.generations[slot as usize]);
        if let Ok(socket) = ring.connect(address, token) {
            let connection = Connection::new(socket, Stage::Dialing { peer: id }, now);
            self.connections[slot as usize] = Some(connection);
            self.peers[id.0 as usize].dialing = true;
        }
    }

    fn keep_connection<R: Ring>(&mut self, now: Now, slot: u32, ring: &mut R) {
        let Some(connection) = self.connections[slot as usize].as_ref() else {
            return;
        };
        let patience = if connection.peer().is_some() { SILENCE_US } else { GREETING_US };
        if now.monotonic_us > connection.last_heard_us + patience {
            self.drop_connection(slot, ring);
            return;
        }
        if !matches!(connection.stage, Stage::Dialing { .. }) {
            self.arm_receive(slot, ring);
            self.send(now, slot, ring);
        }
    }

    fn send<R: Ring>(&mut self, now: Now, slot: u32, ring: &mut R) {
        let connection = self.connections[slot as usize].as_mut().expect("kept by the caller");
        if connection.sending {
            return;
        }
        if let Some(peer) = connection.peer()
            && let Some(session) = self.peers[peer.0 as usize].session.as_mut()
        {
            session.transmit(SEND_SIZE_MAX, &mut connection.out);
            let due = now.monotonic_us >= connection.last_said_us + BEAT_US;
            if connection.out.is_empty() && (due || session.untold() >= 1024) {
                session.beat(&mut connection.out);
            }
        }
        if connection.out.is_empty() {
            return;
        }
        connection.last_said_us = now.monotonic_us;
        connection.sending = true;
        let data = std::mem::take(&mut connection.out);
        let token = Token::new(Kind::LinkSend, slot, self.generations[slot as usize]);
        ring.send(connection.socket, data, token);
    }

    fn arm_receive<R: Ring>(&mut self, slot: u32, ring: &mut R) {
        let token = Token::new(Kind::LinkReceive, slot, self.generations[slot as usize]);
        let connection = self.connections[slot as usize].as_mut().expect("checked by the caller");
        if !connection.receiving && ring.buffers_free() > 0 {
            connection.receiving = true;
            ring.receive(connection.socket, token);
        }
    }

    fn drop_connection<R: Ring>(&mut self, slot: u32, ring: &mut R) {
        let Some(connection) = self.connections[slot as usize].take() else {
            return;
        };
        let generation = self.generations[slot as usize];
        self.generations[slot as usize] = generation.wrapping_add(1);
        if connection.receiving {
            ring.cancel(Token::new(Kind::LinkReceive, slot, generation));
        }
        if let Stage::Dialing { .. } = connection.stage {
            ring.cancel(Token::new(Kind::LinkConnect, slot, generation));
        }
        ring.close(connection.socket, false);
        for peer in &mut self.peers {
            if peer.connection == Some(slot) {
                peer.connection = None;
            }
        }
        if let Some(peer) = connection.dialed_by() {
            self.peers[peer.0 as usize].dialing = false;
        }
    }

    fn add_connection(&mut self, connection: Connection) -> u32 {
        let slot = self.free_slot();
        self.connections[slot as usize] = Some(connection);
        slot
    }

    fn free_slot(&mut self) -> u32 {
        let free = self.connections.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.connections.push(None);
            self.generations.push(0);
            self.connections.len() - 1
        });
        slot as u32
    }

    fn current(&self, token: Token) -> Option<u32> {
        let slot = token.slot();
        let lives = self.connections.get(slot as usize)?.is_some();
        (lives && self.generations[slot as usize] == token.generation()).then_some(slot)
    }

    fn hello(&mut self) -> Hello {
        self.nonce = self.nonce.wrapping_add(1);
        Hello {
            version: LINK_VERSION,
            role: self.options.role,
            name: self.options.name.clone(),
            incarnation: self.options.incarnation,
            nonce: self.nonce,
            durable_seen: self.durable_seen,
        }
    }
}

impl Outlet for Links {
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        let peer = &mut self.peers[peer.0 as usize];
        let submitted = peer.known_session().ok_or(LinkFull)?.submit(entry);
        match submitted {
            Ok(_) => self.counters.entries_sent_total += 1,
            // Answers and pushes cannot wait: a peer that far behind begins anew.
            Err(LinkFull) if peer.address.is_none() => peer.overflowed = true,
            Err(LinkFull) => {}
        }
        submitted
    }

    fn answered(&mut self, peer: PeerId, number: u64) {
        if let Some(session) = self.peers[peer.0 as usize].known_session() {
            session.answer(number);
        }
    }
}

#[cfg(test)]
mod tests;
