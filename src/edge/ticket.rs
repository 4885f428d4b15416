//! Tickets: a client that was welcomed once reconnects with nothing else, on any edge.
//!
//! A ticket is base64url (RFC 4648 section 5, no padding) over: version (1), when it expires
//! (u64, little endian, ms since 1970), the size of the user id (u8), the user id, the device id,
//! and HMAC-SHA-256 over all of that under the link secret. It proves itself; no edge stores any.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::protocol::conversation::is_id;

/// How long a ticket is good for, in milliseconds.
pub const TICKET_LIFETIME_MS: u64 = 24 * 60 * 60 * 1_000;

const VERSION: u8 = 1;
const MAC_SIZE: usize = 32;
const HEAD_SIZE: usize = 1 + 8 + 1;
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

    /// A ticket for `user` on `device`, good until `now_unix_ms + TICKET_LIFETIME_MS`.
    pub fn issue(&self, user: &str, device: &str, now_unix_ms: u64) -> String {
        self.issue_until(user, device, now_unix_ms + TICKET_LIFETIME_MS)
    }

    /// A ticket for `user` on `device`, good until `expires_unix_ms`.
    pub fn issue_until(&self, user: &str, device: &str, expires_unix_ms: u64) -> String {
        let user_size = u8::try_from(user.len()).expect("ids have at most 64 bytes");
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&expires_unix_ms.to_le_bytes());
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
        let (head, ids) = signed.split_at_checked(HEAD_SIZE)?;
        let expires_unix_ms = u64::from_le_bytes(head[1..9].try_into().ok()?);
        let (user, device) = ids.split_at_checked(usize::from(head[9]))?;
        let (user, device) = (String::from_utf8(user.into()), String::from_utf8(device.into()));
        let (user, device) = (user.ok()?, device.ok()?);
        let good = head[0] == VERSION && now_unix_ms < expires_unix_ms;
        let good = good && is_id(&user) && is_id(&device);
        good.then_some(Ticket { user, device, expires_unix_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_until_it_expires() {
        let tickets = Tickets::new(b"secret");
        let ticket = tickets.issue("al:ice", "\u{e4}", 1_000);
        let expires_unix_ms = 1_000 + TICKET_LIFETIME_MS;
        let (user, device) = ("al:ice".to_owned(), "\u{e4}".to_owned());
        let identity = Some(Ticket { user, device, expires_unix_ms });
        assert_eq!(tickets.check(&ticket, 1_000), identity);
        assert_eq!(tickets.check(&ticket, 999 + TICKET_LIFETIME_MS), identity);
        assert_eq!(tickets.check(&ticket, 1_000 + TICKET_LIFETIME_MS), None);
        assert!(ticket.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn no_other_ticket_is_good() {
        let tickets = Tickets::new(b"secret");
        let ticket = tickets.issue("alice", "phone", 1_000);
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
