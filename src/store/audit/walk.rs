//! The log from its first byte, as an audit reads it: stricter than recovery, which may cut.
//!
//! Every commit below what the index has applied, or below an intact commit that follows, was
//! durable. Above that only the bytes can tell: a write that was cut leaves whole sectors of zeros
//! (segments are zeros before), since a disk writes a sector or does not. So what misses a sector
//! is called torn, and noted; what is all there and does not match is called wrong.

use bytes::Bytes;

use crate::store::device::{LogReader, SegmentInfo};
use crate::store::log_format::{
    BLOCK_SIZE, COMMIT_HEADER_SIZE, Commit, CommitHeader, LogId, SEGMENT_HEADER_SIZE,
    SegmentHeader, decode_commit, decode_segment_header, peek_commit,
};
use crate::store::positions::Place;

const BLOCK: u64 = BLOCK_SIZE as u64;
const SECTOR_SIZE: usize = 512;
/// Blocks that are searched at once.
const WINDOW_SIZE: usize = 1024 * 1024;

/// What is wrong with the log, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub what: String,
    pub place: Place,
    /// The position that should be there.
    pub lsn: u64,
    /// Bytes of the log that it is about, from the place on.
    pub size: u64,
}

/// How far a walk came.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// The position after the last intact record.
    pub next_lsn: u64,
    pub segments: u64,
    pub commits: u64,
    pub bytes: u64,
    /// What ended it, if it was not the end of the log.
    pub broken: Option<Wrong>,
    /// Bytes that no record is harmed by, and which should be zeros.
    pub padding: Vec<Wrong>,
    /// A write that was cut, above everything that is known to have been durable.
    pub torn: Option<Wrong>,
}

/// What is known before.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    pub log_id: Option<LogId>,
    /// Was durable, since the index has it.
    pub applied_lsn: u64,
    /// Where to stop: what is above it is being written.
    pub upto: Option<u64>,
}

/// Walks the log; `visit` gets each intact commit, in order.
pub fn walk<R: LogReader, E: From<std::io::Error>>(
    reader: &mut R,
    segments: &[SegmentInfo],
    witness: Witness,
    visit: &mut dyn FnMut(Place, &Commit) -> Result<(), E>,
) -> Result<Walk, E> {
    let walk = Walk { next_lsn: 1, ..Walk::default() };
    let mut walker = Walker { reader, witness, log_id: witness.log_id, checksum: 0, walk };
    walker.run(segments, visit)?;
    Ok(walker.walk)
}

struct Walker<'a, R> {
    reader: &'a mut R,
    witness: Witness,
    log_id: Option<LogId>,
    checksum: u32,
    walk: Walk,
}

/// What a segment's first block says.
enum Beginning {
    Header(SegmentHeader),
    /// Prepared and never used.
    Blank,
    Broken(String),
}

impl<R: LogReader> Walker<'_, R> {
    fn run<E: From<std::io::Error>>(
        &mut self,
        segments: &[SegmentInfo],
        visit: &mut dyn FnMut(Place, &Commit) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut beginnings = Vec::with_capacity(segments.len());
        for info in segments {
            beginnings.push((*info, self.beginning(*info)?));
        }
        let mut end = Place { segment: segments.first().map_or(1, |info| info.number), offset: 0 };
        for index in 0..beginnings.len() {
            if self.is_over() {
                return Ok(());
            }
            let (info, beginning) = &beginnings[index];
            let mut later = beginnings[index + 1..].iter().map(|(_, later)| later);
            let next = later.find(|later| !matches!(later, Beginning::Blank));
            let place = Place { segment: info.number, offset: 0 };
            let header = match beginning {
                Beginning::Header(header) => header,
                Beginning::Blank => continue,
                Beginning::Broken(reason) => {
                    self.fail(format!("the segment's header is wrong: {reason}"), place, BLOCK);
                    return Ok(());
                }
            };
            if let Some(what) = self.mismatch(header) {
                self.fail(what, place, BLOCK);
                return Ok(());
            }
            self.walk.segments += 1;
            end = self.segment(*info, next, visit)?;
            if self.walk.broken.is_some() {
                return Ok(());
            }
        }
        let ended = self.walk.torn.is_none() && self.walk.broken.is_none();
        if ended && self.witness.applied_lsn >= self.walk.next_lsn {
            let what = format!(
                "the log ends, but positions up to {} were durable: a segment is missing, or its \
                 beginning is wiped",
                self.witness.applied_lsn
            );
            self.fail(what, end, 0);
        }
        Ok(())
    }

    fn beginning(&mut self, info: SegmentInfo) -> std::io::Result<Beginning> {
        // A crash may leave a file that was made and not yet given its size.
        let mut blocks = vec![0; info.size.min(2 * BLOCK) as usize];
        self.reader.read(info.number, 0, &mut blocks)?;
        if is_zero(&blocks) {
            return Ok(Beginning::Blank);
        }
        if info.size < BLOCK {
            return Ok(Beginning::Broken(format!("the file has {} bytes", info.size)));
        }
        let header = match decode_segment_header(&blocks[..BLOCK_SIZE]) {
            Ok(header) => header,
            Err(reason) => return Ok(Beginning::Broken(reason.to_string())),
        };
        if header.number != info.number {
            return Ok(Beginning::Broken(format!("it is of segment {}", header.number)));
        }
        if *self.log_id.get_or_insert(header.log_id) != header.log_id {
            return Ok(Beginning::Broken("it is of another log".to_owned()));
        }
        self.check_padding(&blocks[..BLOCK_SIZE], SEGMENT_HEADER_SIZE, info.number, 0);
        Ok(Beginning::Header(header))
    }

    /// Why this segment does not come next.
    fn mismatch(&self, header: &SegmentHeader) -> Option<String> {
        let (next_lsn, first_lsn) = (self.walk.next_lsn, header.first_lsn);
        if first_lsn > next_lsn {
            let last = first_lsn - 1;
            return Some(format!("positions {next_lsn} to {last} are missing before this segment"));
        }
        if first_lsn < next_lsn {
            return Some(format!("it begins at position {first_lsn}, which is there already"));
        }
        let differs = header.previous_checksum != self.checksum;
        differs.then(|| "it does not follow the commit before it".to_owned())
    }

    fn segment<E: From<std::io::Error>>(
        &mut self,
        info: SegmentInfo,
        next: Option<&Beginning>,
        visit: &mut dyn FnMut(Place, &Commit) -> Result<(), E>,
    ) -> Result<Place, E> {
        let successor = next.and_then(Beginning::header).map(|header| header.first_lsn);
        let mut place = Place { segment: info.number, offset: BLOCK };
        while successor != Some(self.walk.next_lsn) && !self.is_over() {
            let Some((commit, bytes)) = self.commit_at(info, place)? else {
                if next.is_none() {
                    self.judge_end(info, place)?;
                } else if !self.is_blank(info, place)? {
                    let what = "no intact commit is here".to_owned();
                    let size = self.size_at(&info, place);
                    self.fail(what, place, size);
                }
                // Where nothing is, the next segment's header says what is missing.
                break;
            };
            let end = COMMIT_HEADER_SIZE + commit.header.payload_size as usize;
            self.check_padding(&bytes, end, place.segment, place.offset);
            visit(place, &commit)?;
            self.walk.next_lsn = commit.header.last_lsn() + 1;
            self.walk.commits += 1;
            self.walk.bytes += bytes.len() as u64;
            self.checksum = commit.checksum;
            place.offset += bytes.len() as u64;
        }
        Ok(place)
    }

    fn is_over(&self) -> bool {
        self.witness.upto.is_some_and(|upto| self.walk.next_lsn > upto)
    }

    /// The intact commit that comes next, with all of its bytes.
    fn commit_at(
        &mut self,
        info: SegmentInfo,
        place: Place,
    ) -> std::io::Result<Option<(Commit, Bytes)>> {
        let Some((bytes, commit)) = self.intact_at(info, place.offset)? else {
            return Ok(None);
        };
        let header = commit.header;
        let follows = Some(header.log_id) == self.log_id
            && header.first_lsn == self.walk.next_lsn
            && header.previous_checksum == self.checksum;
        Ok(follows.then_some((commit, bytes)))
    }

    fn intact_at(
        &mut self,
        info: SegmentInfo,
        offset: u64,
    ) -> std::io::Result<Option<(Bytes, Commit)>> {
        if offset + BLOCK > info.size {
            return Ok(None);
        }
        let mut bytes = vec![0; BLOCK_SIZE];
        self.reader.read(info.number, offset, &mut bytes)?;
        let Some(size) = peek_commit(&bytes).ok().map(|header| header.size_on_disk()) else {
            return Ok(None);
        };
        if offset + size > info.size {
            return Ok(None);
        }
        bytes.resize(size as usize, 0);
        self.reader.read(info.number, offset + BLOCK, &mut bytes[BLOCK_SIZE..])?;
        let bytes = Bytes::from(bytes);
        Ok(decode_commit(&bytes).ok().map(|commit| (bytes, commit)))
    }

    /// The last segment has no further commit: is that the end, a torn write, or damage?
    fn judge_end(&mut self, info: SegmentInfo, place: Place) -> std::io::Result<()> {
        if place.offset + BLOCK > info.size {
            return Ok(());
        }
        let size = self.size_at(&info, place);
        if self.witness.applied_lsn >= self.walk.next_lsn {
            let what = format!(
                "no intact commit is here, and positions up to {} were durable, since the index \
                 has them",
                self.witness.applied_lsn
            );
            self.fail(what, place, size);
            return Ok(());
        }
        if let Some(offset) = self.intact_behind(info, place.offset + BLOCK)? {
            let what = format!("no intact commit is here, but one at offset {offset} follows");
            self.fail(what, place, size);
            return Ok(());
        }
        let mut block = vec![0; BLOCK_SIZE];
        self.reader.read(info.number, place.offset, &mut block)?;
        if is_zero(&block) {
            return Ok(());
        }
        let lsn = self.walk.next_lsn;
        if is_zero(&block[..SECTOR_SIZE]) || self.lacks_a_sector(info, place, &block)? {
            let what = "a write was cut here, above everything known to be durable".to_owned();
            self.walk.torn = Some(Wrong { what, place, lsn, size });
        } else {
            let what = "the commit is all there and does not match: no write that was cut leaves \
                        that"
                .to_owned();
            self.fail(what, place, size);
        }
        Ok(())
    }

    /// Whether nothing was written here.
    fn is_blank(&mut self, info: SegmentInfo, place: Place) -> std::io::Result<bool> {
        if place.offset + BLOCK > info.size {
            return Ok(true);
        }
        let mut block = vec![0; BLOCK_SIZE];
        self.reader.read(info.number, place.offset, &mut block)?;
        Ok(is_zero(&block))
    }

    /// Whether a sector of the commit that begins here was never written.
    fn lacks_a_sector(
        &mut self,
        info: SegmentInfo,
        place: Place,
        block: &[u8],
    ) -> std::io::Result<bool> {
        let Some(header) = peek_commit(block).ok().filter(|header| self.is_next(header)) else {
            return Ok(false);
        };
        let size = COMMIT_HEADER_SIZE as u64 + u64::from(header.payload_size);
        if place.offset + size > info.size {
            return Ok(false);
        }
        let mut bytes = vec![0; size as usize];
        self.reader.read(info.number, place.offset, &mut bytes)?;
        Ok(bytes.chunks_exact(SECTOR_SIZE).any(is_zero))
    }

    fn is_next(&self, header: &CommitHeader) -> bool {
        Some(header.log_id) == self.log_id
            && header.first_lsn == self.walk.next_lsn
            && header.previous_checksum == self.checksum
    }

    /// Where an intact commit of this log lies behind what is missing.
    fn intact_behind(&mut self, info: SegmentInfo, from: u64) -> std::io::Result<Option<u64>> {
        let mut offset = from;
        let mut window = vec![0; WINDOW_SIZE];
        while offset + BLOCK <= info.size {
            let size = ((info.size - offset) as usize).min(WINDOW_SIZE);
            let size = size - size % BLOCK_SIZE;
            self.reader.read(info.number, offset, &mut window[..size])?;
            for start in (0..size).step_by(BLOCK_SIZE) {
                let ours = peek_commit(&window[start..][..BLOCK_SIZE]).is_ok_and(|header| {
                    Some(header.log_id) == self.log_id && header.first_lsn > self.walk.next_lsn
                });
                if ours && self.intact_at(info, offset + start as u64)?.is_some() {
                    return Ok(Some(offset + start as u64));
                }
            }
            offset += size as u64;
        }
        Ok(None)
    }

    /// How many bytes the commit here says it has; a block at least.
    fn size_at(&mut self, info: &SegmentInfo, place: Place) -> u64 {
        let mut block = vec![0; BLOCK_SIZE];
        let room = info.size.saturating_sub(place.offset);
        if room < BLOCK || self.reader.read(place.segment, place.offset, &mut block).is_err() {
            return room;
        }
        peek_commit(&block).map_or(BLOCK, |header| header.size_on_disk().min(room))
    }

    fn check_padding(&mut self, bytes: &[u8], end: usize, segment: u64, offset: u64) {
        if let Some(found) = bytes[end..].iter().position(|&byte| byte != 0) {
            let place = Place { segment, offset: offset + (end + found) as u64 };
            let what = "a byte of the padding is not zero; no record is harmed".to_owned();
            self.walk.padding.push(Wrong { what, place, lsn: self.walk.next_lsn, size: 1 });
        }
    }

    fn fail(&mut self, what: String, place: Place, size: u64) {
        let lsn = self.walk.next_lsn;
        self.walk.broken.get_or_insert(Wrong { what, place, lsn, size });
    }
}

impl Beginning {
    fn header(&self) -> Option<&SegmentHeader> {
        match self {
            Beginning::Header(header) => Some(header),
            _ => None,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
