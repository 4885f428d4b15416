//! What `aldis send` and `aldis tail` share: where to connect and as whom, and how to come back.

mod address;
mod session;

pub use address::Address;
pub use session::{Heard, PATIENCE, Session};

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::failure::Usage;
use crate::protocol::conversation::is_id;
use session::{Credentials, Refused};

/// The close code of a connection that gave way to a newer one of its device.
pub const REPLACED: u16 = 4001;
/// How often a client that waits for frames looks for a signal.
pub const LOOK: Duration = Duration::from_millis(500);

const BACKOFF_MS_MIN: u64 = 100;
const BACKOFF_MS_MAX: u64 = 10_000;
/// The longest pause that a server may ask for.
const TOLD_MAX: Duration = Duration::from_secs(600);

#[derive(Args, Debug)]
pub struct ClientSettings {
    /// The user. A token says it by itself.
    #[arg(long = "as", value_name = "USER", required_unless_present = "token")]
    user: Option<String>,
    /// Where an edge takes clients.
    #[arg(
        long,
        env = "ALDIS_URL",
        value_name = "URL",
        default_value = "ws://127.0.0.1:8080/v1/connect"
    )]
    url: Address,
    /// For an edge with --auth jwt. Others see it in the process list: the environment is better.
    #[arg(long, env = "ALDIS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Unreached {
    /// It may be better soon.
    Later { reason: String, retry: Option<Duration> },
    /// Trying again without a change gives the same.
    Never(Usage),
}

/// One device of one user, and what it knows from one connection to the next.
pub struct Client {
    process: &'static str,
    settings: ClientSettings,
    device: &'static str,
    manual: bool,
    ticket: Option<String>,
    backoff: Backoff,
}

/// Exponential, with full jitter.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Client {
    /// `manual`: the server pushes nothing by itself.
    pub fn new(
        process: &'static str,
        settings: ClientSettings,
        device: &'static str,
        manual: bool,
    ) -> Result<Client, Usage> {
        match &settings.user {
            Some(user) if !is_id(user) => {
                Err(Usage("--as: it must be 1 to 64 bytes without control characters".to_owned()))
            }
            _ => Ok(Client {
                process,
                settings,
                device,
                manual,
                ticket: None,
                backoff: Backoff::default(),
            }),
        }
    }

    pub fn address(&self) -> &Address {
        &self.settings.url
    }

    /// Connects until `deadline`: by the ticket of the last connection, else by token or name.
    pub fn connect(&mut self, deadline: Instant) -> Result<Session, Unreached> {
        let ticket = self.ticket.take();
        let who = Credentials {
            user: self.settings.user.as_deref(),
            device: self.device,
            token: self.settings.token.as_deref(),
            ticket: ticket.as_deref(),
        };
        let opened = Session::open(&self.settings.url, &who, self.manual, deadline);
        let session = match opened {
            Err(Refused::Unbelieved) if ticket.is_some() => return self.connect(deadline),
            Err(Refused::Unbelieved) => return Err(Unreached::Never(self.unbelieved())),
            Err(Refused::Unreached(unreached)) => {
                self.ticket = ticket;
                return Err(unreached);
            }
            Ok(session) => session,
        };
        let user = &session.welcome.user;
        if let Some(wanted) = self.settings.user.as_ref().filter(|wanted| *wanted != user) {
            let text = format!("the token is that of {user:?}, not of {wanted:?}; leave --as out");
            return Err(Unreached::Never(Usage(text)));
        }
        self.ticket = Some(session.welcome.ticket.clone());
        self.backoff.attempts = 0;
        Ok(session)
    }

    /// How long to wait before the next attempt; `told` is what the server said, within bounds.
    pub fn pause(&mut self, told: Option<Duration>) -> Duration {
        let pause = self.backoff.next(getrandom::u64().unwrap_or(u64::MAX));
        told.map_or(pause, |told| told.min(TOLD_MAX))
    }

    /// A line for the person in front of it, apart from what goes to stdout.
    pub fn note(&self, text: &str) {
        // Nobody may be there to read it.
        let _ = writeln!(io::stderr(), "aldis {}: {text}", self.process);
    }

    fn unbelieved(&self) -> Usage {
        let url = &self.settings.url;
        Usage(match self.settings.token {
            None => format!(
                "{url} asks for a token: --token TOKEN or ALDIS_TOKEN; to try it, \
                 `aldis token --jwt-key FILE --user USER --device {}` makes one",
                self.device
            ),
            Some(_) => format!(
                "{url} does not accept the token: it has expired, or is signed by a key that the \
                 edge does not know; the edge's aldis_identity_refused_total says which"
            ),
        })
    }
}

impl Backoff {
    fn next(&mut self, random: u64) -> Duration {
        let ceiling_ms = (BACKOFF_MS_MIN << self.attempts.min(16)).min(BACKOFF_MS_MAX);
        self.attempts = self.attempts.saturating_add(1);
        Duration::from_millis(1 + random % ceiling_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let mut backoff = Backoff::default();
        for ceiling_ms in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            assert_eq!(backoff.next(ceiling_ms - 1), Duration::from_millis(ceiling_ms));
        }
        let mut tired = Backoff { attempts: u32::MAX };
        assert_eq!(tired.next(BACKOFF_MS_MAX - 1), Duration::from_millis(BACKOFF_MS_MAX));
    }
}
