//! Why a ring cannot be had on this host, and what its administrator can do about it.

use std::io;

use super::options::RingOptions;

/// The oldest kernel on which Aldis runs: completions run when asked for (DEFER_TASKRUN).
pub const KERNEL_FLOOR: (u32, u32) = (6, 1);
/// The oldest kernel with which sockets in the registered-file table are freed when they are
/// closed: before it, one long-lived request can hold back every socket closed after it.
pub(super) const DIRECT_FLOOR: (u32, u32) = (6, 13);

/// A host that cannot run the ring. Each text names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum RingFault {
    /// `io_uring_setup` was refused with EPERM.
    #[error(
        "io_uring is forbidden on this host (kernel {kernel}, kernel.io_uring_disabled = \
         {sysctl}): set the sysctl to 0, or, in a container, run with a seccomp profile that \
         allows io_uring (for Docker: --security-opt seccomp=unconfined)"
    )]
    Forbidden { kernel: String, sysctl: String },
    /// `io_uring_setup` does not exist, or a seccomp filter says so.
    #[error(
        "io_uring is not available (kernel {kernel}): Aldis needs Linux {major}.{minor} or newer \
         built with CONFIG_IO_URING; in a container, a seccomp profile may hide it (for Docker: \
         --security-opt seccomp=unconfined)",
        major = KERNEL_FLOOR.0, minor = KERNEL_FLOOR.1
    )]
    Missing { kernel: String },
    #[error(
        "kernel {kernel} is too old: Aldis needs Linux {major}.{minor} or newer ({lacking})",
        major = KERNEL_FLOOR.0, minor = KERNEL_FLOOR.1
    )]
    KernelTooOld { kernel: String, lacking: &'static str },
    #[error(
        "kernel {kernel} is too old for direct descriptors: they need Linux {major}.{minor}; leave \
         --descriptors out, or run with --descriptors ordinary",
        major = DIRECT_FLOOR.0, minor = DIRECT_FLOOR.1
    )]
    NoDirectDescriptors { kernel: String },
    #[error(
        "the kernel has no memory for the ring: raise RLIMIT_MEMLOCK (ulimit -l) or the memory \
         limit of the container, or ask for fewer sockets and buffers"
    )]
    Memory,
    #[error(
        "no file descriptor is left for the ring: raise RLIMIT_NOFILE (ulimit -n, or LimitNOFILE= \
         of the service), now {limit}"
    )]
    Descriptors { limit: u64 },
    #[error(
        "a table of {sockets} sockets was refused ({source}): RLIMIT_NOFILE bounds it, now \
         {limit}; raise it (ulimit -n, or LimitNOFILE= of the service) or ask for fewer sockets"
    )]
    SocketTable { sockets: u32, limit: u64, source: io::Error },
    #[error("the receive buffers were refused ({source}): {options:?}")]
    Buffers { options: RingOptions, source: io::Error },
    /// Our own mistake, or that of the configuration.
    #[error("the ring's options make no sense: {0}")]
    Options(&'static str),
    #[error("io_uring cannot be set up (kernel {kernel}): {source}")]
    Other { kernel: String, source: io::Error },
}

impl RingFault {
    /// Sorts what `io_uring_setup` said.
    pub(super) fn from_setup(source: io::Error) -> RingFault {
        let kernel = kernel_release();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                RingFault::Forbidden { kernel, sysctl: disabled_sysctl() }
            }
            Some(libc::ENOSYS) => RingFault::Missing { kernel },
            Some(libc::EINVAL) => {
                RingFault::KernelTooOld { kernel, lacking: "it refuses IORING_SETUP_DEFER_TASKRUN" }
            }
            Some(libc::ENOMEM) => RingFault::Memory,
            Some(libc::EMFILE | libc::ENFILE) => {
                RingFault::Descriptors { limit: crate::sys::open_files_limit().unwrap_or(0) }
            }
            _ => RingFault::Other { kernel, source },
        }
    }
}

/// The release as the kernel says it, such as `6.18.44`.
pub(super) fn kernel_release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match text.trim() {
        "" => "unknown".to_owned(),
        release => release.to_owned(),
    }
}

/// Whether `release` is known to be older than `floor`. What cannot be read is not.
pub(super) fn is_older(release: &str, floor: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) < floor,
        _ => false,
    }
}

fn disabled_sysctl() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match text.trim() {
        "" => "absent".to_owned(),
        value => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        let has_no_direct = |release| is_older(release, DIRECT_FLOOR);
        assert!(has_no_direct("6.1.0-21-amd64") && !is_older("6.1.0-21-amd64", KERNEL_FLOOR));
        assert!(has_no_direct("5.19") && is_older("5.19", KERNEL_FLOOR));
        assert!(has_no_direct("6.12.63+deb13"));
        assert!(!has_no_direct("6.13.0"));
        assert!(!has_no_direct("6.18.44-cloud"));
        assert!(!has_no_direct("7.1"));
        assert!(!has_no_direct("unknown"));
    }

    #[test]
    fn refusals_name_their_remedy() {
        let text = |errno| RingFault::from_setup(io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::EPERM).contains("kernel.io_uring_disabled"));
        assert!(text(libc::EPERM).contains("seccomp"));
        assert!(text(libc::ENOSYS).contains("seccomp"));
        assert!(text(libc::EINVAL).contains("too old"));
        assert!(text(libc::EMFILE).contains("RLIMIT_NOFILE"));
        assert!(text(libc::ENOMEM).contains("RLIMIT_MEMLOCK"));
    }
}
