//! Names of conversations: which are well formed, and who is in a direct one.
//!
//! A direct conversation is named `dm:<a>:<b>`: the two ids in order of their raw bytes, and in
//! each of them `:` and `%`, nothing else, percent-encoded with upper-case hex. Every pair of users
//! thus has exactly one name, and any other spelling is refused. All other names are those of
//! groups and channels, which are ids.

use crate::limits::ID_SIZE_MAX;
use crate::link::record::ConversationName;

/// What starts the name of every direct conversation, and of nothing else.
pub const DIRECT_PREFIX: &str = "dm:";

/// What a well-formed name says about its conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// Between two users, `first <= second` by raw bytes; equal: one's own devices.
    Direct { first: String, second: String },
    /// A group or a channel; who is in it is the sequencer's to know.
    Named,
}

impl Conversation {
    /// Whether `user` is one of the two of a direct conversation; `None` for all others.
    pub fn direct_member(&self, user: &str) -> Option<bool> {
        match self {
            Conversation::Direct { first, second } => Some(first == user || second == user),
            Conversation::Named => None,
        }
    }
}

/// A name that is too long, has control characters, or spells a direct conversation otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a conversation")]
pub struct InvalidName;

/// Whether `id` may name a user, device, group or client message: 1 to 64 bytes of UTF-8 without
/// control characters.
pub fn is_id(id: &str) -> bool {
    (1..=ID_SIZE_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

/// The name of the direct conversation between two users, in whichever order they are given.
pub fn direct(one: &str, other: &str) -> ConversationName {
    let (first, second) =
        if one.as_bytes() <= other.as_bytes() { (one, other) } else { (other, one) };
    let mut name = String::with_capacity(DIRECT_PREFIX.len() + first.len() + 1 + second.len());
    name.push_str(DIRECT_PREFIX);
    encode(first, &mut name);
    name.push(':');
    encode(second, &mut name);
    name.into()
}

/// Reads a name; refuses every spelling but the one of [`direct`].
pub fn parse(name: &str) -> Result<Conversation, InvalidName> {
    let Some(pair) = name.strip_prefix(DIRECT_PREFIX) else {
        return if is_id(name) { Ok(Conversation::Named) } else { Err(InvalidName) };
    };
    let (first, second) = pair.split_once(':').ok_or(InvalidName)?;
    let (first, second) = (decode(first)?, decode(second)?);
    if first.as_bytes() > second.as_bytes() {
        return Err(InvalidName);
    }
    Ok(Conversation::Direct { first, second })
}

/// The two users of a direct conversation, or `None` when `name` is not the name of one.
pub fn direct_members(name: &str) -> Option<(String, String)> {
    match parse(name) {
        Ok(Conversation::Direct { first, second }) => Some((first, second)),
        Ok(Conversation::Named) | Err(InvalidName) => None,
    }
}

fn encode(id: &str, name: &mut String) {
    for character in id.chars() {
        match character {
            ':' => name.push_str("%3A"),
            '%' => name.push_str("%25"),
            other => name.push(other),
        }
    }
}

fn decode(encoded: &str) -> Result<String, InvalidName> {
    let mut id = String::with_capacity(encoded.len());
    let mut pieces = encoded.split('%');
    id.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (character, rest) = match piece.as_bytes() {
            [b'3', b'A', ..] => (':', &piece[2..]),
            [b'2', b'5', ..] => ('%', &piece[2..]),
            _ => return Err(InvalidName),
        };
        id.push(character);
        id.push_str(rest);
    }
    if encoded.contains(':') || !is_id(&id) {
        return Err(InvalidName);
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::CONVERSATION_NAME_SIZE_MAX;

    #[test]
    fn names_are_as_the_protocol_page_says() {
        assert_eq!(&*direct("bob", "alice"), "dm:alice:bob");
        assert_eq!(&*direct("a:b", "50%"), "dm:50%25:a%3Ab");
        assert_eq!(&*direct("me", "me"), "dm:me:me");
        // By bytes, not by alphabet: upper case comes first, and UTF-8 after all of ASCII.
        assert_eq!(&*direct("a", "Z"), "dm:Z:a");
        assert_eq!(&*direct("\u{e4}", "z"), "dm:z:\u{e4}");
        // By the raw ids, not by their encoded form: `:` (3A) is above `/` (2F), `%3A` would not
        // be.
        assert_eq!(&*direct("a:", "a/"), "dm:a/:a%3A");
        assert_eq!(parse("dm:a/:a%3A").map(|name| name.direct_member("a:")), Ok(Some(true)));
    }

    #[test]
    fn every_other_spelling_is_refused() {
        let long = "x".repeat(65);
        let refused = [
            "",
            "dm:",
            "dm:a",
            "dm::",
            "dm:a:",
            "dm::a",
            "dm:b:a",
            "dm:a:b:c",
            "dm:a:b%3a",
            "dm:a:b%",
            "dm:a:b%2",
            "dm:a:b%41",
            "dm:a%:b",
            "dm:a:b\n",
            "gro\u{7f}up",
            "tab\t",
            &long,
            "\u{85}",
            "dm:a:b%00",
            "dm:%41:b",
        ];
        for name in refused {
            assert_eq!(parse(name), Err(InvalidName), "{name:?}");
            assert_eq!(direct_members(name), None);
        }
        assert_eq!(parse(&format!("dm:a:{long}")), Err(InvalidName));
        for name in ["team", "DM:a:b", "dm", "a:b", "100%", "\u{1f600}", &"x".repeat(64)] {
            assert_eq!(parse(name), Ok(Conversation::Named), "{name:?}");
        }
    }

    #[test]
    fn the_longest_name_fits_its_bound() {
        let name = direct(&":".repeat(64), &"%".repeat(64));
        assert_eq!(name.len(), CONVERSATION_NAME_SIZE_MAX);
        assert!(parse(&name).is_ok());
    }

    proptest! {
        #[test]
        fn a_pair_survives_its_name(one in "[a-c:%\u{e4}A]{1,8}", other in "\\PC{1,16}") {
            prop_assume!(is_id(&other));
            let name = direct(&one, &other);
            prop_assert_eq!(&name, &direct(&other, &one));
            let (first, second) = direct_members(&name).expect("made by direct");
            prop_assert!(first.as_bytes() <= second.as_bytes());
            prop_assert!((first == one && second == other) || (first == other && second == one));
        }

        #[test]
        fn only_canonical_names_are_read(name in "dm:[ab:%2345A]{0,12}") {
            if let Some((first, second)) = direct_members(&name) {
                prop_assert_eq!(&*direct(&first, &second), name.as_str());
            }
        }
    }
}
