//! The log's disk in the real process: a thread of its own that runs tokio-uring.
//!
//! Segments are written `O_DIRECT|O_DSYNC` over zeros that were written before: measured as the
//! lowest latency, since neither the page cache nor the file's metadata is in the way. Where a file
//! system refuses `O_DIRECT`, the same writes go through the page cache with `O_DSYNC`.
//!
//! A segment is locked while it is open for writing. A killed process keeps the lock until the
//! kernel has finished its last write, so a successor never reads what may still change.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use tokio::sync::mpsc;

use super::device::{DeviceEvent, DeviceFault, LogDevice, LogReader, Operation, SegmentInfo};
use super::directory::{Directory, list_segments, segment_path, sync_folder};
use crate::sys::{self, AlignedBuffer, BLOCK_SIZE, Waker};

/// Bytes of zeros per write while a segment is made: small, so that commits get in between.
const ZERO_SIZE: usize = 256 * 1024;
/// Between those writes while there is a segment that commits go to, so that commits get in
/// between: 256 pauses make a segment of 64 MiB ready a quarter of a second later. What it gains
/// depends on the disk; nothing else depends on it.
const ZERO_PAUSE: Duration = Duration::from_millis(1);
/// One write, one creation and a few removals are under way at a time.
const QUEUE_COUNT_MAX: usize = 1024;
/// Segments that a reader keeps open.
const OPEN_SEGMENTS_MAX: usize = 64;

/// The real disk. Dropping it waits until everything asked for has been done.
pub struct UringDevice {
    log_path: PathBuf,
    commands: Option<mpsc::Sender<Command>>,
    events: Receiver<Result<DeviceEvent, DeviceFault>>,
    thread: Option<JoinHandle<()>>,
    _directory: Directory,
}

enum Command {
    Create { segment: u64, size: u64 },
    Reopen { segment: u64, size: u64 },
    Write { segment: u64, offset: u64, data: Vec<u8> },
    Remove { segment: u64 },
}

impl UringDevice {
    /// Starts the thread, and keeps the directory's lock until it has ended. `waker` is woken for
    /// every event.
    pub fn open(directory: Directory, waker: Waker) -> io::Result<UringDevice> {
        let log_path = directory.log_path();
        let direct = probe_direct(&log_path)?;
        if !direct {
            tracing::warn!(
                path = %log_path.display(),
                "this file system refuses O_DIRECT; the log is written through the page cache"
            );
        }
        let (commands, command_queue) = mpsc::channel(QUEUE_COUNT_MAX);
        let (event_queue, events) = bounded(QUEUE_COUNT_MAX);
        let (started, start) = bounded(1);
        let path = log_path.clone();
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || {
            let runtime = match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            let writer = Rc::new(Writer {
                log_path: path,
                direct,
                files: RefCell::default(),
                events: event_queue,
                waker,
            });
            runtime.block_on(run(writer, command_queue));
        })?;
        start.recv().map_err(|_| io::Error::other("the log's thread died at its start"))??;
        Ok(UringDevice {
            log_path,
            commands: Some(commands),
            events,
            thread: Some(thread),
            _directory: directory,
        })
    }

    fn send(&mut self, command: Command) {
        // A full or closed queue means a thread that is gone, which `poll` reports.
        if let Some(commands) = &self.commands {
            let _ = commands.try_send(command);
        }
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LogDevice for UringDevice {
    type Reader = FileReader;

    fn create(&mut self, segment: u64, size: u64) {
        self.send(Command::Create { segment, size });
    }

    fn reopen(&mut self, segment: u64, size: u64) {
        self.send(Command::Reopen { segment, size });
    }

    fn write(&mut self, segment: u64, offset: u64, data: Vec<u8>) {
        self.send(Command::Write { segment, offset, data });
    }

    fn remove(&mut self, segment: u64) {
        self.send(Command::Remove { segment });
    }

    fn poll(&mut self) -> Result<Option<DeviceEvent>, DeviceFault> {
        match self.events.try_recv() {
            Ok(event) => event.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                let source = io::Error::other("the log's thread is gone");
                Err(DeviceFault { operation: Operation::Write, segment: 0, offset: 0, source })
            }
        }
    }

    fn segments(&mut self) -> Result<Vec<SegmentInfo>, DeviceFault> {
        list_segments(&self.log_path).map_err(|source| fault(Operation::List, 0, 0, source))
    }

    fn flush(&mut self, segments: &[u64]) -> Result<(), DeviceFault> {
        for &segment in segments {
            // Times of change, which are not synced by this, mean nothing here.
            File::open(segment_path(&self.log_path, segment))
                .and_then(|file| file.sync_data())
                .map_err(|source| fault(Operation::Sync, segment, 0, source))?;
        }
        sync_folder(&self.log_path).map_err(|source| fault(Operation::Sync, 0, 0, source))
    }

    fn reader(&self) -> FileReader {
        FileReader::new(&self.log_path)
    }
}

/// Reads segments through the page cache, which direct writes keep coherent.
#[derive(Debug)]
pub struct FileReader {
    log_path: PathBuf,
    files: BTreeMap<u64, File>,
}

impl FileReader {
    /// Reads the segments in this folder.
    pub fn new(log_path: &Path) -> FileReader {
        FileReader { log_path: log_path.to_path_buf(), files: BTreeMap::new() }
    }
}

impl LogReader for FileReader {
    fn read(&mut self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !self.files.contains_key(&segment) {
            if self.files.len() >= OPEN_SEGMENTS_MAX {
                self.files.pop_first();
            }
            let file = File::open(segment_path(&self.log_path, segment))?;
            self.files.insert(segment, file);
        }
        self.files[&segment].read_exact_at(buffer, offset)
    }
}

/// What lives on the thread.
struct Writer {
    log_path: PathBuf,
    direct: bool,
    files: RefCell<BTreeMap<u64, Rc<tokio_uring::fs::File>>>,
    events: Sender<Result<DeviceEvent, DeviceFault>>,
    waker: Waker,
}

async fn run(writer: Rc<Writer>, mut commands: mpsc::Receiver<Command>) {
    let mut tasks = Vec::new();
    while let Some(command) = commands.recv().await {
        let writer = writer.clone();
        tasks.retain(|task: &tokio::task::JoinHandle<()>| !task.is_finished());
        tasks.push(tokio_uring::spawn(async move {
            let executor = writer.clone();
            let execution = tokio_uring::spawn(async move { executor.execute(command).await });
            // A panic must not look like a write that takes for ever.
            let result = execution.await.unwrap_or_else(|panic| {
                Err(fault(Operation::Write, 0, 0, io::Error::other(panic)))
            });
            // Nobody listens any more when the process is going down.
            let _ = writer.events.send(result);
            writer.waker.wake();
        }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

impl Writer {
    async fn execute(&self, command: Command) -> Result<DeviceEvent, DeviceFault> {
        match command {
            Command::Create { segment, size } => self.create(segment, size).await,
            Command::Reopen { segment, size } => self.reopen(segment, size).await,
            Command::Write { segment, offset, data } => self.write(segment, offset, data).await,
            Command::Remove { segment } => self.remove(segment).await,
        }
    }

    async fn create(&self, segment: u64, size: u64) -> Result<DeviceEvent, DeviceFault> {
        match self.make_segment(segment, size).await {
            Ok(file) => {
                self.files.borrow_mut().insert(segment, Rc::new(file));
                Ok(DeviceEvent::Created { segment })
            }
            Err(error) if is_no_space(&error) => {
                self.remove(segment).await?;
                Ok(DeviceEvent::NoSpace { segment })
            }
            Err(source) => Err(fault(Operation::Create, segment, 0, source)),
        }
    }

    /// What a predecessor prepared; unless it has holes, which a full disk could not fill.
    async fn reopen(&self, segment: u64, size: u64) -> Result<DeviceEvent, DeviceFault> {
        let path = segment_path(&self.log_path, segment);
        let failed = |source| fault(Operation::Create, segment, 0, source);
        let allocated = std::fs::metadata(&path).map_err(failed)?.blocks() * 512;
        if allocated < size {
            return self.create(segment, size).await;
        }
        let file = self.open_for_commits(&path).map_err(failed)?;
        self.files.borrow_mut().insert(segment, Rc::new(file));
        Ok(DeviceEvent::Created { segment })
    }

    /// Allocated, written with zeros, synced, and its name synced, in this order.
    async fn make_segment(&self, segment: u64, size: u64) -> io::Result<tokio_uring::fs::File> {
        let path = segment_path(&self.log_path, segment);
        let direct = if self.direct { sys::OPEN_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).custom_flags(direct);
        let file = options.open(&path)?;
        let sizing = file.try_clone()?;
        let file = tokio_uring::fs::File::from_std(file);
        // More than is needed, so that a full disk stops the log while the index can still write.
        match file.fallocate(0, size + index_reserve(size), 0).await {
            // Then the zeros find out whether there is space.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            result => result?,
        }
        sizing.set_len(size)?;
        drop(sizing);
        let mut zeros = AlignedBuffer::new(ZERO_SIZE);
        let mut offset = 0;
        while offset < size {
            if size - offset < zeros.len() as u64 {
                zeros = AlignedBuffer::new((size - offset) as usize);
            }
            let (result, buffer) = file.write_all_at(zeros, offset).await;
            result?;
            zeros = buffer;
            if !self.files.borrow().is_empty() {
                tokio::time::sleep(ZERO_PAUSE).await;
            }
            offset += zeros.len() as u64;
        }
        file.sync_all().await?;
        file.close().await?;
        let folder = tokio_uring::fs::File::from_std(File::open(&self.log_path)?);
        folder.sync_all().await?;
        self.open_for_commits(&path)
    }

    fn open_for_commits(&self, path: &Path) -> io::Result<tokio_uring::fs::File> {
        let direct = if self.direct { sys::OPEN_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(direct | sys::OPEN_DATA_SYNC);
        let file = options.open(path)?;
        if !sys::try_lock(&file)? {
            return Err(io::Error::other("the new segment is locked by another process"));
        }
        Ok(tokio_uring::fs::File::from_std(file))
    }

    async fn write(
        &self,
        segment: u64,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<DeviceEvent, DeviceFault> {
        let file = self.files.borrow().get(&segment).cloned();
        let Some(file) = file else {
            let source = io::Error::other("the segment is not open");
            return Err(fault(Operation::Write, segment, offset, source));
        };
        let mut buffer = AlignedBuffer::new(data.len());
        buffer[..data.len()].copy_from_slice(&data);
        let started = Instant::now();
        let (result, _) = file.write_all_at(buffer, offset).await;
        let took_us = started.elapsed().as_micros() as u64;
        result.map_err(|source| fault(Operation::Write, segment, offset, source))?;
        // One write is under way at a time, in ever higher segments: the ones below are finished.
        self.files.borrow_mut().retain(|&number, _| number >= segment);
        Ok(DeviceEvent::Written { segment, offset, took_us })
    }

    async fn remove(&self, segment: u64) -> Result<DeviceEvent, DeviceFault> {
        self.files.borrow_mut().remove(&segment);
        match std::fs::remove_file(segment_path(&self.log_path, segment)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(fault(Operation::Remove, segment, 0, error))
            }
            _ => Ok(DeviceEvent::Removed { segment }),
        }
    }
}

/// Bytes that stay free when a segment of `size` bytes is made.
fn index_reserve(size: u64) -> u64 {
    4 * size
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn fault(operation: Operation, segment: u64, offset: u64, source: io::Error) -> DeviceFault {
    DeviceFault { operation, segment, offset, source }
}

/// Whether files in this folder can be written past the page cache; found out by doing it, since
/// some file systems refuse at the opening and some at the write.
fn probe_direct(folder: &Path) -> io::Result<bool> {
    let path = folder.join("probe");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    options.custom_flags(sys::OPEN_DIRECT | sys::OPEN_DATA_SYNC);
    let block = AlignedBuffer::new(BLOCK_SIZE);
    let result = options.open(&path).and_then(|file| file.write_all_at(&block, 0));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(false),
        // A full disk must not keep the store from serving reads; it will say so when it writes.
        Err(error) if is_no_space(&error) => Ok(true),
        Err(error) => Err(error),
    }
}
