//! What an administrator asks of a running sequencer about dead letters.
//!
//! The host numbers each inquiry and hands it in; it is answered once, under that number.

use bytes::Bytes;

use super::core::Sequencer;
use super::dead_letters::Replay;
use super::requests::Purpose;
use super::user::Task;
use crate::clock::Now;
use crate::link::Outlet;
use crate::link::message::{DeadLetter, FromStore, ToStore};
use crate::link::record::{ConversationName, Id, Message};

/// Letters that one replay puts back.
const REPLAY_COUNT_MAX: usize = 100_000;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquiry {
    /// A stretch of the dead letters, from `after` on.
    List { user: Option<Id>, convo: Option<ConversationName>, after: Bytes },
    /// The message itself.
    Show { convo: ConversationName, seq: u64 },
    /// The letters of this user in this conversation from `first` on go back into his inbox.
    Replay { user: Id, convo: ConversationName, first: u64 },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    Listed { rows: Vec<DeadLetter>, next: Bytes },
    Shown { message: Message },
    Replayed { count: u64 },
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not now.
    Unavailable(&'static str),
    /// There is no such thing.
    Unknown(&'static str),
    /// It cannot be done as things are.
    Conflict(String),
}

/// What an answer of the store is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    List(u64),
    Show(u64),
    /// The letters so far.
    Replay(u64, Id, ConversationName, u64, Vec<u64>),
}

impl Sequencer {
    /// Takes a question of the host.
    pub fn inquire(&mut self, now: Now, number: u64, inquiry: Inquiry, out: &mut dyn Outlet) {
        self.now = now;
        if self.appender.is_none() {
            let why = "the sequencer does not serve yet";
            return self.answer_inquiry(number, Err(Refused::Unavailable(why)));
        }
        match inquiry {
            Inquiry::List { user, convo, after } => {
                let ask = ToStore::ListDead { user, convo, after };
                self.ask(ask, Purpose::Inquiry(Asked::List(number)), out);
            }
            Inquiry::Show { convo, seq } => {
                let ask = ToStore::Range { convo, first: seq, last: seq, size_max: 1 };
                self.ask(ask, Purpose::Inquiry(Asked::Show(number)), out);
            }
            Inquiry::Replay { user, convo, first } => {
                let asked = Asked::Replay(number, user, convo, first, Vec::new());
                self.list_for_replay(asked, Bytes::new(), out);
            }
        }
    }

    /// What was answered since the last call, by number.
    pub fn take_answered(&mut self) -> Vec<(u64, Result<Answered, Refused>)> {
        std::mem::take(&mut self.answered)
    }

    pub(super) fn answer_inquiry(&mut self, number: u64, answer: Result<Answered, Refused>) {
        self.answered.push((number, answer));
    }

    pub(super) fn inquiry_answered(
        &mut self,
        asked: Asked,
        answer: FromStore,
        out: &mut dyn Outlet,
    ) {
        match (asked, answer) {
            (Asked::List(number), FromStore::DeadLetters { rows, next, .. }) => {
                self.answer_inquiry(number, Ok(Answered::Listed { rows, next }));
            }
            (Asked::Show(number), FromStore::Messages { messages, .. }) => {
                let message = messages.into_iter().next();
                let shown = message.map(|message| Answered::Shown { message });
                let unknown = Refused::Unknown("there is no such message");
                self.answer_inquiry(number, shown.ok_or(unknown));
            }
            (
                Asked::Replay(number, user, convo, first, mut seqs),
                FromStore::DeadLetters { rows, next, .. },
            ) => {
                seqs.extend(rows.iter().map(|row| row.seq).filter(|seq| *seq >= first));
                if seqs.len() > REPLAY_COUNT_MAX {
                    let why = format!("more than {REPLAY_COUNT_MAX} at once; begin later");
                    return self.answer_inquiry(number, Err(Refused::Conflict(why)));
                }
                if !next.is_empty() {
                    let asked = Asked::Replay(number, user, convo, first, seqs);
                    return self.list_for_replay(asked, next, out);
                }
                let Some(first) = seqs.iter().copied().min() else {
                    let unknown = Refused::Unknown("there is no such dead letter");
                    return self.answer_inquiry(number, Err(unknown));
                };
                let replay = Replay { inquiry: number, convo, first, seqs };
                self.with_user(user, Task::Replay(replay), out);
            }
            _ => self.break_with(self.store),
        }
    }

    fn list_for_replay(&mut self, asked: Asked, after: Bytes, out: &mut dyn Outlet) {
        let Asked::Replay(_, user, convo, ..) = &asked else { return };
        let (user, convo) = (Some(user.clone()), Some(convo.clone()));
        self.ask(ToStore::ListDead { user, convo, after }, Purpose::Inquiry(asked), out);
    }
}
