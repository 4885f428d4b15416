//! The link of a process that another one goes on with: the session stays, under the incarnation
//! that began it, and only its connection is a new one. For the peer a connection broke and was
//! made again; it sends what the old process had not received, and answers what it had been asked.

use super::{Links, PeerId};
use crate::clock::Now;
use crate::limits::LINK_WINDOW_SIZE;
use crate::link::session::{Session, SessionState};
use crate::link::wire::wire_struct;
use crate::ring::Ring;

wire_struct! {
    /// What is kept of the one peer that was dialed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LinkState {
        /// The peer's.
        pub incarnation: u64,
        /// Of the next session that this side would begin.
        pub next_session: u64,
        pub session: Option<SessionState>,
    }
}

impl Links {
    /// Cuts all connections; the sessions stay, and the next [`Links::flush`] dials anew.
    pub fn hang_up<R: Ring>(&mut self, ring: &mut R) {
        for slot in 0..self.connections.len() as u32 {
            self.drop_connection(slot, ring);
        }
        for peer in &mut self.peers {
            peer.dial_after_us = 0;
        }
    }

    /// The link to a peer that was dialed, once it is hung up and every event was taken.
    pub fn state(&self, id: PeerId) -> LinkState {
        debug_assert!(self.events.is_empty() && !self.connections.iter().any(Option::is_some));
        let peer = &self.peers[id.0 as usize];
        LinkState {
            incarnation: peer.incarnation,
            next_session: self.next_session,
            session: peer.session.as_ref().map(Session::state),
        }
    }

    /// Goes on with a link. `nonce` is random, since those of the process before are used up. For
    /// links that have just been made with the incarnation of that process.
    pub fn continue_from(&mut self, id: PeerId, state: LinkState, nonce: u64, now: Now) {
        self.nonce = nonce;
        self.next_session = state.next_session;
        let peer = &mut self.peers[id.0 as usize];
        peer.incarnation = state.incarnation;
        peer.session = state.session.map(|state| Session::from_state(state, LINK_WINDOW_SIZE));
        peer.last_heard_us = now.monotonic_us;
    }
}
