//! How long this disk takes to make a small write durable: what every message waits for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const WRITES_MAX: usize = 200;
const WRITE_SIZE: usize = 4096;
/// A disk that is slower than this in all is known well enough.
const TIME_MAX: Duration = Duration::from_secs(2);

/// The times of some writes, each made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    pub count: usize,
    pub median: Duration,
    pub p99: Duration,
}

/// `path`, or the nearest folder above it that is there.
pub fn nearest(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let found = path.ancestors().find(|folder| folder.is_dir());
    found.map(Path::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Writes into a file of its own, which is gone afterwards.
pub fn latency(folder: &Path) -> io::Result<Latency> {
    let path = folder.join(format!("aldis-check-{}", std::process::id()));
    let file = File::options().write(true).create_new(true).open(&path)?;
    // Without its name it goes with its last descriptor, however this ends.
    fs::remove_file(&path)?;
    // Written before, as segments of the log are: only data has to reach the disk then.
    file.write_all_at(&vec![0; WRITE_SIZE * WRITES_MAX], 0)?;
    file.sync_all()?;
    let begin = Instant::now();
    let mut times = Vec::with_capacity(WRITES_MAX);
    while times.len() < WRITES_MAX && (begin.elapsed() < TIME_MAX || times.is_empty()) {
        let start = Instant::now();
        file.write_all_at(&[1; WRITE_SIZE], (times.len() * WRITE_SIZE) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    Ok(Latency { count: times.len(), median: at(0.5), p99: at(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_measured_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let found = nearest(&folder.path().join("not/yet")).unwrap();
        let latency = latency(&found).unwrap();
        assert!(latency.count > 0 && latency.median <= latency.p99);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
