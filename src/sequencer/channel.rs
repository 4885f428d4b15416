//! Channels: who owns one, who may write, who is subscribed.
//!
//! A channel's subscribers are nowhere in one place: each is a row of his own user, and the channel
//! keeps their number. So nothing here grows with them, and a send looks at none. A change of a
//! subscription is decided by the conversation, takes effect when its record is durable, and what
//! else its user asks of the channel waits for that; others do not.

use std::collections::VecDeque;
use std::rc::Rc;

use hashbrown::HashMap;
use serde_json::json;

use super::appender::Waiter;
use super::conversation::Task;
use super::core::{Sequencer, WAITING_SIZE_MAX};
use super::order::{Identity, is_direct};
use super::requests::Refusal;
use super::user::Task as UserTask;
use crate::limits::GROUP_MEMBER_COUNT_MAX;
use crate::link::Outlet;
use crate::link::message::{ChannelChange, Code, FromStore, GroupChange, GroupState, ToEdge};
use crate::link::record::{
    Body, ChannelState, ConversationName, Id, Message, Record, Subscription,
};

/// A channel as its conversation keeps it.
pub struct Channel {
    pub state: ChannelState,
    /// Subscribers, those on their way into the log too.
    count: u64,
    durable_count: u64,
    /// Users whose subscription is on its way into the log, with what waits for it.
    changing: HashMap<Id, VecDeque<Task>>,
}

impl Channel {
    pub fn new(state: ChannelState, count: u64) -> Channel {
        Channel { state, count, durable_count: count, changing: HashMap::new() }
    }

    /// Whether he may write.
    pub fn is_run_by(&self, user: &str) -> bool {
        *self.state.owner == *user || self.state.admins.iter().any(|admin| **admin == *user)
    }

    /// Nothing of it is on its way.
    pub fn is_idle(&self) -> bool {
        self.changing.is_empty()
    }

    /// As those who run it see it; subscribers are not listed.
    fn as_group(&self, convo: &ConversationName) -> GroupState {
        let ChannelState { version, owner, admins } = self.state.clone();
        let mut members = [std::slice::from_ref(&owner), &admins].concat();
        members.sort();
        GroupState { convo: convo.clone(), owner: Some(owner), admins, members, version }
    }

    /// Who writes when the owner has named these users; `None`: nothing changes.
    fn with_roles(&self, users: &[Id], admin: bool) -> Option<(ChannelState, Vec<Id>)> {
        let mut state = self.state.clone();
        let mut changed = Vec::new();
        for user in users.iter().filter(|user| **user != self.state.owner) {
            let place = state.admins.binary_search(user);
            match place {
                Err(place) if admin => state.admins.insert(place, user.clone()),
                Ok(place) if !admin => drop(state.admins.remove(place)),
                _ => continue,
            }
            changed.push(user.clone());
        }
        state.version += 1;
        (!changed.is_empty()).then_some((state, changed))
    }
}

const IS_GROUP: (Code, &str) = (Code::Forbidden, "that is a group");
const IS_CHANNEL: (Code, &str) = (Code::Forbidden, "that is a channel");
const OWNER_ONLY: (Code, &str) = (Code::Forbidden, "the owner only");

impl Sequencer {
    /// A client's channel operation.
    pub(super) fn channel(
        &mut self,
        waiter: Waiter,
        user: Id,
        convo: ConversationName,
        change: ChannelChange,
        out: &mut dyn Outlet,
    ) {
        if is_direct(&convo) {
            return self.refuse(waiter, Code::Forbidden, "that is a direct conversation", out);
        }
        let behind =
            self.appender.as_ref().is_some_and(|log| log.waiting_size() > WAITING_SIZE_MAX);
        if behind || self.refuses_sends {
            return self.refuse(waiter, Code::Unavailable, "the store has no room", out);
        }
        self.with_conversation(convo, Task::Channel(waiter, user, change), out);
    }

    /// The conversation is loaded. Whether its user is at hand too, if the task is about what he is
    /// to a channel: gives it back if so; else it comes again later.
    pub(super) fn ready_task(
        &mut self,
        convo: &ConversationName,
        task: Task,
        out: &mut dyn Outlet,
    ) -> Option<Task> {
        let user = match &task {
            Task::Send(..) => return Some(task),
            Task::Raise(user, _) | Task::Sync(user, ..) => user.clone(),
            Task::Page(page) => page.user.clone(),
            Task::Group(_, user, _) | Task::Channel(_, user, _) => user.clone(),
        };
        let entry = self.conversations.get_mut(convo)?;
        let creates = match &task {
            Task::Channel(_, _, change) => *change == ChannelChange::Create,
            Task::Group(_, _, change) => matches!(change, GroupChange::Create { .. }),
            _ => false,
        };
        match &mut entry.channel {
            Some(channel) => {
                if let Some(waiting) = channel.changing.get_mut(&user) {
                    waiting.push_back(task);
                    return None;
                }
            }
            // Of any other conversation its members are at hand; whoever makes one is not.
            None if !creates || entry.group.is_some() => return Some(task),
            None => {}
        }
        if self.has_user(&user) {
            return Some(task);
        }
        self.with_user(user, UserTask::Again(convo.clone(), Box::new(task)), out);
        None
    }

    /// Whether the user is at hand.
    pub(super) fn has_user(&self, user: &Id) -> bool {
        self.users.get(user).is_some_and(|entry| entry.loaded)
    }

    /// The user's row says whether he may read the channel, and it is not at hand or changes now.
    pub(super) fn is_unsure_of(&self, convo: &ConversationName, user: &Id) -> bool {
        let channel = self.conversations.get(convo).and_then(|entry| entry.channel.as_ref());
        let is_unsure =
            |channel: &Box<Channel>| channel.changing.contains_key(user) || !self.has_user(user);
        channel.is_some_and(is_unsure)
    }

    /// Everything of the conversation is loaded, and so is the user, if the task needs him.
    pub(super) fn change_channel(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        user: Id,
        change: ChannelChange,
        out: &mut dyn Outlet,
    ) {
        let Some(entry) = self.conversations.get(convo) else { return };
        let owner = entry.channel.as_ref().map(|channel| channel.state.owner.clone());
        let (code, why) = match (owner, change) {
            (None, _) if entry.group.is_some() => IS_GROUP,
            (None, ChannelChange::Create) => return self.make_channel(convo, waiter, user, out),
            (None, _) => (Code::NoSuchConversation, "no such conversation"),
            (Some(owner), ChannelChange::Create) if owner == user => {
                return self.tell_channel(convo, waiter, out);
            }
            (Some(_), ChannelChange::Create) => {
                (Code::Forbidden, "there is such a channel already")
            }
            (Some(_), ChannelChange::Subscribe) => {
                return self.change_subscription(convo, waiter, user, true, out);
            }
            (Some(_), ChannelChange::Unsubscribe) => {
                return self.change_subscription(convo, waiter, user, false, out);
            }
        };
        // Another sequencer may know of a later change.
        self.check_claim(Some(Refusal { waiter, code, why }), out);
    }

    /// A group's operation on a channel: who writes in it is named and told in the same way.
    pub(super) fn change_roles(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        user: Id,
        change: &GroupChange,
        out: &mut dyn Outlet,
    ) {
        let entry = self.conversations.get(convo);
        let Some(channel) = entry.and_then(|entry| entry.channel.as_ref()) else { return };
        let is_owner = channel.state.owner == user;
        let (code, why) = match change {
            GroupChange::Info if channel.is_run_by(&user) => {
                return self.tell_roles(convo, waiter, out);
            }
            GroupChange::Role { members, admin } if is_owner => {
                match channel.with_roles(members, *admin) {
                    None => return self.tell_roles(convo, waiter, out),
                    Some((state, _)) if state.admins.len() >= GROUP_MEMBER_COUNT_MAX => {
                        (Code::GroupFull, "the channel would have too many admins")
                    }
                    Some((state, changed)) => {
                        let role = if *admin { "admin" } else { "member" };
                        let names: Vec<&str> = changed.iter().map(|user| &**user).collect();
                        let body = json!({"op": "role", "users": names, "role": role});
                        return self.log_channel(convo, waiter, user, state, body.to_string());
                    }
                }
            }
            GroupChange::Role { .. } => OWNER_ONLY,
            _ => IS_CHANNEL,
        };
        self.check_claim(Some(Refusal { waiter, code, why }), out);
    }

    fn make_channel(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        user: Id,
        out: &mut dyn Outlet,
    ) {
        if !self.may_own_more(&user, waiter, out) {
            return;
        }
        let body = json!({"op": "create", "users": [&*user]}).to_string();
        let owner = self.users.get_mut(&user).expect("loaded by the caller");
        owner.owning += 1;
        owner.subscribing += 1;
        let state = ChannelState { version: 1, owner: user.clone(), admins: Vec::new() };
        self.log_channel(convo, waiter, user, state, body);
    }

    /// A change of the channel gets its place like a message; the conversation waits for it.
    fn log_channel(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        from: Id,
        channel: ChannelState,
        body: String,
    ) {
        let Identity { mid, ts } = self.next_identity();
        let entry = self.conversations.get_mut(convo).expect("its tasks are being run");
        entry.head += 1;
        entry.is_changing = true;
        let message = Message {
            convo: convo.clone(),
            seq: entry.head,
            mid,
            ts,
            from,
            device: "".into(),
            id: "".into(),
            body: Body::Text { text: body.into() },
        };
        self.appender().append(Record::Channel { message, channel }, vec![waiter]);
    }

    /// A channel is made, or who writes in it has changed.
    pub(super) fn channel_durable(
        &mut self,
        message: &Message,
        state: &ChannelState,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        let convo = &message.convo;
        let is_new = state.version == 1;
        if is_new && let Some(owner) = self.users.get_mut(&state.owner) {
            owner.owning -= 1;
            owner.subscribing -= 1;
            owner.channels.insert(convo.clone(), Subscription::of_owner(message.seq));
        }
        if let Some(entry) = self.conversations.get_mut(convo) {
            entry.durable_head = entry.durable_head.max(message.seq);
            entry.is_changing = false;
            match &mut entry.channel {
                Some(channel) => channel.state = state.clone(),
                None => entry.channel = Some(Box::new(Channel::new(state.clone(), 0))),
            }
        }
        self.counters.channel_changes_total += 1;
        for waiter in waiters {
            match is_new {
                true => self.tell_channel(convo, *waiter, out),
                false => self.tell_roles(convo, *waiter, out),
            }
        }
        if is_new {
            self.listen(&state.owner, convo, message.seq - 1);
        }
        self.run_conversation(convo, out);
    }

    /// The user is loaded, and nothing of his subscription is under way.
    fn change_subscription(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        user: Id,
        subscribes: bool,
        out: &mut dyn Outlet,
    ) {
        let owner = self.users.get_mut(&user).expect("loaded by the caller");
        let row = owner.channels.get(convo).copied().filter(|row| row.is_active);
        let is_counted = row.is_some_and(|row| row.is_counted);
        if subscribes == is_counted && subscribes == row.is_some() {
            return self.tell_channel(convo, waiter, out);
        }
        owner.subscribing += 1;
        let entry = self.conversations.get_mut(convo).expect("its tasks are being run");
        let since = row.map_or(entry.head + 1, |row| row.since);
        let channel = entry.channel.as_mut().expect("looked at by the caller");
        channel.changing.insert(user.clone(), VecDeque::new());
        channel.count = channel.count + u64::from(subscribes) - u64::from(is_counted);
        let subscribers = channel.count;
        let subscription = Subscription { since, is_active: subscribes, is_counted: subscribes };
        let convo = convo.clone();
        let record = Record::Subscription { convo, user, subscription, subscribers };
        self.appender().append(record, vec![waiter]);
    }

    /// A subscription began or ended: from now on its user's devices hear the channel, or do not.
    pub(super) fn subscription_durable(
        &mut self,
        (convo, user): (&ConversationName, &Id),
        subscription: Subscription,
        subscribers: u64,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        if let Some(owner) = self.users.get_mut(user) {
            owner.subscribing -= 1;
            owner.channels.insert(convo.clone(), subscription);
        }
        if let Some(entry) = self.conversations.get_mut(convo)
            && let Some(channel) = &mut entry.channel
        {
            channel.durable_count = subscribers;
            // They were first: whatever came meanwhile is of others.
            let waiting = channel.changing.remove(user).unwrap_or_default();
            waiting.into_iter().rev().for_each(|task| entry.tasks.push_front(task));
        }
        self.counters.channel_changes_total += 1;
        if !subscription.is_active {
            self.stop_listening(user, convo);
        }
        waiters.iter().for_each(|waiter| self.tell_channel(convo, *waiter, out));
        if subscription.is_active {
            self.listen(user, convo, subscription.since - 1);
        }
        self.run_conversation(convo, out);
    }

    /// What the store has of a channel, if it is one; after that the conversation is loaded.
    pub(super) fn channel_loaded(
        &mut self,
        convo: &ConversationName,
        answer: FromStore,
        out: &mut dyn Outlet,
    ) {
        let FromStore::Channel { channel, subscribers, .. } = answer else { return };
        let entry = self.conversations.entry(convo.clone()).or_default();
        entry.channel = channel.map(|state| Box::new(Channel::new(state, subscribers)));
        entry.loaded = true;
        self.members_at_hand(convo, out);
    }

    /// Somebody who does not run the channel wants to write in it.
    pub(super) fn refuse_speaker(
        &mut self,
        convo: &ConversationName,
        user: Id,
        waiter: Waiter,
        out: &mut dyn Outlet,
    ) {
        self.with_user(user, UserTask::Speak(waiter, convo.clone()), out);
    }

    /// The user is loaded.
    pub(super) fn refuse_loaded_speaker(
        &mut self,
        convo: &ConversationName,
        user: &Id,
        waiter: Waiter,
        out: &mut dyn Outlet,
    ) {
        let why = "the owner and admins only";
        let forbidden = Refusal { waiter, code: Code::Forbidden, why };
        let is_subscribed = self.users.get(user).is_some_and(|entry| entry.hears(convo));
        let stranger = Refusal::not_member(waiter);
        self.check_claim(Some(if is_subscribed { forbidden } else { stranger }), out);
    }

    /// Whether the user may have one more group or channel of his own; if not, he is told so.
    pub(super) fn may_own_more(&mut self, user: &Id, waiter: Waiter, out: &mut dyn Outlet) -> bool {
        let limit = self.limits.groups_per_user;
        let owned = self.users.get(user).map_or(0, |entry| entry.owned_count());
        if limit == 0 || owned < limit {
            return true;
        }
        let why = "too many groups and channels of this user";
        self.refuse_limited(waiter, (Code::Forbidden, why), (limit, 0), out);
        false
    }

    fn tell_channel(&mut self, convo: &ConversationName, waiter: Waiter, out: &mut dyn Outlet) {
        let entry = self.conversations.get(convo);
        let Some(channel) = entry.and_then(|entry| entry.channel.as_ref()) else { return };
        let (owner, subscribers) = (channel.state.owner.clone(), channel.durable_count);
        let (to, convo) = (waiter.number, Rc::clone(convo));
        self.answer(waiter, ToEdge::Channel { to, convo, owner, subscribers }, out);
    }

    fn tell_roles(&mut self, convo: &ConversationName, waiter: Waiter, out: &mut dyn Outlet) {
        let entry = self.conversations.get(convo);
        let Some(channel) = entry.and_then(|entry| entry.channel.as_ref()) else { return };
        let group = channel.as_group(convo);
        self.answer(waiter, ToEdge::Group { to: waiter.number, group }, out);
    }
}
