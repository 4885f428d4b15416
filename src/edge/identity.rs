//! Who may connect, and as whom: hosts, origins, subprotocols, identities and tickets.
//!
//! The files below: `token` what a token has to say, `keys` what verifies it, `feed` how shards get
//! the keys, `jwks` how they are fetched, `pem` how key files are written.

mod feed;
pub mod jwks;
pub mod keys;
pub mod pem;
mod token;

use std::net::IpAddr;

use crate::edge::ticket::{Term, Ticket, Tickets};
use crate::framer::{Refusal, Request};
use crate::link::message::SessionNumber;
use crate::link::record::Id;
use crate::protocol::Subprotocol;
use crate::protocol::conversation::is_id;

pub use feed::KeySource;
pub use token::{Doubt, LEEWAY_MS, Tokens};

/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

/// The subprotocol by which browsers, which cannot set header fields, give a token.
const BEARER_SUBPROTOCOL: &str = "bearer.";

/// How clients say who they are.
#[derive(Clone)]
pub enum Identities {
    /// By `?user=` and `?device=`, which are believed.
    Development,
    /// By a token.
    Tokens(Tokens),
}

/// Who stands at the door and lets clients in.
pub struct Door {
    /// Values of `Host`, without port, besides loopback literals and `localhost`.
    pub hosts: Vec<String>,
    /// Values of `Origin` besides the request's own host and none.
    pub origins: Vec<String>,
    pub tickets: Tickets,
    pub identities: Identities,
    pub counters: DoorCounters,
}

/// What happened at the door. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoorCounters {
    /// Tickets that were good.
    pub tickets: u64,
    /// Tokens that were good.
    pub tokens: u64,
    /// Clients refused because of their identity, by the number of the [`Doubt`].
    pub doubts: [u64; Doubt::ALL.len()],
}

/// A client that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub user: Id,
    pub device: Id,
    /// How long this holds.
    pub term: Term,
    /// Nothing is to be pushed before the first `sync`.
    pub manual: bool,
    /// What the response names as chosen; `None` when nothing was offered.
    pub subprotocol: Option<Subprotocol>,
    /// It came with a ticket, which this session was given.
    pub ticket: Option<SessionNumber>,
}

impl Door {
    pub fn new(
        hosts: Vec<String>,
        origins: Vec<String>,
        tickets: Tickets,
        identities: Identities,
    ) -> Door {
        Door { hosts, origins, tickets, identities, counters: DoorCounters::default() }
    }

    /// Whether a client has to prove who it is.
    pub fn asks_for_tokens(&self) -> bool {
        matches!(self.identities, Identities::Tokens(_))
    }

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
    pub fn admit(&mut self, request: &Request, now_unix_ms: u64) -> Result<Admitted, Refusal> {
        let upgrade = request.upgrade()?;
        self.check_origin(request)?;
        let subprotocol = choose_subprotocol(&upgrade.subprotocols)?;
        let query = Query::parse(request.query.unwrap_or_default())?;
        let identified = match self.identities {
            Identities::Development => self.believe(&query, now_unix_ms),
            Identities::Tokens(_) => {
                let token = token_of(request, &upgrade.subprotocols, query.token.as_deref());
                self.demand(query.ticket.as_deref(), token, now_unix_ms)
            }
        };
        let (user, device, term, ticket) = identified.map_err(|doubt| self.doubted(doubt))?;
        let manual = query.sync.as_deref() == Some("manual");
        let (user, device) = (user.into(), device.into());
        Ok(Admitted { user, device, term, manual, subprotocol, ticket })
    }

    /// A client is who it says. A ticket is bound to its user and device: beside it they are
    /// confirmed, never chosen.
    fn believe(&mut self, query: &Query, now_unix_ms: u64) -> Result<Identified, Doubt> {
        let Query { user, device, ticket, .. } = query;
        if [user, device].into_iter().flatten().any(|name| !is_id(name)) {
            return Err(Doubt::OutOfBounds);
        }
        let Some(ticket) = ticket else {
            let device = device.clone().unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
            let user = user.clone().ok_or(Doubt::Missing)?;
            return Ok((user, device, Term::default(), None));
        };
        let bound = self.ticket(ticket, now_unix_ms)?;
        let differs =
            |named: &Option<String>, bound: &String| named.as_ref().is_some_and(|it| it != bound);
        if differs(user, &bound.user) || differs(device, &bound.device) {
            return Err(Doubt::Ticket);
        }
        Ok((bound.user, bound.device, Term::default(), Some(bound.session)))
    }

    /// A ticket alone suffices, and is all that counts where one is given. What it proves ends with
    /// it, and so do tickets that are issued on its strength: a token is needed once in a while.
    fn demand(
        &mut self,
        ticket: Option<&str>,
        token: Result<Option<&str>, Doubt>,
        now_unix_ms: u64,
    ) -> Result<Identified, Doubt> {
        if let Some(ticket) = ticket {
            let bound = self.ticket(ticket, now_unix_ms)?;
            let end = Some(bound.expires_unix_ms);
            let term = Term { ends_unix_ms: end, ticket_ends_unix_ms: end };
            return Ok((bound.user, bound.device, term, Some(bound.session)));
        }
        let token = token?.ok_or(Doubt::Missing)?;
        let Identities::Tokens(tokens) = &mut self.identities else {
            return Err(Doubt::Missing);
        };
        let proven = tokens.check(token, now_unix_ms)?;
        self.counters.tokens += 1;
        let end = Some(proven.expires_unix_ms);
        let term = Term { ends_unix_ms: end, ticket_ends_unix_ms: None };
        Ok((proven.user, proven.device, term, None))
    }

    fn ticket(&mut self, ticket: &str, now_unix_ms: u64) -> Result<Ticket, Doubt> {
        let bound = self.tickets.check(ticket, now_unix_ms).ok_or(Doubt::Ticket)?;
        self.counters.tickets += 1;
        Ok(bound)
    }

    /// A ticket that was good is none: its device was revoked.
    pub fn revoked(&mut self) -> Refusal {
        self.doubted(Doubt::Ticket)
    }

    /// What the client hears. Where a token fails is for its owner to find out, not for a guesser.
    fn doubted(&mut self, doubt: Doubt) -> Refusal {
        self.counters.doubts[doubt as usize] += 1;
        tracing::debug!(reason = doubt.name(), "a client's identity was refused");
        let is_development = matches!(self.identities, Identities::Development);
        match doubt {
            Doubt::OutOfBounds => {
                let message = "user and device are 1 to 64 bytes without control characters";
                refusal(400, "bad_request", message)
            }
            Doubt::NoKeys => refusal(503, "unavailable", "there are no keys yet to verify tokens"),
            Doubt::Ticket => unauthorized("the ticket is not valid, or no longer"),
            Doubt::Missing if is_development => unauthorized("user is missing"),
            Doubt::Missing => unauthorized("a token is needed"),
            _ => unauthorized("the token is not valid, or no longer"),
        }
    }
}

/// User, device, how long that holds, and the session whose ticket it was.
type Identified = (String, String, Term, Option<SessionNumber>);

/// The token of a request: from `Authorization`, else from a subprotocol, else from the query.
fn token_of<'a>(
    request: &Request<'a>,
    offered: &[&'a str],
    in_query: Option<&'a str>,
) -> Result<Option<&'a str>, Doubt> {
    let mut fields = request.headers("authorization");
    let (field, further) = (fields.next(), fields.next());
    let in_field = field.map(bearer).transpose()?.flatten();
    let mut bearers = offered.iter().filter_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL));
    let in_subprotocol = bearers.next();
    if further.is_some() || bearers.next().is_some() {
        return Err(Doubt::Malformed);
    }
    Ok(in_field.or(in_subprotocol).or(in_query))
}

/// The token of a field of the scheme Bearer (RFC 6750 2.1), whose name has no case (RFC 9110
/// 11.1). Other schemes are for somebody else on the way.
fn bearer(field: &[u8]) -> Result<Option<&str>, Doubt> {
    let text = std::str::from_utf8(field).map_err(|_| Doubt::Malformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
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
    let mut offered =
        offered.iter().filter(|name| !name.starts_with(BEARER_SUBPROTOCOL)).peekable();
    if offered.peek().is_none() {
        return Ok(None);
    }
    let known = offered.find_map(|name| Subprotocol::named(name));
    let refused = refusal(400, "bad_request", "none of the offered subprotocols is known");
    known.map(Some).ok_or(refused)
}

/// The parameters that a connect request may have. Others are ignored.
#[derive(Default)]
struct Query {
    user: Option<String>,
    device: Option<String>,
    ticket: Option<String>,
    token: Option<String>,
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
                "token" => &mut query.token,
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
