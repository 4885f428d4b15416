//! What the index answers beside plain reads: pages of history, and lists of conversations.

use std::collections::HashMap;

use bytes::Bytes;

use super::StoreFault;
use super::index::Index;
use super::reader::{ANSWER_SIZE_MAX, IndexReader, Outcome};
use super::rows::{self, Location};
use crate::link::message::{FromStore, Overview, Reached};
use crate::link::record::{ConversationName, Id, Member, Subscription};
use crate::protocol::conversation::direct_members;
use crate::store::device::LogReader;

/// Rows looked at to count what is unread in one conversation. Beyond them every message counts,
/// the reader's own too, so that one question never costs more than this per conversation.
pub const UNREAD_COUNT_EXACT: u64 = 1_000;

/// Of the last messages of a group, how many are told with their senders.
const SENDER_COUNT: u64 = 512;

/// Which page of a conversation is asked for.
pub struct Page {
    pub convo: ConversationName,
    /// Exclusive.
    pub before: u64,
    pub limit: u32,
    pub size_max: u32,
}

impl<I: Index, R: LogReader> IndexReader<I, R> {
    /// The newest messages of the page that fit, oldest first.
    pub(super) fn history(
        &mut self,
        to: u64,
        page: &Page,
    ) -> Result<(FromStore, Outcome), StoreFault> {
        let end = page.before.min(rows::head(&self.index, &page.convo)? + 1);
        let first = end.saturating_sub(u64::from(page.limit)).max(1);
        let mut found: Vec<(u64, Location)> = Vec::new();
        rows::locations(&self.index, &page.convo, first, &mut |seq, location| {
            let wanted = seq < end;
            if wanted {
                found.push((seq, location));
            }
            wanted
        })?;
        let unaccounted = end.saturating_sub(first) - found.len() as u64;
        let size_max = (page.size_max as usize).min(ANSWER_SIZE_MAX);
        let mut size = 0;
        let fits = found.iter().rev().take_while(|(_, location)| {
            size += location.size as usize;
            size <= size_max
        });
        let kept = fits.count().max(1).min(found.len());
        let kept = found.split_off(found.len() - kept);
        Ok(self.messages(to, &page.convo, &kept, unaccounted))
    }

    /// One row per conversation, as its member `user` sees it.
    pub(super) fn overviews(
        &self,
        to: u64,
        user: &Id,
        convos: &[ConversationName],
    ) -> Result<FromStore, StoreFault> {
        let mut devices: HashMap<Id, Vec<Id>> = HashMap::new();
        let mut reached = |member: &Id, convo: &str| -> Result<(u64, u64), StoreFault> {
            if !devices.contains_key(member) {
                devices.insert(member.clone(), rows::devices(&self.index, member)?);
            }
            self.reached(member, &devices[member], convo)
        };
        let mut found = Vec::with_capacity(convos.len());
        for convo in convos {
            if let Some(row) = rows::subscription(&self.index, user, convo)? {
                found.push(self.channel_overview(user, convo, row)?);
                continue;
            }
            let head = rows::head(&self.index, convo)?;
            let (mut delivered, mut read) = (0, 0);
            let (mut others_delivered, mut others_read) = (head, head);
            for (member, begins_after) in self.members(convo)? {
                // What was there before he joined is none of his.
                let (has, has_read) = reached(&member, convo)?;
                let (has, has_read) = (has.max(begins_after), has_read.max(begins_after));
                if member == *user {
                    (delivered, read) = (has, has_read);
                } else {
                    others_delivered = others_delivered.min(has);
                    others_read = others_read.min(has_read);
                }
            }
            let unread = self.unread(user, convo, read, head)?;
            let convo = convo.clone();
            found.push(Overview {
                convo,
                head,
                delivered,
                read,
                unread,
                others_delivered,
                others_read,
            });
        }
        Ok(FromStore::Overviews { to, rows: found })
    }

    /// A channel as a subscriber sees it: at the others, any number, nobody looks.
    fn channel_overview(
        &self,
        user: &Id,
        convo: &ConversationName,
        row: Subscription,
    ) -> Result<Overview, StoreFault> {
        let head = rows::head(&self.index, convo)?;
        let devices = rows::devices(&self.index, user)?;
        let (delivered, read) = self.reached(user, &devices, convo)?;
        let (delivered, read) = (delivered.max(row.since - 1), read.max(row.since - 1));
        let unread = self.unread(user, convo, read, head)?;
        let (convo, others_delivered, others_read) = (convo.clone(), 0, 0);
        Ok(Overview { convo, head, delivered, read, unread, others_delivered, others_read })
    }

    /// How far everybody in a group has come, and who sent its last messages.
    pub(super) fn watermarks(&self, to: u64, convo: &str) -> Result<FromStore, StoreFault> {
        let mut found = Vec::new();
        for (user, begins_after) in self.members(convo)? {
            let devices = rows::devices(&self.index, &user)?;
            let (delivered, read) = self.reached(&user, &devices, convo)?;
            let (delivered, read) = (delivered.max(begins_after), read.max(begins_after));
            found.push(Reached { user, delivered, read });
        }
        let mut senders = Vec::new();
        let first = (rows::head(&self.index, convo)? + 1).saturating_sub(SENDER_COUNT);
        rows::locations(&self.index, convo, first, &mut |seq, location| {
            senders.push((seq, location.sender));
            true
        })?;
        Ok(FromStore::Watermarks { to, rows: found, senders })
    }

    /// The furthest that any of a user's devices has come.
    fn reached(&self, user: &Id, devices: &[Id], convo: &str) -> Result<(u64, u64), StoreFault> {
        let mut highest = (0, 0);
        for device in devices {
            if let Some(row) = rows::cursor_of(&self.index, user, device, convo)? {
                highest = (highest.0.max(row.delivered), highest.1.max(row.read));
            }
        }
        Ok(highest)
    }

    /// Everyone in a conversation, with the seq that he begins after.
    fn members(&self, convo: &str) -> Result<Vec<(Id, u64)>, StoreFault> {
        if let Some((first, second)) = direct_members(convo) {
            let mut both = vec![(Id::from(first), 0), (Id::from(second), 0)];
            both.dedup();
            return Ok(both);
        }
        let mut after = Bytes::new();
        let mut found = Vec::new();
        loop {
            let piece = rows::group(&self.index, convo, &after, ANSWER_SIZE_MAX)?;
            let present = piece.members.into_iter().filter(Member::is_in);
            found.extend(present.map(|member| {
                let begins_after = member.last_stay().joined - 1;
                (member.user, begins_after)
            }));
            after = piece.next;
            if after.is_empty() {
                return Ok(found);
            }
        }
    }

    fn unread(&self, user: &Id, convo: &str, read: u64, head: u64) -> Result<u64, StoreFault> {
        let own = rows::sender_hash(user);
        let end = head.min(read + UNREAD_COUNT_EXACT);
        let mut count = head - end;
        rows::locations(&self.index, convo, read + 1, &mut |seq, location| {
            let counted = seq <= end;
            count += u64::from(counted && location.sender != own);
            counted
        })?;
        Ok(count)
    }
}
