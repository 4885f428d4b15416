//! The world on a seed: a kernel and a disk that are faulty on purpose, and virtual time.
//!
//! Everything here is deterministic: one seed gives one run, so that a failing seed can be
//! replayed.

pub mod disk;
pub mod kernel;
pub mod random;
