//! The index's storage: a small ordered key-value interface, and its twin in memory.
//!
//! What is applied is atomic, and what survives a crash is a prefix of what was applied: everything
//! up to the last [`Index::persist`] at least. The rows carry the log position they stand for, so
//! the rest is applied again from the log.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The kinds of rows; the tag is the first byte of the stored key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keyspace {
    Meta = 0,
    Messages = 1,
    Dedup = 2,
    Heads = 3,
    Cursors = 4,
    Devices = 5,
    Edges = 6,
    /// (conversation, user): who is or was in a group.
    Members = 7,
    /// (user, conversation): the same rows by user.
    Memberships = 8,
    /// (conversation): the version of a group.
    Groups = 9,
    /// (conversation): a channel, but for its subscribers.
    Channels = 30,
    /// (conversation): how many subscribers a channel has.
    SubscriberCounts = 31,
    /// (user, conversation): who is or was subscribed to a channel.
    Subscriptions = 32,
    /// (user, device): devices that were revoked.
    Revoked = 20,
    /// (user): those who hide their presence.
    Hidden = 21,
    /// (service time, big endian): where in the log it was that.
    Times = 40,
    /// (conversation, seq, user): a dead letter.
    Dead = 41,
    /// (user, conversation): up to where his inbox was emptied into the dead letters.
    DeadFloors = 42,
    /// (sender, conversation, seq): what he is told of, at each connect.
    Failures = 43,
    /// (conversation): its hash chain; under the empty key, how far the chains reach.
    Chains = 50,
    /// (conversation, seq): the chain's hash there, every so often.
    Links = 51,
}

impl Keyspace {
    /// All of them, by tag.
    pub const ALL: [Keyspace; 21] = [
        Keyspace::Meta,
        Keyspace::Messages,
        Keyspace::Dedup,
        Keyspace::Heads,
        Keyspace::Cursors,
        Keyspace::Devices,
        Keyspace::Edges,
        Keyspace::Members,
        Keyspace::Memberships,
        Keyspace::Groups,
        Keyspace::Channels,
        Keyspace::SubscriberCounts,
        Keyspace::Subscriptions,
        Keyspace::Revoked,
        Keyspace::Hidden,
        Keyspace::Times,
        Keyspace::Dead,
        Keyspace::DeadFloors,
        Keyspace::Failures,
        Keyspace::Chains,
        Keyspace::Links,
    ];
}

/// One row put in place of an older one, or (`value: None`) removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub keyspace: Keyspace,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// The index's storage failed. It can be rebuilt from the log.
#[derive(Debug, thiserror::Error)]
pub enum IndexFault {
    #[error("storage: {0}")]
    Storage(String),
    #[error("a row of {0:?} cannot be decoded")]
    Row(Keyspace),
}

/// Ordered rows. See the module for what survives.
pub trait Index {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault>;

    /// Calls `visit` with the rows from key `first` on whose key begins with `prefix`, in order,
    /// until it returns false.
    fn scan(
        &self,
        keyspace: Keyspace,
        prefix: &[u8],
        first: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexFault>;

    /// All of the changes, or after a crash none.
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexFault>;

    /// Returns once everything applied would survive the end of this process.
    fn settle(&mut self) -> Result<(), IndexFault>;

    /// Returns once everything applied would survive a power cut.
    fn persist(&mut self) -> Result<(), IndexFault>;
}

/// The twin in memory. Clones share the rows, as two openings of one directory would.
#[derive(Clone, Debug, Default)]
pub struct MemoryIndex {
    shared: Rc<RefCell<Shared>>,
}

type Rows = BTreeMap<(Keyspace, Vec<u8>), Vec<u8>>;

#[derive(Debug, Default)]
struct Shared {
    rows: Rows,
    persisted: Rows,
    unpersisted: Vec<Vec<Change>>,
}

impl MemoryIndex {
    /// How many batches would be at risk in a crash.
    pub fn unpersisted_count(&self) -> usize {
        self.shared.borrow().unpersisted.len()
    }

    /// A power cut: of the batches since the last persist only the first `kept` survive.
    pub fn crash(&self, kept: usize) {
        let mut shared = self.shared.borrow_mut();
        let survivors: Vec<_> = shared.unpersisted.drain(..).take(kept).collect();
        shared.rows = shared.persisted.clone();
        for changes in survivors {
            put_all(&mut shared.rows, &changes);
            shared.unpersisted.push(changes);
        }
    }
}

impl Index for MemoryIndex {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        Ok(self.shared.borrow().rows.get(&(keyspace, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        prefix: &[u8],
        first: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexFault> {
        let shared = self.shared.borrow();
        let start = (keyspace, first.max(prefix).to_vec());
        for ((at, key), value) in shared.rows.range(start..) {
            if *at != keyspace || !key.starts_with(prefix) || !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexFault> {
        let mut shared = self.shared.borrow_mut();
        put_all(&mut shared.rows, &changes);
        shared.unpersisted.push(changes);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), IndexFault> {
        Ok(())
    }

    fn persist(&mut self) -> Result<(), IndexFault> {
        let mut shared = self.shared.borrow_mut();
        let unpersisted = std::mem::take(&mut shared.unpersisted);
        for changes in unpersisted {
            put_all(&mut shared.persisted, &changes);
        }
        Ok(())
    }
}

fn put_all(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        let key = (change.keyspace, change.key.clone());
        match &change.value {
            Some(value) => rows.insert(key, value.clone()),
            None => rows.remove(&key),
        };
    }
}
