//! A simulated kernel: the network of a whole system, on a seed, with faults at chosen rates.
//!
//! Many [`SimRing`]s share one [`SimNetwork`]. Time is virtual and moves only in
//! [`SimNetwork::advance_to`], which the simulation's scheduler calls; a turn never waits. A
//! process is paused by not calling its ring's turn, and crashes with [`SimNetwork::crash`] (or
//! when its ring is dropped).
//!
//! What it keeps, as TCP does: bytes of one direction arrive once, in order, and the end of the
//! stream after them; a send completes when all of it fits the buffers of both ends. What it does
//! not promise: anything about the order between sockets or directions, the sizes of what arrives,
//! how long a multishot request lives, or when a completion is seen.
//!
//! It checks the contract of [`crate::ring::Ring`] and panics on a breach: two sends or two
//! receives under way on one socket, a token carried by two requests, a buffer used when it is not
//! held, a socket closed while its receive is armed and not cancelled (on the kernel it would stay
//! open).

mod client;
mod ring;
mod state;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::random::Random;
use state::State;

pub use client::ClientSocket;
pub use ring::{SimRing, SimWaker};
pub use state::RingId;

/// From where those connect who do not care (RFC 5737).
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How often things go wrong, each from 0.0 (never) to 1.0 (always).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultRates {
    /// Per chunk sent: it is cut at a random place, and the rest follows on its own.
    pub tear: f64,
    /// Per chunk sent: it and all behind it take up to 100 times as long.
    pub delay: f64,
    /// Per chunk arriving: the connection breaks, both ends see a reset, what was on the way is
    /// lost.
    pub reset: f64,
    /// Per reset by an end: it overtakes what is on the way, which is lost.
    pub overtake: f64,
    /// Per connection asked for: refused, though somebody listens.
    pub refuse: f64,
    /// Per receive completion: fewer bytes than there are.
    pub short_read: f64,
    /// Per completion of a multishot request: it is the last, for no reason.
    pub multishot_end: f64,
    /// Per poll: it completes at once, for no reason.
    pub spurious_poll: f64,
    /// Per completion: it is seen up to 10 ms late.
    pub late_completion: f64,
    /// Per turn: completions of different sockets and directions are mixed.
    pub reorder: f64,
    /// Per connection of a process that crashed: its peer learns of it up to 30 s late.
    pub silent_crash: f64,
}

impl FaultRates {
    /// A rough network, for systems that are to survive anything.
    pub fn rough() -> FaultRates {
        FaultRates {
            tear: 0.2,
            delay: 0.01,
            reset: 0.001,
            overtake: 0.5,
            refuse: 0.05,
            short_read: 0.2,
            multishot_end: 0.02,
            spurious_poll: 0.02,
            late_completion: 0.05,
            reorder: 0.5,
            silent_crash: 0.2,
        }
    }
}

/// The network's properties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimOptions {
    /// The shortest and longest way of a chunk in microseconds, at least 1.
    pub latency_us: (u64, u64),
    /// Bytes that one direction of a connection holds, on the way and not read yet.
    pub socket_buffer_size: usize,
    pub faults: FaultRates,
}

impl Default for SimOptions {
    /// A polite network in one room.
    fn default() -> SimOptions {
        SimOptions {
            latency_us: (20, 200),
            socket_buffer_size: 64 * 1024,
            faults: FaultRates::default(),
        }
    }
}

/// The shared world. Clones are the same world.
#[derive(Clone)]
pub struct SimNetwork {
    state: Rc<RefCell<State>>,
}

impl SimNetwork {
    pub fn new(seed: u64, options: SimOptions) -> SimNetwork {
        let state = State::new(Random::new(seed), options);
        SimNetwork { state: Rc::new(RefCell::new(state)) }
    }

    /// Virtual microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        self.state.borrow().now_us()
    }

    /// When something becomes due next, later than now; `None` when nothing is on the way. What is
    /// due already waits for the turn of its ring: see [`SimNetwork::is_due`].
    pub fn next_event_us(&self) -> Option<u64> {
        self.state.borrow().next_event_us()
    }

    /// Moves the time on; what is due meanwhile arrives. Earlier times are ignored.
    pub fn advance_to(&self, us: u64) {
        self.state.borrow_mut().advance_to(us);
    }

    /// Whether a turn of this ring would yield a completion now, its unsubmitted requests aside.
    pub fn is_due(&self, ring: RingId) -> bool {
        self.state.borrow().is_due(ring)
    }

    /// Kills the process of this ring: its listeners vanish, its sockets are reset, what it asked
    /// for and had not submitted is forgotten. Its turns yield nothing any more.
    pub fn crash(&self, ring: RingId) {
        self.state.borrow_mut().crash(ring);
    }

    /// Changes the rates from now on, for instance to let a simulation come to rest.
    pub fn set_faults(&self, faults: FaultRates) {
        self.state.borrow_mut().set_faults(faults);
    }

    /// Breaks every open connection between the two rings, both ends seeing a reset.
    pub fn cut(&self, one: RingId, other: RingId) {
        self.state.borrow_mut().cut(one, other);
    }

    /// Begins to connect as a client that is no ring. Bytes may be written at once. When nobody
    /// listens, the socket is closed and reset after a while.
    pub fn dial(&self, address: SocketAddr) -> ClientSocket {
        self.dial_from(NOWHERE, address)
    }

    /// The same, from an address of the client's own.
    pub fn dial_from(&self, from: IpAddr, address: SocketAddr) -> ClientSocket {
        ClientSocket::dial(self.state.clone(), from, address)
    }
}

#[cfg(test)]
mod tests;
