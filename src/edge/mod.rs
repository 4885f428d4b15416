//! The edge: sockets, WebSocket sessions, heartbeats and outbound queues. It never knows the
//! members of a conversation, never writes to disk and never blocks.
//!
//! - [`shard`]: the loop of one thread, over its ring.
//! - [`connections`] and [`connection`]: what a shard holds, as plain data.
//! - [`admission`]: who is let in, and [`pace`]: how many a second a shard bears.
//! - [`ledger`]: what memory is held for, and what is done when it becomes scarce.
//! - [`application`]: what a shard hosts; [`echo`] is the smallest one, [`chat`] the messenger.
//! - [`router`]: the chat's logic between connections and the sequencer.

pub mod admission;
pub mod application;
pub mod capacity;
pub mod chat;
pub mod connection;
pub mod connections;
pub mod control;
pub mod echo;
pub mod handover;
mod holdings;
pub mod identity;
pub mod ledger;
mod metrics;
pub mod options;
pub mod pace;
pub mod process;
mod receive;
pub mod router;
pub mod shard;
pub mod site;
pub mod ticket;
pub mod tiers;

pub use application::{Application, ConnectionId, Decision, End, Message};
pub use connections::{Connections, Counters, SendError, ShardOptions};
pub use process::run;
pub use shard::Shard;
