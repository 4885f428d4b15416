//! The records of the commit log: what the sequencer decides and the store keeps.
//!
//! Every record has a position, its **lsn**: 1, 2, 3, ... over the whole log, without gap. A batch
//! is a run of records that becomes durable together.

use std::rc::Rc;

use bytes::Bytes;

use super::wire::{wire_enum, wire_struct};

/// The name of a user, device, group or client message: see `limits::ID_SIZE_MAX`.
pub type Id = Rc<str>;
/// The name of a conversation.
pub type ConversationName = Rc<str>;

/// The pseudo-device of a user. It holds his marker while he has no device, until the first one
/// inherits it, and how far the devices had come that were revoked. No real one has an empty id.
pub const NO_DEVICE: &str = "";

wire_struct! {
    /// A message in its place in its conversation.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Message {
        pub convo: ConversationName,
        /// 1, 2, 3, ... within the conversation.
        pub seq: u64,
        /// Snowflake: milliseconds since 2024 in the upper 42 bits, then a counter.
        pub mid: u64,
        /// When it was accepted, ms since 1970 UTC; never falling along the log.
        pub ts: u64,
        pub from: Id,
        /// The device that sent it.
        pub device: Id,
        /// The client's own id of it; the dedup key is (from, convo, id). Empty: a system message,
        /// which no device sent.
        pub id: Id,
        pub body: Body,
    }
}

wire_enum! {
    /// Opaque to every process; how it was given is how it is delivered.
    #[derive(Clone, PartialEq, Eq)]
    pub enum Body {
        /// UTF-8, checked by the edge.
        1 = Text { text: Bytes, },
        2 = Binary { bytes: Bytes, },
    }
}

wire_enum! {
    /// What a member of a group may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GroupRole {
        1 = Owner,
        2 = Admin,
        3 = Member,
    }
}

wire_struct! {
    /// One stay of a member in his group.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Stay {
        /// The message that let him in: the first that he sees.
        pub joined: u64,
        /// The message by which he left, the last that he hears; 0: he is in.
        pub left: u64,
        /// Position of that message's record; 0: he is in.
        pub left_lsn: u64,
    }
}

wire_struct! {
    /// A member of a group, or somebody who was one.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Member {
        pub user: Id,
        /// The group's version when this last changed: of two, the greater one holds.
        pub version: u64,
        pub role: GroupRole,
        /// The message that made him an admin; 0: he is none.
        pub admin_since: u64,
        /// Orders those who joined by the same message.
        pub place: u32,
        /// Oldest first, never empty. A stay that fan-out may still have to look back to is kept.
        pub stays: Vec<Stay>,
    }
}

wire_struct! {
    /// A channel, but for its subscribers.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ChannelState {
        /// Counts its making and the changes of who may write: 1, 2, 3, ...
        pub version: u64,
        pub owner: Id,
        /// Who may write beside the owner, by name.
        pub admins: Vec<Id>,
    }
}

wire_struct! {
    /// What a user is to a channel.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Subscription {
        /// The first message that he hears by himself; 1: he made the channel.
        pub since: u64,
        pub is_active: bool,
        /// He asked for it, and is counted. The owner hears his channel without.
        pub is_counted: bool,
    }
}

impl Subscription {
    /// Of who made the channel by the message `since`.
    pub fn of_owner(since: u64) -> Subscription {
        Subscription { since, is_active: true, is_counted: false }
    }
}

impl Member {
    /// The present stay, or the last one.
    pub fn last_stay(&self) -> Stay {
        self.stays.last().copied().unwrap_or(Stay { joined: 0, left: 0, left_lsn: 0 })
    }

    pub fn is_in(&self) -> bool {
        self.stays.last().is_some_and(|stay| stay.left == 0)
    }

    /// Whether the message `seq` is for him.
    pub fn was_in_at(&self, seq: u64) -> bool {
        let covers = |stay: &Stay| stay.joined <= seq && (stay.left == 0 || seq <= stay.left);
        self.stays.iter().any(covers)
    }
}

/// Its size alone: whatever prints a message prints no body.
impl std::fmt::Debug for Body {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Body({} bytes)", self.bytes().len())
    }
}

impl Body {
    pub fn bytes(&self) -> &Bytes {
        match self {
            Body::Text { text } => text,
            Body::Binary { bytes } => bytes,
        }
    }
}

wire_struct! {
    /// How far one device has acknowledged one conversation, as of one commit.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Cursor {
        pub user: Id,
        pub device: Id,
        pub convo: ConversationName,
        pub delivered: u64,
        pub read: u64,
        /// First seq of the durable inbox marker; 0: none. An acknowledgement that reaches the last
        /// seq fanned out carries 0 here and so removes the marker.
        pub marker: u64,
    }
}

wire_struct! {
    /// A device that its user has revoked. Sessions of it up to this number are over for good, and
    /// so are the tickets that they were given.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Revocation {
        pub user: Id,
        pub device: Id,
        /// The last session's number: epoch and counter.
        pub epoch: u64,
        pub counter: u64,
        /// When, ms since 1970 UTC.
        pub ts: u64,
        /// When the device was there last.
        pub last_seen: u64,
    }
}

wire_struct! {
    /// When a device was there last, ms since 1970 UTC.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Sighting {
        pub user: Id,
        pub device: Id,
        pub ts: u64,
    }
}

wire_struct! {
    /// What is still known of a message whose record was lost.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LostMessage {
        pub convo: ConversationName,
        pub seq: u64,
        pub mid: u64,
        pub ts: u64,
        pub from: Id,
        pub id: Id,
    }
}

wire_struct! {
    /// A message that is a dead letter of somebody.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Letter {
        pub seq: u64,
        pub from: Id,
        /// Empty: a system message, of which nobody is told.
        pub id: Id,
        /// It is the first recipient's: the sender is told once.
        pub is_news: bool,
    }
}

wire_struct! {
    /// A message of somebody that reached a recipient on none of his devices.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Failure {
        pub convo: ConversationName,
        pub seq: u64,
        pub id: Id,
        /// Service time of the first telling; 0: he has not been told.
        pub told_at: u64,
    }
}

wire_enum! {
    /// One decision of the sequencer, or (`Epoch`, `Lost`) of the store.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Record {
        1 = Message { message: Message, },
        /// The new cursors, whole rows: the store puts them in place of the old ones. Written for
        /// acknowledgements and for inbox markers; at most one row per (device, conversation).
        /// The user is told of acknowledgements when this record is consumed.
        2 = Cursors { cursors: Vec<Cursor>, },
        /// A device that was not known before; its starting cursors stand before it.
        3 = Device { user: Id, device: Id, ts: u64, },
        /// Everything up to and including this lsn is acknowledged or marked at every target.
        4 = FannedOut { lsn: u64, },
        /// An edge shard that holds sessions (or no longer does): who must report after a restart.
        5 = Edge { name: Id, present: bool, },
        /// Written by the store alone: from here on only this epoch is served.
        6 = Epoch { epoch: u64, incarnation: u64, },
        /// Written by `aldis repair` alone, in the place of a record that the disk lost: so every
        /// position still stands for one record. `message`: if it was one, and the index knew it.
        7 = Lost { message: Option<LostMessage>, },
        /// A group is made or its membership changes: the system message that says so, the group's
        /// version from here on, and whoever is concerned, whole rows.
        8 = Group { message: Message, version: u64, members: Vec<Member>, },
        /// A channel is made, which subscribes its owner, or who may write in it changes: the
        /// system message that says so, and all that is to be known but for subscribers.
        30 = Channel { message: Message, channel: ChannelState, },
        /// A user is subscribed to a channel from here on, or no longer: the whole row, and how
        /// many are then counted.
        31 = Subscription {
            convo: ConversationName,
            user: Id,
            subscription: Subscription,
            subscribers: u64,
        },
        /// A device is gone, and with it all of its cursors. How far it had come stands before it,
        /// as cursors of the user's pseudo-device.
        20 = Revoked { revocation: Revocation, },
        /// Devices that have left, known ones.
        21 = Seen { devices: Vec<Sighting>, },
        /// Whether a user's presence is told to others.
        22 = Privacy { user: Id, hidden: bool, },
        /// How long this system has served, over all lives. What was logged before this record is
        /// at least as old as the time since.
        40 = ServiceTime { ms: u64, },
        /// What no device of this user has acknowledged for so long, up to `last`, leaves his
        /// inbox. `at`: the service time. Who sent it is told when this record is consumed.
        41 = Dead {
            user: Id,
            convo: ConversationName,
            last: u64,
            at: u64,
            letters: Vec<Letter>,
        },
        /// His dead letters from `first` on are back in his inbox.
        42 = Replayed { user: Id, convo: ConversationName, first: u64, at: u64, seqs: Vec<u64>, },
        /// A sender was told of these for the first time.
        43 = Told { user: Id, failures: Vec<Failure>, },
        /// He is told of these no more.
        44 = Forgotten { user: Id, failures: Vec<(ConversationName, u64)>, },
    }
}

impl Message {
    /// Told by the server, in the name of whoever acted.
    pub fn is_system(&self) -> bool {
        self.id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_contains_a_body() {
        let text = Bytes::from_static(b"attack at dawn");
        let message = Message {
            convo: "dm:a:b".into(),
            seq: 1,
            mid: 2,
            ts: 3,
            from: "a".into(),
            device: "phone".into(),
            id: "1".into(),
            body: Body::Text { text },
        };
        let printed = format!("{:?}", Record::Message { message });
        assert!(!printed.contains("attack") && printed.contains("14 bytes"), "{printed}");
    }
}
