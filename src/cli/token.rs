//! `aldis token`: makes one, for trying. Real ones come from whoever knows the users.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use super::failure::Usage;
use super::identity::read_key_file;
use crate::clock::Now;
use crate::edge::identity::keys::{SECRET_SIZE_MIN, secret_of};
use crate::edge::identity::pem;
use crate::protocol::conversation::is_id;

/// AlgorithmIdentifier of Ed25519 (RFC 8410 3) and of P-256 (RFC 5480 2.1.1), as they stand in a
/// private key of PKCS#8.
const ED25519: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";
const P256: &[u8] = b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";

#[derive(Args, Debug)]
pub struct TokenSettings {
    /// Whom it names.
    #[arg(long, value_name = "USER")]
    user: String,
    /// On which device. Default: the device called default
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// For how long: 90s, 30m, 12h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    expires: String,
    /// The key that signs it: a file with the bytes of a secret (HS256), or with a private key in
    /// PEM (Ed25519: EdDSA, P-256: ES256).
    #[arg(long, value_name = "FILE")]
    jwt_key: PathBuf,
    /// The key's id in a JWK set (`kid`).
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// For an edge with --jwt-issuer.
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// For an edge with --jwt-audience.
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<String>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
}

/// Prints the token, alone on its line.
pub fn run(settings: TokenSettings) -> anyhow::Result<()> {
    let token = settings.into_token(Now::read())?;
    writeln!(io::stdout(), "{token}")?;
    Ok(())
}

impl TokenSettings {
    /// A token for an hour, signed by the key in this file.
    pub fn for_user(key: &Path, user: &str, device: Option<&str>) -> Result<String, Usage> {
        let settings = TokenSettings {
            user: user.to_owned(),
            device: device.map(str::to_owned),
            expires: "1h".to_owned(),
            jwt_key: key.to_owned(),
            key_id: None,
            issuer: None,
            audience: None,
        };
        settings.into_token(Now::read())
    }

    fn into_token(self, now: Now) -> Result<String, Usage> {
        for (flag, id) in [("--user", Some(&self.user)), ("--device", self.device.as_ref())] {
            if !id.is_none_or(|id| is_id(id)) {
                let text = "it must be 1 to 64 bytes without control characters";
                return Err(Usage(format!("{flag}: {text}")));
            }
        }
        let lifetime_s = seconds(&self.expires).ok_or_else(|| {
            Usage(format!("--expires {}: write it as 90s, 30m, 12h or 7d", self.expires))
        })?;
        let (algorithm, key) = signing_key(&read_key_file(&self.jwt_key)?)
            .map_err(|reason| Usage(format!("--jwt-key {}: {reason}", self.jwt_key.display())))?;
        let iat = now.unix_ms / 1_000;
        let claims = Claims {
            sub: self.user,
            dev: self.device,
            iat,
            exp: iat.saturating_add(lifetime_s),
            iss: self.issuer,
            aud: self.audience,
        };
        let header = Header { kid: self.key_id, ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, &claims, &key)
            .map_err(|error| Usage(format!("--jwt-key {}: {error}", self.jwt_key.display())))
    }
}

/// `90s`, `30m`, `12h`, `7d`.
pub fn seconds(text: &str) -> Option<u64> {
    let digits_end = text.find(|character: char| !character.is_ascii_digit())?;
    let (count, unit) = text.split_at(digits_end);
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    count.parse::<u64>().ok()?.checked_mul(unit_s)
}

/// The key of a file, and the one algorithm that it is for; or what is wrong with it.
fn signing_key(content: &[u8]) -> Result<(Algorithm, EncodingKey), String> {
    if !pem::is_pem(content) {
        let secret = secret_of(content);
        if secret.len() < SECRET_SIZE_MIN {
            let size = secret.len();
            return Err(format!("a secret has at least {SECRET_SIZE_MIN} bytes, this one {size}"));
        }
        return Ok((Algorithm::HS256, EncodingKey::from_secret(secret)));
    }
    let block = pem::decode(content).ok_or("not one whole block of PEM")?;
    let contains = |part: &[u8]| block.der.windows(part.len()).any(|window| window == part);
    match block.label.as_str() {
        "PRIVATE KEY" if contains(ED25519) => {
            Ok((Algorithm::EdDSA, EncodingKey::from_ed_der(&block.der)))
        }
        "PRIVATE KEY" if contains(P256) => {
            Ok((Algorithm::ES256, EncodingKey::from_ec_der(&block.der)))
        }
        "PRIVATE KEY" => Err("neither Ed25519 nor P-256".to_owned()),
        "EC PRIVATE KEY" => {
            Err("not PKCS#8; `openssl pkcs8 -topk8 -nocrypt -in FILE` makes it so".to_owned())
        }
        label => Err(format!("a {label}; the private key is needed to sign")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("30m"), Some(1_800));
        assert_eq!(seconds("12h"), Some(43_200));
        assert_eq!(seconds("7d"), Some(604_800));
        for wrong in ["", "h", "1", "1w", "-1h", "1.5h", "1h30m", "99999999999999999999s"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
