//! The keys as shards have them: a snapshot that another thread may put in place of the one before.
//!
//! A shard looks at one number for each token; only after the set has changed does it take the
//! lock, which is held for the time of a pointer's copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use super::keys::KeySet;

/// Where the keys are put. Clones share them.
#[derive(Clone, Default)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Counts the sets; 0: none was there yet.
    version: AtomicU64,
    current: Mutex<Arc<KeySet>>,
}

/// One shard's side.
#[derive(Clone)]
pub struct KeySource {
    feed: Feed,
    /// `None`: the keys never change.
    wishes: Option<SyncSender<()>>,
    seen: u64,
    set: Arc<KeySet>,
}

impl Feed {
    /// Puts `set` in place of the one before.
    pub fn put(&self, set: Arc<KeySet>) {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = set;
        self.shared.version.fetch_add(1, Ordering::Release);
    }

    fn get(&self) -> Arc<KeySet> {
        let current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }
}

impl KeySource {
    /// Keys that never change.
    pub fn fixed(set: Arc<KeySet>) -> KeySource {
        let feed = Feed::default();
        feed.put(set);
        KeySource { feed, wishes: None, seen: 0, set: Arc::default() }
    }

    /// Keys out of `feed`, and where it hears that they are wanted anew. The receiver is
    /// disconnected once all clones of the source are gone.
    pub fn fed(feed: Feed) -> (KeySource, Receiver<()>) {
        let (wishes, wanted) = mpsc::sync_channel(1);
        (KeySource { feed, wishes: Some(wishes), seen: 0, set: Arc::default() }, wanted)
    }

    /// The keys of now; `None` when none were there ever.
    pub fn current(&mut self) -> Option<&KeySet> {
        let version = self.feed.version();
        if version != self.seen {
            self.set = self.feed.get();
            self.seen = version;
        }
        (version > 0).then_some(&*self.set)
    }

    /// Asks for the keys to be fetched anew. Never blocks; one wish at a time is enough.
    pub fn ask_anew(&self) {
        if let Some(wishes) = &self.wishes {
            let _already_asked = wishes.try_send(());
        }
    }
}
