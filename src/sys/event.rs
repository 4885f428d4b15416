//! Waking a ring from another thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// An event descriptor. Clones wake the same one; the ring that watches it drains it.
#[derive(Clone, Debug)]
pub struct Waker {
    descriptor: Arc<OwnedFd>,
}

impl Waker {
    pub fn new() -> io::Result<Waker> {
        // SAFETY: eventfd takes no pointers.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Waker { descriptor: Arc::new(descriptor) })
    }

    /// Wakes the watching ring; any number of calls before it looks count as one. The write fails
    /// only when the counter is full, and then the ring is as awake as it can be.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the pointer and size are those of a live array of 8 bytes, which is only read.
        let _ = unsafe { libc::write(self.raw(), one.as_ptr().cast(), one.len()) };
    }

    /// For the ring's `watch`. Valid as long as one clone lives.
    pub fn raw(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// Sets the counter back to 0. It may be 0 already, when two wake-ups were seen as one.
pub(crate) fn drain_event(descriptor: RawFd) -> u64 {
    let mut count = [0_u8; 8];
    // SAFETY: the pointer and size are those of a live array of 8 bytes. A descriptor that is not
    // an event's, or closed meanwhile, yields an error, which leaves the array as it was.
    let _ = unsafe { libc::read(descriptor, count.as_mut_ptr().cast(), count.len()) };
    u64::from_ne_bytes(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_ups_add_up_and_are_drained_at_once() {
        let waker = Waker::new().expect("an event descriptor");
        waker.wake();
        waker.clone().wake();
        assert_eq!(drain_event(waker.raw()), 2);
        assert_eq!(drain_event(waker.raw()), 0);
    }
}
