//! What is answered to whom, and when.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;

use bytes::Bytes;

use super::harness::*;
use crate::clock::Now;
use crate::link::fingerprint;
use crate::link::message::{Accepted, FromStore, ToStore};
use crate::link::record::{Cursor, Record};
use crate::link::wire::Wire;
use crate::link::{LinkEvent, PeerId};
use crate::simulation::disk::SimDisk;
use crate::store::core::{INDEX_BACKLOG_SIZE_MAX, SPACE_WAIT_US};
use crate::store::index::MemoryIndex;
use crate::store::log::LogOptions;
use crate::store::reader::{Done, IndexWorker, Task};
use crate::store::{Problem, StoreFault, open_on};

fn durable(answer: FromStore) -> u64 {
    match answer {
        FromStore::Durable { next_lsn, .. } => next_lsn,
        other => panic!("not durable: {other:?}"),
    }
}

#[test]
fn an_append_is_answered_when_it_is_durable_and_not_before() {
    let mut harness = Harness::new(1);
    let (epoch, next_lsn) = harness.acquire();
    assert_eq!((epoch, next_lsn), (1, 2));
    let number = harness.ask(&append(epoch, 2, &[message_record("g", 1, 10)]));
    harness.poll();
    assert_eq!(harness.answer(number), None);
    assert_eq!(harness.store.known_durable(), 1);
    harness.settle();
    assert_eq!(harness.answer(number), Some(FromStore::Durable { to: number, next_lsn: 3 }));
    assert!(harness.outlet.answered.contains(&number));
    assert_eq!(harness.store.known_durable(), 2);
    assert_eq!(harness.store.metrics().commits, 2);
}

#[test]
fn queued_appends_become_durable_in_order() {
    let mut harness = Harness::new(2);
    let (epoch, first) = harness.acquire();
    let numbers: Vec<_> = (0..20)
        .map(|index| {
            harness.ask(&append(epoch, first + index, &[message_record("g", index + 1, 900)]))
        })
        .collect();
    harness.settle();
    for (index, &number) in numbers.iter().enumerate() {
        let next_lsn = first + index as u64 + 1;
        assert_eq!(harness.answer(number), Some(FromStore::Durable { to: number, next_lsn }));
    }
    assert!(harness.disk.numbers().len() > 2, "twenty blocks take more than two segments");
    assert_eq!(harness.read_all().len(), 21);
}

#[test]
fn lower_epoch_is_fenced() {
    let mut harness = Harness::new(3);
    let (old, _) = harness.acquire();
    let (new, next_lsn) = harness.acquire();
    assert_eq!(new, old + 1);
    let records = [message_record("g", 1, 10)];
    let answer = harness.get(&append(old, next_lsn, &records));
    assert!(matches!(answer, FromStore::Fenced { epoch, .. } if epoch == new));
    let answer = harness.get(&ToStore::Resume { epoch: old, incarnation: 1 });
    assert!(matches!(answer, FromStore::Fenced { .. }));
    let answer = harness.get(&ToStore::Resume { epoch: new, incarnation: 1 });
    assert!(matches!(answer, FromStore::Resumed { next_lsn: at, .. } if at == next_lsn));
    assert_eq!(durable(harness.get(&append(new, next_lsn, &records))), next_lsn + 1);
    let answer = harness.get(&append(new + 1, next_lsn + 1, &records));
    assert!(matches!(answer, FromStore::Fenced { .. }), "an epoch that nobody was granted");
    let answer = harness.get(&append(new, next_lsn + 5, &records));
    assert!(matches!(answer, FromStore::Fenced { .. }), "a position beyond the end");
}

#[test]
fn a_batch_queued_behind_a_higher_acquire_is_fenced() {
    let mut harness = Harness::new(4);
    let (epoch, next_lsn) = harness.acquire();
    harness.ask(&ToStore::Acquire { incarnation: 5 });
    let number = harness.ask(&append(epoch, next_lsn, &[message_record("g", 1, 10)]));
    harness.settle();
    assert!(matches!(harness.answer(number), Some(FromStore::Fenced { .. })));
}

#[test]
fn append_again_after_lost_answer_is_durable_again() {
    let mut harness = Harness::new(5);
    let (epoch, first) = harness.acquire();
    let batch = append(epoch, first, &[message_record("g", 1, 9_000), message_record("h", 1, 10)]);
    assert_eq!(durable(harness.get(&batch)), first + 2);
    assert_eq!(durable(harness.get(&batch)), first + 2);
    assert_eq!(harness.store.known_durable(), first + 1);
    let other = append(epoch, first, &[message_record("g", 1, 9_001), message_record("h", 1, 10)]);
    assert!(matches!(harness.get(&other), FromStore::Fenced { .. }), "other bytes");
    let mut harness = harness.restart(usize::MAX, 2).expect("it opens again");
    assert_eq!(durable(harness.get(&batch)), first + 2, "also by the next life");
    assert!(matches!(harness.get(&other), FromStore::Fenced { .. }));
}

#[test]
fn grant_precedes_reads() {
    let mut harness = Harness::new(6);
    let (epoch, first) = harness.acquire();
    let records = [
        message_record("g", 1, 10),
        Record::Edge { name: "edge-1".into(), present: true },
        Record::Edge { name: "edge-2".into(), present: true },
        Record::Edge { name: "edge-1".into(), present: false },
        Record::FannedOut { lsn: 2 },
        Record::ServiceTime { ms: 61_000 },
    ];
    harness.ask(&append(epoch, first, &records));
    let grant = harness.ask(&ToStore::Acquire { incarnation: 2 });
    harness.settle();
    // The new epoch's grant covers what the old one wrote, up to its own record.
    let expected = FromStore::Granted {
        to: grant,
        epoch: epoch + 1,
        next_lsn: first + 7,
        fanned_out: 2,
        mid: 10,
        ts: 1_001,
        edges: vec!["edge-2".into()],
        service_ms: 61_000,
    };
    assert_eq!(harness.answer(grant), Some(expected));
    let mut harness = harness.restart(0, 2).expect("it opens again");
    assert_eq!(harness.acquire().0, epoch + 2, "an epoch is never granted twice");
}

#[test]
fn reads_answer_what_was_written() {
    let mut harness = Harness::new(7);
    let (epoch, first) = harness.acquire();
    let cursor = Cursor {
        user: "bob".into(),
        device: "pad".into(),
        convo: "g".into(),
        delivered: 2,
        read: 1,
        marker: 3,
    };
    let mut records: Vec<_> = (1..=5).map(|seq| message_record("g", seq, 100)).collect();
    records.push(Record::Device { user: "bob".into(), device: "pad".into(), ts: 5 });
    records.push(Record::Cursors { cursors: vec![cursor.clone()] });
    harness.get(&append(epoch, first, &records));

    let found = harness.get(&ToStore::LoadConversation { convo: "g".into() });
    let prints = (1..=5).map(|seq| fingerprint("alice", &format!("id-{seq}"))).collect::<Vec<_>>();
    let to = harness.number;
    let expected = FromStore::Conversation { to, head: 5, fingerprints: prints, complete: true };
    assert_eq!(found, expected);

    let found = harness.get(&ToStore::LoadUser { user: "bob".into(), after: Bytes::new() });
    let (to, devices) = (harness.number, vec![("pad".into(), 5)]);
    let (cursors, groups, next) = (vec![cursor], Vec::new(), Bytes::new());
    let (channels, revoked, hidden) = (Vec::new(), Vec::new(), false);
    let (dead, failures) = (Vec::new(), Vec::new());
    let user = FromStore::User {
        to,
        devices,
        cursors,
        groups,
        channels,
        revoked,
        hidden,
        dead,
        failures,
        next,
    };
    assert_eq!(found, user);

    let lookup =
        |id: &str| ToStore::Lookup { convo: "g".into(), user: "alice".into(), id: id.into() };
    let third = Some(Accepted { seq: 3, mid: 30, ts: 1_003 });
    assert_eq!(
        harness.get(&lookup("id-3")),
        FromStore::Found { to: harness.number, message: third }
    );
    assert_eq!(
        harness.get(&lookup("id-9")),
        FromStore::Found { to: harness.number, message: None }
    );
    assert_eq!(harness.store.metrics().unaccounted, 0);
}

#[test]
fn a_range_is_cut_to_what_exists_and_fits() {
    let mut harness = Harness::new(7);
    let (epoch, first) = harness.acquire();
    let records: Vec<_> = (1..=5).map(|seq| message_record("g", seq, 100)).collect();
    harness.get(&append(epoch, first, &records));
    let range = |first, last, size_max| ToStore::Range { convo: "g".into(), first, last, size_max };
    for (request, seqs) in [
        (range(1, 5, 100_000), 1..=5),
        (range(0, 99, 100_000), 1..=5),
        (range(2, 3, 100_000), 2..=3),
        (range(2, 5, 0), 2..=2),
        (range(2, 5, 350), 2..=3),
        (range(6, 9, 500), RangeInclusive::new(6, 5)),
    ] {
        let messages = seqs.map(|seq| message("g", seq, 100)).collect();
        let answer = harness.get(&request);
        assert_eq!(answer, FromStore::Messages { to: harness.number, messages });
    }
    let beyond = harness.get(&range(6, 9, 500));
    assert_eq!(beyond, FromStore::Messages { to: harness.number, messages: Vec::new() });
    assert_eq!(harness.store.metrics().unaccounted, 0);
}

#[test]
fn a_rotten_message_is_never_handed_out() {
    let mut harness = Harness::new(8);
    let (epoch, first) = harness.acquire();
    harness.get(&append(epoch, first, &[message_record("g", 1, 2_000)]));
    let segment = harness.disk.numbers()[0];
    harness.disk.corrupt(segment, 2 * 4096 + 1_000);
    let answer = harness.get(&ToStore::Range { convo: "g".into(), first: 1, last: 1, size_max: 9 });
    assert_eq!(answer, FromStore::Unavailable { to: harness.number });
    assert_eq!(harness.store.metrics().unaccounted, 1);
    let answer = harness.get(&ToStore::ReadLog { first_lsn: 2, size_max: 9 });
    assert_eq!(answer, FromStore::Unavailable { to: harness.number });
}

#[test]
fn hello_above_the_end_refuses() {
    let mut harness = Harness::new(9);
    harness.acquire();
    harness.begin(1).expect("position 1 is there");
    let problem = harness.begin(2).expect_err("position 2 is not");
    assert!(matches!(problem, Problem::Fault(StoreFault::Lost { seen: 2, end: 1, .. })));
    assert!(problem.to_string().contains("position 2") && problem.to_string().contains("at 1"));
}

#[test]
fn garbage_is_refused_and_never_written() {
    let mut harness = Harness::new(10);
    let (epoch, first) = harness.acquire();
    let good = append(epoch, first, &[message_record("g", 1, 10)]).to_bytes();
    let epoch_record = Record::Epoch { epoch: 99, incarnation: 1 };
    let mut bad = vec![
        append(epoch, first, &[epoch_record]).to_bytes(),
        append(epoch, first, &[]).to_bytes(),
        append(epoch, 0, &[message_record("g", 1, 10)]).to_bytes(),
        append(epoch, u64::MAX, &[message_record("g", 1, 10)]).to_bytes(),
        append(epoch, first, &[message_record("g", 0, 10)]).to_bytes(),
        append(epoch, first, &[message_record("g", 1, SEGMENT_SIZE as usize)]).to_bytes(),
    ];
    bad.extend((0..good.len()).map(|size| good[..size].to_vec()));
    for entry in bad {
        let problem = harness.try_ask(entry.into()).expect_err("refused");
        assert!(matches!(problem, Problem::Violation { peer: PEER, .. }));
    }
    harness.settle();
    assert_eq!(harness.read_all().len(), 1);
    assert!(harness.store.metrics().malformed > 6);
}

#[test]
fn a_full_disk_is_unavailable_and_reads_go_on() {
    let disk = SimDisk::new(11);
    disk.set_space(SEGMENT_SIZE * 2);
    let mut harness = Harness::on(disk, MemoryIndex::default(), 1).expect("it opens");
    let (epoch, mut next_lsn) = harness.acquire();
    let stuck = loop {
        let seq = next_lsn - 1;
        let number = harness.ask(&append(epoch, next_lsn, &[message_record("g", seq, 3_000)]));
        harness.settle();
        match harness.answer(number) {
            Some(_) => next_lsn += 1,
            None => break number,
        }
    };
    let behind = harness.ask(&append(epoch, next_lsn + 1, &[message_record("g", 99, 10)]));
    assert!(harness.store.deadline_us().is_some());
    let range = ToStore::Range { convo: "g".into(), first: 1, last: 1, size_max: 0 };
    assert!(
        matches!(harness.get(&range), FromStore::Messages { messages, .. } if messages.len() == 1)
    );
    harness.now.monotonic_us += SPACE_WAIT_US;
    harness.settle();
    for number in [stuck, behind] {
        assert_eq!(harness.answer(number), Some(FromStore::Unavailable { to: number }));
    }
    harness.disk.set_space(u64::MAX);
    harness.now.monotonic_us += SPACE_WAIT_US;
    harness.settle();
    let again = append(epoch, next_lsn, &[message_record("g", next_lsn - 1, 3_000)]);
    assert_eq!(durable(harness.get(&again)), next_lsn + 1);
    assert!(harness.store.metrics().no_space >= 1);
}

#[test]
fn a_failed_write_is_a_fault() {
    let mut harness = Harness::new(12);
    harness.settle();
    harness.disk.fail_writes();
    harness.ask(&ToStore::Acquire { incarnation: 1 });
    harness.disk.settle();
    let fault = harness.store.poll(harness.now, &mut harness.outlet).expect_err("it exits");
    assert!(matches!(fault, StoreFault::Device(_)));
    let (text, place) = (fault.to_string(), "write of log segment 1 at offset 0 failed");
    assert!(text.contains(place), "{text}");
}

/// A commit fails at any point of a log, and the next life of the store has all before it.
#[test]
fn after_a_failed_write_the_next_life_has_everything_answered() {
    for (seed, count) in (0..12).map(|number| (number, number % 6)) {
        let mut harness = Harness::new(seed);
        let (epoch, first) = harness.acquire();
        for index in 0..count {
            let records = [message_record("g", index + 1, 3_000)];
            assert!(durable(harness.get(&append(epoch, first + index, &records))) > first + index);
        }
        harness.disk.fail_writes();
        harness.ask(&append(epoch, first + count, &[message_record("g", count + 1, 3_000)]));
        harness.disk.settle();
        harness.store.poll(harness.now, &mut harness.outlet).expect_err("it exits");
        harness.disk.repair();
        let mut harness = harness.restart(0, 2).expect("what failed was never answered");
        assert_eq!(harness.read_all().len() as u64, 1 + count);
        assert_eq!(harness.acquire(), (epoch + 1, first + count + 1));
    }
}

#[test]
fn answers_wait_for_a_full_link_and_die_with_their_session() {
    let mut harness = Harness::new(13);
    harness.outlet.is_full = true;
    let number = harness.ask(&ToStore::Acquire { incarnation: 1 });
    harness.settle();
    assert!(harness.outlet.answered.is_empty());
    harness.outlet.is_full = false;
    harness.settle();
    assert_eq!(harness.outlet.answered, [number]);
    harness.outlet.is_full = true;
    harness.ask(&ToStore::Acquire { incarnation: 1 });
    harness.settle();
    harness.begin(0).expect("nothing above the end");
    harness.outlet.is_full = false;
    harness.settle();
    assert_eq!(harness.outlet.answered, [number], "the second was of a session that is over");
    let event = LinkEvent::Ended { peer: PeerId(1) };
    let now = harness.now;
    harness.store.handle(now, event, &mut harness.outlet).expect("an end is no problem");
    assert!(harness.try_ask(ToStore::Acquire { incarnation: 1 }.to_bytes().into()).is_ok());
    harness.settle();
    assert_eq!(harness.outlet.answered, [number]);
}

/// An index that takes batches and applies none until told to.
#[derive(Default)]
struct StuckIndex {
    sizes: Rc<RefCell<VecDeque<Done>>>,
    is_free: Rc<Cell<bool>>,
}

impl IndexWorker for StuckIndex {
    fn submit(&mut self, task: Task) -> Result<(), Task> {
        match task {
            Task::Apply(batch) => {
                let (lsn, bytes) = (batch.last_lsn(), batch.records.len());
                self.sizes.borrow_mut().push_back(Done::Applied { lsn, bytes });
                Ok(())
            }
            Task::Answer { .. } | Task::Grant { .. } => Ok(()),
        }
    }

    fn poll(&mut self) -> Result<Option<Done>, StoreFault> {
        let done = self.is_free.get().then(|| self.sizes.borrow_mut().pop_front());
        Ok(done.flatten())
    }
}

#[test]
fn an_index_that_lags_holds_answers_back() {
    let disk = SimDisk::new(14);
    let is_free = Rc::new(Cell::new(false));
    let worker = StuckIndex { is_free: is_free.clone(), ..StuckIndex::default() };
    let large = LogOptions { segment_size: 16 << 20, ..options(1) };
    let mut store =
        open_on(disk.clone(), MemoryIndex::default(), large, || 0, |_| Ok(worker)).expect("opens");
    let (now, mut outlet) = (Now::default(), Recorder::default());
    let event =
        LinkEvent::Began { peer: PEER, name: "sequencer".into(), incarnation: 1, durable_seen: 0 };
    store.handle(now, event, &mut outlet).expect("a session");
    let batch = append(1, 2, &[message_record("g", 1, 5 << 20)]);
    let ToStore::Append { count, records, .. } = batch else {
        unreachable!("made above");
    };
    for number in 1..=17 {
        let records = records.clone();
        let request = match number {
            1 => ToStore::Acquire { incarnation: 1 },
            _ => ToStore::Append { epoch: 1, first_lsn: number, count, records },
        };
        let entry = request.to_bytes().into();
        let event = LinkEvent::Entry { peer: PEER, number, entry };
        store.handle(now, event, &mut outlet).expect("a good batch");
        disk.settle();
        store.poll(now, &mut outlet).expect("the disk works");
        while disk.step() {
            store.poll(now, &mut outlet).expect("the disk works");
        }
    }
    let size = INDEX_BACKLOG_SIZE_MAX / records.len();
    assert_eq!(outlet.answered.len(), size, "answers for as much as may be behind");
    assert_eq!(store.known_durable(), size as u64 + 2, "and one more is durable, unanswered");
    is_free.set(true);
    store.poll(now, &mut outlet).expect("the disk works");
    while disk.step() {
        store.poll(now, &mut outlet).expect("the disk works");
    }
    assert_eq!(outlet.answered.len(), 16);
    assert_eq!(store.metrics().index_lag, 0);
}

#[test]
fn nobody_appends_before_the_first_grant() {
    let mut harness = Harness::new(15);
    let answer = harness.get(&append(0, 1, &[message_record("g", 1, 10)]));
    assert!(matches!(answer, FromStore::Fenced { epoch: 0, .. }));
    let answer = harness.get(&ToStore::Resume { epoch: 0, incarnation: 1 });
    assert!(matches!(answer, FromStore::Fenced { epoch: 0, .. }));
}

/// 60,000 rows are more than an entry of the link holds.
#[test]
fn a_user_with_very_many_conversations_comes_in_pieces() {
    let mut harness = Harness::new(3);
    let (epoch, mut next_lsn) = harness.acquire();
    let cursor = |number: u64| Cursor {
        user: "bob".into(),
        device: "pad".into(),
        convo: format!("dm:somebody-with-a-name-of-40-bytes-{number:05}:bob").as_str().into(),
        delivered: number,
        read: 0,
        marker: 0,
    };
    let all: Vec<_> = (0..60_000).map(cursor).collect();
    // A segment of this harness holds no more at once.
    for cursors in all.chunks(200) {
        harness.get(&append(epoch, next_lsn, &[Record::Cursors { cursors: cursors.to_vec() }]));
        next_lsn += 1;
    }
    let (mut found, mut pieces, mut after) = (Vec::new(), 0, Bytes::new());
    loop {
        match harness.get(&ToStore::LoadUser { user: "bob".into(), after }) {
            FromStore::User { cursors, next, .. } => {
                pieces += 1;
                found.extend(cursors);
                after = next;
            }
            other => panic!("no user: {other:?}"),
        }
        if after.is_empty() {
            break;
        }
    }
    assert!(pieces > 1, "it did not fit one entry");
    assert!(found == all, "every row once, in order");
}
