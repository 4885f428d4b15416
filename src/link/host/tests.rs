//! Two hosts on real sockets: greeting, entries, broken connections, new lives, expired leases.

use super::*;
use crate::ring::kernel::{KernelRing, Listener, RingOptions, listen};

struct Side {
    ring: KernelRing,
    links: Links,
    events: Vec<LinkEvent>,
}

impl Side {
    fn new(role: Role, incarnation: u64, secret: &[u8]) -> Side {
        let sizes = RingOptions { sockets: 64, buffer_count: 64, ..RingOptions::default() };
        let secret = Secret::new(secret);
        let options = LinkOptions { role, name: "one".into(), incarnation, secret };
        let ring = KernelRing::new(sizes).expect("io_uring is there");
        Side { ring, links: Links::new(options), events: Vec::new() }
    }

    fn turn(&mut self, now: Now) {
        self.links.flush(now, &mut self.ring);
        let mut completions = Vec::new();
        self.ring.turn(1_000, &mut completions);
        for completion in completions {
            self.links.complete(now, completion, &mut self.ring);
        }
        self.events.extend(std::iter::from_fn(|| self.links.next_event()));
    }

    fn entries(&self) -> Vec<(u64, Bytes)> {
        let entries = self.events.iter().filter_map(|event| match event {
            LinkEvent::Entry { number, entry, .. } => Some((*number, entry.clone())),
            _ => None,
        });
        entries.collect()
    }

    fn begun(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, LinkEvent::Began { .. })).count()
    }

    fn ended(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, LinkEvent::Ended { .. })).count()
    }
}

fn listener() -> Listener {
    listen("127.0.0.1:0".parse().expect("an address"), 16, false).expect("a free port")
}

fn pair(listener: &Listener, secret: &[u8]) -> (Side, Side) {
    let mut edge = Side::new(Role::Edge, 11, b"secret");
    let mut sequencer = Side::new(Role::Sequencer, 22, secret);
    sequencer.links.listen(listener.socket(), &mut sequencer.ring);
    edge.links.dial(listener.address());
    (edge, sequencer)
}

fn turns(count: usize, sides: &mut [&mut Side]) {
    for _ in 0..count {
        sides.iter_mut().for_each(|side| side.turn(Now::read()));
    }
}

const PEER: PeerId = PeerId(0);

#[test]
fn entries_arrive_in_order_in_both_directions() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"secret");
    turns(30, &mut [&mut edge, &mut sequencer]);
    assert_eq!((edge.begun(), sequencer.begun()), (1, 1));
    for entry in 1..=100u64 {
        assert_eq!(edge.links.submit(PEER, entry.to_bytes()), Ok(entry));
        assert_eq!(sequencer.links.submit(PEER, vec![7; 100_000]), Ok(entry));
    }
    turns(200, &mut [&mut edge, &mut sequencer]);
    let expected: Vec<_> = (1..=100u64).map(|entry| (entry, entry.to_bytes().into())).collect();
    assert_eq!(sequencer.entries(), expected);
    assert_eq!(edge.entries().len(), 100);
}

#[test]
fn a_broken_connection_is_mended_and_loses_nothing() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"secret");
    turns(30, &mut [&mut edge, &mut sequencer]);
    for round in 0..5u64 {
        edge.links.submit(PEER, round.to_bytes()).expect("room");
        turns(1, &mut [&mut edge]);
        let slot = edge.links.peers[0].connection;
        if let Some(slot) = slot {
            edge.links.drop_connection(slot, &mut edge.ring);
        }
        turns(60, &mut [&mut edge, &mut sequencer]);
    }
    let numbers: Vec<u64> = sequencer.entries().iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, vec![1, 2, 3, 4, 5]);
    assert_eq!((edge.begun(), sequencer.begun()), (1, 1), "the session went on");
}

#[test]
fn a_new_life_of_the_peer_begins_a_new_session() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"secret");
    turns(30, &mut [&mut edge, &mut sequencer]);
    edge.links.submit(PEER, vec![1]).expect("room");
    turns(10, &mut [&mut edge, &mut sequencer]);
    drop(sequencer);
    let mut next = Side::new(Role::Sequencer, 33, b"secret");
    next.links.listen(listener.socket(), &mut next.ring);
    turns(60, &mut [&mut edge, &mut next]);
    assert_eq!((edge.begun(), edge.ended()), (2, 1));
    assert!(next.entries().is_empty(), "an unanswered entry is not replayed to another life");
    assert_eq!(edge.links.submit(PEER, vec![2]), Ok(1));
}

#[test]
fn what_is_said_before_a_new_session_is_heard_of_does_not_enter_it() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"secret");
    turns(30, &mut [&mut edge, &mut sequencer]);
    assert_eq!(edge.links.submit(PEER, vec![1]), Ok(1));
    drop(sequencer);
    let mut next = Side::new(Role::Sequencer, 33, b"secret");
    next.links.listen(listener.socket(), &mut next.ring);
    // The edge's links go on, but nobody looks at their events.
    while edge.links.counters.sessions_total < 2 {
        edge.links.flush(Now::read(), &mut edge.ring);
        let mut completions = Vec::new();
        edge.ring.turn(1_000, &mut completions);
        for completion in completions {
            edge.links.complete(Now::read(), completion, &mut edge.ring);
        }
        next.turn(Now::read());
    }
    // Number 1 is an entry of the session before; the new one's 1 would be taken for it.
    assert_eq!(edge.links.submit(PEER, vec![2]), Err(LinkFull));
    assert!(matches!(edge.links.next_event(), Some(LinkEvent::Ended { .. })));
    assert_eq!(edge.links.submit(PEER, vec![3]), Err(LinkFull));
    assert!(matches!(edge.links.next_event(), Some(LinkEvent::Began { .. })));
    assert_eq!(edge.links.submit(PEER, vec![4]), Ok(1));
    turns(20, &mut [&mut edge, &mut next]);
    assert_eq!(next.entries(), vec![(1, Bytes::from(vec![4]))]);
}

#[test]
fn a_silent_peer_loses_its_lease_on_both_sides() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"secret");
    turns(30, &mut [&mut edge, &mut sequencer]);
    let now = Now::read();
    let later = Now { monotonic_us: now.monotonic_us + LEASE_US + 1_000_000, ..now };
    sequencer.turn(later);
    assert_eq!(sequencer.ended(), 1);
    for _ in 0..100 {
        edge.turn(Now::read());
        sequencer.turn(later);
    }
    assert_eq!((edge.ended(), edge.begun()), (1, 2), "the edge tells everything again");
    assert_eq!(sequencer.begun(), 2);
}

#[test]
fn a_stranger_is_refused() {
    let listener = listener();
    let (mut edge, mut sequencer) = pair(&listener, b"another");
    turns(30, &mut [&mut edge, &mut sequencer]);
    assert_eq!((edge.begun(), sequencer.begun()), (0, 0));
    assert!(edge.links.counters.violations_total > 0);
    assert_eq!(edge.links.submit(PEER, vec![1]), Err(LinkFull));
}
