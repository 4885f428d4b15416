//! What a run found, for people and as JSON. Each number says what it is.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::accounting::Accounts;
use crate::processor::{self, Shares};
use crate::run::{Outcome, Plan};

/// Everything about a run. Times are in the unit that ends the field's name.
#[derive(Debug, Serialize)]
pub struct Report {
    pub scenario: &'static str,
    pub command: String,
    pub machine: String,
    pub target: String,
    pub connections: usize,
    pub threads: usize,
    pub opening_s: f64,
    pub window_s: f64,
    /// Messages delivered per second of the window.
    pub rate: f64,
    /// What was asked for; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_wanted: Option<f64>,
    pub per_second: Vec<u64>,
    pub latencies: Vec<Latencies>,
    pub accounts: Accounts,
    pub connections_lost: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_loss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_refusal: Option<String>,
    pub client: Vec<Shares>,
    /// Why these numbers are the client's rather than the server's, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_limit: Option<String>,
    /// Why the run has failed; empty when it has not.
    pub failures: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Latencies {
    pub of: &'static str,
    pub count: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub max_us: f64,
}

impl Report {
    pub fn new(
        scenario: &'static str,
        plan: &Plan,
        rate_wanted: Option<f64>,
        outcome: Outcome,
    ) -> Report {
        let measured = outcome.measured;
        let window_s = outcome.window.as_secs_f64();
        let delivered: u64 = measured.per_second.iter().sum();
        let mut failures = measured.accounts.failures();
        if outcome.losses.count > 0 {
            failures.push(format!("{} connections ended", outcome.losses.count));
        }
        Report {
            scenario,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            machine: processor::machine(),
            target: plan.target.name.clone(),
            connections: plan.connections,
            threads: outcome.threads.len(),
            opening_s: outcome.opening.as_secs_f64(),
            window_s,
            rate: if window_s > 0.0 { delivered as f64 / window_s } else { 0.0 },
            rate_wanted,
            latencies: measured.latencies.iter().map(Latencies::of).collect(),
            per_second: measured.per_second,
            accounts: measured.accounts,
            connections_lost: outcome.losses.count,
            first_loss: outcome.losses.first_reason,
            first_refusal: measured.first_refusal,
            client_limit: processor::client_limit(&outcome.threads),
            client: outcome.threads,
            failures,
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Report { scenario, target, connections, threads, machine, .. } = self;
        writeln!(out, "{scenario} against {target}: {connections} connections, {threads} threads")?;
        writeln!(out, "  on {machine}")?;
        write!(out, "  {:.0} messages/s over {:.1} s", self.rate, self.window_s)?;
        match self.rate_wanted {
            Some(wanted) => writeln!(out, " (open loop; {wanted:.0}/s were to be sent)")?,
            None => writeln!(out, " (closed loop)")?,
        }
        let heads = ["p50", "p90", "p99", "p99.9", "max"];
        write!(out, "\n  {:<28}", "latency")?;
        heads.iter().try_for_each(|head| write!(out, "{head:>11}"))?;
        writeln!(out)?;
        for latencies in self.latencies.iter().filter(|latencies| latencies.count > 0) {
            write!(out, "  {:<28}", latencies.of)?;
            for value_us in latencies.values_us() {
                write!(out, "{:>11}", time_text(value_us))?;
            }
            writeln!(out)?;
        }
        self.write_accounts(out)?;
        for (index, shares) in self.client.iter().enumerate() {
            let Shares { running, waiting } = shares;
            let (running, waiting) = (running * 100.0, waiting * 100.0);
            writeln!(
                out,
                "  generator thread {index}: {running:.0} % of a processor, \
                 {waiting:.0} % waiting for one"
            )?;
        }
        if let Some(limit) = &self.client_limit {
            writeln!(out, "  NOTE: {limit}")?;
        }
        if self.failures.is_empty() {
            writeln!(out, "\n  verified: every message is accounted for")
        } else {
            writeln!(out, "\n  FAILED: {}", self.failures.join(", "))
        }
    }

    fn write_accounts(&self, out: &mut String) -> std::fmt::Result {
        let Accounts { sent, acknowledged, delivered, refused, unanswered, .. } = self.accounts;
        let Accounts { lost, duplicated, reordered, gaps, corrupted, .. } = self.accounts;
        writeln!(
            out,
            "\n  {sent} sent, {acknowledged} acknowledged, {delivered} delivered, \
             {refused} refused, {unanswered} unanswered\n  {lost} lost, {duplicated} duplicated, \
             {reordered} reordered, {gaps} gaps, {corrupted} corrupted"
        )?;
        if let Some(refusal) = &self.first_refusal {
            writeln!(out, "  first refusal: {refusal}")?;
        }
        if let Some(reason) = &self.first_loss {
            writeln!(out, "  {} connections ended; the first: {reason}", self.connections_lost)?;
        }
        Ok(())
    }
}

impl Latencies {
    fn of((of, histogram): &(&'static str, Histogram<u64>)) -> Latencies {
        let at_us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latencies {
            of,
            count: histogram.len(),
            p50_us: at_us(0.5),
            p90_us: at_us(0.9),
            p99_us: at_us(0.99),
            p99_9_us: at_us(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }

    fn values_us(&self) -> [f64; 5] {
        [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.max_us]
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Losses;
    use crate::run::{Measured, latency_histogram};
    use std::time::Duration;

    fn report(accounts: Accounts) -> Report {
        let mut histogram = latency_histogram();
        for value_us in 1..=1_000 {
            histogram.record(value_us * 1_000).expect("in bounds");
        }
        let plan = Plan {
            target: "127.0.0.1:1".parse().expect("an address"),
            connections: 2,
            threads: 1,
            warmup: Duration::ZERO,
            window: Duration::from_secs(2),
            drain_max: Duration::ZERO,
            group: 1,
        };
        let outcome = Outcome {
            measured: Measured {
                accounts,
                latencies: vec![("echo", histogram)],
                per_second: vec![600, 400],
                first_refusal: None,
            },
            threads: vec![Shares { running: 0.99, waiting: 0.0 }],
            losses: Losses::default(),
            opening: Duration::from_millis(3),
            window: Duration::from_secs(2),
        };
        Report::new("echo", &plan, None, outcome)
    }

    #[test]
    fn a_good_run_says_what_it_found() {
        let accounts = Accounts { sent: 1, acknowledged: 1, delivered: 1, ..Accounts::default() };
        let text = report(accounts).text();
        let parts =
            ["500 messages/s over 2.0 s", "990 us", "99 % of a processor", "NOTE", "verified"];
        for part in parts {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_bad_run_fails_in_text_and_json() {
        let accounts = Accounts { acknowledged: 1, lost: 1, ..Accounts::default() };
        let report = report(accounts);
        assert!(report.text().contains("FAILED: 1 acknowledged but lost"));
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(json["failures"][0], "1 acknowledged but lost");
        assert_eq!(json["accounts"]["lost"], 1);
        assert!(json["latencies"][0]["p99_us"].as_f64().is_some_and(|us| us >= 990.0));
    }

    #[test]
    fn times_have_their_unit() {
        let texts = [3.4, 1_500.0, 25_000.0, 2_500_000.0].map(time_text);
        assert_eq!(texts, ["3 us", "1.50 ms", "25 ms", "2.50 s"]);
    }
}
