//! A scenario as a TOML file: `mode` and flags by their names.

use std::fs;

use anyhow::{Context as _, bail};
use toml::Value;

/// Replaces `--scenario FILE` at the front by what the file says. What follows it stays behind, so
/// that it goes before the file.
pub fn expand(arguments: Vec<String>) -> anyhow::Result<Vec<String>> {
    let (path, rest) = match arguments.as_slice() {
        [_, flag, path, rest @ ..] if flag == "--scenario" => (path.as_str(), rest),
        [_, flag, rest @ ..] if flag.starts_with("--scenario=") => {
            (&flag["--scenario=".len()..], rest)
        }
        _ => return Ok(arguments),
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut expanded = vec![arguments[0].clone()];
    expanded.extend(parse(&text).with_context(|| format!("in {path}"))?);
    expanded.extend_from_slice(rest);
    Ok(expanded)
}

/// The command and its flags.
fn parse(text: &str) -> anyhow::Result<Vec<String>> {
    let table: toml::Table = text.parse()?;
    let Some(Value::String(mode)) = table.get("mode") else {
        bail!("`mode` is missing: the name of a command");
    };
    let mut arguments = vec![mode.clone()];
    for (key, value) in table.iter().filter(|(key, _)| *key != "mode") {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let text = plain(value).with_context(|| format!("`{key}` is no flag's value"))?;
            arguments.push(format!("--{key}={text}"));
        }
    }
    Ok(arguments)
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_a_command_line() {
        let text = "mode = \"storm\"\nconnections = 1_000\nspread = 0.5\nserver-pid = [1, 2]\n";
        let expected =
            ["storm", "--connections=1000", "--server-pid=1", "--server-pid=2", "--spread=0.5"];
        assert_eq!(parse(text).expect("good"), expected);
        assert!(parse("connections = 1\n").is_err());
        assert!(parse("mode = \"idle\"\nrate = { a = 1 }\n").is_err());
        assert!(parse("mode =").is_err());
    }

    #[test]
    fn flags_go_before_the_file_and_other_arguments_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("small.toml");
        fs::write(&path, "mode = \"idle\"\nconnections = 5\n").expect("written");
        let path = path.to_str().expect("UTF-8");
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let expanded = expand(owned(&["x", "--scenario", path, "--connections", "7"]));
        let expected = ["x", "idle", "--connections=5", "--connections", "7"];
        assert_eq!(expanded.expect("good"), expected);
        let plain: Vec<String> = owned(&["x", "chat"]);
        assert_eq!(expand(plain.clone()).expect("untouched"), plain);
        assert!(expand(owned(&["x", "--scenario=/nowhere"])).is_err());
    }
}
