//! The data directory of `up`: who uses it, and what is in it.
//!
//! - `up.lock`: held by flock as long as `up` runs; the kernel releases it however `up` ends.
//! - `secret`: the link's shared secret, made once.
//! - `up.sock`: where the edge passes on the page's kill buttons.
//! - `run/upgrade.sock`: where `aldis upgrade` asks; `run/edge.sock`: where a successor of the edge
//!   takes over.
//! - `run/<process>.admin`: the address of each child's admin page.
//! - `store/`: the store's own.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::cli::failure::Usage;

const SECRET_SIZE: usize = 32;

/// A data directory that no other `up` uses, while this value lives.
pub struct DataDirectory {
    path: PathBuf,
    existed: bool,
    _lock: File,
}

impl DataDirectory {
    /// Makes the directory and what belongs into it, durably, and takes the lock.
    /// Errors are of one line and say what to do.
    pub fn open(path: &Path) -> Result<DataDirectory, Usage> {
        let existed = path.is_dir();
        create_durably(path).map_err(|error| unusable(path, &error))?;
        let lock = take_lock(path)?;
        fill(path).map_err(|error| unusable(path, &error))?;
        Ok(DataDirectory { path: path.to_owned(), existed, _lock: lock })
    }

    /// It was there before, so an earlier `up` may have ended a moment ago.
    pub fn existed(&self) -> bool {
        self.existed
    }

    pub fn control_path(&self) -> PathBuf {
        self.path.join("up.sock")
    }
}

/// Where `aldis upgrade` asks.
pub fn upgrade_path(directory: &Path) -> PathBuf {
    directory.join("run").join("upgrade.sock")
}

/// Where a successor of the edge takes over.
pub fn handover_path(directory: &Path) -> PathBuf {
    directory.join("run").join("edge.sock")
}

/// The file with the link's secret.
pub fn secret_path(directory: &Path) -> PathBuf {
    directory.join("secret")
}

/// Where the child called `process` writes the address of its admin page.
pub fn admin_path(directory: &Path, process: &str) -> PathBuf {
    directory.join("run").join(format!("{process}.admin"))
}

/// The store's part of the directory.
pub fn store_path(directory: &Path) -> PathBuf {
    directory.join("store")
}

fn unusable(path: &Path, error: &io::Error) -> Usage {
    Usage(format!(
        "cannot write to the data directory {}: {error}; make it writable, or choose another \
         with --data DIR",
        path.display()
    ))
}

/// Makes `path` and its missing parents. Each new name is synced into the folder that holds it: a
/// power cut must not take away a directory in which messages were accepted.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    create_durably(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result?,
    }
    File::open(parent)?.sync_all()
}

fn take_lock(path: &Path) -> Result<File, Usage> {
    let lock = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("up.lock"))
        .map_err(|error| unusable(path, &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Usage(format!(
            "another aldis up is running on {}; stop it, or choose another directory with \
             --data DIR",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
    }
}

fn fill(path: &Path) -> io::Result<()> {
    create_durably(&store_path(path))?;
    create_durably(&path.join("run"))?;
    let trial = path.join("run").join("writable");
    fs::write(&trial, b"")?;
    fs::remove_file(&trial)?;
    if !secret_path(path).exists() {
        create_secret(path)?;
    }
    Ok(())
}

/// The name `secret` appears only when the content is complete and on disk: processes that were
/// started with one secret must find the same after a power cut.
fn create_secret(directory: &Path) -> io::Result<()> {
    let mut secret = [0; SECRET_SIZE];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let unfinished = directory.join("secret.new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&unfinished, secret_path(directory))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_directory_has_everything_and_keeps_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let directory = DataDirectory::open(&path).unwrap();
        assert!(!directory.existed());
        assert!(store_path(&path).is_dir());
        let secret = fs::read_to_string(secret_path(&path)).unwrap();
        assert_eq!(secret.trim_end().len(), 2 * SECRET_SIZE);
        let mode = fs::metadata(secret_path(&path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(directory);

        let again = DataDirectory::open(&path).unwrap();
        assert!(again.existed());
        assert_eq!(fs::read_to_string(secret_path(&path)).unwrap(), secret);
    }

    #[test]
    fn a_directory_in_use_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let _first = DataDirectory::open(folder.path()).unwrap();
        let refusal = DataDirectory::open(folder.path()).err().unwrap();
        assert!(refusal.0.starts_with("another aldis up is running on "));
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"").unwrap();
        let refusal = DataDirectory::open(&path.join("data")).err().unwrap();
        assert!(refusal.0.contains("cannot write to the data directory"));
        assert!(refusal.0.contains("file/data"));
    }
}
