//! The store's promises on the simulated disk.

mod audit;
mod crash;
mod disk;
pub mod harness;
mod recovery;
mod repair;
mod requests;
