//! A report for a terminal.

use std::fmt::{Result, Write as _};

use super::{Report, number_text, time_text};
use crate::accounting::Accounts;
use crate::processor::Shares;

/// Threads of the generator that are listed one by one; of more, the busiest is told.
const THREADS_LISTED_MAX: usize = 4;

pub fn text(report: &Report) -> String {
    let mut out = String::new();
    write(report, &mut out).expect("writing to a string does not fail");
    out
}

fn write(report: &Report, out: &mut String) -> Result {
    let Report { scenario, target, connections, threads, machine, .. } = report;
    writeln!(out, "{scenario} against {target}: {connections} connections, {threads} threads")?;
    writeln!(out, "  on {machine}")?;
    if report.accounts.sent > 0 {
        let (rate, unit, window_s) = (report.rate, report.rate_unit(), report.window_s);
        write!(out, "  {rate:.0} {unit} over {window_s:.1} s")?;
        match report.rate_wanted {
            Some(wanted) => writeln!(out, " (open loop; {wanted:.0}/s were to be sent)")?,
            None => writeln!(out, " (closed loop)")?,
        }
    }
    write_latencies(report, out)?;
    write_figures(report, out)?;
    write_crowd(report, out)?;
    if report.accounts.sent > 0 {
        write_accounts(report, out)?;
    }
    write_client(report, out)?;
    report.notes.iter().try_for_each(|note| writeln!(out, "  NOTE: {note}"))?;
    if !report.failures.is_empty() {
        writeln!(out, "\n  FAILED: {}", report.failures.join(", "))
    } else if report.accounts.sent > 0 {
        writeln!(out, "\n  verified: every message is accounted for")
    } else {
        writeln!(out, "\n  verified: every connection stood")
    }
}

fn write_latencies(report: &Report, out: &mut String) -> Result {
    let heads = ["p50", "p90", "p99", "p99.9", "max"];
    write!(out, "\n  {:<28}", "latency")?;
    heads.iter().try_for_each(|head| write!(out, "{head:>11}"))?;
    writeln!(out)?;
    for latencies in report.latencies.iter().filter(|latencies| latencies.count > 0) {
        write!(out, "  {:<28}", latencies.of)?;
        for value_us in latencies.values_us() {
            write!(out, "{:>11}", time_text(value_us))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_figures(report: &Report, out: &mut String) -> Result {
    if !report.figures.is_empty() {
        writeln!(out)?;
    }
    for figure in &report.figures {
        let value = number_text(figure.value);
        writeln!(out, "  {:<44}{value:>14} {}", figure.name, figure.unit)?;
    }
    Ok(())
}

fn write_crowd(report: &Report, out: &mut String) -> Result {
    let Some(crowd) = &report.crowd else {
        return Ok(());
    };
    writeln!(
        out,
        "\n  {} quiet connections over {} rings: {} opened, {} lost, {} cut here, {} attempts \
         again, {} pings answered",
        number_text(crowd.connections as f64),
        crowd.rings,
        number_text(crowd.opened as f64),
        crowd.lost,
        number_text(crowd.cut as f64),
        crowd.retried,
        number_text(crowd.pings as f64),
    )?;
    let troubles = crowd.troubles.iter().take(5);
    troubles.into_iter().try_for_each(|(reason, count)| writeln!(out, "    {count} x {reason}"))
}

fn write_accounts(report: &Report, out: &mut String) -> Result {
    let Accounts { sent, acknowledged, delivered, refused, unanswered, .. } = report.accounts;
    let Accounts { lost, duplicated, reordered, gaps, corrupted, .. } = report.accounts;
    writeln!(
        out,
        "\n  {sent} sent, {acknowledged} acknowledged, {delivered} delivered, \
         {refused} refused, {unanswered} unanswered\n  {lost} lost, {duplicated} duplicated, \
         {reordered} reordered, {gaps} gaps, {corrupted} corrupted"
    )?;
    if let Some(refusal) = &report.first_refusal {
        writeln!(out, "  first refusal: {refusal}")?;
    }
    if let Some(reason) = &report.first_loss {
        writeln!(out, "  {} connections ended; the first: {reason}", report.connections_lost)?;
    }
    Ok(())
}

fn write_client(report: &Report, out: &mut String) -> Result {
    if report.client.len() <= THREADS_LISTED_MAX {
        for (index, Shares { running, waiting }) in report.client.iter().enumerate() {
            let (running, waiting) = (running * 100.0, waiting * 100.0);
            writeln!(
                out,
                "  generator thread {index}: {running:.0} % of a processor, \
                 {waiting:.0} % waiting for one"
            )?;
        }
    } else {
        let total: f64 = report.client.iter().map(|shares| shares.running).sum();
        let busiest = report.client.iter().map(|shares| shares.running).fold(0.0, f64::max);
        writeln!(
            out,
            "  generator: {} threads, together {:.0} % of a processor, the busiest {:.0} %",
            report.client.len(),
            total * 100.0,
            busiest * 100.0
        )?;
    }
    match &report.client_limit {
        Some(limit) => writeln!(out, "  NOTE: {limit}"),
        None => Ok(()),
    }
}
