//! What is owed to whom, from the log alone, and where it is, from the rows as they are stored.
//!
//! An obligation is a message and a device of somebody who was in the conversation at its seq (the
//! user himself, while he has no device). Of one device in one conversation those are stretches of
//! seqs, so the sets are compared as stretches: what is acknowledged, what is behind the marker,
//! what is above the fan-out position. What is in none of them is lost, and is named.

use std::collections::{BTreeMap, BTreeSet};

use super::{Deliveries, Finding, Findings};
use crate::link::record::{Message, Record};
use crate::protocol::conversation::direct_members;
use crate::store::index::{Index, IndexFault};
use crate::store::ledger::{Chain, Link};
use crate::store::rows::{self, CursorRow};

use super::expected::Origin;

/// Where the marker of a user without a device is.
const NO_DEVICE: &str = "";

/// One stay in a group: joined and left (0: he is in).
type Stays = BTreeMap<u64, u64>;

#[derive(Default)]
struct Conversation {
    head: u64,
    /// The head as of the fan-out position.
    settled: u64,
    chain: Chain,
    members: BTreeMap<String, Stays>,
}

/// What the log says. See the module.
#[derive(Default)]
pub struct Obligations {
    conversations: BTreeMap<String, Conversation>,
    devices: BTreeMap<String, BTreeSet<String>>,
    /// By conversation and user: up to where his inbox was emptied into the dead letters.
    floors: BTreeMap<String, BTreeMap<String, u64>>,
    /// Messages in the log; and those that a repair gave up.
    pub messages: u64,
    pub given_up: u64,
    unknown_lost: u64,
    fanned_out: u64,
}

impl Obligations {
    /// `fanned_out`: the position, as stored.
    pub fn new(fanned_out: u64) -> Obligations {
        Obligations { fanned_out, ..Obligations::default() }
    }

    /// The next record of the log. Returns the chain of its conversation, if it is a message.
    pub fn note(
        &mut self,
        record: &Record,
        origin: Origin,
        findings: &mut Findings,
    ) -> Option<(String, Chain)> {
        match record {
            Record::Message { message } => self.note_message(message, origin, findings),
            Record::Group { message, members, .. } => {
                self.note_message(message, origin, findings);
                let convo = self.conversations.entry(message.convo.to_string()).or_default();
                for member in members {
                    let stays = convo.members.entry(member.user.to_string()).or_default();
                    stays.extend(member.stays.iter().map(|stay| (stay.joined, stay.left)));
                }
            }
            Record::Lost { message: Some(lost) } => {
                self.given_up += 1;
                self.advance(&lost.convo, lost.seq, origin, findings);
            }
            Record::Lost { message: None } => self.unknown_lost += 1,
            Record::Device { user, device, .. } => {
                self.devices.entry(user.to_string()).or_default().insert(device.to_string());
            }
            Record::Cursors { cursors } => {
                for cursor in cursors {
                    let head = self.conversations.get(&*cursor.convo).map_or(0, |it| it.head);
                    // What a repair gave up and could not name may have been its last messages.
                    if cursor.delivered.max(cursor.read) > head && self.unknown_lost == 0 {
                        let seq = Some(cursor.delivered.max(cursor.read));
                        let what = format!("a cursor of {} is beyond the head", cursor.user);
                        findings.push(Finding::at(what, origin, &cursor.convo, seq));
                    }
                }
            }
            // Nobody is owed what is in a channel: its subscribers read it.
            Record::Channel { message, .. } => self.note_message(message, origin, findings),
            // What the device had not seen is owed to the others, or to the user without one.
            Record::Revoked { revocation } => {
                if let Some(devices) = self.devices.get_mut(&*revocation.user) {
                    devices.remove(&*revocation.device);
                }
            }
            Record::Dead { user, convo, last, .. } => self.note_floor(user, convo, *last),
            Record::Replayed { user, convo, first, .. } => {
                self.note_floor(user, convo, first.saturating_sub(1));
            }
            Record::FannedOut { .. } | Record::Edge { .. } | Record::Epoch { .. } => {}
            Record::Subscription { .. } | Record::Seen { .. } | Record::Privacy { .. } => {}
            Record::ServiceTime { .. } | Record::Told { .. } | Record::Forgotten { .. } => {}
        }
        let (name, link) = Link::of(record)?;
        let convo = self.conversations.entry(name.to_owned()).or_default();
        convo.chain = convo.chain.with(&link);
        Some((name.to_owned(), convo.chain))
    }

    fn note_floor(&mut self, user: &str, convo: &str, upto: u64) {
        let floors = self.floors.entry(convo.to_owned()).or_default();
        floors.insert(user.to_owned(), upto);
    }

    fn note_message(&mut self, message: &Message, origin: Origin, findings: &mut Findings) {
        self.messages += 1;
        self.advance(&message.convo, message.seq, origin, findings);
    }

    fn advance(&mut self, name: &str, seq: u64, origin: Origin, findings: &mut Findings) {
        let convo = self.conversations.entry(name.to_owned()).or_default();
        let expected = convo.head + 1;
        // Lost records that nothing is known of may have been the ones that are missing.
        let gap = seq.saturating_sub(expected);
        if seq < expected || gap > self.unknown_lost {
            let what = format!("seq {seq} follows seq {}", convo.head);
            findings.push(Finding::at(what, origin, name, Some(expected)));
        } else {
            self.unknown_lost -= gap;
            self.given_up += gap;
        }
        convo.head = convo.head.max(seq);
        if origin.lsn <= self.fanned_out {
            convo.settled = convo.head;
        }
    }

    pub fn conversation_count(&self) -> u64 {
        self.conversations.len() as u64
    }

    /// Whether a repair gave up anything.
    pub fn is_anything_given_up(&self) -> bool {
        self.given_up > 0 || self.unknown_lost > 0
    }

    /// Compares the sets; with what was accepted, by the heads as stored, and what was given up.
    pub fn settle(
        &self,
        index: &impl Index,
        findings: &mut Findings,
    ) -> Result<(Deliveries, u64, u64), IndexFault> {
        let mut deliveries = Deliveries::default();
        let (mut accepted, mut given_up, mut unknown) = (0, self.given_up, self.unknown_lost);
        for (name, convo) in &self.conversations {
            let head = rows::head(index, name)?;
            accepted += head;
            let gap = head.saturating_sub(convo.head);
            if gap <= unknown {
                unknown -= gap;
                given_up += gap;
            }
            if let Some((first, second)) = direct_members(name) {
                let whole = Stays::from([(1, 0)]);
                for user in BTreeSet::from([first, second]) {
                    let owed = Owed { name, convo, user: &user, stays: &whole };
                    self.settle_user(&owed, index, &mut deliveries, findings)?;
                }
            }
            for (user, stays) in &convo.members {
                let owed = Owed { name, convo, user, stays };
                self.settle_user(&owed, index, &mut deliveries, findings)?;
            }
        }
        Ok((deliveries, accepted, given_up))
    }

    fn settle_user(
        &self,
        owed: &Owed,
        index: &impl Index,
        deliveries: &mut Deliveries,
        findings: &mut Findings,
    ) -> Result<(), IndexFault> {
        let nobody = BTreeSet::from([NO_DEVICE.to_owned()]);
        let floor = self.floors.get(owed.name).and_then(|floors| floors.get(owed.user));
        let floor = floor.copied().unwrap_or(0);
        let devices = self.devices.get(owed.user).filter(|devices| !devices.is_empty());
        for device in devices.unwrap_or(&nobody) {
            let row = rows::cursor_of(index, owed.user, device, owed.name)?;
            let row = row.unwrap_or(CursorRow { delivered: 0, read: 0, marker: 0 });
            if let Some(seq) = owed.settle(row, floor, deliveries) {
                let what = format!(
                    "{} of {} has neither acknowledged it nor a marker for it, and fan-out has \
                     passed it",
                    if device.is_empty() { "the user without a device" } else { device },
                    owed.user
                );
                let (convo, seq) = (Some(owed.name.to_owned()), Some(seq));
                findings.push(Finding { what, convo, seq, ..Finding::default() });
            }
        }
        Ok(())
    }
}

/// What one user is owed in one conversation.
struct Owed<'a> {
    name: &'a str,
    convo: &'a Conversation,
    user: &'a str,
    stays: &'a Stays,
}

impl Owed<'_> {
    /// Sorts what one device is owed; returns the first that is nowhere.
    fn settle(&self, row: CursorRow, floor: u64, deliveries: &mut Deliveries) -> Option<u64> {
        let mut nowhere = None;
        let last_stay = self.stays.keys().next_back().copied();
        for (&joined, &left) in self.stays {
            let head = self.convo.head;
            let end = if left == 0 { head } else { left.min(head) } + 1;
            let start = joined.max(1).min(end);
            deliveries.owed += end - start;
            // Acknowledged, then dead, then marked, then above the fan-out position, then nowhere.
            let acknowledged = (row.delivered + 1).clamp(start, end);
            deliveries.delivered += acknowledged - start;
            let alive = (floor + 1).clamp(acknowledged, end);
            deliveries.dead_lettered += alive - acknowledged;
            let marked = if row.marker == 0 { end } else { row.marker.clamp(alive, end) };
            deliveries.in_inboxes += end - marked;
            let flying = (self.convo.settled + 1).clamp(alive, marked);
            deliveries.in_flight += marked - flying;
            let rest = flying - alive;
            if Some(joined) == last_stay {
                deliveries.unaccounted += rest;
                nowhere = (rest > 0).then_some(alive).or(nowhere);
            } else {
                // Who has left and come back hears nothing more of the time before.
                deliveries.left += rest;
            }
        }
        nowhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(row: (u64, u64), floor: u64, stays: &[(u64, u64)]) -> (Deliveries, Option<u64>) {
        let convo = Conversation { head: 10, settled: 7, ..Conversation::default() };
        let stays = stays.iter().copied().collect();
        let owed = Owed { name: "g", convo: &convo, user: "bob", stays: &stays };
        let mut deliveries = Deliveries::default();
        let row = CursorRow { delivered: row.0, read: 0, marker: row.1 };
        let nowhere = owed.settle(row, floor, &mut deliveries);
        (deliveries, nowhere)
    }

    /// The same by looking at every message.
    fn naive(
        (delivered, marker): (u64, u64),
        floor: u64,
        stays: &[(u64, u64)],
    ) -> (Deliveries, Option<u64>) {
        let (mut deliveries, mut nowhere) = (Deliveries::default(), None);
        for (index, &(joined, left)) in stays.iter().enumerate() {
            for seq in (joined..=10).filter(|seq| left == 0 || *seq <= left) {
                deliveries.owed += 1;
                let is_last = index + 1 == stays.len();
                let place = match seq {
                    _ if seq <= delivered => &mut deliveries.delivered,
                    _ if seq <= floor => &mut deliveries.dead_lettered,
                    _ if marker != 0 && seq >= marker => &mut deliveries.in_inboxes,
                    8.. => &mut deliveries.in_flight,
                    _ if is_last => {
                        nowhere = nowhere.or(Some(seq));
                        &mut deliveries.unaccounted
                    }
                    _ => &mut deliveries.left,
                };
                *place += 1;
            }
        }
        (deliveries, nowhere)
    }

    #[test]
    fn stretches_are_sorted_as_each_message_is() {
        let stays: [&[(u64, u64)]; 5] =
            [&[(1, 0)], &[(3, 0)], &[(2, 6)], &[(1, 3), (5, 0)], &[(2, 4), (8, 9)]];
        for stays in stays {
            for delivered in 0..=10 {
                for (marker, floor) in (0..=11).flat_map(|it| [(it, 0), (it, 4), (it, 9)]) {
                    let row = (delivered, marker);
                    let (one, other) = (settled(row, floor, stays), naive(row, floor, stays));
                    assert_eq!(one, other, "{row:?} {floor} {stays:?}");
                }
            }
        }
    }
}
