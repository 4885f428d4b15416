//! The flags of every command.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::target::Target;

#[derive(Args, Clone)]
pub struct OutputFlags {
    /// Write everything that was found to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots to this file; it needs nothing but a browser.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Args)]
pub struct CommonFlags {
    /// The server.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Target,
    /// Connections to open; in `chat` two make a pair.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub connections: usize,
    /// Length of the measured window.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Load before the window, which is verified and not measured.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub warmup: Duration,
    /// How long to wait for the last answers.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub drain: Duration,
    /// Threads of the generator, each with a ring and its share of the connections.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// A process of the server, on this machine: its processor time per message heard is reported,
    /// and that of the processes that it started. May be given more than once.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    #[command(flatten)]
    pub output: OutputFlags,
}

#[derive(Args)]
pub struct EchoFlags {
    #[command(flatten)]
    pub common: CommonFlags,
    /// Bytes of a message.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    pub size: usize,
    /// Messages that a connection keeps under way.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub depth: usize,
    /// End after this many messages of all connections, instead of after a time.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub messages: Option<u64>,
    /// Path of the upgrade.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: String,
}

#[derive(Args)]
pub struct ChatFlags {
    #[command(flatten)]
    pub common: CommonFlags,
    /// Messages per second, of all pairs together.
    #[arg(long, value_name = "R", default_value_t = 1000.0)]
    pub rate: f64,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

#[derive(Args)]
pub struct FanoutFlags {
    #[command(flatten)]
    pub common: CommonFlags,
    /// Members of a group, the one who writes included; --connections is a multiple of it.
    #[arg(long, value_name = "M", default_value_t = 100)]
    pub members: usize,
    /// Messages per second, into all groups together.
    #[arg(long, value_name = "R", default_value_t = 100.0)]
    pub rate: f64,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

/// What all commands with a crowd have in common.
#[derive(Args, Clone)]
pub struct CrowdFlags {
    /// The server.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Target,
    /// Connections, those that carry messages included.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub connections: usize,
    /// Length of the measured phase.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Connections begun per second. Default: as the window allows
    #[arg(long, value_name = "R")]
    pub ramp: Option<f64>,
    /// Connections on their way at the same time.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub window: usize,
    /// Path of the upgrade; a `welcome` is then not waited for. Default: /v1/connect, a user each
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Every connection pings once in this time. Default: it only answers pings
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub beat: Option<Duration>,
    /// Part of the users' names; that of an earlier run finds users whom the server knows.
    /// Default: a new one
    #[arg(long, value_name = "NAME")]
    pub run: Option<String>,
    /// A process of the server, on this machine: its memory and processor time are reported, and
    /// those of the processes that it started. May be given more than once.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Connections of one ring. Default: the limit of open files
    #[arg(long, value_name = "N")]
    pub per_ring: Option<usize>,
    #[command(flatten)]
    pub output: OutputFlags,
}

#[derive(Args)]
pub struct IdleFlags {
    #[command(flatten)]
    pub crowd: CrowdFlags,
    /// Messages per second between some of the users, after the quiet phase.
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    pub rate: f64,
    /// Without messages, before that: heartbeats and memory are measured here. Default: --seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub quiet: Option<Duration>,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

#[derive(Args)]
pub struct StormFlags {
    #[command(flatten)]
    pub crowd: CrowdFlags,
    /// Messages per second between users who are not cut.
    #[arg(long, value_name = "R", default_value_t = 100.0)]
    pub rate: f64,
    /// Those who are cut come back within this time, evenly; 0: as the window allows.
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    pub spread: Duration,
    /// How long to wait for their return.
    #[arg(long, value_name = "S", default_value = "300", value_parser = seconds)]
    pub patience: Duration,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

#[derive(Args)]
pub struct ChurnFlags {
    #[command(flatten)]
    pub crowd: CrowdFlags,
    /// Connections that leave and come back per second.
    #[arg(long, value_name = "R", default_value_t = 100.0)]
    pub rate: f64,
    /// Messages per second between users who stay.
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    pub chat_rate: f64,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

#[derive(Args)]
pub struct SlowFlags {
    #[command(flatten)]
    pub crowd: CrowdFlags,
    /// Messages per second to those who do not read, all together.
    #[arg(long, value_name = "R", default_value_t = 2000.0)]
    pub rate: f64,
    /// Messages per second between users who read.
    #[arg(long, value_name = "R", default_value_t = 100.0)]
    pub chat_rate: f64,
    /// Before that: what is normal.
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds)]
    pub calm: Duration,
    /// How long they may take for what they missed.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub patience: Duration,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 4000)]
    pub size: usize,
}

#[derive(Args)]
pub struct HostileFlags {
    #[command(flatten)]
    pub crowd: CrowdFlags,
    /// Messages per second between users who do no harm.
    #[arg(long, value_name = "R", default_value_t = 200.0)]
    pub rate: f64,
    /// Before the attacks: what is normal.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub calm: Duration,
    /// Connections that the attackers have at once, where an attack is one of many.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub attackers: usize,
    /// The run fails when the others' p99 is more than this many times that of the calm. Default:
    /// it is only told
    #[arg(long, value_name = "X")]
    pub bound: Option<f64>,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
}

/// `million` has a server of its own, and so other defaults.
#[derive(Args)]
pub struct MillionFlags {
    /// A server that runs already. Default: one of its own, which ends with the run
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Option<Target>,
    /// Connections, those that carry messages included.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub connections: usize,
    /// Messages per second between some of the users.
    #[arg(long, value_name = "R", default_value_t = 1000.0)]
    pub rate: f64,
    /// How long messages are sent.
    #[arg(long, value_name = "S", default_value = "600", value_parser = seconds)]
    pub seconds: Duration,
    /// How long all are held before that, with heartbeats alone: one period of them by default.
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub quiet: Duration,
    /// Connections begun per second. Default: as the window allows
    #[arg(long, value_name = "R")]
    pub ramp: Option<f64>,
    /// Connections on their way at the same time.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub window: usize,
    /// Threads of the edge. Default: as many as the limit of open files asks for
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// The server's program. Default: beside this one; under `cargo run` it is built
    #[arg(long, value_name = "PATH")]
    pub aldis: Option<PathBuf>,
    /// Where the server keeps its data, which is removed in the end. Default: a new directory
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Processes of the server given by --target.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
    #[command(flatten)]
    pub output: OutputFlags,
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
