//! The command line: reads it, runs the scenario, prints and writes what it found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};

use crate::chat::{self, Chat, ChatOptions};
use crate::echo::{self, Echo, EchoOptions};
use crate::kernel;
use crate::report::Report;
use crate::run::{self, Plan};
use crate::target::Target;

/// Descriptors for other things than connections.
const SPARE_DESCRIPTORS: u64 = 64;
/// Longer than any run: a run that ends by its number of messages has no time.
const NO_END: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most bytes of a chat message's body.
const BODY_SIZE_MAX: usize = 65_536;
const ECHO_SIZE_MAX: usize = 16 * 1024 * 1024;

/// Load for a WebSocket server, and the proof that it lost nothing under it.
///
/// Every message is accounted for: exit status 1 says that one was lost, duplicated, reordered,
/// changed, or left without an answer.
#[derive(Parser)]
#[command(name = "aldis-loadgen", version)]
struct CommandLine {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Messages come back (`aldis echo`). Closed loop: as fast as the server answers.
    Echo(EchoFlags),
    /// Pairs of users write to each other (`aldis up`). Open loop: latencies count from when a
    /// message was to be sent, so that a server that stalls cannot hide it.
    Chat(ChatFlags),
}

#[derive(Args)]
struct CommonFlags {
    /// The server.
    #[arg(long, value_name = "HOST:PORT")]
    target: Target,
    /// Connections to open; in `chat` two make a pair.
    #[arg(long, value_name = "N", default_value_t = 100)]
    connections: usize,
    /// Length of the measured window.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Load before the window, which is verified and not measured.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// How long to wait for the last answers.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    drain: Duration,
    /// Threads of the generator, each with a ring and its share of the connections.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Write everything that was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct EchoFlags {
    #[command(flatten)]
    common: CommonFlags,
    /// Bytes of a message.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    size: usize,
    /// Messages that a connection keeps under way.
    #[arg(long, value_name = "N", default_value_t = 1)]
    depth: usize,
    /// End after this many messages of all connections, instead of after a time.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    messages: Option<u64>,
    /// Path of the upgrade.
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
}

#[derive(Args)]
struct ChatFlags {
    #[command(flatten)]
    common: CommonFlags,
    /// Messages per second, of all pairs together.
    #[arg(long, value_name = "R", default_value_t = 1000.0)]
    rate: f64,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
}

/// Runs what the arguments ask for, to its end.
pub fn run() -> ExitCode {
    let CommandLine { scenario } = CommandLine::parse();
    match dispatch(scenario) {
        Ok(report) if report.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("aldis-loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(scenario: Scenario) -> anyhow::Result<Report> {
    let (report, json) = match scenario {
        Scenario::Echo(flags) => {
            let json = flags.common.json.clone();
            (run_echo(flags)?, json)
        }
        Scenario::Chat(flags) => {
            let json = flags.common.json.clone();
            (run_chat(flags)?, json)
        }
    };
    print!("{}", report.text());
    if let Some(path) = json {
        write_json(&report, &path)?;
    }
    Ok(report)
}

fn run_echo(flags: EchoFlags) -> anyhow::Result<Report> {
    let EchoFlags { common, size, depth, messages, path } = flags;
    if !(echo::SIZE_MIN..=ECHO_SIZE_MAX).contains(&size) {
        bail!("--size must be from {} to {ECHO_SIZE_MAX}", echo::SIZE_MIN);
    }
    if depth == 0 {
        bail!("--depth must be at least 1");
    }
    let mut plan = plan(&common, 1)?;
    let messages_each = messages.map(|count| count.div_ceil(common.connections as u64));
    if messages_each.is_some() {
        (plan.warmup, plan.window) = (Duration::ZERO, NO_END);
    }
    let options = EchoOptions { path, size, depth, messages_each };
    let outcome = run::run(&plan, |positions| Echo::new(options.clone(), positions))?;
    Ok(Report::new("echo", &plan, None, outcome))
}

fn run_chat(flags: ChatFlags) -> anyhow::Result<Report> {
    let ChatFlags { common, rate, size } = flags;
    if !(chat::SIZE_MIN..=BODY_SIZE_MAX).contains(&size) {
        bail!("--size must be from {} to {BODY_SIZE_MAX}", chat::SIZE_MIN);
    }
    if !common.connections.is_multiple_of(chat::PAIR) {
        bail!("--connections must be even: two make a pair");
    }
    if !rate.is_finite() || rate <= 0.0 {
        bail!("--rate must be above 0");
    }
    let plan = plan(&common, chat::PAIR)?;
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let run = format!("{:x}", since_1970.as_millis());
    let outcome = run::run(&plan, |positions| {
        let share = positions.len() as f64 / common.connections as f64;
        Chat::new(ChatOptions { run: run.clone(), size, rate: rate * share }, positions)
    })?;
    Ok(Report::new("chat", &plan, Some(rate), outcome))
}

fn plan(flags: &CommonFlags, group: usize) -> anyhow::Result<Plan> {
    let connections = flags.connections;
    if connections == 0 {
        bail!("--connections must be at least 1");
    }
    let limit = kernel::raise_open_files_limit().context("cannot raise the limit of open files")?;
    let room = limit.saturating_sub(SPARE_DESCRIPTORS);
    if connections as u64 > room {
        bail!("--connections {connections}: the limit of open files allows {room} (`ulimit -Hn`)");
    }
    Ok(Plan {
        target: flags.target.clone(),
        connections,
        threads: flags.threads,
        warmup: flags.warmup,
        window: flags.seconds,
        drain_max: flags.drain,
        group,
    })
}

fn write_json(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<CommandLine, clap::Error> {
        let arguments = arguments.split_whitespace();
        CommandLine::try_parse_from(std::iter::once("aldis-loadgen").chain(arguments))
    }

    #[test]
    fn the_flags_that_others_rely_on_are_there() {
        let common = "--target 127.0.0.1:1 --connections 4 --seconds 0.5 --json f";
        assert!(parse(&format!("echo {common}")).is_ok());
        assert!(parse(&format!("chat {common} --rate 100")).is_ok());
        assert!(parse("echo").is_err());
        assert!(parse("echo --target 127.0.0.1:1 --seconds -1").is_err());
        assert!(parse("echo --target 127.0.0.1:1 --seconds 1 --messages 1").is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused_before_anything_is_opened() {
        let error = |arguments: &str| {
            let Ok(CommandLine { scenario }) = parse(arguments) else {
                panic!("{arguments} is well-formed");
            };
            dispatch(scenario).expect_err(arguments).to_string()
        };
        assert!(error("echo --target 127.0.0.1:1 --size 15").starts_with("--size"));
        assert!(error("echo --target 127.0.0.1:1 --depth 0").starts_with("--depth"));
        assert!(error("chat --target 127.0.0.1:1 --connections 3").starts_with("--connections"));
        assert!(error("chat --target 127.0.0.1:1 --rate 0").starts_with("--rate"));
        assert!(error("echo --target 127.0.0.1:1 --connections 0").starts_with("--connections"));
    }
}
