//! What a live session costs the sequencer: at most 200 bytes, once nothing happens in it.
//!
//! The sequencer's logic runs alone; the test plays its store and its edges, and counts what the
//! allocator is asked for.

use std::alloc::System;

use aldis::clock::Now;
use aldis::link::message::{Address, Code, FromStore, ToEdge, ToSequencer, ToStore};
use aldis::link::record::{Body, Id};
use aldis::link::wire::Wire;
use aldis::link::{LinkEvent, LinkFull, Outlet, PeerId};
use aldis::sequencer::budget::Budget;
use aldis::sequencer::core::Sequencer;
use bytes::Bytes;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const STORE: PeerId = PeerId(0);
const SHARD_COUNT: u32 = 8;
const SESSION_COUNT: u32 = 200_000;
const BYTES_PER_SESSION_MAX: usize = 200;

/// What the sequencer said and nobody has looked at.
#[derive(Default)]
struct Said {
    to_store: Vec<(u64, Vec<u8>)>,
    to_edges: Vec<(PeerId, Vec<u8>)>,
    count: u64,
}

impl Outlet for Said {
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        self.count += 1;
        match peer {
            STORE => self.to_store.push((self.count, entry)),
            peer => self.to_edges.push((peer, entry)),
        }
        Ok(self.count)
    }

    fn answered(&mut self, _peer: PeerId, _number: u64) {}
}

struct World {
    sequencer: Sequencer,
    said: Said,
    now: Now,
    lsn: u64,
    entries: u64,
}

impl World {
    fn new(budget: Budget) -> World {
        let sequencer = Sequencer::new(1, STORE, budget);
        let now = Now { monotonic_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        let mut world = World { sequencer, said: Said::default(), now, lsn: 1, entries: 0 };
        for peer in 0..=SHARD_COUNT {
            let name = format!("peer/{peer}").as_str().into();
            let began =
                LinkEvent::Began { peer: PeerId(peer), name, incarnation: 1, durable_seen: 0 };
            world.sequencer.handle(world.now, began, &mut world.said);
        }
        world.turn();
        world
    }

    fn entry(&mut self, peer: PeerId, entry: Vec<u8>) {
        self.entries += 1;
        let event = LinkEvent::Entry { peer, number: self.entries, entry: entry.into() };
        self.sequencer.handle(self.now, event, &mut self.said);
    }

    /// A store that has seen every user before, each with one device, and answers at once.
    fn turn(&mut self) {
        self.now.monotonic_us += 50_000;
        self.sequencer.tick(self.now, &mut self.said);
        while !self.said.to_store.is_empty() {
            for (to, question) in std::mem::take(&mut self.said.to_store) {
                let question = ToStore::from_bytes(question.into()).expect("it can be read");
                let answer = self.answer(to, question);
                self.entry(STORE, answer.to_bytes());
            }
            self.sequencer.tick(self.now, &mut self.said);
        }
    }

    fn answer(&mut self, to: u64, question: ToStore) -> FromStore {
        match question {
            ToStore::Acquire { .. } => {
                self.lsn += 1;
                let (next_lsn, edges) = (self.lsn, Vec::new());
                FromStore::Granted {
                    to,
                    epoch: 1,
                    next_lsn,
                    fanned_out: 1,
                    mid: 0,
                    ts: 0,
                    edges,
                    service_ms: 0,
                }
            }
            ToStore::Append { first_lsn, count, .. } => {
                self.lsn = first_lsn + u64::from(count);
                FromStore::Durable { to, next_lsn: self.lsn }
            }
            ToStore::LoadUser { user, .. } => FromStore::User {
                to,
                devices: vec![(device_of(&user), u64::MAX / 2)],
                cursors: Vec::new(),
                groups: Vec::new(),
                channels: Vec::new(),
                revoked: Vec::new(),
                hidden: false,
                dead: Vec::new(),
                failures: Vec::new(),
                next: Bytes::new(),
            },
            ToStore::FindOverdue { .. } => {
                FromStore::Overdue { to, rows: Vec::new(), next: Bytes::new() }
            }
            ToStore::LoadConversation { .. } => {
                FromStore::Conversation { to, head: 0, fingerprints: vec![], complete: true }
            }
            ToStore::LoadRevoked { .. } => {
                FromStore::Revoked { to, rows: Vec::new(), next: Bytes::new() }
            }
            ToStore::Range { .. } => FromStore::Messages { to, messages: Vec::new() },
            other => panic!("not expected here: {other:?}"),
        }
    }

    fn heard(&mut self) -> Vec<(PeerId, ToEdge)> {
        let heard = std::mem::take(&mut self.said.to_edges).into_iter();
        heard.map(|(peer, e)| (peer, ToEdge::from_bytes(e.into()).expect("readable"))).collect()
    }

    /// Opens and confirms the sessions of a range of users, as their edges would.
    fn connect(&mut self, users: std::ops::Range<u32>) {
        for number in users.clone() {
            let (address, user) = (address_of(number), user_of(number));
            let open = ToSequencer::Open { address, device: device_of(&user), user, ticket: None };
            self.entry(peer_of(number), open.to_bytes());
        }
        self.turn();
        let opened = self.heard().into_iter().filter_map(|(_, said)| match said {
            ToEdge::Opened { session, .. } => Some(session),
            _ => None,
        });
        let sessions: Vec<_> = opened.collect();
        assert_eq!(sessions.len(), users.len());
        for (number, session) in users.zip(sessions) {
            let (address, user) = (address_of(number), user_of(number));
            let device = device_of(&user);
            let confirm = ToSequencer::Confirm { address, session, user, device, manual: false };
            self.entry(peer_of(number), confirm.to_bytes());
        }
        self.turn();
        self.heard();
    }
}

/// Sixteen bytes, as the goal has it.
fn user_of(number: u32) -> Id {
    format!("user-{number:011}").as_str().into()
}

fn device_of(user: &Id) -> Id {
    user.replace("user-", "dev_-").as_str().into()
}

fn peer_of(number: u32) -> PeerId {
    PeerId(1 + number % SHARD_COUNT)
}

fn address_of(number: u32) -> Address {
    Address { incarnation: 7, slot: number / SHARD_COUNT, generation: 1 }
}

/// One test, since the allocator counts for the whole process.
#[test]
fn a_live_session_at_rest_costs_little_and_is_reached_all_the_same() {
    let budget = Budget { users_max: 1_000, ..Budget::default() };
    let mut world = World::new(budget);
    let region = Region::new(ALLOCATOR);
    for first in (0..SESSION_COUNT).step_by(1_000) {
        world.connect(first..first + 1_000);
    }
    (0..20).for_each(|_| world.turn());
    let change = region.change();
    let held = change.bytes_allocated as isize + change.bytes_reallocated
        - change.bytes_deallocated as isize;
    let per_session = held as usize / SESSION_COUNT as usize;
    println!("{SESSION_COUNT} sessions hold {held} bytes: {per_session} bytes a session");
    assert_eq!(world.sequencer.session_count(), SESSION_COUNT as usize);
    assert!(per_session <= BYTES_PER_SESSION_MAX, "{per_session} bytes a session");
    assert_eq!(world.lsn, 2 + u64::from(SHARD_COUNT), "a known device writes nothing to the log");

    // A message for somebody at rest reaches the connection.
    let sender = user_of(1);
    let send = ToSequencer::Send {
        address: address_of(1),
        device: device_of(&sender),
        user: sender,
        target: aldis::link::message::Target::User { user: user_of(5) },
        id: "1".into(),
        body: Body::Text { text: Bytes::from_static(b"hello") },
    };
    world.entry(peer_of(1), send.to_bytes());
    (0..3).for_each(|_| world.turn());
    let pushed = world.heard().into_iter().filter_map(|(peer, said)| match said {
        ToEdge::Deliver { targets, .. } => Some((peer, targets[0].address)),
        _ => None,
    });
    assert_eq!(pushed.collect::<Vec<_>>(), vec![(peer_of(5), address_of(5))]);

    // A session at rest is closed without a question to the store; an edge that goes takes its
    // sessions with it.
    let gone = ToSequencer::Close {
        address: address_of(9),
        session: aldis::link::message::SessionNumber { epoch: 1, counter: 10 },
        device: device_of(&user_of(9)),
        user: user_of(9),
    };
    let questions = world.said.count;
    world.entry(peer_of(9), gone.to_bytes());
    assert_eq!(world.said.count, questions);
    assert_eq!(world.sequencer.session_count(), SESSION_COUNT as usize - 1);
    let ended = LinkEvent::Ended { peer: peer_of(0) };
    world.sequencer.handle(world.now, ended, &mut world.said);
    let left = SESSION_COUNT - SESSION_COUNT / SHARD_COUNT;
    assert_eq!(world.sequencer.session_count(), left as usize - 1);
    let unavailable = |said: &ToEdge| {
        matches!(said, ToEdge::Refused { code: Code::Internal | Code::Unavailable, .. })
    };
    assert!(!world.heard().iter().any(|(_, said)| unavailable(said)));
}
