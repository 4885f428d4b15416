//! `aldis send`: one message, and its answer. It says `sent` only after the server did.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, ClientSettings, Heard, LOOK, REPLACED, Session, Unreached};
use super::failure::Usage;
use super::token::seconds;
use crate::limits::BODY_SIZE_MAX;
use crate::protocol::conversation::{is_id, parse};
use crate::sys::StopFlag;

/// One device for all: it reads nothing, so that it needs no place of its own.
const DEVICE: &str = "cli-send";

#[derive(Args, Debug)]
pub struct SendSettings {
    #[command(flatten)]
    client: ClientSettings,
    /// The user who is to hear it.
    #[arg(long, value_name = "USER", required_unless_present = "convo", conflicts_with = "convo")]
    to: Option<String>,
    /// The conversation, by its name, instead of a user.
    #[arg(long, value_name = "NAME")]
    convo: Option<String>,
    /// The message's id. A repetition with the same id is answered as the first was. Default: a
    /// random one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// How long to try: 10s, 5m.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: String,
    /// Print the server's answer as it came: one line of JSON.
    #[arg(long)]
    json: bool,
    /// The message; `-` reads it from stdin, all of it, a line end included. One that begins with a
    /// dash stands behind `--`.
    #[arg(value_name = "TEXT")]
    text: String,
}

/// How an attempt ended.
enum Attempt {
    Answered(String),
    /// Why, and when to try again.
    Again(String, Option<Duration>),
}

/// Sends it, again with the same id until it is answered.
pub fn run(settings: SendSettings, stop: &StopFlag) -> anyhow::Result<()> {
    let timeout_s = seconds(&settings.timeout)
        .filter(|&seconds| seconds > 0)
        .ok_or_else(|| Usage(format!("--timeout {}: write it as 10s or 5m", settings.timeout)))?;
    let frame = settings.frame()?;
    let id = frame["id"].as_str().expect("it was put there").to_owned();
    let deadline = Instant::now() + Duration::from_secs(timeout_s);
    let mut client = Client::new("send", settings.client, DEVICE, true)?;
    let mut told = false;
    let mut is_said = false;
    loop {
        let (reason, retry) = match attempt(&mut client, &frame, deadline, &mut is_said, stop)? {
            Attempt::Answered(answer) => {
                return print(&answer, settings.json).with_context(|| {
                    format!("it is sent (id {id}), but the answer could not be written to stdout")
                });
            }
            Attempt::Again(reason, retry) => (reason, retry),
        };
        let pause = client.pause(retry);
        if stop.is_raised() || Instant::now() + pause >= deadline {
            let address = client.address();
            return Err(match is_said {
                false => anyhow!("not sent: {address}: {reason}"),
                true => anyhow!(
                    "not confirmed: {address}: {reason}; it may be stored or not: repeat it with \
                     --id {id}"
                ),
            });
        }
        if !told {
            client.note(&format!("{}: {reason}; trying for {timeout_s} s", client.address()));
            told = true;
        }
        stop.sleep(pause);
    }
}

fn attempt(
    client: &mut Client,
    frame: &Value,
    deadline: Instant,
    is_said: &mut bool,
    stop: &StopFlag,
) -> anyhow::Result<Attempt> {
    let mut session = match client.connect(deadline) {
        Ok(session) => session,
        Err(Unreached::Later { reason, retry }) => return Ok(Attempt::Again(reason, retry)),
        Err(Unreached::Never(usage)) => return Err(usage.into()),
    };
    *is_said = true;
    let attempt = ask(&mut session, frame, deadline, stop)?;
    session.close();
    Ok(attempt)
}

/// Says the frame until it is answered or the connection ends.
fn ask(
    session: &mut Session,
    frame: &Value,
    deadline: Instant,
    stop: &StopFlag,
) -> Result<Attempt, Usage> {
    session.say(frame);
    let mut retry = None;
    while !stop.is_raised() && Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOK);
        let text = match session.hear(left) {
            Heard::Frame(text) => text,
            Heard::Nothing if session.is_silent() => break,
            Heard::Nothing => continue,
            Heard::Closed(Some(REPLACED)) => {
                return Ok(Attempt::Again(
                    "another connection of the same user and device took over".to_owned(),
                    None,
                ));
            }
            Heard::Closed(_) => {
                return Ok(Attempt::Again("the connection was lost".to_owned(), retry));
            }
        };
        let heard: Value = serde_json::from_str(&text).unwrap_or_default();
        let wait = |field: &str| heard[field].as_u64().map(Duration::from_millis);
        match heard["t"].as_str() {
            Some("sent") if heard["id"] == frame["id"] => return Ok(Attempt::Answered(text)),
            Some("goaway") => retry = wait("reconnect_ms"),
            Some("error") if heard["id"] == frame["id"] => {
                let reason = format!("{}: {}", text_of(&heard, "code"), text_of(&heard, "message"));
                return match heard["code"].as_str() {
                    Some("unavailable" | "rate_limited" | "internal") => {
                        Ok(Attempt::Again(reason, wait("retry_ms")))
                    }
                    _ => Err(Usage(format!("refused, {reason}"))),
                };
            }
            _ => {}
        }
    }
    Ok(Attempt::Again("no answer in time".to_owned(), None))
}

fn print(answer: &str, as_it_came: bool) -> anyhow::Result<()> {
    if as_it_came {
        writeln!(io::stdout(), "{answer}")?;
        return Ok(());
    }
    let sent: Value = serde_json::from_str(answer)?;
    let (convo, mid) = (text_of(&sent, "convo"), text_of(&sent, "mid"));
    let repeated = if sent["dup"] == true { " dup=true" } else { "" };
    writeln!(io::stdout(), "sent seq={} mid={mid} convo={convo}{repeated}", sent["seq"])?;
    Ok(())
}

fn text_of<'a>(frame: &'a Value, field: &str) -> &'a str {
    frame[field].as_str().unwrap_or_default()
}

impl SendSettings {
    fn frame(&self) -> Result<Value, Usage> {
        let bytes = match self.text.as_str() {
            "-" => read_body(io::stdin().lock())?,
            text => text.as_bytes().to_vec(),
        };
        if bytes.len() > BODY_SIZE_MAX {
            return Err(Usage(format!("a message has at most {BODY_SIZE_MAX} bytes")));
        }
        let id = match &self.id {
            Some(id) => id.clone(),
            None => format!("cli-{:016x}", crate::sys::random_u64()),
        };
        for (flag, id) in [("--id", Some(&id)), ("--to", self.to.as_ref())] {
            if !id.is_none_or(|id| is_id(id)) {
                let text = "it must be 1 to 64 bytes without control characters";
                return Err(Usage(format!("{flag}: {text}")));
            }
        }
        let mut frame = json!({ "t": "send", "id": id });
        match (&self.to, &self.convo) {
            (Some(to), _) => frame["to"] = json!(to),
            (None, Some(convo)) if parse(convo).is_ok() => frame["convo"] = json!(convo),
            (None, convo) => {
                let name = convo.as_deref().unwrap_or_default();
                return Err(Usage(format!("--convo: {name:?} is no conversation's name")));
            }
        }
        match String::from_utf8(bytes) {
            Ok(text) => frame["body"] = json!(text),
            Err(error) => frame["body64"] = json!(BASE64_STANDARD.encode(error.as_bytes())),
        }
        Ok(frame)
    }
}

/// One byte more than is allowed is enough to see that it is too long.
fn read_body(from: impl Read) -> Result<Vec<u8>, Usage> {
    let mut bytes = Vec::new();
    let read = from.take(BODY_SIZE_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Usage(format!("cannot read stdin: {error}")))?;
    Ok(bytes)
}
