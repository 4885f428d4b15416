//! Questions to the store that are not answered yet.
//!
//! A question outlives the store that was asked: it is put again to the next one, in order.

use std::collections::{BTreeMap, VecDeque};

use super::appender::Waiter;
use crate::link::message::{Code, SessionNumber, ToStore};
use crate::link::record::{ConversationName, Id};
use crate::link::wire::Wire;
use crate::link::{Outlet, PeerId};

/// What an answer of the store is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `Acquire` or `Resume`: put by whoever handles the new session, never repeated.
    Epoch,
    Append,
    Conversation(ConversationName),
    /// A piece of a group's members.
    Members(ConversationName),
    /// A channel.
    Channel(ConversationName),
    /// How far a group's members have come.
    Watermarks(ConversationName),
    User(Id),
    /// Devices that were revoked lately.
    Revoked,
    /// The send at the head of this conversation's queue may be a repetition.
    Lookup(ConversationName),
    /// Whose inbox holds what is too old.
    Overdue,
    /// An administrator's question.
    Inquiry(super::inquiries::Asked),
    /// A piece of a session's catching up.
    Range {
        user: Id,
        device: Id,
        session: SessionNumber,
        convo: ConversationName,
        stream: u64,
    },
    /// A page of a conversation, for whoever asked, who sees it from `first` on.
    Page {
        waiter: Waiter,
        convo: ConversationName,
        first: u64,
    },
    /// A list of conversations, for whoever asked.
    Overview(Waiter),
    /// The log above the fan-out position.
    Log,
    /// Whether the epoch still holds: a client claims what only a later one can have told it.
    Claim(Option<Refusal>),
}

/// How a client's claim is answered if the epoch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub waiter: Waiter,
    pub code: Code,
    pub why: &'static str,
}

impl Refusal {
    pub fn no_such_conversation(waiter: Waiter) -> Refusal {
        Refusal { waiter, code: Code::NoSuchConversation, why: "no such conversation" }
    }

    pub fn not_member(waiter: Waiter) -> Refusal {
        Refusal { waiter, code: Code::NotMember, why: "not a member of it" }
    }
}

/// See the module.
#[derive(Default)]
pub struct Requests {
    asked: BTreeMap<u64, (ToStore, Purpose)>,
    unasked: VecDeque<(ToStore, Purpose)>,
    /// Set while the store serves our epoch; otherwise questions wait.
    open: bool,
    /// What the store could not answer, and when it is asked again: a batch for which there is no
    /// space, or a read that failed, holds up nothing else.
    later: VecDeque<(u64, (ToStore, Purpose))>,
}

impl Requests {
    /// Adds a question; [`Requests::flush`] puts it.
    pub fn ask(&mut self, ask: ToStore, purpose: Purpose) {
        self.unasked.push_back((ask, purpose));
    }

    /// Puts the question that opens a session with the store, ahead of all others.
    pub fn ask_first(&mut self, store: PeerId, ask: ToStore, out: &mut dyn Outlet) {
        if let Ok(number) = out.submit(store, ask.to_bytes()) {
            self.asked.insert(number, (ask, Purpose::Epoch));
        }
    }

    /// The purpose of the question that entry `number` put.
    pub fn take(&mut self, number: u64) -> Option<Purpose> {
        self.asked.remove(&number).map(|(_, purpose)| purpose)
    }

    /// The store could not answer `number` now: the question is put again, but not before
    /// `later_us`; whoever asked for an epoch does so himself. Returns what it was for.
    pub fn again(&mut self, number: u64, later_us: u64) -> Option<Purpose> {
        let question = self.asked.remove(&number)?;
        let purpose = question.1.clone();
        if purpose != Purpose::Epoch {
            self.later.push_back((later_us, question));
        }
        Some(purpose)
    }

    /// The session with the store is over: everything unanswered is to be asked again, first.
    pub fn close(&mut self) {
        self.open = false;
        let asked = std::mem::take(&mut self.asked).into_values();
        let repeated = asked.filter(|(_, purpose)| *purpose != Purpose::Epoch);
        #[cfg(test)]
        let repeated = repeated.filter(|(_, purpose)| {
            let dropped = crate::simulation::planted::Planted::DropReplay.is_planted();
            !dropped || *purpose != Purpose::Append
        });
        let later = std::mem::take(&mut self.later).into_iter().map(|(_, question)| question);
        let unasked = std::mem::take(&mut self.unasked);
        self.unasked = repeated.chain(later).chain(unasked).collect();
    }

    /// Questions reach the store.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The store serves our epoch.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Puts what waits, as far as the link takes it.
    pub fn flush(&mut self, store: PeerId, now_us: u64, out: &mut dyn Outlet) {
        while let Some((_, question)) = self.later.pop_front_if(|(due_us, _)| now_us >= *due_us) {
            self.unasked.push_front(question);
        }
        while self.open
            && let Some((ask, _)) = self.unasked.front()
            && let Ok(number) = out.submit(store, ask.to_bytes())
        {
            let question = self.unasked.pop_front().expect("looked at it");
            self.asked.insert(number, question);
        }
    }
}
