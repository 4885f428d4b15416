//! What the edge answers to plain HTTP: the embedded page, the kill buttons, and refusals.

use rust_embed::RustEmbed;

use super::control::{Child, Control};
use super::identity::{Admitted, Door, is_same_host};
use crate::framer::handshake::{refusal_response, response};
use crate::framer::{Refusal, Request};

/// Where clients connect.
pub const CONNECT_PATH: &str = "/v1/connect";
/// What a page's request must carry to kill: no other site can make a browser send it.
pub const DEVELOPMENT_FIELD: &str = "x-aldis-dev";

/// How clients prove who they are, so that the page knows whether to ask for tokens.
pub const AUTH_FIELD: &str = "Aldis-Auth";

/// Nothing but our own files, and WebSockets; nobody frames us.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
/// Seconds after which a refused client is to come back.
const RETRY_AFTER_S: &str = "1";
const KILL_PATH: &str = "/dev/kill/";

#[derive(RustEmbed)]
#[folder = "web/"]
struct Page;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The upgrade's conditions hold and the client may connect.
    Connect(Admitted),
    /// A whole HTTP response, after which the connection closes.
    Respond(Vec<u8>),
}

/// The HTTP side of one edge shard.
pub struct Site {
    pub door: Door,
    /// Development mode on a loopback listener: the kill buttons work.
    pub has_kill_buttons: bool,
    /// Whom they reach, if `aldis up` is there.
    pub control: Option<Box<dyn Control>>,
}

impl Site {
    /// Answers one request. `draining`: no new connection is taken.
    pub fn answer(&mut self, request: &Request, draining: bool, now_unix_ms: u64) -> Answer {
        let answered = self.decide(request, draining, now_unix_ms);
        let mut answer = answered.unwrap_or_else(|refusal| Answer::Respond(refuse(refusal)));
        if let Answer::Respond(response) = &mut answer
            && request.method == "HEAD"
        {
            drop_body(response);
        }
        answer
    }

    /// The answer to a ticket whose device was revoked.
    pub fn refuse_revoked(&mut self) -> Vec<u8> {
        refuse(self.door.revoked())
    }

    fn decide(
        &mut self,
        request: &Request,
        draining: bool,
        now_unix_ms: u64,
    ) -> Result<Answer, Refusal> {
        self.door.check_host(request)?;
        if request.path == CONNECT_PATH {
            let admitted = self.door.admit(request, now_unix_ms)?;
            if draining {
                return Err(refusal(503, "unavailable", "this edge is going away"));
            }
            return Ok(Answer::Connect(admitted));
        }
        match request.path.strip_prefix(KILL_PATH) {
            Some(name) if self.has_kill_buttons => self.kill(request, name).map(Answer::Respond),
            _ => file(request, self.door.asks_for_tokens()).map(Answer::Respond),
        }
    }

    fn kill(&mut self, request: &Request, name: &str) -> Result<Vec<u8>, Refusal> {
        let child = Child::named(name).ok_or(NOT_FOUND)?;
        if request.method != "POST" {
            return Err(refusal(405, "method_not_allowed", "a kill is a POST"));
        }
        let is_ours = request.header(DEVELOPMENT_FIELD) == Some("1");
        if !is_same_host(request) || !is_ours {
            return Err(refusal(403, "forbidden", "only this edge's own page kills"));
        }
        let handed_over = self.control.as_mut().is_some_and(|control| control.kill(child));
        if !handed_over {
            return Err(refusal(503, "unavailable", "aldis up is not there to kill it"));
        }
        let body = format!("{{\"killed\":\"{}\"}}", child.name());
        Ok(response(202, "application/json", &NO_STORE, body.as_bytes()))
    }
}

const NOT_FOUND: Refusal = refusal(404, "not_found", "nothing is served here");
const NO_STORE: [(&str, &str); 1] = [("Cache-Control", "no-store")];

const fn refusal(status: u16, code: &'static str, message: &'static str) -> Refusal {
    Refusal { status, code, message }
}

fn refuse(refusal: Refusal) -> Vec<u8> {
    let extra: &[(&str, &str)] = match refusal.status {
        401 => &[("WWW-Authenticate", "Bearer")],
        503 => &[("Retry-After", RETRY_AFTER_S)],
        405 => &[("Allow", "GET, HEAD, POST")],
        _ => return refusal.response(),
    };
    refusal_response(refusal.status, refusal.code, refusal.message, extra)
}

fn file(request: &Request, asks_for_tokens: bool) -> Result<Vec<u8>, Refusal> {
    let name = match request.path {
        "/" => "index.html",
        path => path.strip_prefix('/').ok_or(NOT_FOUND)?,
    };
    let found = Page::get(name).ok_or(NOT_FOUND)?;
    if !matches!(request.method, "GET" | "HEAD") {
        return Err(refusal(405, "method_not_allowed", "this is only to be read"));
    }
    let guessed = found.metadata.mimetype();
    let is_text = guessed.starts_with("text/");
    let content_type = format!("{guessed}{}", if is_text { "; charset=utf-8" } else { "" });
    let extra = [
        NO_STORE[0],
        (AUTH_FIELD, if asks_for_tokens { "jwt" } else { "dev" }),
        ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ];
    Ok(response(200, &content_type, &extra, &found.data))
}

/// A response to HEAD has the head of the response to GET (RFC 9110 9.3.2).
fn drop_body(response: &mut Vec<u8>) {
    let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    response.truncate(end.map_or(response.len(), |end| end + 4));
}

#[cfg(test)]
mod tests;
