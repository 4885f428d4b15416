//! The vectors: what is said to a server, and what must be heard, as data.

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

/// Those that this program carries. Clients and servers in other languages can read the same file.
const VECTORS: &str = include_str!("../../../clients/conformance/vectors.json");

/// One behaviour.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// A sentence that is true of a server that conforms.
    pub name: String,
    /// Of the client protocol's page.
    pub section: u8,
    pub steps: Vec<Step>,
}

/// One thing that is done or that must come. `as` names a connection of the case.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Opens a connection and takes its `welcome`; or is refused with `status`.
    Connect {
        r#as: String,
        user: String,
        #[serde(default)]
        device: Option<String>,
        /// More of the query: `sync=manual`.
        #[serde(default)]
        query: Vec<(String, String)>,
        #[serde(default)]
        subprotocols: Vec<String>,
        #[serde(default)]
        refused: Option<u16>,
        /// The welcome, or the body of the refusal.
        #[serde(default)]
        frame: Option<Value>,
    },
    /// Says a frame: JSON, a text as it is, or bytes in hex as a binary frame.
    Say {
        r#as: String,
        #[serde(default)]
        frame: Option<Value>,
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        binary: Option<String>,
        /// The body is so many times `x`.
        #[serde(default)]
        body_size: Option<usize>,
    },
    /// The next frame with this `t` is this one.
    Hear { r#as: String, frame: Value },
    /// No frame with this `t` comes for so long.
    Quiet { r#as: String, t: String, ms: u64 },
    /// The server closes, with this code.
    Closed { r#as: String, code: u16 },
    /// The client closes.
    Close { r#as: String },
}

/// All of them.
pub fn read() -> anyhow::Result<Vec<Case>> {
    serde_json::from_str(VECTORS).context("the vectors cannot be read")
}
