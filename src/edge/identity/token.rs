//! Tokens: JWTs (RFC 7519) that say who a client is, by `sub`, on which device, by `dev`, and until
//! when, by `exp`. Signed by HS256, EdDSA or ES256.
//!
//! A client hears only that its token is no good; why is counted.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;

use super::DEFAULT_DEVICE;
use super::feed::KeySource;
use crate::protocol::conversation::is_id;

/// How far ahead the issuer's clock may be: for `nbf`. `exp` has no such leeway, so that the door
/// and the cut of a live connection agree on one moment.
pub const LEEWAY_MS: u64 = 30_000;
/// Keys that a token without a key id, or with one that several keys have, is tried against.
const TRIED_COUNT_MAX: usize = 4;

/// Whom a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    pub user: String,
    pub device: String,
    pub expires_unix_ms: u64,
}

/// Why a client is not who it claims to be, or cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Nothing was claimed.
    Missing,
    /// Not a JWT, or its header or claims are not what they have to be.
    Malformed,
    /// The token names an algorithm that none of its keys has.
    Algorithm,
    /// No key has the id that the token names.
    UnknownKey,
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` is yet to come.
    NotYet,
    /// `exp` or `sub` is not there.
    Incomplete,
    /// Another issuer than the one asked for.
    Issuer,
    /// For another audience, or for one while none is asked for (RFC 7519 4.1.3).
    Audience,
    /// The user or device is no id.
    OutOfBounds,
    /// The ticket is not valid, or no longer.
    Ticket,
    /// There were no keys yet to verify anything with.
    NoKeys,
}

impl Doubt {
    /// All, in the order of their numbers.
    pub const ALL: [Doubt; 13] = [
        Doubt::Missing,
        Doubt::Malformed,
        Doubt::Algorithm,
        Doubt::UnknownKey,
        Doubt::Signature,
        Doubt::Expired,
        Doubt::NotYet,
        Doubt::Incomplete,
        Doubt::Issuer,
        Doubt::Audience,
        Doubt::OutOfBounds,
        Doubt::Ticket,
        Doubt::NoKeys,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Doubt::Missing => "missing",
            Doubt::Malformed => "malformed",
            Doubt::Algorithm => "algorithm",
            Doubt::UnknownKey => "unknown_key",
            Doubt::Signature => "signature",
            Doubt::Expired => "expired",
            Doubt::NotYet => "not_yet",
            Doubt::Incomplete => "incomplete",
            Doubt::Issuer => "issuer",
            Doubt::Audience => "audience",
            Doubt::OutOfBounds => "out_of_bounds",
            Doubt::Ticket => "ticket",
            Doubt::NoKeys => "no_keys",
        }
    }
}

/// Checks tokens, for one shard.
#[derive(Clone)]
pub struct Tokens {
    pub keys: KeySource,
    /// What `iss` has to be; `None`: anything.
    pub issuer: Option<String>,
    /// What `aud` has to contain; `None`: it must not be there.
    pub audience: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    dev: Option<String>,
    /// NumericDate (RFC 7519 2): seconds since 1970, maybe with a fraction.
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Tokens {
    /// Whom `token` names, if it holds at `now_unix_ms`.
    pub fn check(&mut self, token: &str, now_unix_ms: u64) -> Result<Proven, Doubt> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Doubt::Malformed)?;
        // Nothing that may be critical is understood here (RFC 7515 4.1.11).
        if header.crit.is_some() {
            return Err(Doubt::Malformed);
        }
        let claims = self.verify(token, &header)?;
        self.accept(claims, now_unix_ms)
    }

    fn verify(&mut self, token: &str, header: &Header) -> Result<Claims, Doubt> {
        let id = header.kid.as_deref();
        let set = self.keys.current().ok_or(Doubt::NoKeys)?;
        let is_known = set.knows(id);
        let mut doubt = Doubt::Algorithm;
        for key in set.matching(id, header.alg).take(TRIED_COUNT_MAX) {
            match verify_by(token, key, header.alg) {
                Err(Doubt::Signature) => doubt = Doubt::Signature,
                decided => return decided,
            }
        }
        if is_known {
            return Err(doubt);
        }
        self.keys.ask_anew();
        Err(Doubt::UnknownKey)
    }

    fn accept(&self, claims: Claims, now_unix_ms: u64) -> Result<Proven, Doubt> {
        let expires_unix_ms = claims.exp.map(milliseconds).ok_or(Doubt::Incomplete)?;
        if expires_unix_ms <= now_unix_ms {
            return Err(Doubt::Expired);
        }
        if claims.nbf.is_some_and(|begin| milliseconds(begin) > now_unix_ms + LEEWAY_MS) {
            return Err(Doubt::NotYet);
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Doubt::Issuer);
        }
        if !is_for(claims.aud.as_ref(), self.audience.as_ref()) {
            return Err(Doubt::Audience);
        }
        let user = claims.sub.ok_or(Doubt::Incomplete)?;
        let device = claims.dev.unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
        if !is_id(&user) || !is_id(&device) {
            return Err(Doubt::OutOfBounds);
        }
        Ok(Proven { user, device, expires_unix_ms })
    }
}

/// Signature and form only: time and names are judged by the caller, who is told the time.
fn verify_by(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Claims, Doubt> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    match jsonwebtoken::decode(token, key, &validation) {
        Ok(decoded) => Ok(decoded.claims),
        Err(error) if *error.kind() == ErrorKind::InvalidSignature => Err(Doubt::Signature),
        Err(_) => Err(Doubt::Malformed),
    }
}

fn is_for(named: Option<&Audience>, asked: Option<&String>) -> bool {
    match (named, asked) {
        (None, None) => true,
        (Some(Audience::One(name)), Some(asked)) => name == asked,
        (Some(Audience::Many(names)), Some(asked)) => names.contains(asked),
        _ => false,
    }
}

/// Before 1970 is 1970, and the end of what 64 bits hold is the end.
fn milliseconds(date: f64) -> u64 {
    (date * 1_000.0) as u64
}
