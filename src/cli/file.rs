//! The configuration file: one table per process, no key that nobody reads.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::failure::Usage;
use super::settings::{EdgeSettings, SequencerSettings, StoreSettings, UpSettings};

/// The whole file. Every process reads all of it, so that a mistake in any table is found at once.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigurationFile {
    pub up: UpSettings,
    pub edge: EdgeSettings,
    pub sequencer: SequencerSettings,
    pub store: StoreSettings,
    /// Its path, if there is a file.
    #[serde(skip)]
    pub name: Option<String>,
    /// All of it, as it stands there.
    #[serde(skip)]
    pub raw: toml::Table,
}

impl ConfigurationFile {
    /// Reads `path`; none is an empty file.
    pub fn read(path: Option<&Path>) -> Result<ConfigurationFile, Usage> {
        let Some(path) = path else {
            return Ok(ConfigurationFile::default());
        };
        let name = path.display().to_string();
        let text = fs::read_to_string(path)
            .map_err(|error| Usage(format!("cannot read the configuration {name}: {error}")))?;
        ConfigurationFile::parse(&name, &text)
    }

    /// `name` is the file's, for errors, which say the line and the key.
    pub fn parse(name: &str, text: &str) -> Result<ConfigurationFile, Usage> {
        let refuse = |error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let line =
                1 + text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count();
            Usage(format!("{name}, line {line}: {}", error.message()))
        };
        let file: ConfigurationFile = toml::from_str(text).map_err(refuse)?;
        let raw = toml::from_str(text).map_err(refuse)?;
        Ok(ConfigurationFile { name: Some(name.to_owned()), raw, ..file })
    }
}
