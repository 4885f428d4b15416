//! `aldis check`: what this machine is, whether Aldis runs on it, how many sockets it can hold, and
//! what to change. It changes nothing.

mod disk;
mod host;
mod report;
mod uring;
mod wanted;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;

use crate::edge::connections::SPARE_COUNT;
use host::{Host, number};
use report::{Bound, Change, Fact, Report, Sockets, Verdict};
use uring::Uring;
use wanted::Wanted;

/// Bytes of one idle connection, where the whole of Aldis is on the machine, as `aldis up` has it.
/// As measured with a million of them: `benches/record/2026-11-25-million.txt`.
const SOCKET_SIZE: u64 = KERNEL_SIZE + EDGE_SIZE + SEQUENCER_SIZE + STORE_SIZE;
/// "kernel memory per connection, both ends: 8,486 B", of which one is ours.
const KERNEL_SIZE: u64 = 8_486 / 2;
/// "user memory per connection", rounded up: an idle connection has a live session.
const EDGE_SIZE: u64 = 259;
const SEQUENCER_SIZE: u64 = 659;
const STORE_SIZE: u64 = 68;
/// A send waits for the sync before its own and for its own.
const SYNC_P99_MAX: Duration = Duration::from_millis(10);
const FILES: &str = "limit of open files";
const MEMORY: &str = "memory";
const MACHINE_FILES: &str = "fs.file-max";
const TRACKED: &str = "net.netfilter.nf_conntrack_max";

#[derive(Args, Debug)]
pub struct CheckSettings {
    /// Where the store is to keep its log: its disk is tried with some small writes.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Threads of the edge. Default: one per processor
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// Print everything as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints what it finds; an error when something stops Aldis.
pub fn run(settings: &CheckSettings) -> anyhow::Result<()> {
    let shards = match settings.shards {
        Some(shards) => super::settings::check_shards(shards)?,
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let host = Host::new(Path::new("/"));
    let uring = uring::ask();
    let mut facts = vec![kernel(&host), ring(&host, &uring)];
    facts.extend(limits(&host)?);
    facts.extend(sysctls(&host)?);
    facts.extend(surroundings(&host));
    if let Some(data) = &settings.data {
        facts.extend(storage(&host, data));
    }
    let report = Report::new(facts, sockets(&host, &uring, shards as u64));
    let mut output = io::stdout().lock();
    match settings.json {
        true => writeln!(output, "{}", serde_json::to_string(&report)?)?,
        false => write!(output, "{}", report.text())?,
    }
    match report.facts.iter().find(|fact| fact.verdict == Verdict::Stops) {
        Some(Fact { name, value, .. }) => Err(anyhow!("Aldis cannot run here: {name}: {value}")),
        None => Ok(()),
    }
}

fn kernel(host: &Host) -> Fact {
    Fact::note("kernel", host.release().unwrap_or_else(|| "unknown".to_owned()))
}

fn ring(host: &Host, uring: &Uring) -> Fact {
    match &uring.obstacle {
        None => Fact { verdict: Verdict::Ok, ..Fact::note("io_uring", uring) },
        Some(obstacle) => {
            let filtered = host.seccomp() == Some("filter");
            let hint = if filtered { "; system calls are filtered here (seccomp)" } else { "" };
            let how = "what the line above says; in a container, tuning/seccomp.json";
            let change = Change {
                wanted: "a ring".to_owned(),
                how: how.to_owned(),
                why: "There is no other event loop behind it.".to_owned(),
            };
            Fact::stops("io_uring", format!("{obstacle}{hint}"), change)
        }
    }
}

fn limits(host: &Host) -> anyhow::Result<Vec<Fact>> {
    let mut facts = Vec::new();
    for wanted in Wanted::limits()? {
        let (name, limit, unit) = match wanted.name.as_str() {
            "nofile" => (FILES, "Max open files", 1),
            _ => ("limit of locked memory, KiB", "Max locked memory", 1024),
        };
        let Some(limit) = host.limit(limit) else { continue };
        let shown = |value: &str| match value.parse::<u64>() {
            Ok(value) => (value / unit).to_string(),
            Err(_) => value.to_owned(),
        };
        let (soft, hard) = (shown(&limit.soft), shown(&limit.hard));
        let is_fine = wanted.is_met_by(&hard);
        let file = "in the systemd unit, or tuning/90-aldis-limits.conf";
        let mut how = format!("Limit{}= {file}", wanted.name.to_uppercase());
        if name == FILES {
            how.push_str("; or more --shards: each has a limit of its own");
        }
        let change = Change { wanted: wanted.value, how, why: wanted.why };
        facts.push(Fact::judged(name, format!("{soft} soft, {hard} hard"), is_fine, change));
    }
    Ok(facts)
}

fn sysctls(host: &Host) -> anyhow::Result<Vec<Fact>> {
    let mut facts = Vec::new();
    for wanted in Wanted::sysctls()? {
        let Some(actual) = host.sysctl(&wanted.name) else {
            facts.push(Fact::note(&wanted.name, "not there"));
            continue;
        };
        let is_fine = wanted.is_met_by(&actual);
        let how =
            format!("sysctl -w '{}={}'; tuning/90-aldis.conf keeps it", wanted.name, wanted.value);
        let change = Change { wanted: wanted.value, how, why: wanted.why };
        facts.push(Fact::judged(&wanted.name, actual, is_fine, change));
    }
    Ok(facts)
}

/// What nobody need change, or only in a certain case.
fn surroundings(host: &Host) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut note = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| Fact::note(name, value)));
    };
    let mib = |size: u64| format!("{} MiB", size >> 20);
    note("processors", thread::available_parallelism().ok().map(|count| count.to_string()));
    note("memory, all", host.memory("MemTotal").map(mib));
    note("memory, available", host.memory("MemAvailable").map(mib));
    note("memory left to the control group", host.group_memory_left().map(mib));
    note("net.ipv4.tcp_mem (pages)", host.sysctl("net.ipv4.tcp_mem"));
    note("net.ipv4.ip_local_port_range", host.sysctl("net.ipv4.ip_local_port_range"));
    note("system call filter (seccomp)", host.seccomp().map(str::to_owned));
    note("transparent huge pages", host.huge_pages());
    if let Some(clock) = host.clock_source() {
        let is_fine = !["hpet", "acpi_pm", "jiffies"].contains(&clock.as_str());
        facts.push(Fact::judged(
            "clock source",
            clock,
            is_fine,
            Change {
                wanted: "tsc, or that of the hypervisor".to_owned(),
                how: "see the kernel log for why tsc was given up".to_owned(),
                why: "Every turn of a loop reads the clock; this one costs a system call."
                    .to_owned(),
            },
        ));
    }
    if let Some(maximum) = host.sysctl(TRACKED) {
        facts.push(Fact::judged(
            TRACKED,
            &maximum,
            number(&maximum) >= Some(1 << 20),
            Change {
                wanted: "1048576, or no tracking of the clients' port (NOTRACK)".to_owned(),
                how: format!("sysctl -w {TRACKED}=1048576"),
                why: "The firewall tracks each connection, and drops what it cannot track."
                    .to_owned(),
            },
        ));
    }
    facts
}

/// The disk of `--data`.
fn storage(host: &Host, data: &Path) -> Vec<Fact> {
    let folder = match disk::nearest(data) {
        Ok(folder) => folder,
        Err(error) => return vec![unwritable(data, &error)],
    };
    let kind = host.file_system(&folder).unwrap_or_else(|| "unknown".to_owned());
    let is_lasting = !["tmpfs", "ramfs"].contains(&kind.as_str());
    let mut facts = vec![Fact::judged(
        "file system of --data",
        kind,
        is_lasting,
        Change {
            wanted: "one on a disk".to_owned(),
            how: "choose another --data".to_owned(),
            why: "What is only in memory is gone after a power cut, accepted or not.".to_owned(),
        },
    )];
    match disk::latency(&folder) {
        Err(error) => facts.push(unwritable(&folder, &error)),
        Ok(latency) => {
            let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
            let value = format!(
                "p50 {}, p99 {} ({} writes of 4 KiB in {})",
                ms(latency.median),
                ms(latency.p99),
                latency.count,
                folder.display()
            );
            let is_fine = latency.p99 <= SYNC_P99_MAX;
            facts.push(Fact::judged(
                "fdatasync of --data",
                value,
                is_fine,
                Change {
                    wanted: format!("p99 at most {}", ms(SYNC_P99_MAX)),
                    how: "a disk with protection against power loss, and not shared".to_owned(),
                    why: "Each message waits for one or two of them before it is accepted."
                        .to_owned(),
                },
            ));
        }
    }
    facts
}

fn unwritable(folder: &Path, error: &io::Error) -> Fact {
    let value = format!("cannot write in {}: {error}", folder.display());
    Fact::stops(
        "--data",
        value,
        Change {
            wanted: "a folder that this user may write in".to_owned(),
            how: "make it writable, or choose another --data".to_owned(),
            why: "The store keeps its log there.".to_owned(),
        },
    )
}

/// What the whole machine can hold, as far as it can be known; nothing without a ring.
fn sockets(host: &Host, uring: &Uring, shards: u64) -> Option<Sockets> {
    let table = u64::from(uring.sockets?);
    let per_shard = table.saturating_sub(SPARE_COUNT as u64);
    let by = match host.socket_table() {
        Some(limit) if limit < 1 << 20 => FILES,
        _ => "io_uring's table of 1048576 sockets a ring (more shards hold more)",
    };
    let available = host.memory("MemAvailable");
    let memory = match (available, host.group_memory_left()) {
        (Some(available), Some(left)) => Some(available.min(left)),
        (available, left) => available.or(left),
    };
    let bound = |by: &str, sockets| Bound { by: by.to_owned(), sockets };
    let mut bounds = vec![bound(by, per_shard * shards)];
    bounds.extend(memory.map(|size| bound(MEMORY, size / SOCKET_SIZE)));
    bounds.extend(host.files_left().map(|left| bound(MACHINE_FILES, left)));
    bounds.extend(host.tracked_left().map(|left| bound(TRACKED, left)));
    bounds.sort_by_key(|bound| bound.sockets);
    let least = bounds[0].clone();
    let per_shard = per_shard.min(least.sockets / shards);
    Some(Sockets { per_shard, shards, total: least.sockets, limited_by: least.by, bounds })
}
