//! How clients are to say who they are, as it is given on the command line, and the keys for it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::Usage;
use crate::edge::identity::jwks::{self, Place};
use crate::edge::identity::keys::KeySet;
use crate::edge::options::{Auth, Keys};

/// What `up` and `edge` are told about it, word for word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySettings {
    pub auth: String,
    pub jwt_keys: Vec<PathBuf>,
    pub jwks: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

impl IdentitySettings {
    /// What that means on `listen`. Reads the keys that are in files.
    pub fn auth(&self, listen: SocketAddr) -> Result<Auth, Usage> {
        match self.auth.as_str() {
            "dev" => self.development(listen),
            "jwt" => self.tokens(),
            other => Err(Usage(format!(
                "--auth: {other:?} is not a way to identify clients; use dev or jwt"
            ))),
        }
    }

    /// The same as flags, for a child.
    pub fn flags(&self) -> Vec<(&'static str, PathBuf)> {
        let mut flags = vec![("--auth", PathBuf::from(&self.auth))];
        flags.extend(self.jwt_keys.iter().map(|path| ("--jwt-key", path.clone())));
        let texts = [
            ("--jwks", &self.jwks),
            ("--jwt-issuer", &self.issuer),
            ("--jwt-audience", &self.audience),
        ];
        let given = texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        flags.extend(given.map(|(name, text)| (name, PathBuf::from(text))));
        flags
    }

    fn development(&self, listen: SocketAddr) -> Result<Auth, Usage> {
        if !listen.ip().is_loopback() {
            return Err(Usage(format!(
                "--auth dev lets anyone be anyone, so it is refused on {listen}, which others can \
                 reach; use --auth jwt, or listen on a loopback address such as 127.0.0.1:{}",
                listen.port()
            )));
        }
        let flags = self.flags();
        match flags.get(1) {
            None => Ok(Auth::Dev),
            Some((name, _)) => Err(Usage(format!("{name} is of no use with --auth dev"))),
        }
    }

    fn tokens(&self) -> Result<Auth, Usage> {
        let keys = match (&self.jwks, self.jwt_keys.is_empty()) {
            (None, false) => Keys::Fixed(Arc::new(read_keys(&self.jwt_keys)?)),
            (Some(place), true) => Keys::Published(published(place)?),
            (None, true) => {
                let text = "--auth jwt needs keys: --jwt-key FILE or --jwks URL-or-FILE";
                return Err(Usage(text.to_owned()));
            }
            (Some(_), false) => {
                let text = "--jwt-key and --jwks exclude each other: put all keys in the set";
                return Err(Usage(text.to_owned()));
            }
        };
        let (issuer, audience) = (self.issuer.clone(), self.audience.clone());
        Ok(Auth::Jwt { keys, issuer, audience })
    }
}

/// The bytes of a file with a key.
pub fn read_key_file(path: &Path) -> Result<Vec<u8>, Usage> {
    fs::read(path)
        .map_err(|error| Usage(format!("cannot read the key {}: {error}", path.display())))
}

fn read_keys(paths: &[PathBuf]) -> Result<KeySet, Usage> {
    let mut keys = KeySet::default();
    for path in paths {
        let key = KeySet::from_key_file(&read_key_file(path)?)
            .map_err(|fault| Usage(format!("--jwt-key {}: {fault}", path.display())))?;
        keys = keys.join(key);
    }
    Ok(keys)
}

/// A file has to be there from the start; what is elsewhere may come later.
fn published(place: &str) -> Result<Place, Usage> {
    let fault = |reason: String| Usage(format!("--jwks {reason}"));
    let parsed: Place = place.parse().map_err(fault)?;
    if matches!(parsed, Place::File(_)) {
        jwks::read(&parsed).map_err(|error| fault(format!("{place}: {error:#}")))?;
    }
    Ok(parsed)
}
