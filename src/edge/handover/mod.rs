//! Upgrading in place: an edge hands every socket and all that it knows of it to a new process.
//!
//! The new process goes on as the old one: with its slots and generations, its incarnation and its
//! session with the sequencer, which sees a connection that broke and was made again. Therefore no
//! session is told anew, what is under way either way arrives once, and neither side of the link
//! knows of upgrades.
//!
//! - [`state`]: what is handed over, as bytes; [`lane`] and [`talk`]: how.
//! - [`giver`]: the old process. It keeps every socket until the new one has all of them.
//! - [`taker`]: the new one. It touches no socket before the old one let go.
//! - [`starter`] and [`said`]: how a successor is started, and what it tells of its progress.

mod giver;
mod lane;
mod said;
mod starter;
mod state;
mod taker;
mod talk;

pub use giver::{Estate, Giver, OfferParts, Order, obey};
pub use lane::Lane;
pub use said::Said;
pub use starter::{READY_PATIENCE, SERVING_PATIENCE, TAKE_OVER_FLAG, program, success};
pub use state::{Batch, ChatState, ConnectionState, STATE_VERSION, ShardState};
pub use taker::{Inheritance, Taking, secret_mark};
pub use talk::{ToNew, ToOld};
