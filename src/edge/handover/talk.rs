//! What two edges say to each other about an upgrade, and what a command is told of it.
//!
//! The new one says `TakeOver`, is made an `Offer`, brings a lane for each shard, and is `Ready`
//! when nothing can fail any more that does not depend on the state. The shards of the old one then
//! stand still and give their states and sockets over the lanes. Once all has arrived, it is
//! `Adopted`; the old one says `Go`, and before the new one touches a socket it says that it is
//! `Serving`. Whatever ends the talk before that leaves everything with the old one: it moves on.

use bytes::Bytes;

use crate::link::record::Id;
use crate::link::wire::{wire_enum, wire_struct};

wire_enum! {
    /// To an edge at its hand-over socket, or to `up` at its own.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToOld {
        /// Of a command: start a successor. `binary`: the path of its program; empty: that of the
        /// one that runs.
        1 = Upgrade { binary: Id, },
        /// Of a successor.
        2 = TakeOver { version: u32, },
        /// A socket comes along: the way of one shard's state. In the order of the shards.
        3 = ShardLane,
        4 = Ready,
        /// On a shard's lane: this much has arrived.
        5 = More,
        6 = Adopted,
        7 = Serving,
        8 = Refused { reason: Id, },
    }
}

wire_enum! {
    /// From there.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToNew {
        /// `offer` is an [`Offer`] of this version. The listening socket of the admin page comes
        /// along.
        1 = Made { version: u32, offer: Bytes, },
        2 = Go,
        3 = Refused { reason: Id, },
        /// To a command: what happens.
        4 = Told { line: Id, },
        /// To a command: it is done.
        5 = Done { line: Id, },
    }
}

wire_struct! {
    /// What a successor has to agree with before anything is changed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Offer {
        pub program: Id,
        pub link_version: u16,
        pub name: Id,
        pub listen: Id,
        pub sequencer: Id,
        /// Tells whether both have the same secret, and no more.
        pub secret: Bytes,
        pub shards: u32,
        /// Sockets that a shard's ring takes.
        pub sockets_max: u32,
        /// As it was configured.
        pub admin: Id,
        /// How far the clock of the old process is ahead of the host's, in microseconds; the new
        /// one goes on with that clock. Mostly negative: the host is older.
        pub clock_ahead_us: i64,
    }
}
