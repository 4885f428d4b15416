//! Memory that the kernel reads and writes by address: page-aligned, and never moved.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of [`AlignedBuffer`] and unit of its size: what `O_DIRECT` asks of any disk we know.
pub const BLOCK_SIZE: usize = 4096;

/// A fixed heap buffer, zeroed, aligned to [`BLOCK_SIZE`]; tokio-uring writes from it and reads
/// into it. All its bytes are always initialised.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the buffer owns its memory alone, like a Box<[u8]>.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// `size` bytes, rounded up to whole blocks.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn new(size: usize) -> AlignedBuffer {
        let size = size.next_multiple_of(BLOCK_SIZE);
        assert!(size > 0, "an empty buffer has no use");
        // SAFETY: the layout's size is not 0, as asserted above.
        let start = unsafe { alloc_zeroed(layout(size)) };
        match NonNull::new(start) {
            Some(start) => AlignedBuffer { start, size },
            None => handle_alloc_error(layout(size)),
        }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), layout(self.size)) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `size` initialised bytes begin at `start`, and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes this one exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

// SAFETY: the memory is on the heap: moving the owner does not move it. All of it is initialised.
unsafe impl tokio_uring::buf::IoBuf for AlignedBuffer {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.size
    }

    fn bytes_total(&self) -> usize {
        self.size
    }
}

// SAFETY: as above; `set_init` has nothing to record since every byte is initialised from the
// start.
unsafe impl tokio_uring::buf::IoBufMut for AlignedBuffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _position: usize) {}
}

/// An anonymous mapping: pages cost memory only once they are touched. The address is all that is
/// offered; whoever writes through it says why that is sound.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// At least `size` bytes of zeroes, aligned to a page.
    pub fn new(size: usize) -> io::Result<Mapping> {
        let size = size.max(1).next_multiple_of(BLOCK_SIZE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory
        // that anybody has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never maps page 0");
        Ok(Mapping { start, size })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; the owner hands out no borrow that outlives it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, BLOCK_SIZE).expect("a power of two, and a size far below the end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_whole_blocks() {
        let mut buffer = AlignedBuffer::new(5000);
        assert_eq!(buffer.len(), 8192);
        assert_eq!(buffer.as_ptr() as usize % BLOCK_SIZE, 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[8191] = 9;
        assert_eq!(buffer[8191], 9);
    }

    #[test]
    fn a_buffer_is_written_and_read_by_tokio_uring() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        tokio_uring::start(async {
            let mut written = AlignedBuffer::new(BLOCK_SIZE);
            written[..5].copy_from_slice(b"aldis");
            let device = tokio_uring::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(file.path())
                .await
                .expect("the file is ours");
            let (result, written) = device.write_at(written, 0).submit().await;
            assert_eq!(result.expect("there is room"), BLOCK_SIZE);
            let (result, read) = device.read_at(AlignedBuffer::new(BLOCK_SIZE), 0).await;
            assert_eq!(result.expect("it was just written"), BLOCK_SIZE);
            assert_eq!(&read[..], &written[..]);
        });
    }

    #[test]
    fn a_mapping_is_aligned_to_a_page() {
        let mapping = Mapping::new(100).expect("memory for one page");
        assert_eq!(mapping.as_ptr() as usize % BLOCK_SIZE, 0);
    }
}
