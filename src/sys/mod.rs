//! System calls that have no safe wrapper, each behind a safe one; and memory with an alignment.

#![expect(unsafe_code, reason = "system calls and raw memory; each block says why it is sound")]

mod affinity;
mod buffer;
mod descriptors;
mod event;
mod process;
mod signal;
mod start;

pub use affinity::{allowed_processors, pin_this_thread};
pub use buffer::{AlignedBuffer, BLOCK_SIZE, Mapping};
pub use descriptors::{
    DESCRIPTORS_PER_MESSAGE_MAX, host_uptime, receive_with_descriptors, send_with_descriptors,
};
pub use event::Waker;
pub(crate) use event::drain_event;
pub use process::{
    die_with_parent, is_unread, lower_priority, open_files_limit, page_size,
    raise_open_files_limit, resident_size, try_lock,
};
pub use signal::{ignore_file_size_signal, terminate};
pub use start::{StopFlag, impatient_stop_flag, patiently, random_u64, stop_flag};

/// Open flag: past the page cache. For files that are written in whole aligned blocks.
pub const OPEN_DIRECT: i32 = libc::O_DIRECT;
/// Open flag: a write returns when its data is durable.
pub const OPEN_DATA_SYNC: i32 = libc::O_DSYNC;
