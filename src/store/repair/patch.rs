//! What a repair writes: headers, and commits that stand for lost ones.
//!
//! Everything is prepared as bytes at a place first; [`Patch`] puts it there. The damaged segment
//! is kept as a copy before its first byte changes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::plan::{Loss, Plan, read_or_zero};
use crate::link::record::{LostMessage, Record};
use crate::link::wire::Wire;
use crate::store::device::LogReader;
use crate::store::directory::{segment_path, sync_folder};
use crate::store::log_format::{
    BLOCK_SIZE, COMMIT_HEADER_SIZE, CommitHeader, LogId, encode_commit, encode_segment_header,
};
use crate::store::positions::Place;

/// Bytes per piece of a copy.
const COPY_SIZE: usize = 1024 * 1024;

/// The files of a log, as a repair changes them. Each call is durable when it returns.
pub trait Patch {
    /// Keeps the segment as it is under another name, unless that was done before.
    fn keep(&mut self, segment: u64, size: u64) -> io::Result<()>;
    /// Puts bytes into a segment, which is made or grows as needed.
    fn put(&mut self, place: Place, bytes: &[u8]) -> io::Result<()>;
    /// Removes a segment that holds nothing but zeros, and keeps any other under another name.
    fn remove(&mut self, segment: u64, is_empty: bool) -> io::Result<()>;
}

/// Bytes for a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub place: Place,
    pub bytes: Vec<u8>,
}

/// All that the plan writes. `known`: the messages of each loss that the index knew, in the order
/// of the log.
pub fn puts(plan: &Plan, known: &[Vec<LostMessage>]) -> Vec<Put> {
    let log_id = plan.log_id.unwrap_or_default();
    let headers = plan.headers.iter().map(|header| {
        let mut bytes = Vec::new();
        encode_segment_header(header, &mut bytes);
        Put { place: Place { segment: header.number, offset: 0 }, bytes }
    });
    let losses = plan.losses.iter().zip(known);
    headers.chain(losses.map(|(loss, known)| stand_in(log_id, loss, known))).collect()
}

/// The commit that stands for what is lost. It says which messages that were; where it has to fit
/// between others it is never larger than what was there, since a body is not in it.
fn stand_in(log_id: LogId, loss: &Loss, known: &[LostMessage]) -> Put {
    let room = loss.room.map(|room| room as usize - COMMIT_HEADER_SIZE);
    let mut records = lost_records(loss.count, known);
    if room.is_some_and(|room| records.len() > room) {
        records = lost_records(loss.count, &[]);
    }
    // Zeros behind the records: the next commit is where it always was.
    records.resize(room.unwrap_or(records.len()).max(records.len()), 0);
    let header = CommitHeader {
        log_id,
        incarnation: 0,
        epoch: loss.epoch,
        first_lsn: loss.first_lsn,
        known_durable: loss.first_lsn - 1,
        count: loss.count,
        payload_size: records.len() as u32,
        previous_checksum: loss.previous_checksum,
        stands_for: loss.stands_for,
    };
    let mut bytes = Vec::new();
    encode_commit(&header, &records, &mut bytes);
    Put { place: loss.place, bytes }
}

fn lost_records(count: u32, known: &[LostMessage]) -> Vec<u8> {
    let mut records = Vec::new();
    for index in 0..count as usize {
        Record::Lost { message: known.get(index).cloned() }.write(&mut records);
    }
    records
}

/// Does what the plan says. Order matters: a header that makes a segment count is written after
/// what it makes count.
pub fn apply<R: LogReader>(
    reader: &mut R,
    patch: &mut impl Patch,
    plan: &Plan,
    puts: &[Put],
    size_of: impl Fn(u64) -> Option<u64>,
) -> io::Result<()> {
    for put in puts {
        if let Some(size) = size_of(put.place.segment) {
            patch.keep(put.place.segment, size)?;
        }
    }
    for put in puts.iter().filter(|put| put.place.offset > 0) {
        patch.put(put.place, &put.bytes)?;
    }
    for put in puts.iter().filter(|put| put.place.offset == 0) {
        patch.put(put.place, &put.bytes)?;
    }
    for &segment in &plan.unused {
        let is_empty = is_zero(reader, segment, size_of(segment).unwrap_or(0));
        patch.remove(segment, is_empty)?;
    }
    Ok(())
}

fn is_zero(reader: &mut impl LogReader, segment: u64, size: u64) -> bool {
    let mut block = vec![0; COPY_SIZE];
    (0..size).step_by(COPY_SIZE).all(|offset| {
        let piece = &mut block[..((size - offset) as usize).min(COPY_SIZE)];
        reader.read(segment, offset, piece).is_ok() && piece.iter().all(|&byte| byte == 0)
    })
}

/// The real files.
pub struct FilePatch<'a, R> {
    pub log_path: &'a Path,
    pub reader: R,
}

impl<R> FilePatch<'_, R> {
    /// Where the damaged segment is kept.
    pub fn kept_path(log_path: &Path, segment: u64) -> PathBuf {
        with_suffix(&segment_path(log_path, segment), ".damaged")
    }
}

impl<R: LogReader> Patch for FilePatch<'_, R> {
    fn keep(&mut self, segment: u64, size: u64) -> io::Result<()> {
        let kept = Self::kept_path(self.log_path, segment);
        if kept.exists() {
            return Ok(());
        }
        // Under its final name only once it is whole.
        let partial = with_suffix(&kept, ".partial");
        let mut copy = File::create(&partial)?;
        let mut piece = vec![0; COPY_SIZE];
        for offset in (0..size).step_by(COPY_SIZE) {
            let piece = &mut piece[..((size - offset) as usize).min(COPY_SIZE)];
            read_or_zero(&mut self.reader, segment, offset, piece);
            copy.write_all(piece)?;
        }
        copy.sync_all()?;
        fs::rename(&partial, &kept)?;
        sync_folder(self.log_path)
    }

    fn put(&mut self, place: Place, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(segment_path(self.log_path, place.segment))?;
        file.write_all_at(bytes, place.offset)?;
        file.sync_all()?;
        sync_folder(self.log_path)
    }

    fn remove(&mut self, segment: u64, is_empty: bool) -> io::Result<()> {
        let path = segment_path(self.log_path, segment);
        if is_empty {
            fs::remove_file(&path)?;
        } else {
            fs::rename(&path, Self::kept_path(self.log_path, segment))?;
        }
        sync_folder(self.log_path)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

const _: () = assert!(BLOCK_SIZE > COMMIT_HEADER_SIZE);
