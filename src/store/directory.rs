//! The store's directory: made durably, locked, and what the segment files in it are called.
//!
//! A file or folder counts once the folder that holds its name is synced; that is done here for
//! every name that the store or its index makes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::StoreFault;
use super::device::SegmentInfo;
use crate::sys;

/// How long a predecessor that is dying may keep its locks: io_uring keeps files for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(2);
/// Segments that a predecessor may still be writing: the active one, the next, and one to spare.
const SEGMENTS_IN_USE: usize = 3;

const SEGMENT_SUFFIX: &str = ".log";

/// The folder of one store. The lock lasts as long as this value.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the folder if there is none, takes its lock, and waits until no dying predecessor has
    /// a write under way in any segment.
    pub fn open(path: &Path) -> Result<Directory, StoreFault> {
        make_durable(path)?;
        make_durable(&path.join("log"))?;
        make_durable(&path.join("index"))?;
        let deadline = Instant::now() + LOCK_WAIT;
        let lock_path = path.join("LOCK");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let lock = options.open(&lock_path).map_err(|source| fault("open", &lock_path, source))?;
        wait_for_lock(&lock, &lock_path, deadline)?;
        let directory = Directory { path: path.to_path_buf(), _lock: lock };
        directory.wait_for_writes(deadline)?;
        Ok(directory)
    }

    /// Where the segments are.
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the index is.
    pub fn index_path(&self) -> PathBuf {
        self.path.join("index")
    }

    fn wait_for_writes(&self, deadline: Instant) -> Result<(), StoreFault> {
        let path = self.log_path();
        let segments = list_segments(&path).map_err(|source| fault("list", &path, source))?;
        for segment in segments.iter().rev().take(SEGMENTS_IN_USE) {
            let path = segment_path(&path, segment.number);
            let file = File::open(&path).map_err(|source| fault("open", &path, source))?;
            wait_for_lock(&file, &path, deadline)?;
        }
        Ok(())
    }
}

/// The file of a segment.
pub fn segment_path(log_path: &Path, number: u64) -> PathBuf {
    log_path.join(format!("{number:012}{SEGMENT_SUFFIX}"))
}

/// The segment files in a folder, by number.
pub fn list_segments(log_path: &Path) -> io::Result<Vec<SegmentInfo>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(log_path)? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SEGMENT_SUFFIX));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            segments.push(SegmentInfo { number, size: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

/// Makes the names in a folder durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the names in a folder, and in every folder below it, durable.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match sync_tree(&entry.path()) {
                // The index removes folders of its own at any time.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    sync_folder(path)
}

/// A fault that names what was done to which path.
pub fn fault(operation: &'static str, path: &Path, source: io::Error) -> StoreFault {
    StoreFault::Directory { operation, path: path.display().to_string(), source }
}

/// Makes a folder and those above it that are missing, each name synced.
fn make_durable(path: &Path) -> Result<(), StoreFault> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    make_durable(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(fault("create", path, error));
        }
        _ => {}
    }
    sync_folder(parent).map_err(|source| fault("sync", parent, source))
}

fn wait_for_lock(file: &File, path: &Path, deadline: Instant) -> Result<(), StoreFault> {
    while !sys::try_lock(file).map_err(|source| fault("lock", path, source))? {
        if Instant::now() >= deadline {
            let waited_s = LOCK_WAIT.as_secs();
            return Err(StoreFault::Locked { path: path.display().to_string(), waited_s });
        }
        sleep(LOCK_RETRY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_down_from_the_first_missing_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/c");
        let directory = Directory::open(&path).expect("it is made");
        assert!(directory.log_path().is_dir() && directory.index_path().is_dir());
        sync_tree(&path).expect("all of it can be synced");
    }

    #[test]
    fn only_segments_are_listed_and_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        for number in [10, 9, 1_000_000_000_000] {
            fs::write(segment_path(folder.path(), number), [0; 7]).expect("written");
        }
        fs::write(folder.path().join("x.log"), []).expect("written");
        fs::write(folder.path().join("7.txt"), []).expect("written");
        let segments = list_segments(folder.path()).expect("listed");
        let numbers: Vec<_> = segments.iter().map(|segment| segment.number).collect();
        assert_eq!(numbers, [9, 10, 1_000_000_000_000]);
        assert!(segments.iter().all(|segment| segment.size == 7));
    }
}
