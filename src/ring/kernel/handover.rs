//! Sockets that leave a ring's table for another process, and those that come into one.
//!
//! The kernel passes descriptors between processes, not slots: a socket becomes a descriptor for
//! the moment of its passage. It is the same socket in both tables meanwhile, and stays open as
//! long as one of them has it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use io_uring::opcode;
use io_uring::types::Fixed;

use super::{Descriptors, INSTALL_BIT, KernelRing};

/// Rounds in which the kernel has to come to terms with what it was asked.
const ROUNDS_MAX: usize = 64;

impl KernelRing {
    /// A descriptor of each socket ([`super::Ring::accepted`]), in this order; the ring keeps its
    /// own. The caller sees to it that there are not too many at a time for the limit of open
    /// files.
    pub fn descriptors_of(&mut self, slots: &[u32]) -> io::Result<Vec<OwnedFd>> {
        if self.descriptors == Descriptors::Ordinary {
            return slots.iter().map(|slot| duplicate(*slot as RawFd)).collect();
        }
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

    /// Takes sockets in, each into its slot, which nobody has used before: the table then has it,
    /// and the descriptor is closed. With ordinary descriptors the slot is a number of the process
    /// that had it. Yields what [`super::Ring::accepted`] takes, in this order.
    pub fn take_in(&mut self, sockets: Vec<(u32, OwnedFd)>) -> io::Result<Vec<u32>> {
        match self.descriptors {
            Descriptors::Ordinary => {
                Ok(sockets.into_iter().map(|(_, socket)| socket.into_raw_fd() as u32).collect())
            }
            Descriptors::Direct => {
                let slots = sockets.iter().map(|(slot, _)| *slot).collect();
                self.put_into_slots(sockets).map(|()| slots)
            }
        }
    }

    fn put_into_slots(&mut self, mut sockets: Vec<(u32, OwnedFd)>) -> io::Result<()> {
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

fn duplicate(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is borrowed for this call only, and its owner, the ring, does not close it in it.
    unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()
}
