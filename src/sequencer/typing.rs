//! Who is writing something: passed on to the members that are there, and forgotten.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashSet;

use super::appender::Waiter;
use super::conversation::Task;
use super::core::Sequencer;
use super::order::{check_access, is_direct, members};
use crate::link::message::{PushTarget, ToEdge};
use crate::link::record::{ConversationName, Id};
use crate::link::{Outlet, PeerId};

/// Of one user in one conversation, at most one within this time.
const PAUSE_US: u64 = 3_000_000;
/// Users and conversations for which that is remembered. While there are more, nothing passes of
/// further ones.
const COUNT_MAX: usize = 65_536;

/// What was passed on lately.
#[derive(Default)]
pub(super) struct Typing {
    passed: HashSet<(Id, ConversationName)>,
    /// In order of time.
    order: VecDeque<(u64, (Id, ConversationName))>,
}

impl Typing {
    fn passes(&mut self, user: &Id, convo: &ConversationName, now_us: u64) -> bool {
        while let Some((_, key)) =
            self.order.pop_front_if(|(passed_us, _)| now_us >= *passed_us + PAUSE_US)
        {
            self.passed.remove(&key);
        }
        let key = (user.clone(), convo.clone());
        if self.passed.len() >= COUNT_MAX || !self.passed.insert(key.clone()) {
            return false;
        }
        self.order.push_back((now_us, key));
        true
    }
}

impl Sequencer {
    /// A client says that its user is writing.
    pub(super) fn typing(
        &mut self,
        waiter: Waiter,
        (user, device): (Id, Id),
        convo: ConversationName,
        out: &mut dyn Outlet,
    ) {
        if let Err((code, why)) = check_access(&convo, &user) {
            return self.refuse(waiter, code, why, out);
        }
        self.with_conversation(convo, Task::Typing(waiter, user, device), out);
    }

    /// The conversation is loaded.
    pub(super) fn typing_checked(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        (user, device): (Id, Id),
        out: &mut dyn Outlet,
    ) {
        if self.check_member(convo, &user, waiter, out).is_none() {
            return;
        }
        self.answer(waiter, ToEdge::Done { to: waiter.number }, out);
        if !self.typing.passes(&user, convo, self.now.monotonic_us) {
            return;
        }
        let mut targets: BTreeMap<PeerId, Vec<PushTarget>> = BTreeMap::new();
        let group = self.conversations.get(convo).and_then(|entry| entry.group.as_ref());
        let present: Vec<Id> = match group {
            Some(group) => group.present().map(|member| member.user.clone()).collect(),
            None if is_direct(convo) => members(convo),
            None => Vec::new(),
        };
        for member in present {
            for (of, peer, target) in self.live_sessions(&member) {
                if member != user || of != device {
                    targets.entry(peer).or_default().push(target);
                }
            }
        }
        for (peer, targets) in targets {
            self.counters.typing_total += targets.len() as u64;
            let typing = ToEdge::Typing { convo: convo.clone(), from: user.clone(), targets };
            self.say(peer, typing, out);
        }
    }

    /// The sessions of a user that are pushed to, at rest or not, with their devices.
    fn live_sessions(&self, user: &Id) -> Vec<(Id, PeerId, PushTarget)> {
        let devices = self.users.get(user).into_iter().flat_map(|user| &user.devices);
        let awake = devices.filter_map(|(id, device)| {
            let session = device.session.as_ref().filter(|session| !session.manual)?;
            Some((id.clone(), session.peer, session.target()))
        });
        awake.chain(self.registry.live_sessions(user)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_in_three_seconds_for_each_user_and_conversation() {
        let mut typing = Typing::default();
        let (ann, ben, one, two) = ("ann".into(), "ben".into(), "one".into(), "two".into());
        assert!(typing.passes(&ann, &one, 0));
        assert!(!typing.passes(&ann, &one, PAUSE_US - 1));
        assert!(typing.passes(&ann, &two, 1) && typing.passes(&ben, &one, 2));
        assert!(typing.passes(&ann, &one, PAUSE_US));
        assert!(!typing.passes(&ann, &two, PAUSE_US));
        assert!(typing.passes(&ann, &two, PAUSE_US + 1));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let mut typing = Typing::default();
        let convo = "one".into();
        let user = |number: usize| Id::from(number.to_string().as_str());
        for number in 0..COUNT_MAX {
            assert!(typing.passes(&user(number), &convo, 0));
        }
        assert!(!typing.passes(&user(COUNT_MAX), &convo, 1));
        assert!(typing.passes(&user(COUNT_MAX), &convo, PAUSE_US));
        assert_eq!((typing.passed.len(), typing.order.len()), (1, 1));
    }
}
