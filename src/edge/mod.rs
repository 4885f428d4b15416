//! The edge: sockets, WebSocket sessions, heartbeats and outbound queues. It never knows the
//! members of a conversation, never writes to disk and never blocks.
//!
//! - [`shard`]: the loop of one thread, over its ring.
//! - [`connections`] and [`connection`]: what a shard holds, as plain data.
//! - [`application`]: what a shard hosts; [`echo`] is the smallest one.

pub mod application;
pub mod connection;
pub mod connections;
pub mod echo;
mod receive;
pub mod shard;

pub use application::{Application, ConnectionId, Decision, End, Message};
pub use connections::{Connections, Counters, SendError, ShardOptions};
pub use shard::Shard;
