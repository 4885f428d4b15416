//! The real disk, the real index and their threads, against the same expectations as the twins.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::harness::*;
use crate::clock::Now;
use crate::link::message::{FromStore, ToStore};
use crate::link::wire::Wire;
use crate::link::{LinkEvent, PeerId};
use crate::store::directory::segment_path;
use crate::store::fjall_index::FjallIndex;
use crate::store::index::{Change, Index, Keyspace, MemoryIndex};
use crate::store::{DiskStore, Options, StoreFault, open};
use crate::sys::Waker;

struct Real {
    store: DiskStore,
    outlet: Recorder,
    number: u64,
}

impl Real {
    fn open(directory: &Path) -> Result<Real, StoreFault> {
        let options = Options {
            directory: directory.to_path_buf(),
            segment_size: 256 * 1024,
            incarnation: 4,
            new_log_id: [5; 16],
        };
        let waker = Waker::new().expect("an event descriptor");
        let mut store = open(&options, &waker)?;
        let mut outlet = Recorder::default();
        let (name, peer) = ("sequencer".into(), PeerId(1));
        let event = LinkEvent::Began { peer, name, incarnation: 1, durable_seen: 0 };
        store.handle(Now::read(), event, &mut outlet).expect("a new session");
        Ok(Real { store, outlet, number: 0 })
    }

    fn ask(&mut self, request: &ToStore) -> u64 {
        self.number += 1;
        let (number, entry) = (self.number, request.to_bytes().into());
        let event = LinkEvent::Entry { peer: PeerId(1), number, entry };
        self.store.handle(Now::read(), event, &mut self.outlet).expect("a good request");
        number
    }

    fn wait(&mut self, number: u64) -> FromStore {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.store.poll(Now::read(), &mut self.outlet).expect("the disk works");
            let found = self.outlet.answers.iter().find(|answer| answer.to() == number);
            if let Some(answer) = found {
                return answer.clone();
            }
            assert!(Instant::now() < deadline, "no answer to {number}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn get(&mut self, request: &ToStore) -> FromStore {
        let number = self.ask(request);
        self.wait(number)
    }

    fn acquire(&mut self) -> (u64, u64) {
        loop {
            match self.get(&ToStore::Acquire { incarnation: 9 }) {
                FromStore::Granted { epoch, next_lsn, .. } => return (epoch, next_lsn),
                // A busy machine takes long to make the first segment.
                FromStore::Unavailable { .. } => {}
                other => panic!("not granted: {other:?}"),
            }
        }
    }

    /// Appends messages `first..first + count` of one conversation, one commit each.
    fn fill(&mut self, epoch: u64, first_lsn: u64, first: u64, count: u64) {
        let numbers: Vec<_> = (0..count)
            .map(|index| {
                let records = [message_record("g", first + index, 5_000)];
                self.ask(&append(epoch, first_lsn + index, &records))
            })
            .collect();
        for number in numbers {
            assert!(matches!(self.wait(number), FromStore::Durable { .. }));
        }
    }

    fn expect_messages(&mut self, count: u64) {
        let last = u64::MAX;
        let range = ToStore::Range { convo: "g".into(), first: 1, last, size_max: 1 << 22 };
        let messages = (1..=count).map(|seq| message("g", seq, 5_000)).collect();
        assert_eq!(self.get(&range), FromStore::Messages { to: self.number, messages });
        assert_eq!(self.store.metrics().unaccounted, 0);
    }
}

#[test]
fn a_log_on_disk_is_written_rolled_and_opened_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut real = Real::open(folder.path()).expect("an empty folder opens");
    let (epoch, first_lsn) = real.acquire();
    real.fill(epoch, first_lsn, 1, 200);
    real.expect_messages(200);
    let metrics = real.store.metrics();
    assert!(metrics.write.count() >= 200 && metrics.commit.count() == metrics.append.count());
    drop(real);

    let mut real = Real::open(folder.path()).expect("it opens again");
    assert_eq!(real.store.metrics().records_replayed, 0, "a clean end leaves a whole index");
    assert_eq!(real.acquire(), (epoch + 1, first_lsn + 201));
    real.fill(epoch + 1, first_lsn + 201, 201, 3);
    real.expect_messages(203);
    drop(real);

    std::fs::remove_dir_all(folder.path().join("index")).expect("the index is removed");
    let mut real = Real::open(folder.path()).expect("it opens without an index");
    assert_eq!(real.store.metrics().records_replayed, 205);
    real.expect_messages(203);
    match real.get(&ToStore::ReadLog { first_lsn: 100, size_max: 20_000 }) {
        FromStore::Records { records, count, .. } => {
            assert!((2..5).contains(&count));
            assert_eq!(decode(records)[0], message_record("g", 99, 5_000));
        }
        other => panic!("no records: {other:?}"),
    }
}

#[test]
fn a_broken_index_is_rebuilt_and_a_broken_log_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut real = Real::open(folder.path()).expect("an empty folder opens");
    let (epoch, first_lsn) = real.acquire();
    real.fill(epoch, first_lsn, 1, 60);
    drop(real);
    let index = folder.path().join("index");
    for entry in std::fs::read_dir(&index).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "lock") {
            std::fs::write(&path, b"nonsense").expect("written");
        }
    }
    let mut real = Real::open(folder.path()).expect("the index is rebuilt");
    real.expect_messages(60);
    drop(real);

    let path = segment_path(&folder.path().join("log"), 1);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[3 * 4096 + 100] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    std::fs::remove_dir_all(&index).expect("the index is removed");
    let fault = Real::open(folder.path()).err().expect("it refuses to start");
    assert!(matches!(fault, StoreFault::Corrupt { segment: 1, offset: 8192, .. }), "{fault}");
}

#[test]
fn a_missing_index_folder_does_not_hide_a_second_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let real = Real::open(folder.path()).expect("an empty folder opens");
    let lock = std::fs::File::open(folder.path().join("LOCK")).expect("there");
    assert!(!crate::sys::try_lock(&lock).expect("asked"));
    drop(real);
    assert!(crate::sys::try_lock(&lock).expect("asked"));
}

/// Set for the child of `what_a_killed_process_was_told_is_durable`: the folder to write in.
const CHILD_FOLDER: &str = "ALDIS_TEST_STORE_FOLDER";

/// Not a test of its own: writes until it is killed, saying what is durable.
#[test]
fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        return;
    };
    let mut real = Real::open(Path::new(&folder)).expect("the folder opens");
    let (epoch, mut next_lsn) = real.acquire();
    let mut seq = messages_of(&mut real).len() as u64;
    loop {
        let count = 1 + seq % 5;
        let records: Vec<_> =
            (1..=count).map(|index| message_record("g", seq + index, 5_000)).collect();
        let number = real.ask(&append(epoch, next_lsn, &records));
        assert!(matches!(real.wait(number), FromStore::Durable { .. }));
        (seq, next_lsn) = (seq + count, next_lsn + count);
        println!("\ndurable {seq}");
    }
}

fn messages_of(real: &mut Real) -> Vec<u64> {
    let mut seqs = Vec::new();
    loop {
        let first = seqs.len() as u64 + 1;
        let last = u64::MAX;
        let range = ToStore::Range { convo: "g".into(), first, last, size_max: 1 << 20 };
        match real.get(&range) {
            FromStore::Messages { messages, .. } if messages.is_empty() => return seqs,
            FromStore::Messages { messages, .. } => {
                for found in messages {
                    assert_eq!(found, message("g", seqs.len() as u64 + 1, 5_000));
                    seqs.push(found.seq);
                }
            }
            other => panic!("no messages: {other:?}"),
        }
    }
}

#[test]
fn what_a_killed_process_was_told_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "--nocapture", "store::tests::disk::child_that_is_killed"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let output = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let durable = |line: String| line.strip_prefix("durable ")?.parse::<u64>().ok();
        let first = lines.by_ref().find_map(durable).expect("it says what is durable");
        std::thread::sleep(Duration::from_millis(20 + 60 * round));
        child.kill().expect("killed");
        // The successor does not wait for the end of the child: its locks are what it waits for.
        let mut real = Real::open(folder.path()).expect("it opens");
        let last = lines.filter_map(durable).last().unwrap_or(first);
        child.wait().expect("gone");
        let count = messages_of(&mut real).len() as u64;
        assert!(count >= last, "{last} were durable, {count} are there");
    }
}

fn change() -> impl Strategy<Value = Change> {
    let keyspace = prop_oneof![Just(Keyspace::Heads), Just(Keyspace::Dedup), Just(Keyspace::Edges)];
    let key = proptest::collection::vec(0..3u8, 0..4);
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4));
    (keyspace, key, value).prop_map(|(keyspace, key, value)| Change { keyspace, key, value })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_index_on_disk_agrees_with_its_twin(
        batches in proptest::collection::vec(proptest::collection::vec(change(), 0..8), 0..20),
        reopen_at in 0..20usize,
        probes in proptest::collection::vec(proptest::collection::vec(0..3u8, 0..4), 20),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut real = FjallIndex::open(folder.path()).expect("it opens");
        let mut twin = MemoryIndex::default();
        for (number, batch) in batches.into_iter().enumerate() {
            if number == reopen_at {
                real.persist().expect("persisted");
                drop(real);
                real = FjallIndex::open(folder.path()).expect("it opens again");
            }
            real.apply(batch.clone()).expect("applied");
            twin.apply(batch).expect("applied");
        }
        for pair in probes.windows(2) {
            for keyspace in [Keyspace::Heads, Keyspace::Dedup, Keyspace::Edges] {
                let found = real.get(keyspace, &pair[0]).expect("read");
                prop_assert_eq!(found, twin.get(keyspace, &pair[0]).expect("read"));
                let first: Vec<u8> = pair[0].iter().chain(&pair[1]).copied().collect();
                let found = rows(&real, keyspace, &pair[0], &first);
                prop_assert_eq!(found, rows(&twin, keyspace, &pair[0], &first));
            }
        }
    }
}

fn rows(index: &impl Index, at: Keyspace, prefix: &[u8], first: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        found.len() < 5
    };
    index.scan(at, prefix, first, &mut visit).expect("read");
    found
}
