//! Keys that verify tokens: from a file with one of them, or from a JWK set (RFC 7517).
//!
//! Invariant: a key is good for one algorithm, which follows from what the key is. What a token
//! says of its algorithm only ever chooses among keys, so no public key becomes a shared secret.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::pem;

/// Keys of one set. A document with more is a mistake or an attack.
pub const KEY_COUNT_MAX: usize = 64;
/// The bytes of a document with a set.
pub const DOCUMENT_SIZE_MAX: usize = 256 * 1024;
/// The bytes of a key's id.
pub const KEY_ID_SIZE_MAX: usize = 256;
/// A shared secret's bytes at least: those of the hash (RFC 7518 3.2).
pub const SECRET_SIZE_MIN: usize = 32;

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 4) up to its 32 bytes.
const ED25519_HEAD: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
/// SubjectPublicKeyInfo of a P-256 key (RFC 5480 2) up to its uncompressed point of 65 bytes.
const P256_HEAD: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const POINT_SIZE: usize = 65;
/// What an uncompressed point begins with.
const UNCOMPRESSED: u8 = 4;

/// Why there are no keys, for whoever runs the edge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyFault(String);

/// One key, and the only algorithm that it verifies.
struct Key {
    /// `None`: good for tokens of any key id.
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// The keys that are good at a time.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// A file with one key: a public one in PEM (Ed25519 or P-256), or else the bytes of a secret
    /// for HS256. The line end after a secret that is printable ASCII is not part of it.
    pub fn from_key_file(content: &[u8]) -> Result<KeySet, KeyFault> {
        let (algorithm, decoding) = match pem::is_pem(content) {
            true => public_key(content)?,
            false => secret_key(secret_of(content))?,
        };
        Ok(KeySet { keys: vec![Key { id: None, algorithm, decoding }] })
    }

    /// A JWK set. Keys of other kinds, for other purposes, or malformed, are passed over; the
    /// document as a whole is refused when it is none, or has more than [`KEY_COUNT_MAX`] keys.
    pub fn from_jwks(document: &[u8]) -> Result<KeySet, KeyFault> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        if document.len() > DOCUMENT_SIZE_MAX {
            return Err(KeyFault(format!("more than {DOCUMENT_SIZE_MAX} bytes")));
        }
        let parsed: Document = serde_json::from_slice(document)
            .map_err(|error| KeyFault(format!("not a JWK set: {error}")))?;
        if parsed.keys.len() > KEY_COUNT_MAX {
            return Err(KeyFault(format!("more than {KEY_COUNT_MAX} keys")));
        }
        let jwks = parsed.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
        Ok(KeySet { keys: jwks.filter_map(jwk).collect() })
    }

    /// All keys of both.
    pub fn join(mut self, other: KeySet) -> KeySet {
        self.keys.extend(other.keys);
        self
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that may have signed a token which names `id` and `algorithm`.
    pub fn matching<'a>(
        &'a self,
        id: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a DecodingKey> {
        let named = self.named(id).filter(move |key| key.algorithm == algorithm);
        named.map(|key| &key.decoding)
    }

    /// Whether a token that names `id` may have been signed by one of these, by any algorithm.
    pub fn knows(&self, id: Option<&str>) -> bool {
        self.named(id).next().is_some()
    }

    fn named<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.keys.iter().filter(move |key| match (&key.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        })
    }
}

/// The secret in the bytes of a file: an editor's line end after text is not part of it.
pub fn secret_of(content: &[u8]) -> &[u8] {
    let without_end = content.strip_suffix(b"\n").unwrap_or(content);
    let without_end = without_end.strip_suffix(b"\r").unwrap_or(without_end);
    let is_text = without_end.iter().all(|byte| matches!(byte, b' '..=b'~'));
    if is_text { without_end } else { content }
}

fn secret_key(secret: &[u8]) -> Result<(Algorithm, DecodingKey), KeyFault> {
    if secret.len() < SECRET_SIZE_MIN {
        return Err(KeyFault(format!(
            "a secret for HS256 has at least {SECRET_SIZE_MIN} bytes, this one {}; \
             a public key is to be in PEM",
            secret.len()
        )));
    }
    Ok((Algorithm::HS256, DecodingKey::from_secret(secret)))
}

fn public_key(content: &[u8]) -> Result<(Algorithm, DecodingKey), KeyFault> {
    let fault = |text: &str| KeyFault(text.to_owned());
    let block = pem::decode(content).ok_or(fault("not one whole block of PEM"))?;
    if block.label.ends_with("PRIVATE KEY") {
        let message = "a private key; the edge needs its public one, made by \
            `openssl pkey -in FILE -pubout`";
        return Err(fault(message));
    }
    let of_kind = |head: &[u8], size: usize| {
        let key = block.der.strip_prefix(head)?;
        (block.label == "PUBLIC KEY" && key.len() == size).then_some(key)
    };
    if let Some(key) = of_kind(ED25519_HEAD, 32) {
        return Ok((Algorithm::EdDSA, DecodingKey::from_ed_der(key)));
    }
    match of_kind(P256_HEAD, POINT_SIZE) {
        Some(point) if point[0] == UNCOMPRESSED => {
            Ok((Algorithm::ES256, DecodingKey::from_ec_der(point)))
        }
        _ => Err(fault("not the public key of Ed25519 (EdDSA) or P-256 (ES256)")),
    }
}

/// The members of a key that matter here (RFC 7517 4, RFC 7518 6, RFC 8037 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// `None`: not a key to verify tokens with.
fn jwk(jwk: Jwk) -> Option<Key> {
    let verifies = jwk.key_ops.is_none_or(|all| all.iter().any(|one| one == "verify"));
    let signs = jwk.purpose.is_none_or(|purpose| purpose == "sig");
    let named_well = jwk.kid.as_ref().is_none_or(|id| id.len() <= KEY_ID_SIZE_MAX);
    if !verifies || !signs || !named_well {
        return None;
    }
    let (algorithm, names, decoding) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("OKP", Some("Ed25519")) => {
            let key = DecodingKey::from_ed_der(&coordinate(&jwk.x)?);
            (Algorithm::EdDSA, ["EdDSA", "Ed25519"], key)
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (coordinate(&jwk.x)?, coordinate(&jwk.y)?);
            let key = DecodingKey::from_ec_der(&[&[UNCOMPRESSED][..], &x, &y].concat());
            (Algorithm::ES256, ["ES256", "ES256"], key)
        }
        ("oct", None) => {
            let secret = URL_SAFE_NO_PAD.decode(jwk.k?).ok()?;
            let (algorithm, key) = secret_key(&secret).ok()?;
            (algorithm, ["HS256", "HS256"], key)
        }
        _ => return None,
    };
    let pinned = jwk.alg.is_none_or(|name| names.contains(&name.as_str()));
    pinned.then_some(Key { id: jwk.kid, algorithm, decoding })
}

/// 32 bytes in base64url.
fn coordinate(text: &Option<String>) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text.as_ref()?).ok()?.try_into().ok()
}
