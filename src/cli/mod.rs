//! The command line: reads flags, environment and file, starts logging, runs one process, and
//! turns its end into an exit code. Knows every process; no process knows it.

mod failure;
mod file;
mod identity;
mod log;
mod settings;
mod token;
mod up;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::clock::Now;
use crate::{edge, sequencer, store};
use failure::Failure;
use file::ConfigurationFile;
use settings::{
    EchoSettings, EdgeSettings, RepairSettings, SequencerSettings, StoreSettings, UpSettings,
};
use token::TokenSettings;

/// A self-hosted real-time messaging backbone.
///
/// `aldis up` is all of it on this machine; the other commands are its parts, for many machines.
#[derive(Parser)]
#[command(name = "aldis", version, after_help = AFTER_HELP)]
struct CommandLine {
    /// Configuration in TOML, with the tables [up], [edge], [sequencer] and [store]; its keys are
    /// the flags without dashes in front. The environment wins over it, and flags over both.
    #[arg(long, global = true, env = "ALDIS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or a filter such as
    /// `info,aldis::link=debug`. Default: info.
    #[arg(long, global = true, env = "ALDIS_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine: a store, a sequencer and an edge, watched and restarted.
    Up(UpSettings),
    /// Serve clients: WebSocket sessions, passed on to a sequencer.
    Edge(EdgeSettings),
    /// Give every message its place: order, membership, delivery.
    Sequencer(SequencerSettings),
    /// Keep every message: the log on disk and its index.
    Store(StoreSettings),
    /// Make a store that refuses to start whole again. Only while it does not run.
    Repair(RepairSettings),
    /// Send every WebSocket message back. To try the framer and the machine, without accounts.
    Echo(EchoSettings),
    /// Make a token for a user, to try --auth jwt.
    Token(TokenSettings),
}

const AFTER_HELP: &str = "\
Exit codes:
  0  ended as asked (SIGTERM, SIGINT)
  1  a fault: what it was is the last line on stderr
  2  cannot start like this: wrong usage or configuration, an address in use,
     a directory in use, a directory that cannot be written
  3  repair: something would be lost; nothing was changed";

/// Runs the subcommand that the arguments ask for, to its end.
pub fn run() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => error.exit(),
    };
    let process = command_line.command.process();
    match dispatch(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            // Not through the log: whoever started this by hand must see it under any filter.
            let _ = writeln!(io::stderr(), "aldis {process}: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(command_line: CommandLine) -> anyhow::Result<()> {
    let CommandLine { config, log: filter, command } = command_line;
    log::start(command.process(), filter.as_deref(), io::stderr().is_terminal())?;
    let file = ConfigurationFile::read(config.as_deref())?;
    // Each ring's socket table is bounded by the soft limit; children inherit it.
    if let Err(error) = crate::sys::raise_open_files_limit() {
        tracing::warn!(%error, "the soft limit of open files stays as it is");
    }
    match command {
        Command::Up(flags) => up::run(flags.over(file.up).into_options(config, filter)?),
        Command::Edge(flags) => edge::run(flags.over(file.edge).into_options()?),
        Command::Sequencer(flags) => sequencer::run(flags.over(file.sequencer).into_options()?),
        Command::Store(flags) => store::run(flags.over(file.store).into_options()?),
        Command::Repair(flags) => {
            let options = flags.into_options(Now::read().unix_ms)?;
            store::repair::run(&options, &mut io::stdout().lock())
        }
        Command::Echo(flags) => edge::echo::run(flags.into_options()?),
        Command::Token(flags) => token::run(flags),
    }
}

impl Command {
    fn process(&self) -> &'static str {
        match self {
            Command::Up(_) => "up",
            Command::Edge(_) => "edge",
            Command::Sequencer(_) => "sequencer",
            Command::Store(_) => "store",
            Command::Repair(_) => "repair",
            Command::Echo(_) => "echo",
            Command::Token(_) => "token",
        }
    }
}

#[cfg(test)]
mod tests;
