//! The edge: client connections on one side, the sequencer's link on the other.

pub mod control;
pub mod identity;
pub mod router;
pub mod site;
pub mod ticket;
