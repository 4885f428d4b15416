//! `fanout`: groups, each with one member who writes and the others who hear, at a rate that the
//! server's answers do not slow down (see `chat` for what that means).
//!
//! A group is made when its members are there. Place 1 of its order is that; the messages come
//! behind it, and every member must hear every place once, in order.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::accounting::{Accounts, Order};
use crate::chat::SIZE_MIN;
use crate::fleet::{Conversation, Outboxes};
use crate::run::{Measured, PerSecond, Schedule, Timeline, Workload, latency_histogram};
use crate::websocket::Opcode;

/// Members of a group, the one who writes included: what the server allows.
pub const MEMBERS: std::ops::RangeInclusive<usize> = 2..=1024;
const NS_PER_S: f64 = 1e9;
/// A member acknowledges all that he has heard this often.
const ACKNOWLEDGE_NS: u64 = 100_000_000;

#[derive(Clone, Debug)]
pub struct FanoutOptions {
    /// Part of every name: no run finds the groups of another.
    pub run: String,
    /// Size of a body in bytes.
    pub size: usize,
    /// Messages per second into all groups of this thread together.
    pub rate: f64,
    pub members: usize,
}

/// See the module.
pub struct Fanout {
    options: FanoutOptions,
    groups: Vec<Group>,
    members: Vec<Member>,
    ready_count: usize,
    schedule: Schedule,
    /// Messages that were due so far.
    due_count: u64,
    is_sending: bool,
    /// Who has heard what he has not acknowledged, since when.
    unacknowledged: Vec<usize>,
    acknowledged_ns: u64,
    filling: String,
    frame: String,
    accounts: Accounts,
    first_refusal: Option<String>,
    sent: Histogram<u64>,
    delivered: Histogram<u64>,
    late: Histogram<u64>,
    per_second: PerSecond,
    timeline: Timeline,
}

/// A group by what its writer knows. Messages are numbered from 0.
#[derive(Default)]
struct Group {
    name: String,
    synced_count: usize,
    /// When each message was to be sent.
    intended_ns: Vec<u64>,
    /// The place that each of them has for whoever heard of it first; 0: nobody did.
    seqs: Vec<u64>,
    answers: Order,
    answered_count: u64,
    /// Places that were confirmed, the first one included.
    confirmed_count: u64,
}

#[derive(Default)]
struct Member {
    places: Order,
    heard_count: u64,
    heard_seq: u64,
    acknowledged_seq: u64,
}

/// The fields of the server's frames that matter here.
#[derive(Debug, Deserialize)]
struct Incoming<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    seq: Option<u64>,
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    body: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
}

impl Fanout {
    /// For the connections whose places among all are `positions`: group by group, the writer
    /// first.
    pub fn new(options: FanoutOptions, positions: Range<usize>) -> Fanout {
        let first_group = positions.start / options.members;
        let group = |index: usize| Group {
            name: format!("load-{}-{}", options.run, first_group + index),
            ..Group::default()
        };
        let count = positions.len() / options.members;
        Fanout {
            groups: (0..count).map(group).collect(),
            members: positions.map(|_| Member::default()).collect(),
            ready_count: 0,
            schedule: Schedule::default(),
            due_count: 0,
            is_sending: false,
            unacknowledged: Vec::new(),
            acknowledged_ns: 0,
            filling: "x".repeat(options.size - SIZE_MIN),
            frame: String::new(),
            accounts: Accounts::default(),
            first_refusal: None,
            sent: latency_histogram(),
            delivered: latency_histogram(),
            late: latency_histogram(),
            per_second: PerSecond::default(),
            timeline: Timeline::default(),
            options,
        }
    }

    fn is_writer(&self, index: usize) -> bool {
        index.is_multiple_of(self.options.members)
    }

    fn user(&self, group: usize, member: usize) -> String {
        format!("{}-{member}", self.groups[group].name)
    }

    fn is_measured(&self, intended_ns: u64) -> bool {
        intended_ns >= self.schedule.measure_from_ns && intended_ns < self.schedule.end_ns
    }

    /// One more member is there; the last one makes the group.
    fn synced(&mut self, index: usize, outboxes: &mut Outboxes) {
        let (group, size) = (index / self.options.members, self.options.members);
        self.groups[group].synced_count += 1;
        if self.groups[group].synced_count != size {
            return;
        }
        let others: Vec<String> =
            (1..size).map(|member| format!("\"{}\"", self.user(group, member))).collect();
        let (name, others) = (&self.groups[group].name, others.join(","));
        let create = format!(r#"{{"t":"group.create","convo":"{name}","members":[{others}]}}"#);
        outboxes.send(group * size, Opcode::Text, create.as_bytes());
    }

    fn send(&mut self, intended_ns: u64, now_ns: u64, outboxes: &mut Outboxes) {
        let index = (self.due_count % self.groups.len() as u64) as usize;
        let group = &mut self.groups[index];
        let number = group.intended_ns.len();
        group.intended_ns.push(intended_ns);
        group.seqs.push(0);
        self.accounts.sent += 1;
        self.frame.clear();
        let (name, filling) = (&group.name, &self.filling);
        write!(
            self.frame,
            r#"{{"t":"send","convo":"{name}","id":"{number}","body":"{number:016x}{filling}"}}"#
        )
        .expect("writing to a string does not fail");
        outboxes.send(index * self.options.members, Opcode::Text, self.frame.as_bytes());
        if self.is_measured(intended_ns) {
            self.late.saturating_record(now_ns - intended_ns);
        }
    }

    /// The writer heard which place a message has.
    fn sent(&mut self, index: usize, incoming: &Incoming, now_ns: u64) {
        let group = &mut self.groups[index / self.options.members];
        let known = group.known(incoming);
        let (Some((number, intended_ns)), Some(seq)) = (known, incoming.seq) else {
            self.accounts.corrupted += 1;
            return;
        };
        if !group.answers.arrived(number, &mut self.accounts) {
            return;
        }
        group.answered_count += 1;
        self.accounts.reordered += u64::from(seq <= group.confirmed_count);
        self.accounts.corrupted += u64::from(!group.agrees(number, seq));
        group.confirmed_count = group.confirmed_count.max(seq);
        self.accounts.acknowledged += 1;
        if self.is_measured(intended_ns) {
            self.sent.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    fn heard(&mut self, index: usize, incoming: &Incoming, now_ns: u64) {
        let is_system = incoming.kind.as_deref() == Some("system");
        let group = &mut self.groups[index / self.options.members];
        let known = if is_system { Some((0, 0)) } else { group.known(incoming) };
        let (Some((number, intended_ns)), Some(seq)) = (known, incoming.seq.filter(|seq| *seq > 0))
        else {
            self.accounts.corrupted += 1;
            return;
        };
        let disagrees = !is_system && !group.agrees(number, seq);
        self.accounts.corrupted += u64::from(disagrees);
        let member = &mut self.members[index];
        if member.heard_seq == member.acknowledged_seq {
            self.unacknowledged.push(index);
        }
        member.heard_seq = member.heard_seq.max(seq);
        let is_first = member.places.arrived(seq - 1, &mut self.accounts);
        member.heard_count += u64::from(is_first);
        if is_system {
            self.ready_count += 1;
            return;
        }
        let body = incoming.body.as_deref().unwrap_or_default();
        self.accounts.corrupted += u64::from(!self.is_body_of(number, body));
        if is_first {
            self.accounts.delivered += 1;
        }
        if is_first && self.is_measured(intended_ns) {
            let latency_ns = now_ns.saturating_sub(intended_ns);
            self.delivered.saturating_record(latency_ns);
            self.timeline.record(intended_ns, latency_ns, &self.schedule);
        }
        self.per_second.count(now_ns, &self.schedule);
    }

    fn is_body_of(&self, number: u64, body: &str) -> bool {
        let Some((head, filling)) = body.split_at_checked(SIZE_MIN) else {
            return false;
        };
        u64::from_str_radix(head, 16) == Ok(number) && filling == self.filling
    }

    fn refused(&mut self, index: usize, incoming: &Incoming) {
        let text = |field: &Option<Cow<str>>| field.as_deref().unwrap_or("?").to_owned();
        let (code, message) = (text(&incoming.code), text(&incoming.message));
        self.first_refusal.get_or_insert_with(|| format!("{code}: {message}"));
        self.accounts.refused += 1;
        let group = &mut self.groups[index / self.options.members];
        if let Some((number, _)) = group.known(incoming)
            && group.answers.arrived(number, &mut self.accounts)
        {
            group.answered_count += 1;
        }
    }

    /// Everybody acknowledges what he has heard.
    fn acknowledge(&mut self, outboxes: &mut Outboxes) {
        for index in std::mem::take(&mut self.unacknowledged) {
            let member = &mut self.members[index];
            member.acknowledged_seq = member.heard_seq;
            let (seq, name) = (member.heard_seq, &self.groups[index / self.options.members].name);
            self.frame.clear();
            write!(self.frame, r#"{{"t":"ack","convo":"{name}","seq":{seq},"kind":"delivered"}}"#)
                .expect("writing to a string does not fail");
            outboxes.send(index, Opcode::Text, self.frame.as_bytes());
        }
    }
}

impl Group {
    /// Whether a message has the place that others heard of.
    fn agrees(&mut self, number: u64, seq: u64) -> bool {
        let known = &mut self.seqs[number as usize];
        if *known == 0 {
            *known = seq;
        }
        *known == seq
    }

    /// The number of the message that a frame is about, and when that was to be sent.
    fn known(&self, incoming: &Incoming) -> Option<(u64, u64)> {
        let number: u64 = incoming.id.as_deref()?.parse().ok()?;
        Some((number, *self.intended_ns.get(number as usize)?))
    }
}

impl Conversation for Fanout {
    fn path(&self, index: usize) -> String {
        let user = self.user(index / self.options.members, index % self.options.members);
        format!("/v1/connect?user={user}&device=load")
    }

    fn message(&mut self, index: usize, payload: &[u8], now_ns: u64, outboxes: &mut Outboxes) {
        let Ok(incoming) = serde_json::from_slice::<Incoming>(payload) else {
            self.accounts.corrupted += 1;
            return;
        };
        match (incoming.t.as_ref(), self.is_writer(index)) {
            ("synced", _) if self.schedule.start_ns == 0 => self.synced(index, outboxes),
            ("group", true) => self.ready_count += 1,
            ("sent", true) => self.sent(index, &incoming, now_ns),
            ("msg", false) => self.heard(index, &incoming, now_ns),
            // He made the group, and hears so as well.
            ("msg", true) if is_making(&incoming) => {}
            ("error", _) => self.refused(index, &incoming),
            ("sent" | "msg" | "group", _) => self.accounts.corrupted += 1,
            _ => {}
        }
    }

    /// Nobody drives any more: what comes now is acknowledged at once.
    fn paused(&mut self, _: usize, outboxes: &mut Outboxes) {
        if self.schedule.start_ns > 0 && !self.is_sending {
            self.acknowledge(outboxes);
        }
    }

    fn lost(&mut self, _: usize) {}
}

impl Workload for Fanout {
    /// Every group is made, and every other member has heard so.
    fn is_ready(&self) -> bool {
        self.ready_count >= self.members.len()
    }

    fn begin(&mut self, schedule: Schedule, _: &mut Outboxes) {
        self.schedule = schedule;
        self.is_sending = true;
    }

    fn drive(&mut self, now_ns: u64, outboxes: &mut Outboxes) -> u64 {
        if now_ns >= self.acknowledged_ns + ACKNOWLEDGE_NS {
            self.acknowledged_ns = now_ns;
            self.acknowledge(outboxes);
        }
        loop {
            let offset_ns = (self.due_count as f64 * NS_PER_S / self.options.rate) as u64;
            let intended_ns = self.schedule.start_ns + offset_ns;
            if intended_ns >= self.schedule.end_ns {
                self.is_sending = false;
                return self.schedule.end_ns;
            }
            if intended_ns > now_ns {
                return intended_ns;
            }
            self.send(intended_ns, now_ns, outboxes);
            self.due_count += 1;
        }
    }

    fn stop(&mut self, now_ns: u64) {
        self.schedule.end_ns = self.schedule.end_ns.min(now_ns);
    }

    fn has_sent_all(&self) -> bool {
        !self.is_sending
    }

    fn is_settled(&self) -> bool {
        let size = self.options.members;
        let answered = |group: &Group| group.answered_count == group.intended_ns.len() as u64;
        let heard = |(index, group): (usize, &Group)| {
            let others = &self.members[index * size + 1..(index + 1) * size];
            others.iter().all(|member| member.heard_count >= group.confirmed_count)
        };
        self.groups.iter().all(answered) && self.groups.iter().enumerate().all(heard)
    }

    fn finish(self) -> Measured {
        let mut accounts = self.accounts;
        for (index, member) in self.members.iter().enumerate() {
            let group = &self.groups[index / self.options.members];
            if index.is_multiple_of(self.options.members) {
                accounts.unanswered += group.intended_ns.len() as u64 - group.answered_count;
            } else {
                accounts.lost += group.confirmed_count.saturating_sub(member.heard_count);
            }
        }
        Measured {
            accounts,
            latencies: vec![
                ("sent", self.sent),
                ("delivered", self.delivered),
                ("sent late by the generator", self.late),
            ],
            per_second: self.per_second.0,
            timeline: self.timeline,
            first_refusal: self.first_refusal,
        }
    }
}

fn is_making(incoming: &Incoming) -> bool {
    incoming.kind.as_deref() == Some("system") && incoming.seq == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const MADE: &str = r#"{"t":"msg","convo":"c","seq":1,"kind":"system","body":"{}"}"#;

    /// Two groups of three, made, at ten messages a second.
    fn begun() -> (Fanout, Outboxes) {
        let options = FanoutOptions { run: "r".to_owned(), size: 18, rate: 10.0, members: 3 };
        let (mut fanout, mut outboxes) = (Fanout::new(options, 6..12), Outboxes::new(6, 6));
        for index in 0..6 {
            assert!(!fanout.is_ready());
            fanout.message(index, br#"{"t":"synced","convos":{}}"#, 0, &mut outboxes);
        }
        for index in 0..6 {
            fanout.message(index, MADE.as_bytes(), 0, &mut outboxes);
            if index % 3 == 0 {
                let group = br#"{"t":"group","convo":"c"}"#;
                fanout.message(index, group, 0, &mut outboxes);
            }
        }
        assert!(fanout.is_ready());
        let schedule =
            Schedule { start_ns: SECOND_NS, measure_from_ns: SECOND_NS, end_ns: 2 * SECOND_NS };
        fanout.begin(schedule, &mut outboxes);
        (fanout, outboxes)
    }

    fn hear(fanout: &mut Fanout, index: usize, frame: &str) {
        fanout.message(index, frame.as_bytes(), 1_300_000_000, &mut Outboxes::new(6, 6));
    }

    fn message(number: u64, seq: u64) -> String {
        format!(r#"{{"t":"msg","seq":{seq},"id":"{number}","body":"{number:016x}xx"}}"#)
    }

    #[test]
    fn every_member_hears_every_message_and_the_run_is_settled() {
        let (mut fanout, mut outboxes) = begun();
        assert_eq!(fanout.path(4), "/v1/connect?user=load-r-3-1&device=load");
        assert_eq!(fanout.drive(1_150_000_000, &mut outboxes), 1_200_000_000);
        fanout.stop(1_150_000_000);
        fanout.drive(1_200_000_000, &mut outboxes);
        assert!(fanout.has_sent_all() && !fanout.is_settled());
        for group in 0..2 {
            hear(&mut fanout, group * 3, r#"{"t":"sent","id":"0","seq":2}"#);
            assert!(!fanout.is_settled());
            hear(&mut fanout, group * 3 + 1, &message(0, 2));
            hear(&mut fanout, group * 3 + 2, &message(0, 2));
        }
        assert!(fanout.is_settled());
        assert!((298..302).contains(&(fanout.delivered.max() / 1_000_000)));
        let expected = Accounts { sent: 2, acknowledged: 2, delivered: 4, ..Accounts::default() };
        assert_eq!(fanout.finish().accounts, expected);
    }

    #[test]
    fn what_is_not_heard_twice_heard_or_skipped_is_noticed() {
        let (mut fanout, mut outboxes) = begun();
        fanout.drive(1_950_000_000, &mut outboxes);
        for (number, seq) in [(0, 2), (1, 3), (2, 4)] {
            let sent = format!(r#"{{"t":"sent","id":"{number}","seq":{seq}}}"#);
            hear(&mut fanout, 0, &sent);
        }
        for (number, seq) in [(0, 2), (2, 4), (1, 3), (1, 3)] {
            hear(&mut fanout, 1, &message(number, seq));
        }
        hear(&mut fanout, 2, &message(0, 2));
        hear(&mut fanout, 2, r#"{"t":"msg","seq":3,"id":"1","body":"0000000000000009xx"}"#);
        hear(&mut fanout, 2, r#"{"t":"msg","seq":9,"id":"77","body":"x"}"#);
        let accounts = fanout.finish().accounts;
        assert_eq!((accounts.gaps, accounts.reordered, accounts.duplicated), (1, 1, 1));
        assert_eq!((accounts.corrupted, accounts.lost, accounts.unanswered), (2, 1, 7));
    }

    #[test]
    fn one_message_in_two_places_is_noticed() {
        let (mut fanout, mut outboxes) = begun();
        fanout.drive(1_250_000_000, &mut outboxes);
        hear(&mut fanout, 0, r#"{"t":"sent","id":"0","seq":3}"#);
        hear(&mut fanout, 0, r#"{"t":"sent","id":"1","seq":2}"#);
        hear(&mut fanout, 1, &message(0, 2));
        let accounts = fanout.accounts;
        assert_eq!((accounts.reordered, accounts.corrupted), (1, 1));
    }
}
