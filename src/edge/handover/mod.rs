//! Upgrading in place.
mod state;
pub use state::{Batch, ChatState, ConnectionState, STATE_VERSION, ShardState};
