//! Messages between two edges over a Unix socket: a size of 4 bytes, little endian, and as many
//! bytes; descriptors travel with the first of them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;

use crate::link::wire::Wire;
use crate::sys::{receive_with_descriptors, send_with_descriptors};

const SIZE_SIZE: usize = 4;

/// One end of it.
#[derive(Debug)]
pub struct Lane {
    stream: UnixStream,
}

impl Lane {
    pub fn new(stream: UnixStream) -> Lane {
        Lane { stream }
    }

    /// How long one step of the other end may take; `None`: as long as it lives.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)?;
        self.stream.set_write_timeout(patience)
    }

    pub fn say(&self, message: &impl Wire) -> io::Result<()> {
        self.say_with(message, &[])
    }

    /// The descriptors are those of the other end, too, from now on.
    pub fn say_with(&self, message: &impl Wire, descriptors: &[OwnedFd]) -> io::Result<()> {
        let mut bytes = vec![0; SIZE_SIZE];
        message.write(&mut bytes);
        let size = u32::try_from(bytes.len() - SIZE_SIZE).map_err(io::Error::other)?;
        bytes[..SIZE_SIZE].copy_from_slice(&size.to_le_bytes());
        send_with_descriptors(&self.stream, &bytes, descriptors)
    }

    pub fn hear<T: Wire>(&self) -> io::Result<T> {
        self.hear_with().map(|(message, _)| message)
    }

    /// The next message and what came with it. [`io::ErrorKind::UnexpectedEof`]: the other end is
    /// gone.
    pub fn hear_with<T: Wire>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut size = [0; SIZE_SIZE];
        let mut descriptors = self.fill(&mut size)?;
        let mut bytes = vec![0; u32::from_le_bytes(size) as usize];
        descriptors.extend(self.fill(&mut bytes)?);
        let message = T::from_bytes(Bytes::from(bytes)).map_err(io::Error::other)?;
        Ok((message, descriptors))
    }

    fn fill(&self, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
        let (mut filled, mut descriptors) = (0, Vec::new());
        while filled < bytes.len() {
            let (size, came) = receive_with_descriptors(&self.stream, &mut bytes[filled..])?;
            if size == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += size;
            descriptors.extend(came);
        }
        Ok(descriptors)
    }
}
