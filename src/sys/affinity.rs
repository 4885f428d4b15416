//! Which processors a thread may run on.

use std::io;

/// Those of the calling thread, in order.
pub fn allowed_processors() -> io::Result<Vec<usize>> {
    // SAFETY: all zeros is a set of no processors.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live set of the size that is told; 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let is_in = |processor: &usize| {
        // SAFETY: the number is below the size of the set, which is live.
        unsafe { libc::CPU_ISSET(*processor, &set) }
    };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_in).collect())
}

/// Lets the calling thread run on this processor alone.
pub fn pin_this_thread(processor: usize) -> io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all zeros is a set of no processors.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the size of the set, which is live.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the pointer is to a live set of the size that is told; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_and_no_other() {
        let before = allowed_processors().expect("the kernel tells");
        let last = *before.last().expect("it runs on one");
        let pinned = std::thread::spawn(move || {
            pin_this_thread(last).expect("it is allowed");
            allowed_processors().expect("the kernel tells")
        });
        assert_eq!(pinned.join().expect("it does not panic"), [last]);
        assert_eq!(allowed_processors().expect("the kernel tells"), before);
    }

    #[test]
    fn a_processor_that_is_not_there_is_an_error() {
        for processor in [1_000, 1_024, usize::MAX] {
            let error = pin_this_thread(processor).expect_err("there are not so many");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
