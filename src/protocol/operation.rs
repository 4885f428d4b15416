//! What clients ask and what they are told, whatever subprotocol carries it.
//!
//! An [`Operation`] is valid by construction: its ids are within bounds, its conversation names are
//! canonical, its body fits. What only the sequencer can know (membership, heads) is not decided
//! here.

use crate::limits::{CONVERSATION_NAME_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
pub use crate::link::message::Overview as Standing;
use crate::link::message::{
    ChannelChange, Code, GroupChange, GroupState, Tally, Target, Watermark,
};
use crate::link::record::{Body, ConversationName, Id, Message};

/// Every integer of the protocol but `mid` lies within plus and minus this: 2^53 - 1, what an IEEE
/// double (a JavaScript number) holds exactly.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

/// The largest `limit` of a `history` or `convos`.
pub const PAGE_COUNT_MAX: u32 = 200;
/// The `limit` of a `history` that has none.
pub const HISTORY_COUNT_DEFAULT: u32 = 50;
/// The `limit` of a `convos` that has none.
pub const CONVERSATIONS_COUNT_DEFAULT: u32 = PAGE_COUNT_MAX;

// JSON escapes `"` and `\` alone in a name, each by one byte more; 256 bytes hold the numbers.
const _: () = assert!(
    PAGE_COUNT_MAX as usize * (2 * CONVERSATION_NAME_SIZE_MAX + 256) < SERVER_FRAME_SIZE_MAX
);

/// One frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's `ref`, which its answer repeats.
    pub reference: Option<i64>,
    pub operation: Operation,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Send {
        target: Target,
        id: Id,
        body: Body,
    },
    Acknowledge {
        convo: ConversationName,
        seq: u64,
        watermark: Watermark,
    },
    /// `None`: everything behind this device's cursors.
    Sync {
        convos: Option<Vec<(ConversationName, u64)>>,
    },
    /// The `limit` newest messages of a conversation, below `before` or from its head.
    History {
        convo: ConversationName,
        /// Exclusive, at least 1.
        before: Option<u64>,
        /// 1 to [`PAGE_COUNT_MAX`].
        limit: u32,
    },
    /// The user's conversations by name bytes, those after `after`.
    Conversations {
        after: Option<ConversationName>,
        /// 1 to [`PAGE_COUNT_MAX`].
        limit: u32,
    },
    /// A group is asked about, or its membership is to change.
    Group {
        convo: ConversationName,
        change: GroupChange,
    },
    /// A channel is made, or the user's subscription to it changes.
    Channel {
        convo: ConversationName,
        change: ChannelChange,
    },
    /// The user's devices.
    Devices,
    /// One of the user's devices is to go, with all that is kept of it.
    Revoke {
        device: Id,
    },
    /// Whether others see when the user is there.
    Privacy {
        hidden: bool,
    },
    /// The presence of these users is to be told, now and whenever it changes. Each comes once.
    PresenceSubscribe {
        users: Vec<Id>,
    },
    PresenceUnsubscribe {
        users: Vec<Id>,
    },
    /// The user is writing something in a conversation.
    Typing {
        convo: ConversationName,
    },
    Ping,
    /// An operation of the protocol that this version knows by name only.
    Later(&'static str),
}

/// Operations that the protocol names and this version answers `unknown_op`.
pub const LATER: [&str; 1] = ["convo.set"];

/// A frame that is no operation: what its `error` says. The connection stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The frame's `ref`, whenever that could be read as an integer.
    pub reference: Option<i64>,
    /// The `id` of a `send`, whenever that could be read as text; it may be out of bounds.
    pub id: Option<Id>,
    pub code: ErrorCode,
    pub message: &'static str,
    /// The bound that was passed.
    pub limit: Option<u64>,
}

/// The codes of `error` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    BadRequest,
    UnknownOperation,
    NotMember,
    NoSuchConversation,
    TooLarge,
    RateLimited,
    GroupFull,
    Forbidden,
    Unavailable,
    Internal,
}

impl ErrorCode {
    /// As it stands in the frame.
    pub fn text(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::UnknownOperation => "unknown_op",
            ErrorCode::NotMember => "not_member",
            ErrorCode::NoSuchConversation => "no_such_convo",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::GroupFull => "group_full",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }
}

impl From<Code> for ErrorCode {
    fn from(code: Code) -> ErrorCode {
        match code {
            Code::BadRequest => ErrorCode::BadRequest,
            Code::NotMember => ErrorCode::NotMember,
            Code::NoSuchConversation => ErrorCode::NoSuchConversation,
            Code::Forbidden => ErrorCode::Forbidden,
            Code::RateLimited => ErrorCode::RateLimited,
            Code::Unavailable => ErrorCode::Unavailable,
            Code::Internal => ErrorCode::Internal,
            Code::GroupFull => ErrorCode::GroupFull,
        }
    }
}

/// Why a connection is about to be closed, and with which code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    Drain,
    Replaced,
    Overload,
    Slow,
}

impl Goodbye {
    /// The `reason` of the `goaway` frame and of the close frame after it.
    pub fn reason(self) -> &'static str {
        match self {
            Goodbye::Drain => "drain",
            Goodbye::Replaced => "replaced",
            Goodbye::Overload => "overload",
            Goodbye::Slow => "slow",
        }
    }

    /// The WebSocket close code after the `goaway` frame.
    pub fn close_code(self) -> u16 {
        match self {
            Goodbye::Drain => 1001,
            Goodbye::Replaced => 4001,
            Goodbye::Overload => 1013,
            Goodbye::Slow => 4003,
        }
    }
}

/// One frame to a client.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Welcome {
        user: &'a str,
        device: &'a str,
        session: &'a str,
        heartbeat_ms: u64,
        ticket: &'a str,
        server: &'a str,
    },
    Sent {
        reference: Option<i64>,
        convo: &'a str,
        id: &'a str,
        seq: u64,
        mid: u64,
        /// Milliseconds since 1970 UTC.
        ts: u64,
        dup: bool,
    },
    Message(&'a Message),
    Receipt {
        convo: &'a str,
        seq: u64,
        watermark: Watermark,
        by: &'a str,
        /// In a group: how many of the members beside the receiver have come this far.
        tally: Option<Tally>,
    },
    Group {
        reference: Option<i64>,
        group: &'a GroupState,
    },
    Channel {
        reference: Option<i64>,
        convo: &'a str,
        owner: &'a str,
        /// How many there are.
        subscribers: u64,
    },
    Synced {
        reference: Option<i64>,
        heads: &'a [(ConversationName, u64)],
    },
    /// The newest messages last. An encoder leaves out the oldest ones, and then says `more`, when
    /// all of them together would not fit a frame.
    Page {
        reference: Option<i64>,
        convo: &'a str,
        messages: &'a [Message],
        /// Older ones exist.
        more: bool,
    },
    Conversations {
        reference: Option<i64>,
        convos: &'a [Standing],
    },
    /// Each with when it was last there, in milliseconds since 1970 UTC.
    Devices {
        reference: Option<i64>,
        devices: &'a [(Id, u64)],
    },
    Privacy {
        reference: Option<i64>,
        hidden: bool,
    },
    Presence {
        reference: Option<i64>,
        user: &'a str,
        online: bool,
        /// Milliseconds since 1970 UTC.
        last_seen: Option<u64>,
    },
    Typing {
        convo: &'a str,
        from: &'a str,
    },
    Pong {
        reference: Option<i64>,
        /// Milliseconds since 1970 UTC.
        ts: u64,
    },
    /// No device of a recipient acknowledged the message for so long that it is a dead letter.
    Failed {
        convo: &'a str,
        seq: u64,
        id: &'a str,
    },
    Goaway {
        goodbye: Goodbye,
        /// When this client is to come back; absent when it is not to.
        reconnect_ms: Option<u64>,
    },
    Behind,
    Error {
        reference: Option<i64>,
        id: Option<&'a str>,
        code: ErrorCode,
        message: &'a str,
        limit: Option<u64>,
        retry_ms: Option<u64>,
    },
}
