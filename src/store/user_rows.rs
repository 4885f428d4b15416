//! What the index keeps of one user, read in pieces.

use bytes::Bytes;

use super::dead_letters;
use super::index::{Index, IndexFault, Keyspace};
use super::rows::{cursor, decode, key, texts};
use crate::link::message::FromStore;
use crate::link::record::{
    ConversationName, Cursor, Failure, Id, Member, Revocation, Subscription,
};

/// Bytes of a cursor in an answer beside its names, which its key holds.
const CURSOR_SIZE: usize = 24;

/// A piece of what is kept of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPiece {
    /// Each with when it was last there.
    pub devices: Vec<(Id, u64)>,
    pub cursors: Vec<Cursor>,
    pub groups: Vec<(ConversationName, Member)>,
    pub channels: Vec<(ConversationName, Subscription)>,
    pub revoked: Vec<Revocation>,
    pub hidden: bool,
    pub dead: Vec<(ConversationName, u64)>,
    pub failures: Vec<Failure>,
    /// Empty, or where the next piece begins: a keyspace's tag and the key of the first row.
    pub next: Bytes,
}

/// What is kept of a user, from `after` on, as many rows as fit `size_max` bytes but at least one.
/// What was not made by [`UserPiece::next`] is taken for the start.
pub fn user(
    index: &impl Index,
    user: &str,
    after: &[u8],
    size_max: usize,
) -> Result<UserPiece, IndexFault> {
    let prefix = key(&[user]);
    let mut piece = UserPiece::default();
    let mut size = 0;
    let kinds = [
        Keyspace::Devices,
        Keyspace::Cursors,
        Keyspace::Memberships,
        Keyspace::Subscriptions,
        Keyspace::Revoked,
        Keyspace::DeadFloors,
        Keyspace::Failures,
    ];
    piece.hidden = index.get(Keyspace::Hidden, &prefix)?.is_some();
    let begun = kinds.iter().position(|kind| after.first() == Some(&(*kind as u8)));
    for (place, keyspace) in kinds.into_iter().enumerate().skip(begun.unwrap_or(0)) {
        let start = if begun == Some(place) { &after[1..] } else { prefix.as_slice() };
        let mut broken = false;
        index.scan(keyspace, &prefix, start, &mut |row, value| {
            let row_size = row.len() + value.len() + CURSOR_SIZE;
            size += row_size;
            if size > size_max && size > row_size {
                piece.next = [&[keyspace as u8], row].concat().into();
                return false;
            }
            broken = !piece.take(keyspace, user, &row[prefix.len()..], value);
            !broken
        })?;
        if broken {
            return Err(IndexFault::Row(keyspace));
        }
        if !piece.next.is_empty() {
            break;
        }
    }
    Ok(piece)
}

impl UserPiece {
    /// The answer to entry `to`.
    pub fn into_answer(self, to: u64) -> FromStore {
        let UserPiece { devices, cursors, groups, channels, revoked, hidden, .. } = self;
        let UserPiece { dead, failures, next, .. } = self;
        FromStore::User {
            to,
            devices,
            cursors,
            groups,
            channels,
            revoked,
            hidden,
            dead,
            failures,
            next,
        }
    }

    /// Adds a row; false if it cannot be decoded.
    fn take(&mut self, keyspace: Keyspace, user: &str, rest: &[u8], value: &[u8]) -> bool {
        if keyspace == Keyspace::Cursors {
            let cursor = cursor(user, rest, value);
            let good = cursor.is_some();
            self.cursors.extend(cursor);
            return good;
        }
        if keyspace == Keyspace::Memberships {
            let member = decode::<Member>(keyspace, value);
            return match (texts(rest).as_deref(), member) {
                (Some([convo]), Ok(member)) => {
                    self.groups.push((Id::from(*convo), member));
                    true
                }
                _ => false,
            };
        }
        if keyspace == Keyspace::Subscriptions {
            let subscription = decode::<Subscription>(keyspace, value);
            return match (texts(rest).as_deref(), subscription) {
                (Some([convo]), Ok(subscription)) => {
                    self.channels.push((Id::from(*convo), subscription));
                    true
                }
                _ => false,
            };
        }
        if keyspace == Keyspace::Failures {
            let failure = dead_letters::failure_of(rest, value);
            let good = failure.is_some();
            self.failures.extend(failure);
            return good;
        }
        if keyspace == Keyspace::DeadFloors {
            let floor = decode::<dead_letters::Floor>(keyspace, value);
            return match (texts(rest).as_deref(), floor) {
                (Some([convo]), Ok(floor)) => {
                    self.dead.push((ConversationName::from(*convo), floor.upto));
                    true
                }
                _ => false,
            };
        }
        if keyspace == Keyspace::Revoked {
            let revocation = decode::<Revocation>(keyspace, value);
            return revocation.map(|revocation| self.revoked.push(revocation)).is_ok();
        }
        match (texts(rest).as_deref(), decode::<u64>(keyspace, value)) {
            (Some([device]), Ok(seen)) => self.devices.push((Id::from(*device), seen)),
            _ => return false,
        }
        true
    }
}
