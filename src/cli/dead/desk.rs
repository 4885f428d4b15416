//! The admin page of a sequencer, asked with the link's secret.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cli::failure::Usage;
use crate::cli::settings::read_secret;
use crate::cli::up::{admin_path, secret_path};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub struct Desk {
    address: String,
    secret: String,
}

impl Desk {
    /// By the directory of an `aldis up`, or by what was given.
    pub fn find(
        data: Option<PathBuf>,
        admin: Option<String>,
        secret_file: Option<PathBuf>,
    ) -> anyhow::Result<Desk> {
        let data = data.unwrap_or_else(|| PathBuf::from("./aldis-data"));
        if admin.is_some() && secret_file.is_none() {
            return Err(Usage("--admin needs --secret-file".to_owned()).into());
        }
        let secret = read_secret(&secret_file.unwrap_or_else(|| secret_path(&data)))?;
        let secret = String::from_utf8(secret).context("the secret is not text")?;
        let address = match admin {
            Some(address) => address,
            None => {
                let path = admin_path(&data, "sequencer");
                let text = fs::read_to_string(&path);
                let unknown = |error| Usage(format!("{}: {error}", path.display()));
                text.map_err(unknown)?.trim().to_owned()
            }
        };
        Ok(Desk { address, secret })
    }

    /// One question. An answer that says an error is one.
    pub fn ask(&self, object: &Value) -> anyhow::Result<Value> {
        let Desk { address, secret } = self;
        let nobody = || format!("no sequencer answers at {address}");
        let mut socket = TcpStream::connect(address).with_context(nobody)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let body = object.to_string();
        let size = body.len();
        write!(
            socket,
            "POST /v1/dead HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {secret}\r\n\
             Content-Length: {size}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut response = String::new();
        socket.read_to_string(&mut response).with_context(nobody)?;
        let Some((head, body)) = response.split_once("\r\n\r\n") else {
            bail!("{}: the answer is cut off", nobody());
        };
        let answer: Value = serde_json::from_str(body).context("the answer makes no sense")?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(answer),
            _ => bail!("{}", answer["error"].as_str().unwrap_or("refused")),
        }
    }
}
