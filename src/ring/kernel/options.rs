//! The sizes of a ring.

use std::str::FromStr;

use super::fault::{self, RingFault};

/// Where accepted sockets live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// In the ring's registered-file table: no lock and no reference count of the process's table
    /// per operation, and `RLIMIT_NOFILE` bounds each ring, not the process. From Linux 6.13 on.
    Direct,
    /// In the process's descriptor table, for Linux 6.1 to 6.12.
    Ordinary,
}

impl Descriptors {
    /// What this kernel can do.
    pub fn of_this_kernel() -> Descriptors {
        match fault::is_older(&fault::kernel_release(), fault::DIRECT_FLOOR) {
            true => Descriptors::Ordinary,
            false => Descriptors::Direct,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Descriptors::Direct => "direct",
            Descriptors::Ordinary => "ordinary",
        }
    }
}

impl FromStr for Descriptors {
    type Err = String;

    fn from_str(text: &str) -> Result<Descriptors, String> {
        match text {
            "direct" => Ok(Descriptors::Direct),
            "ordinary" => Ok(Descriptors::Ordinary),
            _ => Err(format!("{text:?}: descriptors are `direct` or `ordinary`")),
        }
    }
}

/// Sizes of one ring. All counts but `sockets` are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Entries of the submission queue, 1 to 32,768. When it is full, it is submitted early.
    pub submissions: u32,
    /// Entries of the completion queue, at least `submissions`, at most 65,536. Over it, the kernel
    /// ends multishot requests, which costs re-arming, but loses nothing.
    pub completions: u32,
    /// Accepted sockets at a time. Lowered to RLIMIT_NOFILE and to 2^20, the bounds of the kernel.
    pub sockets: u32,
    pub descriptors: Descriptors,
    /// Receive buffers, at most 32,768 (the kernel's bound of a buffer ring).
    pub buffer_count: u32,
    /// Bytes of one receive buffer.
    pub buffer_size: u32,
}

impl Default for RingOptions {
    /// The edge's: 8,192 completions fill the kernel's cancel table (256 buckets), beyond which
    /// more would not help; the submission queue stays small enough for the cache.
    fn default() -> RingOptions {
        RingOptions {
            submissions: 1024,
            completions: 8192,
            sockets: 16_384,
            descriptors: Descriptors::of_this_kernel(),
            buffer_count: 1024,
            buffer_size: 4096,
        }
    }
}

impl RingOptions {
    /// Bytes of all receive buffers.
    pub fn buffers_size(&self) -> usize {
        self.buffer_count as usize * self.buffer_size as usize
    }

    pub(super) fn check(&self) -> Result<(), RingFault> {
        let rules = [
            (
                self.submissions.is_power_of_two() && self.submissions <= 32_768,
                "submissions must be a power of two, at most 32768",
            ),
            (
                self.completions.is_power_of_two() && self.completions <= 65_536,
                "completions must be a power of two, at most 65536",
            ),
            (
                self.completions >= self.submissions,
                "completions must not be fewer than submissions",
            ),
            (
                self.buffer_count.is_power_of_two() && self.buffer_count <= 32_768,
                "buffer_count must be a power of two, at most 32768",
            ),
            (
                self.buffer_size.is_power_of_two() && self.buffer_size <= 1 << 24,
                "buffer_size must be a power of two, at most 16 MiB",
            ),
            (self.sockets > 0, "sockets must not be 0"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(RingFault::Options(broken)),
            None => Ok(()),
        }
    }
}
