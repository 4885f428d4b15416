//! The memory budget: conversations and users that nothing waits for are dropped, oldest first,
//! and loaded again when they are touched (second chance: a busy one goes to the end of the line).
//!
//! Invariant: whatever the log does not say yet stays. A conversation with a pending send, a user
//! whose session is catching up, a cursor on its way into the log, or a message in flight is never
//! dropped. Of a session at rest the registry keeps what is needed.

use std::collections::VecDeque;

use super::conversation::Conversation;
use super::core::Sequencer;
use super::user::User;
use crate::link::record::{ConversationName, Id};

/// How many are looked at in one turn, so that no turn is long.
const LOOK_COUNT_MAX: usize = 1_024;

/// What may be kept in memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub conversations_max: usize,
    pub users_max: usize,
    /// Dedup fingerprints over all conversations; 8 bytes each, about 16 in their table.
    pub fingerprints_max: usize,
}

impl Default for Budget {
    /// About 1.5 GiB when it is full of conversations of the usual kind.
    fn default() -> Budget {
        Budget { conversations_max: 500_000, users_max: 200_000, fingerprints_max: 32_000_000 }
    }
}

/// Who is in memory, in the order of loading or of the last look.
#[derive(Default)]
pub(super) struct Residents {
    pub conversations: VecDeque<ConversationName>,
    pub users: VecDeque<Id>,
    pub fingerprints: usize,
    /// Rows of groups.
    pub members: usize,
}

/// Memory of a group's row, in fingerprints.
const FINGERPRINTS_PER_MEMBER: usize = 16;

impl Sequencer {
    /// Drops what is idle while the budget is exceeded.
    pub(super) fn keep_budget(&mut self) {
        for _ in 0..LOOK_COUNT_MAX {
            let crowded = self.conversations.len() > self.budget.conversations_max
                || self.residents.fingerprints + self.residents.members * FINGERPRINTS_PER_MEMBER
                    > self.budget.fingerprints_max;
            let Some(convo) = self.residents.conversations.pop_front_if(|_| crowded) else { break };
            if self.conversations.get(&convo).is_some_and(Conversation::is_idle) {
                let dropped = self.conversations.remove(&convo).expect("looked at it");
                self.residents.fingerprints -= dropped.fingerprints.len();
                self.residents.members -= dropped.group.map_or(0, |group| group.len());
                self.counters.evicted_total += 1;
            } else {
                self.residents.conversations.push_back(convo);
            }
        }
        for _ in 0..LOOK_COUNT_MAX {
            let crowded = self.users.len() > self.budget.users_max;
            let Some(user) = self.residents.users.pop_front_if(|_| crowded) else { break };
            if self.users.get(&user).is_some_and(User::is_idle) {
                let left = self.users.remove(&user).expect("looked at it");
                for (id, device) in &left.devices {
                    if device.session.is_none() && device.seen_ms > device.logged_seen_ms {
                        self.devices.seen.remember(&user, id, device.seen_ms);
                    }
                }
                self.registry.rest(user, left);
                self.counters.evicted_total += 1;
            } else {
                self.residents.users.push_back(user);
            }
        }
    }
}
