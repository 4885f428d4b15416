//! Users who write to members of the crowd, at a rate, whether or not those read.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::Books;
use crate::accounting::Accounts;
use crate::crowd::user_name;
use crate::fleet::{Conversation, Outboxes};
use crate::messages::{Bodies, Due, Incoming, OpenLoop};
use crate::run::{Measured, PerSecond, Schedule, Timeline, Workload, latency_histogram};
use crate::websocket::Opcode;

pub struct PourOptions {
    pub run: String,
    pub size: usize,
    /// Messages per second of this thread.
    pub rate: f64,
    /// Writers of all threads.
    pub all: usize,
    pub reader_count: usize,
}

/// See the module. Reader `r` is written to by writer `r % all` and by nobody else, so that each
/// has one conversation, whose places begin at 1.
pub struct Pour {
    options: PourOptions,
    first_position: usize,
    /// Readers of these writers, each with its own count of messages.
    readers: Vec<usize>,
    told: Vec<Vec<u64>>,
    intended_ns: Vec<Vec<u64>>,
    ready_count: usize,
    writer_count: usize,
    pace: OpenLoop,
    unanswered: u64,
    bodies: Bodies,
    frame: String,
    accounts: Accounts,
    first_refusal: Option<String>,
    sent: Histogram<u64>,
    per_second: PerSecond,
    books: Arc<Books>,
}

impl Pour {
    pub fn new(options: PourOptions, positions: Range<usize>, books: Arc<Books>) -> Pour {
        let readers: Vec<usize> = (0..options.reader_count)
            .filter(|reader| positions.contains(&(reader % options.all)))
            .collect();
        Pour {
            first_position: positions.start,
            told: vec![Vec::new(); readers.len()],
            intended_ns: vec![Vec::new(); readers.len()],
            readers,
            ready_count: 0,
            writer_count: positions.len(),
            pace: OpenLoop::new(options.rate),
            unanswered: 0,
            bodies: Bodies::new(options.size),
            frame: String::new(),
            accounts: Accounts::default(),
            first_refusal: None,
            sent: latency_histogram(),
            per_second: PerSecond::default(),
            options,
            books,
        }
    }

    fn send(&mut self, turn: u64, intended_ns: u64, outboxes: &mut Outboxes) {
        let index = (turn % self.readers.len() as u64) as usize;
        let reader = self.readers[index];
        let number = self.told[index].len();
        self.told[index].push(0);
        self.intended_ns[index].push(intended_ns);
        self.accounts.sent += 1;
        self.unanswered += 1;
        let to = user_name(&self.options.run, reader);
        let body = self.bodies.of(number as u64);
        self.frame.clear();
        write!(
            self.frame,
            r#"{{"t":"send","to":"{to}","id":"{reader}-{number}","body":"{body}"}}"#
        )
        .expect("writing to a string does not fail");
        let writer = reader % self.options.all - self.first_position;
        outboxes.send(writer, Opcode::Text, self.frame.as_bytes());
    }

    /// The places in our books of the message with this id.
    fn place(&self, id: &str) -> Option<(usize, usize)> {
        let (reader, number) = id.split_once('-')?;
        let (reader, number): (usize, usize) = (reader.parse().ok()?, number.parse().ok()?);
        let index = self.readers.binary_search(&reader).ok()?;
        (number < self.told[index].len()).then_some((index, number))
    }

    fn sent(&mut self, incoming: &Incoming, now_ns: u64) {
        let place = incoming.id.as_deref().and_then(|id| self.place(id));
        let (Some((index, number)), Some(seq @ 1..)) = (place, incoming.seq) else {
            self.accounts.corrupted += 1;
            return;
        };
        if self.told[index][number] > 0 {
            self.accounts.duplicated += 1;
            return;
        }
        let before = self.told[index][..number].iter().rev().find(|seq| **seq > 0);
        self.accounts.reordered += u64::from(before.is_some_and(|before| *before >= seq));
        self.told[index][number] = seq;
        self.accounts.acknowledged += 1;
        self.unanswered -= 1;
        self.sent.saturating_record(now_ns.saturating_sub(self.intended_ns[index][number]));
        self.per_second.count(now_ns, self.pace.schedule());
    }

    fn refused(&mut self, incoming: &Incoming) {
        self.first_refusal.get_or_insert_with(|| incoming.refusal());
        self.accounts.refused += 1;
        self.unanswered = self.unanswered.saturating_sub(1);
    }
}

impl Conversation for Pour {
    fn path(&self, index: usize) -> String {
        let writer = self.first_position + index;
        format!("/v1/connect?user={}-w{writer}&device=l", self.options.run)
    }

    fn message(&mut self, _: usize, payload: &[u8], now_ns: u64, _: &mut Outboxes) {
        let Some(incoming) = Incoming::read(payload) else {
            self.accounts.corrupted += 1;
            return;
        };
        match incoming.t.as_ref() {
            "sent" => self.sent(&incoming, now_ns),
            "error" => self.refused(&incoming),
            "synced" if !self.pace.has_begun() => self.ready_count += 1,
            _ => {}
        }
    }

    fn lost(&mut self, _: usize) {}
}

impl Workload for Pour {
    fn is_ready(&self) -> bool {
        self.ready_count >= self.writer_count
    }

    fn begin(&mut self, schedule: Schedule, _: &mut Outboxes) {
        self.pace.begin(schedule);
        if self.readers.is_empty() {
            self.pace.end();
        }
    }

    fn drive(&mut self, now_ns: u64, outboxes: &mut Outboxes) -> u64 {
        loop {
            match self.pace.next(now_ns) {
                Due::Now { number, intended_ns } => self.send(number, intended_ns, outboxes),
                Due::Later(due_ns) => return due_ns,
            }
        }
    }

    fn stop(&mut self, now_ns: u64) {
        self.pace.stop(now_ns);
    }

    fn has_sent_all(&self) -> bool {
        !self.pace.is_sending()
    }

    fn is_settled(&self) -> bool {
        self.unanswered == 0
    }

    fn finish(mut self) -> Measured {
        self.accounts.unanswered = self.unanswered;
        let told = self.readers.into_iter().zip(self.told);
        self.books.told.lock().expect("nobody panics while holding it").extend(told);
        Measured {
            accounts: self.accounts,
            latencies: vec![("sent to the crowd", self.sent)],
            per_second: self.per_second.0,
            timeline: Timeline::default(),
            first_refusal: self.first_refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_has_one_writer_and_places_are_booked() {
        let options =
            PourOptions { run: "r".to_owned(), size: 20, rate: 10.0, all: 2, reader_count: 5 };
        let (books, mut outboxes) = (Arc::new(Books::default()), Outboxes::new(1, 0));
        let mut pour = Pour::new(options, 1..2, Arc::clone(&books));
        assert_eq!(pour.path(0), "/v1/connect?user=r-w1&device=l");
        pour.message(0, br#"{"t":"synced","convos":{}}"#, 0, &mut outboxes);
        assert!(pour.is_ready());
        pour.begin(Schedule { start_ns: 1, measure_from_ns: 1, end_ns: u64::MAX }, &mut outboxes);
        pour.drive(250_000_001, &mut outboxes);
        assert_eq!((&pour.readers[..], pour.accounts.sent), (&[1, 3][..], 3));
        let mut say = |pour: &mut Pour, text: &str| {
            pour.message(0, text.as_bytes(), 300_000_000, &mut outboxes);
        };
        say(&mut pour, r#"{"t":"sent","id":"1-1","seq":2}"#);
        say(&mut pour, r#"{"t":"sent","id":"1-0","seq":1}"#);
        assert_eq!(pour.accounts.reordered, 0, "answers may overtake each other's books");
        say(&mut pour, r#"{"t":"sent","id":"1-0","seq":1}"#);
        say(&mut pour, r#"{"t":"sent","id":"2-0","seq":1}"#);
        say(&mut pour, r#"{"t":"error","id":"3-0","code":"unavailable"}"#);
        let accounts = pour.accounts;
        let seen = (accounts.duplicated, accounts.corrupted, accounts.refused);
        assert_eq!((seen, pour.is_settled()), ((1, 1, 1), true));
        pour.stop(250_000_001);
        pour.drive(400_000_000, &mut Outboxes::new(1, 0));
        assert!(pour.has_sent_all());
        let measured = pour.finish();
        assert_eq!(measured.latencies[0].1.len(), 2);
        assert_eq!(*books.told.lock().expect("whole"), [(1, vec![1, 2]), (3, vec![0])]);
        assert_eq!(books.told_count(), 2);
    }
}
