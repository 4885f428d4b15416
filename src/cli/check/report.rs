//! What was found, as text for a person and as JSON for a program.

use std::fmt::Write as _;

use serde::Serialize;

/// How a fact stands to Aldis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Aldis runs; this makes it worse.
    Low,
    /// Aldis does not run.
    Stops,
    /// Only told.
    Note,
}

/// One thing that is so on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    pub name: String,
    pub value: String,
    pub verdict: Verdict,
    /// What it would have to be, how to change it, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub wanted: String,
    pub how: String,
    pub why: String,
}

/// What bounds the sockets of this machine, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Bound {
    pub by: String,
    /// With all shards.
    pub sockets: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Sockets {
    pub per_shard: u64,
    pub shards: u64,
    pub total: u64,
    pub limited_by: String,
    /// All of them, the lowest first.
    pub bounds: Vec<Bound>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub can_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Sockets>,
    pub facts: Vec<Fact>,
    /// Names of the facts to change, the most effective first.
    pub changes: Vec<String>,
}

impl Fact {
    pub fn note(name: &str, value: impl ToString) -> Fact {
        let (name, value) = (name.to_owned(), value.to_string());
        Fact { name, value, verdict: Verdict::Note, change: None }
    }

    /// `change` is wanted unless `is_fine`.
    pub fn judged(name: &str, value: impl ToString, is_fine: bool, change: Change) -> Fact {
        let verdict = if is_fine { Verdict::Ok } else { Verdict::Low };
        let change = Some(change).filter(|_| !is_fine);
        Fact { verdict, change, ..Fact::note(name, value) }
    }

    pub fn stops(name: &str, value: impl ToString, change: Change) -> Fact {
        Fact { verdict: Verdict::Stops, change: Some(change), ..Fact::note(name, value) }
    }
}

impl Report {
    /// Sorts what is to be changed: first what stops, then what bounds the sockets, the lowest
    /// bound first, then the rest as the tuning files have it.
    pub fn new(facts: Vec<Fact>, sockets: Option<Sockets>) -> Report {
        let bounds = sockets.as_ref().map(|sockets| sockets.bounds.as_slice()).unwrap_or_default();
        let rank = |fact: &Fact| match fact.verdict {
            Verdict::Stops => 0,
            _ => {
                let place = bounds.iter().position(|bound| bound.by == fact.name);
                place.map_or(usize::MAX, |place| 1 + place)
            }
        };
        let mut due: Vec<&Fact> = facts.iter().filter(|fact| fact.change.is_some()).collect();
        due.sort_by_key(|fact| rank(fact));
        let changes = due.iter().map(|fact| fact.name.clone()).collect();
        let can_run = facts.iter().all(|fact| fact.verdict != Verdict::Stops);
        Report { can_run, sockets, changes, facts }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let can = if self.can_run { "Aldis can run here." } else { "Aldis cannot run here." };
        writeln!(text, "{can}")?;
        if let Some(sockets) = &self.sockets {
            let Sockets { per_shard, shards, total, limited_by, bounds } = sockets;
            writeln!(
                text,
                "Sockets: {} a shard, {} with {shards}; limited by {limited_by}.",
                grouped(*per_shard),
                grouped(*total)
            )?;
            for Bound { by, sockets } in bounds {
                writeln!(text, "  {:>14}  {by}", grouped(*sockets))?;
            }
        }
        writeln!(text, "\nFacts:")?;
        for Fact { name, value, verdict, change } in &self.facts {
            let mark = match verdict {
                Verdict::Ok => "ok",
                Verdict::Low => "low",
                Verdict::Stops => "STOPS",
                Verdict::Note => "",
            };
            let wanted = change.as_ref().filter(|change| !change.wanted.is_empty());
            let wanted = wanted.map(|change| format!("  (wanted: {})", change.wanted));
            writeln!(text, "  {mark:5}  {name:34}  {value}{}", wanted.unwrap_or_default())?;
        }
        if self.changes.is_empty() {
            return writeln!(text, "\nNothing to change.");
        }
        writeln!(text, "\nTo change, the most effective first:")?;
        for (index, name) in self.changes.iter().enumerate() {
            let fact = self.facts.iter().find(|fact| fact.name == *name);
            let Some(Change { how, why, .. }) = fact.and_then(|fact| fact.change.as_ref()) else {
                continue;
            };
            writeln!(text, "  {}. {name}: {how}\n     {why}", index + 1)?;
        }
        Ok(())
    }
}

/// `1,048,576`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(how: &str) -> Change {
        Change { wanted: "more".to_owned(), how: how.to_owned(), why: "why".to_owned() }
    }

    #[test]
    fn changes_are_ordered_by_effect() {
        let facts = vec![
            Fact::judged("backlog", 1, false, change("a")),
            Fact::judged("files", 1, false, change("b")),
            Fact::note("kernel", "6"),
            Fact::judged("open files", 1, false, change("c")),
            Fact::judged("fine", 1, true, change("d")),
            Fact::stops("io_uring", "forbidden", change("e")),
        ];
        let bound = |by: &str, sockets| Bound { by: by.to_owned(), sockets };
        let sockets = Sockets {
            per_shard: 5,
            shards: 2,
            total: 10,
            limited_by: "open files".to_owned(),
            bounds: vec![bound("open files", 10), bound("files", 2_000_000)],
        };
        let report = Report::new(facts, Some(sockets));
        assert!(!report.can_run);
        assert_eq!(report.changes, ["io_uring", "open files", "files", "backlog"]);
        let text = report.text();
        assert!(
            text.starts_with("Aldis cannot run here.\nSockets: 5 a shard, 10 with 2;"),
            "{text}"
        );
        assert!(
            text.contains("2,000,000  files\n") && text.contains("  1. io_uring: e\n     why\n")
        );
        assert!(text.contains("  STOPS  io_uring "), "{text}");
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_048_576, "1,048,576")] {
            assert_eq!(grouped(number), text);
        }
    }
}
