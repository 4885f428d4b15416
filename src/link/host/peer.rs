//! What a host keeps of each peer and of each connection.

use std::net::SocketAddr;

use crate::clock::Now;
use crate::link::PeerId;
use crate::link::frame::FrameReader;
use crate::link::greeting::{Hello, Role};
use crate::link::record::Id;
use crate::link::session::Session;
use crate::ring::Socket;

/// A process at the other end, over its lives.
pub struct Peer {
    /// Where it is dialed; `None`: it dials here.
    pub address: Option<SocketAddr>,
    /// What it said it is, when it dialed here.
    greeted: Option<(Role, Id)>,
    /// Of the session, or of the last one.
    pub incarnation: u64,
    pub session: Option<Session>,
    /// Sessions that began and that the logic has not heard of yet. What it says meanwhile is meant
    /// for the one before.
    pub unheard: u32,
    pub connection: Option<u32>,
    pub dialing: bool,
    pub dial_after_us: u64,
    pub last_heard_us: u64,
    /// It took in too little; the session ends at the next turn.
    pub overflowed: bool,
}

impl Peer {
    pub fn dialed(address: SocketAddr) -> Peer {
        Peer { address: Some(address), ..Peer::empty() }
    }

    pub fn accepted(role: Role, name: Id) -> Peer {
        Peer { greeted: Some((role, name)), ..Peer::empty() }
    }

    /// Whether it is the process that dials here under this role and name.
    pub fn accepted_as(&self, role: Role, name: &Id) -> bool {
        self.greeted.as_ref().is_some_and(|(r, n)| *r == role && n == name)
    }

    /// For a log line: what it said it is, or where it is dialed.
    pub fn name(&self) -> String {
        match (&self.greeted, self.address) {
            (Some((_, name)), _) => name.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    /// The session that the logic knows, if it stands.
    pub fn known_session(&mut self) -> Option<&mut Session> {
        self.session.as_mut().filter(|_| self.unheard == 0)
    }

    fn empty() -> Peer {
        Peer {
            address: None,
            greeted: None,
            incarnation: 0,
            session: None,
            unheard: 0,
            connection: None,
            dialing: false,
            dial_after_us: 0,
            last_heard_us: 0,
            overflowed: false,
        }
    }
}

/// How far a connection's greeting is.
#[derive(Clone)]
pub enum Stage {
    /// Being opened by us.
    Dialing { peer: PeerId },
    /// Opened by a stranger, whose hello is due.
    Expecting,
    /// Our hello is out.
    Helloed { peer: PeerId, hello: Hello },
    /// Our challenge is out.
    Challenged { theirs: Hello, ours: Hello },
    /// Our proof is out.
    Proved { peer: PeerId, theirs: Hello },
    /// Carries the session of this peer.
    Attached { peer: PeerId },
}

/// One TCP connection.
pub struct Connection {
    pub socket: Socket,
    pub stage: Stage,
    pub reader: FrameReader,
    /// Gathered for the next send.
    pub out: Vec<u8>,
    pub sending: bool,
    pub receiving: bool,
    pub last_heard_us: u64,
    pub last_said_us: u64,
    dialed: bool,
}

impl Connection {
    pub fn new(socket: Socket, stage: Stage, now: Now) -> Connection {
        Connection {
            socket,
            dialed: matches!(stage, Stage::Dialing { .. }),
            stage,
            reader: FrameReader::default(),
            out: Vec::new(),
            sending: false,
            receiving: false,
            last_heard_us: now.monotonic_us,
            last_said_us: now.monotonic_us,
        }
    }

    /// The peer whose session it carries.
    pub fn peer(&self) -> Option<PeerId> {
        match self.stage {
            Stage::Attached { peer } => Some(peer),
            _ => None,
        }
    }

    /// The peer for whom we opened it.
    pub fn dialed_by(&self) -> Option<PeerId> {
        match self.stage {
            Stage::Dialing { peer } | Stage::Helloed { peer, .. } | Stage::Proved { peer, .. } => {
                Some(peer)
            }
            Stage::Attached { peer } if self.dialed => Some(peer),
            _ => None,
        }
    }
}
