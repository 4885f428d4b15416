//! A peer of the system under test that is no ring.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::state::{EndId, State};

/// A client's end of a connection. Nothing blocks; dropped, it is closed.
pub struct ClientSocket {
    state: Rc<RefCell<State>>,
    end: EndId,
}

impl ClientSocket {
    pub(super) fn dial(
        state: Rc<RefCell<State>>,
        from: IpAddr,
        address: SocketAddr,
    ) -> ClientSocket {
        let end = state.borrow_mut().dial(from, address);
        ClientSocket { state, end }
    }

    /// From where it connects.
    pub fn address(&self) -> SocketAddr {
        self.state.borrow().ends[self.end].address
    }

    /// Sends as much as the buffers take; returns how many bytes that was. 0 after the end.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.state.borrow_mut().client_write(self.end, bytes)
    }

    /// Everything that has arrived.
    pub fn read(&mut self) -> Vec<u8> {
        self.read_at_most(usize::MAX)
    }

    /// What has arrived, the first `size_max` bytes of it.
    pub fn read_at_most(&mut self, size_max: usize) -> Vec<u8> {
        self.state.borrow_mut().read(self.end, size_max)
    }

    /// Nothing will arrive any more, and what did was read.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().is_finished(self.end)
    }

    /// The connection was refused, broken, or reset by the peer, and what came before was read.
    pub fn was_reset(&self) -> bool {
        self.is_closed() && self.state.borrow().was_reset(self.end)
    }

    /// Whether the other side's kernel has taken the connection.
    pub fn is_connected(&self) -> bool {
        self.state.borrow().is_connected(self.end)
    }

    /// Ends the connection in order. The peer sees a reset if something was left unread.
    pub fn close(&mut self) {
        self.state.borrow_mut().close(self.end, false);
    }

    /// Ends the connection with a reset.
    pub fn reset(&mut self) {
        self.state.borrow_mut().close(self.end, true);
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        self.close();
    }
}
