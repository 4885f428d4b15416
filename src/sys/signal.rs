//! Signals to other processes.

use std::io;
use std::process::Child;

/// Sends SIGTERM to a child that has not been waited for: until then its number is its own, also
/// after it has ended.
pub fn terminate(child: &Child) -> io::Result<()> {
    let number = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: kill takes no pointers; the process is a child of ours, by the type of the argument.
    match unsafe { libc::kill(number, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a write beyond the limit of file sizes (`ulimit -f`) an error of that write: by default it
/// ends the process without a word.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, so no code of ours runs in a signal's context.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_ends_by_the_signal() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        terminate(&child).expect("the child is ours");
        let status = child.wait().expect("the child is ours");
        assert_eq!(status.signal(), Some(libc::SIGTERM));
    }
}
