//! Processor time of the generator's own threads and of the machine: whether the client was what
//! limited a run.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

/// A thread that ran this share of the time had nothing left to give.
const BUSY_SHARE: f64 = 0.9;
/// All of them together took this share of the machine from a server on it.
const CROWDING_SHARE: f64 = 0.5;
/// One that wanted to run and had to wait this share of the time competed with the server.
const WAITING_SHARE: f64 = 0.1;

/// What the kernel has counted for a thread so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadTime {
    running_ns: u64,
    waiting_ns: u64,
    at_ns: u64,
}

/// Shares of the wall time between two [`ThreadTime`]s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// On a processor.
    pub running: f64,
    /// Ready to run, without a processor.
    pub waiting: f64,
}

impl ThreadTime {
    /// Of the calling thread. Where the kernel does not tell, everything is zero.
    pub fn read(now_ns: u64) -> ThreadTime {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let (running_ns, waiting_ns) = parse_schedstat(&text).unwrap_or_default();
        ThreadTime { running_ns, waiting_ns, at_ns: now_ns }
    }

    pub fn until(self, end: ThreadTime) -> Shares {
        let wall_ns = end.at_ns.saturating_sub(self.at_ns).max(1) as f64;
        Shares {
            running: end.running_ns.saturating_sub(self.running_ns) as f64 / wall_ns,
            waiting: end.waiting_ns.saturating_sub(self.waiting_ns) as f64 / wall_ns,
        }
    }
}

/// What the threads' shares of so many processors say about the run, if they say that it measured
/// the client.
pub fn client_limit(threads: &[Shares], processors: usize) -> Option<String> {
    let busiest = threads.iter().map(|shares| shares.running).fold(0.0, f64::max);
    if busiest >= BUSY_SHARE {
        return Some(format!(
            "a thread of the generator was busy {:.0} % of the time: this measured the client",
            busiest * 100.0
        ));
    }
    let total: f64 = threads.iter().map(|shares| shares.running).sum();
    if total >= processors as f64 * CROWDING_SHARE {
        return Some(format!(
            "the generator's threads took {:.0} % of {processors} processors: of what the machine \
             had, the server got only the rest",
            total / processors as f64 * 100.0
        ));
    }
    let longest = threads.iter().map(|shares| shares.waiting).fold(0.0, f64::max);
    (longest >= WAITING_SHARE).then(|| {
        format!(
            "the generator waited {:.0} % of the time for a processor: it competed with the server",
            longest * 100.0
        )
    })
}

/// Processors that this process may use; 0: nobody tells.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Processor and kernel of this machine, for the report.
pub fn machine() -> String {
    let processors = count();
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("processor of unknown model", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} x {model}, Linux {}", kernel.trim())
}

/// What of this machine's settings decides how many connections it bears.
pub fn host() -> BTreeMap<String, String> {
    let read = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let line = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        found.map(|found| found.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let mut host = BTreeMap::from([("machine".to_owned(), machine())]);
    let settings = [
        "kernel/osrelease",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/tcp_mem",
        "net/ipv4/tcp_rmem",
        "net/ipv4/tcp_wmem",
        "net/core/somaxconn",
        "net/ipv4/tcp_max_syn_backlog",
        "fs/file-max",
        "fs/nr_open",
        "vm/max_map_count",
    ];
    for setting in settings {
        let value = read(&format!("/proc/sys/{setting}"));
        if !value.is_empty() {
            host.insert(setting.replace('/', "."), value);
        }
    }
    let lines = [
        ("memory", "/proc/meminfo", "MemTotal:"),
        ("open files (soft, hard)", "/proc/self/limits", "Max open files"),
    ];
    for (name, path, prefix) in lines {
        if let Some(value) = line(path, prefix) {
            host.insert(name.to_owned(), value);
        }
    }
    host
}

/// The first two numbers: time on a processor, time waiting for one.
fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_this_thread() {
        let before = ThreadTime::read(0);
        let mut sum = 0_u64;
        (0..20_000_000_u64).for_each(|number| sum = std::hint::black_box(sum ^ number));
        let shares = before.until(ThreadTime::read(1));
        assert!(shares.running > 0.0, "{shares:?}");
    }

    #[test]
    fn counters_are_parsed_and_nonsense_is_not() {
        assert_eq!(parse_schedstat("120 30 4\n"), Some((120, 30)));
        assert_eq!(parse_schedstat("120"), None);
        assert_eq!(parse_schedstat("a b"), None);
    }

    #[test]
    fn the_machine_is_described() {
        let host = host();
        for name in ["machine", "memory", "net.ipv4.tcp_mem", "open files (soft, hard)"] {
            assert!(host.get(name).is_some_and(|value| !value.is_empty()), "{name} in {host:?}");
        }
    }

    #[test]
    fn a_busy_or_waiting_client_says_so() {
        let calm = Shares { running: 0.5, waiting: 0.01 };
        assert_eq!(client_limit(&[calm], 2), None);
        let busy = Shares { running: 0.97, waiting: 0.0 };
        assert!(client_limit(&[calm, busy], 2).is_some_and(|text| text.contains("97 %")));
        let waiting = Shares { running: 0.5, waiting: 0.3 };
        let crowding = client_limit(&[calm; 5], 4);
        assert!(crowding.is_some_and(|text| text.contains("of 4 processors")));
        assert!(client_limit(&[waiting], 2).is_some_and(|text| text.contains("competed")));
    }
}
