//! Reports of made-up runs.

use super::*;
use crate::fleet::{Clock, Losses};
use crate::run::{Measured, Schedule, ServerTime, latency_histogram};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub fn report(accounts: Accounts) -> Report {
    report_of("echo", accounts, Vec::new())
}

fn report_of(scenario: &str, accounts: Accounts, servers: Vec<ServerTime>) -> Report {
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
        clock: Clock(Instant::now()),
        signals: Arc::default(),
        servers: Vec::new(),
    };
    let schedule = Schedule { start_ns: 0, measure_from_ns: 0, end_ns: 2_000_000_000 };
    let mut timeline = Timeline::default();
    timeline.record(0, 3_000_000, &schedule);
    timeline.record(1_500_000_000, 5_000_000, &schedule);
    let outcome = Outcome {
        connections: 2,
        measured: Measured {
            accounts,
            latencies: vec![("echo", histogram)],
            per_second: vec![600, 400],
            timeline,
            first_refusal: None,
        },
        threads: vec![Shares { running: 0.99, waiting: 0.0 }],
        losses: Losses::default(),
        opening: Duration::from_millis(3),
        window: Duration::from_secs(2),
        measured_from_ns: 1_000_000_000,
        servers,
    };
    Report::new(scenario, &plan, None, outcome)
}

pub fn good() -> Accounts {
    Accounts { sent: 1, acknowledged: 1, delivered: 1, ..Accounts::default() }
}

#[test]
fn a_good_run_says_what_it_found() {
    let text = report(good()).text();
    let parts = ["500 messages/s over 2.0 s", "990 us", "99 % of a processor", "NOTE", "verified"];
    for part in parts {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn a_bad_run_fails_in_text_and_json() {
    let accounts = Accounts { sent: 1, acknowledged: 1, lost: 1, ..Accounts::default() };
    let report = report(accounts);
    assert!(report.text().contains("FAILED: 1 acknowledged but lost"));
    let json = serde_json::to_value(&report).expect("plain data");
    assert_eq!(json["failures"][0], "1 acknowledged but lost");
    assert_eq!(json["accounts"]["lost"], 1);
    assert!(json["latencies"][0]["p99_us"].as_f64().is_some_and(|us| us >= 990.0));
    assert_eq!(json["timeline"][0]["count"], 1);
    assert_eq!(json["schema"], 1);
}

#[test]
fn the_servers_time_is_told_per_delivery_and_by_process() {
    let time = |name: &str, processor_s| ServerTime { name: name.to_owned(), processor_s };
    let servers = vec![time("edge", Some(0.004)), time("store", Some(0.001))];
    let report = report_of("fanout", good(), servers);
    let figures: Vec<(&str, f64, &str)> =
        report.figures.iter().map(|is| (is.name.as_str(), is.value, is.unit)).collect();
    let expected = [
        ("edge: processor time per delivery", 4.0, "us"),
        ("edge: share of one processor", 0.2, "%"),
        ("store: processor time per delivery", 1.0, "us"),
        ("store: share of one processor", 0.05, "%"),
        ("server: processor time per delivery", 5.0, "us"),
    ];
    let is_near = |(found, expected): (&(&str, f64, &str), &(&str, f64, &str))| {
        (found.0, found.2) == (expected.0, expected.2) && (found.1 - expected.1).abs() < 1e-9
    };
    assert!(figures.len() == 5 && figures.iter().zip(&expected).all(is_near), "{figures:?}");
    assert!(report.text().contains("server: processor time per delivery"));
    let page = super::page::page(&report);
    assert!(page.contains("<th>edge: processor time per delivery</th>"), "{page}");
    // Of one that ended nothing is told, and so nothing of all of them.
    let servers = vec![time("edge", Some(0.004)), time("store", None)];
    let report = report_of("chat", good(), servers);
    assert_eq!(report.figures[0].name, "edge: processor time per message");
    assert_eq!(report.figures.len(), 2);
    assert!(report.notes[0].starts_with("store ended"), "{:?}", report.notes);
}

/// Others read these names: one that goes or changes is a new [`SCHEMA`].
#[test]
fn the_schema_keeps_its_names() {
    let json = serde_json::to_value(report(good())).expect("plain data");
    let names: Vec<&str> =
        json.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "accounts",
        "client",
        "client_limit",
        "command",
        "connections",
        "connections_lost",
        "failures",
        "figures",
        "finished_unix_s",
        "host",
        "latencies",
        "machine",
        "notes",
        "opening_s",
        "per_second",
        "phases",
        "rate",
        "samples",
        "scenario",
        "schema",
        "target",
        "threads",
        "timeline",
        "version",
        "window_from_s",
        "window_s",
    ];
    assert_eq!(names, expected);
}

#[test]
fn many_threads_are_told_together_and_figures_have_their_unit() {
    let mut report = report(Accounts::default());
    report.failures.clear();
    report.add_client(vec![Shares { running: 0.01, waiting: 0.0 }; 49]);
    report.figure("user memory per connection", 118.4, "B", "what it is");
    report.crowd = Some(Crowd { connections: 1_000_000, ..Crowd::default() });
    report.notes.push("short of memory".to_owned());
    let text = report.text();
    let parts = [
        "50 threads, together 148 %",
        "118.4 B",
        "1,000,000 quiet",
        "NOTE: short of memory",
        "every connection stood",
    ];
    for part in parts {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn times_and_numbers_have_as_many_digits_as_make_sense() {
    let texts = [3.4, 1_500.0, 25_000.0, 2_500_000.0].map(time_text);
    assert_eq!(texts, ["3 us", "1.50 ms", "25 ms", "2.50 s"]);
    let texts = [0.0, 1.234, 12.34, 1234.5, 2_000_000.0, -1000.0, f64::NAN].map(number_text);
    assert_eq!(texts, ["0", "1.23", "12.3", "1,234", "2,000,000", "-1,000", "unknown"]);
}
