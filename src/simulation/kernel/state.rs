//! The world behind the rings: connections, what is on the way, and who waits for what.
//!
//! Invariants: `coming` of an end is the sum of the chunks on their way to it; `inbound` and
//! `coming` together never exceed the socket buffer; what travels to one end is due in the order in
//! which it was sent; a token is in `armed` exactly as long as its request can still complete.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use super::{FaultRates, SimOptions};
use crate::ring::{Completion, Token};
use crate::simulation::random::Random;

/// One ring of the network, that is one thread of one process in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RingId(pub(super) usize);

pub(super) type EndId = usize;

/// Completions of one stream keep their order.
pub(super) type Stream = u64;

const LATE_US_MAX: u64 = 10_000;
const SILENCE_US_MAX: u64 = 30_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    /// Given up by its owner.
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Orderly,
    Reset,
}

pub(super) struct Sending {
    token: Token,
    data: Vec<u8>,
    done: usize,
}

/// One side of a connection.
pub(super) struct End {
    pub(super) peer: EndId,
    /// From where it connects; means nothing on the side that was connected to.
    pub(super) address: SocketAddr,
    owner: Option<RingId>,
    phase: Phase,
    pub(super) inbound: VecDeque<u8>,
    coming: usize,
    last_due_us: u64,
    /// What the peer or the network did to the stream towards this end.
    pub(super) ended: Option<Ending>,
    sending: Option<Sending>,
    /// A send was asked for whose completion its owner has not seen.
    pub(super) send_unseen: bool,
    /// The receive or poll that is armed.
    pub(super) receive: Option<Token>,
    pub(super) receives_once: bool,
    pub(super) connect: Option<Token>,
}

pub(super) struct Listener {
    pub(super) ring: RingId,
    address: SocketAddr,
    pub(super) pending: VecDeque<EndId>,
    /// One multishot accept, or any number of others; the first is served first.
    pub(super) accepts: VecDeque<Accept>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Accept {
    pub(super) token: Token,
    pub(super) is_multishot: bool,
}

/// What an ordinary descriptor of a ring is.
#[derive(Clone, Copy)]
pub(super) enum Thing {
    Listener(usize),
    End(EndId),
}

#[derive(Clone, Copy)]
pub(super) enum Armed {
    Accept(usize),
    Connect(EndId),
    Receive(EndId),
    Poll(EndId),
    Send(EndId),
    Watch(RawFd),
}

pub(super) struct Posted {
    pub(super) due_us: u64,
    pub(super) stream: Stream,
    pub(super) completion: Completion,
    /// The vector of a send.
    pub(super) data: Option<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct RingState {
    pub(super) alive: bool,
    pub(super) direct: Vec<Option<EndId>>,
    pub(super) direct_max: usize,
    pub(super) ordinary: BTreeMap<RawFd, Thing>,
    pub(super) armed: BTreeMap<u64, Armed>,
    pub(super) posted: Vec<Posted>,
    /// Event descriptors that were signalled while nobody watched.
    pub(super) signalled: BTreeMap<RawFd, bool>,
}

enum Event {
    /// The connection asked for reaches the address.
    Open {
        end: EndId,
        address: SocketAddr,
    },
    /// The answer to it comes back.
    Connected {
        end: EndId,
        result: i32,
    },
    Arrive {
        end: EndId,
        bytes: Vec<u8>,
    },
    Ended {
        end: EndId,
        ending: Ending,
    },
    /// The peer has read: there is room to send again.
    Room {
        end: EndId,
    },
}

pub(super) struct State {
    now_us: u64,
    pub(super) random: Random,
    pub(super) options: SimOptions,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) ends: Vec<End>,
    pub(super) listeners: Vec<Option<Listener>>,
    pub(super) rings: Vec<RingState>,
}

/// The stream of an end's receives and of its connect.
pub(super) fn inward(end: EndId) -> Stream {
    end as u64 * 2
}

/// The stream of an end's sends.
pub(super) fn outward(end: EndId) -> Stream {
    end as u64 * 2 + 1
}

pub(super) fn completion(token: Token, result: i32, more: bool) -> Completion {
    Completion { token, result, more, buffer: None }
}

impl State {
    pub(super) fn new(random: Random, options: SimOptions) -> State {
        let (shortest, longest) = options.latency_us;
        assert!(shortest >= 1 && longest >= shortest, "time must pass");
        assert!(options.socket_buffer_size > 0);
        State {
            now_us: 0,
            random,
            options,
            events: BTreeMap::new(),
            sequence: 0,
            ends: Vec::new(),
            listeners: Vec::new(),
            rings: Vec::new(),
        }
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(super) fn set_faults(&mut self, faults: FaultRates) {
        self.options.faults = faults;
    }

    pub(super) fn next_event_us(&self) -> Option<u64> {
        let event = self.events.keys().next().map(|(due_us, _)| *due_us);
        let posted = self.rings.iter().flat_map(|ring| &ring.posted);
        let late = posted.map(|posted| posted.due_us);
        let future = late.filter(|due_us| *due_us > self.now_us);
        future.chain(event).min()
    }

    pub(super) fn advance_to(&mut self, us: u64) {
        while let Some(first) = self.events.first_entry() {
            let due_us = first.key().0;
            if due_us > us {
                break;
            }
            let event = first.remove();
            self.now_us = self.now_us.max(due_us);
            self.apply(event);
        }
        self.now_us = self.now_us.max(us);
    }

    pub(super) fn is_due(&self, ring: RingId) -> bool {
        let ring = &self.rings[ring.0];
        let posted = ring.posted.iter().any(|posted| posted.due_us <= self.now_us);
        posted
            || ring.armed.values().any(|armed| match armed {
                Armed::Receive(end) | Armed::Poll(end) => self.is_readable(*end),
                Armed::Accept(listener) => {
                    let listener = self.listeners[*listener].as_ref();
                    listener.is_some_and(|listener| !listener.pending.is_empty())
                }
                _ => false,
            })
    }

    pub(super) fn crash(&mut self, ring: RingId) {
        let direct_max = self.rings[ring.0].direct_max;
        self.rings[ring.0] = RingState { direct_max, ..RingState::default() };
        for listener in &mut self.listeners {
            if listener.as_ref().is_some_and(|listener| listener.ring == ring) {
                *listener = None;
            }
        }
        for end in 0..self.ends.len() {
            if self.ends[end].owner == Some(ring) && self.ends[end].phase != Phase::Closed {
                self.abandon(end);
            }
        }
    }

    pub(super) fn cut(&mut self, one: RingId, other: RingId) {
        for end in 0..self.ends.len() {
            let peer = self.ends[end].peer;
            let owners = (self.ends[end].owner, self.ends[peer].owner);
            if owners == (Some(one), Some(other)) {
                self.break_connection(end);
            }
        }
    }

    /// Makes both ends of a connection and sends the first towards `address`.
    pub(super) fn dial(&mut self, from: IpAddr, address: SocketAddr) -> EndId {
        let near = self.new_connection(None, from);
        self.open(near, address);
        near
    }

    /// Two ends, not connected yet; returns the near one, which belongs to `owner`.
    pub(super) fn new_connection(&mut self, owner: Option<RingId>, from: IpAddr) -> EndId {
        let near = self.ends.len();
        let address = SocketAddr::new(from, 1_024 + (near % 60_000) as u16);
        for (owner, peer) in [(owner, near + 1), (None, near)] {
            self.ends.push(End {
                peer,
                address,
                owner,
                phase: Phase::Connecting,
                inbound: VecDeque::new(),
                coming: 0,
                last_due_us: 0,
                ended: None,
                sending: None,
                send_unseen: false,
                receive: None,
                receives_once: false,
                connect: None,
            });
        }
        near
    }

    pub(super) fn open(&mut self, near: EndId, address: SocketAddr) {
        let end = self.ends[near].peer;
        self.travel(end, Event::Open { end, address });
    }

    /// Listeners share an address, as with `SO_REUSEPORT`.
    pub(super) fn listen(&mut self, ring: RingId, address: SocketAddr) -> usize {
        self.listeners.push(Some(Listener {
            ring,
            address,
            pending: VecDeque::new(),
            accepts: VecDeque::new(),
        }));
        self.listeners.len() - 1
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let listener = self.listeners[index].take();
        for end in listener.into_iter().flat_map(|listener| listener.pending) {
            self.close(end, true);
        }
    }

    pub(super) fn client_write(&mut self, end: EndId, bytes: &[u8]) -> usize {
        let state = &self.ends[end];
        if state.phase == Phase::Closed || state.ended == Some(Ending::Reset) {
            return 0;
        }
        let mut written = 0;
        while written < bytes.len() {
            let size = self.put(end, &bytes[written..]);
            if size == 0 {
                break;
            }
            written += size;
        }
        written
    }

    /// Takes arrived bytes out, which makes room for the peer.
    pub(super) fn read(&mut self, end: EndId, size_max: usize) -> Vec<u8> {
        let state = &mut self.ends[end];
        let size = state.inbound.len().min(size_max);
        let bytes: Vec<u8> = state.inbound.drain(..size).collect();
        let peer = state.peer;
        if size > 0 && self.ends[peer].sending.is_some() {
            let due_us = self.now_us + self.latency_us();
            self.schedule(due_us, Event::Room { end: peer });
        }
        bytes
    }

    /// A receive would yield something.
    pub(super) fn is_readable(&self, end: EndId) -> bool {
        !self.ends[end].inbound.is_empty() || self.ends[end].ended.is_some()
    }

    pub(super) fn is_finished(&self, end: EndId) -> bool {
        let end = &self.ends[end];
        end.phase == Phase::Closed || (end.ended.is_some() && end.inbound.is_empty())
    }

    pub(super) fn was_reset(&self, end: EndId) -> bool {
        self.ends[end].ended == Some(Ending::Reset)
    }

    pub(super) fn is_connected(&self, end: EndId) -> bool {
        self.ends[end].phase == Phase::Open && !self.was_reset(end)
    }

    pub(super) fn is_connecting(&self, end: EndId) -> bool {
        self.ends[end].phase == Phase::Connecting
    }

    /// The errno with which a send fails at once, if it does.
    pub(super) fn send_refusal(&self, end: EndId) -> Option<i32> {
        let end = &self.ends[end];
        match (end.phase, end.ended) {
            (Phase::Connecting, _) => Some(libc::ENOTCONN),
            (_, Some(Ending::Reset)) => Some(libc::EPIPE),
            _ => None,
        }
    }

    pub(super) fn begin_send(&mut self, end: EndId, data: Vec<u8>, token: Token) {
        let done = 0;
        self.ends[end].sending = Some(Sending { token, data, done });
        self.pump_send(end);
    }

    pub(super) fn complete_send(&mut self, end: EndId, result: i32) {
        let state = &mut self.ends[end];
        let (Some(mut sending), Some(ring)) = (state.sending.take(), state.owner) else {
            return;
        };
        if result == -libc::ECANCELED {
            // What is left of it is all that anybody may still want.
            sending.data.drain(..sending.done);
        }
        self.rings[ring.0].armed.remove(&sending.token.to_raw());
        let completion = completion(sending.token, result, false);
        self.post(ring, outward(end), completion, Some(sending.data));
    }

    /// Gives up an end. Its peer learns of it behind the bytes that are on the way; unread bytes
    /// turn the end of the stream into a reset, as on Linux.
    pub(super) fn close(&mut self, end: EndId, reset: bool) {
        let state = &mut self.ends[end];
        if state.phase == Phase::Closed {
            return;
        }
        let reset = reset || !state.inbound.is_empty();
        let already_over = state.ended == Some(Ending::Reset);
        let peer = state.peer;
        state.phase = Phase::Closed;
        state.inbound = VecDeque::new();
        self.complete_send(end, -libc::ECANCELED);
        if already_over {
            return;
        }
        let ending = if reset { Ending::Reset } else { Ending::Orderly };
        let event = Event::Ended { end: peer, ending };
        if reset && self.random.chance(self.options.faults.overtake) {
            let due_us = self.now_us + self.latency_us();
            self.schedule(due_us, event);
        } else {
            self.travel(peer, event);
        }
    }

    /// Lets the owner of a ring see a completion, now or late.
    pub(super) fn post(
        &mut self,
        ring: RingId,
        stream: Stream,
        completion: Completion,
        data: Option<Vec<u8>>,
    ) {
        let late = self.random.chance(self.options.faults.late_completion);
        let late_us = if late { 1 + self.random.below(LATE_US_MAX) } else { 0 };
        let ring = &mut self.rings[ring.0];
        if !ring.alive {
            return;
        }
        let before = ring.posted.iter().filter(|posted| posted.stream == stream);
        let not_before_us = before.map(|posted| posted.due_us).max().unwrap_or(0);
        ring.posted.push(Posted {
            due_us: not_before_us.max(self.now_us + late_us),
            stream,
            completion,
            data,
        });
    }

    /// Whether a multishot request goes on after this completion.
    pub(super) fn stays_armed(&mut self) -> bool {
        !self.random.chance(self.options.faults.multishot_end)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Open { end, address } => self.reach(end, address),
            Event::Connected { end, result } => self.connected(end, result),
            Event::Arrive { end, bytes } => self.arrive(end, bytes),
            Event::Ended { end, ending } => self.ended(end, ending),
            Event::Room { end } => self.pump_send(end),
        }
    }

    fn reach(&mut self, end: EndId, address: SocketAddr) {
        let any = SocketAddr::new(unspecified(address), address.port());
        let listening = self.listeners.iter().enumerate().filter(|(_, listener)| {
            let address_of = listener.as_ref().map(|listener| listener.address);
            address_of == Some(address) || address_of == Some(any)
        });
        let found: Vec<usize> = listening.map(|(index, _)| index).collect();
        let near = self.ends[end].peer;
        let refused = found.is_empty() || self.random.chance(self.options.faults.refuse);
        let result = if refused {
            self.ends[end].phase = Phase::Closed;
            -libc::ECONNREFUSED
        } else {
            let chosen = found[self.random.index(found.len())];
            let listener = self.listeners[chosen].as_mut().expect("it was just found");
            self.ends[end].phase = Phase::Open;
            self.ends[end].owner = Some(listener.ring);
            listener.pending.push_back(end);
            0
        };
        self.travel(near, Event::Connected { end: near, result });
    }

    fn connected(&mut self, end: EndId, result: i32) {
        let state = &mut self.ends[end];
        if state.phase == Phase::Connecting {
            state.phase = Phase::Open;
            if result < 0 {
                state.ended = Some(Ending::Reset);
            }
        }
        let (Some(token), Some(ring)) = (state.connect.take(), state.owner) else {
            return;
        };
        self.rings[ring.0].armed.remove(&token.to_raw());
        self.post(ring, inward(end), completion(token, result, false), None);
    }

    fn arrive(&mut self, end: EndId, bytes: Vec<u8>) {
        let state = &mut self.ends[end];
        let peer = state.peer;
        state.coming -= bytes.len();
        if state.phase == Phase::Closed {
            let ending = Ending::Reset;
            self.travel(peer, Event::Ended { end: peer, ending });
        } else if state.ended.is_none() {
            state.inbound.extend(bytes);
            if self.random.chance(self.options.faults.reset) {
                self.break_connection(end);
            }
        }
    }

    fn ended(&mut self, end: EndId, ending: Ending) {
        let state = &mut self.ends[end];
        if state.phase == Phase::Closed || state.ended == Some(Ending::Reset) {
            return;
        }
        state.ended = Some(ending);
        if ending == Ending::Reset {
            self.complete_send(end, -libc::ECONNRESET);
        }
    }

    fn break_connection(&mut self, end: EndId) {
        let peer = self.ends[end].peer;
        self.ended(end, Ending::Reset);
        self.ended(peer, Ending::Reset);
    }

    /// The owner of an end has died.
    fn abandon(&mut self, end: EndId) {
        let state = &mut self.ends[end];
        state.phase = Phase::Closed;
        state.inbound = VecDeque::new();
        state.sending = None;
        let peer = state.peer;
        let mut due_us = self.now_us + self.latency_us();
        if self.random.chance(self.options.faults.silent_crash) {
            due_us += self.random.below(SILENCE_US_MAX);
        }
        let ending = Ending::Reset;
        self.schedule(due_us, Event::Ended { end: peer, ending });
    }

    fn pump_send(&mut self, end: EndId) {
        let Some(mut sending) = self.ends[end].sending.take() else {
            return;
        };
        while sending.done < sending.data.len() {
            let size = self.put(end, &sending.data[sending.done..]);
            if size == 0 {
                break;
            }
            sending.done += size;
        }
        let size = sending.data.len();
        let complete = sending.done == size;
        self.ends[end].sending = Some(sending);
        if complete {
            self.complete_send(end, size as i32);
        }
    }

    /// Sends one chunk towards the peer, as large as fits; returns its size.
    fn put(&mut self, end: EndId, bytes: &[u8]) -> usize {
        let peer = self.ends[end].peer;
        let used = self.ends[peer].inbound.len() + self.ends[peer].coming;
        let mut size = bytes.len().min(self.options.socket_buffer_size - used);
        if size == 0 {
            return 0;
        }
        if self.random.chance(self.options.faults.tear) {
            size = 1 + self.random.index(size);
        }
        self.ends[peer].coming += size;
        let bytes = bytes[..size].to_vec();
        self.travel(peer, Event::Arrive { end: peer, bytes });
        size
    }

    /// Sends an event on its way to an end, behind what was sent to it before.
    fn travel(&mut self, to: EndId, event: Event) {
        let due_us = self.now_us + self.latency_us();
        let due_us = due_us.max(self.ends[to].last_due_us);
        self.ends[to].last_due_us = due_us;
        self.schedule(due_us, event);
    }

    fn schedule(&mut self, due_us: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((due_us, self.sequence), event);
    }

    fn latency_us(&mut self) -> u64 {
        let (shortest, longest) = self.options.latency_us;
        let latency_us = shortest + self.random.below(longest - shortest + 1);
        let delayed = self.random.chance(self.options.faults.delay);
        latency_us * if delayed { 1 + self.random.below(100) } else { 1 }
    }
}

fn unspecified(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
