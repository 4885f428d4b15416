//! Single-shot accepts: the kernel writes who the client is into memory that is kept here.
//!
//! Invariant: the memory of an accept stays where it is from [`Accepts::begin`] until its
//! completion was handed to [`Accepts::complete`].

use std::net::SocketAddr;

use socket2::{SockAddr, SockAddrStorage};

use crate::ring::Token;

/// What the kernel writes.
struct Peer {
    storage: SockAddrStorage,
    size: libc::socklen_t,
}

/// The accepts under way and the addresses of those that completed.
#[derive(Default)]
pub(super) struct Accepts {
    /// Boxed, for the kernel holds their addresses while the vector grows.
    flying: Vec<(Token, Box<Peer>)>,
    /// Of those that completed since the last [`Accepts::forget_done`].
    done: Vec<(Token, SocketAddr)>,
    #[expect(clippy::vec_box, reason = "they move between here and `flying`")]
    spare: Vec<Box<Peer>>,
}

impl Accepts {
    /// Where the kernel is to write the address, and the size of that.
    pub(super) fn begin(&mut self, token: Token) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        let fresh = || Box::new(Peer { storage: SockAddrStorage::zeroed(), size: 0 });
        let mut peer = self.spare.pop().unwrap_or_else(fresh);
        peer.size = peer.storage.size_of();
        let addresses = ((&raw mut peer.storage).cast(), &raw mut peer.size);
        self.flying.push((token, peer));
        addresses
    }

    /// Notes the address if the accept of this token is one of these and succeeded.
    pub(super) fn complete(&mut self, token: Token, result: i32) {
        let Some(index) = self.flying.iter().position(|(flying, _)| *flying == token) else {
            return;
        };
        let (_, mut peer) = self.flying.swap_remove(index);
        if result >= 0 {
            let storage = std::mem::replace(&mut peer.storage, SockAddrStorage::zeroed());
            // SAFETY: the accept succeeded, so the kernel has written an address of this size.
            let address = unsafe { SockAddr::new(storage, peer.size) };
            self.done.extend(address.as_socket().map(|address| (token, address)));
        }
        self.spare.push(peer);
    }

    pub(super) fn take(&mut self, token: Token) -> Option<SocketAddr> {
        let index = self.done.iter().position(|(done, _)| *done == token)?;
        Some(self.done.swap_remove(index).1)
    }

    pub(super) fn forget_done(&mut self) {
        self.done.clear();
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flying.len()
    }
}
