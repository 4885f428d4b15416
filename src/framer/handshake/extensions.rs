//! permessage-deflate in `Sec-WebSocket-Extensions`: which offer is agreed to (RFC 7692 7.1), read
//! by the grammar of RFC 6455 9.1.
//!
//! Neither side keeps a context from one message to the next: the answer says so for both, whatever
//! the offer says, so that an idle connection holds no window.

use std::borrow::Cow;

use super::{Refusal, is_token_byte};
use crate::framer::deflate::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};

const NAME: &str = "permessage-deflate";

/// What was agreed about compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateAgreement {
    /// The client's wish (`server_max_window_bits`), [`WINDOW_BITS_MIN`] to [`WINDOW_BITS_MAX`].
    server_window_bits: Option<u8>,
}

impl DeflateAgreement {
    /// The logarithm of the window, in bytes, that the server compresses with.
    pub fn server_window_bits(self) -> u8 {
        self.server_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// The value of `Sec-WebSocket-Extensions` in the answer. What the client compresses with is
    /// not limited: the server's window is the largest.
    pub fn answer(self) -> String {
        let mut answer = format!("{NAME}; server_no_context_takeover; client_no_context_takeover");
        if let Some(bits) = self.server_window_bits {
            answer.push_str(&format!("; server_max_window_bits={bits}"));
        }
        answer
    }
}

/// The first offer, over all fields, that can be agreed to. A field that is no list of extensions
/// refuses the request (RFC 6455 9.1).
pub(super) fn agree<'a>(
    fields: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<DeflateAgreement>, Refusal> {
    let mut agreed = None;
    for field in fields {
        let mut scanner = Scanner { rest: field };
        let first = read_list(&mut scanner).ok_or(MALFORMED)?;
        agreed = agreed.or(first);
    }
    Ok(agreed)
}

const MALFORMED: Refusal = Refusal::malformed("Sec-WebSocket-Extensions is not a list");

/// Reads a whole field. `None` when it is malformed. Empty elements are skipped, as in every list
/// of HTTP.
fn read_list(scanner: &mut Scanner) -> Option<Option<DeflateAgreement>> {
    let mut agreed = None;
    loop {
        if !scanner.is_at_comma_or_end() {
            let offer = read_extension(scanner)?;
            agreed = agreed.or(offer);
        }
        if !scanner.eat(b',') {
            return scanner.rest.is_empty().then_some(agreed);
        }
    }
}

/// Reads one extension with its parameters; yields it when it is an offer that can be agreed to.
fn read_extension(scanner: &mut Scanner) -> Option<Option<DeflateAgreement>> {
    let mut is_acceptable = scanner.token()? == NAME;
    let mut offer = Offer::default();
    while scanner.eat(b';') {
        let name = scanner.token()?;
        let value = match scanner.eat(b'=') {
            true => Some(scanner.value()?),
            false => None,
        };
        is_acceptable &= offer.take(name, value.as_deref());
    }
    let server_window_bits = offer.server_window_bits;
    Some(is_acceptable.then_some(DeflateAgreement { server_window_bits }))
}

/// The parameters of one offer, each at most once.
#[derive(Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    client_window_bits: bool,
    server_window_bits: Option<u8>,
}

impl Offer {
    /// Takes a parameter. False when it declines the whole offer: an unknown name, a value that it
    /// may not have, a name that was there before (RFC 7692 7.1).
    fn take(&mut self, name: &str, value: Option<&str>) -> bool {
        let is_new = |seen: &mut bool| !std::mem::replace(seen, true);
        match (name, value) {
            ("server_no_context_takeover", None) => is_new(&mut self.server_no_context_takeover),
            ("client_no_context_takeover", None) => is_new(&mut self.client_no_context_takeover),
            ("client_max_window_bits", None) => is_new(&mut self.client_window_bits),
            ("client_max_window_bits", Some(bits)) => {
                window_bits(bits).is_some() && is_new(&mut self.client_window_bits)
            }
            ("server_max_window_bits", Some(bits)) => {
                // A window of 2^8 bytes is legal, and one that our compressor does not have.
                let bits = window_bits(bits).filter(|bits| *bits >= WINDOW_BITS_MIN);
                bits.is_some() && std::mem::replace(&mut self.server_window_bits, bits).is_none()
            }
            _ => false,
        }
    }
}

/// 8 to 15, without leading zeros.
fn window_bits(text: &str) -> Option<u8> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let bits = text.parse().ok().filter(|_| is_decimal)?;
    (8..=WINDOW_BITS_MAX).contains(&bits).then_some(bits)
}

/// What is left of a field.
struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn is_at_comma_or_end(&mut self) -> bool {
        self.skip_space();
        matches!(self.rest.first(), None | Some(b','))
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.skip_space();
        match self.rest.split_first() {
            Some((&first, rest)) if first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        self.skip_space();
        let end = self.rest.iter().position(|byte| !is_token_byte(byte));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        std::str::from_utf8(token).ok().filter(|token| !token.is_empty())
    }

    /// A token, or a quoted string that is one without its quotes and backslashes.
    fn value(&mut self) -> Option<Cow<'a, str>> {
        if !self.eat(b'"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            let (byte, rest) = match byte {
                b'\\' => rest.split_first().map(|(&byte, rest)| (byte, rest))?,
                b'"' => {
                    self.rest = rest;
                    return (!value.is_empty()).then_some(Cow::Owned(value));
                }
                byte => (byte, rest),
            };
            self.rest = rest;
            if !is_token_byte(&byte) {
                return None;
            }
            value.push(char::from(byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    /// The answer to these fields: its value, nothing, or a refusal.
    fn answer(fields: &[&str]) -> Result<Option<String>, u16> {
        let agreed = agree(fields.iter().map(|field| field.as_bytes()));
        agreed.map(|agreed| agreed.map(DeflateAgreement::answer)).map_err(|refusal| refusal.status)
    }

    #[test]
    fn what_is_agreed_to() {
        let bits = |bits| format!("{PLAIN}; server_max_window_bits={bits}");
        for (field, expected) in [
            ("permessage-deflate", PLAIN.to_owned()),
            ("permessage-deflate; client_max_window_bits", PLAIN.into()),
            ("permessage-deflate; client_max_window_bits=8", PLAIN.into()),
            ("permessage-deflate;client_max_window_bits=\"15\"", PLAIN.into()),
            ("permessage-deflate ; client_max_window_bits = 1\t", "".into()),
            ("permessage-deflate; client_no_context_takeover", PLAIN.into()),
            (
                "permessage-deflate; server_no_context_takeover; client_max_window_bits",
                PLAIN.into(),
            ),
            ("permessage-deflate; server_max_window_bits=9", bits(9)),
            ("permessage-deflate; server_max_window_bits=\"1\\0\"", bits(10)),
            ("permessage-deflate; server_max_window_bits=15", bits(15)),
            (
                "permessage-deflate; client_max_window_bits=9; server_max_window_bits=12; \
                 client_no_context_takeover; server_no_context_takeover",
                bits(12),
            ),
            ("x-other; a=b, permessage-deflate", PLAIN.into()),
            (",, permessage-deflate ,", PLAIN.into()),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", bits(10)),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; \
                 server_max_window_bits=11",
                bits(11),
            ),
            ("permessage-deflate; mystery, permessage-deflate", PLAIN.into()),
        ] {
            let expected = Some(expected).filter(|expected| !expected.is_empty());
            assert_eq!(answer(&[field]), Ok(expected), "{field}");
        }
    }

    #[test]
    fn what_is_declined() {
        for field in [
            "",
            "x-webkit-deflate-frame",
            "Permessage-Deflate",
            "permessage-deflat",
            "x; y=\"permessage-deflate\"",
            "permessage-deflate; mystery",
            "permessage-deflate; mystery=1",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=999",
            "permessage-deflate; client_max_window_bits=0",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=x",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
        ] {
            assert_eq!(answer(&[field]), Ok(None), "{field}");
        }
    }

    #[test]
    fn what_is_malformed() {
        for field in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; ;",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=\"9\\",
            "permessage-deflate; x=\"a b\"",
            "permessage-deflate; x=\"a,permessage-deflate\"",
            "permessage-deflate, (",
            "permessage-\u{e9}",
        ] {
            assert_eq!(answer(&[field]), Err(400), "{field}");
        }
    }

    #[test]
    fn offers_are_read_over_all_fields_in_order() {
        let bits = format!("{PLAIN}; server_max_window_bits=9");
        let fields = ["x-other", "permessage-deflate; server_max_window_bits=9"];
        assert_eq!(answer(&fields), Ok(Some(bits)));
        assert_eq!(answer(&["permessage-deflate", "permessage-deflate"]), Ok(Some(PLAIN.into())));
        assert_eq!(answer(&["permessage-deflate", "="]), Err(400));
        assert_eq!(answer(&[]), Ok(None));
    }

    #[test]
    fn every_prefix_is_read_without_panic_and_agrees_to_nothing_larger() {
        let field = "permessage-deflate; server_max_window_bits=\"1\\2\"; client_max_window_bits";
        for end in 0..=field.len() {
            if let Ok(Some(answer)) = answer(&[&field[..end]]) {
                assert!(answer.starts_with(PLAIN));
            }
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in "[ ;,=\"\\\\a-z0-9_-]{0,60}", bytes: Vec<u8>) {
            let field = format!("permessage-deflate; {noise}");
            let _ = answer(&[&field]);
            let _ = agree([&bytes[..]].into_iter());
        }
    }
}
