//! What the workloads that write to users have in common: when a message is due, what is in it, how
//! the server's frames are read, and what is measured of it.
//!
//! An open loop: message `k` is due at `start + k / rate`, and its latency counts from there, also
//! when the generator or the socket could not take it in time. A loop that waits for answers would
//! leave out just the messages that a slow moment delays (coordinated omission).

use std::borrow::Cow;

use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::accounting::Accounts;
use crate::run::{Measured, PerSecond, Schedule, Timeline, latency_histogram};

/// A body begins with its message's number in this many hexadecimal digits.
pub const SIZE_MIN: usize = 16;
const NS_PER_S: f64 = 1e9;

/// The fields of the server's frames that matter here.
#[derive(Debug, Deserialize)]
pub struct Incoming<'a> {
    #[serde(borrow)]
    pub t: Cow<'a, str>,
    #[serde(borrow, default)]
    pub id: Option<Cow<'a, str>>,
    pub seq: Option<u64>,
    #[serde(borrow, default)]
    pub kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub body: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
}

impl Incoming<'_> {
    /// `None` when it is no frame of a server's.
    pub fn read(payload: &[u8]) -> Option<Incoming<'_>> {
        serde_json::from_slice(payload).ok()
    }

    /// The id, where it is a number.
    pub fn number(&self) -> Option<u64> {
        self.id.as_deref()?.parse().ok()
    }

    /// Of an `error`: the server's code and message.
    pub fn refusal(&self) -> String {
        let text = |field: &Option<_>| field.as_deref().unwrap_or("?").to_owned();
        format!("{}: {}", text(&self.code), text(&self.message))
    }
}

/// Bodies of one size, each with its message's number in front.
pub struct Bodies {
    filling: String,
}

impl Bodies {
    /// Of `size` bytes, at least [`SIZE_MIN`].
    pub fn new(size: usize) -> Bodies {
        Bodies { filling: "x".repeat(size - SIZE_MIN) }
    }

    /// The digits and the filling of one, to be written one after the other.
    pub fn of(&self, number: u64) -> impl std::fmt::Display + '_ {
        std::fmt::from_fn(move |out| write!(out, "{number:016x}{}", self.filling))
    }

    pub fn is_of(&self, number: u64, body: &str) -> bool {
        let Some((head, filling)) = body.split_at_checked(SIZE_MIN) else {
            return false;
        };
        u64::from_str_radix(head, 16) == Ok(number) && filling == self.filling
    }
}

/// When messages are due; see the module.
pub struct OpenLoop {
    rate: f64,
    schedule: Schedule,
    /// Messages that were due so far.
    due_count: u64,
    is_sending: bool,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// To send this message, of all from 0 on.
    Now { number: u64, intended_ns: u64 },
    /// To come again then.
    Later(u64),
}

impl OpenLoop {
    /// At `rate` messages per second.
    pub fn new(rate: f64) -> OpenLoop {
        OpenLoop { rate, schedule: Schedule::default(), due_count: 0, is_sending: false }
    }

    pub fn begin(&mut self, schedule: Schedule) {
        self.schedule = schedule;
        self.is_sending = true;
    }

    pub fn has_begun(&self) -> bool {
        self.schedule.start_ns > 0
    }

    pub fn is_sending(&self) -> bool {
        self.is_sending
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The next message, which counts as sent, or when there is one.
    pub fn next(&mut self, now_ns: u64) -> Due {
        let offset_ns = (self.due_count as f64 * NS_PER_S / self.rate) as u64;
        let intended_ns = self.schedule.start_ns + offset_ns;
        if intended_ns >= self.schedule.end_ns || !self.is_sending {
            self.is_sending = false;
            return Due::Later(self.schedule.end_ns);
        }
        if intended_ns > now_ns {
            return Due::Later(intended_ns);
        }
        let number = self.due_count;
        self.due_count += 1;
        Due::Now { number, intended_ns }
    }

    /// Nothing is due later than now.
    pub fn stop(&mut self, now_ns: u64) {
        self.schedule.end_ns = self.schedule.end_ns.min(now_ns);
    }

    /// There is nothing to send at all.
    pub fn end(&mut self) {
        self.is_sending = false;
    }
}

/// Latencies from when messages were to be sent, of those that were to be in the window.
pub struct Measure {
    pub sent: Histogram<u64>,
    pub delivered: Histogram<u64>,
    pub late: Histogram<u64>,
    per_second: PerSecond,
    timeline: Timeline,
}

impl Default for Measure {
    fn default() -> Measure {
        Measure {
            sent: latency_histogram(),
            delivered: latency_histogram(),
            late: latency_histogram(),
            per_second: PerSecond::default(),
            timeline: Timeline::default(),
        }
    }
}

impl Measure {
    /// The generator gave a message to the kernel.
    pub fn gave(&mut self, intended_ns: u64, now_ns: u64, schedule: &Schedule) {
        if schedule.is_measured(intended_ns) {
            self.late.saturating_record(now_ns - intended_ns);
        }
    }

    /// The server said that it has the message.
    pub fn sent(&mut self, intended_ns: u64, now_ns: u64, schedule: &Schedule) {
        if schedule.is_measured(intended_ns) {
            self.sent.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// Somebody heard the message for the first time.
    pub fn delivered(&mut self, intended_ns: u64, now_ns: u64, schedule: &Schedule) {
        if schedule.is_measured(intended_ns) {
            let latency_ns = now_ns.saturating_sub(intended_ns);
            self.delivered.saturating_record(latency_ns);
            self.timeline.record(intended_ns, latency_ns, schedule);
        }
    }

    /// Somebody heard a message, whichever.
    pub fn heard(&mut self, now_ns: u64, schedule: &Schedule) {
        self.per_second.count(now_ns, schedule);
    }

    pub fn finish(self, accounts: Accounts, first_refusal: Option<String>) -> Measured {
        Measured {
            accounts,
            latencies: vec![
                ("sent", self.sent),
                ("delivered", self.delivered),
                ("sent late by the generator", self.late),
            ],
            per_second: self.per_second.0,
            timeline: self.timeline,
            first_refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_their_rate_until_the_end() {
        let mut pace = OpenLoop::new(10.0);
        assert_eq!(pace.next(5), Due::Later(0), "it has not begun");
        pace.begin(Schedule { start_ns: 7, measure_from_ns: 7, end_ns: 1_000_000_007 });
        assert_eq!(pace.next(7), Due::Now { number: 0, intended_ns: 7 });
        assert_eq!(pace.next(7), Due::Later(100_000_007));
        // Whoever comes late has them all, each with the moment it was to be sent.
        assert_eq!(pace.next(500_000_000), Due::Now { number: 1, intended_ns: 100_000_007 });
        assert_eq!(pace.next(500_000_000), Due::Now { number: 2, intended_ns: 200_000_007 });
        pace.stop(300_000_007);
        assert_eq!(pace.next(500_000_000), Due::Later(300_000_007));
        assert!(!pace.is_sending());
    }

    #[test]
    fn bodies_are_of_their_message_alone() {
        let bodies = Bodies::new(18);
        let body = bodies.of(26).to_string();
        assert_eq!(body, "000000000000001axx");
        assert!(bodies.is_of(26, &body) && !bodies.is_of(27, &body));
        for other in ["", "000000000000001ax", "000000000000001axxx", "zz0000000000001axx"] {
            assert!(!bodies.is_of(26, other), "{other}");
        }
    }

    #[test]
    fn frames_are_read_and_refusals_are_said_in_the_servers_words() {
        let refused = br#"{"t":"error","id":"7","code":"not_found","message":"nobody"}"#;
        let refused = Incoming::read(refused).expect("a frame");
        assert_eq!((refused.number(), refused.refusal()), (Some(7), "not_found: nobody".into()));
        let bare = Incoming::read(br#"{"t":"error","id":"x"}"#).expect("a frame");
        assert_eq!((bare.number(), bare.refusal()), (None, "?: ?".into()));
        assert!(Incoming::read(b"not json").is_none());
    }
}
