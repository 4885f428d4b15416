//! Descriptors that change process over a Unix socket (`SCM_RIGHTS`, unix(7)), and the clock that
//! both processes read.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The kernel takes 253 in one message (`SCM_MAX_FD`).
pub const DESCRIPTORS_PER_MESSAGE_MAX: usize = 250;

const PAYLOAD_SIZE_MAX: usize = DESCRIPTORS_PER_MESSAGE_MAX * size_of::<RawFd>();

/// Room for the control message, aligned as the kernel wants it. `CMSG_SPACE` of the payload is
/// its size, padded, and a header.
#[repr(C, align(8))]
struct Control([u8; 32 + PAYLOAD_SIZE_MAX]);

/// Sends all of `bytes`, which are not to be empty, and with the first of them the descriptors. The
/// sender keeps its own.
pub fn send_with_descriptors(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    assert!(!bytes.is_empty() && descriptors.len() <= DESCRIPTORS_PER_MESSAGE_MAX);
    let mut sent = 0;
    while sent < bytes.len() {
        let with = if sent == 0 { descriptors } else { &[] };
        match send_once(socket, &bytes[sent..], with) {
            Ok(size) => sent += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_once(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let payload_size = size_of_val(&raw[..]);
    let mut control = Control([0; 32 + PAYLOAD_SIZE_MAX]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all fields of a message header may be 0 (unix(7)).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic; at most the size of `Control`, by the assertion of the caller.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload_size as u32) } as _;
        // SAFETY: the control buffer is aligned, zeroed, and holds a header and the payload.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload_size as u32) as _;
            let place = libc::CMSG_DATA(header);
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), place, payload_size);
        }
    }
    // SAFETY: the header names live memory of these sizes, which is only read.
    let size = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Receives some bytes (0: the other end is closed) and the descriptors that came with them.
pub fn receive_with_descriptors(
    socket: &UnixStream,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 32 + PAYLOAD_SIZE_MAX]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all fields of a message header may be 0 (unix(7)).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let size = loop {
        // SAFETY: the header names live memory of these sizes, which nobody else uses.
        let size =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(size) {
            Ok(size) => break size,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel wrote the control messages; their lengths bound what is read, and each
    // descriptor in them is new and owned by nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
                let payload_size = found.cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..payload_size / size_of::<RawFd>() {
                    let raw = first.add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(raw));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok((size, descriptors))
}

/// The time since the host started, the same for every process on it.
pub fn host_uptime() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live structure of the type that the call fills; this clock is
    // always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_first_byte_and_are_of_the_same_file() {
        let (left, right) = UnixStream::pair().expect("a pair");
        let pipes: Vec<_> =
            (0..DESCRIPTORS_PER_MESSAGE_MAX / 2).map(|_| io::pipe().expect("a pipe")).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let descriptors: Vec<OwnedFd> = writers.into_iter().map(OwnedFd::from).collect();
        send_with_descriptors(&left, b"hello", &descriptors).expect("sent");
        drop(descriptors);
        let mut bytes = [0; 16];
        let (size, arrived) = receive_with_descriptors(&right, &mut bytes).expect("received");
        assert_eq!(&bytes[..size], b"hello");
        for (index, (mut reader, writer)) in readers.into_iter().zip(arrived).enumerate() {
            let mut writer = io::PipeWriter::from(writer);
            writer.write_all(&[index as u8]).expect("written");
            drop(writer);
            let mut text = Vec::new();
            reader.read_to_end(&mut text).expect("all ends are closed");
            assert_eq!(text, [index as u8]);
        }
        drop(left);
        assert_eq!(receive_with_descriptors(&right, &mut bytes).expect("the end").0, 0);
    }

    #[test]
    fn the_host_is_older_than_this_test() {
        let first = host_uptime();
        assert!(host_uptime() >= first && first > Duration::ZERO);
    }
}
