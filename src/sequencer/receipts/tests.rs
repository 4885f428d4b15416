//! Counts against their naive twin, and what a large group costs its senders.

use proptest::prelude::*;

use super::*;
use crate::link::record::{GroupRole, Stay};

fn member(user: &str, joined: u64, left: u64) -> Member {
    let stays = vec![Stay { joined, left, left_lsn: 0 }];
    let role = GroupRole::Member;
    Member { user: user.into(), version: 1, role, admin_since: 0, place: 0, stays }
}

/// Loaded, with the members `m0`, `m1`, ... who joined by message 1.
fn receipts(count: usize) -> Receipts {
    let members = (0..count).map(|index| member(&format!("m{index}"), 1, 0)).collect();
    let mut receipts = Receipts::default();
    receipts.load(&Group::new(1, members), &[], &[]);
    receipts
}

fn risen(user: usize, watermarks: [u64; 2]) -> Risen {
    Risen { lsn: 1, user: format!("m{user}").as_str().into(), watermarks, has_read: false }
}

#[test]
fn a_message_read_by_a_thousand_costs_its_sender_a_few_frames() {
    let mut receipts = receipts(1_024);
    receipts.track(2, &"m0".into());
    let mut told = Vec::new();
    // One every millisecond.
    for reader in 1..1_024 {
        let now_us = reader as u64 * 1_000;
        receipts.rise(risen(reader, [2, 2]), 0, now_us);
        if receipts.due_us.is_some_and(|due_us| due_us <= now_us) {
            told.push(receipts.tellings());
            (receipts.due_us, receipts.told_at_us) = (None, now_us);
        }
    }
    told.push(receipts.tellings());
    let frames: Vec<&Telling> = told.iter().flatten().collect();
    assert!(frames.iter().all(|frame| &*frame.to == "m0" && frame.seq == 2 && &*frame.by != "m0"));
    for watermark in KINDS {
        let of_kind = frames.iter().filter(|frame| frame.watermark == watermark);
        let counts: Vec<u64> = of_kind.map(|frame| frame.tally.count).collect();
        assert!(counts.is_sorted() && counts.len() <= 4, "{counts:?}");
        assert_eq!(counts.last(), Some(&1_023));
    }
}

#[test]
fn an_older_message_is_told_only_when_it_has_more() {
    let mut receipts = receipts(4);
    [2, 3, 4].into_iter().for_each(|seq| receipts.track(seq, &"m0".into()));
    receipts.rise(risen(1, [4, 0]), 0, 0);
    receipts.rise(risen(2, [3, 0]), 0, 0);
    let told: Vec<(u64, u64)> =
        receipts.tellings().iter().map(|it| (it.seq, it.tally.count)).collect();
    assert_eq!(told, [(4, 1), (3, 2)]);
    assert!(receipts.tellings().is_empty(), "nothing is news twice");
}

#[test]
fn whoever_leaves_counts_no_more_and_whoever_comes_has_nothing_to_reach() {
    let mut receipts = receipts(3);
    receipts.track(2, &"m0".into());
    receipts.rise(risen(1, [2, 0]), 0, 0);
    assert_eq!(receipts.tellings()[0].tally, Tally { count: 1, of: 2 });
    receipts.note_member(&member("m1", 1, 3));
    receipts.note_member(&member("new", 4, 0));
    receipts.rise(risen(2, [2, 0]), 0, 0);
    assert_eq!(receipts.tellings()[0].tally, Tally { count: 2, of: 2 });
    receipts.note_member(&member("m0", 1, 5));
    receipts.rise(risen(2, [5, 0]), 0, 0);
    assert!(receipts.tellings().is_empty(), "the sender has left");
}

#[test]
fn what_was_sent_while_the_store_was_asked_is_tracked_once() {
    let mut receipts = Receipts::default();
    [7, 8].into_iter().for_each(|seq| receipts.track(seq, &"m0".into()));
    let group = Group::new(1, vec![member("m0", 1, 0), member("m1", 1, 0)]);
    let sender = fingerprint("m0", "");
    receipts.load(&group, &[], &[(6, sender), (7, sender)]);
    let seqs: Vec<u64> = receipts.sent["m0"].iter().map(|it| it.seq).collect();
    assert_eq!(seqs, [6, 7, 8]);
}

proptest! {
    #[test]
    fn counts_agree_with_their_naive_twin(
        rises in proptest::collection::vec((0usize..6, 0u64..9, 0u64..9), 0..40), seq in 0u64..10,
    ) {
        let mut receipts = receipts(6);
        let mut naive = [[0; 2]; 6];
        for (user, delivered, read) in rises {
            let watermarks = [delivered.max(read), read];
            receipts.rise(risen(user, watermarks), 0, 0);
            for kind in 0..2 {
                naive[user][kind] = naive[user][kind].max(watermarks[kind]);
            }
        }
        for kind in 0..2 {
            let expected = naive.iter().filter(|at| at[kind] >= seq).count() as u64;
            prop_assert_eq!(Counts::new(&receipts.standing[kind]).at_least(seq), expected);
        }
    }
}
