//! `fanout`: groups, each with one member who writes and the others who hear, at a rate that the
//! server's answers do not slow down (see `messages`).
//!
//! A group is made when its members are there. Place 1 of its order is that; the messages come
//! behind it, and every member must hear every place once, in order.

use std::fmt::Write as _;
use std::ops::Range;

use crate::accounting::{Accounts, Order};
use crate::fleet::{Conversation, Outboxes};
use crate::messages::{Bodies, Due, Incoming, Measure, OpenLoop};
use crate::run::{Measured, Schedule, Workload};
use crate::websocket::Opcode;

/// Members of a group, the one who writes included: what the server allows.
pub const MEMBERS: std::ops::RangeInclusive<usize> = 2..=1024;
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
    /// Why a group could not be made.
    failure: Option<String>,
    pace: OpenLoop,
    /// Who has heard what he has not acknowledged, since when.
    unacknowledged: Vec<usize>,
    acknowledged_ns: u64,
    bodies: Bodies,
    frame: String,
    accounts: Accounts,
    first_refusal: Option<String>,
    measure: Measure,
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
            failure: None,
            pace: OpenLoop::new(options.rate),
            unacknowledged: Vec::new(),
            acknowledged_ns: 0,
            bodies: Bodies::new(options.size),
            frame: String::new(),
            accounts: Accounts::default(),
            first_refusal: None,
            measure: Measure::default(),
            options,
        }
    }

    fn is_writer(&self, index: usize) -> bool {
        index.is_multiple_of(self.options.members)
    }

    fn user(&self, group: usize, member: usize) -> String {
        format!("{}-{member}", self.groups[group].name)
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

    fn send(&mut self, turn: u64, intended_ns: u64, now_ns: u64, outboxes: &mut Outboxes) {
        let index = (turn % self.groups.len() as u64) as usize;
        let group = &mut self.groups[index];
        let number = group.intended_ns.len() as u64;
        group.intended_ns.push(intended_ns);
        group.seqs.push(0);
        self.accounts.sent += 1;
        self.frame.clear();
        let (name, body) = (&group.name, self.bodies.of(number));
        write!(self.frame, r#"{{"t":"send","convo":"{name}","id":"{number}","body":"{body}"}}"#)
            .expect("writing to a string does not fail");
        outboxes.send(index * self.options.members, Opcode::Text, self.frame.as_bytes());
        self.measure.gave(intended_ns, now_ns, self.pace.schedule());
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
        self.measure.sent(intended_ns, now_ns, self.pace.schedule());
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
        self.accounts.corrupted += u64::from(!self.bodies.is_of(number, body));
        if is_first {
            self.accounts.delivered += 1;
            self.measure.delivered(intended_ns, now_ns, self.pace.schedule());
        }
        self.measure.heard(now_ns, self.pace.schedule());
    }

    fn refused(&mut self, index: usize, incoming: &Incoming) {
        if !self.pace.has_begun() {
            let name = &self.groups[index / self.options.members].name;
            let refusal = || format!("the group {name} was refused: {}", incoming.refusal());
            self.failure.get_or_insert_with(refusal);
            return;
        }
        self.first_refusal.get_or_insert_with(|| incoming.refusal());
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
        let number = incoming.number()?;
        Some((number, *self.intended_ns.get(number as usize)?))
    }
}

impl Conversation for Fanout {
    fn path(&self, index: usize) -> String {
        let user = self.user(index / self.options.members, index % self.options.members);
        format!("/v1/connect?user={user}&device=load")
    }

    fn message(&mut self, index: usize, payload: &[u8], now_ns: u64, outboxes: &mut Outboxes) {
        let Some(incoming) = Incoming::read(payload) else {
            self.accounts.corrupted += 1;
            return;
        };
        match (incoming.t.as_ref(), self.is_writer(index)) {
            ("synced", _) if !self.pace.has_begun() => self.synced(index, outboxes),
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
        if self.pace.has_begun() && !self.pace.is_sending() {
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

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn begin(&mut self, schedule: Schedule, _: &mut Outboxes) {
        self.pace.begin(schedule);
    }

    fn drive(&mut self, now_ns: u64, outboxes: &mut Outboxes) -> u64 {
        if now_ns >= self.acknowledged_ns + ACKNOWLEDGE_NS {
            self.acknowledged_ns = now_ns;
            self.acknowledge(outboxes);
        }
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
        self.measure.finish(accounts, self.first_refusal)
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
        assert!((298..302).contains(&(fanout.measure.delivered.max() / 1_000_000)));
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

    #[test]
    fn a_group_that_is_refused_is_a_failure_in_the_servers_words() {
        let options = FanoutOptions { run: "r".to_owned(), size: 18, rate: 10.0, members: 3 };
        let (mut fanout, mut outboxes) = (Fanout::new(options, 0..3), Outboxes::new(3, 3));
        assert_eq!(fanout.failure(), None);
        let refused = br#"{"t":"error","code":"rate_limited","message":"too many groups"}"#;
        fanout.message(0, refused, 0, &mut outboxes);
        let failure = "the group load-r-0 was refused: rate_limited: too many groups";
        assert_eq!(fanout.failure(), Some(failure));
        assert!(!fanout.is_ready());
    }
}
