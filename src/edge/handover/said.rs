//! What a successor tells whoever started it: a line of its output for each step.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::thread;

/// One step of a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing has changed yet, and nothing stands in the way.
    Ready,
    /// The old process has nothing any more.
    Serving { connections: u64, pause_us: u64 },
    /// It ends, and everything is as it was.
    Refused(String),
    /// It says nothing more: its output is closed.
    Ended,
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Ready => write!(formatter, "ready"),
            Said::Serving { connections, pause_us } => {
                write!(formatter, "serving {connections} {pause_us}")
            }
            Said::Refused(reason) => write!(formatter, "refused {}", reason.replace('\n', " ")),
            Said::Ended => write!(formatter, "ended"),
        }
    }
}

impl Said {
    /// What a line says; other programs may say anything.
    fn parse(line: &str) -> Option<Said> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" if rest.is_empty() => Some(Said::Ready),
            "serving" => {
                let (connections, pause_us) = rest.split_once(' ')?;
                let (connections, pause_us) = (connections.parse().ok()?, pause_us.parse().ok()?);
                Some(Said::Serving { connections, pause_us })
            }
            "refused" => Some(Said::Refused(rest.to_owned())),
            _ => None,
        }
    }

    /// Says it to whoever started this process. He may not listen any more.
    pub fn say(&self) {
        let mut output = std::io::stdout().lock();
        let _ = writeln!(output, "{self}").and_then(|()| output.flush());
    }

    /// Calls `hear` for each step that is said in `output`, from a thread of its own.
    pub fn listen(output: impl Read + Send + 'static, mut hear: impl FnMut(Said) + Send + 'static) {
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(said) = Said::parse(&line) {
                    hear(said);
                }
            }
            hear(Said::Ended);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let serving = Said::Serving { connections: 7, pause_us: 1_234 };
        let refused = Said::Refused("no room".to_owned());
        for said in [Said::Ready, serving, refused] {
            assert_eq!(Said::parse(&said.to_string()), Some(said));
        }
        for line in ["", "serving", "serving 1", "serving a b", "hello there"] {
            assert_eq!(Said::parse(line), None, "{line}");
        }
    }
}
