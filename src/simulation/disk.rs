//! A disk on a seed, for the store's log: it completes in any order, tears what was under way when
//! the power went, forgets names that were not synced, fills up, and rots.
//!
//! Clones are the same disk, as two processes on one machine would see it. Nothing happens until
//! [`SimDisk::step`]; a crash is possible between any two steps.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

use super::planted::Planted;
use crate::store::device::{
    DeviceEvent, DeviceFault, LogDevice, LogReader, Operation, SegmentInfo,
};

/// What a disk writes atomically, whatever the size of its blocks.
const SECTOR_SIZE: usize = 512;

/// A disk. See the module.
#[derive(Clone)]
pub struct SimDisk {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    random: SplitMix,
    files: BTreeMap<u64, File>,
    pending: Vec<Pending>,
    events: VecDeque<DeviceEvent>,
    /// Bytes that files may take altogether.
    space: u64,
    fails_writes: bool,
    fails_flush: bool,
    fault: Option<DeviceFault>,
    /// What became durable since it was last asked for, if somebody watches.
    watched: Option<Vec<DurableWrite>>,
}

/// A write that no power cut takes back any more.
pub struct DurableWrite {
    pub segment: u64,
    pub offset: u64,
    pub data: Vec<u8>,
}

struct File {
    /// What a reader sees.
    visible: Vec<u8>,
    /// Sectors that a reader sees and a power cut may take back, with what they held before.
    dirty: BTreeMap<usize, Vec<u8>>,
    /// Its name survives a power cut.
    named: bool,
}

impl File {
    /// Whole sectors into the cache: read, and lost in a power cut, if it wants.
    fn write_unsynced(&mut self, offset: usize, data: &[u8]) {
        for (index, sector) in data.chunks(SECTOR_SIZE).enumerate() {
            let start = offset + index * SECTOR_SIZE;
            let place = &mut self.visible[start..][..sector.len()];
            self.dirty.entry(start).or_insert_with(|| place.to_vec());
            place.copy_from_slice(sector);
        }
    }
}

enum Pending {
    Create { segment: u64, size: u64, progress: Creation },
    Write { segment: u64, offset: u64, data: Vec<u8> },
    Remove { segment: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Creation {
    Asked,
    Zeroed,
    FileSynced,
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        let shared = Shared {
            random: SplitMix { state: seed },
            files: BTreeMap::new(),
            pending: Vec::new(),
            events: VecDeque::new(),
            space: u64::MAX,
            fails_writes: false,
            fails_flush: false,
            fault: None,
            watched: None,
        };
        SimDisk { shared: Rc::new(RefCell::new(shared)) }
    }

    /// Moves one request on, chosen by the seed; false if there is none.
    pub fn step(&self) -> bool {
        self.shared.borrow_mut().step()
    }

    /// Steps until nothing is under way.
    pub fn settle(&self) {
        while self.step() {}
    }

    /// The process dies: what was under way has reached the disk's cache in part. It can be read,
    /// and a later power cut may take it back.
    pub fn kill(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.tear_pending();
        shared.events.clear();
        shared.fault = None;
    }

    /// The power goes: like [`SimDisk::kill`], and nothing that was not synced is safe.
    pub fn cut_power(&self) {
        self.kill();
        self.shared.borrow_mut().lose_unsynced();
    }

    /// From now on, keeps what becomes durable for [`SimDisk::take_durable`].
    pub fn watch(&self) {
        self.shared.borrow_mut().watched = Some(Vec::new());
    }

    /// The writes that became durable since the last call.
    pub fn take_durable(&self) -> Vec<DurableWrite> {
        self.shared.borrow_mut().watched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What of a segment would survive a power cut now, for certain.
    pub fn durable_content(&self, segment: u64) -> Option<Vec<u8>> {
        let shared = self.shared.borrow();
        let file = shared.files.get(&segment)?;
        let mut content = file.visible.clone();
        for (start, old) in &file.dirty {
            content[*start..][..old.len()].copy_from_slice(old);
        }
        Some(content)
    }

    /// Bytes that files take altogether.
    pub fn used(&self) -> u64 {
        self.shared.borrow().files.values().map(|file| file.visible.len() as u64).sum()
    }

    /// Whether a request is under way.
    pub fn is_busy(&self) -> bool {
        !self.shared.borrow().pending.is_empty()
    }

    /// From now on files may take `space` bytes altogether.
    pub fn set_space(&self, space: u64) {
        self.shared.borrow_mut().space = space;
    }

    /// From now on every write fails.
    pub fn fail_writes(&self) {
        self.shared.borrow_mut().fails_writes = true;
    }

    /// From now on writes work again.
    pub fn repair(&self) {
        self.shared.borrow_mut().fails_writes = false;
    }

    /// From now on the flush when a log is opened fails, or works again.
    pub fn fail_flush(&self, fails: bool) {
        self.shared.borrow_mut().fails_flush = fails;
    }

    /// Flips a bit of what the disk holds.
    pub fn corrupt(&self, segment: u64, offset: u64) {
        if let Some(file) = self.shared.borrow_mut().files.get_mut(&segment) {
            file.visible[offset as usize] ^= 0x10;
        }
    }

    /// Puts bytes onto the disk as if they had always been there; the segment is made or grows as
    /// needed.
    pub fn place(&self, segment: u64, offset: u64, bytes: &[u8]) {
        let mut shared = self.shared.borrow_mut();
        let empty = || File { visible: Vec::new(), dirty: BTreeMap::new(), named: true };
        let visible = &mut shared.files.entry(segment).or_insert_with(empty).visible;
        visible.resize(visible.len().max(offset as usize + bytes.len()), 0);
        visible[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Cuts a segment off at `size`, if it is longer.
    pub fn truncate(&self, segment: u64, size: u64) {
        if let Some(file) = self.shared.borrow_mut().files.get_mut(&segment) {
            file.visible.truncate(size as usize);
        }
    }

    /// The whole of a segment, as a reader sees it.
    pub fn content(&self, segment: u64) -> Option<Vec<u8>> {
        let shared = self.shared.borrow();
        shared.files.get(&segment).map(|file| file.visible.clone())
    }

    /// Makes a segment be gone.
    pub fn lose(&self, segment: u64) {
        self.shared.borrow_mut().files.remove(&segment);
    }

    /// The numbers of the segments that are there.
    pub fn numbers(&self) -> Vec<u64> {
        self.shared.borrow().files.keys().copied().collect()
    }
}

impl LogDevice for SimDisk {
    type Reader = SimDisk;

    fn create(&mut self, segment: u64, size: u64) {
        let create = Pending::Create { segment, size, progress: Creation::Asked };
        self.shared.borrow_mut().pending.push(create);
    }

    fn reopen(&mut self, segment: u64, size: u64) {
        let progress = Creation::FileSynced;
        let reopen = Pending::Create { segment, size, progress };
        self.shared.borrow_mut().pending.push(reopen);
    }

    fn write(&mut self, segment: u64, offset: u64, data: Vec<u8>) {
        let mut shared = self.shared.borrow_mut();
        let size = shared.files.get(&segment).map_or(0, |file| file.visible.len());
        let aligned = offset.is_multiple_of(4096) && data.len().is_multiple_of(4096);
        assert!(aligned && offset as usize + data.len() <= size, "a write outside its segment");
        shared.pending.push(Pending::Write { segment, offset, data });
    }

    fn remove(&mut self, segment: u64) {
        self.shared.borrow_mut().pending.push(Pending::Remove { segment });
    }

    fn poll(&mut self) -> Result<Option<DeviceEvent>, DeviceFault> {
        let mut shared = self.shared.borrow_mut();
        match shared.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(shared.events.pop_front()),
        }
    }

    fn segments(&mut self) -> Result<Vec<SegmentInfo>, DeviceFault> {
        let shared = self.shared.borrow();
        let info = |(&number, file): (&u64, &File)| SegmentInfo {
            number,
            size: file.visible.len() as u64,
        };
        Ok(shared.files.iter().map(info).collect())
    }

    fn flush(&mut self, segments: &[u64]) -> Result<(), DeviceFault> {
        let mut shared = self.shared.borrow_mut();
        if shared.fails_flush {
            let (operation, segment, offset) = (Operation::Sync, 0, 0);
            let source = io::Error::other("the simulated disk fails to flush");
            return Err(DeviceFault { operation, segment, offset, source });
        }
        for segment in segments {
            if let Some(file) = shared.files.get_mut(segment) {
                file.dirty.clear();
            }
        }
        shared.files.values_mut().for_each(|file| file.named = true);
        Ok(())
    }

    fn reader(&self) -> SimDisk {
        self.clone()
    }
}

impl LogReader for SimDisk {
    fn read(&mut self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let shared = self.shared.borrow();
        let file = shared.files.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let bytes = file.visible.get(offset as usize..).unwrap_or_default();
        let bytes = bytes.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Shared {
    fn step(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let index = self.random.below(self.pending.len());
        match self.pending.swap_remove(index) {
            Pending::Create { segment, size, progress } => self.create(segment, size, progress),
            Pending::Write { segment, offset, data } => self.write(segment, offset, &data),
            Pending::Remove { segment } => {
                self.files.remove(&segment);
                self.events.push_back(DeviceEvent::Removed { segment });
            }
        }
        true
    }

    fn create(&mut self, segment: u64, size: u64, progress: Creation) {
        let progress = match progress {
            Creation::Asked => {
                let used: u64 = self.files.values().map(|file| file.visible.len() as u64).sum();
                if used + size > self.space {
                    self.events.push_back(DeviceEvent::NoSpace { segment });
                    return;
                }
                let visible = vec![0; size as usize];
                let file = File { visible, dirty: BTreeMap::new(), named: false };
                self.files.insert(segment, file);
                Creation::Zeroed
            }
            Creation::Zeroed => Creation::FileSynced,
            Creation::FileSynced => {
                if let Some(file) = self.files.get_mut(&segment) {
                    file.named = true;
                }
                self.events.push_back(DeviceEvent::Created { segment });
                return;
            }
        };
        self.pending.push(Pending::Create { segment, size, progress });
    }

    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) {
        if self.fails_writes {
            let source = io::Error::other("the simulated disk fails writes");
            let operation = Operation::Write;
            self.fault = Some(DeviceFault { operation, segment, offset, source });
            return;
        }
        if let Some(file) = self.files.get_mut(&segment) {
            if Planted::SkipSync.is_planted() {
                file.write_unsynced(offset as usize, data);
            } else {
                file.visible[offset as usize..][..data.len()].copy_from_slice(data);
                if let Some(watched) = &mut self.watched {
                    watched.push(DurableWrite { segment, offset, data: data.to_vec() });
                }
            }
            self.events.push_back(DeviceEvent::Written { segment, offset, took_us: 0 });
        }
    }

    fn tear_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Create { segment, size, progress } => {
                    self.tear_creation(segment, size, progress);
                }
                Pending::Write { segment, offset, data } => self.tear_write(segment, offset, &data),
                Pending::Remove { segment } => {
                    if self.random.flip() {
                        self.files.remove(&segment);
                    }
                }
            }
        }
    }

    /// The file may be there, and shorter than it was to be.
    fn tear_creation(&mut self, segment: u64, size: u64, progress: Creation) {
        if progress == Creation::Asked && self.random.flip() {
            let visible = vec![0; self.random.below(size as usize)];
            self.files.insert(segment, File { visible, dirty: BTreeMap::new(), named: false });
        }
    }

    /// Each sector on its own is old or new.
    fn tear_write(&mut self, segment: u64, offset: u64, data: &[u8]) {
        let choice = self.random.choice();
        let Some(file) = self.files.get_mut(&segment) else {
            return;
        };
        for (index, sector) in data.chunks(SECTOR_SIZE).enumerate() {
            if choice.unwrap_or_else(|| self.random.flip()) {
                file.write_unsynced(offset as usize + index * SECTOR_SIZE, sector);
            }
        }
    }

    fn lose_unsynced(&mut self) {
        let random = &mut self.random;
        let choice = random.choice();
        self.files.retain(|_, file| file.named || random.flip());
        for file in self.files.values_mut() {
            file.named = true;
            for (start, old) in std::mem::take(&mut file.dirty) {
                if choice.unwrap_or_else(|| random.flip()) {
                    file.visible[start..][..old.len()].copy_from_slice(&old);
                }
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose with.
struct SplitMix {
    state: u64,
}

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// For each of many alike: all, none, or (`None`) each on its own. Whole and not at all are
    /// rare among random subsets, and the most telling.
    fn choice(&mut self) -> Option<bool> {
        match self.below(4) {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }
}
