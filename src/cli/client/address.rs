//! Where a client connects, as a person writes it.

use std::fmt;
use std::str::FromStr;

use crate::edge::site::CONNECT_PATH;

/// `ws://127.0.0.1:8080/v1/connect` in parts. Whatever is left out is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub is_secure: bool,
    /// Without the brackets of an IPv6 literal.
    pub host: String,
    pub port: u16,
    path: String,
    query: Option<String>,
}

impl Address {
    /// The whole URL with `parameters` (name, value) in its query.
    pub fn with(&self, parameters: &[(&str, &str)]) -> String {
        let given = self.query.iter().cloned();
        let added =
            parameters.iter().map(|(name, value)| format!("{name}={}", percent_encode(value)));
        let query: Vec<String> = given.chain(added).collect();
        let separator = if query.is_empty() { "" } else { "?" };
        format!("{self}{separator}{}", query.join("&"))
    }

    /// As the `Host` field wants it.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Without the query, which may hold a secret.
impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "wss" } else { "ws" };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let wrong =
            |what: &str| format!("{text:?}: {what}; write it as ws://127.0.0.1:8080{CONNECT_PATH}");
        let (scheme, rest) = text.split_once("://").unwrap_or(("ws", text));
        let is_secure = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(wrong("neither ws:// nor wss://")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_owned()).filter(|text| !text.is_empty())),
            None => (rest, None),
        };
        let (authority, path) = match rest.find('/') {
            Some(start) if &rest[start..] != "/" => rest.split_at(start),
            Some(start) => (&rest[..start], CONNECT_PATH),
            None => (rest, CONNECT_PATH),
        };
        if authority.contains('@') {
            return Err(wrong("a user has no place in it, use --as or --token"));
        }
        let (host, port) = split_authority(authority).ok_or_else(|| wrong("no host and port"))?;
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong("no port"))?,
            None if is_secure => 443,
            None => 80,
        };
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain(path) || !query.as_deref().is_none_or(is_plain) || !is_plain(host) {
            return Err(wrong("only printable ASCII, the rest percent-encoded"));
        }
        Ok(Address { is_secure, host: host.to_owned(), port, path: path.to_owned(), query })
    }
}

fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inside) => inside.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest {
        "" => None,
        rest => Some(rest.strip_prefix(':')?),
    };
    (!host.is_empty()).then_some((host, port))
}

/// All but the unreserved characters of RFC 3986: a space must not become a plus.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        for (text, whole) in [
            ("ws://127.0.0.1:8080/v1/connect", "ws://127.0.0.1:8080/v1/connect"),
            ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/connect"),
            ("127.0.0.1:8080", "ws://127.0.0.1:8080/v1/connect"),
            ("WSS://chat.example.org", "wss://chat.example.org:443/v1/connect"),
            ("https://chat.example.org/a/b?c=d#e", "wss://chat.example.org:443/a/b"),
            ("ws://[::1]:9/x", "ws://[::1]:9/x"),
            ("chat.local", "ws://chat.local:80/v1/connect"),
        ] {
            assert_eq!(
                text.parse::<Address>().map(|address| address.to_string()),
                Ok(whole.into())
            );
        }
    }

    #[test]
    fn what_is_no_address_says_how_to_write_one() {
        for text in ["", "ftp://a", "ws://", "ws://a:b", "ws://:80", "ws://[::1", "ws://u@h", "a b"]
        {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains("write it as ws://127.0.0.1:8080/v1/connect"), "{error}");
        }
    }

    #[test]
    fn values_are_encoded_and_a_query_is_kept() {
        let address: Address = "ws://h:1?sync=manual".parse().unwrap();
        let url = address.with(&[("user", "a b+c&\u{e4}"), ("device", "d")]);
        assert_eq!(url, "ws://h:1/v1/connect?sync=manual&user=a%20b%2Bc%26%C3%A4&device=d");
        assert_eq!("h:1".parse::<Address>().unwrap().with(&[]), "ws://h:1/v1/connect");
    }
}
