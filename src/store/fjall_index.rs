//! The index's storage on disk: fjall, an LSM tree, with all rows in one keyspace of its own.
//!
//! One keyspace, the kind of row being the first byte of the key: so every batch is in one
//! memtable, what survives a crash is a prefix of the batches, and no idle keyspace pins old
//! journals. fjall syncs no folder in which it makes files, so a checkpoint does.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace as Tree, KeyspaceCreateOptions, PersistMode, Readable};

use super::StoreFault;
use super::directory::{fault, sync_folder, sync_tree};
use super::index::{Change, Index, IndexFault, Keyspace};

/// Bytes of blocks kept in memory.
const CACHE_SIZE: u64 = 64 * 1024 * 1024;
/// Bytes of new rows before they are written out as a table.
const MEMTABLE_SIZE: u64 = 32 * 1024 * 1024;
/// Bytes of journal that make it write out memtables; opening reads all of them.
const JOURNAL_SIZE_MAX: u64 = 128 * 1024 * 1024;
/// Tables that it keeps open.
const OPEN_FILES_MAX: usize = 256;
/// Threads for flushes and compactions: a small box has two cores, and one is the log's.
const WORKER_COUNT: usize = 1;
/// How long a predecessor that is dying may keep its lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// The index in a folder.
pub struct FjallIndex {
    path: PathBuf,
    database: Database,
    rows: Tree,
}

impl FjallIndex {
    /// Opens the index in `path`, or makes an empty one. One that is broken is moved aside, since
    /// the log holds everything; but not for want of memory, files or rights.
    pub fn open(path: &Path) -> Result<FjallIndex, StoreFault> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match FjallIndex::try_open(path) {
                Ok(index) => return Ok(index),
                Err(fjall::Error::Locked) if Instant::now() < deadline => {
                    sleep(LOCK_RETRY);
                }
                Err(fjall::Error::Locked) => {
                    let path = path.display().to_string();
                    return Err(StoreFault::Locked { path, waited_s: LOCK_WAIT.as_secs() });
                }
                Err(error) if is_broken(&error) => {
                    let aside = FjallIndex::aside_path(path);
                    tracing::warn!(
                        %error,
                        aside = %aside.display(),
                        "the index is broken: it is moved aside and rebuilt from the log"
                    );
                    FjallIndex::move_aside(path)?;
                    return Ok(FjallIndex::try_open(path).map_err(storage)?);
                }
                Err(error) => return Err(storage(error).into()),
            }
        }
    }

    /// Opens the index of a store that does not run; the inner error is an index that is broken.
    pub fn open_as_it_is(path: &Path) -> Result<Result<FjallIndex, IndexFault>, StoreFault> {
        match FjallIndex::try_open(path) {
            Ok(index) => Ok(Ok(index)),
            Err(error) if is_broken(&error) => Ok(Err(storage(error))),
            Err(error) => Err(storage(error).into()),
        }
    }

    /// Leaves an empty folder in the index's place. One that was moved aside before goes: an index
    /// holds nothing that the log does not.
    pub fn move_aside(path: &Path) -> Result<(), StoreFault> {
        let aside = FjallIndex::aside_path(path);
        let moved = match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => std::fs::rename(path, &aside),
        };
        moved
            .and_then(|()| std::fs::create_dir(path))
            .and_then(|()| sync_folder(path.parent().unwrap_or(path)))
            .map_err(|source| fault("move aside", path, source))
    }

    /// Where an index goes that cannot be used.
    pub fn aside_path(path: &Path) -> PathBuf {
        path.with_extension("damaged")
    }

    /// Makes views of it, on any thread.
    pub fn views(&self) -> Views {
        Views { database: self.database.clone(), rows: self.rows.clone() }
    }

    fn try_open(path: &Path) -> fjall::Result<FjallIndex> {
        let database = Database::builder(path)
            .cache_size(CACHE_SIZE)
            .max_journaling_size(JOURNAL_SIZE_MAX)
            .max_cached_files(Some(OPEN_FILES_MAX))
            .worker_threads(WORKER_COUNT)
            .manual_journal_persist(true)
            .open()?;
        let rows = database.keyspace("rows", || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                .max_memtable_size(MEMTABLE_SIZE)
        })?;
        sync_tree(path)?;
        Ok(FjallIndex { path: path.to_path_buf(), database, rows })
    }
}

/// Makes views of an index that is in use.
#[derive(Clone)]
pub struct Views {
    database: Database,
    rows: Tree,
}

impl Views {
    /// The index as it stands now.
    pub fn view(&self) -> View {
        View { snapshot: self.database.snapshot(), rows: self.rows.clone() }
    }
}

/// An index as it stood at one moment; what is applied later does not show.
pub struct View {
    snapshot: fjall::Snapshot,
    rows: Tree,
}

impl Index for View {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        let value = self.snapshot.get(&self.rows, tagged(keyspace, key)).map_err(storage)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        prefix: &[u8],
        first: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexFault> {
        scan(&self.snapshot, &self.rows, (keyspace, prefix, first), visit)
    }

    fn apply(&mut self, _: Vec<Change>) -> Result<(), IndexFault> {
        Err(IndexFault::Storage("a view is only read".to_owned()))
    }

    fn settle(&mut self) -> Result<(), IndexFault> {
        Ok(())
    }

    fn persist(&mut self) -> Result<(), IndexFault> {
        Ok(())
    }
}

fn scan(
    snapshot: &fjall::Snapshot,
    rows: &Tree,
    (keyspace, prefix, first): (Keyspace, &[u8], &[u8]),
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), IndexFault> {
    let prefix = tagged(keyspace, prefix);
    let start = tagged(keyspace, first).max(prefix.clone());
    for guard in snapshot.range(rows, start..) {
        let (key, value) = guard.into_inner().map_err(storage)?;
        if !key.starts_with(&prefix) || !visit(&key[1..], &value) {
            break;
        }
    }
    Ok(())
}

impl Index for FjallIndex {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        let value = self.rows.get(tagged(keyspace, key)).map_err(storage)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        prefix: &[u8],
        first: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexFault> {
        scan(&self.database.snapshot(), &self.rows, (keyspace, prefix, first), visit)
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexFault> {
        let mut batch = self.database.batch();
        for change in changes {
            let key = tagged(change.keyspace, &change.key);
            match change.value {
                Some(value) => batch.insert(&self.rows, key, value),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.commit().map_err(storage)
    }

    fn settle(&mut self) -> Result<(), IndexFault> {
        self.database.persist(PersistMode::Buffer).map_err(storage)
    }

    fn persist(&mut self) -> Result<(), IndexFault> {
        self.database.persist(PersistMode::SyncData).map_err(storage)?;
        sync_tree(&self.path).map_err(|error| IndexFault::Storage(error.to_string()))
    }
}

fn tagged(keyspace: Keyspace, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(keyspace as u8);
    out.extend_from_slice(key);
    out
}

fn storage(error: fjall::Error) -> IndexFault {
    IndexFault::Storage(error.to_string())
}

/// Whether what is on disk cannot be opened, as opposed to: cannot be opened now.
fn is_broken(error: &fjall::Error) -> bool {
    let io = match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        _ => return true,
    };
    matches!(io.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}
