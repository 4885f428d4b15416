//! The index worker on a thread of its own, between two bounded queues.

use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use super::device::LogReader;
use super::index::Index;
use super::reader::{Done, IndexReader, IndexWorker, Task};
use super::{Batch, StoreFault};
use crate::sys::Waker;

/// Tasks in each queue.
const QUEUE_COUNT_MAX: usize = 4096;
/// Bytes of records applied together, so that a read does not wait long behind them.
const GATHER_SIZE_MAX: usize = 512 * 1024;

/// The worker's two queues. Dropping them ends it after a last checkpoint.
pub struct ThreadedIndex {
    tasks: Option<Sender<Task>>,
    done: Receiver<Result<Done, StoreFault>>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadedIndex {
    /// Starts the thread. `waker` is woken when something has been done.
    pub fn start<I, R>(reader: IndexReader<I, R>, waker: Waker) -> std::io::Result<ThreadedIndex>
    where
        I: Index + Send + 'static,
        R: LogReader + Send + 'static,
    {
        let (tasks, task_queue) = bounded(QUEUE_COUNT_MAX);
        let (done_queue, done) = bounded(QUEUE_COUNT_MAX);
        let thread = std::thread::Builder::new()
            .name("store-index".into())
            .spawn(move || run(reader, &task_queue, &done_queue, &waker))?;
        Ok(ThreadedIndex { tasks: Some(tasks), done, thread: Some(thread) })
    }
}

impl Drop for ThreadedIndex {
    fn drop(&mut self) {
        self.tasks = None;
        // The worker may be waiting for room in the queue that nobody will read any more.
        while self.done.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl IndexWorker for ThreadedIndex {
    fn submit(&mut self, task: Task) -> Result<(), Task> {
        let Some(tasks) = &self.tasks else {
            return Err(task);
        };
        match tasks.try_send(task) {
            Ok(()) => Ok(()),
            // A thread that is gone is reported by `poll`.
            Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) => Err(task),
        }
    }

    fn poll(&mut self) -> Result<Option<Done>, StoreFault> {
        match self.done.try_recv() {
            Ok(done) => done.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(StoreFault::ThreadEnded("store-index")),
        }
    }
}

fn run<I: Index, R: LogReader>(
    mut reader: IndexReader<I, R>,
    tasks: &Receiver<Task>,
    done: &Sender<Result<Done, StoreFault>>,
    waker: &Waker,
) {
    let mut following = None;
    while let Some(task) = next(&mut reader, tasks, following.take()) {
        let result = task.and_then(|task| match task {
            Task::Apply(batch) => {
                let batches = gather(batch, tasks, &mut following);
                reader.apply_tasks(&batches)
            }
            other => reader.run(other),
        });
        let failed = result.is_err();
        let sent = done.send(result).is_ok();
        waker.wake();
        if failed || !sent {
            return;
        }
    }
    if let Err(fault) = reader.checkpoint() {
        tracing::error!(%fault, "the last checkpoint of the index failed; it will be caught up");
    }
}

/// The batches that wait right behind this one, to be applied together: an index that lags does so
/// in fewer and larger steps. The first task that is something else is left in `following`.
fn gather(first: Batch, tasks: &Receiver<Task>, following: &mut Option<Task>) -> Vec<Batch> {
    let mut size = first.records.len();
    let mut batches = vec![first];
    while size < GATHER_SIZE_MAX {
        match tasks.try_recv() {
            Ok(Task::Apply(batch)) => {
                size += batch.records.len();
                batches.push(batch);
            }
            Ok(other) => {
                *following = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    batches
}

/// The next task. Before waiting for one, what was applied is handed to the kernel.
fn next<I: Index, R: LogReader>(
    reader: &mut IndexReader<I, R>,
    tasks: &Receiver<Task>,
    following: Option<Task>,
) -> Option<Result<Task, StoreFault>> {
    if let Some(task) = following {
        return Some(Ok(task));
    }
    match tasks.try_recv() {
        Ok(task) => Some(Ok(task)),
        Err(TryRecvError::Disconnected) => None,
        Err(TryRecvError::Empty) => match reader.settle() {
            Ok(()) => tasks.recv().ok().map(Ok),
            Err(fault) => Some(Err(fault)),
        },
    }
}
