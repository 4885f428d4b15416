//! The limits, by a clock of the tests' own.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn at(monotonic_us: u64) -> Now {
    Now { monotonic_us, unix_ms: 0 }
}

fn admission(handshakes_per_second: u32, shards: u32) -> Admission {
    let options = AdmissionOptions { handshakes_per_second, shards, ..AdmissionOptions::default() };
    Admission::new(options, at(0))
}

fn per_address(connections_per_address: u32, ipv6_prefix: u8) -> Admission {
    let options =
        AdmissionOptions { connections_per_address, ipv6_prefix, ..AdmissionOptions::default() };
    Admission::new(options, at(0))
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

/// How many are let in at this time.
fn drain(admission: &mut Admission, now_us: u64) -> u64 {
    (0..).take_while(|_| admission.admit(at(now_us), 0, None).is_ok()).count() as u64
}

#[test]
fn without_limits_everybody_comes_in() {
    let mut admission = Admission::new(AdmissionOptions::default(), at(0));
    assert!(!admission.wants_addresses());
    for slot in 0..100_000 {
        assert_eq!(admission.admit(at(0), slot, address("10.0.0.1")), Ok(()));
    }
}

#[test]
fn a_second_has_so_many_and_no_more_gather() {
    let mut admission = admission(10, 1);
    assert_eq!(drain(&mut admission, 0), 10);
    assert_eq!(drain(&mut admission, 99_999), 0);
    assert_eq!(drain(&mut admission, 100_000), 1);
    assert_eq!(drain(&mut admission, 3_600_000_000), 10);
    assert_eq!(drain(&mut admission, u64::MAX), 10);
    assert_eq!(drain(&mut admission, 0), 0, "a clock that went back brings nothing");
    assert_eq!(drain(&mut admission, u64::MAX), 0);
}

/// The classic: steps so short that each brings less than a token, and a refill that rounds down.
#[test]
fn microseconds_add_up_whatever_the_rate() {
    for (rate, shards) in [(1, 1), (3, 1), (7, 3), (999, 64), (1, 7), (333_333, 1)] {
        let mut admission = admission(rate, shards);
        let burst = drain(&mut admission, 0);
        assert_eq!(burst, u64::from(rate / shards).max(1), "{rate} over {shards}");
        let taken: u64 = (1..=7_000_000).map(|us| drain(&mut admission, us)).sum();
        let left_over = u64::from(rate % shards) * 1_000_000 / u64::from(shards);
        let expected = (u64::from(rate) * 7_000_000 + left_over) / (1_000_000 * u64::from(shards));
        assert!(taken.abs_diff(expected) <= 1, "{rate} over {shards}: {taken}, not {expected}");
    }
}

#[test]
fn the_shares_of_all_shards_are_the_rate() {
    // 10 do not divide by 64; a share rounded down would be none at all.
    let mut shards: Vec<Admission> = (0..64).map(|_| admission(10, 64)).collect();
    shards.iter_mut().for_each(|shard| assert_eq!(drain(shard, 0), 1));
    // Each may keep one token, so they are asked often enough to keep none: one comes in 6.4 s.
    let tenths = (1..=640).map(|tenth: u64| tenth * 100_000);
    let taken: u64 =
        tenths.map(|us| shards.iter_mut().map(|shard| drain(shard, us)).sum::<u64>()).sum();
    assert_eq!(taken, 640);
}

#[test]
fn the_refused_are_put_off_to_tokens_of_their_own() {
    let mut admission = admission(100, 1);
    drain(&mut admission, 0);
    let mut told = BTreeMap::<u64, u64>::new();
    // The drain was refused once at its end; with that one they are 3,000, a whole round.
    for _ in 0..2_999 {
        let refused = admission.admit(at(0), 0, None).expect_err("nothing is left");
        assert_eq!(refused.reason, Reason::Rate);
        *told.entry(refused.retry_after_s).or_default() += 1;
    }
    assert_eq!(told.len(), 30);
    assert!(told.iter().all(|(second, count)| *count == if *second == 1 { 99 } else { 100 }));
    // A new round begins at the front, and after a pause it is short again.
    assert_eq!(admission.admit(at(0), 0, None).map_err(|r| r.retry_after_s), Err(1));
    drain(&mut admission, 60_000_000);
    let refused = admission.admit(at(60_000_000), 0, None);
    assert_eq!(refused.map_err(|refused| refused.retry_after_s), Err(1));
}

#[test]
fn whoever_comes_back_when_told_is_let_in() {
    let mut admission = admission(50, 3);
    let mut waiting: Vec<(u64, u32)> = (0..400).map(|client| (0, client)).collect();
    let (mut attempts, mut seconds) = (0, 0);
    while !waiting.is_empty() {
        let due = waiting.extract_if(.., |(at_s, _)| *at_s <= seconds).collect::<Vec<_>>();
        for (_, client) in due {
            attempts += 1;
            if let Err(refused) = admission.admit(at(seconds * 1_000_000), client, None) {
                waiting.push((seconds + refused.retry_after_s, client));
            }
        }
        seconds += 1;
    }
    assert!(seconds <= 400 * 3 / 50 + 5, "{seconds} s");
    assert!(attempts <= 2 * 400 + 40, "{attempts} attempts of 400");
}

#[test]
fn a_very_low_rate_is_told_honestly() {
    let mut admission = admission(1, 64);
    assert_eq!(drain(&mut admission, 0), 1);
    let refused = admission.admit(at(0), 0, None).expect_err("the next is due in 64 s");
    assert_eq!(refused.retry_after_s, 128, "64 s are promised to the one before");
}

#[test]
fn an_address_has_so_many_connections_at_a_time() {
    let mut admission = per_address(2, 64);
    assert!(admission.wants_addresses());
    let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
    assert_eq!(admission.admit(at(0), 0, one), Ok(()));
    assert_eq!(admission.admit(at(0), 1, one), Ok(()));
    let refused = admission.admit(at(0), 2, one).expect_err("two are there");
    assert_eq!(refused.reason, Reason::Address);
    admission.left(2);
    assert!(admission.admit(at(0), 3, one).is_err(), "the refused one held no place");
    assert_eq!(admission.admit(at(0), 4, other), Ok(()));
    assert_eq!(admission.admit(at(0), 5, None), Ok(()));
    admission.left(0);
    assert_eq!(admission.admit(at(0), 0, one), Ok(()));
}

#[test]
fn an_ipv6_network_is_one_client_and_a_mapped_address_is_ipv4() {
    let mut admission = per_address(1, 64);
    assert!(admission.admit(at(0), 0, address("2001:db8:1:2::1")).is_ok());
    assert!(admission.admit(at(0), 1, address("2001:db8:1:2:ffff::7")).is_err());
    assert!(admission.admit(at(0), 2, address("2001:db8:1:3::1")).is_ok());
    assert!(admission.admit(at(0), 3, address("192.0.2.1")).is_ok());
    assert!(admission.admit(at(0), 4, address("::ffff:192.0.2.1")).is_err());
    assert!(admission.admit(at(0), 5, address("::ffff:192.0.2.2")).is_ok());
    let mut whole = per_address(1, 128);
    assert!(whole.admit(at(0), 0, address("2001:db8::1")).is_ok());
    assert!(whole.admit(at(0), 1, address("2001:db8::2")).is_ok());
    assert!(whole.admit(at(0), 2, address("2001:db8::2")).is_err());
    let mut half = per_address(1, 1);
    assert!(half.admit(at(0), 0, address("::1")).is_ok());
    assert!(half.admit(at(0), 1, address("7fff::")).is_err());
    assert!(half.admit(at(0), 2, address("8000::")).is_ok());
}

#[test]
fn the_refused_take_no_token_and_the_unlucky_no_place() {
    let mut admission = Admission::new(
        AdmissionOptions {
            handshakes_per_second: 2,
            connections_per_address: 1,
            ..AdmissionOptions::default()
        },
        at(0),
    );
    let reason = |outcome: Result<(), Refused>| outcome.map_err(|refused| refused.reason);
    assert!(admission.admit(at(0), 0, address("10.0.0.1")).is_ok());
    for _ in 0..100 {
        let outcome = admission.admit(at(0), 1, address("10.0.0.1"));
        assert_eq!(reason(outcome), Err(Reason::Address));
    }
    assert!(admission.admit(at(0), 1, address("10.0.0.2")).is_ok());
    assert_eq!(reason(admission.admit(at(0), 2, address("10.0.0.3"))), Err(Reason::Rate));
    assert!(admission.admit(at(500_000), 2, address("10.0.0.3")).is_ok(), "no place was taken");
}

/// An attacker with a whole /32 of IPv6 costs what its connections cost and no more.
#[test]
fn the_tables_hold_whoever_is_connected_and_nobody_else() {
    let mut admission = per_address(1, 64);
    for round in 0..100_000_u64 {
        let network = u128::from(round) << 64 | 0x2001_0db8 << 96;
        let slot = (round % 10) as u32;
        admission.left(slot);
        let from = Some(IpAddr::V6(Ipv6Addr::from_bits(network)));
        assert_eq!(admission.admit(at(0), slot, from), Ok(()));
        assert!(admission.admit(at(0), 99, from).is_err());
        let addresses = admission.addresses.as_ref().expect("there is a limit");
        assert!(addresses.counts.len() <= 10 && addresses.of_slots.len() <= 10);
    }
    (0..10).for_each(|slot| admission.left(slot));
    let addresses = admission.addresses.as_ref().expect("there is a limit");
    assert!(addresses.counts.is_empty() && addresses.of_slots.is_empty());
}

/// Steps of a clock: still, short, long, extreme.
fn step() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..50_u64, 1..2_000_000_u64, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #[test]
    fn never_more_than_the_burst_and_the_rate(
        rate in 1..=u32::MAX,
        shards in 1..=1_024_u32,
        start in any::<u64>(),
        steps in prop::collection::vec((step(), 1..20_u8), 1..200),
    ) {
        let mut bucket = Bucket::new(rate, shards, start);
        let (full, token) = (u128::from(bucket.full), u128::from(bucket.parts_per_token));
        let (mut now_us, mut taken) = (start, 0_u128);
        for (step, attempts) in steps {
            now_us = now_us.saturating_add(step);
            for _ in 0..attempts {
                match bucket.take(now_us) {
                    true => taken += 1,
                    false => prop_assert!(bucket.promise_s() >= 1),
                }
            }
            prop_assert!(bucket.level <= bucket.full);
            let gained = u128::from(now_us - start) * u128::from(rate);
            prop_assert!(taken * token <= full + gained);
        }
    }

    #[test]
    fn whoever_takes_all_there_is_gets_the_rate(
        rate in 1..100_000_u32,
        shards in 1..=64_u32,
        shares in prop::collection::vec(0.0..1.0_f64, 1..100),
    ) {
        let mut bucket = Bucket::new(rate, shards, 0);
        while bucket.take(0) {}
        // Below a token is left: no step brings more than there is room for.
        let step_us_max = (bucket.full - bucket.parts_per_token) / bucket.parts_per_us;
        let (mut now_us, mut taken) = (0, 0);
        let level = u128::from(bucket.level);
        for share in shares {
            now_us += (step_us_max as f64 * share) as u64;
            while bucket.take(now_us) {
                taken += 1;
            }
        }
        let gained = level + u128::from(now_us) * u128::from(rate);
        prop_assert_eq!(taken, gained / u128::from(bucket.parts_per_token));
    }

    #[test]
    fn many_short_steps_are_one_long_step(
        rate in 1..1_000_000_u32,
        shards in 1..=64_u32,
        steps in prop::collection::vec(0..1_000_u64, 1..200),
    ) {
        let mut short = Bucket::new(rate, shards, 0);
        let mut long = Bucket::new(rate, shards, 0);
        (short.level, long.level) = (0, 0);
        // Too little to take at the first step is what makes the levels comparable.
        (short.parts_per_token, long.parts_per_token) = (u64::MAX, u64::MAX);
        let mut now_us = 0;
        for step in steps {
            now_us += step;
            prop_assert!(!short.take(now_us));
        }
        prop_assert!(!long.take(now_us));
        prop_assert_eq!(short.level, long.level);
    }

    #[test]
    fn the_counts_are_those_of_a_naive_list(
        events in prop::collection::vec((0..12_u32, 0..4_u8, any::<bool>()), 1..300),
    ) {
        let mut admission = per_address(2, 64);
        let mut list: Vec<(u32, IpAddr)> = Vec::new();
        for (slot, host, leaves) in events {
            if leaves || list.iter().any(|(taken, _)| *taken == slot) {
                admission.left(slot);
                list.retain(|(taken, _)| *taken != slot);
                continue;
            }
            let from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, host));
            let is_room = list.iter().filter(|(_, it)| *it == from).count() < 2;
            prop_assert_eq!(admission.admit(at(0), slot, Some(from)).is_ok(), is_room);
            list.extend(is_room.then_some((slot, from)));
        }
    }
}

fn measured(share_per_second: u64) -> Admission {
    let options = AdmissionOptions { is_measured: true, shards: 7, ..AdmissionOptions::default() };
    let mut admission = Admission::new(options, at(0));
    admission.set_share(share_per_second, at(0));
    admission
}

#[test]
fn a_measured_share_is_this_shards_own_and_follows_what_is_seen() {
    let mut admission = measured(10);
    assert_eq!(drain(&mut admission, 0), 10);
    assert_eq!(drain(&mut admission, 500_000), 5);
    // What has gathered until then came at the old rate.
    admission.set_share(100, at(1_000_000));
    assert_eq!(drain(&mut admission, 1_000_000), 5);
    assert_eq!(drain(&mut admission, 1_100_000), 10);
    assert_eq!(drain(&mut admission, 9_000_000), 100);
    // A lower one keeps no more than its own second's worth.
    drain(&mut admission, 9_000_000);
    admission.set_share(10, at(20_000_000));
    assert_eq!(drain(&mut admission, 20_000_000), 10);
    let refused = admission.admit(at(20_000_000), 0, None);
    assert_eq!(refused.map_err(|refused| refused.reason), Err(Reason::Rate));
    admission.set_share(0, at(20_000_000));
    assert_eq!(drain(&mut admission, 21_000_000), 1, "one a second is the least");
}

#[test]
fn what_the_operator_set_follows_nothing() {
    let mut given = admission(10, 1);
    given.set_share(1_000, at(0));
    assert_eq!(drain(&mut given, 0), 10);
    let mut off = Admission::new(AdmissionOptions::default(), at(0));
    off.set_share(1, at(0));
    assert!((0..1_000).all(|slot| off.admit(at(0), slot, None).is_ok()));
}

#[test]
fn the_refused_are_put_off_by_the_rate_of_now() {
    let mut admission = measured(1_000);
    drain(&mut admission, 0);
    admission.set_share(2, at(0));
    let told: Vec<u64> = (0..4)
        .filter_map(|_| admission.admit(at(0), 0, None).err())
        .map(|refused| refused.retry_after_s)
        .collect();
    assert_eq!(told, [1, 2, 2, 3], "half a second each, after the one that was promised before");
}
