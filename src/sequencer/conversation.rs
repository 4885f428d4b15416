//! A conversation as its owner keeps it.

use std::collections::VecDeque;
use std::rc::Rc;

use hashbrown::{HashMap, HashSet};

use super::appender::Waiter;
use super::channel::Channel;
use super::group::Group;
use super::inbox::Raise;
use super::listing::PageAsked;
use super::order::Send;
use super::receipts::Receipts;
use super::stream::{Asked, Named};
use crate::link::message::{Accepted, ChannelChange, GroupChange};
use crate::link::record::{Id, Message};

/// Something that waits until the conversation is loaded, or until a look-up before it is done.
pub enum Task {
    Send(Waiter, Send),
    Raise(Id, Raise),
    Page(PageAsked),
    Sync(Id, Asked, Named),
    Group(Waiter, Id, GroupChange),
    Channel(Waiter, Id, ChannelChange),
}

/// A send that has its place and is not durable yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub lsn: u64,
}

/// See the module. Absent until first touched; loading until the store answered.
#[derive(Default)]
pub struct Conversation {
    pub loaded: bool,
    /// Highest seq assigned.
    pub head: u64,
    /// Highest seq durable: all that anybody else may see.
    pub durable_head: u64,
    /// Of every (user, id) durably accepted ...
    pub fingerprints: HashSet<u64>,
    /// ... if complete: then a miss proves that an id is new.
    pub complete: bool,
    /// By (user, id): accepted in this life and not durable yet.
    pub pending: HashMap<(Id, Id), Pending>,
    /// In order of arrival; the first one is being looked up when `looking_up` is set.
    pub tasks: VecDeque<Task>,
    pub looking_up: bool,
    /// The look-up's answer, for the task at the front: it repeats this, or nothing.
    pub looked_up: Option<Option<Accepted>>,
    /// If it is one: as it durably is.
    pub group: Option<Group>,
    /// The same.
    pub channel: Option<Box<Channel>>,
    /// A change of its membership is on its way into the log; every task waits for it.
    pub is_changing: bool,
    /// Durable messages that wait for the loading to be fanned out.
    pub fans: VecDeque<(u64, Rc<Message>)>,
    /// Of a group in which somebody has acknowledged.
    pub receipts: Option<Box<Receipts>>,
}

impl Conversation {
    /// The store knows all that is here.
    pub fn is_idle(&self) -> bool {
        let quiet = self.tasks.is_empty() && self.pending.is_empty() && self.fans.is_empty();
        let quiet = quiet && !self.is_changing;
        let quiet = quiet && self.channel.as_ref().is_none_or(|channel| channel.is_idle());
        let quiet = quiet && self.receipts.as_ref().is_none_or(|receipts| receipts.is_idle());
        self.loaded && quiet && !self.looking_up && self.looked_up.is_none()
    }

    /// Whether the id may have been accepted durably before; only a look-up can tell.
    pub fn may_know(&self, fingerprint: u64) -> bool {
        !self.complete || self.fingerprints.contains(&fingerprint)
    }
}
