//! `aldis conform URL`: asks a server everything that the client protocol promises, by vectors that
//! other programs can read too, and says which sentences are not true of it.

mod connection;
mod pattern;
mod vectors;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use tungstenite::Message;

use super::client::Address;
use super::failure::Usage;
use super::token::{TokenSettings, seconds};
use connection::{Asked, Connection, Opened};
use pattern::Values;
use vectors::{Case, Step};

#[derive(Args, Debug)]
pub struct ConformSettings {
    /// Where the server takes clients: ws://127.0.0.1:8080/v1/connect
    #[arg(value_name = "URL")]
    url: Address,
    /// Only the cases whose name holds this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How long an answer may take.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    patience: String,
    /// For a server with tokens: the key that signs those of the users, as `aldis token` takes it.
    #[arg(long, value_name = "FILE")]
    jwt_key: Option<PathBuf>,
    /// Print the cases' names and do nothing.
    #[arg(long)]
    list: bool,
    /// Print the outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the cases. An error if one fails: exit code 1.
pub fn run(settings: ConformSettings) -> anyhow::Result<()> {
    let patience =
        seconds(&settings.patience).filter(|&seconds| seconds > 0).map(Duration::from_secs);
    let patience = patience
        .ok_or_else(|| Usage(format!("--patience {}: write it as 5s", settings.patience)))?;
    if settings.url.is_secure {
        return Err(Usage("conform speaks ws:// only".to_owned()).into());
    }
    let mut cases = vectors::read()?;
    if let Some(only) = &settings.only {
        cases.retain(|case| case.name.contains(only.as_str()));
        if cases.is_empty() {
            return Err(Usage(format!("--only {only:?}: no case is called like that")).into());
        }
    }
    let mut out = io::stdout();
    if settings.list {
        for case in &cases {
            writeln!(out, "{}. {}", case.section, case.name)?;
        }
        return Ok(());
    }
    let mut failures = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let run = format!("c{:x}-{index}", getrandom::u64()? >> 24);
        let mut stage = Stage::new(&settings, &run, patience);
        let outcome = stage.play(case);
        if !settings.json {
            match &outcome {
                Ok(()) => writeln!(out, "ok    {}. {}", case.section, case.name)?,
                Err(why) => writeln!(out, "FAIL  {}. {}\n      {why}", case.section, case.name)?,
            }
        }
        failures.extend(outcome.err().map(|why| (case.name.clone(), why)));
    }
    report(&settings, cases.len(), &failures)
}

fn report(
    settings: &ConformSettings,
    count: usize,
    failures: &[(String, String)],
) -> anyhow::Result<()> {
    let mut out = io::stdout();
    if settings.json {
        let failed = failures.iter().map(|(case, why)| json!({"case": case, "why": why}));
        let failed: Vec<Value> = failed.collect();
        let server = settings.url.to_string();
        writeln!(out, "{}", json!({"server": server, "cases": count, "failed": failed}))?;
    } else {
        writeln!(out, "{} of {count} cases hold at {}", count - failures.len(), settings.url)?;
    }
    if !failures.is_empty() {
        bail!("{} of {count} cases failed", failures.len());
    }
    Ok(())
}

/// The connections and values of one case.
struct Stage<'a> {
    settings: &'a ConformSettings,
    patience: Duration,
    values: Values,
    connections: BTreeMap<String, Connection>,
}

impl<'a> Stage<'a> {
    /// `run`: part of every name, so that no case meets what an earlier one left.
    fn new(settings: &'a ConformSettings, run: &str, patience: Duration) -> Stage<'a> {
        let mut values = Values::default();
        values.set("run", json!(run));
        for user in ["alice", "bob", "carol", "dave"] {
            values.set(user, json!(format!("{run}-{user}")));
        }
        Stage { settings, patience, values, connections: BTreeMap::new() }
    }

    fn play(&mut self, case: &Case) -> Result<(), String> {
        for (index, step) in case.steps.iter().enumerate() {
            self.step(step).map_err(|why| format!("step {}: {why}", index + 1))?;
        }
        std::mem::take(&mut self.connections).into_values().for_each(Connection::close);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Connect { .. } => self.connect(step),
            Step::Say { r#as, frame, text, binary, body_size } => {
                let message = self.message(frame, text, binary, *body_size)?;
                self.connection(r#as)?.say(message)
            }
            Step::Hear { r#as, frame } => {
                let (wanted, patience) = (self.values.fill(frame), self.patience);
                let found = self.connection(r#as)?.hear(&wanted["t"], patience)?;
                let compared = self.values.compare(&wanted, Some(&found), "");
                compared.map_err(|why| format!("{why}, in {found}"))
            }
            Step::Quiet { r#as, t, ms } => {
                let patience = Duration::from_millis(*ms);
                match self.connection(r#as)?.hear(&json!(t), patience) {
                    Ok(frame) => Err(format!("{t} came: {frame}")),
                    Err(_) => Ok(()),
                }
            }
            Step::Closed { r#as, code } => {
                let patience = self.patience;
                match self.connection(r#as)?.closed(patience)? {
                    Some(found) if found == *code => Ok(()),
                    found => Err(format!("it closed with {found:?}; it should be {code}")),
                }
            }
            Step::Close { r#as } => {
                self.connections.remove(r#as).ok_or(format!("no connection {as}"))?.close();
                Ok(())
            }
        }
    }

    fn connect(&mut self, step: &Step) -> Result<(), String> {
        let Step::Connect { r#as, user, device, query, subprotocols, refused, frame } = step else {
            return Ok(());
        };
        let (user, device) = (self.text(user), device.as_deref().map(|device| self.text(device)));
        let query: Vec<(String, String)> =
            query.iter().map(|(name, value)| (name.clone(), self.text(value))).collect();
        let token = match &self.settings.jwt_key {
            Some(key) if !user.is_empty() => {
                let token = TokenSettings::for_user(key, &user, device.as_deref());
                Some(token.map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        if token.is_none() {
            parameters.extend((!user.is_empty()).then_some(("user", user.as_str())));
            parameters.extend(device.as_deref().map(|device| ("device", device)));
        }
        parameters.extend(query.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let asked = Asked { parameters: &parameters, subprotocols, token: token.as_deref() };
        let opened = Connection::open(&self.settings.url, &asked, self.patience)?;
        let (found, what) = match (opened, refused) {
            (Opened::Refused(status, body), Some(wanted)) if status == *wanted => (body, "refusal"),
            (Opened::Refused(status, body), _) => return Err(format!("refused: {status} {body}")),
            (Opened::Connection(_), Some(wanted)) => {
                return Err(format!("it was taken; it should be refused with {wanted}"));
            }
            (Opened::Connection(mut connection), None) => {
                let welcome = connection.hear(&json!("welcome"), self.patience)?;
                self.connections.insert(r#as.clone(), *connection);
                (welcome, "welcome")
            }
        };
        let wanted = frame.as_ref().map_or(json!({}), |frame| self.values.fill(frame));
        let compared = self.values.compare(&wanted, Some(&found), "");
        compared.map_err(|why| format!("{why}, in the {what} {found}"))
    }

    fn message(
        &self,
        frame: &Option<Value>,
        text: &Option<String>,
        binary: &Option<String>,
        body_size: Option<usize>,
    ) -> Result<Message, String> {
        if let Some(hex) = binary {
            let pairs =
                (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16));
            let bytes = pairs.collect::<Result<Vec<u8>, _>>();
            return bytes.map(Message::binary).map_err(|error| format!("no hex: {error}"));
        }
        if let Some(text) = text {
            return Ok(Message::text(text.clone()));
        }
        let mut frame = self.values.fill(frame.as_ref().ok_or("nothing to say")?);
        if let Some(size) = body_size {
            frame["body"] = json!("x".repeat(size));
        }
        Ok(Message::text(frame.to_string()))
    }

    fn text(&self, given: &str) -> String {
        match self.values.fill(&json!(given)) {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }

    fn connection(&mut self, name: &str) -> Result<&mut Connection, String> {
        self.connections.get_mut(name).ok_or_else(|| format!("no connection {name}"))
    }
}
