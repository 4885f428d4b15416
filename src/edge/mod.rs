//! The edge: client connections on one side, the sequencer's link on the other.

pub mod router;
pub mod ticket;
