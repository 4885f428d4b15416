//! A page of messages ends early, before its frame passes the bound of frames to clients.

use crate::limits::SERVER_FRAME_SIZE_MAX;
use crate::link::record::Message;

/// What a page may hold beside its messages: its type, `ref`, `more`, and the longest name.
const HEAD_SIZE_MAX: usize = 4096;
/// What stands between two of its messages: a comma, or a length.
const SEPARATOR_SIZE_MAX: usize = 4;

/// The newest of `messages` that fit a frame, each as `encode` writes it, in their order.
pub(super) fn newest_entries(
    messages: &[Message],
    encode: impl Fn(&Message, &mut Vec<u8>),
) -> Vec<Vec<u8>> {
    let mut size = HEAD_SIZE_MAX;
    let mut entries = Vec::new();
    for message in messages.iter().rev() {
        let mut entry = Vec::new();
        encode(message, &mut entry);
        size += entry.len() + SEPARATOR_SIZE_MAX;
        if size >= SERVER_FRAME_SIZE_MAX {
            break;
        }
        entries.push(entry);
    }
    entries.reverse();
    entries
}
