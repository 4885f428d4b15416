//! The store's promises on the simulated disk.

mod crash;
mod harness;
mod recovery;
mod requests;
