//! What is wrong with a log, and what would make it whole: found by reading all of it.
//!
//! Invariant: a planned log has every position from 1 to its end exactly once. What is intact stays
//! where it is, byte for byte; a stretch of positions that nothing intact holds becomes one commit
//! of `Lost` records, in the place of the first damaged one; and the chain of checksums runs
//! through it, because such a commit carries the checksum that its successor repeats.

use bytes::Bytes;

use crate::store::device::{LogReader, SegmentInfo};
use crate::store::log_format::{
    BLOCK_SIZE, Commit, CommitHeader, Invalid, LogId, SegmentHeader, decode_commit,
    decode_segment_header, format_version, peek_commit,
};
use crate::store::positions::Place;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes per read when a segment is searched.
const WINDOW_SIZE: usize = 1024 * 1024;

/// What the index knows about the log, if there is one that can be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witness {
    pub log_id: Option<LogId>,
    pub applied_lsn: u64,
    pub epoch: u64,
}

/// Positions that nothing holds any more, and the place that will say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    pub first_lsn: u64,
    pub count: u32,
    pub place: Place,
    /// Bytes up to the next intact commit of the segment; `None`: there is none, any size will do.
    pub room: Option<u64>,
    /// What was lost lay from here to there.
    pub extent: (Place, Place),
    pub epoch: u64,
    /// Checksum of the commit before it.
    pub previous_checksum: u32,
    /// What the commit after it repeats; 0: nothing is after it.
    pub stands_for: u32,
}

impl Loss {
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.count) - 1
    }

    /// Whether a record that lay there is among what is lost.
    pub fn covers(&self, segment: u64, offset: u64) -> bool {
        let (from, to) = self.extent;
        let at = (segment, offset);
        at >= (from.segment, from.offset) && at < (to.segment, to.offset)
    }
}

/// What has to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `None`: there is no log.
    pub log_id: Option<LogId>,
    /// Headers to be written anew, or of segments to be made anew. Nothing is lost by that.
    pub headers: Vec<SegmentHeader>,
    pub losses: Vec<Loss>,
    /// Segments that were prepared and never used, or hold only what was never durable.
    pub unused: Vec<u64>,
    /// The index is of another log.
    pub foreign_index: bool,
    /// Where the log ends, with the position that comes next.
    pub next_lsn: u64,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Hopeless {
    #[error(
        "segment {segment} does not follow the commit before it although no position is missing: \
         a segment of another time was put there; restore the right one from a copy"
    )]
    Chain { segment: u64 },
    #[error("segment {segment} is of another log; move it away, or restore the right one")]
    Foreign { segment: u64 },
    #[error("position {first_lsn} and the {count} after it are lost: too many for one commit")]
    TooMany { first_lsn: u64, count: u64 },
    #[error("segment {segment} is of a newer version of aldis: {reason}")]
    Newer { segment: u64, reason: Invalid },
    #[error("there is no number left for a segment before segment {segment}")]
    NoNumber { segment: u64 },
}

/// Reads the whole log. What cannot be read counts as damaged.
pub fn plan<R: LogReader>(
    reader: &mut R,
    segments: &[SegmentInfo],
    witness: Witness,
) -> Result<Plan, Hopeless> {
    let mut entries = Vec::new();
    for &info in segments {
        entries.push(Entry { info, header: header_of(reader, info)? });
    }
    let log_id = entries.iter().find_map(|entry| entry.header).map(|header| header.log_id);
    let other = |entry: &&Entry| entry.header.is_some_and(|header| Some(header.log_id) != log_id);
    if let Some(entry) = entries.iter().find(other) {
        return Err(Hopeless::Foreign { segment: entry.info.number });
    }
    let foreign_index = log_id.is_some() && witness.log_id.is_some_and(|id| Some(id) != log_id);
    let witness = if foreign_index { Witness::default() } else { witness };
    let log_id = log_id.or(witness.log_id).or_else(|| any_log_id(reader, segments));
    let plan = Plan { log_id, foreign_index, next_lsn: 1, ..Plan::default() };
    let mut walk = Walk {
        reader,
        log_id: log_id.unwrap_or_default(),
        plan,
        checksum: 0,
        epoch: 0,
        incarnation: 0,
        end: None,
        intact_until: Place::default(),
    };
    for index in 0..entries.len() {
        walk.segment(&entries, index, witness)?;
    }
    walk.tail(witness)?;
    // The last one is the store's to use or to remove.
    let last = segments.last().map(|info| info.number);
    walk.plan.unused.retain(|&number| Some(number) != last);
    Ok(walk.plan)
}

struct Entry {
    info: SegmentInfo,
    header: Option<SegmentHeader>,
}

struct Walk<'a, R> {
    reader: &'a mut R,
    log_id: LogId,
    plan: Plan,
    /// Of the last commit.
    checksum: u32,
    /// The highest so far.
    epoch: u64,
    incarnation: u64,
    /// Behind the last commit, in the last segment that is in use.
    end: Option<Place>,
    /// Behind the last intact commit: what is lost next lay from here on.
    intact_until: Place,
}

impl<R: LogReader> Walk<'_, R> {
    fn segment(
        &mut self,
        entries: &[Entry],
        index: usize,
        witness: Witness,
    ) -> Result<(), Hopeless> {
        let info = entries[index].info;
        // What an earlier segment holds from here on was never durable and was cut.
        let later = entries[index + 1..].iter().find_map(|entry| entry.header);
        let bound = later.map_or(u64::MAX, |header| header.first_lsn);
        let header = match entries[index].header {
            Some(header) => header,
            None => match self.header_from_content(info, bound, later.is_some(), witness) {
                Some(header) => {
                    self.plan.headers.push(header);
                    header
                }
                None => {
                    self.plan.unused.push(info.number);
                    return Ok(());
                }
            },
        };
        self.reach(header)?;
        self.scan(info, bound)
    }

    /// A broken header, rebuilt from what is behind it; `None`: nothing there was ever durable.
    fn header_from_content(
        &mut self,
        info: SegmentInfo,
        bound: u64,
        has_later: bool,
        witness: Witness,
    ) -> Option<SegmentHeader> {
        let place = Place { segment: info.number, offset: BLOCK };
        let (at, first) = self.next_intact(info, place, self.plan.next_lsn, bound)?;
        let durable = has_later
            || witness.applied_lsn >= first.header.first_lsn
            || self.knows_durable(info, at, first.header.first_lsn);
        if !durable {
            return None;
        }
        let follows = at == BLOCK;
        let first_lsn = if follows { first.header.first_lsn } else { self.plan.next_lsn };
        let previous_checksum =
            if follows { first.header.previous_checksum } else { self.checksum };
        Some(SegmentHeader {
            log_id: self.log_id,
            version: format_version(),
            previous_checksum,
            number: info.number,
            first_lsn,
            incarnation: first.header.incarnation,
        })
    }

    /// Whether a commit behind the one at `offset` says that `lsn` was durable.
    fn knows_durable(&mut self, info: SegmentInfo, offset: u64, lsn: u64) -> bool {
        let place = Place { segment: info.number, offset: offset + BLOCK };
        let next = self.next_intact(info, place, lsn + 1, u64::MAX);
        next.is_some_and(|(_, commit)| commit.header.known_durable >= lsn)
    }

    /// Comes to the beginning of a segment: whatever is missing before it is lost.
    fn reach(&mut self, header: SegmentHeader) -> Result<(), Hopeless> {
        if header.first_lsn > self.plan.next_lsn {
            let to = Place { segment: header.number, offset: BLOCK };
            let place = match self.end {
                Some(end) => end,
                None => self.new_beginning(header.number)?,
            };
            self.lose(place, None, to, header.first_lsn, header.previous_checksum)?;
        } else if header.previous_checksum != self.checksum {
            return Err(Hopeless::Chain { segment: header.number });
        }
        Ok(())
    }

    /// A segment before the first one that is there.
    fn new_beginning(&mut self, before: u64) -> Result<Place, Hopeless> {
        let number = before - 1;
        if number == 0 {
            return Err(Hopeless::NoNumber { segment: before });
        }
        self.plan.unused.retain(|&unused| unused != number);
        self.plan.headers.push(SegmentHeader {
            log_id: self.log_id,
            version: format_version(),
            previous_checksum: 0,
            number,
            first_lsn: 1,
            incarnation: 0,
        });
        Ok(Place { segment: number, offset: BLOCK })
    }

    fn scan(&mut self, info: SegmentInfo, bound: u64) -> Result<(), Hopeless> {
        let mut place = Place { segment: info.number, offset: BLOCK };
        self.end = Some(place);
        while self.plan.next_lsn < bound {
            match self.commit_at(info, place.offset) {
                Some(commit) if self.follows(&commit, bound) => {
                    place.offset += commit.header.size_on_disk();
                    self.intact_until = place;
                    self.accept(&commit);
                }
                _ => {
                    let behind = Place { offset: place.offset + BLOCK, ..place };
                    let next_lsn = self.plan.next_lsn + 1;
                    let Some((offset, next)) = self.next_intact(info, behind, next_lsn, bound)
                    else {
                        break;
                    };
                    let room = Some(offset - place.offset);
                    let header = next.header;
                    let to = Place { offset, ..place };
                    self.lose(place, room, to, header.first_lsn, header.previous_checksum)?;
                    place = to;
                }
            }
            self.end = Some(place);
        }
        Ok(())
    }

    fn follows(&self, commit: &Commit, bound: u64) -> bool {
        commit.header.first_lsn == self.plan.next_lsn
            && commit.header.previous_checksum == self.checksum
            && commit.header.last_lsn() < bound
    }

    fn accept(&mut self, commit: &Commit) {
        self.plan.next_lsn = commit.header.last_lsn() + 1;
        self.checksum = commit.checksum;
        self.epoch = self.epoch.max(commit.header.epoch);
        self.incarnation = commit.header.incarnation;
    }

    /// The log ends here; but the index has applied more.
    fn tail(&mut self, witness: Witness) -> Result<(), Hopeless> {
        if witness.applied_lsn < self.plan.next_lsn {
            return Ok(());
        }
        let place = match self.end {
            Some(end) => end,
            None => {
                let last = self.plan.unused.iter().max().copied().unwrap_or(0);
                self.new_beginning(last + 2)?
            }
        };
        // A grant may be among what is lost.
        self.epoch = self.epoch.max(witness.epoch) + 1;
        let to = Place { segment: u64::MAX, offset: 0 };
        self.lose(place, None, to, witness.applied_lsn + 1, 0)
    }

    fn lose(
        &mut self,
        place: Place,
        room: Option<u64>,
        to: Place,
        until_lsn: u64,
        stands_for: u32,
    ) -> Result<(), Hopeless> {
        let first_lsn = self.plan.next_lsn;
        let count = until_lsn - first_lsn;
        let too_many = Hopeless::TooMany { first_lsn, count };
        let count = u32::try_from(count).map_err(|_| too_many)?;
        let (epoch, previous_checksum) = (self.epoch, self.checksum);
        let extent = (std::mem::replace(&mut self.intact_until, to), to);
        self.plan.losses.push(Loss {
            first_lsn,
            count,
            place,
            room,
            extent,
            epoch,
            previous_checksum,
            stands_for,
        });
        self.plan.next_lsn = until_lsn;
        self.checksum = stands_for;
        Ok(())
    }

    /// The first intact commit of this log that begins at or behind `place`, with positions in
    /// `from_lsn..bound`; and its offset.
    fn next_intact(
        &mut self,
        info: SegmentInfo,
        place: Place,
        from_lsn: u64,
        bound: u64,
    ) -> Option<(u64, Commit)> {
        let mut offset = place.offset;
        let mut window = vec![0; WINDOW_SIZE];
        while offset + BLOCK <= info.size {
            let size = ((info.size - offset) as usize).min(WINDOW_SIZE);
            let size = size - size % BLOCK_SIZE;
            read_or_zero(self.reader, info.number, offset, &mut window[..size]);
            for start in (0..size).step_by(BLOCK_SIZE) {
                let at = offset + start as u64;
                let ours = |header: &CommitHeader| {
                    let within = header.first_lsn >= from_lsn && header.last_lsn() < bound;
                    header.log_id == self.log_id && within
                };
                if !peek_commit(&window[start..][..BLOCK_SIZE]).is_ok_and(|header| ours(&header)) {
                    continue;
                }
                if let Some(commit) = self.commit_at(info, at) {
                    return Some((at, commit));
                }
            }
            offset += size as u64;
        }
        None
    }

    /// The intact commit of this log at `offset`.
    fn commit_at(&mut self, info: SegmentInfo, offset: u64) -> Option<Commit> {
        intact_at(self.reader, info, offset).filter(|commit| commit.header.log_id == self.log_id)
    }
}

fn header_of(
    reader: &mut impl LogReader,
    info: SegmentInfo,
) -> Result<Option<SegmentHeader>, Hopeless> {
    if info.size < BLOCK {
        return Ok(None);
    }
    let mut block = vec![0; BLOCK_SIZE];
    read_or_zero(reader, info.number, 0, &mut block);
    match decode_segment_header(&block) {
        Ok(header) => Ok(Some(header).filter(|header| header.number == info.number)),
        Err(reason @ Invalid::Version(_)) => Err(Hopeless::Newer { segment: info.number, reason }),
        Err(_) => Ok(None),
    }
}

/// When no header can be read: whose commits these are.
fn any_log_id(reader: &mut impl LogReader, segments: &[SegmentInfo]) -> Option<LogId> {
    let mut block = vec![0; BLOCK_SIZE];
    for info in segments {
        for offset in (BLOCK..info.size.saturating_sub(BLOCK - 1)).step_by(BLOCK_SIZE) {
            read_or_zero(reader, info.number, offset, &mut block);
            if let Ok(header) = peek_commit(&block)
                && intact_at(reader, *info, offset).is_some()
            {
                return Some(header.log_id);
            }
        }
    }
    None
}

/// The intact commit at `offset`, of whatever log.
fn intact_at(reader: &mut impl LogReader, info: SegmentInfo, offset: u64) -> Option<Commit> {
    if offset + BLOCK > info.size {
        return None;
    }
    let mut bytes = vec![0; BLOCK_SIZE];
    read_or_zero(reader, info.number, offset, &mut bytes);
    let size = peek_commit(&bytes).ok()?.size_on_disk();
    if offset + size > info.size {
        return None;
    }
    bytes.resize(size as usize, 0);
    read_or_zero(reader, info.number, offset + BLOCK, &mut bytes[BLOCK_SIZE..]);
    decode_commit(&Bytes::from(bytes)).ok()
}

/// Reads; a block that the disk cannot read is zeros.
pub fn read_or_zero(reader: &mut impl LogReader, segment: u64, offset: u64, buffer: &mut [u8]) {
    if reader.read(segment, offset, buffer).is_ok() {
        return;
    }
    for (index, block) in buffer.chunks_mut(BLOCK_SIZE).enumerate() {
        if reader.read(segment, offset + (index * BLOCK_SIZE) as u64, block).is_err() {
            block.fill(0);
        }
    }
}
