//! `--print-config`: what a process would run with, as a configuration file that means the same,
//! and where each value came from. No secret stands in it: configuration only names files that hold
//! one.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde::Serialize;
use toml::{Table, Value};

use super::file::ConfigurationFile;

/// Flags that are not keys of the file.
const NOT_KEYS: [&str; 5] = ["help", "version", "config", "log", "print-config"];

/// What is known of one process's configuration besides its values.
pub struct Effective {
    process: &'static str,
    /// In the order of `--help`.
    keys: Vec<String>,
    /// Which flag or variable a key was given by.
    given: BTreeMap<String, String>,
    /// The name of the file, and what is in it.
    file: Option<(String, Table)>,
}

impl Effective {
    /// `command` is that of the process, `matches` what was found for it.
    pub fn new(
        process: &'static str,
        command: &Command,
        matches: &ArgMatches,
        file: &ConfigurationFile,
    ) -> Effective {
        let mut keys = Vec::new();
        let mut given = BTreeMap::new();
        for argument in command.get_arguments() {
            let Some(key) = argument.get_long().filter(|long| !NOT_KEYS.contains(long)) else {
                continue;
            };
            keys.push(key.to_owned());
            let by = match matches.value_source(argument.get_id().as_str()) {
                Some(ValueSource::CommandLine) => Some(format!("--{key}")),
                Some(ValueSource::EnvVariable) => {
                    argument.get_env().map(|name| name.to_string_lossy().into_owned())
                }
                _ => None,
            };
            given.extend(by.map(|by| (key.to_owned(), by)));
        }
        let file = file.name.clone().map(|name| (name, file.raw.clone()));
        Effective { process, keys, given, file }
    }

    /// Writes it to stdout.
    pub fn print(&self, settings: &impl Serialize) -> anyhow::Result<()> {
        let text = self.text(&Table::try_from(settings)?);
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    pub fn text(&self, values: &Table) -> String {
        let mut text = format!("[{}]\n", self.process);
        for key in &self.keys {
            match values.get(key).filter(|value| !is_empty(value)) {
                Some(value) => {
                    text.push_str(&format!("{key} = {value}  # {}\n", self.origin(key)));
                }
                None => text.push_str(&format!("# {key} is not set\n")),
            }
        }
        // `up` hands its file on: the children read their own tables in it.
        if let (Some((name, tables)), "up") = (&self.file, self.process) {
            for (process, table) in tables.iter().filter(|(process, _)| *process != "up") {
                text.push_str(&format!("\n[{process}]\n"));
                for (key, value) in table.as_table().into_iter().flatten() {
                    text.push_str(&format!("{key} = {value}  # {name}\n"));
                }
            }
        }
        text
    }

    fn origin(&self, key: &str) -> String {
        if let Some(by) = self.given.get(key) {
            return by.clone();
        }
        let in_file = |(_, tables): &&(String, Table)| {
            let table = tables.get(self.process).and_then(Value::as_table);
            table.is_some_and(|table| table.contains_key(key))
        };
        match self.file.as_ref().filter(in_file) {
            Some((name, _)) => name.clone(),
            None => "default".to_owned(),
        }
    }
}

/// A list that nobody gave.
fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
