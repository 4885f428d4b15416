//! Listening sockets, made before they enter a ring.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Type};

use crate::ring::Socket;

/// A listening TCP socket; closed when dropped.
#[derive(Debug)]
pub struct Listener {
    pub(super) descriptor: OwnedFd,
    address: SocketAddr,
}

impl Listener {
    /// As the ring's `accept` wants it.
    pub fn socket(&self) -> Socket {
        Socket::Ordinary(self.descriptor.as_raw_fd())
    }

    /// Another descriptor of the same socket, for another process.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// The listener that another process had.
    pub fn inherited(descriptor: OwnedFd) -> io::Result<Listener> {
        let socket = socket2::Socket::from(descriptor);
        let address = socket.local_addr()?.as_socket();
        let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Listener { descriptor: socket.into(), address })
    }

    /// The bound address, with the port the kernel chose when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of what accepted sockets are given, the kernel takes little more than this beyond what their
    /// peers' windows take. The rest waits where it is seen. They inherit it.
    pub fn limit_unsent(&self, size: u32) -> io::Result<()> {
        socket2::SockRef::from(&self.descriptor).set_tcp_notsent_lowat(size)
    }
}

/// Binds and listens. `TCP_NODELAY` is set here because accepted sockets inherit it, and one in a
/// direct slot cannot be reached by `setsockopt`. `reuse_port` lets every shard have a listener of
/// its own on the same address; see [`probe_bind`] for what it hides.
pub fn listen(address: SocketAddr, backlog: u32, reuse_port: bool) -> io::Result<Listener> {
    let socket = new_socket(address)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(backlog.min(i32::MAX as u32) as i32)?;
    let bound = socket.local_addr()?.as_socket();
    Ok(Listener {
        address: bound.ok_or(io::ErrorKind::AddrNotAvailable)?,
        descriptor: socket.into(),
    })
}

/// Fails with `AddrInUse` when somebody listens on `address`. A listener with `SO_REUSEPORT` does
/// not notice that: a second process of the same user would silently share the first one's clients.
pub fn probe_bind(address: SocketAddr) -> io::Result<()> {
    let socket = new_socket(address)?;
    // Without it, connections in TIME_WAIT would count as "in use"; listeners still do.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))
}

/// Lets the close of a socket send RST, whatever is unsent or unread.
pub(super) fn linger_no_time(descriptor: RawFd) {
    // SAFETY: the descriptor is borrowed for the call only, and open: its owner closes it next.
    let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
    // It fails for what is no socket; then there is nothing to reset.
    let _ = socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO));
}

/// A blocking socket: requests on a non-blocking one fail with `EAGAIN` instead of waiting in the
/// ring.
pub(super) fn new_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_sees_what_reuse_port_hides() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = listen(any, 16, true).expect("an ephemeral port");
        let second = listen(first.address(), 16, true);
        assert!(second.is_ok(), "SO_REUSEPORT shares the port in silence");
        let probe = probe_bind(first.address()).expect_err("the port is taken");
        assert_eq!(probe.kind(), io::ErrorKind::AddrInUse);
        drop((first, second));
    }

    #[test]
    fn a_free_port_passes_the_probe() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen(any, 16, false).expect("an ephemeral port");
        let address = listener.address();
        drop(listener);
        probe_bind(address).expect("nobody listens any more");
    }
}
