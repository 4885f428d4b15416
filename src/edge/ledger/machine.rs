//! What the kernel says about memory: how much there is, what a socket costs, what sockets hold.
//! Each reading is a parser and a path; a file that is not there, or not for us, is `None`.

use std::fs;
use std::path::Path;

use super::{ARMED_SIZE, BUSY_SIZE, SOCKET_SIZE, SocketCost};
use crate::sys::page_size;

/// Beside the slabs that have a name of their own: what a security module keeps of a socket.
const SECURITY_SIZE: usize = 56;

/// TCP sockets of the machine: how many there are, and what waits in them in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMemory {
    pub sockets: u64,
    pub bytes: u64,
}

/// The memory that this process may use: that of the machine, or less if a control group says so.
pub fn available() -> u64 {
    available_below(Path::new("/")).unwrap_or(u64::MAX)
}

fn available_below(root: &Path) -> Option<u64> {
    let total = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| total_of(&text));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_limit(root, line));
    limits.chain(total).min()
}

/// `MemTotal` of /proc/meminfo.
fn total_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The least limit of a group and those around it. `line` is `0::/path` for version 2 of control
/// groups, `4:memory:/path` for version 1.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (mount, name) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|it| it == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let folders = Path::new(path.trim_start_matches('/')).ancestors();
    let limit = |folder: &Path| {
        let text = fs::read_to_string(root.join(mount).join(folder).join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    folders.filter_map(limit).min()
}

/// What waits in TCP sockets now.
pub fn socket_memory() -> Option<SocketMemory> {
    parse_sockstat(&fs::read_to_string("/proc/net/sockstat").ok()?)
}

/// `TCP: inuse 5 orphan 0 tw 7 alloc 6 mem 3`; `mem` counts pages.
fn parse_sockstat(text: &str) -> Option<SocketMemory> {
    let words: Vec<&str> =
        text.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    Some(SocketMemory { sockets: value("alloc")?, bytes: value("mem")? * page_size() })
}

/// What a connection costs this kernel: by its slabs where they may be read (as root), else as it
/// was measured on another one.
pub fn socket_cost(is_ipv6: bool) -> SocketCost {
    let text = fs::read_to_string("/proc/slabinfo").ok();
    let measured = text.and_then(|text| parse_slabinfo(&text, is_ipv6));
    SocketCost { idle: measured.unwrap_or(SOCKET_SIZE) + ARMED_SIZE, busy: BUSY_SIZE }
}

/// The slabs of one socket, each object with its share of its slab's waste.
fn parse_slabinfo(text: &str, is_ipv6: bool) -> Option<usize> {
    let protocol = if is_ipv6 { "TCPv6" } else { "TCP" };
    let names = [protocol, "sock_inode_cache", "filp", "dentry"];
    let sizes = names.map(|name| packed_size(text, name));
    sizes.into_iter().try_fold(SECURITY_SIZE, |sum, size| Some(sum + size?))
}

/// Columns: name, active, all, object size, objects per slab, pages per slab.
fn packed_size(text: &str, name: &str) -> Option<usize> {
    let mut lines = text.lines().map(str::split_whitespace);
    let mut words = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words))?;
    let objects: usize = words.nth(3)?.parse().ok()?;
    let pages: usize = words.next()?.parse().ok()?;
    (pages * page_size() as usize).checked_div(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLABINFO: &str = "slabinfo - version: 2.1\n\
        # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
        TCPv6               39     39   2496   13    8 : tunables    0    0    0 : slabdata\n\
        TCP                 26     26   2368   13    8 : tunables    0    0    0 : slabdata\n\
        sock_inode_cache   114    114    832   19    4 : tunables    0    0    0 : slabdata\n\
        filp              1008   1008    192   21    1 : tunables    0    0    0 : slabdata\n\
        dentry           21672  21672    192   21    1 : tunables    0    0    0 : slabdata\n";

    #[test]
    fn a_socket_is_the_sum_of_its_slabs() {
        assert_eq!(parse_slabinfo(SLABINFO, false), Some(2520 + 862 + 195 + 195 + 56));
        assert_eq!(parse_slabinfo(SLABINFO, true), parse_slabinfo(SLABINFO, false));
        assert_eq!(parse_slabinfo("", false), None);
        let cut: String = SLABINFO.lines().take(4).collect();
        assert_eq!(parse_slabinfo(&cut, false), None);
        let zero = SLABINFO.replace(" 13    8 ", " 0 8 ");
        assert_eq!(parse_slabinfo(&zero, false), None);
    }

    #[test]
    fn sockets_hold_pages() {
        let text = "sockets: used 20\nTCP: inuse 1 orphan 0 tw 4258 alloc 2 mem 87\nUDP: inuse 0\n";
        let found = SocketMemory { sockets: 2, bytes: 87 * page_size() };
        assert_eq!(parse_sockstat(text), Some(found));
        assert_eq!(parse_sockstat("TCP: inuse 1 alloc"), None);
        assert_eq!(parse_sockstat("sockets: used 20"), None);
    }

    #[test]
    fn the_least_of_machine_and_groups_is_available() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        assert_eq!(available_below(folder.path()), None);
        write("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n");
        assert_eq!(available_below(folder.path()), Some(1_024_000));
        write("proc/self/cgroup", "4:cpu,memory:/a/b\n1:cpu:/c\n0::/x/y\n");
        assert_eq!(available_below(folder.path()), Some(1_024_000), "groups without files");
        write("sys/fs/cgroup/x/y/memory.max", "max\n");
        write("sys/fs/cgroup/x/memory.max", "900000\n");
        assert_eq!(available_below(folder.path()), Some(900_000), "the one around it counts");
        write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "800000\n");
        assert_eq!(available_below(folder.path()), Some(800_000), "version 1");
    }

    #[test]
    fn this_machine_answers() {
        assert!(available() > 1 << 20);
        assert!((2_000..20_000).contains(&socket_cost(false).idle));
        assert!(socket_memory().is_some());
    }
}
