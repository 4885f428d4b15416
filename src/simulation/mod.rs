//! The world on a seed: a kernel and a disk that are faulty on purpose, clients that behave as the
//! protocol page asks, virtual time, and the whole system between them.
//!
//! Everything here is deterministic: one seed gives one run, so that a failing seed can be
//! replayed. [`run`] is one such run; it checks the promises of the design at every step.

mod chaos;
pub mod disk;
#[cfg(test)]
mod interleavings;
pub mod kernel;
pub mod planted;
pub mod random;
#[cfg(test)]
mod tests;
pub mod world;

pub use chaos::{Failure, Options, Report, run};
