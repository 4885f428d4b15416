//! What a run found, as plain data. `--json` writes it as it is; the text and the page are made
//! from it. `docs/loadgen.md` says what each field means.

pub mod page;
mod plot;
mod text;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::accounting::Accounts;
use crate::observe::Memory;
use crate::processor::{self, Shares};
use crate::run::{Outcome, Plan, ServerTime, Timeline};

/// Changes when a field changes its meaning or goes away; new fields do not change it.
pub const SCHEMA: u32 = 1;
/// Quantiles of the curve that the page draws.
const CURVE: [f64; 15] = [
    0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999, 1.0,
];

/// Everything about a run. Times are in the unit that ends the field's name.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub scenario: String,
    pub command: String,
    pub version: &'static str,
    pub finished_unix_s: u64,
    pub machine: String,
    /// The machine and its settings in detail.
    pub host: BTreeMap<String, String>,
    pub target: String,
    pub connections: usize,
    pub threads: usize,
    pub opening_s: f64,
    pub window_s: f64,
    /// Messages delivered per second of the window.
    pub rate: f64,
    /// What was asked for; absent in a closed loop and without messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_wanted: Option<f64>,
    pub per_second: Vec<u64>,
    pub latencies: Vec<Latencies>,
    /// Latencies of each second of the window.
    pub timeline: Vec<Second>,
    /// Where the window began, on the clock of `samples`.
    pub window_from_s: f64,
    pub accounts: Accounts,
    pub connections_lost: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_loss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_refusal: Option<String>,
    /// The connections beside those that carry messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crowd: Option<Crowd>,
    /// The results that this scenario is about.
    pub figures: Vec<Figure>,
    /// Bytes of the kernel's caches per connection, both ends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kernel_caches: BTreeMap<String, f64>,
    /// What the machine said meanwhile.
    pub samples: Vec<Sample>,
    pub phases: Vec<Phase>,
    pub client: Vec<Shares>,
    /// Why these numbers are the client's rather than the server's, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_limit: Option<String>,
    /// What a reader should know, and what was less than asked for.
    pub notes: Vec<String>,
    /// Why the run has failed; empty when it has not.
    pub failures: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    pub of: String,
    pub count: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub max_us: f64,
    /// Pairs of quantile and microseconds.
    pub curve: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Second {
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// Counts over all connections of the crowd, since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Crowd {
    pub connections: usize,
    pub rings: usize,
    pub opened: u64,
    /// Ended although the generator did not end them.
    pub lost: u64,
    /// Ended by the generator.
    pub cut: u64,
    /// Attempts to connect that failed and were made again.
    pub retried: u64,
    pub open_at_end: u64,
    pub pings: u64,
    pub messages: u64,
    /// Why attempts failed and connections were lost.
    pub troubles: Vec<(String, u64)>,
}

/// One result, with what it means.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub meaning: &'static str,
}

/// The machine at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub t_s: f64,
    pub open: u64,
    pub lost: u64,
    pub cut: u64,
    pub retried: u64,
    pub pings: u64,
    pub available: u64,
    /// Memory of the machine in use, without caches of files.
    pub used: u64,
    pub kernel: u64,
    pub client_resident: u64,
    pub client_processor_s: f64,
    /// Resident bytes and processor seconds of the server's processes, where they are known.
    pub resident: BTreeMap<String, u64>,
    pub processor_s: BTreeMap<String, f64>,
    #[serde(skip)]
    pub memory: Memory,
}

#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub from_s: f64,
    pub to_s: f64,
}

impl Report {
    /// Of a run without messages; the caller fills in what it has.
    pub fn empty(scenario: &str, target: &str, connections: usize) -> Report {
        let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Report {
            schema: SCHEMA,
            scenario: scenario.to_owned(),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            version: env!("CARGO_PKG_VERSION"),
            finished_unix_s: since_1970.as_secs(),
            machine: processor::machine(),
            host: processor::host(),
            target: target.to_owned(),
            connections,
            threads: 0,
            opening_s: 0.0,
            window_s: 0.0,
            rate: 0.0,
            rate_wanted: None,
            per_second: Vec::new(),
            latencies: Vec::new(),
            timeline: Vec::new(),
            window_from_s: 0.0,
            accounts: Accounts::default(),
            connections_lost: 0,
            first_loss: None,
            first_refusal: None,
            crowd: None,
            figures: Vec::new(),
            kernel_caches: BTreeMap::new(),
            samples: Vec::new(),
            phases: Vec::new(),
            client: Vec::new(),
            client_limit: None,
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// What `rate` counts: what was heard, by each who heard it.
    pub fn rate_unit(&self) -> &'static str {
        if self.scenario == "fanout" { "deliveries/s" } else { "messages/s" }
    }

    pub fn new(scenario: &str, plan: &Plan, rate_wanted: Option<f64>, outcome: Outcome) -> Report {
        let mut report = Report::empty(scenario, &plan.target.name, plan.connections);
        report.opening_s = outcome.opening.as_secs_f64();
        report.rate_wanted = rate_wanted;
        report.add_messages(outcome);
        report
    }

    /// Takes over what a run of messages found.
    pub fn add_messages(&mut self, outcome: Outcome) {
        let measured = outcome.measured;
        let window_s = outcome.window.as_secs_f64();
        let delivered: u64 = measured.per_second.iter().sum();
        self.failures.extend(measured.accounts.failures());
        if outcome.losses.count > 0 {
            self.failures.push(format!("{} connections ended", outcome.losses.count));
        }
        self.add_servers(&outcome.servers, delivered as f64, window_s);
        self.threads += outcome.threads.len();
        self.window_s = window_s;
        self.window_from_s = outcome.measured_from_ns as f64 / 1e9;
        self.rate = if window_s > 0.0 { delivered as f64 / window_s } else { 0.0 };
        let latencies =
            measured.latencies.iter().map(|(of, histogram)| Latencies::of(of, histogram));
        self.latencies.extend(latencies);
        self.timeline = seconds(&measured.timeline);
        self.per_second = measured.per_second;
        self.accounts = measured.accounts;
        self.connections_lost += outcome.losses.count;
        self.first_loss = outcome.losses.first_reason;
        self.first_refusal = measured.first_refusal;
        self.add_client(outcome.threads);
    }

    /// What the server's processes used in the window, for what was heard in it.
    fn add_servers(&mut self, servers: &[ServerTime], delivered: f64, window_s: f64) {
        if delivered == 0.0 || window_s == 0.0 {
            return;
        }
        let heard = if self.scenario == "fanout" { "delivery" } else { "message" };
        let meaning = "of the process in the window, divided by what was heard in it";
        let mut whole_s = Some(0.0);
        for ServerTime { name, processor_s } in servers {
            whole_s = whole_s.zip(*processor_s).map(|(whole_s, used_s)| whole_s + used_s);
            let Some(used_s) = processor_s else {
                self.notes.push(format!("{name} ended in the window: its time is not known"));
                continue;
            };
            let each = format!("{name}: processor time per {heard}");
            self.figure(each, used_s / delivered * 1e6, "us", meaning);
            let share = format!("{name}: share of one processor");
            self.figure(share, used_s / window_s * 100.0, "%", "processor time in the window");
        }
        if let Some(used_s) = whole_s.filter(|_| !servers.is_empty()) {
            let each = format!("server: processor time per {heard}");
            let meaning = "of all those processes together";
            self.figure(each, used_s / delivered * 1e6, "us", meaning);
        }
    }

    /// Takes over what threads of the generator used.
    pub fn add_client(&mut self, threads: Vec<Shares>) {
        self.client.extend(threads);
        self.client_limit = processor::client_limit(&self.client, processor::count().max(1));
    }

    /// One result more.
    pub fn figure(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        meaning: &'static str,
    ) {
        self.figures.push(Figure { name: name.into(), value, unit, meaning });
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        text::text(self)
    }
}

impl Latencies {
    pub fn of(of: &str, histogram: &Histogram<u64>) -> Latencies {
        let at_us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latencies {
            of: of.to_owned(),
            count: histogram.len(),
            p50_us: at_us(0.5),
            p90_us: at_us(0.9),
            p99_us: at_us(0.99),
            p99_9_us: at_us(0.999),
            max_us: histogram.max() as f64 / 1e3,
            curve: CURVE.iter().map(|quantile| (*quantile, at_us(*quantile))).collect(),
        }
    }

    fn values_us(&self) -> [f64; 5] {
        [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.max_us]
    }
}

fn seconds(timeline: &Timeline) -> Vec<Second> {
    let second = |histogram: &Histogram<u64>| Second {
        count: histogram.len(),
        p50_us: histogram.value_at_quantile(0.5),
        p99_us: histogram.value_at_quantile(0.99),
        max_us: histogram.max(),
    };
    timeline.0.iter().map(second).collect()
}

/// Three digits or so, with a unit.
fn time_text(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A number with groups of three digits, and as many decimals as its size leaves sense for.
fn number_text(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let size = value.abs();
    if size < 1_000.0 && value.fract() != 0.0 {
        return match size {
            size if size < 10.0 => format!("{value:.2}"),
            _ => format!("{value:.1}"),
        };
    }
    let digits = format!("{size:.0}");
    let mut out = String::new();
    if value < 0.0 {
        out.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
