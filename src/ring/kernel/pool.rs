//! The receive buffers and the kernel's ring of the free ones.
//!
//! Invariant: a buffer is either *free* (an entry between the kernel's head and our tail) or *held*
//! (`held[id]`, from its completion to its release). The kernel writes to free buffers only, the
//! owner of the ring sees held ones only.

use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::ring::BufferId;
use crate::sys::Mapping;

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

pub(super) struct Pool {
    entries: Mapping,
    bytes: Mapping,
    held: Vec<bool>,
    free: usize,
    buffer_size: usize,
    tail: u16,
    mask: u16,
}

impl Pool {
    /// Maps the memory; nothing is offered to the kernel before [`Pool::offer_all`].
    pub(super) fn new(count: u32, buffer_size: u32) -> std::io::Result<Pool> {
        assert!(count.is_power_of_two() && count <= 1 << 15);
        Ok(Pool {
            entries: Mapping::new(count as usize * size_of::<BufRingEntry>())?,
            bytes: Mapping::new(count as usize * buffer_size as usize)?,
            held: vec![true; count as usize],
            free: 0,
            buffer_size: buffer_size as usize,
            tail: 0,
            mask: (count - 1) as u16,
        })
    }

    /// Address of the entries, for registration.
    pub(super) fn ring_address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    /// Bytes of one buffer.
    pub(super) fn buffer_size(&self) -> u32 {
        self.buffer_size as u32
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Gives every buffer to the kernel. Called once, after registration.
    pub(super) fn offer_all(&mut self) {
        for id in 0..self.count() {
            self.release(BufferId(id as u16));
        }
    }

    /// Notes that the kernel filled a buffer.
    pub(super) fn take(&mut self, id: BufferId) {
        let held = &mut self.held[usize::from(id.0)];
        assert!(!*held, "the kernel filled buffer {} twice", id.0);
        *held = true;
        self.free -= 1;
    }

    pub(super) fn bytes(&mut self, id: BufferId, size: usize) -> &mut [u8] {
        let index = usize::from(id.0);
        assert!(self.held[index], "buffer {index} is not held");
        assert!(size <= self.buffer_size, "{size} bytes exceed a buffer");
        // SAFETY: `index` is below the count (it indexed `held`) and `size` at most a buffer's, so
        // the range lies in the mapping. The buffer is held, so the kernel does not write to it,
        // and the borrow of `self` keeps it from being released meanwhile.
        unsafe {
            let start = self.bytes.as_ptr().add(index * self.buffer_size);
            std::slice::from_raw_parts_mut(start, size)
        }
    }

    /// Gives a held buffer back to the kernel.
    pub(super) fn release(&mut self, id: BufferId) {
        let index = usize::from(id.0);
        assert!(self.held[index], "buffer {index} is released twice");
        self.held[index] = false;
        self.free += 1;
        let entries = self.entries.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the masked tail is below the count of entries, so the entry lies in the mapping;
        // the kernel reads no entry at or beyond the tail, so writing it races with nothing. The
        // tail is the kernel's to read at any time: it is stored atomically, after the entry.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail & self.mask));
            let start = self.bytes.as_ptr().add(index * self.buffer_size);
            entry.set_addr(start as u64);
            entry.set_len(self.buffer_size as u32);
            entry.set_bid(id.0);
            self.tail = self.tail.wrapping_add(1);
            let shared = BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*shared).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_go_out_and_come_back() {
        let mut pool = Pool::new(4, 64).expect("a small mapping");
        pool.offer_all();
        assert_eq!((pool.free(), pool.count()), (4, 4));
        pool.take(BufferId(2));
        pool.bytes(BufferId(2), 64)[63] = 7;
        assert_eq!(pool.bytes(BufferId(2), 64)[63], 7);
        assert_eq!(pool.free(), 3);
        pool.release(BufferId(2));
        assert_eq!(pool.free(), 4);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_second_release_is_a_mistake() {
        let mut pool = Pool::new(2, 64).expect("a small mapping");
        pool.offer_all();
        pool.release(BufferId(0));
    }

    #[test]
    #[should_panic(expected = "not held")]
    fn a_free_buffer_cannot_be_read() {
        let mut pool = Pool::new(2, 64).expect("a small mapping");
        pool.offer_all();
        pool.bytes(BufferId(1), 1);
    }
}
