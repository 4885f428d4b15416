//! `aldis-loadgen`: load for a WebSocket server, and the proof that it lost nothing under it.
//!
//! It shares no code with the server. Exit status: 0 when every message is accounted for, 1 when
//! not or when the run could not be made, 2 for wrong usage.

mod accounting;
mod chat;
mod churn;
mod command;
mod crowd;
mod echo;
mod fanout;
mod fleet;
mod hostile;
mod idle;
mod kernel;
mod messages;
mod million;
mod observe;
mod processor;
mod progress;
mod report;
mod run;
mod scene;
mod slow;
mod storm;
mod target;
mod websocket;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::run()
}
