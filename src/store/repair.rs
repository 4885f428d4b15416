//! `aldis repair`: makes a store that refuses to start whole again, offline.
//!
//! Without a loss it does what needs no consent: headers are written anew, an index that cannot be
//! used is moved aside (the log rebuilds it), prepared segments go. Where something is lost it
//! changes nothing unless it was told to accept that; then it first writes down what is lost, keeps
//! each damaged segment as a copy, and puts `Lost` records in the place of the lost ones.
//!
//! After an accepted loss still hold: every position stands for one record; nothing intact moved;
//! a conversation's numbers go on behind the lost ones, and a repeated send gets its first answer,
//! as far as the index knew them. A read across a lost message skips it and counts it as
//! unaccounted, every time.

pub mod indexed;
pub mod patch;
pub mod plan;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::patch::{FilePatch, Patch};
use self::plan::{Hopeless, Loss, Plan, Witness};
use super::device::{LogReader, SegmentInfo};
use super::directory::{Directory, list_segments, segment_path, sync_folder};
use super::fjall_index::FjallIndex;
use super::index::{Change, Index, IndexFault};
use super::recovery::{Known, recover};
use super::uring_device::FileReader;
use super::{StoreFault, directory, ledger};
use crate::link::record::LostMessage;

/// What `aldis repair` is told.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// The store's directory.
    pub data: PathBuf,
    /// What cannot be restored may be given up.
    pub accept_loss: bool,
    /// Change nothing, whatever is found.
    pub dry_run: bool,
    /// Move the index aside although it can be read.
    pub rebuild_index: bool,
    /// Milliseconds since 1970, for the name of the report.
    pub unix_ms: u64,
}

/// Nothing was changed: something would be lost.
#[derive(Debug, thiserror::Error)]
#[error(
    "{positions} positions of the log are lost; nothing was changed. Restore the segments named \
     above from a copy, or give up what is lost with --accept-loss"
)]
pub struct NeedsConsent {
    pub positions: u64,
}

/// What is wrong with a store.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub witness: Witness,
    pub plan: Plan,
    /// The messages of each loss, as far as the index knows them.
    pub known: Vec<Vec<LostMessage>>,
}

/// Why a store could not be examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineFault {
    #[error(transparent)]
    Hopeless(#[from] Hopeless),
    #[error("the index failed: {0}")]
    Index(#[from] IndexFault),
}

/// Reads the whole store.
pub fn examine(
    reader: &mut impl LogReader,
    segments: &[SegmentInfo],
    index: Option<&impl Index>,
) -> Result<Findings, ExamineFault> {
    let witness = index.map(indexed::witness).transpose()?.unwrap_or_default();
    let plan = plan::plan(reader, segments, witness)?;
    let known = match index {
        Some(index) if !plan.foreign_index => indexed::lost_messages(index, &plan.losses)?,
        _ => vec![Vec::new(); plan.losses.len()],
    };
    Ok(Findings { witness, plan, known })
}

/// Does what was found to be necessary in the log; returns the rows that the index has to give up.
pub fn mend<R: LogReader>(
    reader: &mut R,
    segments: &[SegmentInfo],
    findings: &Findings,
    index: Option<&impl Index>,
    patch: &mut impl Patch,
) -> anyhow::Result<Vec<Change>> {
    let puts = patch::puts(&findings.plan, &findings.known);
    let size_of = |number| segments.iter().find(|info| info.number == number).map(|s| s.size);
    patch::apply(reader, patch, &findings.plan, &puts, size_of).context("changing the log")?;
    match index {
        Some(index) if !findings.plan.losses.is_empty() => {
            let mut stale = indexed::stale_rows(index, &findings.plan.losses, reader)?;
            stale.extend(ledger::forget(index)?);
            Ok(stale)
        }
        _ => Ok(Vec::new()),
    }
}

/// Repairs the store of a directory; says what is wrong and what was done on `out`.
pub fn run(options: &RepairOptions, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = Directory::open(&options.data)?;
    let log_path = directory.log_path();
    let mut index = IndexOnDisk::open(&directory.index_path(), options.rebuild_index)?;
    let segments = segments_of(&log_path)?;
    let mut reader = FileReader::new(&log_path);
    let mut findings = examine(&mut reader, &segments, index.usable.as_ref())?;
    if findings.plan.foreign_index {
        index.give_up("it is of another log");
        findings = examine(&mut reader, &segments, index.usable.as_ref())?;
    } else if findings.plan.losses.is_empty()
        && let Some(usable) = &index.usable
        && !indexed::stale_rows(usable, &[], &mut reader)?.is_empty()
    {
        index.give_up("it points to messages that the log holds elsewhere or not at all");
    }
    let lines = describe(&findings, &index, &segments, &log_path);
    for line in &lines {
        writeln!(out, "{line}")?;
    }
    if options.dry_run {
        writeln!(out, "nothing was changed (--dry-run)")?;
        return Ok(());
    }
    let positions = lost_count(&findings.plan);
    if positions > 0 && !options.accept_loss {
        return Err(NeedsConsent { positions }.into());
    }
    if positions > 0 {
        let path = write_report(options, &lines)?;
        writeln!(out, "what is lost is written down in {}", path.display())?;
    }
    drop(reader);
    change(&log_path, &segments, &findings, index)?;
    check(&log_path, findings.witness)?;
    writeln!(out, "the log is whole: it goes on at position {}", findings.plan.next_lsn)?;
    Ok(())
}

fn change(
    log_path: &Path,
    segments: &[SegmentInfo],
    findings: &Findings,
    index: IndexOnDisk,
) -> anyhow::Result<()> {
    let mut reader = FileReader::new(log_path);
    let mut patch = FilePatch { log_path, reader: FileReader::new(log_path) };
    let usable = index.usable.as_ref();
    let stale = mend(&mut reader, segments, findings, usable, &mut patch)?;
    match index.usable {
        Some(mut usable) if !stale.is_empty() => {
            usable.apply(stale)?;
            usable.persist()?;
        }
        Some(_) => {}
        None => FjallIndex::move_aside(&index.path)?,
    }
    Ok(())
}

/// Opens the log as a store would, from its very beginning.
fn check(log_path: &Path, witness: Witness) -> anyhow::Result<()> {
    let segments = segments_of(log_path)?;
    let known = Known { applied_lsn: 0, log_id: None };
    let mut reader = FileReader::new(log_path);
    let recovered = recover(&mut reader, &segments, known, &mut |_, _| Ok(()))
        .context("the log is still broken; what was changed is kept as .damaged beside it")?;
    if recovered.next_lsn <= witness.applied_lsn {
        bail!("the log still ends before position {}", witness.applied_lsn);
    }
    Ok(())
}

/// The index, if it can be used.
struct IndexOnDisk {
    path: PathBuf,
    usable: Option<FjallIndex>,
    /// Why not, unless there is none at all.
    reason: Option<String>,
}

impl IndexOnDisk {
    fn open(path: &Path, rebuild: bool) -> Result<IndexOnDisk, StoreFault> {
        let mut index = IndexOnDisk { path: path.to_path_buf(), usable: None, reason: None };
        let mut files = fs::read_dir(path).map_err(|e| directory::fault("read", path, e))?;
        if files.next().is_none() {
            return Ok(index);
        }
        match FjallIndex::open_as_it_is(path)? {
            Ok(found) => match indexed::witness(&found) {
                Ok(_) => index.usable = Some(found),
                Err(fault) => index.reason = Some(fault.to_string()),
            },
            Err(fault) => index.reason = Some(fault.to_string()),
        }
        if rebuild && index.usable.is_some() {
            index.give_up("it was asked for");
        }
        Ok(index)
    }

    fn give_up(&mut self, reason: &str) {
        self.usable = None;
        self.reason = Some(reason.to_owned());
    }
}

fn segments_of(log_path: &Path) -> Result<Vec<SegmentInfo>, StoreFault> {
    list_segments(log_path).map_err(|source| directory::fault("list", log_path, source))
}

fn lost_count(plan: &Plan) -> u64 {
    plan.losses.iter().map(|loss| u64::from(loss.count)).sum()
}

/// What is wrong and what is done about it, a line each.
fn describe(
    findings: &Findings,
    index: &IndexOnDisk,
    segments: &[SegmentInfo],
    log_path: &Path,
) -> Vec<String> {
    let mut lines = Vec::new();
    let plan = &findings.plan;
    for header in &plan.headers {
        let path = segment_path(log_path, header.number);
        let what = if segments.iter().any(|info| info.number == header.number) {
            "has a broken header, which is written anew from what follows it"
        } else {
            "is missing and is made anew"
        };
        lines.push(format!("segment {} ({}) {what}", header.number, path.display()));
    }
    for (loss, known) in plan.losses.iter().zip(&findings.known) {
        lines.extend(describe_loss(loss, known));
    }
    for segment in &plan.unused {
        lines.push(format!("segment {segment} was prepared and never used: it is removed"));
    }
    if let Some(reason) = &index.reason {
        let to = FjallIndex::aside_path(&index.path);
        lines.push(format!("the index cannot be used ({reason}): it is moved to {}", to.display()));
    }
    if index.usable.is_none() {
        lines.push("the index is built anew from the log when the store starts".to_owned());
    }
    if lines.is_empty() {
        lines.push("nothing is wrong".to_owned());
    }
    lines
}

fn describe_loss(loss: &Loss, known: &[LostMessage]) -> Vec<String> {
    let place = loss.place;
    let mut lines = vec![format!(
        "LOST: positions {} to {} ({} records), at segment {} offset {}; {} of them are known as \
         messages:",
        loss.first_lsn,
        loss.last_lsn(),
        loss.count,
        place.segment,
        place.offset,
        known.len(),
    )];
    lines.extend(known.iter().map(|message| {
        let LostMessage { convo, seq, mid, ts, from, id } = message;
        format!("  LOST: conversation {convo} seq {seq} from {from} id {id} mid {mid} ts {ts}")
    }));
    if (known.len() as u64) < u64::from(loss.count) {
        lines.push(format!(
            "  LOST: {} records that were cursors, devices or the like, or messages that the \
             index does not know",
            u64::from(loss.count) - known.len() as u64
        ));
    }
    lines
}

/// Durable before anything is changed.
fn write_report(options: &RepairOptions, lines: &[String]) -> anyhow::Result<PathBuf> {
    let path = options.data.join(format!("repair-{}.txt", options.unix_ms));
    let mut file = fs::File::create_new(&path)
        .with_context(|| format!("writing the report {}", path.display()))?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.sync_all()?;
    sync_folder(&options.data)?;
    Ok(path)
}
