//! Grades by figures, budgets by their spelling, and shards that share one account.

use std::sync::Arc;

use proptest::prelude::*;

use super::account::{Account, Holder};
use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn grades_begin_at_their_shares_of_the_budget_and_end_lower() {
    let grades = Grades::new(1_000);
    let at = [(0, 0), (599, 0), (600, 1), (700, 2), (799, 2), (800, 3), (900, 4), (5_000, 4)];
    for (used, level) in at {
        assert_eq!(grades.at(used) as usize, level, "{used}");
    }
    let mut pressure = Pressure::None;
    let steps = [
        (950, Pressure::Refuse),
        (860, Pressure::Refuse),
        (850, Pressure::Refuse),
        (849, Pressure::Behind),
        (890, Pressure::Behind),
        (900, Pressure::Refuse),
        (700, Pressure::Quiet),
        (650, Pressure::Quiet),
        (640, Pressure::Shrink),
        (550, Pressure::Shrink),
        (549, Pressure::None),
        (599, Pressure::None),
    ];
    for (used, expected) in steps {
        pressure = grades.next(pressure, used);
        assert_eq!(pressure, expected, "at {used}");
    }
}

#[test]
fn without_a_budget_nothing_presses() {
    let mut ledger = Ledger::default();
    ledger.set(Class::Queues, usize::MAX / 4);
    ledger.hear(u64::MAX / 4, Pressure::None);
    assert_eq!(ledger.pressure(), Pressure::None);
    assert!(ledger.free() > usize::MAX / 8);
}

#[test]
fn a_shard_knows_within_its_turn() {
    let mut ledger = Ledger::new(Grades::new(1_000));
    ledger.hear(500, Pressure::None);
    ledger.change(Class::Queues, 0, 350);
    assert_eq!((ledger.pressure(), ledger.free()), (Pressure::Behind, 150));
    ledger.change(Class::Queues, 350, 0);
    assert_eq!(ledger.free(), 150, "the allocator may have it still");
    ledger.hear(500, Pressure::None);
    assert_eq!((ledger.pressure(), ledger.free()), (Pressure::None, 500));
    ledger.hear(500, Pressure::Refuse);
    assert_eq!(ledger.pressure(), Pressure::Refuse, "as the process is, until it hears otherwise");
}

#[test]
fn what_one_shard_holds_presses_the_others() {
    let account = Arc::new(Account::new(Grades::new(100 * MIB), 2));
    let (mut one, mut other) =
        (Holder::new(Arc::clone(&account), 0), Holder::new(Arc::clone(&account), 1));
    let (mut full, mut empty) = (Ledger::new(account.grades()), Ledger::new(account.grades()));
    full.set(Class::Queues, 60 * MIB as usize);
    full.set(Class::Sockets, 25 * MIB as usize);
    one.exchange(1_000, 10, &mut full);
    other.exchange(1_500, 0, &mut empty);
    assert_eq!(empty.pressure(), Pressure::Behind);
    assert_eq!(empty.free(), 15 * MIB as usize);
    assert_eq!(account.found(4 * MIB, 3 * MIB), (92 * MIB, Pressure::None, Pressure::Refuse));
    full.set(Class::Queues, 0);
    one.exchange(1_600, 10, &mut full);
    assert_eq!(full.pressure(), Pressure::Behind, "the allocator may have it still");
    one.exchange(2_000, 10, &mut full);
    assert_eq!(full.pressure(), Pressure::Refuse);
    assert_eq!(account.found(4 * MIB, 3 * MIB), (32 * MIB, Pressure::Refuse, Pressure::None));
}

#[test]
fn budgets_are_bytes_or_shares() {
    let good = [
        ("16M", MemoryBudget::Bytes(16 * MIB)),
        ("40m", MemoryBudget::Bytes(40 * MIB)),
        ("16777216", MemoryBudget::Bytes(16 * MIB)),
        ("2G", MemoryBudget::Bytes(2048 * MIB)),
        ("20000K", MemoryBudget::Bytes(20_000 * 1024)),
        ("1T", MemoryBudget::Bytes(MIB * MIB)),
        ("75%", MemoryBudget::Percent(75)),
        ("100%", MemoryBudget::Percent(100)),
    ];
    for (text, budget) in good {
        assert_eq!(text.parse(), Ok(budget), "{text}");
    }
    for text in ["", "M", "15M", "0%", "101%", "-1", "16MB", "1.5G", "99999999999999T", "all"] {
        assert!(text.parse::<MemoryBudget>().is_err_and(|why| why.contains("75%")), "{text}");
    }
    assert_eq!(MemoryBudget::Percent(75).bytes(1_000 * MIB), 750 * MIB);
    assert_eq!(MemoryBudget::Percent(1).bytes(1_000 * MIB), BUDGET_MIN);
    assert_eq!(MemoryBudget::Bytes(20 * MIB).bytes(0), 20 * MIB);
}

proptest! {
    #[test]
    fn grades_never_skip_what_use_demands_and_end_with_hysteresis(
        budget in 100u64..u64::MAX,
        uses in prop::collection::vec(0u64..=120, 1..100),
    ) {
        let grades = Grades::new(budget);
        let mut pressure = Pressure::None;
        for percent in uses {
            let used = (u128::from(budget) * u128::from(percent) / 100) as u64;
            let before = pressure;
            pressure = grades.next(before, used);
            prop_assert!(pressure >= grades.at(used));
            prop_assert!(pressure <= before.max(grades.at(used)));
            prop_assert_eq!(grades.next(pressure, used), pressure, "it is at rest");
        }
    }
}
