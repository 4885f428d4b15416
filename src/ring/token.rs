//! What a completion carries: which kind of request, of which slot, in which of its lives.

/// What kind of request a completion answers. The owner of a ring tells its requests apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A client listener.
    Accept = 1,
    /// A client connection's receive.
    Receive = 2,
    /// A client connection's send.
    Send = 3,
    /// A link listener.
    LinkAccept = 4,
    /// An outgoing link being opened.
    LinkConnect = 5,
    /// A link's receive.
    LinkReceive = 6,
    /// A link's send.
    LinkSend = 7,
    /// An event descriptor of another thread.
    Wake = 8,
    /// Reserved for the ring itself; never delivered.
    Internal = 9,
}

/// `user_data` of a request: kind (8 bits), slot (24 bits), generation (32 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Slots per ring: the kernel's own bound of a registered-file table is 2^20.
    pub const SLOT_MAX: u32 = (1 << 24) - 1;

    /// # Panics
    /// When `slot` is above [`Token::SLOT_MAX`]: a table that large cannot be registered.
    pub fn new(kind: Kind, slot: u32, generation: u32) -> Token {
        assert!(slot <= Token::SLOT_MAX, "slot {slot} does not fit a token");
        Token((kind as u64) << 56 | u64::from(slot) << 32 | u64::from(generation))
    }

    /// The token as the kernel carries it.
    pub fn to_raw(self) -> u64 {
        self.0
    }

    /// `None` when the kind is not one of ours.
    pub fn from_raw(raw: u64) -> Option<Token> {
        Kind::from_byte((raw >> 56) as u8).map(|_| Token(raw))
    }

    pub fn kind(self) -> Kind {
        Kind::from_byte((self.0 >> 56) as u8).expect("a token is only made from a known kind")
    }

    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & Token::SLOT_MAX
    }

    pub fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Accept,
            2 => Kind::Receive,
            3 => Kind::Send,
            4 => Kind::LinkAccept,
            5 => Kind::LinkConnect,
            6 => Kind::LinkReceive,
            7 => Kind::LinkSend,
            8 => Kind::Wake,
            9 => Kind::Internal,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_byte() {
        let known = (0..=u8::MAX).filter_map(Kind::from_byte);
        assert!(known.clone().all(|kind| Kind::from_byte(kind as u8) == Some(kind)));
        assert_eq!(known.count(), Kind::Internal as usize);
    }

    #[test]
    fn a_token_gives_back_its_parts() {
        let token = Token::new(Kind::LinkSend, Token::SLOT_MAX, u32::MAX);
        let back = Token::from_raw(token.to_raw()).expect("made from a known kind");
        assert_eq!((back.kind(), back.slot()), (Kind::LinkSend, Token::SLOT_MAX));
        assert_eq!(back.generation(), u32::MAX);
        assert_eq!(Token::from_raw(0), None);
    }
}
