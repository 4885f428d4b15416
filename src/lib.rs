//! Aldis: a self-hosted real-time messaging backbone.
//!
//! A message travels `socket -> ring -> framer -> protocol -> router -> link -> sequencer -> store`
//! and back the same way. Libraries (`sys arena ring framer protocol link admin`) know no process;
//! processes (`edge sequencer store`) meet only on the wire of `link`; `simulation` alone knows
//! them all. `tests/tidy.rs` holds the layers to it.

pub mod admin;
pub mod arena;
pub mod cli;
pub mod clock;
pub mod edge;
pub mod framer;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod limits;
pub mod link;
pub mod protocol;
pub mod ring;
pub mod sequencer;
pub mod simulation;
pub mod store;
pub mod sys;
