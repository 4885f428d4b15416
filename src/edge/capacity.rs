//! How many sockets an edge can hold, and which setting of the host decides it.

use crate::ring::kernel::Descriptors;

use super::connections::SPARE_COUNT;

/// The kernel's bound of one ring's table.
const TABLE_MAX: u64 = 1 << 20;
/// Descriptors of the process that are no clients: rings, listeners, links, files.
const OTHERS_PER_SHARD: u64 = 8;
const OTHERS: u64 = 64;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// What each shard asks its ring for.
    pub sockets_per_shard: u32,
    shards: u64,
    files_limit: u64,
    descriptors: Descriptors,
}

impl Capacity {
    /// Under `RLIMIT_NOFILE` as it is now.
    pub fn of_this_process(descriptors: Descriptors, shards: usize) -> Capacity {
        let files_limit = crate::sys::open_files_limit().unwrap_or(TABLE_MAX);
        Capacity::new(descriptors, shards as u64, files_limit)
    }

    fn new(descriptors: Descriptors, shards: u64, files_limit: u64) -> Capacity {
        let most = match descriptors {
            Descriptors::Direct => files_limit,
            Descriptors::Ordinary => {
                files_limit.saturating_sub(OTHERS + OTHERS_PER_SHARD * shards) / shards
            }
        };
        let sockets_per_shard = most.clamp(SPARE_COUNT as u64 + 1, TABLE_MAX) as u32;
        Capacity { sockets_per_shard, shards, files_limit, descriptors }
    }

    /// Clients that all shards together serve at a time.
    pub fn connections(&self) -> u64 {
        self.shards * (u64::from(self.sockets_per_shard) - SPARE_COUNT as u64)
    }

    /// What bounds it.
    pub fn limit(&self) -> String {
        let files = format!("RLIMIT_NOFILE = {}", self.files_limit);
        match self.descriptors {
            Descriptors::Ordinary => {
                format!("{files} bounds the process, whose descriptors are ordinary")
            }
            Descriptors::Direct if self.files_limit < TABLE_MAX => {
                format!("{files} bounds each shard: raise it, or --shards")
            }
            Descriptors::Direct => "the kernel bounds each shard: raise --shards".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_its_own_for_each_ring_or_one_for_all() {
        let direct = Capacity::new(Descriptors::Direct, 100, 20_000);
        assert_eq!(direct.connections(), 100 * (20_000 - 64));
        assert!(direct.limit().contains("20000 bounds each shard"));
        let ordinary = Capacity::new(Descriptors::Ordinary, 4, 20_000);
        assert!((19_000..20_000).contains(&ordinary.connections()));
        assert!(ordinary.limit().contains("20000 bounds the process"));
        let free = Capacity::new(Descriptors::Direct, 2, u64::MAX);
        assert_eq!(free.connections(), 2 * ((1 << 20) - 64));
        assert!(free.limit().contains("kernel"));
    }

    #[test]
    fn the_least_limit_leaves_room_for_one() {
        for descriptors in [Descriptors::Direct, Descriptors::Ordinary] {
            assert_eq!(Capacity::new(descriptors, 3, 0).connections(), 3);
        }
    }
}
