//! Bugs planted on purpose, to see that the simulator finds them.
//!
//! The product asks [`Planted::is_planted`] under `cfg(test)` only, so production code holds none
//! of this. What is planted holds for one thread, which runs one simulation at a time.

use std::cell::Cell;

/// One bug, in the place where it would be easy to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The disk says that a write is durable without having synced it.
    SkipSync,
    /// The batch under way is not repeated to a store that restarted.
    DropReplay,
    /// A slot of the edge is given out again under the same generation.
    ReuseSlot,
    /// A send is answered when it was received, before it is durable.
    AcknowledgeOnReceipt,
    /// The fan-out position passes a push that nobody acknowledged and no marker covers.
    PassUnacknowledged,
    /// Letters die in a quarter of their time.
    EarlyDeath,
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

impl Planted {
    /// Whether this bug is in force on this thread.
    pub fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }
}

/// Runs `work` with the bug in force.
pub fn with_planted<T>(bug: Planted, work: impl FnOnce() -> T) -> T {
    struct Removed;
    impl Drop for Removed {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(bug));
    let _removed = Removed;
    work()
}
