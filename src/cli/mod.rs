//! The command line: reads flags, environment and file, starts logging, runs one process, and
//! turns its end into an exit code. Knows every process; no process knows it.

mod audit;
mod check;
mod client;
mod conform;
mod dead;
mod effective;
mod failure;
mod file;
mod identity;
mod log;
mod manual;
mod send;
mod settings;
mod tail;
mod token;
mod up;
mod upgrade;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;

use crate::clock::Now;
use crate::{edge, sequencer, store};
use audit::AuditSettings;
use check::CheckSettings;
use conform::ConformSettings;
use dead::DeadSettings;
use effective::Effective;
use failure::{Failure, Usage};
use file::ConfigurationFile;
use send::SendSettings;
use settings::{
    EchoSettings, EdgeSettings, RepairSettings, SequencerSettings, StoreSettings, UpSettings,
};
use tail::TailSettings;
use token::TokenSettings;
use upgrade::UpgradeSettings;

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
    /// `info,aldis::link=debug`. Default: warn,aldis=info.
    #[arg(long, global = true, env = "ALDIS_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "a process has one, once")]
enum Command {
    /// Start everything on this machine: a store, a sequencer and an edge, watched and restarted.
    Up(UpSettings),
    /// Serve clients: WebSocket sessions, passed on to a sequencer.
    Edge(EdgeSettings),
    /// Give every message its place: order, membership, delivery.
    Sequencer(SequencerSettings),
    /// Keep every message: the log on disk and its index.
    Store(StoreSettings),
    /// Put a new program in the place of a running edge; every client stays connected.
    Upgrade(UpgradeSettings),
    /// Send one message and wait until it is accepted.
    Send(SendSettings),
    /// Print a user's messages as they come, and acknowledge them.
    Tail(TailSettings),
    /// List, show, replay or export what was never delivered, of a running sequencer.
    Dead(DeadSettings),
    /// Make a store that refuses to start whole again. Only while it does not run.
    Repair(RepairSettings),
    /// Prove that no message is lost, or name the first record that is wrong. Changes nothing.
    Audit(AuditSettings),
    /// Send every WebSocket message back. To try the framer and the machine, without accounts.
    Echo(EchoSettings),
    /// Say what this machine can hold, and what to change.
    Check(CheckSettings),
    /// Ask a server everything that the client protocol promises, and say what is not true of it.
    Conform(ConformSettings),
    /// Make a token for a user, to try --auth jwt.
    Token(TokenSettings),
    /// Print the completions of a shell: source <(aldis completions bash)
    Completions {
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page, as troff: aldis man | man -l -
    Man {
        /// That of one command. Default: that of all
        #[arg(value_name = "COMMAND")]
        of: Option<String>,
    },
}

const AFTER_HELP: &str = "\
Exit codes:
  0  ended as asked (SIGTERM, SIGINT)
  1  a fault: what it was is the last line on stderr; send: not confirmed in time;
     audit: something is wrong, or lost
  2  cannot start like this: wrong usage or configuration, an address in use,
     a directory in use, a directory that cannot be written
  3  repair: something would be lost; nothing was changed";

/// Runs the subcommand that the arguments ask for, to its end.
pub fn run() -> ExitCode {
    let parsed = CommandLine::command().try_get_matches().and_then(|matches| {
        let command_line = CommandLine::from_arg_matches(&matches)?;
        Ok((command_line, matches))
    });
    let (command_line, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let process = command_line.command.process();
    match dispatch(command_line, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        // As `aldis man | head` does: whoever reads has what was wanted.
        Err(error) if is_unread(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            // Not through the log: whoever started this by hand must see it under any filter.
            let _ = writeln!(io::stderr(), "aldis {process}: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(command_line: CommandLine, matches: &ArgMatches) -> anyhow::Result<()> {
    let CommandLine { config, log: filter, command } = command_line;
    // What libraries of the clients log is no news to whoever reads their messages.
    let quiet = matches!(command, Command::Send(_) | Command::Tail(_)).then_some("off");
    let shown = filter.as_deref().or(quiet);
    log::start(command.process(), shown, io::stderr().is_terminal())?;
    let file = ConfigurationFile::read(config.as_deref())?;
    // Each ring's socket table is bounded by the soft limit; children inherit it. The check tells
    // of the limits as they were given.
    let is_check = matches!(command, Command::Check(_));
    if !is_check && let Err(error) = crate::sys::raise_open_files_limit() {
        tracing::warn!(%error, "the soft limit of open files stays as it is");
    }
    let shown = effective(&command, matches, &file);
    let shown = shown.as_ref();
    match command {
        Command::Up(flags) => {
            let into = |settings: UpSettings| settings.into_options(config, filter);
            begin(shown, flags.over(file.up).filled(), into, up::run)
        }
        Command::Edge(flags) => {
            begin(shown, flags.over(file.edge).filled(), EdgeSettings::into_options, edge::run)
        }
        Command::Sequencer(flags) => {
            let settings = flags.over(file.sequencer).filled();
            begin(shown, settings, SequencerSettings::into_options, sequencer::run)
        }
        Command::Store(flags) => {
            begin(shown, flags.over(file.store).filled(), StoreSettings::into_options, store::run)
        }
        Command::Repair(flags) => {
            let options = flags.into_options(Now::read().unix_ms)?;
            store::repair::run(&options, &mut io::stdout().lock())
        }
        Command::Audit(flags) => audit::run(&flags),
        Command::Echo(flags) => edge::echo::run(flags.into_options()?),
        Command::Token(flags) => token::run(flags),
        Command::Conform(flags) => conform::run(flags),
        Command::Check(flags) => check::run(&flags),
        Command::Upgrade(flags) => upgrade::run(flags),
        Command::Dead(flags) => dead::run(flags),
        Command::Send(flags) => send::run(flags, &crate::sys::impatient_stop_flag()?),
        Command::Tail(flags) => tail::run(flags, &crate::sys::impatient_stop_flag()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut CommandLine::command(), "aldis", &mut script);
            Ok(io::stdout().lock().write_all(&script)?)
        }
        Command::Man { of } => manual::print(CommandLine::command(), of.as_deref()),
    }
}

/// Runs a process with its settings, or shows them and only looks whether they would do.
fn begin<S: Serialize, O>(
    shown: Option<&Effective>,
    settings: S,
    into_options: impl FnOnce(S) -> Result<O, Usage>,
    run: impl FnOnce(O) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(shown) = shown else {
        return run(into_options(settings)?);
    };
    shown.print(&settings)?;
    into_options(settings)?;
    Ok(())
}

/// `Some` when the configuration is only to be shown.
fn effective(
    command: &Command,
    matches: &ArgMatches,
    file: &ConfigurationFile,
) -> Option<Effective> {
    let is_wanted = match command {
        Command::Up(flags) => flags.print_config,
        Command::Edge(flags) => flags.print_config,
        Command::Sequencer(flags) => flags.print_config,
        Command::Store(flags) => flags.print_config,
        _ => false,
    };
    let declared = CommandLine::command();
    let (name, matches) = matches.subcommand().filter(|_| is_wanted)?;
    Some(Effective::new(command.process(), declared.find_subcommand(name)?, matches, file))
}

fn is_unread(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl Command {
    fn process(&self) -> &'static str {
        match self {
            Command::Up(_) => "up",
            Command::Edge(_) => "edge",
            Command::Sequencer(_) => "sequencer",
            Command::Store(_) => "store",
            Command::Repair(_) => "repair",
            Command::Audit(_) => "audit",
            Command::Echo(_) => "echo",
            Command::Token(_) => "token",
            Command::Conform(_) => "conform",
            Command::Check(_) => "check",
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
            Command::Upgrade(_) => "upgrade",
            Command::Dead(_) => "dead",
            Command::Send(_) => "send",
            Command::Tail(_) => "tail",
        }
    }
}

#[cfg(test)]
mod tests;
