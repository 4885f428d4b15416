//! Which listener of a port takes a connection: by the processor on which it arrived, instead of by
//! a hash of its addresses.

use std::io;
use std::os::fd::AsRawFd;

use super::Listener;

/// Where classic BPF reads the number of the processor (`SKF_AD_OFF + SKF_AD_CPU`).
const PROCESSOR: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;

/// Connections to the port of `listener` go to listener number `processor % count` of those that
/// share it, in the order in which they were bound. It holds for all of them, and for as long as
/// one is open, whoever has it then.
pub fn steer_by_processor(listener: &Listener, count: usize) -> io::Result<()> {
    let count = u32::try_from(count).ok().filter(|count| *count > 0);
    let count = count.ok_or(io::ErrorKind::InvalidInput)?;
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, PROCESSOR),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr().cast() };
    set(listener, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Connections go by the hash again.
pub fn steer_by_hash(listener: &Listener) -> io::Result<()> {
    match set(listener, libc::SO_DETACH_REUSEPORT_BPF, &0_i32) {
        // They went by it all the time.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn set<T>(listener: &Listener, option: libc::c_int, value: &T) -> io::Result<()> {
    let descriptor = listener.descriptor.as_raw_fd();
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is that of an open socket; the kernel reads `size` bytes of a live
    // value, and the program that it may point to, which lives as long as the caller.
    let result = unsafe {
        libc::setsockopt(descriptor, libc::SOL_SOCKET, option, (&raw const *value).cast(), size)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    use super::super::listen;
    use super::*;
    use crate::sys::{allowed_processors, pin_this_thread};

    /// How many connections wait at each listener.
    fn waiting(listeners: &[Listener]) -> Vec<usize> {
        let count = |listener: &Listener| {
            let mut poll = libc::pollfd {
                fd: listener.descriptor.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let mut count = 0;
            // SAFETY: one live entry; and an accept that takes no pointers, of one that is there.
            while unsafe { libc::poll(&mut poll, 1, 0) } == 1 {
                let accepted = unsafe {
                    libc::accept4(poll.fd, std::ptr::null_mut(), std::ptr::null_mut(), 0)
                };
                assert!(accepted >= 0, "one was waiting");
                // SAFETY: it is ours, and closed once.
                unsafe { libc::close(accepted) };
                count += 1;
            }
            count
        };
        listeners.iter().map(count).collect()
    }

    /// Connections from a thread on this processor, on loopback: they arrive there.
    fn connect_from(processor: usize, listener: &Listener) -> Vec<TcpStream> {
        let address = listener.address();
        let connect = move || {
            pin_this_thread(processor).expect("it is allowed");
            (0..32).map(|_| TcpStream::connect(address).expect("somebody listens")).collect()
        };
        std::thread::spawn(connect).join().expect("it does not panic")
    }

    #[test]
    fn connections_go_where_their_processor_says_until_they_go_by_the_hash_again() {
        let first = listen(([127, 0, 0, 1], 0).into(), 64, true).expect("a free port");
        let second = listen(first.address(), 64, true).expect("it is shared");
        let listeners = [first, second];
        steer_by_processor(&listeners[1], 2).expect("the kernel takes it");
        for processor in allowed_processors().expect("the kernel tells") {
            let _streams = connect_from(processor, &listeners[0]);
            let mut expected = [0, 0];
            expected[processor % 2] = 32;
            assert_eq!(waiting(&listeners), expected, "from processor {processor}");
        }
        steer_by_hash(&listeners[0]).expect("it was there");
        let _streams = connect_from(0, &listeners[0]);
        let counts = waiting(&listeners);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        steer_by_hash(&listeners[0]).expect("nothing to take away");
    }

    #[test]
    fn more_listeners_than_there_are_fall_back_to_the_hash_and_none_is_an_error() {
        let listener = listen(([127, 0, 0, 1], 0).into(), 64, true).expect("a free port");
        steer_by_processor(&listener, 1_000).expect("the kernel takes it");
        for processor in allowed_processors().expect("the kernel tells") {
            let _streams = connect_from(processor, &listener);
            assert_eq!(waiting(std::slice::from_ref(&listener)), [32]);
        }
        let error = steer_by_processor(&listener, 0).expect_err("nowhere to go");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_port_that_is_not_shared_is_an_error() {
        let listener = listen(([127, 0, 0, 1], 0).into(), 64, false).expect("a free port");
        assert!(steer_by_processor(&listener, 2).is_err());
    }
}
