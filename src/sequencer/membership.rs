//! Groups between clients, conversations and the log: a change gets its place like a message, and
//! the conversation waits until it is durable.

use std::rc::Rc;

use super::appender::Waiter;
use super::conversation::Task;
use super::core::{Sequencer, WAITING_SIZE_MAX};
use super::group::{Group, Place, decide};
use super::order::{Identity, is_direct};
use super::requests::{Purpose, Refusal};
use crate::link::Outlet;
use crate::link::message::{Code, FromStore, GroupChange, ToEdge, ToStore};
use crate::link::record::{Body, ConversationName, Id, Member, Message, Record};

/// What a user is to a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// He sees what is there from this seq on.
    Member {
        joined: u64,
    },
    /// He has left, by this message.
    Former {
        left: u64,
    },
    Stranger,
    /// There is no such conversation.
    Nowhere,
}

impl Sequencer {
    /// A client's group operation.
    pub(super) fn group(
        &mut self,
        waiter: Waiter,
        user: Id,
        convo: ConversationName,
        change: GroupChange,
        out: &mut dyn Outlet,
    ) {
        if is_direct(&convo) {
            return self.refuse(waiter, Code::Forbidden, "that is a direct conversation", out);
        }
        let behind =
            self.appender.as_ref().is_some_and(|log| log.waiting_size() > WAITING_SIZE_MAX);
        if change != GroupChange::Info && (behind || self.refuses_sends) {
            return self.refuse(waiter, Code::Unavailable, "the store has no room", out);
        }
        self.with_conversation(convo, Task::Group(waiter, user, change), out);
    }

    /// The conversation is loaded, and its membership is durable as it stands.
    pub(super) fn change_group(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        user: Id,
        change: &GroupChange,
        out: &mut dyn Outlet,
    ) {
        let entry = self.conversations.get(convo).expect("its tasks are being run");
        if entry.channel.is_some() {
            return self.change_roles(convo, waiter, user, change, out);
        }
        let is_new = entry.group.is_none() && matches!(change, GroupChange::Create { .. });
        if is_new && !self.may_own_more(&user, waiter, out) {
            return;
        }
        let (lsn, fanned_out) = (self.appender().next_lsn(), self.fanout.logged());
        let entry = self.conversations.get_mut(convo).expect("its tasks are being run");
        let place = Place { seq: entry.head + 1, lsn, fanned_out };
        match decide(entry.group.as_ref(), &user, change, place) {
            // Another sequencer may know of a later change.
            Err((code, why)) => self.check_claim(Some(Refusal { waiter, code, why }), out),
            Ok(None) => self.tell_group(convo, waiter, out),
            Ok(Some(step)) => {
                entry.head = place.seq;
                entry.is_changing = true;
                if is_new && let Some(owner) = self.users.get_mut(&user) {
                    owner.owning += 1;
                }
                let Identity { mid, ts } = self.next_identity();
                let message = Message {
                    convo: convo.clone(),
                    seq: place.seq,
                    mid,
                    ts,
                    from: user,
                    device: "".into(),
                    id: "".into(),
                    body: Body::Text { text: step.body.into() },
                };
                let (version, members) = (step.version, step.members);
                let record = Record::Group { message, version, members };
                self.appender().append(record, vec![waiter]);
            }
        }
    }

    /// A change is durable: it takes effect, for the conversation and for everybody concerned.
    pub(super) fn group_durable(
        &mut self,
        message: &Message,
        version: u64,
        members: &[Member],
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        let convo = &message.convo;
        if version == 1
            && let Some(owner) = self.users.get_mut(&message.from)
        {
            owner.owning -= 1;
        }
        for member in members {
            if let Some(user) = self.users.get_mut(&member.user) {
                user.note_group(convo.clone(), member.clone());
            }
        }
        if let Some(entry) = self.conversations.get_mut(convo) {
            entry.durable_head = entry.durable_head.max(message.seq);
            let group = entry.group.get_or_insert_default();
            let before = group.len();
            group.apply(version, members.to_vec());
            self.residents.members += group.len() - before;
            entry.is_changing = false;
            if let Some(receipts) = &mut entry.receipts {
                members.iter().for_each(|member| receipts.note_member(member));
            }
        }
        self.counters.group_changes_total += 1;
        waiters.iter().for_each(|waiter| self.tell_group(convo, *waiter, out));
        self.run_conversation(convo, out);
    }

    /// A piece of a group's members came; after the last one the conversation is loaded.
    pub(super) fn members_loaded(
        &mut self,
        convo: ConversationName,
        answer: FromStore,
        out: &mut dyn Outlet,
    ) {
        let FromStore::Members { version, members, next, .. } = answer else { return };
        let entry = self.conversations.entry(convo.clone()).or_default();
        if version > 0 {
            self.residents.members += members.len();
            match &mut entry.group {
                Some(group) => group.apply(version, members),
                None => entry.group = Some(Group::new(version, members)),
            }
        }
        if !next.is_empty() {
            let ask = ToStore::LoadMembers { convo: convo.clone(), after: next };
            return self.ask(ask, Purpose::Members(convo), out);
        }
        if entry.group.is_none() {
            let ask = ToStore::LoadChannel { convo: convo.clone() };
            return self.ask(ask, Purpose::Channel(convo), out);
        }
        entry.loaded = true;
        self.members_at_hand(&convo, out);
    }

    /// Everything of the conversation is loaded: what waited for it goes on.
    pub(super) fn members_at_hand(&mut self, convo: &ConversationName, out: &mut dyn Outlet) {
        self.run_fans(convo, out);
        self.take_risen(convo);
        self.run_conversation(convo, out);
    }

    /// What a user is to a conversation that is loaded.
    pub(super) fn standing(&self, convo: &ConversationName, user: &Id) -> Standing {
        if is_direct(convo) {
            let joined = 1;
            let is_member = super::order::is_member(convo, user);
            return if is_member { Standing::Member { joined } } else { Standing::Stranger };
        }
        let entry = self.conversations.get(convo);
        if let Some(channel) = entry.and_then(|entry| entry.channel.as_ref()) {
            let hears = self.users.get(user).is_some_and(|entry| entry.hears(convo));
            let is_member = hears || channel.is_run_by(user);
            // All of them read the whole log.
            let joined = 1;
            return if is_member { Standing::Member { joined } } else { Standing::Stranger };
        }
        let group = entry.and_then(|entry| entry.group.as_ref());
        let Some(group) = group else { return Standing::Nowhere };
        match group.member(user).map(Member::last_stay) {
            None => Standing::Stranger,
            Some(stay) if stay.left == 0 => Standing::Member { joined: stay.joined },
            Some(stay) => Standing::Former { left: stay.left },
        }
    }

    /// Refuses what only members may do, unless he is one: the seq from which on he sees.
    pub(super) fn check_member(
        &mut self,
        convo: &ConversationName,
        user: &Id,
        waiter: Waiter,
        out: &mut dyn Outlet,
    ) -> Option<u64> {
        let refusal = match self.standing(convo, user) {
            Standing::Member { joined } => return Some(joined),
            Standing::Nowhere => Refusal::no_such_conversation(waiter),
            Standing::Former { .. } | Standing::Stranger => Refusal::not_member(waiter),
        };
        self.check_claim(Some(refusal), out);
        None
    }

    /// One message of a group is to reach everybody who was in it then.
    pub(super) fn fan_to_group(&mut self, lsn: u64, message: Rc<Message>, out: &mut dyn Outlet) {
        let convo = message.convo.clone();
        self.touch_conversation(&convo, out);
        let entry = self.conversations.get_mut(&convo).expect("touched");
        entry.fans.push_back((lsn, message));
        self.run_fans(&convo, out);
    }

    fn run_fans(&mut self, convo: &ConversationName, out: &mut dyn Outlet) {
        while let Some(entry) = self.conversations.get_mut(convo)
            && entry.loaded
            && let Some((lsn, message)) = entry.fans.pop_front()
        {
            if entry.channel.is_some() {
                self.fanout.resolve(lsn, 0);
                let was_told = self.fanout.is_fresh(lsn);
                self.fan_to_channel(message, was_told);
                continue;
            }
            let group = entry.group.as_mut();
            let audience = group.map_or_else(Rc::default, |group| group.audience(message.seq));
            self.fanout.resolve(lsn, audience.len());
            self.fan_to_users(&audience, lsn, &message, out);
        }
    }

    fn tell_group(&mut self, convo: &ConversationName, waiter: Waiter, out: &mut dyn Outlet) {
        let group = self.conversations.get(convo).and_then(|entry| entry.group.as_ref());
        if let Some(group) = group.map(|group| group.state(convo)) {
            self.answer(waiter, ToEdge::Group { to: waiter.number, group }, out);
        }
    }
}
