//! `million`: the whole proof in one command. Starts its own server, opens as many connections as
//! asked for, holds them with heartbeats on, sends durable messages among them, accounts for each,
//! and says what a connection costs; or what stopped it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::kernel;
use crate::observe::Memory;
use crate::target::Target;

const READY_MAX: Duration = Duration::from_secs(60);
const END_MAX: Duration = Duration::from_secs(30);
/// Connections of one shard's table that are planned for: the kernel deals connections to shards by
/// hash, and one that got more than its share refuses.
const SHARD_FILL: f64 = 0.93;
/// Slots of a shard's table that are not for clients, with room to spare.
const SHARD_SPARE: usize = 128;
/// What a connection takes at both ends, as measured; only to say beforehand what may be reached.
const MEMORY_EACH: u64 = 14_300;
const SOURCE_ADDRESSES: usize = 250;
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const FILES_MAX: &str = "/proc/sys/fs/file-max";
const PORT_RANGE_WIDE: &str = "1024 65535";

/// A server of our own, with its data; both go with it.
pub struct OwnServer {
    up: Child,
    pub command: String,
    data: PathBuf,
    pub target: Target,
}

/// How to start it.
pub struct ServerOptions {
    pub aldis: Option<PathBuf>,
    pub shards: usize,
    /// `None`: a new directory, which is removed in the end.
    pub data: Option<PathBuf>,
}

impl OwnServer {
    pub fn start(options: &ServerOptions) -> anyhow::Result<OwnServer> {
        let aldis = match &options.aldis {
            Some(path) => path.clone(),
            None => find_aldis()?,
        };
        let data = match &options.data {
            Some(data) => data.clone(),
            None => std::env::temp_dir().join(format!("aldis-million-{}", std::process::id())),
        };
        let address = free_address()?;
        let shards = options.shards.to_string();
        let arguments = ["up", "--listen", &address, "--shards", &shards, "--data"];
        let mut command = Command::new(&aldis);
        command.args(arguments).arg(&data).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut up = kernel::end_with_us(&mut command)
            .spawn()
            .with_context(|| format!("cannot execute {}", aldis.display()))?;
        let output = BufReader::new(up.stdout.take().context("its output is piped")?);
        let target = address.parse().map_err(anyhow::Error::msg)?;
        let command = format!("aldis {} {}", arguments.join(" "), data.display());
        let server = OwnServer { up, command, data, target };
        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the server never writes into a closed pipe.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line == "ready" {
                    let _gone = sender.send(());
                }
            }
        });
        match receiver.recv_timeout(READY_MAX) {
            Ok(()) => Ok(server),
            Err(_) => bail!("{} is not ready after {READY_MAX:?}", aldis.display()),
        }
    }

    pub fn pid(&self) -> u32 {
        self.up.id()
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _gone = Command::new("kill").arg(self.up.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < END_MAX && matches!(self.up.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.up.kill();
        let _status = self.up.wait();
        let _gone = fs::remove_dir_all(&self.data);
    }
}

/// Shards for so many connections, when each has a table of `room` slots.
pub fn shards(connections: usize, room: usize) -> usize {
    let each = (room.saturating_sub(SHARD_SPARE) as f64 * SHARD_FILL).max(1.0);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    ((connections as f64 / each).ceil() as usize).max(processors)
}

/// What of this machine's limits is raised, or is in the way of so many connections.
pub fn prepare_host(connections: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let range = fs::read_to_string(PORT_RANGE).unwrap_or_default();
    let ports = parse_range(&range).unwrap_or_default();
    if connections > ports * SOURCE_ADDRESSES / 2 {
        notes.push(match fs::write(PORT_RANGE, PORT_RANGE_WIDE) {
            Ok(()) => format!(
                "net.ipv4.ip_local_port_range was `{}` and is now `{PORT_RANGE_WIDE}`",
                range.trim()
            ),
            Err(error) => format!(
                "net.ipv4.ip_local_port_range is `{}`: too few ports for {connections} \
                 connections, and it may not be changed here: {error}",
                range.trim()
            ),
        });
    }
    let files = fs::read_to_string(FILES_MAX).unwrap_or_default();
    let files: usize = files.trim().parse().unwrap_or(usize::MAX);
    if connections.saturating_mul(2) > files {
        notes.push(format!(
            "fs.file-max is {files}, and {connections} connections are twice as many sockets: \
             without root they will not all be reached"
        ));
    }
    let available = Memory::read().available;
    let needed = connections as u64 * MEMORY_EACH;
    if needed > available {
        notes.push(format!(
            "{connections} connections take about {} GiB at both ends; {} GiB are there: not all \
             of them will be reached",
            needed >> 30,
            available >> 30
        ));
    }
    notes
}

fn parse_range(text: &str) -> Option<usize> {
    let mut numbers = text.split_whitespace().map(str::parse::<usize>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(last.checked_sub(first)? + 1)
}

/// The server's binary beside ours; under `cargo run` it is built first.
fn find_aldis() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let aldis = own.with_file_name("aldis");
    if let Some(cargo) = std::env::var_os("CARGO") {
        build_aldis(Path::new(&cargo), &own)?;
    }
    if !aldis.is_file() {
        bail!("{} is not there: `cargo build --release`, or --aldis PATH", aldis.display());
    }
    Ok(aldis)
}

fn build_aldis(cargo: &Path, own: &Path) -> anyhow::Result<()> {
    let is_release = own.parent().is_some_and(|folder| folder.ends_with("release"));
    let mut command = Command::new(cargo);
    command.args(["build", "--package", "aldis", "--bin", "aldis"]);
    if is_release {
        command.arg("--release");
    }
    let status = command.status().context("cannot execute cargo")?;
    if !status.success() {
        bail!("cargo could not build aldis");
    }
    Ok(())
}

/// A loopback address that was free a moment ago.
fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_leave_room_for_an_uneven_hash() {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(shards(10, 20_000), processors);
        let count = shards(1_000_000, 20_000);
        assert!((54..=56).contains(&count), "{count}");
    }

    #[test]
    fn a_range_of_ports_is_counted() {
        assert_eq!(parse_range("32768\t60999\n"), Some(28_232));
        assert_eq!(parse_range("9 1"), None);
        assert_eq!(parse_range(""), None);
    }
}
