//! `chat`: pairs of users, of which one writes to the other, at a rate that the server's answers do
//! not slow down (see `messages`).

mod ledger;

use std::fmt::Write as _;
use std::ops::Range;

use crate::accounting::Accounts;
use crate::fleet::{Conversation, Outboxes};
use crate::messages::{Bodies, Due, Incoming, Measure, OpenLoop};
use crate::run::{Measured, Schedule, Workload};
use crate::websocket::Opcode;
use ledger::Ledger;

/// Connections of a pair: the one that writes, and the one that hears it.
pub const PAIR: usize = 2;

#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Part of every user's name: no run finds the conversations of another.
    pub run: String,
    /// Size of a body in bytes.
    pub size: usize,
    /// Messages per second of all pairs of this thread together.
    pub rate: f64,
}

/// See the module.
pub struct Chat {
    pairs: Vec<Pair>,
    ready_count: usize,
    pace: OpenLoop,
    bodies: Bodies,
    frame: String,
    accounts: Accounts,
    first_refusal: Option<String>,
    measure: Measure,
}

struct Pair {
    sender: String,
    receiver: String,
    convo: String,
    ledger: Ledger,
}

impl Chat {
    /// For the connections whose places among all are `positions`: pairs, the sender first.
    pub fn new(options: ChatOptions, positions: Range<usize>) -> Chat {
        let pair = |position: usize| {
            let name = |side| format!("load-{}-{}-{side}", options.run, position / PAIR);
            let (sender, receiver) = (name("a"), name("b"));
            let convo = format!("dm:{sender}:{receiver}");
            Pair { sender, receiver, convo, ledger: Ledger::default() }
        };
        Chat {
            pairs: positions.step_by(PAIR).map(pair).collect(),
            ready_count: 0,
            pace: OpenLoop::new(options.rate),
            bodies: Bodies::new(options.size),
            frame: String::new(),
            accounts: Accounts::default(),
            first_refusal: None,
            measure: Measure::default(),
        }
    }

    fn send(&mut self, turn: u64, intended_ns: u64, now_ns: u64, outboxes: &mut Outboxes) {
        let index = (turn % self.pairs.len() as u64) as usize;
        let pair = &mut self.pairs[index];
        let number = pair.ledger.submit(intended_ns, &mut self.accounts);
        self.frame.clear();
        let (receiver, body) = (&pair.receiver, self.bodies.of(number));
        write!(self.frame, r#"{{"t":"send","to":"{receiver}","id":"{number}","body":"{body}"}}"#)
            .expect("writing to a string does not fail");
        outboxes.send(index * PAIR, Opcode::Text, self.frame.as_bytes());
        self.measure.gave(intended_ns, now_ns, self.pace.schedule());
    }

    fn sent(&mut self, index: usize, incoming: &Incoming, now_ns: u64) {
        let (Some(number), Some(seq)) = (incoming.number(), incoming.seq) else {
            self.accounts.corrupted += 1;
            return;
        };
        let ledger = &mut self.pairs[index / PAIR].ledger;
        if let Some(intended_ns) = ledger.confirm(number, seq, &mut self.accounts) {
            self.measure.sent(intended_ns, now_ns, self.pace.schedule());
        }
    }

    fn heard(&mut self, index: usize, incoming: &Incoming, now_ns: u64) {
        let (Some(number), Some(seq)) = (incoming.number(), incoming.seq) else {
            self.accounts.corrupted += 1;
            return;
        };
        if !self.bodies.is_of(number, incoming.body.as_deref().unwrap_or_default()) {
            self.accounts.corrupted += 1;
        }
        let ledger = &mut self.pairs[index / PAIR].ledger;
        if let Some(intended_ns) = ledger.hear(number, seq, &mut self.accounts) {
            self.measure.delivered(intended_ns, now_ns, self.pace.schedule());
        }
        self.measure.heard(now_ns, self.pace.schedule());
    }

    fn is_true(&self, incoming: &Incoming) -> bool {
        let body = incoming.body.as_deref().unwrap_or_default();
        incoming.number().is_some_and(|number| self.bodies.is_of(number, body))
    }

    fn refused(&mut self, index: usize, incoming: &Incoming) {
        self.first_refusal.get_or_insert_with(|| incoming.refusal());
        match incoming.number() {
            Some(number) => {
                self.pairs[index / PAIR].ledger.refuse(number, &mut self.accounts);
            }
            // An error that answers no message answers an acknowledgement.
            None => self.accounts.refused += 1,
        }
    }
}

impl Conversation for Chat {
    fn path(&self, index: usize) -> String {
        let pair = &self.pairs[index / PAIR];
        let user = if is_sender(index) { &pair.sender } else { &pair.receiver };
        format!("/v1/connect?user={user}&device=load")
    }

    fn message(&mut self, index: usize, payload: &[u8], now_ns: u64, _: &mut Outboxes) {
        let Some(incoming) = Incoming::read(payload) else {
            self.accounts.corrupted += 1;
            return;
        };
        match (incoming.t.as_ref(), is_sender(index)) {
            ("sent", true) => self.sent(index, &incoming, now_ns),
            ("msg", false) => self.heard(index, &incoming, now_ns),
            ("receipt", true) if incoming.kind.as_deref() == Some("delivered") => {
                let seq = incoming.seq.unwrap_or_default();
                self.pairs[index / PAIR].ledger.receipt(seq);
            }
            ("synced", _) if !self.pace.has_begun() => self.ready_count += 1,
            ("error", _) => self.refused(index, &incoming),
            // After a failure in the server the sender may hear its own.
            ("msg", true) => self.accounts.corrupted += u64::from(!self.is_true(&incoming)),
            ("sent", false) => self.accounts.corrupted += 1,
            _ => {}
        }
    }

    /// One acknowledgement for all that came at once: they are cumulative.
    fn paused(&mut self, index: usize, outboxes: &mut Outboxes) {
        if is_sender(index) {
            return;
        }
        let pair = &mut self.pairs[index / PAIR];
        let Some(seq) = pair.ledger.acknowledge() else {
            return;
        };
        self.frame.clear();
        let convo = &pair.convo;
        write!(self.frame, r#"{{"t":"ack","convo":"{convo}","seq":{seq},"kind":"delivered"}}"#)
            .expect("writing to a string does not fail");
        outboxes.send(index, Opcode::Text, self.frame.as_bytes());
    }

    fn lost(&mut self, _: usize) {}
}

impl Workload for Chat {
    /// Every connection has heard that there is nothing behind its cursors.
    fn is_ready(&self) -> bool {
        self.ready_count >= self.pairs.len() * PAIR
    }

    fn begin(&mut self, schedule: Schedule, _: &mut Outboxes) {
        self.pace.begin(schedule);
    }

    fn drive(&mut self, now_ns: u64, outboxes: &mut Outboxes) -> u64 {
        loop {
            match self.pace.next(now_ns) {
                Due::Now { number, intended_ns } => {
                    self.send(number, intended_ns, now_ns, outboxes);
                }
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
        self.pairs.iter().all(|pair| pair.ledger.is_settled())
    }

    fn finish(self) -> Measured {
        let mut accounts = self.accounts;
        self.pairs.into_iter().for_each(|pair| pair.ledger.close(&mut accounts));
        self.measure.finish(accounts, self.first_refusal)
    }
}

fn is_sender(index: usize) -> bool {
    index.is_multiple_of(PAIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn begun() -> (Chat, Outboxes) {
        let options = ChatOptions { run: "r".to_owned(), size: 18, rate: 10.0 };
        let (mut chat, mut outboxes) = (Chat::new(options, 4..8), Outboxes::new(4, 4));
        let start_ns = SECOND_NS;
        let schedule = Schedule { start_ns, measure_from_ns: start_ns, end_ns: 2 * SECOND_NS };
        assert!(!chat.is_ready());
        for index in 0..4 {
            chat.message(index, br#"{"t":"synced","convos":{}}"#, 0, &mut outboxes);
        }
        assert!(chat.is_ready());
        chat.begin(schedule, &mut outboxes);
        (chat, outboxes)
    }

    fn hear(chat: &mut Chat, index: usize, frame: &str, now_ns: u64) {
        let mut outboxes = Outboxes::new(4, 4);
        chat.message(index, frame.as_bytes(), now_ns, &mut outboxes);
        chat.paused(index, &mut outboxes);
    }

    #[test]
    fn messages_are_due_at_their_rate_and_latencies_count_from_then() {
        let (mut chat, mut outboxes) = begun();
        assert_eq!(chat.path(0), "/v1/connect?user=load-r-2-a&device=load");
        assert_eq!(chat.drive(SECOND_NS, &mut outboxes), 1_100_000_000);
        // The generator was away for two messages: both are late, and count as such.
        assert_eq!(chat.drive(1_250_000_000, &mut outboxes), 1_300_000_000);
        assert_eq!((chat.accounts.sent, chat.measure.late.len()), (3, 3));
        let msg = r#"{"t":"msg","convo":"c","seq":1,"mid":"1","from":"x","id":"0","ts":1,"#;
        hear(&mut chat, 0, r#"{"t":"sent","id":"0","seq":1,"dup":false}"#, 1_250_000_000);
        hear(&mut chat, 1, &format!("{msg}\"body\":\"0000000000000000xx\"}}"), 1_300_000_000);
        assert!((248..252).contains(&(chat.measure.sent.max() / 1_000_000)));
        assert!((298..302).contains(&(chat.measure.delivered.max() / 1_000_000)));
        assert_eq!(chat.accounts.corrupted, 0);
        hear(&mut chat, 0, r#"{"t":"receipt","kind":"delivered","seq":1}"#, 1_300_000_000);
        assert_eq!((chat.accounts.acknowledged, chat.accounts.delivered), (1, 1));
        chat.drive(2 * SECOND_NS, &mut outboxes);
        assert!(chat.has_sent_all());
        assert_eq!(chat.accounts.sent, 10);
    }

    #[test]
    fn foreign_bodies_and_nonsense_are_noticed() {
        let (mut chat, mut outboxes) = begun();
        chat.drive(SECOND_NS, &mut outboxes);
        hear(&mut chat, 1, r#"{"t":"msg","seq":1,"id":"0","body":"0000000000000001xx"}"#, 0);
        hear(&mut chat, 1, "not json", 0);
        hear(&mut chat, 0, r#"{"t":"msg","seq":1,"id":"0"}"#, 0);
        hear(&mut chat, 0, r#"{"t":"sent","id":"nobody","seq":1}"#, 0);
        assert_eq!(chat.accounts.corrupted, 4);
    }

    #[test]
    fn refusals_are_counted_and_the_first_is_kept() {
        let (mut chat, mut outboxes) = begun();
        chat.drive(SECOND_NS, &mut outboxes);
        hear(&mut chat, 0, r#"{"t":"error","id":"0","code":"rate_limited","message":"m"}"#, 0);
        assert_eq!(chat.accounts.refused, 1);
        assert_eq!(chat.finish().first_refusal.as_deref(), Some("rate_limited: m"));
    }
}
