//! What a client looks up: pages of a conversation, and the list of its conversations.
//!
//! Both are read from the store, as of everything durable when they were asked; the sequencer
//! checks who asks, and knows which conversations a user has.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::appender::Waiter;
use super::conversation::Task;
use super::core::Sequencer;
use super::order::{check_access, is_direct};
use super::requests::{Purpose, Refusal};
use crate::limits::SERVER_FRAME_SIZE_MAX;
use crate::link::Outlet;
use crate::link::message::{ToEdge, ToStore};
use crate::link::record::{ConversationName, Id};

/// A `history` on its way.
pub struct PageAsked {
    pub waiter: Waiter,
    pub user: Id,
    pub convo: ConversationName,
    /// 0: from the head.
    pub before: u64,
    pub limit: u32,
}

impl Sequencer {
    pub(super) fn history(&mut self, asked: PageAsked, out: &mut dyn Outlet) {
        if let Err((code, why)) = check_access(&asked.convo, &asked.user) {
            return self.refuse(asked.waiter, code, why, out);
        }
        self.with_conversation(asked.convo.clone(), Task::Page(asked), out);
    }

    /// The conversation is loaded.
    pub(super) fn page_checked(&mut self, asked: PageAsked, out: &mut dyn Outlet) {
        let PageAsked { waiter, user, convo, before, limit } = asked;
        let Some(first) = self.check_member(&convo, &user, waiter, out) else { return };
        let head = self.conversations.get(&convo).map_or(0, |entry| entry.durable_head);
        if head == 0 {
            return self.check_claim(Some(Refusal::no_such_conversation(waiter)), out);
        }
        let before = if before == 0 { head + 1 } else { before.min(head + 1) };
        // A frame to a client holds no more than this; the edge leaves out what does not fit.
        let size_max = SERVER_FRAME_SIZE_MAX as u32;
        // What was there before he joined is none of his.
        let limit = before.saturating_sub(first).min(u64::from(limit)) as u32;
        if limit == 0 {
            let messages = Vec::new();
            let page = ToEdge::Page { to: waiter.number, convo, messages, first };
            return self.answer(waiter, page, out);
        }
        let ask = ToStore::History { convo: convo.clone(), before, limit, size_max };
        self.ask(ask, Purpose::Page { waiter, convo, first }, out);
    }

    /// The user is loaded: his conversations are the direct ones of any of his devices, and the
    /// groups in which he is, and the channels to which he is subscribed, by name.
    pub(super) fn list(
        &mut self,
        user: &Id,
        waiter: Waiter,
        after: Option<ConversationName>,
        limit: u32,
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get(user).expect("loaded by the caller");
        let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut names: BTreeSet<&ConversationName> = BTreeSet::new();
        for device in entry.devices.values() {
            let following = device.cursors.range::<str, _>((start, Bound::Unbounded));
            let direct = following.map(|(convo, _)| convo).filter(|convo| is_direct(convo));
            names.extend(direct.take(limit as usize));
        }
        let groups = entry.groups.range::<str, _>((start, Bound::Unbounded));
        let present = groups.filter(|(_, member)| member.is_in());
        names.extend(present.take(limit as usize).map(|(convo, _)| convo));
        let channels = entry.channels.range::<str, _>((start, Bound::Unbounded));
        let heard = channels.filter(|(_, row)| row.is_active);
        names.extend(heard.take(limit as usize).map(|(convo, _)| convo));
        let convos: Vec<ConversationName> =
            names.into_iter().take(limit as usize).cloned().collect();
        if convos.is_empty() {
            let rows = Vec::new();
            return self.answer(waiter, ToEdge::Conversations { to: waiter.number, rows }, out);
        }
        self.ask(ToStore::Overview { user: user.clone(), convos }, Purpose::Overview(waiter), out);
    }
}
