//! What an audit must notice: each byte, each segment, each row; and that a healthy store balances.

use std::collections::BTreeSet;

use super::harness::*;
use crate::link::record::{
    Body, ChannelState, Cursor, Failure, GroupRole, Letter, Member, Message, Record, Revocation,
    Stay,
};
use crate::simulation::disk::SimDisk;
use crate::store::audit::{Report, audit};
use crate::store::device::LogDevice;
use crate::store::index::{Change, Index, Keyspace, MemoryIndex};
use crate::store::log_format::peek_commit;
use crate::store::{ledger, rows};

const CONVO: &str = "dm:alice:bob";

fn cursor(user: &str, device: &str, convo: &str, delivered: u64, marker: u64) -> Cursor {
    let (user, device, convo) = (user.into(), device.into(), convo.into());
    Cursor { user, device, convo, delivered, read: 0, marker }
}

fn group(seq: u64) -> Record {
    let stay = |joined| vec![Stay { joined, left: 0, left_lsn: 0 }];
    let member = |user: &str, place| Member {
        user: user.into(),
        version: 1,
        role: GroupRole::Member,
        admin_since: 0,
        place,
        stays: stay(seq),
    };
    let (device, id) = ("".into(), "".into());
    let body = Body::Text { text: "made".into() };
    let message = Message { device, id, body, ..message("g", seq, 0) };
    let members = vec![member("alice", 0), member("carol", 1)];
    Record::Group { message, version: 1, members }
}

/// A channel, a device that was revoked with its cursor, a death, and what else there is a row of.
fn others() -> Vec<Record> {
    let (device, id) = ("".into(), "".into());
    let body = Body::Text { text: "made".into() };
    let message = Message { device, id, body, ..message("news", 1, 0) };
    let channel = ChannelState { version: 1, owner: "alice".into(), admins: Vec::new() };
    let (user, device) = ("carol".into(), "old".into());
    let revocation = Revocation {
        user: "carol".into(),
        device: "old".into(),
        epoch: 1,
        counter: 1,
        ts: 7,
        last_seen: 6,
    };
    let letter = Letter { seq: 1, from: "alice".into(), id: "".into(), is_news: true };
    let failure = Failure { convo: CONVO.into(), seq: 1, id: "x".into(), told_at: 5 };
    vec![
        Record::Channel { message, channel },
        Record::Device { user, device, ts: 5 },
        Record::Cursors { cursors: vec![cursor("carol", "old", "g", 1, 0)] },
        Record::Revoked { revocation },
        Record::Privacy { user: "carol".into(), hidden: true },
        Record::ServiceTime { ms: 60_000 },
        Record::Dead {
            user: "carol".into(),
            convo: "g".into(),
            last: 1,
            at: 60_000,
            letters: vec![letter],
        },
        Record::Told { user: "alice".into(), failures: vec![failure] },
    ]
}

/// Two lives; messages in commits of several sizes, cursors, devices, a group, markers, links.
fn filled() -> (SimDisk, MemoryIndex) {
    let mut harness = Harness::new(7);
    let mut seq = 0;
    for life in 0..2 {
        if life == 1 {
            harness = harness.restart(usize::MAX, 2).expect("a crash is no corruption");
        }
        let (epoch, mut next_lsn) = harness.acquire();
        let mut commits = Vec::new();
        if life == 0 {
            let devices = [("alice", "phone"), ("bob", "pad")];
            let device = |(user, device): (&str, &str)| Record::Device {
                user: user.into(),
                device: device.into(),
                ts: 5,
            };
            commits.push(devices.map(device).to_vec());
            commits.push(vec![group(1), Record::Edge { name: "edge-0".into(), present: true }]);
            commits.push(others());
        }
        for commit in 0..8u64 {
            let count = 1 + commit % 5 * 2;
            let size = 100 * (1 + commit as usize);
            let ids = seq + 1..=seq + count;
            commits.push(ids.map(|seq| message_record(CONVO, seq, size)).collect());
            seq += count;
        }
        let cursors = vec![
            cursor("alice", "phone", CONVO, seq, 0),
            cursor("bob", "pad", CONVO, seq / 2, seq / 2 + 1),
            cursor("alice", "phone", "g", 1, 0),
            cursor("carol", "", "g", 0, 1),
        ];
        commits.push(vec![Record::Cursors { cursors }]);
        commits.push(vec![Record::FannedOut { lsn: next_lsn + commits_len(&commits) - 1 }]);
        for records in commits {
            harness.get(&append(epoch, next_lsn, &records));
            next_lsn += records.len() as u64;
        }
    }
    let Harness { disk, mut index, .. } = harness;
    index.persist().expect("in memory");
    (disk, index)
}

fn commits_len(commits: &[Vec<Record>]) -> u64 {
    commits.iter().map(|records| records.len() as u64).sum()
}

fn audited(disk: &SimDisk, index: &MemoryIndex) -> Report {
    let mut disk = disk.clone();
    let segments = disk.segments().expect("listed");
    audit(&mut disk, &segments, index, false, &mut |_| {}).expect("memory can be read")
}

fn rows_of(index: &MemoryIndex, keyspace: Keyspace) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    index
        .scan(keyspace, &[], &[], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })
        .expect("in memory");
    rows
}

fn put(index: &mut MemoryIndex, keyspace: Keyspace, key: &[u8], value: Option<Vec<u8>>) {
    index.apply(vec![Change { keyspace, key: key.to_vec(), value }]).expect("in memory");
}

#[test]
fn a_healthy_store_balances_and_its_numbers_are_those_of_what_was_done() {
    let (disk, index) = filled();
    let report = audited(&disk, &index);
    assert!(report.is_balanced(), "{report:#?}");
    let messages = report.durable - 2;
    assert_eq!((report.accepted, report.difference()), (messages + 2, 0));
    // Two devices in the direct conversation, two members of the group, of one message. It is dead
    // for one of them, and nobody is owed what is in a channel.
    assert_eq!(report.deliveries.owed, 2 * messages + 2);
    assert_eq!(report.deliveries.delivered, messages + messages / 2 + 1);
    assert_eq!(report.deliveries.in_inboxes, messages - messages / 2);
    assert_eq!(report.deliveries.dead_lettered, 1);
    assert!(messages > ledger::LINK_DISTANCE, "{messages} messages make no link");
}

#[test]
fn every_flipped_byte_of_a_record_is_named_and_no_other_does_harm() {
    let (disk, index) = filled();
    let (mut named, mut harmless, mut exact) = (0, 0, 0);
    for number in disk.numbers() {
        let content = disk.content(number).expect("listed");
        let (mut commit_end, mut said_end) = (0, 0);
        for offset in 0..content.len() {
            if offset % 4096 == 0 && offset >= commit_end {
                let header = peek_commit(&content[offset..]).ok();
                commit_end = offset + header.map_or(4096, |header| header.size_on_disk() as usize);
                let size = header.map_or(56, |header| 72 + header.payload_size as usize);
                said_end = offset + size;
            }
            let is_used = content[offset - offset % 4096..][..4096].iter().any(|&byte| byte != 0);
            // Each byte that says something; of padding and of what nobody wrote, a few.
            if (!is_used || offset >= said_end) && offset % 251 != 0 {
                continue;
            }
            disk.corrupt(number, offset as u64);
            let report = audited(&disk, &index);
            disk.corrupt(number, offset as u64);
            assert_eq!(disk.content(number).as_ref(), Some(&content), "it is as it was");
            if report.is_balanced() {
                assert!(!is_used, "segment {number} offset {offset} passed: {report:#?}");
                harmless += 1;
                continue;
            }
            named += 1;
            let first = &report.findings.told[0];
            assert_eq!(first.segment, Some(number), "offset {offset}: {first:?}");
            let found = first.offset.expect("in the log");
            assert!(found <= offset as u64 && offset < commit_end, "{offset}: {first:?}");
            exact += u64::from(first.seq.is_some());
        }
    }
    println!("{named} flipped bytes were named, {exact} with their message; {harmless} harmless");
    assert!(named > 20_000 && exact > 10_000 && harmless > 10);
    assert!(audited(&disk, &index).is_balanced());
}

#[test]
fn the_message_that_holds_the_wrong_byte_is_the_one_that_is_named() {
    let (disk, index) = filled();
    for (key, value) in rows_of(&index, Keyspace::Messages) {
        let (convo, seq, location) = rows::message_row(&key, &value).expect("a row");
        let offset = location.offset + u64::from(location.size) / 2;
        disk.corrupt(location.segment, offset);
        let first = audited(&disk, &index).findings.told.remove(0);
        disk.corrupt(location.segment, offset);
        assert_eq!((first.convo.as_deref(), first.seq), (Some(convo), Some(seq)), "{first:?}");
        assert_eq!(first.offset, Some(location.offset), "{first:?}");
        assert!(first.lsn.is_some());
    }
}

#[test]
fn every_missing_segment_is_noticed() {
    let (disk, index) = filled();
    let used: Vec<_> = disk
        .numbers()
        .into_iter()
        .filter(|number| disk.content(*number).is_some_and(|c| c.iter().any(|&byte| byte != 0)))
        .collect();
    assert!(used.len() > 3, "first, middle and last");
    for number in used {
        let (disk, _) = filled();
        disk.lose(number);
        let report = audited(&disk, &index);
        assert!(!report.is_balanced(), "segment {number} is not missed");
        assert!(report.findings.told[0].lsn.is_some(), "{report:#?}");
    }
}

#[test]
fn every_kind_of_row_that_is_altered_missing_or_too_many_is_noticed() {
    let (disk, whole) = filled();
    let mut kinds = BTreeSet::new();
    for keyspace in Keyspace::ALL {
        for (key, value) in rows_of(&whole, keyspace) {
            kinds.insert(keyspace);
            let mut index = whole.clone();
            put(&mut index, keyspace, &key, None);
            assert!(!audited(&disk, &index).is_balanced(), "{keyspace:?} {key:?} is missing");
            for byte in 0..value.len() {
                let mut altered = value.clone();
                altered[byte] ^= 1;
                put(&mut index, keyspace, &key, Some(altered));
                let report = audited(&disk, &index);
                assert!(!report.is_balanced(), "{keyspace:?} {key:?} byte {byte}: {report:#?}");
            }
            put(&mut index, keyspace, &key, Some(value.clone()));
            let mut extra = key.clone();
            extra.push(b'x');
            put(&mut index, keyspace, &extra, Some(value.clone()));
            let too_many = !audited(&disk, &index).is_balanced() || keyspace == Keyspace::Meta;
            assert!(too_many, "{keyspace:?} {key:?} twice");
            put(&mut index, keyspace, &extra, None);
        }
    }
    assert_eq!(kinds.len(), Keyspace::ALL.len() - usize::from(!kinds.contains(&Keyspace::Links)));
    assert!(audited(&disk, &whole).is_balanced());
}

#[test]
fn a_marker_that_is_missing_is_a_loss_even_if_the_log_says_the_same() {
    let mut harness = Harness::new(8);
    let (epoch, next_lsn) = harness.acquire();
    let records = [
        Record::Device { user: "bob".into(), device: "pad".into(), ts: 5 },
        message_record(CONVO, 1, 10),
        message_record(CONVO, 2, 10),
        Record::Cursors {
            cursors: vec![cursor("alice", "", CONVO, 0, 1), cursor("bob", "pad", CONVO, 1, 0)],
        },
        Record::FannedOut { lsn: next_lsn + 2 },
    ];
    harness.get(&append(epoch, next_lsn, &records));
    let report = audited(&harness.disk, &harness.index);
    let first = &report.findings.told[0];
    assert_eq!((first.convo.as_deref(), first.seq), (Some(CONVO), Some(2)), "{report:#?}");
    assert_eq!((report.deliveries.unaccounted, report.deliveries.difference()), (1, 1));
}

#[test]
fn an_index_from_before_the_ledger_gets_its_chains_when_it_is_opened() {
    let (disk, mut index) = filled();
    let chains = rows_of(&index, Keyspace::Chains);
    let links = rows_of(&index, Keyspace::Links);
    for (keyspace, rows) in [(Keyspace::Chains, &chains), (Keyspace::Links, &links)] {
        rows.iter().for_each(|(key, _)| put(&mut index, keyspace, key, None));
    }
    let report = audited(&disk, &index);
    assert!(report.is_balanced() && report.notes.len() == 1, "{report:#?}");
    open(&disk, &index, 3).expect("it opens");
    assert_eq!(rows_of(&index, Keyspace::Chains), chains);
    assert_eq!(rows_of(&index, Keyspace::Links), links);
}
