//! The command line: reads it, runs the scenario, prints and writes what it found.

mod crowds;
mod flags;
mod scenario_file;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use crate::chat::{self, Chat, ChatOptions};
use crate::crowd::base_36;
use crate::echo::{self, Echo, EchoOptions};
use crate::fanout::{self, Fanout, FanoutOptions};
use crate::fleet::Clock;
use crate::kernel;
use crate::messages::SIZE_MIN;
use crate::observe::Process;
use crate::report::{Report, page};
use crate::run::{self, Plan};
use flags::{
    ChatFlags, ChurnFlags, CommonFlags, EchoFlags, FanoutFlags, HostileFlags, IdleFlags,
    MillionFlags, OutputFlags, SlowFlags, StormFlags,
};

/// Descriptors for other things than connections.
const SPARE_DESCRIPTORS: u64 = 64;
/// Longer than any run: a run that ends by its number of messages, or when it is told, has no time.
const NO_END: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most bytes of a chat message's body.
const BODY_SIZE_MAX: usize = 65_536;
const ECHO_SIZE_MAX: usize = 16 * 1024 * 1024;

/// Load for a WebSocket server, and the proof that it lost nothing under it.
///
/// Every message is accounted for: exit status 1 says that one was lost, duplicated, reordered,
/// changed, or left without an answer.
#[derive(Parser)]
#[command(name = "aldis-loadgen", version, args_override_self = true)]
#[command(after_help = "`aldis-loadgen --scenario FILE [FLAGS]` takes all of this from a TOML \
    file: `mode` is the command, every other key a flag; flags behind it go before the file.")]
struct CommandLine {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Messages come back (`aldis echo`). Closed loop: as fast as the server answers.
    Echo(EchoFlags),
    /// Pairs of users write to each other (`aldis up`). Open loop: latencies count from when a
    /// message was to be sent, so that a server that stalls cannot hide it.
    Chat(ChatFlags),
    /// Groups: one member of each writes, the others hear it. Open loop.
    Fanout(FanoutFlags),
    /// Connections that keep still: what one costs, and what messages beside them are like.
    Idle(IdleFlags),
    /// All connections are cut at once: how they come back, and what others feel meanwhile.
    Storm(StormFlags),
    /// Connections leave and come back at a rate.
    Churn(ChurnFlags),
    /// Users stop reading while they are written to: what others feel, and whether all reaches them
    /// once they read again.
    Slow(SlowFlags),
    /// One attack after the other: what others feel of each.
    Hostile(HostileFlags),
    /// The whole proof in one command, with a server of its own, as far as this machine reaches.
    Million(MillionFlags),
}

/// Runs what the arguments ask for, to its end.
pub fn run() -> ExitCode {
    let outcome = scenario_file::expand(std::env::args().collect()).and_then(|arguments| {
        let CommandLine { mode } = CommandLine::parse_from(arguments);
        dispatch(mode)
    });
    match outcome {
        Ok(report) if report.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("aldis-loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mode: Mode) -> anyhow::Result<Report> {
    let (report, output) = match mode {
        Mode::Echo(flags) => {
            let output = flags.common.output.clone();
            (run_echo(flags)?, output)
        }
        Mode::Chat(flags) => {
            let output = flags.common.output.clone();
            (run_chat(flags)?, output)
        }
        Mode::Fanout(flags) => {
            let output = flags.common.output.clone();
            (run_fanout(flags)?, output)
        }
        Mode::Idle(flags) => {
            let output = flags.crowd.output.clone();
            (crowds::idle(flags)?, output)
        }
        Mode::Storm(flags) => {
            let output = flags.crowd.output.clone();
            (crowds::storm(flags)?, output)
        }
        Mode::Churn(flags) => {
            let output = flags.crowd.output.clone();
            (crowds::churn(flags)?, output)
        }
        Mode::Slow(flags) => {
            let output = flags.crowd.output.clone();
            (crowds::slow(flags)?, output)
        }
        Mode::Hostile(flags) => {
            let output = flags.crowd.output.clone();
            (crowds::hostile(flags)?, output)
        }
        Mode::Million(flags) => {
            let output = flags.output.clone();
            (crowds::million(flags)?, output)
        }
    };
    print!("{}", report.text());
    write_files(&report, &output)?;
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
    check_size(size)?;
    if !common.connections.is_multiple_of(chat::PAIR) {
        bail!("--connections must be even: two make a pair");
    }
    check_rate(rate)?;
    let plan = plan(&common, chat::PAIR)?;
    let run = run_name();
    let outcome = run::run(&plan, |positions| {
        let share = positions.len() as f64 / common.connections as f64;
        Chat::new(ChatOptions { run: run.clone(), size, rate: rate * share }, positions)
    })?;
    Ok(Report::new("chat", &plan, Some(rate), outcome))
}

fn run_fanout(flags: FanoutFlags) -> anyhow::Result<Report> {
    let FanoutFlags { common, members, rate, size } = flags;
    check_size(size)?;
    check_rate(rate)?;
    if !fanout::MEMBERS.contains(&members) {
        let (least, most) = (fanout::MEMBERS.start(), fanout::MEMBERS.end());
        bail!("--members must be from {least} to {most}");
    }
    if !common.connections.is_multiple_of(members) {
        bail!("--connections must be a multiple of --members ({members}): whole groups");
    }
    let plan = plan(&common, members)?;
    let run = run_name();
    let outcome = run::run(&plan, |positions| {
        let share = positions.len() as f64 / common.connections as f64;
        let (run, rate) = (run.clone(), rate * share);
        Fanout::new(FanoutOptions { run, size, rate, members }, positions)
    })?;
    Ok(Report::new("fanout", &plan, Some(rate), outcome))
}

fn check_size(size: usize) -> anyhow::Result<()> {
    if !(SIZE_MIN..=BODY_SIZE_MAX).contains(&size) {
        bail!("--size must be from {} to {BODY_SIZE_MAX}", SIZE_MIN);
    }
    Ok(())
}

fn check_rate(rate: f64) -> anyhow::Result<()> {
    if !rate.is_finite() || rate <= 0.0 {
        bail!("--rate must be above 0");
    }
    Ok(())
}

/// A name for the users of this run: eight digits, unlike that of any earlier run.
fn run_name() -> String {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    base_36(since_1970.as_millis() as u64)
}

/// Connections that one socket table holds.
fn descriptors() -> anyhow::Result<u64> {
    let limit = kernel::raise_open_files_limit().context("cannot raise the limit of open files")?;
    Ok(limit.saturating_sub(SPARE_DESCRIPTORS))
}

fn plan(flags: &CommonFlags, group: usize) -> anyhow::Result<Plan> {
    let connections = flags.connections;
    if connections == 0 {
        bail!("--connections must be at least 1");
    }
    let room = descriptors()?;
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
        clock: Clock(Instant::now()),
        signals: Arc::default(),
        servers: servers(&flags.server_pid)?,
    })
}

/// The server's processes on this machine, as `--server-pid` names them.
fn servers(pids: &[u32]) -> anyhow::Result<Vec<Process>> {
    for pid in pids {
        Process::of(*pid).with_context(|| format!("--server-pid {pid}: there is none"))?;
    }
    Ok(Process::families(pids))
}

fn write_files(report: &Report, output: &OutputFlags) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &output.json {
        write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(path) = &output.html {
        write(path, page::page(report))?;
    }
    Ok(())
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
        let common = "--target 127.0.0.1:1 --connections 4 --seconds 0.5 --json f --html f";
        assert!(parse(&format!("echo {common}")).is_ok());
        for mode in ["chat", "fanout", "idle", "storm", "churn", "slow", "hostile", "million"] {
            let parsed = parse(&format!("{mode} {common} --rate 100"));
            assert!(parsed.is_ok(), "{mode}: {:?}", parsed.err());
        }
        assert!(parse("echo").is_err());
        assert!(parse("echo --target 127.0.0.1:1 --seconds -1").is_err());
        assert!(parse("echo --target 127.0.0.1:1 --seconds 1 --messages 1").is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused_before_anything_is_opened() {
        let error = |arguments: &str| {
            let Ok(CommandLine { mode }) = parse(arguments) else {
                panic!("{arguments} is well-formed");
            };
            dispatch(mode).expect_err(arguments).to_string()
        };
        assert!(error("echo --target 127.0.0.1:1 --size 15").starts_with("--size"));
        assert!(error("echo --target 127.0.0.1:1 --depth 0").starts_with("--depth"));
        assert!(error("chat --target 127.0.0.1:1 --connections 3").starts_with("--connections"));
        assert!(error("chat --target 127.0.0.1:1 --rate 0").starts_with("--rate"));
        assert!(error("echo --target 127.0.0.1:1 --connections 0").starts_with("--connections"));
        let server = "echo --target 127.0.0.1:1 --server-pid 4294967295";
        assert_eq!(error(server), "--server-pid 4294967295: there is none");
        let fanout = |members: &str| {
            error(&format!("fanout --target 127.0.0.1:1 --connections 100 --members {members}"))
        };
        for members in ["0", "1", "1025"] {
            assert_eq!(fanout(members), "--members must be from 2 to 1024");
        }
        let connections = "--connections must be a multiple of --members (3): whole groups";
        assert_eq!(fanout("3"), connections);
        assert!(error("idle --target 127.0.0.1:1 --connections 0").starts_with("--connections"));
        assert!(error("churn --target 127.0.0.1:1 --rate 0").starts_with("--rate"));
    }
}
