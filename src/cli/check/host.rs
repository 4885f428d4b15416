//! What this machine is, as its kernel says it in `/proc` and `/sys`.

use std::fs;
use std::path::{Path, PathBuf};

/// The bound of a socket table that the kernel sets itself.
const SOCKET_TABLE_MAX: u64 = 1 << 20;

/// Reads below `root`, which is `/` but in tests.
pub struct Host {
    root: PathBuf,
}

/// The two values of a resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub soft: String,
    pub hard: String,
}

impl Host {
    pub fn new(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    /// A kernel setting by its dotted name; several values are separated by one space.
    pub fn sysctl(&self, name: &str) -> Option<String> {
        let text = self.read(&format!("proc/sys/{}", name.replace('.', "/")))?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// A limit of this process: `Max open files`, `Max locked memory` (in bytes).
    pub fn limit(&self, name: &str) -> Option<Limit> {
        let text = self.read("proc/self/limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace().map(str::to_owned);
        Some(Limit { soft: words.next()?, hard: words.next()? })
    }

    /// Sockets that the table of one ring can hold: the limit of open files bounds it.
    pub fn socket_table(&self) -> Option<u64> {
        let hard = self.limit("Max open files")?.hard;
        Some(number(&hard)?.min(SOCKET_TABLE_MAX))
    }

    /// A line of `/proc/meminfo`, in bytes.
    pub fn memory(&self, name: &str) -> Option<u64> {
        let text = self.read("proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }

    /// What the control group of this process leaves it, in bytes; `None` without a bound.
    pub fn group_memory_left(&self) -> Option<u64> {
        let groups = self.read("proc/self/cgroup")?;
        let mut least = None;
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let (folder, maximum, used) = match controllers {
                "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
                "memory" => {
                    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
                }
                _ => continue,
            };
            // In a container its own group is often the root of what it sees.
            for path in [path, ""] {
                let value = |file: &str| number(&self.read(&format!("{folder}{path}/{file}"))?);
                if let (Some(maximum), Some(used)) = (value(maximum), value(used)) {
                    let left = maximum.saturating_sub(used);
                    least = Some(least.map_or(left, |least: u64| least.min(left)));
                }
            }
        }
        least.filter(|&left| left < 1 << 60)
    }

    /// Open files of the whole machine that are left.
    pub fn files_left(&self) -> Option<u64> {
        let text = self.sysctl("fs.file-nr")?;
        let mut numbers = text.split_whitespace().map(number);
        let (used, _, maximum) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(maximum.saturating_sub(used))
    }

    /// Connections that the firewall may still track, where it tracks them.
    pub fn tracked_left(&self) -> Option<u64> {
        let maximum = number(&self.sysctl("net.netfilter.nf_conntrack_max")?)?;
        let used = number(&self.sysctl("net.netfilter.nf_conntrack_count")?)?;
        Some(maximum.saturating_sub(used))
    }

    /// The chosen one of a list such as `always [madvise] never`.
    pub fn huge_pages(&self) -> Option<String> {
        let text = self.read("sys/kernel/mm/transparent_hugepage/enabled")?;
        let start = text.find('[')? + 1;
        Some(text[start..].split(']').next()?.to_owned())
    }

    /// Whether system calls of this process are filtered: `none`, `strict`, `filter`.
    pub fn seccomp(&self) -> Option<&'static str> {
        let text = self.read("proc/self/status")?;
        let mode = text.lines().find_map(|line| line.strip_prefix("Seccomp:"))?;
        match mode.trim() {
            "0" => Some("none"),
            "1" => Some("strict"),
            "2" => Some("filter"),
            _ => None,
        }
    }

    pub fn clock_source(&self) -> Option<String> {
        let file = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        Some(self.read(file)?.trim().to_owned())
    }

    pub fn release(&self) -> Option<String> {
        self.sysctl("kernel.osrelease")
    }

    /// The type of the file system that holds `path`, which is absolute.
    pub fn file_system(&self, path: &Path) -> Option<String> {
        let mounts = self.read("proc/self/mountinfo")?;
        let mut found: Option<(usize, String)> = None;
        for line in mounts.lines() {
            let (mount, kind) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?.replace("\\040", " ");
            // Of two at the same place the later one is seen.
            if path.starts_with(&point)
                && found.as_ref().is_none_or(|(size, _)| point.len() >= *size)
            {
                found = Some((point.len(), kind.split(' ').next()?.to_owned()));
            }
        }
        found.map(|(_, kind)| kind)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }
}

/// `unlimited`, and what a control group calls `max`, is above every number.
pub fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "unlimited" | "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::new(folder.path());
        (folder, host)
    }

    #[test]
    fn the_files_of_the_kernel_are_read() {
        let (_folder, host) = host(&[
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("proc/sys/fs/file-nr", "100\t0\t1000\n"),
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max open files            1024                 20000                files     \n\
                 Max locked memory         8388608              unlimited            bytes     \n",
            ),
            ("proc/meminfo", "MemTotal:       24684084 kB\nMemAvailable:    1000 kB\n"),
            ("proc/self/status", "Name:\tx\nSeccomp:\t2\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            (
                "proc/self/mountinfo",
                "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                 30 22 0:26 / /mnt/a\\040b rw shared:1 - tmpfs tmpfs rw\n",
            ),
        ]);
        assert_eq!(host.sysctl("net.ipv4.tcp_rmem").as_deref(), Some("4096 131072 6291456"));
        assert_eq!(host.files_left(), Some(900));
        assert_eq!(host.socket_table(), Some(20_000));
        assert_eq!(host.limit("Max locked memory").unwrap().hard, "unlimited");
        assert_eq!(host.memory("MemAvailable"), Some(1_024_000));
        assert_eq!(host.seccomp(), Some("filter"));
        assert_eq!(host.huge_pages().as_deref(), Some("madvise"));
        assert_eq!(host.file_system(Path::new("/var/lib")).as_deref(), Some("ext4"));
        assert_eq!(host.file_system(Path::new("/mnt/a b/c")).as_deref(), Some("tmpfs"));
        assert_eq!(host.tracked_left(), None);
    }

    #[test]
    fn a_group_bounds_memory_in_either_version() {
        let (_folder, host) = host(&[
            ("proc/self/cgroup", "4:memory:/a\n0::/b\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "5\n"),
        ]);
        assert_eq!(host.group_memory_left(), None);
        let second = self::host(&[
            ("proc/self/cgroup", "0::/b\n"),
            ("sys/fs/cgroup/b/memory.max", "1000\n"),
            ("sys/fs/cgroup/b/memory.current", "400\n"),
        ]);
        assert_eq!(second.1.group_memory_left(), Some(600));
    }
}
