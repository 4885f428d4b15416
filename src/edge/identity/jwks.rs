//! Keys that an identity provider publishes as a JWK set: fetched by a thread of its own, at its
//! start, from time to time, and when a token names a key that is not known.
//!
//! Bounded: one fetch at a time, each in size and time, and those that unknown keys cause in number
//! per time, so that nobody can use the edge against the provider. A fetch that fails leaves the
//! keys of the last good one; a key is good until the document drops it.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::feed::{Feed, KeySource};
use super::is_loopback;
use super::keys::{DOCUMENT_SIZE_MAX, KeySet};
use crate::admin::{Counter, Gauge, Registry};

/// How long the edge waits for the first set before it serves without.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// Where a set is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    /// `https`, or `http` on this host: on any other way there, others could put keys in.
    Url(String),
}

/// When to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From a fetch that succeeded to the next.
    pub period: Duration,
    /// At least this lies between a fetch and the next that an unknown key or a failure causes; it
    /// doubles while they bring nothing new...
    pub pause: Duration,
    /// ... up to this.
    pub pause_max: Duration,
    /// For one fetch, all of it.
    pub patience: Duration,
}

/// What the thread tells the metrics page.
struct Metrics {
    fetches: Counter,
    failures: Counter,
    keys: Gauge,
}

struct Fetcher {
    place: Place,
    pace: Pace,
    agent: Agent,
    feed: Feed,
    metrics: Metrics,
    /// The last good one.
    document: Vec<u8>,
    /// Grows while fetches bring nothing new.
    pause: Duration,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Place::File(PathBuf::from(text)));
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(format!("a user has no place in the address of {authority:?}"));
        }
        match scheme {
            "https" if !authority.is_empty() => Ok(Place::Url(text.to_owned())),
            "http" if super::host_name(authority).is_some_and(is_loopback) => {
                Ok(Place::Url(text.to_owned()))
            }
            "http" => Err(format!(
                "{text:?}: over plain http anyone on the way could put in keys; use https"
            )),
            _ => Err(format!("{text:?} is neither https://... nor the path of a file")),
        }
    }
}

impl Pace {
    /// A file costs nothing to read.
    pub fn of(place: &Place) -> Pace {
        let (period_s, pause_s_max) = match place {
            Place::File(_) => (10, 10),
            Place::Url(_) => (300, 60),
        };
        Pace {
            period: Duration::from_secs(period_s),
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(pause_s_max),
            patience: Duration::from_secs(10),
        }
    }
}

/// Starts the thread, which ends when all clones of the source are gone. Waits a while for the
/// first set, and goes on without.
pub fn start(place: Place, pace: Pace, registry: &Registry) -> anyhow::Result<KeySource> {
    let feed = Feed::default();
    let (source, wanted) = KeySource::fed(feed.clone());
    let metrics = Metrics::new(registry);
    let (pause, agent) = (pace.pause, agent(&place, pace.patience));
    let document = Vec::new();
    let fetcher = Fetcher { place, pace, agent, feed, metrics, document, pause };
    let (fetched, is_fetched) = mpsc::channel();
    thread::Builder::new().name("jwks".to_owned()).spawn(move || fetcher.run(&wanted, fetched))?;
    let _goes_on_without = is_fetched.recv_timeout(FIRST_WAIT);
    Ok(source)
}

/// Reads a set where it is published.
pub fn read(place: &Place) -> anyhow::Result<KeySet> {
    let document = fetch(place, &agent(place, Pace::of(place).patience))?;
    Ok(KeySet::from_jwks(&document)?)
}

impl Fetcher {
    fn run(mut self, wanted: &Receiver<()>, fetched: Sender<()>) {
        let mut fetched = Some(fetched);
        loop {
            let is_good = self.renew();
            if let Some(fetched) = fetched.take() {
                let _gave_up_waiting = fetched.send(());
            }
            let at = Instant::now();
            let wait = if is_good { self.pace.period } else { self.pause };
            match wanted.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) => return,
                // Nobody asked for a whole period: who does now is not to wait.
                Err(RecvTimeoutError::Timeout) if is_good => self.pause = self.pace.pause,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) => thread::sleep(self.pause.saturating_sub(at.elapsed())),
            }
            // Wishes up to here are fulfilled by the fetch that follows.
            let _at_most_one = wanted.try_recv();
        }
    }

    /// Fetches once. Whether that went well.
    fn renew(&mut self) -> bool {
        self.metrics.fetches.add(1);
        let document = fetch(&self.place, &self.agent);
        let parsed = document.and_then(|document| {
            let set = KeySet::from_jwks(&document)?;
            Ok((document, set))
        });
        let is_good = parsed.is_ok();
        match parsed {
            Ok((document, _)) if document == self.document => self.slow_down(),
            Ok((document, set)) => {
                self.pause = self.pace.pause;
                self.document = document;
                self.take_over(set);
            }
            Err(error) => {
                self.slow_down();
                self.metrics.failures.add(1);
                let place = self.place.shown();
                tracing::warn!(%place, "no new key set, the last one stays: {error:#}");
            }
        }
        is_good
    }

    fn take_over(&mut self, set: KeySet) {
        let (place, keys) = (self.place.shown(), set.len());
        match keys {
            0 => tracing::warn!(%place, "the key set has no key for HS256, EdDSA or ES256"),
            _ => tracing::info!(%place, keys, "new key set"),
        }
        self.metrics.keys.set(keys as u64);
        self.feed.put(Arc::new(set));
    }

    fn slow_down(&mut self) {
        self.pause = (self.pause * 2).min(self.pace.pause_max);
    }
}

impl Place {
    /// For the log: without the query, which may hold a secret.
    fn shown(&self) -> String {
        match self {
            Place::File(path) => path.display().to_string(),
            Place::Url(url) => url.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}

impl Metrics {
    fn new(registry: &Registry) -> Metrics {
        let fetches = registry.counter("aldis_jwks_fetches_total", "Times the key set was fetched");
        let help = "Of these, how many failed; the last good set stays";
        let failures = registry.counter("aldis_jwks_failures_total", help);
        let keys = registry.gauge("aldis_jwks_keys", "Keys of the set that can verify tokens");
        Metrics { fetches, failures, keys }
    }
}

fn fetch(place: &Place, agent: &Agent) -> anyhow::Result<Vec<u8>> {
    let limit = DOCUMENT_SIZE_MAX as u64;
    let mut document = Vec::new();
    match place {
        Place::File(path) => {
            let file = File::open(path).context("opening the file")?;
            file.take(limit + 1).read_to_end(&mut document).context("reading the file")?;
        }
        Place::Url(url) => {
            let mut response = agent.get(url).call()?;
            document = response.body_mut().with_config().limit(limit).read_to_vec()?;
        }
    }
    if document.is_empty() {
        return Err(anyhow!("it is empty"));
    }
    Ok(document)
}

/// Follows redirects, but not from https to http.
fn agent(place: &Place, patience: Duration) -> Agent {
    let is_secure = matches!(place, Place::Url(url) if url.starts_with("https://"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .https_only(is_secure)
        .max_redirects(if is_secure { 3 } else { 0 })
        .timeout_global(Some(patience))
        .max_idle_connections(0)
        .user_agent(concat!("aldis/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .tls_config(tls);
    // What is on this host is asked directly.
    let config = if is_secure { config } else { config.proxy(None) };
    config.build().new_agent()
}
