//! What a shard hosts: the application decides what a request gets and what a message means; the
//! shard does everything about sockets, frames and time.

use crate::arena::Key;
use crate::clock::Now;
use crate::framer::Request;
use crate::ring::{Completion, Ring};

use super::connections::Connections;

/// A connection in one of its slot's lives.
pub type ConnectionId = Key;

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq)]
pub enum Decision {
    /// Becomes a WebSocket, when the request fulfils the conditions of RFC 6455; else it is refused
    /// by the shard. `subprotocol` is one that the request offers.
    Upgrade { subprotocol: Option<&'static str> },
    /// Is answered by this whole HTTP response, after which the connection closes.
    Respond(Vec<u8>),
}

/// A whole message of a client, in place. Not `Debug`, so that none gets into a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// Why an opened connection is open no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client sent a close frame.
    Client,
    /// The application closed it.
    Application,
    /// The client broke the protocol.
    Violation,
    /// Nothing was heard of the client for twice the heartbeat.
    Silent,
    /// The client took nothing off its socket for too long.
    Slow,
    /// The socket ended or failed without a close frame.
    Lost,
    /// The memory budget is used up, and the client made it hold more.
    Memory,
    /// The shard stops.
    Stopping,
}

/// Memory of an application, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// For its connections.
    pub sessions: usize,
    /// For what they asked.
    pub operations: usize,
}

/// The logic of one shard. Everything is called on the shard's thread; nothing may block.
pub trait Application<R: Ring> {
    /// Decides on a request whose body, if it has one, is complete.
    fn request(&mut self, now: Now, id: ConnectionId, request: &Request, body: &[u8]) -> Decision;

    /// The upgrade is answered; frames may be sent from now on.
    fn opened(&mut self, now: Now, id: ConnectionId, connections: &mut Connections);

    /// A message of an open connection.
    fn message(
        &mut self,
        now: Now,
        id: ConnectionId,
        message: Message,
        connections: &mut Connections,
    );

    /// The connection is open no more. Comes exactly once for each one that was opened, whoever
    /// ended it; `id` is not known to `connections` as open any more.
    fn closed(&mut self, now: Now, id: ConnectionId, end: End, connections: &mut Connections);

    /// Nothing was heard of the client for [`SILENT_MS`](crate::limits::SILENT_MS), or it was heard
    /// again.
    fn silence(
        &mut self,
        _now: Now,
        _id: ConnectionId,
        _is_silent: bool,
        _connections: &mut Connections,
    ) {
    }

    /// The outbound queue of a connection watched by [`Connections::watch_drained`] is empty.
    fn drained(&mut self, _now: Now, _id: ConnectionId, _connections: &mut Connections) {}

    /// A completion of a request that the application made of the ring (links, wake-ups). Receive
    /// buffers are the application's to release.
    fn other_completion(
        &mut self,
        _now: Now,
        _completion: Completion,
        _ring: &mut R,
        _connections: &mut Connections,
    ) {
    }

    /// Everything that arrived in this turn was handed over; what is queued on connections leaves
    /// after this.
    fn turn_end(&mut self, _now: Now, _ring: &mut R, _connections: &mut Connections) {}

    /// The shard takes no new connections and ends once all have left. Closes everything; an
    /// application that has more to say does so, and closes in its own time.
    fn stopping(&mut self, _now: Now, connections: &mut Connections) {
        connections.close_all(1001, "going away");
    }

    /// The shard stands still, for another process to go on: lets go of what the ring does for the
    /// application. Afterwards either this process turns again, or it does not turn any more.
    fn standing_still(&mut self, _now: Now, _ring: &mut R) {}

    /// What it holds now. Once a turn.
    fn held(&self) -> Held {
        Held::default()
    }

    /// When the application wants a turn at the latest, in monotonic microseconds.
    fn next_deadline_us(&self) -> Option<u64> {
        None
    }
}
