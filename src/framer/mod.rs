//! RFC 6455 by hand and without I/O: bytes in, requests, messages and violations out.
//!
//! - [`handshake`]: the HTTP/1.1 request that asks for the upgrade, and the answers to it.
//! - [`frame`]: the frame header, both ways; [`mask`]: unmasking in place; [`utf8`]: text across
//!   fragments; [`deflate`]: messages under permessage-deflate (RFC 7692).
//! - [`messages`]: [`Framer`], the per-connection state that turns received bytes into [`Event`]s.
//!
//! A whole unfragmented frame is handed out in place in the receive buffer. Only what the end of a
//! buffer cuts, and fragments, are copied, into a buffer that exists only while it is needed.

pub mod deflate;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod messages;
pub mod utf8;

pub use deflate::{Deflater, Inflater};
pub use frame::{Opcode, encode_close, encode_frame};
pub use handshake::{DeflateAgreement, Refusal, Request, Upgrade};
pub use messages::{ArrivingState, Event, Framer, FramerState, Input, PartialState};

/// The peer broke the protocol; the connection ends with [`Violation::close_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a reserved bit is set and no extension that was agreed uses it there")]
    ReservedBits,
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    #[error("a control frame is fragmented")]
    ControlFragmented,
    #[error("a ping or pong is longer than 125 bytes")]
    ControlTooLong,
    #[error("a client's frame is not masked")]
    Unmasked,
    #[error("a length is not written in the fewest bytes")]
    LengthNotMinimal,
    #[error("a length has its highest bit set")]
    LengthOutOfRange,
    #[error("a continuation frame continues nothing")]
    NothingToContinue,
    #[error("a new message begins inside a fragmented one")]
    MessageUnfinished,
    #[error("a close frame has a payload of one byte")]
    CloseSize,
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    #[error("a close frame is longer than 125 bytes")]
    CloseTooLong,
    #[error("a close reason is not UTF-8")]
    CloseReason,
    #[error("a text is not UTF-8")]
    NotUtf8,
    #[error("a message is larger than this server takes")]
    TooBig,
    #[error("a compressed message cannot be inflated")]
    NotDeflate,
}

impl Violation {
    /// The code of the close frame that answers it (RFC 6455 7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Violation::NotUtf8 | Violation::CloseReason | Violation::NotDeflate => 1007,
            Violation::TooBig => 1009,
            _ => 1002,
        }
    }

    /// Whether it is in a close frame: the peer has said its last, and will not answer ours.
    pub fn is_in_close_frame(self) -> bool {
        use Violation::*;
        matches!(self, CloseSize | CloseTooLong | CloseCode(_) | CloseReason)
    }
}
