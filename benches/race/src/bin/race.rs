//! Runs echo servers in turn against one client, and compares what they did.
//!
//! The server has one processor for itself and the client another. Servers alternate within each
//! round, so that a machine that is slow for a while is so for all of them; figures are medians of
//! the rounds, and ratios are medians of each round's ratio to fastwebsockets.
//!
//! Processor time is what the kernel has counted for the server's process, all its threads, between
//! two moments within the measured window.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

const SCENARIOS: [&str; 3] = ["500x512x1", "10000x100x1", "500x100x16"];
const BASELINE: &str = "fastwebsockets";
/// How often processor times are read.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// What of the end of a run is left out: the last answers, and the process's end.
const MARGIN: Duration = Duration::from_millis(150);
const START_MAX: Duration = Duration::from_secs(20);
/// A processor that is used this much is the limit.
const SATURATED: f64 = 0.95;

#[derive(Parser)]
struct Options {
    /// Where the binaries `aldis` and `aldis-loadgen` are.
    #[arg(long, value_name = "DIR")]
    binaries: PathBuf,
    /// Where the binaries of the peers are.
    #[arg(long, value_name = "DIR")]
    peers: PathBuf,
    /// The binary of bun; without it, bun does not take part.
    #[arg(long, value_name = "FILE")]
    bun: Option<PathBuf>,
    /// The program for bun.
    #[arg(long, value_name = "FILE", default_value = "bun.js")]
    bun_program: PathBuf,
    /// Rounds, in each of which every server runs every scenario once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The measured window of one run.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Load before the window.
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    warmup: f64,
    /// CONNECTIONSxBYTESxDEPTH, more than once.
    #[arg(long, value_name = "SCENARIO", default_values = SCENARIOS)]
    scenario: Vec<Scenario>,
    /// Only these servers.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Further arguments of `aldis echo`, which then runs as `aldis+` beside the plain one.
    #[arg(long, value_name = "ARGUMENTS")]
    variant: Option<String>,
    /// The processor of the server.
    #[arg(long, value_name = "N", default_value_t = 0)]
    server_cpu: usize,
    /// The processor of the client.
    #[arg(long, value_name = "N", default_value_t = 1)]
    client_cpu: usize,
    /// Write the result to this file as well.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Scenario {
    connections: usize,
    size: usize,
    depth: usize,
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
        match numbers.map_err(|error| error.to_string())?[..] {
            [connections, size, depth] => Ok(Scenario { connections, size, depth }),
            _ => Err("it is CONNECTIONSxBYTESxDEPTH".to_owned()),
        }
    }
}

/// A server that takes part.
struct Runner {
    name: &'static str,
    program: PathBuf,
    /// With `PORT` in the place of the port.
    arguments: Vec<String>,
}

/// What one run showed.
#[derive(Clone, Copy)]
struct Figures {
    messages_per_s: f64,
    server_us_each: f64,
    server_share: f64,
    client_share: f64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runners = runners(&options);
    let mut figures: BTreeMap<(Scenario, usize), Vec<Figures>> = BTreeMap::new();
    for round in 0..options.rounds {
        for scenario in &options.scenario {
            for (index, runner) in runners.iter().enumerate() {
                let run = run(&options, runner, *scenario)
                    .with_context(|| format!("{} in round {round}", runner.name))?;
                eprintln!("round {round}: {}", line(runner.name, *scenario, run));
                figures.entry((*scenario, index)).or_default().push(run);
            }
        }
    }
    let report = report(&options, &runners, &figures)?;
    print!("{report}");
    if let Some(path) = &options.out {
        std::fs::write(path, report)?;
    }
    Ok(())
}

fn runners(options: &Options) -> Vec<Runner> {
    let echo = |extra: &str| {
        let fixed = ["echo", "--shards", "1", "--listen", "127.0.0.1:PORT"];
        fixed.into_iter().chain(extra.split_whitespace()).map(str::to_owned).collect()
    };
    let aldis = options.binaries.join("aldis");
    let mut runners = vec![Runner { name: "aldis", program: aldis.clone(), arguments: echo("") }];
    if let Some(extra) = &options.variant {
        runners.push(Runner { name: "aldis+", program: aldis, arguments: echo(extra) });
    }
    for (name, file) in [(BASELINE, "fastwebsockets"), ("tokio-tungstenite", "tungstenite")] {
        let (program, arguments) = (options.peers.join(file), vec!["PORT".to_owned()]);
        runners.push(Runner { name, program, arguments });
    }
    if let Some(program) = options.bun.clone() {
        let script = options.bun_program.display().to_string();
        runners.push(Runner { name: "bun", program, arguments: vec![script, "PORT".to_owned()] });
    }
    runners.retain(|runner| {
        options.only.is_empty() || options.only.iter().any(|name| name == runner.name)
    });
    runners
}

/// A process that is killed and waited for at the end of its run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only for a process that has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(options: &Options, runner: &Runner, scenario: Scenario) -> anyhow::Result<Figures> {
    let port = free_port()?;
    let mut command = pinned(options.server_cpu, &runner.program);
    let arguments = runner.arguments.iter();
    command.args(arguments.map(|argument| argument.replace("PORT", &port.to_string())));
    let server = command.stdout(Stdio::null()).spawn();
    let mut server = Running(server.with_context(|| format!("{command:?}"))?);
    wait_until_it_listens(port, &mut server.0)?;
    let json = std::env::temp_dir().join(format!("race-{}.json", std::process::id()));
    let Scenario { connections, size, depth } = scenario;
    let mut command = pinned(options.client_cpu, &options.binaries.join("aldis-loadgen"));
    command
        .args(["echo", "--target", &format!("127.0.0.1:{port}")])
        .args(["--connections", &connections.to_string(), "--size", &size.to_string()])
        .args(["--depth", &depth.to_string(), "--seconds", &options.seconds.to_string()])
        .args(["--warmup", &options.warmup.to_string()])
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::null());
    let mut client = Running(command.spawn().with_context(|| format!("{command:?}"))?);
    let shares = watch(&server.0, &mut client.0, Duration::from_secs_f64(options.seconds))?;
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    std::fs::remove_file(&json)?;
    let messages_per_s = found["rate"].as_f64().context("no rate in the client's report")?;
    ensure!(messages_per_s > 0.0, "nothing came back");
    let (server_share, client_share) = shares;
    let server_us_each = server_share / messages_per_s * 1e6;
    Ok(Figures { messages_per_s, server_us_each, server_share, client_share })
}

/// Another one for each run: a process that ends leaves its port taken for a moment.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// `taskset` puts all threads there, those of a runtime's collector as well.
fn pinned(cpu: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpu.to_string()).arg(program).stdin(Stdio::null());
    command
}

fn wait_until_it_listens(port: u16, server: &mut Child) -> anyhow::Result<()> {
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = server.try_wait()? {
            bail!("the server ended with {status}");
        }
        ensure!(started.elapsed() < START_MAX, "the server does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits for the client's end; returns the shares of a processor that server and client had in the
/// last `window`.
fn watch(server: &Child, client: &mut Child, window: Duration) -> anyhow::Result<(f64, f64)> {
    let mut samples: Vec<(Instant, f64, f64)> = Vec::new();
    let status = loop {
        if let Some(status) = client.try_wait()? {
            break status;
        }
        let times = (processor_time_s(server.id()), processor_time_s(client.id()));
        if let (Some(server_s), Some(client_s)) = times {
            samples.push((Instant::now(), server_s, client_s));
        }
        thread::sleep(SAMPLE_EVERY);
    };
    ensure!(status.success(), "the client ended with {status}");
    let end = samples.last().context("the client ended at once")?.0;
    let margin = MARGIN.min(window / 5);
    let is_within = |at: Instant| at + margin <= end && at + window >= end + margin;
    let first = samples.iter().find(|(at, _, _)| is_within(*at)).unwrap_or(&samples[0]);
    let last = samples.iter().rfind(|(at, _, _)| is_within(*at)).unwrap_or(first);
    let wall_s = last.0.duration_since(first.0).as_secs_f64().max(f64::MIN_POSITIVE);
    Ok(((last.1 - first.1) / wall_s, (last.2 - first.2) / wall_s))
}

/// User and system time of a process, all its threads, in seconds.
fn processor_time_s(process: u32) -> Option<f64> {
    const TICKS_PER_S: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may contain spaces; the state follows it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

fn line(name: &str, scenario: Scenario, figures: Figures) -> String {
    let Scenario { connections, size, depth } = scenario;
    let Figures { messages_per_s, server_us_each, server_share, client_share } = figures;
    format!(
        "{name:<18} {connections} x {size} B, {depth} in flight: {messages_per_s:.0}/s, \
         {server_us_each:.3} us each, server {:.0} %, client {:.0} %",
        server_share * 100.0,
        client_share * 100.0
    )
}

fn report(
    options: &Options,
    runners: &[Runner],
    figures: &BTreeMap<(Scenario, usize), Vec<Figures>>,
) -> anyhow::Result<String> {
    let baseline = runners.iter().position(|runner| runner.name == BASELINE);
    let mut out = String::new();
    writeln!(out, "{}", machine())?;
    writeln!(
        out,
        "Medians of {} rounds of {} s each, after {} s of warming up; server on processor {}, \
         client on {}.",
        options.rounds, options.seconds, options.warmup, options.server_cpu, options.client_cpu
    )?;
    writeln!(out, "\"x\" is the ratio to {BASELINE}, round by round, then the median.")?;
    for scenario in &options.scenario {
        let Scenario { connections, size, depth } = scenario;
        writeln!(out, "\n{connections} connections x {size} B, {depth} in flight")?;
        writeln!(
            out,
            "  {:<18} {:>11} {:>7} {:>12} {:>7} {:>8} {:>8}  limit",
            "", "messages/s", "x", "CPU us each", "x", "server", "client"
        )?;
        for (index, runner) in runners.iter().enumerate() {
            let mine = &figures[&(*scenario, index)];
            let base = baseline.map_or(mine, |baseline| &figures[&(*scenario, baseline)]);
            writeln!(out, "  {:<18} {}", runner.name, row(mine, base))?;
        }
    }
    Ok(out)
}

fn row(mine: &[Figures], base: &[Figures]) -> String {
    let of = |figure: fn(&Figures) -> f64| median(mine.iter().map(figure).collect());
    let ratio = |figure: fn(&Figures) -> f64| {
        median(mine.iter().zip(base).map(|(mine, base)| figure(mine) / figure(base)).collect())
    };
    let (server, client) = (of(|f| f.server_share), of(|f| f.client_share));
    let limit = match (server >= SATURATED, client >= SATURATED) {
        (true, true) => "both",
        (true, false) => "server",
        (false, true) => "client",
        (false, false) => "neither",
    };
    format!(
        "{:>11.0} {:>7.2} {:>12.3} {:>7.2} {:>7.0}% {:>7.0}%  {limit}",
        of(|f| f.messages_per_s),
        ratio(|f| f.messages_per_s),
        of(|f| f.server_us_each),
        ratio(|f| f.server_us_each),
        server * 100.0,
        client * 100.0
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

fn machine() -> String {
    let processors = thread::available_parallelism().map_or(0, usize::from);
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = model.map_or("processor of unknown model", |(_, model)| model);
    format!("{processors} x {model}, Linux {}", kernel.trim())
}
