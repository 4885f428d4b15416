//! `aldis audit`: proves that nothing is lost, or names the first record that is wrong.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::failure::Usage;
use super::up::admin_path;
use crate::store::StoreFault;
use crate::store::audit::online::{PATH, Status};
use crate::store::audit::{Finding, Report, audit};
use crate::store::directory::{Directory, list_segments};
use crate::store::fjall_index::FjallIndex;
use crate::store::index::{Index, MemoryIndex};
use crate::store::uring_device::FileReader;

/// How often a running store is asked how far it is.
const POLL: Duration = Duration::from_millis(100);
const CONNECT_WAIT: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub struct AuditSettings {
    /// The directory of an `aldis up`, running or not, or of a store that is stopped. Default:
    /// ./aldis-data
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    data: Option<PathBuf>,
    /// Instead: the admin address of a store that runs.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Write what was found to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Something is wrong; it was printed.
#[derive(Debug, thiserror::Error)]
#[error("{0} things are wrong: see above")]
pub struct Unbalanced(pub u64);

#[derive(Serialize)]
struct Printed<'a> {
    balanced: bool,
    messages_difference: i64,
    deliveries_difference: i64,
    #[serde(flatten)]
    report: &'a Report,
}

/// Exit code 0 if everything balances, 1 if not, 2 if that could not be found out.
pub fn run(settings: &AuditSettings) -> anyhow::Result<()> {
    let unknown = |error: anyhow::Error| anyhow::Error::new(Usage(format!("{error:#}")));
    let report = report(settings).map_err(unknown)?;
    if let Some(path) = &settings.json {
        write_json(path, &report).map_err(unknown)?;
    }
    print(&report, &mut io::stdout().lock())?;
    if report.is_balanced() { Ok(()) } else { Err(Unbalanced(report.findings.total.max(1)).into()) }
}

fn report(settings: &AuditSettings) -> anyhow::Result<Report> {
    if let Some(address) = &settings.admin {
        return of_running(address);
    }
    let data = settings.data.clone().unwrap_or_else(|| PathBuf::from("./aldis-data"));
    let admin = admin_path(&data, "store");
    if let Ok(address) = fs::read_to_string(&admin)
        && answers(address.trim())
    {
        return of_running(address.trim());
    }
    let inner = data.join("store");
    let store = if inner.is_dir() { inner } else { data };
    if !store.join("log").is_dir() {
        bail!("there is no store in {}; say where with --data DIR", store.display());
    }
    of_stopped(&store)
}

fn answers(address: &str) -> bool {
    let address = address.parse().ok();
    address.is_some_and(|address| TcpStream::connect_timeout(&address, CONNECT_WAIT).is_ok())
}

/// The store itself does it, at one position of its log; here it is only asked.
fn of_running(address: &str) -> anyhow::Result<Report> {
    let url = format!("http://{address}{PATH}");
    let no_store = || format!("no store answers at {address}: give its admin address");
    let parse = |text: String| serde_json::from_str::<Status>(&text).with_context(no_store);
    let begun = ureq::post(&url).send_empty().and_then(|mut it| it.body_mut().read_to_string());
    let number = parse(begun.with_context(no_store)?)?.number;
    let mut shown = Progress::new();
    loop {
        let told = ureq::get(&url).call().and_then(|mut it| it.body_mut().read_to_string());
        let status = parse(told.with_context(no_store)?)?;
        match status {
            Status { number: now, .. } if now != number => bail!("the store was started again"),
            Status { is_running: true, read, of, .. } => shown.show(read, of),
            Status { failed: Some(why), .. } => bail!("{why}"),
            Status { report: Some(report), .. } => return Ok(report),
            _ => bail!("{}", no_store()),
        }
        sleep(POLL);
    }
}

fn of_stopped(path: &Path) -> anyhow::Result<Report> {
    let directory = Directory::open(path).map_err(|fault| match fault {
        StoreFault::Locked { .. } => anyhow::anyhow!(
            "{} is in use; stop its store, or have the store itself audited with --admin \
             HOST:PORT, its admin address",
            path.display()
        ),
        other => other.into(),
    })?;
    let log_path = directory.log_path();
    let index_path = directory.index_path();
    if fs::read_dir(&index_path)?.next().is_none() {
        let report = audit_files(&log_path, &MemoryIndex::default())?;
        return Ok(without_index(report, "there is none"));
    }
    match FjallIndex::open_as_it_is(&index_path)? {
        Ok(index) => audit_files(&log_path, &index),
        Err(fault) => {
            let report = audit_files(&log_path, &MemoryIndex::default())?;
            Ok(without_index(report, &fault.to_string()))
        }
    }
}

fn audit_files(log_path: &Path, index: &impl Index) -> anyhow::Result<Report> {
    let segments = list_segments(log_path)?;
    let of = segments.iter().map(|segment| segment.size).sum();
    let mut shown = Progress::new();
    let mut reader = FileReader::new(log_path);
    Ok(audit(&mut reader, &segments, index, false, &mut |read| shown.show(read, of))?)
}

/// The log was read; what it makes of the index could not be compared.
fn without_index(mut report: Report, why: &str) -> Report {
    if report.records > 0 || report.findings.total > 0 {
        let what = format!(
            "index: {why}; only the log was looked at. The store builds its index from the log \
             when it starts"
        );
        report.findings.push(Finding { what, ..Finding::default() });
    }
    report
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { segments, commits, records, log_bytes, log_end_lsn, .. } = report;
    writeln!(
        out,
        "log: {segments} segments, {commits} commits, {records} records, {log_bytes} bytes, up to \
         position {log_end_lsn}"
    )?;
    let Report { applied_lsn, index_rows, fanned_out_lsn, conversations, .. } = report;
    writeln!(
        out,
        "index: {index_rows} rows, {conversations} conversations, up to position {applied_lsn}; \
         fan-out: up to position {fanned_out_lsn}"
    )?;
    report.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))?;
    for finding in &report.findings.told {
        writeln!(out, "WRONG: {}{}", finding.what, place_of(finding))?;
    }
    let untold = report.findings.total - report.findings.told.len() as u64;
    if untold > 0 {
        writeln!(out, "WRONG: {untold} more of these")?;
    }
    if !report.is_complete {
        return writeln!(out, "the accounts cannot be drawn up");
    }
    let Report { accepted, durable, given_up, .. } = report;
    let difference = report.difference();
    writeln!(
        out,
        "messages: accepted {accepted} = durable {durable} + given up by repair {given_up}, \
         difference {difference}"
    )?;
    let it = report.deliveries;
    writeln!(
        out,
        "deliveries: owed {} = delivered {} + in inboxes {} + dead-lettered {} + in flight {} + \
         expired {} + left {}, difference {}",
        it.owed,
        it.delivered,
        it.in_inboxes,
        it.dead_lettered,
        it.in_flight,
        it.expired,
        it.left,
        it.difference()
    )?;
    if report.is_balanced() {
        writeln!(out, "accepted = durable = delivered + in inboxes + dead-lettered, difference 0")?;
    }
    Ok(())
}

fn place_of(finding: &Finding) -> String {
    let Finding { segment, offset, lsn, convo, seq, .. } = finding;
    let number = |name: &str, number: &Option<u64>| number.map(|it| format!("{name} {it}"));
    let parts = [
        number("segment", segment),
        number("offset", offset),
        number("position", lsn),
        convo.as_ref().map(|name| format!("conversation {name}")),
        number("seq", seq),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

fn write_json(path: &Path, report: &Report) -> anyhow::Result<()> {
    let narrow = |wide: i128| i64::try_from(wide).unwrap_or(i64::MAX);
    let printed = Printed {
        balanced: report.is_balanced(),
        messages_difference: narrow(report.difference()),
        deliveries_difference: narrow(report.deliveries.difference()),
        report,
    };
    let text = serde_json::to_string_pretty(&printed)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// How far it is, for whoever watches.
struct Progress {
    is_shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { is_shown: false }
    }

    fn show(&mut self, read: u64, of: u64) {
        let mut screen = io::stderr();
        if screen.is_terminal() && of > 0 {
            self.is_shown = true;
            let _ = write!(screen, "\r{:3} % of {} MB", read * 100 / of, of / 1_000_000);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r                      \r");
        }
    }
}
