//! What the machine says while a run goes on: memory, sockets, and the servers' processes, where
//! they run here. All of it is read from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Kernel caches that connections live in.
const CACHES: [&str; 12] = [
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "io_kiocb",
    "kmalloc-32",
    "kmalloc-64",
    "kmalloc-96",
    "kmalloc-512",
    "request_sock_TCP",
    "tcp_bind2_bucket",
];

/// The machine's memory, in bytes, and its sockets.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    pub available: u64,
    /// By everything but caches of files.
    pub used: u64,
    /// Slab that the kernel calls reclaimable.
    pub reclaimable: u64,
    pub slab: u64,
    /// Pages of socket buffers (`/proc/net/sockstat`).
    pub socket_buffers: u64,
    pub kernel_stacks: u64,
    pub page_tables: u64,
    pub tcp_sockets: u64,
    /// Bytes of the caches that connections live in; empty where `/proc/slabinfo` is not readable.
    pub caches: BTreeMap<String, u64>,
}

/// A process of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub name: String,
    pub pid: u32,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    pub resident: u64,
    /// Seconds of processor time since it began.
    pub processor_s: f64,
}

impl Memory {
    pub fn read() -> Memory {
        let information = read("/proc/meminfo");
        let of = |name: &str| field(&information, name).unwrap_or_default() * 1024;
        let (tcp_sockets, buffer_pages) = parse_sockstat(&read("/proc/net/sockstat"));
        Memory {
            available: of("MemAvailable"),
            used: of("MemTotal")
                .saturating_sub(of("MemFree"))
                .saturating_sub(of("Buffers"))
                .saturating_sub(of("Cached")),
            reclaimable: of("SReclaimable"),
            slab: of("Slab"),
            kernel_stacks: of("KernelStack"),
            page_tables: of("PageTables"),
            socket_buffers: buffer_pages * PAGE_SIZE,
            tcp_sockets,
            caches: parse_slabinfo(&read("/proc/slabinfo")),
        }
    }

    /// What the kernel holds for its own objects.
    pub fn kernel(&self) -> u64 {
        self.slab + self.socket_buffers
    }
}

const PAGE_SIZE: u64 = 4096;

/// Asks the kernel to give back what earlier runs left in those caches, so that growth is seen from
/// the first connection on. It takes root; without it, a second run sees less growth than there is.
pub fn shrink_caches() {
    for cache in CACHES {
        let _refused = fs::write(format!("/sys/kernel/slab/{cache}/shrink"), "1");
    }
}

impl Process {
    /// A process by its number, named after its command.
    pub fn of(pid: u32) -> Option<Process> {
        let command = read(&format!("/proc/{pid}/cmdline"));
        let mut words = command.split('\0');
        let program = Path::new(words.next()?).file_name()?.to_string_lossy().into_owned();
        let name = match words.next() {
            Some(word) if program == "aldis" && !word.is_empty() => word.to_owned(),
            _ => program,
        };
        (!name.is_empty()).then_some(Process { name, pid })
    }

    /// The process and those it started.
    pub fn family(pid: u32) -> Vec<Process> {
        let children = read(&format!("/proc/{pid}/task/{pid}/children"));
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).filter_map(Process::of).collect()
    }

    /// The processes with these numbers and those that they started, each once. Where two have one
    /// name, their numbers tell them apart.
    pub fn families(pids: &[u32]) -> Vec<Process> {
        let mut all: Vec<Process> = Vec::new();
        for process in pids.iter().flat_map(|pid| Process::family(*pid)) {
            if all.iter().all(|known| known.pid != process.pid) {
                all.push(process);
            }
        }
        let names: Vec<String> = all.iter().map(|process| process.name.clone()).collect();
        for process in &mut all {
            if names.iter().filter(|name| **name == process.name).count() > 1 {
                process.name = format!("{} {}", process.name, process.pid);
            }
        }
        all
    }

    /// `None` when it is not there any more.
    pub fn usage(&self) -> Option<Usage> {
        let status = read(&format!("/proc/{}/status", self.pid));
        Some(Usage { resident: field(&status, "VmRSS")? * 1024, processor_s: self.processor_s()? })
    }

    /// Seconds of processor time since it began; `None` when it is not there any more.
    pub fn processor_s(&self) -> Option<f64> {
        parse_stat(&read(&format!("/proc/{}/stat", self.pid)))
    }
}

/// This process.
pub fn own_usage() -> Usage {
    Process { name: String::new(), pid: std::process::id() }.usage().unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The number of a line `name:   123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// TCP sockets in use, and the pages of their buffers.
fn parse_sockstat(text: &str) -> (u64, u64) {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let of = |name: &str| {
        let index = words.iter().position(|word| *word == name)?;
        words.get(index + 1)?.parse().ok()
    };
    (of("inuse").unwrap_or_default(), of("mem").unwrap_or_default())
}

/// Bytes of objects in use by cache.
fn parse_slabinfo(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| CACHES.contains(name))?;
        let (active, _all, size) = (words.next()?, words.next()?, words.next()?);
        Some((name.to_owned(), active.parse::<u64>().ok()? * size.parse::<u64>().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// Processor seconds of a process: the 14th and 15th fields, counted behind the name, which may
/// contain anything. The kernel counts in hundredths on every platform that Rust's `std` has.
fn parse_stat(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some((user + system) as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_this_process_are_read() {
        let memory = Memory::read();
        assert!(memory.available > 1 << 20 && memory.slab > 0, "{memory:?}");
        assert!(own_usage().resident > 100_000);
        let own = Process::of(std::process::id()).expect("it runs");
        assert!(!own.name.is_empty());
        assert!(Process::of(u32::MAX).is_none());
        assert!(own.processor_s().is_some_and(|used_s| used_s >= 0.0));
        assert!(Process { pid: u32::MAX, ..own.clone() }.processor_s().is_none());
    }

    #[test]
    fn processes_are_known_once_and_told_apart() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("it runs");
        let mut other = std::process::Command::new("sleep").arg("60").spawn().expect("it runs");
        let (one, two) = (child.id(), other.id());
        // A program that has only just been put in place has no command yet.
        while Process::of(one).is_none() || Process::of(two).is_none() {
            std::thread::yield_now();
        }
        let alone = Process::families(&[one, one]);
        let both = Process::families(&[one, two]);
        child.kill().and_then(|()| other.kill()).expect("they are ours");
        let _ended = (child.wait(), other.wait());
        assert_eq!(alone, [Process { name: "sleep".to_owned(), pid: one }]);
        let names: Vec<&str> = both.iter().map(|process| process.name.as_str()).collect();
        assert_eq!(names, [format!("sleep {one}"), format!("sleep {two}")]);
    }

    #[test]
    fn the_kernels_tables_are_parsed_and_nonsense_is_zero() {
        let sockstat =
            "sockets: used 9\nTCP: inuse 12 orphan 0 tw 3 alloc 14 mem 5\nUDP: inuse 1\n";
        assert_eq!(parse_sockstat(sockstat), (12, 5));
        assert_eq!(parse_sockstat("TCP: inuse"), (0, 0));
        let slabinfo = "# name\nTCP    10 20 2368 13 8 : tunables 0\nother 1 1 1 1 1\nfilp x y z\n";
        assert_eq!(parse_slabinfo(slabinfo), BTreeMap::from([("TCP".to_owned(), 23_680)]));
        let stat = "12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(parse_stat(stat), Some(2.0));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(field("VmRSS:\t  77 kB\n", "VmRSS"), Some(77));
    }
}
