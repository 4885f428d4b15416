//! The sequencer: order, dedup, membership, fan-out, sessions, receipts; in memory, rebuilt from
//! the store. It never touches a client socket, and never answers `sent` before the store said
//! durable.

pub mod appender;
pub mod budget;
mod conversation;
pub mod core;
pub mod dead_letters;
mod desk;
mod fanout;
mod group;
mod inbox;
pub mod inquiries;
mod listing;
mod membership;
mod metrics;
pub mod options;
mod order;
pub mod process;
mod receipts;
mod registry;
mod requests;
mod service_time;
mod sessions;
mod stream;
mod user;

#[cfg(test)]
mod slow_store;

pub use process::run;
