//! Temporary.

use crate::clock::Now;
use crate::framer::Request;
use crate::framer::handshake::refusal_response;
use crate::link::record::Id;

pub struct Identity {
    pub user: Id,
    pub device: Id,
    pub manual: bool,
}
pub enum Passed {
    Client { identity: Identity, subprotocol: Option<&'static str> },
    Response(Vec<u8>),
}
pub struct Gate;
impl Gate {
    pub fn new(_: &super::options::EdgeOptions) -> Gate {
        Gate
    }
    pub fn pass(&self, _now: Now, request: &Request, _body: &[u8], _draining: bool) -> Passed {
        let query = request.query.unwrap_or_default();
        let mut user = None;
        let mut device = "default";
        let mut manual = false;
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("user", u)) => user = Some(u),
                Some(("device", d)) => device = d,
                Some(("sync", "manual")) => manual = true,
                _ => {}
            }
        }
        match user {
            Some(user) => Passed::Client {
                identity: Identity { user: user.into(), device: device.into(), manual },
                subprotocol: None,
            },
            None => Passed::Response(refusal_response(401, "unauthorized", "no identity", &[])),
        }
    }
}
