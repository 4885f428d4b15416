//! PEM (RFC 7468), as far as key files need it: one block and what it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One block of PEM.
pub struct Block {
    /// `PUBLIC KEY`, `PRIVATE KEY` and so on.
    pub label: String,
    /// What is inside, in DER.
    pub der: Vec<u8>,
}

/// Whether a file means to be PEM. A shared secret never looks like it.
pub fn is_pem(content: &[u8]) -> bool {
    content.trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// The only block of `content`; `None` when there is none, more than one, or a broken one.
pub fn decode(content: &[u8]) -> Option<Block> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let (label, rest) = text.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let base64 = rest.strip_suffix(&format!("-----END {label}-----"))?;
    let base64: String = base64.split_ascii_whitespace().collect();
    let der = STANDARD.decode(base64).ok()?;
    Some(Block { label: label.to_owned(), der })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nAQID\r\nBAU=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn one_block_is_read_and_no_part_of_one() {
        let block = decode(KEY.as_bytes()).expect("whole");
        assert_eq!((block.label.as_str(), &block.der[..]), ("PUBLIC KEY", &[1, 2, 3, 4, 5][..]));
        for size in 0..KEY.trim_end().len() {
            assert!(decode(&KEY.as_bytes()[..size]).is_none(), "prefix of {size}");
        }
        assert!(decode(format!("{KEY}{KEY}").as_bytes()).is_none());
        assert!(decode(KEY.replace("END PUBLIC", "END PRIVATE").as_bytes()).is_none());
        assert!(is_pem(KEY.as_bytes()) && !is_pem(b"a secret of some length or other"));
    }
}
