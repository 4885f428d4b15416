//! Processes, their limits, and locks between them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child die (SIGKILL) when the thread that spawns it ends. Spawn from the main thread:
/// the kernel watches the spawning *thread*, not the process.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec; it makes only system calls that are safe
    // after a fork in a threaded process (prctl, getppid) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call above; then no signal will ever come.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// The soft limit of open files of this process.
pub fn open_files_limit() -> io::Result<u64> {
    Ok(open_files()?.rlim_cur)
}

/// Raises the soft limit of open files to the hard one; returns what it is now.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = open_files()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live, filled structure, which is only read.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes an exclusive lock on the whole file, for as long as it is open. `false` when another open
/// file description holds it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    loop {
        // SAFETY: flock takes no pointers; the descriptor is that of an open file.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EWOULDBLOCK) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Gives the calling thread the lowest priority: it runs when nobody else wants to.
pub fn lower_priority() -> io::Result<()> {
    // SAFETY: setpriority takes no pointers. On Linux 0 is the calling thread (setpriority(2)).
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of this process that are in memory now (RSS), from `/proc/self/statm` (proc(5)).
pub fn resident_size() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1);
    let pages = pages.and_then(|digits| digits.parse::<u64>().ok());
    pages.map(|pages| pages * page_size()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Bytes of a page of memory, in which the kernel counts.
pub fn page_size() -> u64 {
    // SAFETY: sysconf takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4_096)
}

/// Whether `output` is a pipe or socket whose other end is closed: nobody will read it any more.
pub fn is_unread(output: BorrowedFd<'_>) -> bool {
    let mut asked = libc::pollfd { fd: output.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: the pointer is to one live structure, which is what the count says.
    let count = unsafe { libc::poll(&mut asked, 1, 0) };
    count > 0 && asked.revents & (libc::POLLERR | libc::POLLNVAL) != 0
}

fn open_files() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live structure of the type that the call fills.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_lock_is_held_by_one_open_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("up.lock");
        let first = File::create(&path).expect("a new file");
        let second = File::open(&path).expect("the same file");
        assert!(try_lock(&first).expect("flock works here"));
        assert!(!try_lock(&second).expect("flock works here"));
        drop(first);
        assert!(try_lock(&second).expect("flock works here"));
    }

    #[test]
    fn the_limit_and_the_size_are_plausible() {
        let before = open_files_limit().expect("getrlimit works");
        let raised = raise_open_files_limit().expect("raising to the hard limit is allowed");
        assert!(raised >= before && open_files_limit().expect("getrlimit works") == raised);
        assert!(resident_size().expect("/proc is there") > 100_000);
    }

    #[test]
    fn a_pipe_is_unread_once_its_reader_is_gone() {
        let (reader, writer) = io::pipe().expect("a pipe");
        assert!(!is_unread(writer.as_fd()));
        drop(reader);
        assert!(is_unread(writer.as_fd()));
        assert!(!is_unread(tempfile::tempfile().expect("a file").as_fd()));
    }

    #[test]
    fn a_child_of_this_thread_starts() {
        let mut command = Command::new("true");
        let status = die_with_parent(&mut command).status();
        assert!(status.expect("the child starts").success());
    }

    #[test]
    fn a_child_dies_when_the_thread_that_spawned_it_ends() {
        let spawned = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            let command = command.arg("60");
            die_with_parent(command).spawn().expect("sleep starts")
        });
        let mut child = spawned.join().expect("the thread ends");
        let status = child.wait().expect("the child is ours");
        assert!(!status.success());
    }
}
