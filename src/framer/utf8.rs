//! UTF-8 validation over pieces: a text message's bytes arrive in fragments and in halves of
//! frames, and a sequence may be cut anywhere. Fails with the first byte that can begin no valid
//! text.

use simdutf8::compat;

/// The bytes cannot begin any valid text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

/// A validator between two pieces. Invariant: `carry[..carried]` is a proper prefix of one valid
/// sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    carry: [u8; 3],
    carried: u8,
}

impl Validator {
    /// Takes the next piece of the text.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while self.carried > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            self.push_to_carry(byte)?;
        }
        match compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            Err(error) => {
                let cut = &piece[error.valid_up_to()..];
                self.carry[..cut.len()].copy_from_slice(cut);
                self.carried = cut.len() as u8;
                Ok(())
            }
        }
    }

    /// Whether the text may end here: no sequence is cut.
    pub fn is_complete(&self) -> bool {
        self.carried == 0
    }

    fn push_to_carry(&mut self, byte: u8) -> Result<(), NotUtf8> {
        let carried = usize::from(self.carried);
        let mut sequence = [0; 4];
        sequence[..carried].copy_from_slice(&self.carry[..carried]);
        sequence[carried] = byte;
        match std::str::from_utf8(&sequence[..=carried]) {
            Ok(_) => self.carried = 0,
            Err(error) if error.error_len().is_some() => return Err(NotUtf8),
            Err(_) => {
                self.carry[carried] = byte;
                self.carried += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first index at which `bytes[..=index]` can begin no text: the definition, slowly.
    fn first_bad_naive(bytes: &[u8]) -> Option<usize> {
        (0..bytes.len()).find(|&index| {
            std::str::from_utf8(&bytes[..=index]).is_err_and(|error| error.error_len().is_some())
        })
    }

    fn first_bad_bytewise(bytes: &[u8]) -> Option<usize> {
        let mut validator = Validator::default();
        bytes.iter().position(|byte| validator.push(std::slice::from_ref(byte)).is_err())
    }

    #[test]
    fn fails_at_the_very_byte() {
        for bad in [
            &b"ab\xc0\xaf"[..],
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe2\x28\xa1",
            b"\xf8\x88",
            b"\x80",
            b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
        ] {
            assert_eq!(first_bad_bytewise(bad), first_bad_naive(bad), "{bad:x?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(
            text in "\\PC{0,40}",
            noise in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut bytes = text.into_bytes();
            if let Some((index, byte)) = noise {
                let index = index.index(bytes.len() + 1);
                bytes.insert(index, byte);
            }
            prop_assert_eq!(first_bad_bytewise(&bytes), first_bad_naive(&bytes));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut validator = Validator::default();
            let valid = cuts.windows(2).all(|cut| validator.push(&bytes[cut[0]..cut[1]]).is_ok());
            prop_assert_eq!(valid && validator.is_complete(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
