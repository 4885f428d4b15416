//! Service time: how long this system has served, over all lives. What expires, expires by it.
//!
//! It never runs faster than the monotonic clock, and stands while nobody could be served: without
//! an epoch, without the store, without any edge, and while this process got no processor. The log
//! says now and then how far it has come; a new life goes on from there. So a jump of the host's
//! clock or a month of outage expires nothing, and a crash makes everything expire a little later.

use super::core::Sequencer;
use crate::link::record::Record;

/// Between two records of the time, at most.
pub const LOG_EVERY_US_MAX: u64 = 60_000_000;
/// Between two records, at least.
const LOG_EVERY_US_MIN: u64 = 100_000;
/// A turn that is later than this after the one before was one of a paused process.
const STEP_US_MAX: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub struct ServiceTime {
    now_us: u64,
    logged_us: u64,
    /// The monotonic time of the last turn in which somebody could be served.
    served_at_us: Option<u64>,
    log_every_us: u64,
}

impl Default for ServiceTime {
    fn default() -> ServiceTime {
        let log_every_us = LOG_EVERY_US_MAX;
        ServiceTime { now_us: 0, logged_us: 0, served_at_us: None, log_every_us }
    }
}

impl ServiceTime {
    /// Goes on from the last logged time.
    pub fn recover(&mut self, logged_ms: u64) {
        self.now_us = logged_ms * 1_000;
        self.logged_us = self.now_us;
        self.served_at_us = None;
    }

    /// The shortest time after which something expires: the log is to be finer than that.
    pub fn set_shortest_ms(&mut self, shortest_ms: u64) {
        let tenth_us = shortest_ms.saturating_mul(100);
        self.log_every_us = tenth_us.clamp(LOG_EVERY_US_MIN, LOG_EVERY_US_MAX);
    }

    /// A turn at this monotonic time; `serves`: clients can be served.
    pub fn advance(&mut self, monotonic_us: u64, serves: bool) {
        if serves && let Some(before_us) = self.served_at_us {
            self.now_us += monotonic_us.saturating_sub(before_us).min(STEP_US_MAX);
        }
        self.served_at_us = serves.then_some(monotonic_us);
    }

    /// Milliseconds of service.
    pub fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// The time to be logged now, if it is due. It counts as logged from here on.
    pub fn take_due(&mut self) -> Option<u64> {
        if self.now_us < self.logged_us + self.log_every_us {
            return None;
        }
        self.logged_us = self.now_us;
        Some(self.now_ms())
    }
}

impl Sequencer {
    /// Once a turn.
    pub(super) fn pass_service_time(&mut self) {
        let serves = self.appender.is_some() && self.requests.is_open() && !self.edges.is_empty();
        self.service_time.advance(self.now.monotonic_us, serves);
        if self.appender.is_some()
            && let Some(ms) = self.service_time.take_due()
        {
            self.appender().append(Record::ServiceTime { ms }, Vec::new());
        }
    }

    /// Milliseconds of service, over all lives.
    pub fn service_ms(&self) -> u64 {
        self.service_time.now_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_US: u64 = 60_000_000;
    const MONTH_US: u64 = 30 * 24 * 60 * MINUTE_US;

    /// Turns of 100 ms.
    fn serve(time: &mut ServiceTime, from_us: u64, for_us: u64) {
        (from_us..=from_us + for_us).step_by(100_000).for_each(|us| time.advance(us, true));
    }

    #[test]
    fn it_runs_as_the_monotonic_clock_does_while_somebody_is_served() {
        let mut time = ServiceTime::default();
        serve(&mut time, 5_000, 10 * MINUTE_US);
        assert_eq!(time.now_ms(), 600_000);
    }

    #[test]
    fn a_month_without_service_is_no_time() {
        let mut time = ServiceTime::default();
        serve(&mut time, 0, MINUTE_US);
        time.advance(MINUTE_US + 1, false);
        time.advance(MONTH_US, false);
        time.advance(MONTH_US + 1, true);
        assert_eq!(time.now_ms(), 60_000);
        serve(&mut time, MONTH_US + 1, MINUTE_US);
        assert_eq!(time.now_ms(), 120_000);
    }

    #[test]
    fn a_process_that_was_paused_counts_one_second_at_most() {
        let mut time = ServiceTime::default();
        serve(&mut time, 0, MINUTE_US);
        time.advance(MONTH_US, true);
        assert_eq!(time.now_ms(), 61_000);
    }

    #[test]
    fn a_new_life_goes_on_from_what_was_logged_whatever_its_clock_says() {
        let mut time = ServiceTime::default();
        let mut logged = Vec::new();
        for us in (0..=150_000_000).step_by(100_000) {
            time.advance(us, true);
            logged.extend(time.take_due());
        }
        assert_eq!(logged, [60_000, 120_000], "once a minute");
        let mut next = ServiceTime::default();
        next.recover(120_000);
        next.advance(MONTH_US, true);
        assert_eq!((next.now_ms(), next.take_due()), (120_000, None));
        serve(&mut next, MONTH_US, MINUTE_US);
        assert_eq!(next.take_due(), Some(180_000));
    }

    #[test]
    fn what_expires_sooner_is_logged_more_often() {
        let mut time = ServiceTime::default();
        time.set_shortest_ms(3_000);
        serve(&mut time, 0, 300_000);
        assert_eq!(time.take_due(), Some(300));
        time.set_shortest_ms(0);
        assert_eq!(time.log_every_us, LOG_EVERY_US_MIN);
        time.set_shortest_ms(u64::MAX);
        assert_eq!(time.log_every_us, LOG_EVERY_US_MAX);
    }
}
