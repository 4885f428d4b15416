//! A crash between any two steps of the disk, again and again on one log: whatever was answered
//! `Durable` is there afterwards, in its place, and nothing else got in between.

use proptest::prelude::*;

use super::harness::*;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::Record;
use crate::simulation::disk::SimDisk;
use crate::store::index::MemoryIndex;

/// One life of the store: what the sequencer sends, and when it ends.
#[derive(Clone, Debug)]
struct Life {
    /// Records per batch and bytes per message.
    batches: Vec<(usize, usize)>,
    steps: usize,
    power: bool,
    kept: usize,
}

fn life() -> impl Strategy<Value = Life> {
    let batch = (1..5usize, prop_oneof![0..50usize, 3_900..4_200usize, 5_000..7_000usize]);
    let batches = proptest::collection::vec(batch, 1..10);
    (batches, 0..60usize, any::<bool>(), 0..20usize)
        .prop_map(|(batches, steps, power, kept)| Life { batches, steps, power, kept })
}

/// What an outside witness knows.
#[derive(Default)]
struct Witness {
    /// Accepted: these are in the log whatever happens.
    durable: Vec<Record>,
    epoch: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn crash_at_every_step(seed in any::<u64>(), lives in proptest::collection::vec(life(), 1..8)) {
        let disk = SimDisk::new(seed);
        let index = MemoryIndex::default();
        let mut witness = Witness::default();
        for (number, life) in lives.iter().enumerate() {
            let harness = Harness::on(disk.clone(), index.clone(), number as u64 + 1);
            let mut harness = harness.expect("a crash is no corruption");
            check(&mut harness, &mut witness);
            live(&mut harness, life, &mut witness);
            drop(harness);
            if life.power {
                disk.cut_power();
                index.crash(life.kept);
            } else {
                disk.kill();
            }
        }
        let mut harness = Harness::on(disk, index, 99).expect("a crash is no corruption");
        check(&mut harness, &mut witness);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever bit rots, wherever the index stands: wrong bytes are never served, and what is
    /// missing is noticed before a peer that has seen it is served.
    #[test]
    fn rot_is_never_served(place in any::<prop::sample::Index>(), kept in 0..24usize) {
        let mut harness = Harness::new(1);
        let (epoch, first) = harness.acquire();
        for index in 0..20 {
            harness.get(&append(epoch, first + index, &[message_record("g", index + 1, 3_000)]));
        }
        let (expected, end) = (harness.read_all(), harness.store.known_durable());
        let (disk, index) = (harness.disk.clone(), harness.index.clone());
        let segments = disk.numbers();
        let at = place.index(segments.len() * SEGMENT_SIZE as usize);
        disk.corrupt(segments[at / SEGMENT_SIZE as usize], (at % SEGMENT_SIZE as usize) as u64);
        drop(harness);
        index.crash(kept);
        let Ok(mut harness) = Harness::on(disk, index, 2) else {
            return Ok(());
        };
        if harness.begin(end).is_err() {
            return Ok(());
        }
        for lsn in 1..=end {
            match harness.look(&ToStore::ReadLog { first_lsn: lsn, size_max: 0 }) {
                FromStore::Records { records, .. } => {
                    prop_assert_eq!(&decode(records)[0], &expected[lsn as usize - 1]);
                }
                FromStore::Unavailable { .. } => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
        for seq in 1..=20 {
            let (convo, first, last) = ("g".into(), seq, seq);
            match harness.look(&ToStore::Range { convo, first, last, size_max: 0 }) {
                FromStore::Messages { messages, .. } => {
                    prop_assert_eq!(messages, vec![message("g", seq, 3_000)]);
                }
                FromStore::Unavailable { .. } => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

/// The log begins with everything accepted; what else is there has become durable unanswered.
fn check(harness: &mut Harness, witness: &mut Witness) {
    harness.begin(witness.durable.len() as u64).expect("nothing accepted is missing");
    let records = harness.read_all();
    assert_eq!(records[..witness.durable.len()], witness.durable[..]);
    assert_eq!(records.len() as u64, harness.store.known_durable());
    let messages: Vec<_> = records.iter().filter_map(message_of).cloned().collect();
    let range = ToStore::Range { convo: "g".into(), first: 1, last: u64::MAX, size_max: 1 << 22 };
    let answer = harness.look(&range);
    assert_eq!(answer, FromStore::Messages { to: harness.number, messages });
    assert_eq!(harness.store.metrics().unaccounted, 0);
    witness.durable = records;
}

fn message_of(record: &Record) -> Option<&crate::link::record::Message> {
    match record {
        Record::Message { message } => Some(message),
        _ => None,
    }
}

/// Acquires, then sends all batches at once, and takes answers until the steps are used up.
fn live(harness: &mut Harness, life: &Life, witness: &mut Witness) {
    let mut steps = life.steps;
    let grant = harness.ask(&ToStore::Acquire { incarnation: 3 });
    let Some(FromStore::Granted { epoch, next_lsn, .. }) = wait(harness, grant, &mut steps) else {
        return;
    };
    assert!(epoch > witness.epoch, "an epoch is never granted twice");
    witness.epoch = epoch;
    assert_eq!(next_lsn, witness.durable.len() as u64 + 2);
    witness.durable.push(Record::Epoch { epoch, incarnation: 3 });
    let mut next_lsn = next_lsn;
    let mut seq = witness.durable.iter().filter_map(message_of).count() as u64;
    let mut sent = Vec::new();
    for &(count, size) in &life.batches {
        let count = if size > 1_000 { 1 } else { count };
        let records: Vec<_> =
            (1..=count as u64).map(|index| message_record("g", seq + index, size)).collect();
        seq += count as u64;
        let number = harness.ask(&append(epoch, next_lsn, &records));
        next_lsn += count as u64;
        sent.push((number, records));
    }
    for (number, records) in sent {
        match wait(harness, number, &mut steps) {
            Some(FromStore::Durable { .. }) => witness.durable.extend(records),
            None => return,
            other => panic!("not durable: {other:?}"),
        }
    }
}

fn wait(harness: &mut Harness, number: u64, steps: &mut usize) -> Option<FromStore> {
    loop {
        harness.poll();
        if let Some(answer) = harness.answer(number) {
            return Some(answer);
        }
        if *steps == 0 || !harness.disk.step() {
            return None;
        }
        *steps -= 1;
    }
}
