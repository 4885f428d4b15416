//! Proofs of identity that end while their connection is open.

use super::*;
use crate::edge::ticket::{TICKET_LIFETIME_MS, Ticket};

/// The stage's time of day at its start.
const START_UNIX_MS: u64 = 5_000;

impl Stage {
    /// Opens a connection whose term ends `after_ms` from now.
    fn open_for(&mut self, slot: u32, after_ms: u64, bounds_ticket: bool) {
        self.open(slot);
        let now = self.now;
        let end = Some(now.unix_ms + after_ms);
        let ticket_ends_unix_ms = end.filter(|_| bounds_ticket);
        let term = Term { ends_unix_ms: end, ticket_ends_unix_ms };
        self.run(|router, _| router.limit(id(slot), term, now));
    }

    fn ticket(&mut self, slot: u32) -> Ticket {
        let welcome = &self.heard(slot)[0];
        let ticket = welcome["ticket"].as_str().expect("a welcome");
        Tickets::new(b"secret").check(ticket, START_UNIX_MS).expect("valid")
    }
}

#[test]
fn a_connection_is_closed_when_its_token_ends_and_not_before() {
    let mut stage = Stage::connected();
    stage.open_for(0, 2_000, false);
    stage.open_for(1, 1_000, false);
    stage.open(2);
    (0..3).for_each(|slot| stage.welcome(slot));
    stage.tick_after(999);
    assert!(stage.audience.closes.is_empty());
    stage.tick_after(1);
    assert_eq!(stage.audience.closes, [(id(1), 4004)]);
    stage.tick_after(1_000);
    assert_eq!(stage.audience.closes, [(id(1), 4004), (id(0), 4004)]);
    stage.tick_after(1_000_000_000);
    assert_eq!(stage.audience.closes.len(), 2, "the third has no end");
    assert_eq!(stage.router.counters().cut_expired, 2);
    assert_eq!(stage.router.counters().connections, 1);
    assert_eq!(stage.submitted()[6..], ["lost 1 1 0", "lost 0 0 0"]);
}

#[test]
fn it_ends_before_the_welcome_as_well() {
    let mut stage = Stage::connected();
    stage.open_for(0, 1_000, false);
    stage.tick_after(1_000);
    assert_eq!(stage.audience.closes, [(id(0), 4004)]);
    stage.welcome(0);
    assert_eq!(stage.submitted(), ["open 0", "close 0 0"]);
}

#[test]
fn a_clock_that_is_set_moves_no_end() {
    let mut stage = Stage::connected();
    stage.open_for(0, 10_000, false);
    stage.now.unix_ms += 1_000_000;
    stage.tick_after(9_999);
    assert!(stage.audience.closes.is_empty());
    stage.now.unix_ms = 0;
    stage.tick_after(1);
    assert_eq!(stage.audience.closes, [(id(0), 4004)]);
}

#[test]
fn the_next_tenant_of_a_slot_is_not_cut_for_the_last_one() {
    let mut stage = Stage::connected();
    stage.open_for(0, 1_000, false);
    stage.run(|router, around| router.closed(id(0), None, around));
    let next = ConnectionId { slot: 0, generation: 2 };
    stage.run(|router, around| {
        router.opened(next, admitted("bob", None), around);
    });
    stage.tick_after(5_000);
    assert!(stage.audience.closes.is_empty());
}

#[test]
fn an_end_in_the_past_is_now_and_one_beyond_time_never() {
    let mut stage = Stage::connected();
    stage.open_for(0, 0, false);
    stage.open(1);
    let now = stage.now;
    let term = Term { ends_unix_ms: Some(u64::MAX), ticket_ends_unix_ms: Some(u64::MAX) };
    stage.run(|router, _| router.limit(id(1), term, now));
    stage.tick_after(0);
    assert_eq!(stage.audience.closes, [(id(0), 4004)]);
    stage.welcome(1);
    assert_eq!(stage.ticket(1).expires_unix_ms, START_UNIX_MS + TICKET_LIFETIME_MS);
}

#[test]
fn a_ticket_outlives_the_token_but_no_ticket_outlives_the_ticket_before() {
    let mut stage = Stage::connected();
    stage.open_for(0, 1_000, false);
    stage.open_for(1, 1_000, true);
    stage.welcome(0);
    stage.welcome(1);
    assert_eq!(stage.ticket(0).expires_unix_ms, START_UNIX_MS + TICKET_LIFETIME_MS);
    assert_eq!(stage.ticket(1).expires_unix_ms, START_UNIX_MS + 1_000);
}

#[test]
fn connections_that_come_and_go_leave_no_heap_behind() {
    let mut stage = Stage::connected();
    let now = stage.now;
    stage.open_for(1, 3_600_000, false);
    for generation in 1..10_000 {
        let id = ConnectionId { slot: 0, generation };
        let term = Term { ends_unix_ms: Some(u64::MAX / 2), ticket_ends_unix_ms: None };
        stage.run(|router, around| {
            router.opened(id, admitted("bob", None), around);
            router.limit(id, term, now);
            router.closed(id, None, around);
        });
    }
    assert!(stage.router.deadlines.len() < 1_100, "{}", stage.router.deadlines.len());
    stage.tick_after(3_600_000);
    assert_eq!(stage.audience.closes, [(id(1), 4004)]);
}
