//! Whatever is broken in a log: after a repair it opens, what is intact is where it was, and
//! what is not there any more was named before anything changed.

use std::io;

use proptest::prelude::*;

use super::harness::*;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::Record;
use crate::simulation::disk::SimDisk;
use crate::store::audit::{Finding, audit};
use crate::store::device::LogDevice;
use crate::store::index::{Index, MemoryIndex};
use crate::store::positions::Place;
use crate::store::repair::patch::Patch;
use crate::store::repair::{Findings, examine, mend};

/// Files of a simulated disk; remembers what was kept.
struct SimPatch {
    disk: SimDisk,
    kept: Vec<u64>,
}

impl Patch for SimPatch {
    fn keep(&mut self, segment: u64, _: u64) -> io::Result<()> {
        self.kept.push(segment);
        Ok(())
    }

    fn put(&mut self, place: Place, bytes: &[u8]) -> io::Result<()> {
        assert!(self.kept.contains(&place.segment) || self.disk.content(place.segment).is_none());
        if self.disk.content(place.segment).is_none() {
            self.kept.push(place.segment);
        }
        self.disk.place(place.segment, place.offset, bytes);
        Ok(())
    }

    fn remove(&mut self, segment: u64, _: bool) -> io::Result<()> {
        self.disk.lose(segment);
        Ok(())
    }
}

/// What a healthy log held.
struct Before {
    disk: SimDisk,
    index: MemoryIndex,
    records: Vec<Record>,
    epoch: u64,
}

/// Two lives of messages in commits of several sizes.
fn filled(seed: u64) -> Before {
    let mut harness = Harness::new(seed);
    let mut seq = 0;
    for life in 0..2 {
        if life == 1 {
            harness = harness.restart(usize::MAX, 2).expect("a crash is no corruption");
        }
        let (epoch, mut next_lsn) = harness.acquire();
        for commit in 0..8u64 {
            let count = 1 + commit % 3;
            let records: Vec<_> = (1..=count)
                .map(|index| message_record("g", seq + index, 900 * (1 + commit as usize % 4)))
                .collect();
            harness.get(&append(epoch, next_lsn, &records));
            (seq, next_lsn) = (seq + count, next_lsn + count);
        }
    }
    let records = harness.read_all();
    let epoch = harness.store.epoch();
    let Harness { disk, mut index, .. } = harness;
    index.persist().expect("in memory");
    Before { disk, index, records, epoch }
}

fn repair(before: &Before, with_index: bool) -> Findings {
    let mut disk = before.disk.clone();
    let segments = disk.segments().expect("listed");
    let mut index = before.index.clone();
    let usable = with_index.then_some(&index);
    let findings = examine(&mut disk, &segments, usable).expect("there is a plan");
    let mut patch = SimPatch { disk: disk.clone(), kept: Vec::new() };
    let stale = mend(&mut disk, &segments, &findings, usable, &mut patch).expect("it is written");
    index.apply(stale).expect("in memory");
    index.persist().expect("in memory");
    findings
}

/// The log as a reader sees it, against what it was and what was said to be lost.
fn check(before: &Before, findings: &Findings, harness: &mut Harness) {
    let found = harness.read_all();
    assert!(found.len() as u64 + 1 == findings.plan.next_lsn);
    for (index, was) in before.records.iter().enumerate() {
        let lsn = index as u64 + 1;
        let lost = |loss: &&crate::store::repair::plan::Loss| {
            (loss.first_lsn..=loss.last_lsn()).contains(&lsn)
        };
        let is_lost = findings.plan.losses.iter().any(|loss| lost(&loss));
        match found.get(index) {
            Some(Record::Lost { .. }) => assert!(is_lost, "position {lsn} was lost in silence"),
            Some(record) => assert!(!is_lost && record == was, "position {lsn}"),
            // Behind the end of what the index knew nothing can be missed.
            None => assert!(lsn >= findings.plan.next_lsn),
        }
    }
}

/// An audit finds nothing but what a repair does not look at: padding, and what is above the end,
/// which was not known to be durable.
fn check_accounts(harness: &Harness) -> Result<(), TestCaseError> {
    let mut disk = harness.disk.clone();
    let segments = disk.segments().expect("listed");
    let audited = audit(&mut disk, &segments, &harness.index, false, &mut |_| {});
    let report = audited.expect("memory can be read");
    let is_left = |finding: &Finding| {
        finding.what.contains("padding") || finding.lsn > Some(report.log_end_lsn)
    };
    prop_assert!(report.findings.told.iter().all(is_left), "{report:#?}");
    prop_assert!(report.is_complete && report.difference() == 0, "{report:#?}");
    Ok(())
}

/// Damages that a disk or a person does.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index),
    Lose(prop::sample::Index),
    Truncate(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => any::<prop::sample::Index>().prop_map(Damage::Flip),
        1 => any::<prop::sample::Index>().prop_map(Damage::Lose),
        1 => any::<prop::sample::Index>().prop_map(Damage::Truncate),
    ]
}

fn inflict(disk: &SimDisk, damage: &Damage) {
    let numbers = disk.numbers();
    let place = |index: &prop::sample::Index| {
        let at = index.index(numbers.len() * SEGMENT_SIZE as usize) as u64;
        (numbers[(at / SEGMENT_SIZE) as usize], at % SEGMENT_SIZE)
    };
    match damage {
        Damage::Flip(index) => {
            let (segment, offset) = place(index);
            let size = disk.content(segment).map_or(0, |content| content.len() as u64);
            if offset < size {
                disk.corrupt(segment, offset);
            }
        }
        Damage::Lose(index) => disk.lose(numbers[index.index(numbers.len())]),
        Damage::Truncate(index) => {
            let (segment, offset) = place(index);
            disk.truncate(segment, offset);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_repaired_log_opens_and_hides_nothing(
        seed in 0..4u64,
        damages in proptest::collection::vec(damage(), 1..6),
        with_index in any::<bool>(),
    ) {
        let before = filled(seed);
        let end = before.records.len() as u64;
        damages.iter().for_each(|damage| inflict(&before.disk, damage));
        if before.disk.numbers().is_empty() {
            return Ok(());
        }
        let findings = repair(&before, with_index);
        let again = repair(&before, with_index);
        prop_assert!(again.plan.losses.is_empty() && again.plan.headers.is_empty());
        let index = if with_index { before.index.clone() } else { MemoryIndex::default() };
        let mut harness = Harness::on(before.disk.clone(), index, 9).expect("it opens");
        check(&before, &findings, &mut harness);
        if !with_index {
            // What is above the end was not known to be durable; the next life goes on behind it.
            harness.acquire();
            return check_accounts(&harness);
        }
        prop_assert_eq!(harness.store.known_durable(), end, "the index knows how far it went");
        // What was promised goes on: numbers are not given twice, epochs neither.
        let convo = || "g".into();
        match harness.look(&ToStore::LoadConversation { convo: convo() }) {
            FromStore::Conversation { head, fingerprints, .. } => {
                prop_assert_eq!((head, fingerprints.len() as u64), (end - 2, end - 2));
            }
            other => prop_assert!(false, "{:?}", other),
        }
        check_accounts(&harness)?;
        prop_assert!(harness.acquire().0 > before.epoch);
        // A read across a loss goes on behind it, and counts.
        let range = ToStore::Range { convo: convo(), first: 1, last: u64::MAX, size_max: 1 << 22 };
        match harness.look(&range) {
            FromStore::Messages { messages, .. } => {
                let missing = end - 2 - messages.len() as u64;
                prop_assert_eq!(harness.store.metrics().unaccounted, missing);
                prop_assert_eq!(findings.known.iter().flatten().count() as u64, missing);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// The index is lost later: the log alone says as much.
    #[test]
    fn what_was_lost_is_known_without_the_index(seed in 0..4u64, at in damage()) {
        let before = filled(seed);
        inflict(&before.disk, &at);
        repair(&before, true);
        let harness = Harness::on(before.disk.clone(), MemoryIndex::default(), 9);
        let mut harness = harness.expect("it opens");
        let end = before.records.len() as u64;
        match harness.look(&ToStore::LoadConversation { convo: "g".into() }) {
            FromStore::Conversation { head, fingerprints, .. } => {
                prop_assert_eq!((head, fingerprints.len() as u64), (end - 2, end - 2));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn a_healthy_log_needs_nothing() {
    let before = filled(1);
    let segments: Vec<_> =
        before.disk.numbers().iter().map(|&number| before.disk.content(number)).collect();
    let mut disk = before.disk.clone();
    let infos = disk.segments().expect("listed");
    let findings = examine(&mut disk, &infos, Some(&before.index)).expect("a plan");
    assert!(findings.plan.losses.is_empty() && findings.plan.headers.is_empty());
    assert_eq!(findings.plan.next_lsn, before.records.len() as u64 + 1);
    let after: Vec<_> = disk.numbers().iter().map(|&number| disk.content(number)).collect();
    assert!(segments == after, "looking changes nothing");
}

#[test]
fn a_broken_header_costs_nothing() {
    let before = filled(2);
    for segment in before.disk.numbers() {
        let used = before.disk.content(segment).is_some_and(|bytes| bytes[4096..8192] != [0; 4096]);
        if used {
            before.disk.corrupt(segment, 20);
        }
    }
    // All headers at once: nothing says any more what log it is, but the index does.
    let findings = repair(&before, true);
    assert!(findings.plan.losses.is_empty(), "{:?}", findings.plan.losses);
    let harness = Harness::on(before.disk.clone(), before.index.clone(), 9);
    let mut harness = harness.expect("it opens");
    assert_eq!(harness.read_all(), before.records);
}
