//! Opening what a crash, a bad sector or an older log has left.

use super::harness::*;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::Record;
use crate::link::wire::Wire;
use crate::simulation::disk::SimDisk;
use crate::store::StoreFault;
use crate::store::index::MemoryIndex;
use crate::store::log_format::{BLOCK_SIZE, CommitHeader, LogId, encode_commit, peek_commit};

/// A log of an epoch and `count` messages, one commit each.
fn filled(seed: u64, count: u64) -> Harness {
    let mut harness = Harness::new(seed);
    let (epoch, first) = harness.acquire();
    for index in 0..count {
        harness.get(&append(epoch, first + index, &[message_record("g", index + 1, 100)]));
    }
    harness
}

fn corrupt_place(fault: StoreFault) -> (u64, u64, u64, u64) {
    match fault {
        StoreFault::Corrupt { segment, offset, expected_lsn, known_durable } => {
            (segment, offset, expected_lsn, known_durable)
        }
        other => panic!("not corrupt: {other}"),
    }
}

fn refuse(disk: &SimDisk, index: &MemoryIndex) -> (u64, u64, u64, u64) {
    corrupt_place(open(disk, index, 9).err().expect("it refuses to start"))
}

#[test]
fn torn_commit_is_cut() {
    let mut cut_count = 0;
    for seed in 0..60 {
        let mut harness = filled(seed, 2);
        let (first, last) = (message_record("g", 3, 6_000), message_record("g", 4, 6_000));
        harness.ask(&append(1, 4, &[first.clone(), last.clone()]));
        let harness = harness.restart(usize::MAX, 2).expect("a torn end is no corruption");
        let mut harness = harness.restart(0, 3).expect("nor when it is opened again");
        let records = harness.read_all();
        match records.len() {
            3 => cut_count += 1,
            5 => assert_eq!(records[3..], [first, last]),
            count => panic!("{count} records: half a batch"),
        }
        assert_eq!(harness.acquire().1, records.len() as u64 + 2);
    }
    assert!((10..60).contains(&cut_count), "{cut_count} were cut");
}

#[test]
fn the_index_learns_nothing_that_a_power_cut_takes_back() {
    for seed in 0..60 {
        let mut harness = filled(seed, 2);
        harness.ask(&append(1, 4, &[message_record("g", 3, 6_000)]));
        let (disk, index) = (harness.disk.clone(), harness.index.clone());
        drop(harness);
        disk.kill();
        disk.fail_flush(true);
        assert!(open(&disk, &index, 2).is_err());
        disk.fail_flush(false);
        disk.cut_power();
        index.crash(usize::MAX);
        assert!(open(&disk, &index, 3).is_ok());
    }
}

#[test]
fn bad_sector_in_the_middle_refuses_to_start() {
    let harness = filled(1, 4);
    let (disk, index) = (harness.disk.clone(), MemoryIndex::default());
    // Header block, epoch, then the messages; position 3 is in the fourth block.
    disk.corrupt(1, 3 * 4096 + 20);
    assert_eq!(refuse(&disk, &index), (1, 3 * 4096, 3, 4));
    let text = open(&disk, &index, 9).err().expect("still").to_string();
    assert!(text.contains("segment 1 at offset 12288"), "{text}");
}

#[test]
fn bad_sector_before_a_later_segment_refuses_to_start() {
    let harness = filled(2, 12);
    let (disk, index) = (harness.disk.clone(), MemoryIndex::default());
    // The last commit of the first segment: nothing follows it there.
    disk.corrupt(1, 7 * 4096 + 20);
    assert_eq!(refuse(&disk, &index), (1, 7 * 4096, 7, 7));
}

#[test]
fn bad_header_of_the_last_segment_refuses_to_start() {
    let harness = filled(3, 9);
    let (disk, index) = (harness.disk.clone(), MemoryIndex::default());
    disk.corrupt(2, 20);
    let (segment, offset, expected_lsn, _) = refuse(&disk, &index);
    assert_eq!((segment, offset, expected_lsn), (2, 0, 8));
}

#[test]
fn bad_header_below_the_index_refuses_to_start_and_removes_nothing() {
    let harness = filled(12, 30);
    let (disk, index) = (harness.disk.clone(), harness.index.clone());
    disk.corrupt(2, 20);
    assert_eq!(refuse(&disk, &index), (2, 0, 8, 14));
    disk.settle();
    assert!(disk.content(2).is_some());
}

#[test]
fn what_the_index_has_applied_may_not_be_missing() {
    let harness = filled(4, 3);
    let (disk, index) = (harness.disk.clone(), harness.index.clone());
    // The very last commit: only the index can know that it was durable.
    disk.corrupt(1, 4 * 4096 + 20);
    assert_eq!(refuse(&disk, &index), (1, 4 * 4096, 4, 4));
    assert!(open(&disk, &MemoryIndex::default(), 9).is_ok());
}

#[test]
fn a_missing_first_segment_is_named() {
    let harness = filled(5, 12);
    let (disk, index) = (harness.disk.clone(), MemoryIndex::default());
    disk.lose(1);
    let fault = open(&disk, &index, 9).err().expect("it refuses to start");
    assert!(matches!(fault, StoreFault::BeginningMissing { first_lsn: 8, applied_lsn: 0, .. }));
}

#[test]
fn recycled_segment_is_told_apart() {
    let harness = filled(6, 2);
    let disk = harness.disk.clone();
    let content = disk.content(1).expect("the first segment");
    let own = peek_commit(&content[3 * BLOCK_SIZE..]).expect("the last commit");
    let foreign = LogId { high: 1, low: 1 };
    for (log_id, first_lsn, known_durable) in
        [(foreign, 4, 3), (foreign, 90, 89), (own.log_id, 1, 0), (own.log_id, 3, 2)]
    {
        let records = message_record("old", 1, 10).to_bytes();
        let payload_size = records.len() as u32;
        let header = CommitHeader { log_id, first_lsn, known_durable, payload_size, ..own };
        let mut bytes = Vec::new();
        encode_commit(&header, &records, &mut bytes);
        disk.place(1, 4 * BLOCK_SIZE as u64, &bytes);
        disk.place(1, 6 * BLOCK_SIZE as u64, &bytes);
        disk.place(2, BLOCK_SIZE as u64, &bytes);
        let again = SimDisk::new(1);
        copy(&disk, &again);
        let mut opened =
            Harness::on(again, MemoryIndex::default(), 2).expect("old content is no harm");
        assert_eq!(opened.read_all().len(), 3, "{header:?}");
    }
}

#[test]
fn a_commit_that_was_cut_stays_cut() {
    let late = filled(11, 3).disk.content(1).expect("the first segment");
    let harness = filled(11, 2);
    let mut harness = harness.restart(usize::MAX, 2).expect("it opens");
    let (epoch, next_lsn) = harness.acquire();
    harness.get(&append(epoch, next_lsn, &[message_record("g", 3, 77)]));
    let before = harness.read_all();
    // Position 4 of the first life appears where it would have been, intact.
    let place = 4 * BLOCK_SIZE;
    harness.disk.place(1, place as u64, &late[place..place + BLOCK_SIZE]);
    let disk = harness.disk.clone();
    let mut harness = Harness::on(disk, MemoryIndex::default(), 3).expect("it opens");
    assert_eq!(harness.read_all(), before);
}

fn copy(from: &SimDisk, to: &SimDisk) {
    use crate::store::device::LogDevice;
    for number in from.numbers() {
        let content = from.content(number).expect("listed");
        to.clone().create(number, content.len() as u64);
        to.settle();
        to.place(number, 0, &content);
    }
}

#[test]
fn index_missing_is_rebuilt() {
    let mut harness = filled(7, 30);
    let before = harness.read_all();
    let disk = harness.disk.clone();
    drop(harness);
    let mut harness = Harness::on(disk, MemoryIndex::default(), 2).expect("it opens");
    assert_eq!(harness.store.metrics().records_replayed, 31);
    assert_eq!(harness.read_all(), before);
    all_messages_are_there(&mut harness, 30);
}

#[test]
fn index_behind_catches_up() {
    for kept in [0, 1, 7, 25, 31] {
        let harness = filled(8, 30);
        let mut harness = harness.restart(kept, 2).expect("it opens");
        assert_eq!(harness.store.metrics().records_replayed, 31 - kept as u64);
        all_messages_are_there(&mut harness, 30);
        assert_eq!(harness.acquire(), (2, 33));
    }
}

fn all_messages_are_there(harness: &mut Harness, count: u64) {
    let range = ToStore::Range { convo: "g".into(), first: 1, last: u64::MAX, size_max: 1 << 20 };
    let messages = (1..=count).map(|seq| message("g", seq, 100)).collect();
    assert_eq!(harness.get(&range), FromStore::Messages { to: harness.number, messages });
    assert_eq!(harness.store.metrics().unaccounted, 0);
}

#[test]
fn damage_below_the_index_is_found_at_the_next_start() {
    let harness = filled(9, 40);
    let (disk, index) = (harness.disk.clone(), harness.index.clone());
    drop(harness);
    // The index has long covered the first segment: nothing of it would be replayed.
    disk.corrupt(1, 3 * 4096 + 20);
    assert_eq!(refuse(&disk, &index), (1, 3 * 4096, 3, 7));
}

#[test]
fn a_missing_segment_below_the_index_is_found_at_the_next_start() {
    let harness = filled(12, 40);
    let (disk, index) = (harness.disk.clone(), harness.index.clone());
    drop(harness);
    disk.lose(2);
    let (segment, offset, expected_lsn, _) = refuse(&disk, &index);
    assert_eq!((segment, offset, expected_lsn), (1, 8 * 4096, 8));
}

#[test]
fn prepared_segments_that_were_never_used_are_removed() {
    let mut harness = filled(10, 2);
    for life in 2..6 {
        harness = harness.restart(0, life).expect("it opens");
        harness.settle();
        assert!(harness.disk.numbers().len() <= 2, "{:?}", harness.disk.numbers());
    }
    assert_eq!(harness.read_all()[0], Record::Epoch { epoch: 1, incarnation: 9 });
}
