//! How two processes meet: who they are, that both know the secret, and which session they
//! continue.
//!
//! Four frames: the initiator's hello, the responder's challenge, the initiator's proof, the
//! responder's begin. Both hellos, with a fresh nonce each, enter both proofs: an old greeting
//! replayed proves nothing, and neither side's answer can be reflected as its own.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::frame::LinkViolation;
use super::record::Id;
use super::wire::{Wire, wire_enum, wire_struct};

/// Raised with every change of a frame, message or record.
pub const LINK_VERSION: u16 = 1;

wire_enum! {
    /// What kind of process speaks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Role {
        1 = Edge,
        2 = Sequencer,
        3 = Store,
    }
}

wire_struct! {
    /// Who speaks.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Hello {
        pub version: u16,
        pub role: Role,
        /// Names the process among those of its role; kept over restarts.
        pub name: Id,
        /// Random, new at every process start.
        pub incarnation: u64,
        /// Never used twice.
        pub nonce: u64,
        /// The highest durable log position that this process has seen.
        pub durable_seen: u64,
    }
}

wire_struct! {
    /// The responder's answer to a hello.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Challenge {
        pub hello: Hello,
        pub proof: Bytes,
    }
}

wire_struct! {
    /// The initiator's answer to a challenge.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Proof {
        pub proof: Bytes,
        /// The session it would continue; 0: none.
        pub session: u64,
        /// What it has received in that session.
        pub received: u64,
    }
}

wire_struct! {
    /// The responder's last word; entries follow in both directions.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Begin {
        pub session: u64,
        /// `session` is the one that the initiator named, and goes on.
        pub resumed: bool,
        /// What the responder has received in it.
        pub received: u64,
    }
}

/// The secret that all processes of one deployment share.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: &[u8]) -> Secret {
        Secret(bytes.to_vec())
    }

    /// HMAC-SHA-256 (RFC 2104) over the side that speaks and both hellos.
    pub fn prove(&self, speaker: Role, initiator: &Hello, responder: &Hello) -> Bytes {
        Bytes::copy_from_slice(&self.mac(speaker, initiator, responder).finalize().into_bytes())
    }

    /// Compares in constant time.
    pub fn check(
        &self,
        speaker: Role,
        initiator: &Hello,
        responder: &Hello,
        proof: &[u8],
    ) -> Result<(), LinkViolation> {
        let mac = self.mac(speaker, initiator, responder);
        mac.verify_slice(proof).map_err(|_| LinkViolation::Secret)
    }

    fn mac(&self, speaker: Role, initiator: &Hello, responder: &Hello) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key size");
        mac.update(b"aldis link");
        mac.update(&speaker.to_bytes());
        mac.update(&initiator.to_bytes());
        mac.update(&responder.to_bytes());
        mac
    }
}

/// Refuses another version before anything else is looked at.
pub fn check_version(hello: &Hello) -> Result<(), LinkViolation> {
    if hello.version == LINK_VERSION { Ok(()) } else { Err(LinkViolation::Version(hello.version)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(role: Role, nonce: u64) -> Hello {
        let name = Id::from("name");
        Hello { version: LINK_VERSION, role, name, incarnation: 5, nonce, durable_seen: 0 }
    }

    #[test]
    fn only_the_secret_and_this_greeting_prove() {
        let (edge, sequencer) = (hello(Role::Edge, 1), hello(Role::Sequencer, 2));
        let secret = Secret::new(b"secret");
        let proof = secret.prove(Role::Edge, &edge, &sequencer);
        assert_eq!(secret.check(Role::Edge, &edge, &sequencer, &proof), Ok(()));
        let refused = Err(LinkViolation::Secret);
        assert_eq!(Secret::new(b"other").check(Role::Edge, &edge, &sequencer, &proof), refused);
        assert_eq!(secret.check(Role::Sequencer, &edge, &sequencer, &proof), refused);
        let later = hello(Role::Sequencer, 3);
        assert_eq!(secret.check(Role::Edge, &edge, &later, &proof), refused);
        assert_eq!(secret.check(Role::Edge, &edge, &sequencer, &proof[..31]), refused);
    }
}
