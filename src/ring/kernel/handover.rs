//! Sockets that leave a ring's table for another process, and those that come into one.
//!
//! The kernel passes descriptors between processes, not slots: a socket becomes a descriptor for
//! the moment of its passage. It is the same socket in both tables meanwhile, and stays open as
//! long as one of them has it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::opcode;
use io_uring::types::Fixed;

use super::{INSTALL_BIT, KernelRing};

/// Rounds in which the kernel has to come to terms with what it was asked.
const ROUNDS_MAX: usize = 64;

impl KernelRing {
    /// A descriptor of each socket, in this order. The slots keep theirs. The caller sees to it
    /// that there are not too many at a time for the limit of open files.
    pub fn descriptors_of(&mut self, slots: &[u32]) -> io::Result<Vec<OwnedFd>> {
        self.installed.clear();
        for (index, slot) in slots.iter().enumerate() {
            let entry = opcode::FixedFdInstall::new(Fixed(*slot), 0).build();
            self.push(entry.user_data(INSTALL_BIT | index as u64));
        }
        for _ in 0..ROUNDS_MAX {
            if self.installed.len() == slots.len() {
                break;
            }
            // Refusals are for now, as in a turn.
            let _ = self.enter_now();
            let mut backlog = std::mem::take(&mut self.backlog);
            self.harvest(&mut backlog);
            self.backlog = backlog;
        }
        let mut installed = std::mem::take(&mut self.installed);
        installed.sort_unstable();
        let descriptor = |(_, result): &(u32, i32)| match *result {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            raw if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        // All of them are taken, so that none stays open when one failed.
        let taken: Vec<io::Result<OwnedFd>> = installed.iter().map(descriptor).collect();
        let descriptors: Vec<OwnedFd> = taken.into_iter().collect::<io::Result<_>>()?;
        if descriptors.len() == slots.len() {
            Ok(descriptors)
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    /// Puts each socket into its slot, which nobody has used before. The table then has the socket,
    /// and the descriptor is closed.
    pub fn put_into_slots(&mut self, mut sockets: Vec<(u32, OwnedFd)>) -> io::Result<()> {
        sockets.sort_unstable_by_key(|(slot, _)| *slot);
        for run in sockets.chunk_by(|(before, _), (slot, _)| before + 1 == *slot) {
            let raw: Vec<RawFd> = run.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
            let count = self.ring.submitter().register_files_update(run[0].0, &raw)?;
            if count != raw.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}
