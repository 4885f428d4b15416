//! Who may connect, and as whom: hosts, origins, subprotocols, development identities and tickets.

use std::net::IpAddr;

use crate::edge::ticket::Tickets;
use crate::framer::{Refusal, Request};
use crate::link::record::Id;
use crate::protocol::Subprotocol;
use crate::protocol::conversation::is_id;

/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

/// Who stands at the door and lets clients in. Development identities: a client is who it says.
pub struct Door {
    /// Values of `Host`, without port, besides loopback literals and `localhost`.
    pub hosts: Vec<String>,
    /// Values of `Origin` besides the request's own host and none.
    pub origins: Vec<String>,
    pub tickets: Tickets,
}

/// A client that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub user: Id,
    pub device: Id,
    /// Nothing is to be pushed before the first `sync`.
    pub manual: bool,
    /// What the response names as chosen; `None` when nothing was offered.
    pub subprotocol: Option<Subprotocol>,
}

impl Door {
    /// Refuses a `Host` that this edge does not serve: a foreign name that was made to resolve to
    /// this address (DNS rebinding) would give its pages our origin.
    pub fn check_host(&self, request: &Request) -> Result<(), Refusal> {
        let host =
            host(request).ok_or(refusal(400, "bad_request", "exactly one Host is needed"))?;
        let is_served = host_name(host).is_some_and(|name| {
            is_loopback(name) || self.hosts.iter().any(|served| served.eq_ignore_ascii_case(name))
        });
        let refused = refusal(403, "forbidden", "this Host is not served; see --host");
        if is_served { Ok(()) } else { Err(refused) }
    }

    /// Refuses a page of another origin, unless it was allowed. Programs send no `Origin`.
    pub fn check_origin(&self, request: &Request) -> Result<(), Refusal> {
        let refused = refusal(403, "forbidden", "this Origin is not allowed; see --origin");
        let mut origins = request.headers("origin");
        let origin = match (origins.next(), origins.next()) {
            (None, _) => return Ok(()),
            (Some(origin), None) => std::str::from_utf8(origin).map_err(|_| refused)?,
            (Some(_), Some(_)) => return Err(refused),
        };
        let is_allowed = self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
        if is_allowed || is_same_host(request) { Ok(()) } else { Err(refused) }
    }

    /// Decides on a request for `/v1/connect`, whose `Host` is served.
    pub fn admit(&self, request: &Request, now_unix_ms: u64) -> Result<Admitted, Refusal> {
        let upgrade = request.upgrade()?;
        self.check_origin(request)?;
        let subprotocol = choose_subprotocol(&upgrade.subprotocols)?;
        let query = Query::parse(request.query.unwrap_or_default())?;
        let (user, device) = self.identify(&query, now_unix_ms)?;
        let manual = query.sync.as_deref() == Some("manual");
        let (user, device) = (user.into(), device.into());
        Ok(Admitted { user, device, manual, subprotocol })
    }

    fn identify(&self, query: &Query, now_unix_ms: u64) -> Result<(String, String), Refusal> {
        for name in [&query.user, &query.device].into_iter().flatten() {
            if !is_id(name) {
                let message = "user and device are 1 to 64 bytes without control characters";
                return Err(refusal(400, "bad_request", message));
            }
        }
        let Some(ticket) = &query.ticket else {
            let device = query.device.clone().unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
            let user = query.user.clone();
            return user.map(|user| (user, device)).ok_or(unauthorized("user is missing"));
        };
        let refused = unauthorized("the ticket is not valid, or no longer");
        let identity = self.tickets.check(ticket, now_unix_ms).ok_or(refused)?;
        // A ticket is bound to its user and device: beside it they are confirmed, never chosen.
        let differs = |named: &Option<String>, bound: &String| {
            named.as_ref().is_some_and(|named| named != bound)
        };
        if differs(&query.user, &identity.0) || differs(&query.device, &identity.1) {
            return Err(refused);
        }
        Ok(identity)
    }
}

/// Whether the request has one `Origin`, whose host and port are those of its `Host`.
pub fn is_same_host(request: &Request) -> bool {
    let mut origins = request.headers("origin");
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        return false;
    };
    let origin = std::str::from_utf8(origin).unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    match (authority, host(request)) {
        (Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host),
        _ => false,
    }
}

const fn refusal(status: u16, code: &'static str, message: &'static str) -> Refusal {
    Refusal { status, code, message }
}

const fn unauthorized(message: &'static str) -> Refusal {
    refusal(401, "unauthorized", message)
}

fn host<'a>(request: &Request<'a>) -> Option<&'a str> {
    let mut hosts = request.headers("host");
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return None;
    };
    std::str::from_utf8(host).ok().filter(|host| !host.is_empty())
}

/// `name` of `name` or `name:port`; an IPv6 literal with its brackets.
fn host_name(host: &str) -> Option<&str> {
    let name_size = match host.strip_prefix('[') {
        Some(literal) => literal.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(name_size);
    let is_port = |port: &str| port.parse::<u16>().is_ok() && !port.starts_with('+');
    (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

fn is_loopback(name: &str) -> bool {
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let address: Option<IpAddr> = match literal {
        Some(literal) => literal.parse().ok().filter(IpAddr::is_ipv6),
        None => name.parse().ok().filter(IpAddr::is_ipv4),
    };
    name.eq_ignore_ascii_case("localhost") || address.is_some_and(|it| it.is_loopback())
}

/// The first that is offered and known. A bearer token is not an offer.
fn choose_subprotocol(offered: &[&str]) -> Result<Option<Subprotocol>, Refusal> {
    let mut offered = offered.iter().filter(|name| !name.starts_with("bearer.")).peekable();
    if offered.peek().is_none() {
        return Ok(None);
    }
    let known = offered.find_map(|name| Subprotocol::named(name));
    let refused = refusal(400, "bad_request", "none of the offered subprotocols is known");
    known.map(Some).ok_or(refused)
}

/// The parameters that a connect request may have. Others are ignored, tokens among them.
#[derive(Default)]
struct Query {
    user: Option<String>,
    device: Option<String>,
    ticket: Option<String>,
    sync: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Query, Refusal> {
        let mut query = Query::default();
        for parameter in text.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let malformed = refusal(400, "bad_request", "the query is not percent-encoded UTF-8");
            let value = percent_decode(value).ok_or(malformed)?;
            let slot = match percent_decode(name).ok_or(malformed)?.as_str() {
                "user" => &mut query.user,
                "device" => &mut query.device,
                "ticket" => &mut query.ticket,
                "sync" => &mut query.sync,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(refusal(400, "bad_request", "a parameter comes twice"));
            }
        }
        Ok(query)
    }
}

/// RFC 3986 2.1; `+` is a plus.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (high, low) = (hex_digit(bytes.next()?)?, hex_digit(bytes.next()?)?);
        decoded.push(high << 4 | low);
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests;
