//! Rate limits: the Generic Cell Rate Algorithm, in whole numbers.
//!
//! Of each key only the moment is kept at which it is full again, in units so small that a cell is
//! a whole number of them: a microsecond is `per_second` units, a cell a million. Invariant: in any
//! `t` seconds no more than `burst + per_second * t` cells pass, and a cell that is refused passes
//! once the wait that it was told is over, if nothing of its key passed meanwhile. A key that is
//! full again is forgotten: it is like one that never was.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hash;

use hashbrown::HashMap;

use super::appender::Waiter;
use super::core::Sequencer;
use crate::link::Outlet;
use crate::link::message::{Code, ToEdge};
use crate::link::record::{ConversationName, Id};

/// Units of a cell.
const CELL: u128 = 1_000_000;
/// Keys of one limit. Beyond them the one that is full next is forgotten: it gains no more than it
/// lacked, once.
const KEY_COUNT_MAX: usize = 1 << 20;
/// Keys looked at in one turn, so that no turn is long.
const LOOK_COUNT_MAX: usize = 1_024;

/// How many cells pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub per_second: u32,
    /// At once, after a silence; at least 1.
    pub burst: u32,
}

/// What a sequencer limits. `None`: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOptions {
    /// Sends of one user, over all his connections and devices.
    pub user_sends: Option<Rate>,
    /// Sends to one conversation.
    pub convo_sends: Option<Rate>,
    /// Live pushes of one channel, one for each session that hears it.
    pub channel_pushes: Option<Rate>,
    /// Groups and channels that one user may own; 0: any number.
    pub groups_per_user: u64,
}

/// [`LimitOptions::groups_per_user`] when nobody says otherwise.
pub const GROUPS_PER_USER_DEFAULT: u32 = 10_000;
/// [`LimitOptions::channel_pushes`] a second when nobody says otherwise: about what a core does.
pub const CHANNEL_PUSHES_DEFAULT: u32 = 4_000_000;

impl Default for LimitOptions {
    fn default() -> LimitOptions {
        let pushes = Rate { per_second: CHANNEL_PUSHES_DEFAULT, burst: CHANNEL_PUSHES_DEFAULT };
        LimitOptions {
            user_sends: None,
            convo_sends: None,
            channel_pushes: Some(pushes),
            groups_per_user: GROUPS_PER_USER_DEFAULT.into(),
        }
    }
}

/// One limit for every key by itself.
pub struct Limiter<K> {
    rate: Option<Rate>,
    /// When each is full again, in units.
    full_at: HashMap<K, u128>,
    /// Each key once, by a moment at which it is looked at, in microseconds.
    due: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Clone + Eq + Hash + Ord> Limiter<K> {
    pub fn new(rate: Option<Rate>) -> Limiter<K> {
        Limiter { rate, full_at: HashMap::new(), due: BinaryHeap::new() }
    }

    /// The microseconds until `count` cells may pass; 0: they may now. More than a burst may pass
    /// when it is full.
    pub fn wait_us(&self, key: &K, count: u64, now_us: u64) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        let full_at = self.full_at.get(key).copied().unwrap_or(0);
        let room = u128::from(u64::from(rate.burst).saturating_sub(count)) * CELL;
        let late = full_at.saturating_sub(rate.units(now_us) + room);
        rate.microseconds(late)
    }

    /// They pass.
    pub fn take(&mut self, key: &K, count: u64, now_us: u64) {
        let Some(rate) = self.rate else { return };
        let (now, cells) = (rate.units(now_us), u128::from(count) * CELL);
        if let Some(full_at) = self.full_at.get_mut(key) {
            *full_at = now.max(*full_at) + cells;
            return;
        }
        if self.full_at.len() >= KEY_COUNT_MAX
            && let Some(Reverse((_, nearest))) = self.due.pop()
        {
            self.full_at.remove(&nearest);
        }
        self.full_at.insert(key.clone(), now + cells);
        self.due.push(Reverse((rate.microseconds(now + cells), key.clone())));
    }

    /// Forgets keys that are full again.
    pub fn expire(&mut self, now_us: u64) {
        let Some(rate) = self.rate else { return };
        for _ in 0..LOOK_COUNT_MAX {
            let is_due = |Reverse((due_us, _)): &Reverse<(u64, K)>| *due_us <= now_us;
            if !self.due.peek().is_some_and(is_due) {
                return;
            }
            let Some(Reverse((_, key))) = self.due.pop() else { return };
            let full_at = self.full_at.get(&key).copied().unwrap_or(0);
            if full_at <= rate.units(now_us) {
                self.full_at.remove(&key);
            } else {
                self.due.push(Reverse((rate.microseconds(full_at), key)));
            }
        }
    }

    /// Keys that are not full.
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// What the refused are told of it.
    pub fn per_second(&self) -> u64 {
        self.rate.map_or(0, |rate| rate.per_second.into())
    }
}

impl Rate {
    fn units(self, us: u64) -> u128 {
        u128::from(us) * u128::from(self.per_second)
    }

    /// Not less than so many units.
    fn microseconds(self, units: u128) -> u64 {
        u64::try_from(units.div_ceil(u128::from(self.per_second))).unwrap_or(u64::MAX)
    }
}

/// See the module. In memory alone: a sequencer that starts has everybody full.
pub struct Limits {
    user_sends: Limiter<Id>,
    convo_sends: Limiter<ConversationName>,
    pub(super) channel_pushes: Limiter<ConversationName>,
    pub(super) groups_per_user: u64,
}

impl Limits {
    pub fn new(options: LimitOptions) -> Limits {
        Limits {
            user_sends: Limiter::new(options.user_sends),
            convo_sends: Limiter::new(options.convo_sends),
            channel_pushes: Limiter::new(options.channel_pushes),
            groups_per_user: options.groups_per_user,
        }
    }

    /// Whether a new message may pass, which then counts; else the limit, and the microseconds
    /// after which it may.
    fn pass_send(
        &mut self,
        user: &Id,
        convo: &ConversationName,
        now_us: u64,
    ) -> Result<(), (u64, u64)> {
        let by_user = self.user_sends.wait_us(user, 1, now_us);
        let by_convo = self.convo_sends.wait_us(convo, 1, now_us);
        if by_user == 0 && by_convo == 0 {
            self.user_sends.take(user, 1, now_us);
            self.convo_sends.take(convo, 1, now_us);
            return Ok(());
        }
        match by_user >= by_convo {
            true => Err((self.user_sends.per_second(), by_user)),
            false => Err((self.convo_sends.per_second(), by_convo)),
        }
    }

    pub fn expire(&mut self, now_us: u64) {
        self.user_sends.expire(now_us);
        self.convo_sends.expire(now_us);
        self.channel_pushes.expire(now_us);
    }

    /// Users and conversations that are kept for having sent lately.
    pub fn len(&self) -> usize {
        self.user_sends.len() + self.convo_sends.len()
    }
}

impl Sequencer {
    /// Before anything is handled.
    pub fn set_limits(&mut self, options: LimitOptions) {
        self.limits = Limits::new(options);
    }

    /// Whether the message may have its place; if not, its sender is told so.
    pub(super) fn is_within_limits(
        &mut self,
        convo: &ConversationName,
        user: &Id,
        waiter: Waiter,
        out: &mut dyn Outlet,
    ) -> bool {
        let Err((limit, wait_us)) = self.limits.pass_send(user, convo, self.now.monotonic_us)
        else {
            return true;
        };
        // A millisecond that has begun is waited for to its end.
        let retry_ms = u32::try_from(wait_us.div_ceil(1_000)).unwrap_or(u32::MAX);
        let why = "too many messages";
        self.refuse_limited(waiter, (Code::RateLimited, why), (limit, retry_ms), out);
        false
    }

    /// A refusal that names the limit that was hit, and when to come back (0: that helps nothing).
    pub(super) fn refuse_limited(
        &mut self,
        waiter: Waiter,
        (code, why): (Code, &str),
        (limit, retry_ms): (u64, u32),
        out: &mut dyn Outlet,
    ) {
        self.count_refusal(code);
        let message = why.into();
        let limited = ToEdge::Limited { to: waiter.number, code, message, limit, retry_ms };
        self.answer(waiter, limited, out);
    }

    pub(super) fn count_refusal(&mut self, code: Code) {
        self.counters.refused_total += 1;
        self.counters.refused_by_code[code_index(code)] += 1;
    }
}

/// Every code, with its name in the protocol.
pub const CODES: [(Code, &str); 8] = [
    (Code::BadRequest, "bad_request"),
    (Code::NotMember, "not_member"),
    (Code::NoSuchConversation, "no_such_convo"),
    (Code::Forbidden, "forbidden"),
    (Code::RateLimited, "rate_limited"),
    (Code::Unavailable, "unavailable"),
    (Code::Internal, "internal"),
    (Code::GroupFull, "group_full"),
];

fn code_index(code: Code) -> usize {
    CODES.iter().position(|(known, _)| *known == code).expect("all of them are listed")
}

#[cfg(test)]
mod tests;
