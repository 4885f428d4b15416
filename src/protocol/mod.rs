//! The client protocol, version 1: typed operations and events, and the subprotocols that carry
//! them. A library: it knows neither the edge that speaks it nor the sequencer that obeys it.

pub mod conversation;
pub mod json;
pub mod operation;

/// Text frames, one JSON object each.
pub const JSON_SUBPROTOCOL: &str = "aldis.v1.json";
