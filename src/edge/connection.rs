//! One client connection as plain data: what it is doing, and what waits to be sent.

use crate::framer::frame::{encode_compressed_frame, frame_size};
use crate::framer::{Framer, Opcode, encode_close, encode_frame};

use super::application::End;
use crate::limits::SILENT_MS;

/// From accept to the end of the request, in milliseconds.
pub const HANDSHAKE_MS: u64 = 10_000;
/// From the close frame's leaving to the peer's end of stream, in milliseconds.
pub const CLOSE_MS: u64 = 1_000;
/// A send that takes longer makes no progress, in milliseconds. Sends are small enough
/// ([`SEND_SIZE_MAX`]) for the slowest network in use: 64 KiB in 20 s are 26 kbit/s.
pub const PROGRESS_MS: u64 = 20_000;
/// Bytes of one send; a longer queue leaves in several.
pub const SEND_SIZE_MAX: usize = 64 * 1024;
/// Bytes of pings and pongs that wait for a slow peer.
pub const CONTROL_QUEUE_SIZE_MAX: usize = 16 * 1024;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its request is arriving.
    Request,
    /// A WebSocket.
    Open,
    /// The last bytes are queued or gone; what arrives is read and discarded, because closing a
    /// socket with unread input resets it, which may destroy what was sent last.
    Closing,
    /// To be taken off its slot at the end of this turn.
    Gone,
}

/// What the bytes of a closing connection's peer mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// Frames go on: the peer's close frame ends the connection.
    Frames,
    /// The stream makes no sense any more (a violation), but a close frame that arrives by itself
    /// is recognised.
    CloseFrame,
    /// Nothing that arrives matters; the end of the stream does.
    EndOfStream,
    /// Nothing is expected: the socket closes as soon as all is sent.
    Nothing,
}

/// A slot of the shard's slab.
pub struct Connection {
    pub reading: Reading,
    /// Exists while something is queued or under way.
    pub outbound: Option<Box<Outbound>>,
    /// Request: since when. Open: when a frame was last heard. Closing: when it began, then when
    /// all was sent.
    pub since: Moment,
    /// When the wheel looks at this connection next.
    pub timer: Moment,
    /// What the accept yielded ([`crate::ring::Ring::accepted`]).
    pub socket: u32,
    pub phase: Phase,
    pub listening: Listening,
    pub flags: Flags,
}

/// The part of a request that has arrived.
pub struct ArrivingRequest {
    pub bytes: Vec<u8>,
    /// Head and body together, once the head is known.
    pub size_needed: Option<usize>,
}

impl ArrivingRequest {
    /// All memory held.
    pub fn held_size(&self) -> usize {
        size_of::<ArrivingRequest>() + self.bytes.capacity()
    }
}

/// A slot, its generation in the slab and its entry on the wheel (12 bytes). What the router keeps
/// (48 bytes) and the ring (8) comes to it: an idle connection is to cost at most 128 bytes.
const _: () = assert!(size_of::<Option<Connection>>() <= 48);

/// What has arrived and is not done with: one of these.
pub enum Reading {
    /// The part of a request that earlier receives brought.
    Request(Option<Box<ArrivingRequest>>),
    Frames(Framer),
}

impl Reading {
    pub fn request(&self) -> Option<&ArrivingRequest> {
        match self {
            Reading::Request(request) => request.as_deref(),
            Reading::Frames(_) => None,
        }
    }

    pub fn request_mut(&mut self) -> Option<&mut Option<Box<ArrivingRequest>>> {
        match self {
            Reading::Request(request) => Some(request),
            Reading::Frames(_) => None,
        }
    }

    /// Takes the framer out, to be put back; one that takes nothing if there is none.
    pub fn take_framer(&mut self) -> Framer {
        match self {
            Reading::Request(_) => Framer::default(),
            Reading::Frames(framer) => std::mem::take(framer),
        }
    }

    /// Bytes held of frames.
    pub fn frames_size(&self) -> usize {
        match self {
            Reading::Request(_) => 0,
            Reading::Frames(framer) => framer.held_size(),
        }
    }
}

/// A time in monotonic milliseconds, in 4 bytes: exact for 49 days, and then begun anew. Whoever
/// reads one knows the time now, which is less than half of that away from it: the wheel looks at
/// every connection more often, and what it finds too old to tell is long due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u32);

impl Moment {
    pub fn at_ms(ms: u64) -> Moment {
        Moment(ms as u32)
    }

    /// No time that is ever waited for, seen from `now_ms`.
    pub fn far(now_ms: u64) -> Moment {
        Moment::at_ms(now_ms + i32::MAX as u64)
    }

    /// In monotonic milliseconds, seen from `now_ms`.
    pub fn ms(self, now_ms: u64) -> u64 {
        let ahead = self.0.wrapping_sub(now_ms as u32) as i32;
        now_ms.saturating_add_signed(ahead.into())
    }
}

/// What the kernel waits for on a connection's socket. See `tiers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Armed {
    #[default]
    Nothing,
    /// A poll: the idle tier.
    Poll,
    /// A receive that yields once.
    Once,
    /// A multishot receive: the busy tier.
    Stream,
}

/// What was heard of the peer lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    #[default]
    Heard,
    /// A ping is out and nothing was heard since.
    Pinged,
    /// The same, for so long that the application knows.
    Silent,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    pub armed: Armed,
    /// Of the busy tier.
    pub is_busy: bool,
    /// Receives one soon after the other.
    pub run: u8,
    /// Listed to be flushed at the end of this turn.
    pub is_dirty: bool,
    pub life: Life,
    /// The whole close may take [`CLOSE_MS`], sending included.
    pub is_cut: bool,
    /// The peer's stream has ended.
    pub is_peer_done: bool,
    /// The socket is closed with RST.
    pub is_reset: bool,
    /// It was not let in: see [`super::admission`].
    pub is_refused: bool,
    /// The logarithm of the window for compressed messages to this client; 0 without compression.
    pub deflate_window_bits: u8,
}

/// The outbound queue. Invariant: `queue[..taken]` has left, and the next `frame_left` bytes belong
/// to a frame of which a part has left.
#[derive(Default)]
pub struct Outbound {
    /// An HTTP response, if any, then data frames and, at last, the close frame.
    queue: Vec<u8>,
    taken: usize,
    frame_left: usize,
    /// Pings and pongs, which leave before the next frame of the queue.
    control: Vec<u8>,
    /// Bytes under way.
    pub sending: usize,
    /// What they lie in, which the ring has.
    pub sending_capacity: usize,
    /// What the ledger knows of this queue.
    pub counted: usize,
    /// When the send under way was begun. In monotonic milliseconds.
    pub sending_since_ms: u64,
    /// The application wants to hear when the queue is empty.
    pub is_watched: bool,
}

impl Outbound {
    /// Bytes that are queued or under way.
    pub fn size(&self) -> usize {
        self.waiting() + self.sending
    }

    /// Bytes that no send carries yet.
    pub fn waiting(&self) -> usize {
        self.control.len() + self.queue.len() - self.taken
    }

    /// Memory held beside the struct itself, without what the ring has.
    pub fn capacity(&self) -> usize {
        self.queue.capacity() + self.control.capacity()
    }

    /// All memory held.
    pub fn held_size(&self) -> usize {
        size_of::<Outbound>() + self.capacity() + self.sending_capacity
    }

    /// Gives back what is held beyond what waits.
    pub fn shrink(&mut self) {
        self.queue.drain(..self.taken);
        self.taken = 0;
        self.queue.shrink_to_fit();
        self.control.shrink_to_fit();
    }

    /// Queues a data frame.
    pub fn push_data(&mut self, opcode: Opcode, payload: &[u8]) {
        encode_frame(opcode, payload, &mut self.queue);
    }

    /// Queues a data frame whose payload is compressed.
    pub fn push_compressed(&mut self, opcode: Opcode, payload: &[u8]) {
        encode_compressed_frame(opcode, payload, &mut self.queue);
    }

    /// Queues a ping or pong. Of unsent ones beyond [`CONTROL_QUEUE_SIZE_MAX`] only the last is
    /// kept (RFC 6455 5.5.3 allows it for pongs), so that a peer that pings and never reads costs
    /// little.
    pub fn push_control(&mut self, opcode: Opcode, payload: &[u8]) {
        if self.control.len() + payload.len() > CONTROL_QUEUE_SIZE_MAX {
            self.control.clear();
        }
        encode_frame(opcode, payload, &mut self.control);
    }

    /// Queues the last frame.
    pub fn push_close(&mut self, code: Option<u16>, reason: &str) {
        encode_close(code, reason, &mut self.queue);
    }

    /// Queues an HTTP response, which comes before any frame.
    pub fn push_response(&mut self, response: &[u8]) {
        self.queue.extend_from_slice(response);
        self.frame_left += response.len();
    }

    /// Throws away what no send carries yet. False when that cuts a frame: nothing may follow.
    pub fn drop_waiting(&mut self) -> bool {
        let is_at_frame = self.frame_left == 0;
        self.queue.clear();
        self.control.clear();
        (self.taken, self.frame_left) = (0, 0);
        is_at_frame
    }

    /// Takes back what a send that was cancelled had not sent: it leaves before anything else.
    pub fn put_back(&mut self, mut unsent: Vec<u8>) {
        self.sending = 0;
        if !unsent.is_empty() {
            self.frame_left += unsent.len();
            unsent.extend_from_slice(&self.queue[self.taken..]);
            (self.queue, self.taken) = (unsent, 0);
        }
    }

    /// What no send carries: the queue, how many bytes of it must not be cut, the control frames.
    pub fn parts(&self) -> (&[u8], usize, &[u8]) {
        (&self.queue[self.taken..], self.frame_left, &self.control)
    }

    /// A queue of such parts.
    pub fn of_parts(queue: Vec<u8>, frame_left: usize, control: Vec<u8>) -> Outbound {
        let frame_left = frame_left.min(queue.len());
        Outbound { queue, frame_left, control, ..Outbound::default() }
    }

    /// Takes the bytes of the next send out, at most [`SEND_SIZE_MAX`] beside the control frames.
    /// `spare` is empty; it takes the place of what is taken whole.
    pub fn take_next(&mut self, mut spare: Vec<u8>) -> Vec<u8> {
        if self.waiting() == self.control.len() {
            return std::mem::replace(&mut self.control, spare);
        }
        if self.control.is_empty() && self.taken == 0 && self.queue.len() <= SEND_SIZE_MAX {
            self.frame_left = 0;
            return std::mem::replace(&mut self.queue, spare);
        }
        self.take_rest_of_frame(&mut spare);
        if self.frame_left == 0 {
            spare.append(&mut self.control);
        }
        while self.taken < self.queue.len() && spare.len() < SEND_SIZE_MAX {
            self.frame_left = frame_size(&self.queue[self.taken..]);
            self.take_rest_of_frame(&mut spare);
        }
        self.compact();
        spare
    }

    fn take_rest_of_frame(&mut self, piece: &mut Vec<u8>) {
        let size = self.frame_left.min(SEND_SIZE_MAX.saturating_sub(piece.len()));
        let end = self.taken + size;
        piece.extend_from_slice(&self.queue[self.taken..end]);
        self.taken = end;
        self.frame_left -= size;
    }

    /// Drops what has left once it is the greater part: each byte is moved at most once.
    fn compact(&mut self) {
        if self.taken == self.queue.len() {
            self.queue.clear();
            self.taken = 0;
        } else if self.taken > self.queue.len() / 2 {
            self.queue.drain(..self.taken);
            self.taken = 0;
        }
    }
}

/// How long an open connection may be silent, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Before it is pinged; twice that ends it.
    pub heartbeat_ms: u64,
    /// Before it leaves the busy tier.
    pub quiet_ms: u64,
}

/// What to do with a connection whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this time, in monotonic milliseconds.
    At(u64),
    /// Close the socket, with RST.
    Abandon,
    /// Close the socket: the discard period is over.
    Finish,
    /// Ping.
    Ping,
    /// Tell the application that nothing was heard for long.
    Silence,
    /// Leave the busy tier.
    Calm,
    /// Close with a reason.
    Cut(End),
}

impl Connection {
    /// What is due at `now_ms`.
    pub fn due(&self, now_ms: u64, pace: Pace) -> Due {
        let since_ms = self.since.ms(now_ms);
        match self.phase {
            Phase::Request => after(now_ms, since_ms + HANDSHAKE_MS, Due::Abandon),
            Phase::Open => self.due_open(now_ms, pace),
            Phase::Closing => match &self.outbound {
                None => after(now_ms, since_ms + CLOSE_MS, Due::Finish),
                Some(_) if self.flags.is_cut => after(now_ms, since_ms + CLOSE_MS, Due::Abandon),
                Some(_) => after(now_ms, since_ms + PROGRESS_MS, Due::Abandon),
            },
            Phase::Gone => Due::At(u64::MAX),
        }
    }

    fn due_open(&self, now_ms: u64, pace: Pace) -> Due {
        let since_ms = self.since.ms(now_ms);
        let heartbeat = if self.flags.life != Life::Heard {
            let cut = after(now_ms, since_ms + 2 * pace.heartbeat_ms, Due::Cut(End::Silent));
            let silence = match self.flags.life == Life::Silent {
                true => Due::At(u64::MAX),
                false => after(now_ms, since_ms + SILENT_MS, Due::Silence),
            };
            cut.or(silence)
        } else {
            after(now_ms, since_ms + pace.heartbeat_ms, Due::Ping)
        };
        let calm = match self.flags.is_busy {
            true => after(now_ms, since_ms.saturating_add(pace.quiet_ms), Due::Calm),
            false => Due::At(u64::MAX),
        };
        let sending = self.outbound.as_ref().filter(|outbound| outbound.sending > 0);
        let slow = sending.map_or(Due::At(u64::MAX), |outbound| {
            after(now_ms, outbound.sending_since_ms + PROGRESS_MS, Due::Cut(End::Slow))
        });
        slow.or(calm).or(heartbeat)
    }
}

impl Due {
    /// This one if it is due by now, else the other, else the earlier of both.
    fn or(self, other: Due) -> Due {
        match (self, other) {
            (Due::At(one_ms), Due::At(other_ms)) => Due::At(one_ms.min(other_ms)),
            (Due::At(_), other) => other,
            (due, _) => due,
        }
    }
}

fn after(now_ms: u64, at_ms: u64, due: Due) -> Due {
    if now_ms >= at_ms { due } else { Due::At(at_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_from_near_it_also_where_its_count_begins_anew() {
        for begun in [0_u64, 1 << 31, 1 << 32, 7 << 32] {
            let now_ms = begun + 40_000_000;
            for ms in [begun, begun + 39_999_999, now_ms, now_ms + 20_000, now_ms + 3_600_000] {
                assert_eq!(Moment::at_ms(ms).ms(now_ms), ms);
            }
            let before = begun.saturating_sub(1);
            assert_eq!(Moment::at_ms(before).ms(begun), before);
            assert_eq!(Moment::far(begun).ms(begun), begun + i32::MAX as u64);
        }
    }

    fn drain(outbound: &mut Outbound) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        while outbound.waiting() > 0 {
            pieces.push(outbound.take_next(Vec::new()));
        }
        pieces
    }

    #[test]
    fn control_frames_leave_ahead_of_data() {
        let mut outbound = Outbound::default();
        outbound.push_data(Opcode::Text, b"data");
        outbound.push_control(Opcode::Pong, b"");
        assert_eq!(drain(&mut outbound), [b"\x8a\x00\x81\x04data"]);
        outbound.push_control(Opcode::Ping, b"");
        assert_eq!(drain(&mut outbound), [b"\x89\x00"]);
    }

    #[test]
    fn a_long_queue_leaves_in_order_and_control_frames_cut_no_frame() {
        let mut outbound = Outbound::default();
        let mut whole = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        outbound.push_response(&whole);
        for size in [200_000, 10, 70_000, 0] {
            let payload: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            outbound.push_data(Opcode::Binary, &payload);
            encode_frame(Opcode::Binary, &payload, &mut whole);
        }
        let first = outbound.take_next(Vec::new());
        outbound.push_control(Opcode::Ping, b"ping");
        let mut left = first;
        for piece in drain(&mut outbound) {
            assert!(!piece.is_empty() && piece.len() <= SEND_SIZE_MAX + 6);
            left.extend(piece);
        }
        let after_first_frame = 36 + 10 + 200_000;
        let ping: Vec<u8> = left.drain(after_first_frame..after_first_frame + 6).collect();
        assert_eq!(ping, b"\x89\x04ping");
        assert!(left == whole, "the rest is in order");
    }

    #[test]
    fn what_waits_can_be_dropped_only_between_frames() {
        let mut outbound = Outbound::default();
        outbound.push_data(Opcode::Binary, &[0; 100_000]);
        outbound.take_next(Vec::new());
        assert!(!outbound.drop_waiting());
        outbound.push_data(Opcode::Binary, b"whole");
        outbound.take_next(Vec::new());
        assert!(outbound.drop_waiting());
    }

    #[test]
    fn what_a_cancelled_send_left_leaves_first_and_whole() {
        let mut outbound = Outbound::default();
        outbound.push_data(Opcode::Binary, &[1; 300]);
        let mut sent = outbound.take_next(Vec::new());
        let whole = sent.clone();
        outbound.push_data(Opcode::Text, b"next");
        outbound.push_control(Opcode::Ping, b"");
        let unsent = sent.split_off(100);
        outbound.put_back(unsent);
        let (queue, frame_left, control) = outbound.parts();
        let mut other = Outbound::of_parts(queue.to_vec(), frame_left, control.to_vec());
        for queue in [&mut outbound, &mut other] {
            let left = drain(queue).concat();
            assert_eq!([&sent[..], &left].concat(), [&whole[..], b"\x89\x00\x81\x04next"].concat());
        }
    }

    #[test]
    fn unsent_pongs_are_bounded() {
        let mut outbound = Outbound::default();
        for _ in 0..100_000 {
            outbound.push_control(Opcode::Pong, &[1; 125]);
        }
        assert!(outbound.waiting() <= CONTROL_QUEUE_SIZE_MAX + 127);
    }
}
