//! The page's kill buttons on their way to `aldis up`: one datagram each.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// A child of `aldis up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    Store,
    Sequencer,
    Edge,
}

impl Child {
    /// As it stands in the address of its button and in the datagram.
    pub fn name(self) -> &'static str {
        match self {
            Child::Store => "store",
            Child::Sequencer => "sequencer",
            Child::Edge => "edge",
        }
    }

    /// The child of this name.
    pub fn named(name: &str) -> Option<Child> {
        [Child::Store, Child::Sequencer, Child::Edge].into_iter().find(|child| child.name() == name)
    }
}

/// Whom the kill buttons reach. [`ControlSocket`] is the real one; tests record.
pub trait Control {
    /// Asks for the child's death by SIGKILL. Whether the wish was handed over; never blocks.
    fn kill(&mut self, child: Child) -> bool;
}

/// The datagram socket of `aldis up`, by its path.
pub struct ControlSocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl ControlSocket {
    /// Nothing need be listening at `path` yet; each datagram looks for it anew.
    pub fn new(path: PathBuf) -> io::Result<ControlSocket> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(ControlSocket { socket, path })
    }
}

impl Control for ControlSocket {
    fn kill(&mut self, child: Child) -> bool {
        let datagram = format!("kill {}", child.name());
        self.socket.send_to(datagram.as_bytes(), &self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_arrives_as_one_datagram() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let mut control = ControlSocket::new(path.clone()).expect("a socket");
        assert!(!control.kill(Child::Store), "nobody listens");
        let listener = UnixDatagram::bind(path).expect("bound");
        assert!(control.kill(Child::Sequencer));
        let mut datagram = [0; 64];
        let size = listener.recv(&mut datagram).expect("a datagram");
        assert_eq!(&datagram[..size], b"kill sequencer");
    }

    #[test]
    fn a_full_socket_blocks_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let mut control = ControlSocket::new(path.clone()).expect("a socket");
        let _listener = UnixDatagram::bind(path).expect("bound");
        assert!((0..100_000).any(|_| !control.kill(Child::Edge)));
    }
}
