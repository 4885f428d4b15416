//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::plot::{Axis, Plot, Scale, Series, escape, svg};
use super::{Report, Sample, number_text, time_text};
use crate::processor::Shares;

const STYLE: &str = include_str!("page.css");
/// Of the most connections: below it, memory per connection says more about the processes' start.
const LOADED_SHARE: f64 = 0.5;
const STRETCH_S: f64 = 0.9;

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    write(report, &mut out).expect("writing to a string does not fail");
    out
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    let Report { scenario, target, .. } = report;
    let title = escape(&format!("{scenario} against {target}"));
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>aldis-loadgen: {title}\
         </title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    )?;
    write_verdict(report, out)?;
    write_tiles(report, out)?;
    write_figures(report, out)?;
    write_latencies(report, out)?;
    writeln!(out, "<div class=\"plots\">")?;
    for (heading, meaning, plot) in plots(report) {
        if let Some(svg) = svg(&plot) {
            writeln!(out, "<section><h2>{heading}</h2><p>{meaning}</p>{svg}</section>")?;
        }
    }
    writeln!(out, "</div>")?;
    write_accounts(report, out)?;
    write_client(report, out)?;
    write_host(report, out)?;
    writeln!(out, "</body>\n</html>")
}

fn write_verdict(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.failures.is_empty() {
        let what = match report.accounts.sent {
            0 => "every connection stood",
            _ => "every message is accounted for",
        };
        writeln!(out, "<p class=\"good\">Verified: {what}.</p>")?;
    } else {
        let failures = escape(&report.failures.join(", "));
        writeln!(out, "<p class=\"bad\">Failed: {failures}.</p>")?;
    }
    if let Some(limit) = &report.client_limit {
        writeln!(out, "<p class=\"warn\">{}</p>", escape(limit))?;
    }
    for note in &report.notes {
        writeln!(out, "<p class=\"warn\">{}</p>", escape(note))?;
    }
    Ok(())
}

fn write_tiles(report: &Report, out: &mut String) -> std::fmt::Result {
    let mut tiles = vec![("connections", number_text(report.connections as f64))];
    if report.accounts.sent > 0 {
        tiles.push((report.rate_unit(), number_text(report.rate.round())));
        let delivered = report.latencies.iter().rfind(|is| is.of == "delivered");
        let shown = delivered.or(report.latencies.iter().rfind(|is| is.of == "echo"));
        if let Some(latencies) = shown {
            tiles.push(("p50", time_text(latencies.p50_us)));
            tiles.push(("p99", time_text(latencies.p99_us)));
        }
        tiles.push(("lost", number_text(report.accounts.lost as f64)));
    }
    let running: f64 = report.client.iter().map(|shares| shares.running).sum();
    tiles.push(("generator", format!("{:.0} % of a processor", running * 100.0)));
    writeln!(out, "<dl class=\"tiles\">")?;
    for (name, value) in tiles {
        writeln!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>")?;
    }
    writeln!(out, "</dl>")
}

fn write_figures(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.figures.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>What was measured</h2>\n<table>")?;
    for figure in &report.figures {
        writeln!(
            out,
            "<tr><th>{}</th><td class=\"n\">{} {}</td><td>{}</td></tr>",
            escape(&figure.name),
            number_text(figure.value),
            figure.unit,
            escape(figure.meaning)
        )?;
    }
    writeln!(out, "</table>")
}

fn write_latencies(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "<h2>Latencies</h2>\n<p>{}</p>\n<table>", loop_text(report))?;
    writeln!(
        out,
        "<tr><th></th><th class=\"n\">count</th><th class=\"n\">p50</th><th class=\"n\">p90</th>\
         <th class=\"n\">p99</th><th class=\"n\">p99.9</th><th class=\"n\">max</th></tr>"
    )?;
    for latencies in report.latencies.iter().filter(|latencies| latencies.count > 0) {
        let count = number_text(latencies.count as f64);
        write!(out, "<tr><th>{}</th><td class=\"n\">{count}</td>", escape(&latencies.of))?;
        for value_us in latencies.values_us() {
            write!(out, "<td class=\"n\">{}</td>", time_text(value_us))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table>")
}

fn loop_text(report: &Report) -> &'static str {
    match (report.scenario.as_str(), report.rate_wanted) {
        ("echo", None) => {
            "A closed loop: the next message is sent when one comes back. This is what the server \
             can do; what users feel at a rate it does not show (coordinated omission)."
        }
        _ => {
            "An open loop: each message and each connection counts from the moment it was due, \
             whether or not it could be begun then, so that a server that stalls cannot hide it \
             (coordinated omission is avoided)."
        }
    }
}

type Described<'a> = (&'static str, &'static str, Plot<'a>);

fn plots(report: &Report) -> Vec<Described<'_>> {
    vec![
        percentiles(report),
        throughput(report),
        latency_over_time(report),
        connections(report),
        memory_each(report),
        processors(report),
    ]
}

fn seconds_axis() -> Axis {
    Axis { label: "seconds since the start", scale: Scale::Linear, text: number_text }
}

fn bands(report: &Report) -> Vec<(&str, f64, f64)> {
    report.phases.iter().map(|phase| (phase.name, phase.from_s, phase.to_s)).collect()
}

fn percentiles(report: &Report) -> Described<'_> {
    let curves = report.latencies.iter().filter(|latencies| latencies.count > 0);
    let series = curves
        .map(|latencies| Series { name: latencies.of.clone(), points: latencies.curve.clone() });
    let plot = Plot {
        x: Axis { label: "percentile", scale: Scale::Nines, text: percentile_text },
        y: Axis { label: "latency", scale: Scale::Log, text: time_text },
        series: series.collect(),
        bands: Vec::new(),
    };
    ("Latency by percentile", "Each step to the right leaves out a tenth of what is left.", plot)
}

fn percentile_text(quantile: f64) -> String {
    match quantile {
        1.0 => "max".to_owned(),
        // Floating point makes 99.99 of 0.9999 only when it is rounded.
        quantile => format!("{}", (quantile * 1e8).round() / 1e6),
    }
}

fn throughput(report: &Report) -> Described<'_> {
    let from_s = report.window_from_s;
    let place = |index: usize| from_s + index as f64 + 0.5;
    // The last second of a window that was ended is a part of one.
    let whole = report.per_second.len().min(report.window_s.floor() as usize);
    let counted = report.per_second.iter().take(whole).enumerate();
    let points = counted.map(|(index, count)| (place(index), *count as f64)).collect();
    let plot = Plot {
        x: seconds_axis(),
        y: Axis { label: report.rate_unit(), scale: Scale::Linear, text: number_text },
        series: vec![Series { name: "delivered".to_owned(), points }],
        bands: bands(report),
    };
    ("Throughput", "Messages delivered in each second.", plot)
}

fn latency_over_time(report: &Report) -> Described<'_> {
    let from_s = report.window_from_s;
    let series = |name: &str, value: fn(&super::Second) -> u64| {
        let counted = report.timeline.iter().enumerate().filter(|(_, second)| second.count > 0);
        let place = |index: usize| from_s + index as f64 + 0.5;
        let points = counted.map(|(index, second)| (place(index), value(second) as f64));
        Series { name: name.to_owned(), points: points.collect() }
    };
    let plot = Plot {
        x: seconds_axis(),
        y: Axis { label: "latency", scale: Scale::Log, text: time_text },
        series: match report.timeline.is_empty() {
            true => Vec::new(),
            false => vec![
                series("p50", |second| second.p50_us),
                series("p99", |second| second.p99_us),
                series("max", |second| second.max_us),
            ],
        },
        bands: bands(report),
    };
    ("Latency over time", "Of the messages that were to be sent in each second.", plot)
}

fn connections(report: &Report) -> Described<'_> {
    let points = report.samples.iter().map(|sample| (sample.t_s, sample.open as f64));
    let plot = Plot {
        x: seconds_axis(),
        y: Axis { label: "connections", scale: Scale::Linear, text: number_text },
        series: vec![Series { name: "open".to_owned(), points: points.collect() }],
        bands: bands(report),
    };
    (
        "Connections",
        "Open at the time: upgraded and welcomed. Without those that carry messages.",
        plot,
    )
}

fn memory_each(report: &Report) -> Described<'_> {
    let most = report.samples.iter().map(|sample| sample.open).max().unwrap_or_default();
    let loaded = (most as f64 * LOADED_SHARE).max(1.0) as u64;
    // Before that, the kernel's memory and the connections are not of the same moment.
    let opening = report.phases.iter().find(|phase| phase.name == "opening");
    let opened_s = opening.map_or(0.0, |phase| phase.to_s);
    let each = |name: &str, of: &dyn Fn(&Sample) -> Option<u64>| {
        let empty = report.samples.first().and_then(of).unwrap_or_default() as f64;
        let is_taken = |sample: &&Sample| sample.open >= loaded && sample.t_s >= opened_s;
        let taken = report.samples.iter().filter(is_taken);
        let points = taken.filter_map(|sample| {
            let grown = of(sample)? as f64 - empty;
            Some((sample.t_s, (grown / sample.open as f64).max(0.0)))
        });
        Series { name: name.to_owned(), points: points.collect() }
    };
    let mut series = vec![
        each("kernel, both ends", &|sample| Some(sample.kernel)),
        each("generator", &|sample| Some(sample.client_resident)),
    ];
    let names: BTreeSet<&String> =
        report.samples.iter().flat_map(|sample| sample.resident.keys()).collect();
    for name in names {
        series.push(each(name, &|sample| sample.resident.get(name).copied()));
    }
    if report.samples.is_empty() {
        series.clear();
    }
    let plot = Plot {
        x: seconds_axis(),
        y: Axis { label: "bytes", scale: Scale::Linear, text: number_text },
        series,
        bands: bands(report),
    };
    (
        "Memory per connection",
        "Bytes: what grew since before the first connection, divided by those that are open.",
        plot,
    )
}

fn processors(report: &Report) -> Described<'_> {
    let names: BTreeSet<&String> =
        report.samples.iter().flat_map(|sample| sample.processor_s.keys()).collect();
    let of_servers = names.into_iter().map(|name| {
        let points =
            processor_shares(&report.samples, |sample| sample.processor_s.get(name).copied());
        Series { name: name.clone(), points }
    });
    let points = processor_shares(&report.samples, |sample| Some(sample.client_processor_s));
    let generator = Series { name: "generator".to_owned(), points };
    let plot = Plot {
        x: seconds_axis(),
        y: Axis { label: "%", scale: Scale::Linear, text: number_text },
        series: of_servers.chain((!report.samples.is_empty()).then_some(generator)).collect(),
        bands: bands(report),
    };
    ("Processor time", "In percent of one processor, by process.", plot)
}

/// Shares over stretches of a second at least: processor time is told in hundredths of one.
fn processor_shares(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut before: Option<(f64, f64)> = None;
    for sample in samples {
        let Some(used_s) = of(sample) else {
            before = None;
            continue;
        };
        match before {
            Some((t_s, before_s)) if sample.t_s - t_s >= STRETCH_S => {
                points.push((sample.t_s, (used_s - before_s) / (sample.t_s - t_s) * 100.0));
                before = Some((sample.t_s, used_s));
            }
            Some(_) => {}
            None => before = Some((sample.t_s, used_s)),
        }
    }
    points
}

fn write_accounts(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "<h2>Accounts</h2>\n<table>")?;
    let mut row = |name: &str, value: String| {
        writeln!(out, "<tr><th>{name}</th><td class=\"n\">{}</td></tr>", escape(&value))
    };
    if report.accounts.sent > 0
        && let Ok(serde_json::Value::Object(accounts)) = serde_json::to_value(report.accounts)
    {
        for (name, value) in accounts {
            row(&name.replace('_', " "), number_text(value.as_f64().unwrap_or_default()))?;
        }
    }
    if let Some(crowd) = &report.crowd {
        row("connections that keep still", number_text(crowd.connections as f64))?;
        row("opened", number_text(crowd.opened as f64))?;
        row("cut by the generator", number_text(crowd.cut as f64))?;
        row("ended by the server", number_text(crowd.lost as f64))?;
        row("attempts made again", number_text(crowd.retried as f64))?;
        row("pings answered", number_text(crowd.pings as f64))?;
        for (reason, count) in &crowd.troubles {
            row(&escape(reason), number_text(*count as f64))?;
        }
    }
    writeln!(out, "</table>")
}

fn write_client(report: &Report, out: &mut String) -> std::fmt::Result {
    let busiest = report.client.iter().map(|shares| shares.running).fold(0.0, f64::max);
    let total: f64 = report.client.iter().map(|shares: &Shares| shares.running).sum();
    writeln!(
        out,
        "<h2>The generator itself</h2>\n<p>{} threads, together {:.0} % of a processor, the \
         busiest {:.0} %. Above 90 % it measures itself, and says so at the top.</p>",
        report.client.len(),
        total * 100.0,
        busiest * 100.0
    )
}

fn write_host(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "<h2>Machine and settings</h2>\n<table>")?;
    for (name, value) in &report.host {
        writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value))?;
    }
    for (name, bytes) in &report.kernel_caches {
        let (name, bytes) = (escape(name), number_text(*bytes));
        writeln!(out, "<tr><th>kernel cache {name}</th><td>{bytes} B per connection</td></tr>")?;
    }
    let command = escape(&format!("aldis-loadgen {}", report.command));
    writeln!(out, "<tr><th>command</th><td><code>{command}</code></td></tr>")?;
    writeln!(out, "<tr><th>aldis-loadgen</th><td>{}</td></tr>\n</table>", report.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{good, report};
    use crate::report::{Crowd, Phase};

    #[test]
    fn the_page_has_its_plots_and_loads_nothing() {
        let mut report = report(good());
        report.command = "echo --path '<x>'".to_owned();
        report.crowd = Some(Crowd { connections: 10, ..Crowd::default() });
        report.phases.push(Phase { name: "opening", from_s: 0.0, to_s: 1.0 });
        for step in 0..3 {
            report.samples.push(Sample {
                t_s: f64::from(step),
                open: 10 * step as u64,
                kernel: 1_000 + 9_000 * step as u64,
                ..Sample::default()
            });
        }
        report.samples[2].resident.insert("edge".to_owned(), 4_000);
        let page = page(&report);
        assert_eq!(page.matches("<svg").count(), 6, "each has something to show");
        for part in ["Verified", "p99.9", "Memory per connection", "&lt;x&gt;", "closed loop"] {
            assert!(page.contains(part), "{part}");
        }
        for outside in ["http://", "https://", "src=", "href=", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_failure_is_at_the_top() {
        let mut report = report(good());
        report.failures.push("1 acknowledged but lost".to_owned());
        assert!(page(&report).contains("Failed: 1 acknowledged but lost."));
    }
}
