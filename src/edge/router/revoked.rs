//! Which devices were revoked while a ticket of theirs may live, as the sequencer tells it: so a
//! ticket from before is refused at the door. Of more than are remembered here the sequencer lets
//! none in either.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::{EXPIRED_CODE, Router, Surroundings};
use crate::limits::{REVOCATION_COUNT_MAX, TICKET_LIFETIME_MS};
use crate::link::message::{PushTarget, SessionNumber};
use crate::link::record::{Id, Revocation};

/// See the module.
#[derive(Default)]
pub(super) struct Revoked {
    /// The last session's number whose ticket is void.
    upto: HashMap<(Id, Id), SessionNumber>,
    /// In the order in which they were told, some perhaps twice.
    order: VecDeque<Revocation>,
}

impl Revoked {
    /// Some of them may be known.
    pub fn note(&mut self, revocations: Vec<Revocation>, now_unix_ms: u64) {
        for revocation in revocations {
            let key = (revocation.user.clone(), revocation.device.clone());
            let number = number_of(&revocation);
            if self.upto.get(&key).is_some_and(|known| *known >= number) {
                continue;
            }
            self.upto.insert(key, number);
            self.order.push_back(revocation);
        }
        let since_ms = now_unix_ms.saturating_sub(TICKET_LIFETIME_MS);
        while self.order.len() > REVOCATION_COUNT_MAX
            || self.order.front().is_some_and(|oldest| oldest.ts < since_ms)
        {
            let Some(oldest) = self.order.pop_front() else { return };
            let number = number_of(&oldest);
            let key = (oldest.user, oldest.device);
            if self.upto.get(&key) == Some(&number) {
                self.upto.remove(&key);
            }
        }
    }

    /// All of them, for another process to go on with.
    pub fn all(&self) -> Vec<Revocation> {
        self.order.iter().cloned().collect()
    }
}

fn number_of(revocation: &Revocation) -> SessionNumber {
    SessionNumber { epoch: revocation.epoch, counter: revocation.counter }
}

impl Router {
    /// Whether the ticket that a session was given is void.
    pub fn is_revoked(&self, user: &Id, device: &Id, session: SessionNumber) -> bool {
        let upto = self.revoked.upto.get(&(user.clone(), device.clone()));
        upto.is_some_and(|upto| session <= *upto)
    }

    /// The device of a connection was revoked.
    pub(super) fn cut_revoked(&mut self, target: &PushTarget, around: &mut Surroundings) {
        if let Some(id) = self.addressee(target) {
            self.counters.cut_revoked += 1;
            self.close(id, EXPIRED_CODE, "the device was revoked", around);
        }
    }
}
