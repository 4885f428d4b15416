//! The store's promises on the simulated disk.

mod crash;
mod disk;
mod harness;
mod recovery;
mod repair;
mod requests;
