//! Acknowledgements and markers: cursors that only move forward, and reach the log coalesced.

use super::appender::Waiter;
use super::conversation::Task as ConversationTask;
use super::core::Sequencer;
use super::membership::Standing;
use super::order::check_access;
use super::requests::Refusal;
use super::user::Task;
use crate::limits::{BATCH_SIZE_MAX, CONVERSATION_NAME_SIZE_MAX, ID_SIZE_MAX};
use crate::link::Outlet;
use crate::link::message::{Code, ToEdge, Watermark};
use crate::link::record::{ConversationName, Cursor, Id, Record};

/// Rows in one record. An entry that is larger than the link takes would be refused for ever, with
/// everything that waits behind it.
const CURSOR_COUNT_MAX: usize = 1_024;
/// Two ids and a name of the greatest length, and the numbers.
const CURSOR_SIZE_MAX: usize = 2 * ID_SIZE_MAX + CONVERSATION_NAME_SIZE_MAX + 64;

const _: () = assert!(CURSOR_COUNT_MAX * CURSOR_SIZE_MAX <= BATCH_SIZE_MAX);

/// A client's acknowledgement.
pub struct Raise {
    pub waiter: Waiter,
    pub device: Id,
    pub convo: ConversationName,
    pub seq: u64,
    pub watermark: Watermark,
}

impl Sequencer {
    pub(super) fn acknowledge(&mut self, user: Id, raise: Raise, out: &mut dyn Outlet) {
        if let Err((code, why)) = check_access(&raise.convo, &user) {
            return self.refuse(raise.waiter, code, why, out);
        }
        self.with_conversation(raise.convo.clone(), ConversationTask::Raise(user, raise), out);
    }

    /// The conversation is loaded: an acknowledgement beyond its head is refused.
    pub(super) fn raise_checked(&mut self, user: Id, raise: Raise, out: &mut dyn Outlet) {
        // Who has left may still acknowledge what he heard.
        let refusal = match self.standing(&raise.convo, &user) {
            Standing::Member { .. } => None,
            Standing::Former { left } if raise.seq <= left => None,
            Standing::Former { .. } | Standing::Stranger => Some(Refusal::not_member(raise.waiter)),
            Standing::Nowhere => Some(Refusal::no_such_conversation(raise.waiter)),
        };
        if refusal.is_some() {
            return self.check_claim(refusal, out);
        }
        let head = self.conversations.get(&raise.convo).map_or(0, |entry| entry.durable_head);
        if head == 0 {
            return self.check_claim(Some(Refusal::no_such_conversation(raise.waiter)), out);
        }
        if raise.seq > head {
            let (waiter, code, why) = (raise.waiter, Code::BadRequest, "beyond the head");
            return self.check_claim(Some(Refusal { waiter, code, why }), out);
        }
        self.with_user(user, Task::Raise(raise), out);
    }

    /// The user is loaded: the cursor rises, and waits for the log.
    pub(super) fn raise(&mut self, user: &Id, raise: Raise, out: &mut dyn Outlet) {
        let Raise { waiter, device, convo, seq, watermark } = raise;
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let Some(owner) = entry.devices.get_mut(&device) else {
            return self.refuse(waiter, Code::Unavailable, "this device is gone", out);
        };
        let cursor = owner.cursors.entry(convo.clone()).or_default();
        let before = (cursor.delivered, cursor.read);
        cursor.delivered = cursor.delivered.max(seq);
        if watermark == Watermark::Read {
            cursor.read = cursor.read.max(seq);
        }
        let risen = (cursor.delivered, cursor.read) != before;
        let settled = (cursor.durable_delivered, cursor.durable_read) == before;
        if !risen && settled {
            return self.answer(waiter, ToEdge::Done { to: waiter.number }, out);
        }
        if risen {
            self.counters.acknowledgements_total += 1;
            if let Some(session) = &mut owner.session {
                session.acknowledged(&convo, seq);
            }
        }
        self.gather((user.clone(), device, convo), Some(waiter));
    }

    /// Writes a marker for a device that is behind and has none.
    pub(super) fn mark(&mut self, user: &Id, device: &Id, convo: &ConversationName) {
        let cursor = self.users.get_mut(user).and_then(|user| user.devices.get_mut(device));
        let cursor = cursor.and_then(|device| device.cursors.get_mut(convo));
        let Some(cursor) = cursor else { return };
        if cursor.marker == 0 && cursor.fanned > cursor.floor() {
            cursor.marker = cursor.floor() + 1;
            self.counters.markers_total += 1;
            self.gather((user.clone(), device.clone(), convo.clone()), None);
        }
    }

    /// The cursors that changed go into one record, as they stand now.
    pub(super) fn flush_gathered(&mut self) {
        let due = self.now.monotonic_us >= self.gathered.since_us + super::core::GATHER_US;
        if self.gathered.rows.is_empty() || !due {
            return;
        }
        let rows = std::mem::take(&mut self.gathered.rows);
        let mut cursors = Vec::with_capacity(rows.len());
        let mut waiters = Vec::new();
        for ((user, device, convo), waiting) in rows {
            waiters.extend(waiting);
            cursors.extend(self.cursor_row(user, device, convo));
        }
        self.append_cursors(cursors, waiters);
    }

    /// Logs rows, however many, in records that fit a batch. Whoever waits is answered after the
    /// last of them.
    pub(super) fn append_cursors(&mut self, mut cursors: Vec<Cursor>, waiters: Vec<Waiter>) {
        while cursors.len() > CURSOR_COUNT_MAX {
            let later = cursors.split_off(CURSOR_COUNT_MAX);
            self.appender().append(Record::Cursors { cursors }, Vec::new());
            cursors = later;
        }
        self.appender().append(Record::Cursors { cursors }, waiters);
    }

    /// A cursor is in the log: from now on it may be told.
    pub(super) fn cursor_durable(&mut self, row: &Cursor) {
        let owner =
            self.users.get_mut(&row.user).and_then(|user| user.devices.get_mut(&row.device));
        let Some(owner) = owner else { return };
        let cursor = owner.cursors.entry(row.convo.clone()).or_default();
        cursor.durable_delivered = cursor.durable_delivered.max(row.delivered);
        cursor.durable_read = cursor.durable_read.max(row.read);
        cursor.durable_marker = row.marker;
        if row.marker == 0 {
            cursor.removals = cursor.removals.saturating_sub(1);
        }
    }

    pub(super) fn gather(&mut self, key: (Id, Id, ConversationName), waiter: Option<Waiter>) {
        if self.gathered.rows.is_empty() {
            self.gathered.since_us = self.now.monotonic_us;
        }
        self.gathered.rows.entry(key).or_default().extend(waiter);
    }

    /// The whole row. Here a marker goes: when the device has acknowledged all that was fanned out.
    fn cursor_row(&mut self, user: Id, device: Id, convo: ConversationName) -> Option<Cursor> {
        let entry = self.conversations.get(&convo).filter(|entry| entry.loaded);
        let head = entry.map_or(u64::MAX, |entry| entry.durable_head);
        let entry = self.users.get_mut(&user)?;
        // To who has left, nothing is fanned out beyond that.
        let left = entry.groups.get(&convo).map_or(0, |member| member.last_stay().left);
        let head = if left == 0 { head } else { head.min(left) };
        let owner = entry.devices.get_mut(&device)?;
        let cursor = owner.cursors.get_mut(&convo)?;
        // Without anything fanned out in this life, only the head itself is known to be enough.
        let last = if cursor.fanned > 0 { cursor.fanned } else { head };
        if cursor.marker != 0 && cursor.floor() >= last {
            cursor.marker = 0;
        } else if cursor.marker != 0 {
            cursor.marker = cursor.floor() + 1;
        }
        cursor.removals += u32::from(cursor.marker == 0);
        let (delivered, read, marker) = (cursor.delivered, cursor.read, cursor.marker);
        Some(Cursor { user, device, convo, delivered, read, marker })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::PeerId;
    use crate::link::message::ToStore;
    use crate::sequencer::appender::Appender;
    use crate::sequencer::budget::Budget;

    #[test]
    fn any_number_of_cursors_is_logged_in_batches_that_a_link_takes() {
        let name = "n".repeat(ID_SIZE_MAX);
        let row = Cursor {
            user: name.as_str().into(),
            device: name.as_str().into(),
            convo: "c".repeat(CONVERSATION_NAME_SIZE_MAX).as_str().into(),
            delivered: u64::MAX,
            read: u64::MAX,
            marker: u64::MAX,
        };
        let mut sequencer = Sequencer::new(1, PeerId(0), Budget::default());
        sequencer.appender = Some(Appender::new(1, 1));
        let waiter = Waiter { peer: PeerId(1), life: 1, number: 1, dup: false, asked_us: 0 };
        sequencer.append_cursors(vec![row; 10_000], vec![waiter]);
        let mut rows = 0;
        while let Some(ToStore::Append { first_lsn, count, records, .. }) =
            sequencer.appender().cut()
        {
            assert!(records.len() <= BATCH_SIZE_MAX, "{} bytes", records.len());
            for decided in sequencer.appender().durable(first_lsn + u64::from(count)) {
                let Record::Cursors { cursors } = decided.record else { panic!("cursors only") };
                rows += cursors.len();
                assert_eq!(decided.waiters.len(), usize::from(rows == 10_000));
            }
        }
        assert_eq!(rows, 10_000);
    }
}
