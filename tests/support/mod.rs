//! What the tests with real processes share: a running `aldis up`, and clients that speak to it
//! through `tungstenite`, which has no code in common with the server's framer.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of it")]

pub mod authority;
pub mod client;
pub mod cluster;

pub use authority::Authority;
pub use client::Client;
pub use cluster::Cluster;
