//! `aldis tail`: a user's messages as they come, each once, one line each.
//!
//! A line is written out before its message is acknowledged, so that nothing is lost when this ends
//! at any moment: the next one goes on behind the last acknowledgement.

mod marks;

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientSettings, Heard, LOOK, PATIENCE, REPLACED, Session, Unreached};
use crate::sys::StopFlag;
use marks::{Marks, Verdict};

/// The device, by the protocol's rules: one tail of a user replaces another.
const DEVICE: &str = "cli-tail";
/// Messages in a row after which they are acknowledged although more are there already.
const UNACKNOWLEDGED_MAX: usize = 64;

#[derive(Args, Debug)]
pub struct TailSettings {
    #[command(flatten)]
    client: ClientSettings,
    /// Print each message as it came: one line of JSON.
    #[arg(long)]
    json: bool,
}

/// A `msg` of the server, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Shown {
    convo: String,
    seq: u64,
    from: String,
    ts: u64,
    body: Option<String>,
    body64: Option<String>,
    kind: Option<String>,
}

/// Why the connection is over.
enum End {
    /// SIGINT, SIGTERM, or nobody reads stdout any more.
    Asked,
    Replaced,
    Lost {
        reason: String,
        retry: Option<Duration>,
    },
}

/// What outlives a connection.
struct Tail {
    marks: Marks,
    json: bool,
    /// Printed and not acknowledged.
    unacknowledged: usize,
    /// What the server told of coming back.
    retry: Option<Duration>,
}

/// Prints until it is told to end.
pub fn run(settings: TailSettings, stop: &StopFlag) -> anyhow::Result<()> {
    let marks = Marks::default();
    let mut tail = Tail { marks, json: settings.json, unacknowledged: 0, retry: None };
    let mut client = Client::new("tail", settings.client, DEVICE, false)?;
    let mut is_away = false;
    while !stop.is_raised() {
        let (reason, retry) = match client.connect(Instant::now() + PATIENCE) {
            Ok(session) => {
                if std::mem::take(&mut is_away) {
                    client.note("connected again");
                }
                match tail.follow(session, stop)? {
                    End::Asked => return Ok(()),
                    End::Lost { reason, retry } => (reason, retry),
                    End::Replaced => {
                        return Err(anyhow!(
                            "another connection of the same user and device took over; there is \
                             one at a time. With tokens, each command needs one with a `dev` of \
                             its own"
                        ));
                    }
                }
            }
            Err(Unreached::Later { reason, retry }) => (reason, retry),
            Err(Unreached::Never(usage)) => return Err(usage.into()),
        };
        if !std::mem::replace(&mut is_away, true) {
            client.note(&format!("{}: {reason}; trying again", client.address()));
        }
        let pause = client.pause(retry);
        stop.sleep(pause);
    }
    Ok(())
}

impl Tail {
    /// Prints what comes over one connection.
    fn follow(&mut self, mut session: Session, stop: &StopFlag) -> anyhow::Result<End> {
        self.marks.connected();
        self.retry = None;
        loop {
            // What was printed is acknowledged once nothing more is there at this moment.
            let wait = if self.unacknowledged > 0 { Duration::ZERO } else { LOOK };
            match session.hear(wait) {
                Heard::Frame(text) => match self.take(&text, &mut session) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Asked),
                    Err(error) => return Err(anyhow!("stdout: {error}")),
                },
                Heard::Nothing if self.unacknowledged > 0 => self.acknowledge(&mut session),
                Heard::Nothing if session.is_silent() => {
                    let reason = "no sign of life".to_owned();
                    return Ok(End::Lost { reason, retry: None });
                }
                Heard::Nothing if is_unread() => return Ok(End::Asked),
                Heard::Nothing => {}
                Heard::Closed(Some(REPLACED)) => return Ok(End::Replaced),
                Heard::Closed(_) => {
                    let reason = "the connection was lost".to_owned();
                    return Ok(End::Lost { reason, retry: self.retry.take() });
                }
            }
            if stop.is_raised() {
                self.acknowledge(&mut session);
                session.close();
                return Ok(End::Asked);
            }
        }
    }

    fn take(&mut self, text: &str, session: &mut Session) -> io::Result<()> {
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        match frame["t"].as_str() {
            Some("msg") => {
                if let Ok(message) = serde_json::from_value::<Shown>(frame) {
                    self.message(text, &message, session)?;
                }
            }
            Some("synced") => {
                let heads = frame["convos"].as_object().into_iter().flatten();
                let heads =
                    heads.filter_map(|(convo, head)| Some((convo.as_str(), head.as_u64()?)));
                self.marks.synced(frame["ref"].as_u64(), heads);
            }
            Some("behind") => self.marks.behind(),
            Some("goaway") => {
                self.retry = frame["reconnect_ms"].as_u64().map(Duration::from_millis);
            }
            _ => {}
        }
        if self.unacknowledged >= UNACKNOWLEDGED_MAX {
            self.acknowledge(session);
        }
        Ok(())
    }

    fn message(&mut self, text: &str, shown: &Shown, session: &mut Session) -> io::Result<()> {
        match self.marks.take(&shown.convo, shown.seq) {
            Verdict::New => {
                let line = if self.json { one_line(text) } else { shown.line() };
                let mut output = io::stdout().lock();
                writeln!(output, "{line}")?;
                output.flush()?;
                self.marks.printed(&shown.convo, shown.seq);
                self.unacknowledged += 1;
            }
            // Acknowledged again: the server would not repeat it otherwise.
            Verdict::Repeated => self.unacknowledged += 1,
            Verdict::Ahead { reference, behind } => {
                let convos = json!({ &shown.convo: behind });
                session.say(&json!({ "t": "sync", "ref": reference, "convos": convos }));
            }
            Verdict::Awaited => {}
        }
        Ok(())
    }

    fn acknowledge(&mut self, session: &mut Session) {
        self.unacknowledged = 0;
        for (convo, seq) in self.marks.unacknowledged() {
            session.say(&json!({ "t": "ack", "convo": convo, "seq": seq, "kind": "delivered" }));
        }
    }
}

impl Shown {
    fn line(&self) -> String {
        let Shown { convo, seq, from, .. } = self;
        let (from, convo) = (printable(from), printable(convo));
        let what = match (&self.body, &self.body64) {
            (Some(body), _) => printable(body),
            (None, Some(body64)) => format!("base64 {}", printable(body64)),
            (None, None) => String::new(),
        };
        let kind = match &self.kind {
            Some(kind) => format!(" ({})", printable(kind)),
            None => String::new(),
        };
        format!("{} {convo} #{seq} {from}{kind}: {what}", utc(self.ts))
    }
}

/// White space between the parts of an object may be line ends; within its strings none is.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], "")
}

/// One line, and nothing that a terminal would obey.
fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => printed.push_str("\\\\"),
            _ if character.is_control() || is_invisible(character) => {
                printed.extend(character.escape_default());
            }
            _ => printed.push(character),
        }
    }
    printed
}

/// Line and paragraph separators, and what turns the direction of writing.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Milliseconds since 1970 as RFC 3339 writes them. The calendar repeats itself every 146,097 days;
/// counted from the first of March, a leap day is its year's last (Hinnant's `civil_from_days`).
fn utc(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1_000, unix_ms % 1_000);
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

fn is_unread() -> bool {
    crate::sys::is_unread(io::stdout().as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_000, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
    }

    #[test]
    fn a_line_is_one_line_and_commands_no_terminal() {
        let mut shown = Shown {
            convo: "dm:a:b".to_owned(),
            seq: 7,
            from: "a".to_owned(),
            ts: 0,
            body: Some("x\ny\u{1b}[2J\\n \u{202e}\u{e4}".to_owned()),
            body64: None,
            kind: None,
        };
        let line = "1970-01-01T00:00:00.000Z dm:a:b #7 a: x\\ny\\u{1b}[2J\\\\n \\u{202e}\u{e4}";
        assert_eq!(shown.line(), line);
        shown.body = None;
        shown.body64 = Some("AA==".to_owned());
        shown.kind = Some("system".to_owned());
        assert!(shown.line().ends_with(" a (system): base64 AA=="));
        assert_eq!(one_line("{\"a\":\n 1}\r"), "{\"a\": 1}");
    }
}
