//! The sequencer: order, dedup, membership, fan-out, sessions, receipts; in memory, rebuilt from
//! the store. It never touches a client socket, and never answers `sent` before the store said
//! durable.

pub mod appender;
mod audience;
pub mod budget;
mod channel;
mod conversation;
pub mod core;
pub mod dead_letters;
mod desk;
mod devices;
mod fanout;
mod group;
mod inbox;
pub mod inquiries;
pub mod limits;
mod listing;
mod membership;
mod metrics;
pub mod options;
mod order;
mod presence;
pub mod process;
mod receipts;
mod registry;
mod requests;
mod service_time;
mod sessions;
mod stream;
mod typing;
mod user;

#[cfg(test)]
mod slow_store;

pub use process::run;
