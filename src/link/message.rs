//! What the processes say to each other. One value is one entry of a link session (`session.rs`).
//!
//! Every request is answered exactly once, with `to` naming its entry number in the session. The
//! request counts as acknowledged then and not before: "received" promises nothing.

use bytes::Bytes;

use super::record::{
    Body, ChannelState, ConversationName, Cursor, Failure, Id, Letter, Member, Message, Revocation,
    Subscription,
};
use super::wire::{wire_enum, wire_struct};

wire_struct! {
    /// A connection of one life of one edge shard. Checked on arrival: what was meant for an
    /// earlier life, or an earlier connection in the same slot, reaches nobody.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Address {
        /// The edge shard's incarnation, random at each start.
        pub incarnation: u64,
        pub slot: u32,
        pub generation: u32,
    }
}

wire_struct! {
    /// A session's number; of two sessions of one device the greater one wins.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct SessionNumber {
        /// The epoch of the sequencer that numbered it.
        pub epoch: u64,
        pub counter: u64,
    }
}

wire_enum! {
    /// Where a client sends to.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Target {
        1 = Conversation { name: ConversationName, },
        /// The direct conversation with this user.
        2 = User { user: Id, },
    }
}

wire_enum! {
    /// Which watermark an acknowledgement or a receipt moves. `Read` includes `Delivered`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Watermark {
        1 = Delivered,
        2 = Read,
    }
}

wire_enum! {
    /// Error codes of the client protocol that a backend decides.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Code {
        1 = BadRequest,
        2 = NotMember,
        3 = NoSuchConversation,
        4 = Forbidden,
        5 = RateLimited,
        /// Nothing is known to have happened; the client repeats it after `retry_ms`.
        6 = Unavailable,
        7 = Internal,
        /// The group has as many members as it may have.
        8 = GroupFull,
    }
}

wire_enum! {
    /// What is asked of a group.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum GroupChange {
        /// The owner is who asks.
        1 = Create { members: Vec<Id>, },
        2 = Add { members: Vec<Id>, },
        3 = Remove { members: Vec<Id>, },
        4 = Role { members: Vec<Id>, admin: bool, },
        5 = Leave,
        /// Nothing changes.
        6 = Info,
    }
}

wire_enum! {
    /// What is asked of a channel.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ChannelChange {
        /// The owner is who asks.
        1 = Create,
        2 = Subscribe,
        3 = Unsubscribe,
    }
}

wire_struct! {
    /// A group as its members see it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct GroupState {
        pub convo: ConversationName,
        /// `None`: everybody has left.
        pub owner: Option<Id>,
        /// Those beside the owner, by name.
        pub admins: Vec<Id>,
        /// All of them, the owner and the admins too, by name.
        pub members: Vec<Id>,
        /// Counts the changes: 1, 2, 3, ...
        pub version: u64,
    }
}

wire_struct! {
    /// How many of the other members have reached a seq.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Tally {
        pub count: u64,
        pub of: u64,
    }
}

wire_enum! {
    /// From an edge shard to the sequencer. All are requests unless marked *notice*: a notice is
    /// acknowledged when it was handled and has no answer.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToSequencer {
        /// A client wants a session. Answered by `Opened`, before its `welcome`. `ticket`: it comes
        /// with a ticket that this session was given; refused as `Forbidden` if the device was
        /// revoked since.
        1 = Open { address: Address, user: Id, device: Id, ticket: Option<SessionNumber>, },
        /// Notice: the connection still stood when `Opened` came; the session is live now, and an
        /// older one of the same device is replaced. `manual`: nothing is pushed before a `sync`.
        2 = Confirm {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            manual: bool,
        },
        /// Notice: a session that stood before this link session began.
        3 = Retell {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            manual: bool,
        },
        /// Notice: all sessions have been retold.
        4 = Retold,
        /// Notice: the connection is gone.
        5 = Close { address: Address, session: SessionNumber, user: Id, device: Id, },
        /// Answered by `Sent` once durable, or `Refused`.
        6 = Send { address: Address, user: Id, device: Id, target: Target, id: Id, body: Body, },
        /// Answered by `Done` once durable, or `Refused`.
        7 = Acknowledge {
            address: Address,
            user: Id,
            device: Id,
            convo: ConversationName,
            seq: u64,
            watermark: Watermark,
        },
        /// `convos: None`: everything behind the device's cursors. Answered by `Synced` or
        /// `Refused`.
        8 = Sync {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            convos: Option<Vec<(ConversationName, u64)>>,
        },
        /// Notice: the last push with `wants_room` has left for the socket; more may come.
        9 = Room { address: Address, session: SessionNumber, user: Id, device: Id, stream: u64, },
        /// `before: 0`: from the head. Answered by `Page` or `Refused`.
        11 = History {
            address: Address,
            user: Id,
            convo: ConversationName,
            before: u64,
            limit: u32,
        },
        /// Conversations of the user whose names follow `after` in byte order (`None`: from the
        /// first). Answered by `Conversations`.
        12 = Conversations {
            address: Address,
            user: Id,
            after: Option<ConversationName>,
            limit: u32,
        },
        /// Notice: a live push was not queued, the connection is behind. `stream` as the push had
        /// it.
        10 = Dropped {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            convo: ConversationName,
            seq: u64,
            stream: u64,
        },
        /// Answered by `Group`, a change once it is durable, or `Refused`. A change that was handed
        /// over and not answered is not asked again in a later session: nobody knows whether it
        /// happened, and what others did since would be undone.
        13 = Group { address: Address, user: Id, convo: ConversationName, change: GroupChange, },
        /// Answered by `Channel` once the change is durable, or `Refused`. Not asked again in a
        /// later session, like a change of a group.
        30 = Channel {
            address: Address,
            user: Id,
            convo: ConversationName,
            change: ChannelChange,
        },
        /// Notice: nothing was heard of the client for so long that it may be gone; or it was heard
        /// again.
        20 = Silent {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            is_silent: bool,
        },
        /// Notice: the connection is gone, and its client has not said farewell. It was heard last
        /// before so many milliseconds.
        21 = Lost {
            address: Address,
            session: SessionNumber,
            user: Id,
            device: Id,
            silent_ms: u64,
        },
        /// `revoke`: this one is to go first. Answered by `Devices`, a revocation once it is
        /// durable, or `Refused`.
        22 = Devices { address: Address, user: Id, revoke: Option<Id>, },
        /// Answered by `Privacy` once durable, or `Refused`.
        23 = Privacy { address: Address, user: Id, hidden: bool, },
        /// The shard is to hear of the presence of these users from now on. Answered by `Watched`.
        24 = Watch { address: Address, users: Vec<Id>, },
        /// Notice: nobody here looks at these users any more.
        25 = Unwatch { users: Vec<Id>, },
        /// Notice: they were watched before this link session began.
        26 = Rewatch { users: Vec<Id>, },
        /// Answered by `Done`, or `Refused`.
        27 = Typing { address: Address, user: Id, device: Id, convo: ConversationName, },
    }
}

wire_enum! {
    /// From the sequencer to an edge shard.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToEdge {
        1 = Opened { to: u64, session: SessionNumber, },
        2 = Sent {
            to: u64,
            convo: ConversationName,
            seq: u64,
            mid: u64,
            ts: u64,
            /// It had been accepted before; this is the first answer again.
            dup: bool,
        },
        3 = Refused { to: u64, code: Code, message: Id, retry_ms: u32, },
        4 = Done { to: u64, },
        /// A live message for connections of this shard.
        5 = Deliver { message: Message, targets: Vec<PushTarget>, },
        /// A piece of a backlog, in order, for one connection. With `wants_room` the edge says
        /// `Room` once it has been written to the socket.
        6 = Backlog {
            target: PushTarget,
            messages: Vec<Message>,
            wants_room: bool,
        },
        /// The end of a catching up. `to`: the `Sync` it answers; 0: nobody asked.
        7 = Synced { target: PushTarget, to: u64, heads: Vec<(ConversationName, u64)>, },
        8 = Receipt {
            target: PushTarget,
            convo: ConversationName,
            seq: u64,
            watermark: Watermark,
            by: Id,
            /// In a group.
            tally: Option<Tally>,
        },
        /// A newer session of the same device is confirmed open: `goaway` `replaced`, close 4001.
        9 = Replaced { target: PushTarget, },
        /// The epoch that the store granted, before anything else is said in it. An edge that has
        /// served a higher one refuses this sequencer: it was paused and has been superseded.
        10 = Serving { epoch: u64, },
        /// Oldest first; there are older ones if the first of them is above `first`, the first that
        /// the asker may see.
        11 = Page { to: u64, convo: ConversationName, messages: Vec<Message>, first: u64, },
        12 = Conversations { to: u64, rows: Vec<Overview>, },
        13 = Group { to: u64, group: GroupState, },
        30 = Channel { to: u64, convo: ConversationName, owner: Id, subscribers: u64, },
        /// As `Refused`, for a limit that was hit; `retry_ms` 0: another time is no better.
        31 = Limited { to: u64, code: Code, message: Id, limit: u64, retry_ms: u32, },
        /// Each with when it was last there, ms since 1970 UTC.
        20 = Devices { to: u64, devices: Vec<(Id, u64)>, },
        21 = Privacy { to: u64, hidden: bool, },
        /// The presence of everybody asked for.
        22 = Watched { to: u64, rows: Vec<Presence>, },
        /// News of users that somebody on this shard looks at.
        23 = Presence { rows: Vec<Presence>, },
        24 = Typing { convo: ConversationName, from: Id, targets: Vec<PushTarget>, },
        /// Tickets of these devices are void, up to the session that each names. Told of all that
        /// were revoked while a ticket may live, and of each when it is.
        25 = Revoked { revocations: Vec<Revocation>, },
        /// The device was revoked: close 4004.
        26 = Cut { target: PushTarget, },
        /// A message of this user was never acknowledged by any device of a recipient.
        40 = Failed { target: PushTarget, convo: ConversationName, seq: u64, id: Id, },
    }
}

wire_struct! {
    /// Whether a user is there.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Presence {
        pub user: Id,
        pub online: bool,
        /// When he was last there, ms since 1970 UTC; 0: never.
        pub last_seen: u64,
        /// Others are to take him for somebody who never was there.
        pub hidden: bool,
    }
}

wire_struct! {
    /// Whom a push is for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PushTarget {
        pub address: Address,
        pub session: SessionNumber,
        /// Counts the catchings-up of this session; a `Dropped` of an older one is void.
        pub stream: u64,
    }
}

wire_enum! {
    /// From the sequencer to the store.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToStore {
        /// A starting sequencer wants an epoch. Answered by `Granted`, once that is durable.
        1 = Acquire { incarnation: u64, },
        /// The store restarted; the holder of `epoch` goes on. Answered by `Resumed` or `Fenced`.
        2 = Resume { epoch: u64, incarnation: u64, },
        /// Answered by `Durable` or `Fenced`. `records`: `count` records one after the other, the
        /// first of which has position `first_lsn`. The same bytes at a position where they already
        /// are durable: `Durable` again.
        3 = Append { epoch: u64, first_lsn: u64, count: u32, records: Bytes, },
        /// Answered by `Conversation`.
        4 = LoadConversation { convo: ConversationName, },
        /// Answered by `User`. `after`: empty, or the `next` of the piece before.
        5 = LoadUser { user: Id, after: Bytes, },
        /// Answered by `Found`.
        6 = Lookup { convo: ConversationName, user: Id, id: Id, },
        /// Messages `first..=last` of a conversation, as many as fit `size_max` bytes but at least
        /// one that exists. Answered by `Messages`, as of everything durable when the request came.
        7 = Range { convo: ConversationName, first: u64, last: u64, size_max: u32, },
        /// Records from `first_lsn` on, at most about `size_max` bytes, at least one that exists.
        /// Answered by `Records`.
        8 = ReadLog { first_lsn: u64, size_max: u32, },
        /// The newest `limit` messages below `before`, as many as fit `size_max` bytes but at least
        /// one that exists. Answered by `Messages`, oldest first.
        9 = History { convo: ConversationName, before: u64, limit: u32, size_max: u32, },
        /// Answered by `Overviews`, one row per name, in the order asked.
        10 = Overview { user: Id, convos: Vec<ConversationName>, },
        /// Answered by `Members`. `after`: empty, or the `next` of the piece before.
        11 = LoadMembers { convo: ConversationName, after: Bytes, },
        /// Answered by `Watermarks`.
        12 = LoadWatermarks { convo: ConversationName, },
        /// Answered by `Channel`.
        30 = LoadChannel { convo: ConversationName, },
        /// Devices revoked at `since_ms` or later. Answered by `Revoked`. `after`: empty, or the
        /// `next` of the piece before.
        20 = LoadRevoked { since_ms: u64, after: Bytes, },
        /// Who has had something in his inbox for `age_ms` of service or longer, `now_ms` being the
        /// service time: a stretch of the users from `after` on. Answered by `Overdue`.
        40 = FindOverdue { after: Bytes, now_ms: u64, age_ms: u64, },
        /// Dead letters from `after` on, of this user and in this conversation if they are given.
        /// Answered by `DeadLetters`.
        41 = ListDead { user: Option<Id>, convo: Option<ConversationName>, after: Bytes, },
    }
}

wire_enum! {
    /// From the store to the sequencer: each answers the request that is entry `to`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum FromStore {
        1 = Granted {
            to: u64,
            epoch: u64,
            /// The next free position, after the epoch's own record.
            next_lsn: u64,
            /// The last durable `FannedOut`.
            fanned_out: u64,
            /// The last message's, so that neither falls.
            mid: u64,
            ts: u64,
            /// Edge shards present, by the log.
            edges: Vec<Id>,
            /// The last `ServiceTime`.
            service_ms: u64,
        },
        2 = Resumed { to: u64, next_lsn: u64, },
        /// The epoch is no longer the highest, or the position is taken by other bytes: drop all
        /// speculative state and acquire anew.
        3 = Fenced { to: u64, epoch: u64, },
        4 = Durable { to: u64, next_lsn: u64, },
        5 = Conversation {
            to: u64,
            /// Highest seq; 0: no message was ever accepted.
            head: u64,
            /// [`fingerprint`](super::fingerprint) of every (user, id) ever accepted in it ...
            fingerprints: Vec<u64>,
            /// ... unless there are too many: then a miss proves nothing and `Lookup` must be
            /// asked.
            complete: bool,
        },
        /// A piece of what is kept of a user, as much as one entry holds. `next`: empty, or where
        /// the next piece begins, for the store alone to understand; good for any life of it.
        6 = User {
            to: u64,
            /// Each with when it was last there, as far as the log says.
            devices: Vec<(Id, u64)>,
            cursors: Vec<Cursor>,
            /// His rows in the groups where he is or was a member.
            groups: Vec<(ConversationName, Member)>,
            /// The channels to which he is or was subscribed.
            channels: Vec<(ConversationName, Subscription)>,
            revoked: Vec<Revocation>,
            /// He does not want his presence told.
            hidden: bool,
            /// Up to where his inbox was emptied into the dead letters.
            dead: Vec<(ConversationName, u64)>,
            /// Of his own messages.
            failures: Vec<Failure>,
            next: Bytes,
        },
        7 = Found { to: u64, message: Option<Accepted>, },
        8 = Messages { to: u64, messages: Vec<Message>, },
        9 = Records { to: u64, records: Bytes, count: u32, },
        /// The store cannot do it now (disk full, read error): ask again.
        10 = Unavailable { to: u64, },
        11 = Overviews { to: u64, rows: Vec<Overview>, },
        /// A piece of a group's members, those who left too; `version` 0: there is no such group.
        12 = Members { to: u64, version: u64, members: Vec<Member>, next: Bytes, },
        /// How far everybody in a group has come, and of its last messages seq and sender: the
        /// [`fingerprint`](super::fingerprint) of his name and no id.
        13 = Watermarks { to: u64, rows: Vec<Reached>, senders: Vec<(u64, u64)>, },
        /// `None`: there is no such channel.
        30 = Channel { to: u64, channel: Option<ChannelState>, subscribers: u64, },
        20 = Revoked { to: u64, rows: Vec<Revocation>, next: Bytes, },
        /// `next`: empty, or where the next stretch begins.
        40 = Overdue { to: u64, rows: Vec<OverdueInbox>, next: Bytes, },
        41 = DeadLetters { to: u64, rows: Vec<DeadLetter>, next: Bytes, },
    }
}

wire_struct! {
    /// One conversation as one of its members sees it in a list.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Overview {
        pub convo: ConversationName,
        pub head: u64,
        /// The member's own watermarks.
        pub delivered: u64,
        pub read: u64,
        /// Messages of others above `read`.
        pub unread: u64,
        /// The highest seqs that every other member has reached.
        pub others_delivered: u64,
        pub others_read: u64,
    }
}

wire_struct! {
    /// The part of a user's inbox in one conversation that is too old.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct OverdueInbox {
        pub user: Id,
        pub convo: ConversationName,
        /// The last seq of it.
        pub last: u64,
        /// What is in it from others.
        pub letters: Vec<Letter>,
    }
}

wire_struct! {
    /// A dead letter.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct DeadLetter {
        pub user: Id,
        pub convo: ConversationName,
        pub seq: u64,
        pub from: Id,
        pub id: Id,
        /// Service time at which it died.
        pub at: u64,
    }
}

wire_struct! {
    /// The watermarks of a member, not below what he began after.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Reached {
        pub user: Id,
        pub delivered: u64,
        pub read: u64,
    }
}

wire_struct! {
    /// The first answer to a send, to be given again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Accepted {
        pub seq: u64,
        pub mid: u64,
        pub ts: u64,
    }
}

impl FromStore {
    /// The entry that this answers.
    pub fn to(&self) -> u64 {
        use FromStore::*;
        match self {
            Granted { to, .. } | Resumed { to, .. } | Fenced { to, .. } | Durable { to, .. } => *to,
            Conversation { to, .. } | User { to, .. } | Found { to, .. } => *to,
            Messages { to, .. } | Records { to, .. } | Overviews { to, .. } => *to,
            Members { to, .. } | Watermarks { to, .. } | Channel { to, .. } => *to,
            Revoked { to, .. } => *to,
            Overdue { to, .. } | DeadLetters { to, .. } => *to,
            Unavailable { to } => *to,
        }
    }
}
