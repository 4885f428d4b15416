//! The conversation owner: dedup first, then membership and limits, then a place in the order.
//!
//! Sends of one connection to one conversation enter first in, first out: while the conversation is
//! being loaded, or an id is being looked up, everything behind waits in the conversation's queue.

use std::rc::Rc;

use bytes::Bytes;

use super::appender::Waiter;
use super::conversation::{Conversation, Pending, Task};
use super::core::{Sequencer, WAITING_SIZE_MAX};
use super::requests::Purpose;
use crate::link::message::{Accepted, Code, Target, ToEdge, ToStore};
use crate::link::record::{Body, ConversationName, Id, Message, Record};
use crate::link::{Outlet, fingerprint};
use crate::protocol::conversation::{DIRECT_PREFIX, direct, direct_members, parse};

/// 2024-01-01 UTC in milliseconds since 1970: the Snowflake epoch.
const MID_EPOCH_MS: u64 = 1_704_067_200_000;
/// Bits of a Snowflake below its milliseconds.
const MID_COUNTER_BITS: u32 = 22;

/// A client's send.
pub struct Send {
    pub user: Id,
    pub device: Id,
    pub target: Target,
    pub id: Id,
    pub body: Body,
}

/// A message's id over all conversations, and when it was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub mid: u64,
    pub ts: u64,
}

impl Sequencer {
    pub(super) fn send(&mut self, waiter: Waiter, send: Send, out: &mut dyn Outlet) {
        if self.appender.as_ref().is_some_and(|log| log.waiting_size() > WAITING_SIZE_MAX) {
            return self.refuse(waiter, Code::Unavailable, "the store is behind", out);
        }
        if self.refuses_sends {
            return self.refuse(waiter, Code::Unavailable, "the store has no room", out);
        }
        let convo = match resolve(&send.user, &send.target) {
            Ok(convo) => convo,
            Err((code, why)) => return self.refuse(waiter, code, why, out),
        };
        self.with_conversation(convo, Task::Send(waiter, send), out);
    }

    /// Runs the task now if the conversation is at hand, else behind what waits already.
    pub(super) fn with_conversation(
        &mut self,
        convo: ConversationName,
        task: Task,
        out: &mut dyn Outlet,
    ) {
        self.touch_conversation(&convo, out);
        let entry = self.conversations.get_mut(&convo).expect("touched");
        entry.tasks.push_back(task);
        self.run_conversation(&convo, out);
    }

    /// The conversation is in memory, or will be.
    pub(super) fn touch_conversation(&mut self, convo: &ConversationName, out: &mut dyn Outlet) {
        if !self.conversations.contains_key(convo) {
            self.conversations.insert(convo.clone(), Conversation::default());
            self.residents.conversations.push_back(convo.clone());
            let ask = ToStore::LoadConversation { convo: convo.clone() };
            self.ask(ask, Purpose::Conversation(convo.clone()), out);
        }
    }

    pub(super) fn conversation_loaded(
        &mut self,
        convo: ConversationName,
        head: u64,
        fingerprints: Vec<u64>,
        complete: bool,
        out: &mut dyn Outlet,
    ) {
        let entry = self.conversations.entry(convo.clone()).or_default();
        entry.head = head;
        entry.durable_head = head;
        entry.fingerprints = fingerprints.into_iter().collect();
        self.residents.fingerprints += entry.fingerprints.len();
        entry.complete = complete;
        entry.loaded = is_direct(&convo) || head == 0;
        if entry.loaded {
            return self.run_conversation(&convo, out);
        }
        let ask = ToStore::LoadMembers { convo: convo.clone(), after: Bytes::new() };
        self.ask(ask, Purpose::Members(convo), out);
    }

    pub(super) fn looked_up(
        &mut self,
        convo: ConversationName,
        found: Option<Accepted>,
        out: &mut dyn Outlet,
    ) {
        if let Some(entry) = self.conversations.get_mut(&convo) {
            entry.looking_up = false;
            entry.looked_up = Some(found);
            self.run_conversation(&convo, out);
        }
    }

    /// A message became durable: its sender and everyone who repeated it meanwhile hear so.
    pub(super) fn message_durable(
        &mut self,
        message: &Message,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        self.counters.accepted_total += 1;
        if let Some(entry) = self.conversations.get_mut(&message.convo) {
            entry.durable_head = entry.durable_head.max(message.seq);
            entry.pending.remove(&(message.from.clone(), message.id.clone()));
            if entry.complete && entry.fingerprints.insert(fingerprint(&message.from, &message.id))
            {
                self.residents.fingerprints += 1;
            }
            if let Some(receipts) = &mut entry.receipts {
                receipts.track(message.seq, &message.from);
            }
        }
        let Message { seq, mid, ts, .. } = *message;
        for waiter in waiters {
            self.tell_sent(*waiter, &message.convo, Accepted { seq, mid, ts }, out);
        }
    }

    pub(super) fn run_conversation(&mut self, convo: &ConversationName, out: &mut dyn Outlet) {
        while let Some(entry) = self.conversations.get_mut(convo)
            && entry.loaded
            && !entry.looking_up
            && !entry.is_changing
            && let Some(task) = entry.tasks.pop_front()
        {
            let looked_up = entry.looked_up.take();
            let Some(task) = self.ready_task(convo, task, out) else { continue };
            match task {
                Task::Send(waiter, send) => self.order(convo, waiter, send, looked_up, out),
                Task::Raise(user, raise) => self.raise_checked(user, raise, out),
                Task::Page(page) => self.page_checked(page, out),
                Task::Sync(user, asked, named) => self.sync(user, asked, Some(named), out),
                Task::Group(waiter, user, change) => {
                    self.change_group(convo, waiter, user, &change, out);
                }
                Task::Channel(waiter, user, change) => {
                    self.change_channel(convo, waiter, user, change, out);
                }
            }
        }
    }

    fn order(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        send: Send,
        looked_up: Option<Option<Accepted>>,
        out: &mut dyn Outlet,
    ) {
        let entry = self.conversations.get_mut(convo).expect("its tasks are being run");
        let key = (send.user.clone(), send.id.clone());
        if let Some(pending) = entry.pending.get(&key) {
            let lsn = pending.lsn;
            self.counters.duplicates_total += 1;
            let waits = self.appender().wait_for(lsn, Waiter { dup: true, ..waiter });
            assert!(waits, "a pending message is in the appender until it is durable");
            return;
        }
        match looked_up {
            Some(Some(accepted)) => {
                self.counters.duplicates_total += 1;
                self.tell_sent(Waiter { dup: true, ..waiter }, convo, accepted, out);
            }
            None if entry.may_know(fingerprint(&send.user, &send.id)) => {
                entry.looking_up = true;
                let (user, id) = key;
                entry.tasks.push_front(Task::Send(waiter, send));
                let ask = ToStore::Lookup { convo: convo.clone(), user, id };
                self.ask(ask, Purpose::Lookup(convo.clone()), out);
            }
            Some(None) | None => self.place(convo, waiter, send, out),
        }
    }

    /// New, from a member, within limits: it gets its place.
    fn place(
        &mut self,
        convo: &ConversationName,
        waiter: Waiter,
        send: Send,
        out: &mut dyn Outlet,
    ) {
        let entry = self.conversations.get(convo).expect("its tasks are being run");
        if entry.channel.as_ref().is_some_and(|channel| !channel.is_run_by(&send.user)) {
            return self.refuse_speaker(convo, send.user, waiter, out);
        }
        if self.check_member(convo, &send.user, waiter, out).is_none()
            || !self.is_within_limits(convo, &send.user, waiter, out)
        {
            return;
        }
        let Identity { mid, ts } = self.next_identity();
        let entry: &mut Conversation = self.conversations.get_mut(convo).expect("being run");
        entry.head += 1;
        let message = Message {
            convo: convo.clone(),
            seq: entry.head,
            mid,
            ts,
            from: send.user.clone(),
            device: send.device,
            id: send.id.clone(),
            body: send.body,
        };
        let log = self.appender.as_mut().expect("sends are refused without one");
        let lsn = log.append(Record::Message { message }, vec![waiter]);
        entry.pending.insert((send.user, send.id), Pending { lsn });
        #[cfg(test)]
        if crate::simulation::planted::Planted::AcknowledgeOnReceipt.is_planted() {
            let (seq, mid, ts) = (entry.head, self.last_mid, self.last_ts);
            self.tell_sent(waiter, convo, Accepted { seq, mid, ts }, out);
        }
    }

    /// What the next message is known by. Neither ever falls.
    pub(super) fn next_identity(&mut self) -> Identity {
        self.last_ts = self.now.unix_ms.max(self.last_ts);
        let by_clock = self.last_ts.saturating_sub(MID_EPOCH_MS) << MID_COUNTER_BITS;
        self.last_mid = by_clock.max(self.last_mid + 1);
        Identity { mid: self.last_mid, ts: self.last_ts }
    }

    fn tell_sent(
        &mut self,
        waiter: Waiter,
        convo: &ConversationName,
        accepted: Accepted,
        out: &mut dyn Outlet,
    ) {
        self.latencies.send.record(self.now.monotonic_us.saturating_sub(waiter.asked_us));
        let Accepted { seq, mid, ts } = accepted;
        let convo = Rc::clone(convo);
        let sent = ToEdge::Sent { to: waiter.number, convo, seq, mid, ts, dup: waiter.dup };
        self.answer(waiter, sent, out);
    }
}

fn resolve(user: &Id, target: &Target) -> Result<ConversationName, (Code, &'static str)> {
    match target {
        Target::User { user: to } => Ok(direct(user, to)),
        Target::Conversation { name } => check_name(name).map(|()| name.clone()),
    }
}

/// Whether a name can be one.
pub(super) fn check_name(name: &str) -> Result<(), (Code, &'static str)> {
    match parse(name) {
        Ok(_) => Ok(()),
        Err(_) => Err((Code::BadRequest, "not the name of a conversation")),
    }
}

/// The same; and of a direct conversation the name alone says who may speak of it.
pub(super) fn check_access(name: &str, user: &str) -> Result<(), (Code, &'static str)> {
    match parse(name).map(|name| name.direct_member(user)) {
        Ok(Some(false)) => Err((Code::NotMember, "not a member of it")),
        Ok(_) => Ok(()),
        Err(_) => Err((Code::BadRequest, "not the name of a conversation")),
    }
}

/// Whether this is the name of a direct conversation, and not of a group.
pub(super) fn is_direct(name: &str) -> bool {
    name.starts_with(DIRECT_PREFIX)
}

/// Whether `user` is one of the two.
pub(super) fn is_member(convo: &str, user: &str) -> bool {
    direct_members(convo).is_some_and(|(first, second)| first == user || second == user)
}

/// Everyone in it, each once.
pub(super) fn members(convo: &str) -> Vec<Id> {
    match direct_members(convo) {
        Some((first, second)) if first == second => vec![first.into()],
        Some((first, second)) => vec![first.into(), second.into()],
        None => Vec::new(),
    }
}
