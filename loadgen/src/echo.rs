//! `echo`: every connection keeps the same number of messages under way and sends the next one when
//! one comes back. A closed loop: it measures what the server can do, not what users would feel.

use std::ops::Range;

use hdrhistogram::Histogram;

use crate::accounting::{Accounts, Order};
use crate::fleet::{Conversation, Outboxes};
use crate::run::{Measured, PerSecond, Schedule, Timeline, Workload, latency_histogram};
use crate::websocket::Opcode;

/// Each payload begins with its connection's place and its own number.
pub const SIZE_MIN: usize = 16;

#[derive(Clone, Debug)]
pub struct EchoOptions {
    pub path: String,
    pub size: usize,
    pub depth: usize,
    /// Messages of one connection; `None`: until the time is over.
    pub messages_each: Option<u64>,
}

/// See the module.
pub struct Echo {
    options: EchoOptions,
    first_position: usize,
    streams: Vec<Stream>,
    /// The next payload; all but its head is the same for every message.
    payload: Vec<u8>,
    schedule: Schedule,
    is_sending: bool,
    /// Messages that may still come back, of connections that are there.
    under_way: u64,
    accounts: Accounts,
    latencies: Histogram<u64>,
    per_second: PerSecond,
}

struct Stream {
    sent_count: u64,
    returned_count: u64,
    order: Order,
    /// When message `n` was sent, at `n % depth`.
    sent_ns: Vec<u64>,
    is_lost: bool,
}

impl Echo {
    /// For the connections whose places among all are `positions`.
    pub fn new(options: EchoOptions, positions: Range<usize>) -> Echo {
        let stream = || Stream {
            sent_count: 0,
            returned_count: 0,
            order: Order::default(),
            sent_ns: vec![0; options.depth],
            is_lost: false,
        };
        Echo {
            first_position: positions.start,
            streams: std::iter::repeat_with(stream).take(positions.len()).collect(),
            payload: pattern(options.size),
            schedule: Schedule::default(),
            is_sending: false,
            under_way: 0,
            accounts: Accounts::default(),
            latencies: latency_histogram(),
            per_second: PerSecond::default(),
            options,
        }
    }

    fn send_next(&mut self, index: usize, now_ns: u64, outboxes: &mut Outboxes) {
        let stream = &mut self.streams[index];
        let is_all = self.options.messages_each.is_some_and(|each| stream.sent_count >= each);
        if is_all || !self.is_sending || stream.is_lost {
            return;
        }
        let number = stream.sent_count;
        stream.sent_count += 1;
        self.under_way += 1;
        stream.sent_ns[(number % self.options.depth as u64) as usize] = now_ns;
        write_head(&mut self.payload, self.first_position + index, number);
        outboxes.send(index, Opcode::Binary, &self.payload);
    }

    /// The number of a payload that is one of ours.
    fn number_of(&self, index: usize, payload: &[u8]) -> Option<u64> {
        let (place, rest) = payload.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(*number);
        let is_ours = u64::from_le_bytes(*place) == (self.first_position + index) as u64
            && number < self.streams[index].sent_count
            && rest == &self.payload[SIZE_MIN..];
        is_ours.then_some(number)
    }
}

impl Conversation for Echo {
    fn path(&self, _: usize) -> String {
        self.options.path.clone()
    }

    fn message(&mut self, index: usize, payload: &[u8], now_ns: u64, outboxes: &mut Outboxes) {
        let Some(number) = self.number_of(index, payload) else {
            self.accounts.corrupted += 1;
            return;
        };
        let stream = &mut self.streams[index];
        if !stream.order.arrived(number, &mut self.accounts) {
            return;
        }
        stream.returned_count += 1;
        self.under_way -= u64::from(!stream.is_lost);
        let sent_ns = stream.sent_ns[(number % self.options.depth as u64) as usize];
        if sent_ns >= self.schedule.measure_from_ns && sent_ns < self.schedule.end_ns {
            self.latencies.saturating_record(now_ns - sent_ns);
        }
        self.per_second.count(now_ns, &self.schedule);
        self.send_next(index, now_ns, outboxes);
    }

    fn lost(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.is_lost = true;
        self.under_way -= stream.sent_count - stream.returned_count;
    }
}

impl Workload for Echo {
    fn begin(&mut self, schedule: Schedule, outboxes: &mut Outboxes) {
        self.schedule = schedule;
        self.is_sending = true;
        for index in 0..self.streams.len() {
            for _ in 0..self.options.depth {
                self.send_next(index, schedule.start_ns, outboxes);
            }
        }
    }

    fn drive(&mut self, now_ns: u64, _: &mut Outboxes) -> u64 {
        if now_ns >= self.schedule.end_ns {
            self.is_sending = false;
        }
        self.schedule.end_ns
    }

    fn stop(&mut self, _: u64) {
        self.is_sending = false;
    }

    fn has_sent_all(&self) -> bool {
        !self.is_sending || (self.options.messages_each.is_some() && self.is_settled())
    }

    fn is_settled(&self) -> bool {
        self.under_way == 0
    }

    fn finish(self) -> Measured {
        let mut accounts = self.accounts;
        for stream in &self.streams {
            accounts.sent += stream.sent_count;
            accounts.acknowledged += stream.returned_count;
            accounts.delivered += stream.returned_count;
            accounts.lost += stream.sent_count - stream.returned_count;
        }
        Measured {
            accounts,
            latencies: vec![("echo", self.latencies)],
            per_second: self.per_second.0,
            timeline: Timeline::default(),
            first_refusal: None,
        }
    }
}

/// Bytes without a short period, so that a shifted or mixed payload is noticed.
fn pattern(size: usize) -> Vec<u8> {
    let byte = |index: usize| ((index * index) ^ (index >> 3)) as u8;
    (0..size).map(byte).collect()
}

fn write_head(payload: &mut [u8], position: usize, number: u64) {
    payload[..8].copy_from_slice(&(position as u64).to_le_bytes());
    payload[8..SIZE_MIN].copy_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(messages_each: Option<u64>) -> EchoOptions {
        EchoOptions { path: "/".to_owned(), size: 20, depth: 2, messages_each }
    }

    fn payload(position: usize, number: u64) -> Vec<u8> {
        let mut payload = pattern(20);
        write_head(&mut payload, position, number);
        payload
    }

    fn begun(messages_each: Option<u64>) -> (Echo, Outboxes) {
        let (mut echo, mut outboxes) =
            (Echo::new(options(messages_each), 5..6), Outboxes::new(1, 5));
        let schedule = Schedule { start_ns: 0, measure_from_ns: 0, end_ns: 1_000 };
        echo.begin(schedule, &mut outboxes);
        (echo, outboxes)
    }

    #[test]
    fn as_many_are_under_way_as_asked_until_the_time_is_over() {
        let (mut echo, mut outboxes) = begun(None);
        assert_eq!(echo.streams[0].sent_count, 2);
        echo.message(0, &payload(5, 0), 100, &mut outboxes);
        assert_eq!((echo.streams[0].sent_count, echo.is_settled()), (3, false));
        echo.drive(1_000, &mut outboxes);
        echo.message(0, &payload(5, 1), 1_100, &mut outboxes);
        echo.message(0, &payload(5, 2), 1_100, &mut outboxes);
        assert!(echo.has_sent_all() && echo.is_settled());
        let measured = echo.finish();
        assert!(measured.accounts.failures().is_empty(), "{:?}", measured.accounts);
        assert_eq!((measured.accounts.delivered, measured.latencies[0].1.len()), (3, 3));
        assert_eq!(measured.per_second, [1]);
    }

    #[test]
    fn a_number_of_messages_ends_by_itself() {
        let (mut echo, mut outboxes) = begun(Some(3));
        for number in 0..3 {
            assert!(!echo.has_sent_all());
            echo.message(0, &payload(5, number), 100, &mut outboxes);
        }
        assert!(echo.has_sent_all());
    }

    #[test]
    fn foreign_repeated_and_missing_echoes_are_noticed() {
        let (mut echo, mut outboxes) = begun(None);
        echo.message(0, &payload(6, 0), 1, &mut outboxes);
        echo.message(0, &payload(5, 9), 1, &mut outboxes);
        echo.message(0, b"short", 1, &mut outboxes);
        echo.message(0, &payload(5, 1), 1, &mut outboxes);
        echo.message(0, &payload(5, 1), 1, &mut outboxes);
        let accounts = echo.finish().accounts;
        let seen = (accounts.corrupted, accounts.gaps, accounts.duplicated, accounts.lost);
        assert_eq!(seen, (3, 1, 1, 2));
    }
}
