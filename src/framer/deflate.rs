//! The compressed form of a message (RFC 7692 7.2), without context from message to message.
//!
//! A shard has one [`Inflater`] and one [`Deflater`] for all its connections, and a connection has
//! nothing of either: what a message needs is reset before it. Therefore a compressed message is
//! inflated when all of it has arrived, and in pieces, each of which is checked before the next is
//! made: neither a bomb nor a bad text costs more than the piece in which it shows.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Violation;
use super::utf8::Validator;

/// Windows that the compressor has: 2^9 to 2^15 bytes. The format knows 2^8, zlib does not.
pub const WINDOW_BITS_MIN: u8 = 9;
pub const WINDOW_BITS_MAX: u8 = 15;
/// Messages below this are sent as they are: the saved bytes are not worth the work.
pub const DEFLATE_SIZE_MIN: usize = 128;

/// What a sender takes off the end of a message (RFC 7692 7.2.1), and a receiver puts back.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// An empty last block: behind a message that is whole, and no other, it ends the stream.
const LAST_BLOCK: [u8; 5] = [1, 0, 0, 0xff, 0xff];
/// The empty block that pads a message whose sender ended the stream (RFC 7692 7.2.3.4).
const PAD: [u8; 1] = [0];
/// The least piece in which a message is inflated and checked.
const PIECE_SIZE: usize = 16 * 1024;
/// Buffers beyond this are given back after the message that needed them.
const KEPT_SIZE_MAX: usize = 256 * 1024;
const WINDOW_COUNT: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;

/// Bytes that a message of `message_size_max` may have while it is compressed: data that does not
/// compress grows by an eighth in the worst of zlib's modes, and by little in any other.
pub fn compressed_size_max(message_size_max: u32) -> u64 {
    let size_max = u64::from(message_size_max);
    size_max + size_max / 7 + 64
}

/// Inflates the messages of all connections of a shard.
pub struct Inflater {
    state: Decompress,
    /// The last message, and room behind it.
    output: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater { state: Decompress::new(false), output: Vec::new() }
    }
}

impl Inflater {
    /// Inflates the whole payload of a message. A text's bytes are checked to begin a text in each
    /// piece but the last, which the caller checks with the whole.
    pub fn inflate(
        &mut self,
        payload: &[u8],
        is_text: bool,
        size_max: usize,
    ) -> Result<&[u8], Violation> {
        self.state.reset(false);
        if self.output.len() > KEPT_SIZE_MAX {
            self.output = Vec::new();
        }
        let text = is_text.then(Validator::default);
        let mut inflating = Inflating { inflater: self, size: 0, size_max, text, checked: 0 };
        inflating.message(payload)?;
        let size = inflating.size;
        Ok(&self.output[..size])
    }
}

/// One message on its way.
struct Inflating<'a> {
    inflater: &'a mut Inflater,
    /// Bytes that are inflated.
    size: usize,
    size_max: usize,
    text: Option<Validator>,
    /// Bytes that are known to begin a text.
    checked: usize,
}

impl Inflating<'_> {
    fn message(&mut self, payload: &[u8]) -> Result<(), Violation> {
        // What a compressor with nothing to say since its last flush makes of an empty message.
        if payload.is_empty() {
            return Ok(());
        }
        if self.input(payload)? || self.input(&TAIL)? {
            return Ok(());
        }
        let size = self.size;
        let is_whole = self.input(&LAST_BLOCK)? && self.size == size;
        if is_whole { Ok(()) } else { Err(Violation::NotDeflate) }
    }

    /// Takes all of `input`. Yields whether the stream ended with it.
    fn input(&mut self, mut input: &[u8]) -> Result<bool, Violation> {
        loop {
            self.make_room();
            let (status, taken) = self.step(input)?;
            input = &input[taken..];
            let has_room = self.size < self.inflater.output.len();
            match status {
                Status::StreamEnd if input.is_empty() || input == PAD => return Ok(true),
                Status::StreamEnd => return Err(Violation::NotDeflate),
                _ if input.is_empty() && has_room => return Ok(false),
                _ => {}
            }
        }
    }

    /// Inflates into the room there is. Yields how much of `input` was taken.
    fn step(&mut self, input: &[u8]) -> Result<(Status, usize), Violation> {
        let Inflater { state, output } = &mut *self.inflater;
        let (taken_before, made_before) = (state.total_in(), state.total_out());
        let status = state
            .decompress(input, &mut output[self.size..], FlushDecompress::None)
            .map_err(|_| Violation::NotDeflate)?;
        let taken = (state.total_in() - taken_before) as usize;
        let end = self.size + (state.total_out() - made_before) as usize;
        if taken == 0 && end == self.size && status != Status::StreamEnd && !input.is_empty() {
            return Err(Violation::NotDeflate);
        }
        let is_full = end == output.len();
        if let Some(text) = self.text.as_mut().filter(|_| is_full) {
            text.push(&output[self.checked..end]).map_err(|_| Violation::NotUtf8)?;
            self.checked = end;
        }
        self.size = end;
        if self.size > self.size_max {
            return Err(Violation::TooBig);
        }
        Ok((status, taken))
    }

    /// One byte more than the message may have is room enough to see that it has too many.
    fn make_room(&mut self) {
        let output = &mut self.inflater.output;
        if self.size == output.len() {
            let size = (2 * self.size).max(PIECE_SIZE).min(self.size_max + 1);
            output.resize(size, 0);
        }
    }
}

/// Compresses the messages to all connections of a shard.
#[derive(Default)]
pub struct Deflater {
    /// By window, the smallest first; made when the first connection wants it.
    compressors: [Option<Compress>; WINDOW_COUNT],
    output: Vec<u8>,
    last: LastDeflated,
}

/// The last message, which is often for many connections.
#[derive(Default)]
struct LastDeflated {
    message: Vec<u8>,
    window_bits: u8,
    /// Of the compressed form, at the front of the output; `None` when the message is better sent
    /// as it is.
    size: Option<usize>,
}

impl Deflater {
    /// The compressed form of a message for a peer with this window, [`WINDOW_BITS_MIN`] to
    /// [`WINDOW_BITS_MAX`]. `None` when it is not smaller, or the message is small already.
    pub fn deflate(&mut self, message: &[u8], window_bits: u8) -> Option<&[u8]> {
        if message.len() < DEFLATE_SIZE_MIN {
            return None;
        }
        let is_last = self.last.window_bits == window_bits && self.last.message == message;
        if !is_last {
            let size = self.compress(message, window_bits);
            self.remember(message, window_bits, size);
        }
        self.last.size.map(|size| &self.output[..size])
    }

    fn compress(&mut self, message: &[u8], window_bits: u8) -> Option<usize> {
        let window_bits = window_bits.clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX);
        let index = usize::from(window_bits - WINDOW_BITS_MIN);
        let compressor = self.compressors[index].get_or_insert_with(|| {
            Compress::new_with_window_bits(Compression::fast(), false, window_bits)
        });
        compressor.reset();
        // Room for whatever it makes: zlib-rs 0.6.8 does not forget all of what was left over when
        // it is reset, and panics some messages later.
        let room_size = compressed_size_max(message.len() as u32) as usize;
        if self.output.len() > KEPT_SIZE_MAX && room_size <= KEPT_SIZE_MAX {
            self.output = Vec::new();
        }
        if self.output.len() < room_size {
            self.output.resize(room_size.next_power_of_two(), 0);
        }
        let room = &mut self.output[..room_size];
        let outcome = compressor.compress(message, room, FlushCompress::Sync);
        let (taken, made) = (compressor.total_in() as usize, compressor.total_out() as usize);
        let is_whole = outcome.is_ok() && taken == message.len() && made < room_size;
        if !is_whole || !room[..made].ends_with(&TAIL) {
            self.compressors[index] = None;
            return None;
        }
        Some(made - TAIL.len()).filter(|size| *size < message.len())
    }

    fn remember(&mut self, message: &[u8], window_bits: u8, size: Option<usize>) {
        let LastDeflated { message: kept, .. } = &mut self.last;
        kept.clear();
        if kept.capacity() > KEPT_SIZE_MAX {
            *kept = Vec::new();
        }
        kept.extend_from_slice(message);
        self.last.window_bits = window_bits;
        self.last.size = size;
    }
}

#[cfg(test)]
mod tests;
