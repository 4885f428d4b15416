//! The client protocol, version 1: typed operations and events, and the subprotocols that carry
//! them. A library: it knows neither the edge that speaks it nor the sequencer that obeys it.

pub mod binary;
pub mod conversation;
mod fields;
pub mod json;
pub mod operation;
mod page;

use operation::{Event, Rejected, Request};

/// How operations and events are written in WebSocket messages. All mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subprotocol {
    /// Text messages, one JSON object each. Also what a client speaks that offers nothing.
    Json,
    /// Binary messages of tagged fields.
    Binary,
}

impl Subprotocol {
    /// All of them, [`Subprotocol::index`] being the place in here.
    pub const ALL: [Subprotocol; 2] = [Subprotocol::Json, Subprotocol::Binary];

    /// As `Sec-WebSocket-Protocol` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Subprotocol::Json => "aldis.v1.json",
            Subprotocol::Binary => "aldis.v1",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Subprotocol> {
        Subprotocol::ALL.into_iter().find(|subprotocol| subprotocol.name() == name)
    }

    /// Its place in tables.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Reads one message of a client.
    pub fn decode(self, message: &[u8]) -> Result<Request, Rejected> {
        match self {
            Subprotocol::Json => json::decode(message),
            Subprotocol::Binary => binary::decode(message),
        }
    }

    /// Appends one message to a client to `out`.
    pub fn encode(self, event: &Event, out: &mut Vec<u8>) {
        match self {
            Subprotocol::Json => json::encode(event, out),
            Subprotocol::Binary => binary::encode(event, out),
        }
    }
}
