//! Tickets: a client that was welcomed once reconnects with nothing else, on any edge.
//!
//! A ticket is base64url (RFC 4648 section 5, no padding) over: version (2), when it expires
//! (u64, little endian, ms since 1970), the session that it was given (epoch and counter, u64
//! each), the size of the user id (u8), the user id, the device id, and HMAC-SHA-256 over all of
//! that under the link secret. It proves itself; no edge stores any. What edges do keep is which
//! devices were revoked while a ticket may live: one that names a session from before is void.
//!
//! Version 1 named no session, and counts as given to the first.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::link::message::SessionNumber;
use crate::protocol::conversation::is_id;

pub use crate::limits::TICKET_LIFETIME_MS;

const VERSION: u8 = 2;
const VERSION_WITHOUT_SESSION: u8 = 1;
const MAC_SIZE: usize = 32;
/// Version and expiry.
const HEAD_SIZE: usize = 1 + 8;
const SESSION_SIZE: usize = 8 + 8;
/// The link secret signs hellos as well; no signature of one is ever good for the other.
const PURPOSE: &[u8] = b"aldis ticket\0";

/// How long what a client proved holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// When its connection is closed with 4004, in ms since 1970; `None`: not for that.
    pub ends_unix_ms: Option<u64>,
    /// When tickets issued on the strength of it end at the latest, in ms since 1970; `None`: they
    /// live for [`TICKET_LIFETIME_MS`].
    pub ticket_ends_unix_ms: Option<u64>,
}

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub user: String,
    pub device: String,
    pub expires_unix_ms: u64,
    /// The session that it was given.
    pub session: SessionNumber,
}

/// Issues and checks tickets under one secret.
#[derive(Clone)]
pub struct Tickets {
    keyed: Hmac<Sha256>,
}

impl Tickets {
    /// `secret` may have any size; all edges of one system are given the same.
    pub fn new(secret: &[u8]) -> Tickets {
        let mut keyed = Hmac::new_from_slice(secret).expect("HMAC takes keys of any size");
        keyed.update(PURPOSE);
        Tickets { keyed }
    }

    /// A ticket for `session`, of `user` on `device`, good until `expires_unix_ms`.
    pub fn issue_until(
        &self,
        user: &str,
        device: &str,
        session: SessionNumber,
        expires_unix_ms: u64,
    ) -> String {
        let user_size = u8::try_from(user.len()).expect("ids have at most 64 bytes");
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&expires_unix_ms.to_le_bytes());
        bytes.extend_from_slice(&session.epoch.to_le_bytes());
        bytes.extend_from_slice(&session.counter.to_le_bytes());
        bytes.push(user_size);
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(device.as_bytes());
        let mac = self.keyed.clone().chain_update(&bytes).finalize();
        bytes.extend_from_slice(&mac.into_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What a ticket says that was issued under this secret and has not expired.
    pub fn check(&self, ticket: &str, now_unix_ms: u64) -> Option<Ticket> {
        let bytes = URL_SAFE_NO_PAD.decode(ticket).ok()?;
        let signed_size = bytes.len().checked_sub(MAC_SIZE)?;
        let (signed, mac) = bytes.split_at(signed_size);
        self.keyed.clone().chain_update(signed).verify_slice(mac).ok()?;
        let (head, rest) = signed.split_at_checked(HEAD_SIZE)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        let expires_unix_ms = number(&head[1..])?;
        let (session, rest) = match head[0] {
            VERSION => {
                let (session, rest) = rest.split_at_checked(SESSION_SIZE)?;
                let (epoch, counter) = session.split_at(SESSION_SIZE / 2);
                (SessionNumber { epoch: number(epoch)?, counter: number(counter)? }, rest)
            }
            VERSION_WITHOUT_SESSION => (SessionNumber { epoch: 0, counter: 0 }, rest),
            _ => return None,
        };
        let (user_size, ids) = rest.split_first()?;
        let (user, device) = ids.split_at_checked(usize::from(*user_size))?;
        let (user, device) = (String::from_utf8(user.into()), String::from_utf8(device.into()));
        let (user, device) = (user.ok()?, device.ok()?);
        let good = now_unix_ms < expires_unix_ms && is_id(&user) && is_id(&device);
        good.then_some(Ticket { user, device, expires_unix_ms, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_until_it_expires() {
        let tickets = Tickets::new(b"secret");
        let expires_unix_ms = 1_000 + TICKET_LIFETIME_MS;
        let session = SessionNumber { epoch: 7, counter: 1 << 40 };
        let ticket = tickets.issue_until("al:ice", "\u{e4}", session, expires_unix_ms);
        let (user, device) = ("al:ice".to_owned(), "\u{e4}".to_owned());
        let identity = Some(Ticket { user, device, expires_unix_ms, session });
        assert_eq!(tickets.check(&ticket, 1_000), identity);
        assert_eq!(tickets.check(&ticket, 999 + TICKET_LIFETIME_MS), identity);
        assert_eq!(tickets.check(&ticket, 1_000 + TICKET_LIFETIME_MS), None);
        assert!(ticket.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    /// As an edge of the version before has issued it.
    #[test]
    fn a_ticket_without_a_session_is_good_and_counts_as_the_first() {
        let tickets = Tickets::new(b"secret");
        let mut bytes = vec![1];
        bytes.extend_from_slice(&2_000u64.to_le_bytes());
        bytes.extend_from_slice(b"\x05alicephone");
        let mac = tickets.keyed.clone().chain_update(&bytes).finalize();
        bytes.extend_from_slice(&mac.into_bytes());
        let ticket = tickets.check(&URL_SAFE_NO_PAD.encode(bytes), 1_000).expect("good");
        assert_eq!((&*ticket.user, &*ticket.device), ("alice", "phone"));
        assert_eq!(ticket.session, SessionNumber { epoch: 0, counter: 0 });
    }

    #[test]
    fn no_other_ticket_is_good() {
        let tickets = Tickets::new(b"secret");
        let session = SessionNumber { epoch: 1, counter: 1 };
        let ticket = tickets.issue_until("alice", "phone", session, 2_000);
        assert_eq!(Tickets::new(b"other").check(&ticket, 1_000), None);
        for size in 0..ticket.len() {
            assert_eq!(tickets.check(&ticket[..size], 1_000), None, "prefix of {size}");
        }
        let bytes = URL_SAFE_NO_PAD.decode(&ticket).expect("issued");
        for index in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[index] ^= 1;
            assert_eq!(tickets.check(&URL_SAFE_NO_PAD.encode(forged), 1_000), None);
        }
        assert_eq!(tickets.check(&format!("{ticket}="), 1_000), None);
    }
}
