//! A store whose disk syncs ever more slowly: the sequencer refuses, and does not grow. And one
//! that remembers edges which are gone.

use bytes::Bytes;

use super::budget::Budget;
use super::core::{Sequencer, WAITING_SIZE_MAX};
use crate::clock::Now;
use crate::limits::{BATCH_SIZE_MAX, BODY_SIZE_MAX};
use crate::link::message::{Address, Code, FromStore, Target, ToEdge, ToSequencer, ToStore};
use crate::link::record::{Body, Id};
use crate::link::wire::Wire;
use crate::link::{LinkEvent, LinkFull, Outlet, PeerId};

const STORE: PeerId = PeerId(0);
const EDGE: PeerId = PeerId(1);

/// Everything that was said, by peer.
#[derive(Default)]
struct Said {
    store: Vec<ToStore>,
    edge: Vec<ToEdge>,
}

impl Outlet for Said {
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        if peer == STORE {
            self.store.push(ToStore::from_bytes(entry.into()).expect("it encodes what it says"));
            return Ok(self.store.len() as u64);
        }
        self.edge.push(ToEdge::from_bytes(entry.into()).expect("it encodes what it says"));
        Ok(self.edge.len() as u64)
    }

    fn answered(&mut self, _: PeerId, _: u64) {}
}

struct World {
    sequencer: Sequencer,
    said: Said,
    now: Now,
    edges: Vec<Id>,
    /// Questions of the sequencer that the store has answered, or keeps waiting.
    seen: usize,
    /// Batches whose sync takes for ever.
    syncing: Vec<(u64, u64)>,
    sends: u64,
}

impl World {
    fn new() -> World {
        let mut world = World::with_edges(&[]);
        world.sync();
        world
    }

    /// `edges`: those that were there before, by the log.
    fn with_edges(edges: &[&str]) -> World {
        let sequencer = Sequencer::new(1, STORE, Budget::default());
        let now = Now { monotonic_us: 1_000_000, unix_ms: 1_800_000_000_000 };
        let (said, syncing) = (Said::default(), Vec::new());
        let edges = edges.iter().map(|&name| name.into()).collect();
        let mut world = World { sequencer, said, now, edges, seen: 0, syncing, sends: 0 };
        for (peer, name) in [(STORE, "store"), (EDGE, "edge")] {
            let (name, incarnation, durable_seen) = (name.into(), 1, 0);
            world.event(LinkEvent::Began { peer, name, incarnation, durable_seen });
        }
        world.turn();
        world
    }

    /// Everything appended so far becomes durable; that there is an edge is a record of its own.
    fn sync(&mut self) {
        while let Some((to, next_lsn)) = self.syncing.pop() {
            self.answer(FromStore::Durable { to, next_lsn });
            self.turn();
        }
    }

    fn event(&mut self, event: LinkEvent) {
        self.sequencer.handle(self.now, event, &mut self.said);
    }

    /// The store answers everything but appends; those are noted.
    fn turn(&mut self) {
        self.now.monotonic_us += 100;
        self.sequencer.tick(self.now, &mut self.said);
        while let Some(question) = self.said.store.get(self.seen).cloned() {
            self.seen += 1;
            let to = self.seen as u64;
            let answer = match question {
                ToStore::Acquire { .. } => FromStore::Granted {
                    to,
                    epoch: 1,
                    next_lsn: 2,
                    fanned_out: 1,
                    mid: 0,
                    ts: 0,
                    edges: self.edges.clone(),
                    service_ms: 0,
                },
                ToStore::Append { first_lsn, count, .. } => {
                    self.syncing.push((to, first_lsn + u64::from(count)));
                    continue;
                }
                ToStore::LoadConversation { .. } => FromStore::Conversation {
                    to,
                    head: 0,
                    fingerprints: Vec::new(),
                    complete: true,
                },
                ToStore::LoadUser { .. } => FromStore::User {
                    to,
                    devices: Vec::new(),
                    cursors: Vec::new(),
                    channels: Vec::new(),
                    groups: Vec::new(),
                    revoked: Vec::new(),
                    hidden: false,
                    dead: Vec::new(),
                    failures: Vec::new(),
                    next: Bytes::new(),
                },
                ToStore::LoadRevoked { .. } => {
                    let (rows, next) = (Vec::new(), Bytes::new());
                    FromStore::Revoked { to, rows, next }
                }
                _ => FromStore::Records { to, records: Bytes::new(), count: 0 },
            };
            self.answer(answer);
        }
    }

    fn answer(&mut self, answer: FromStore) {
        let entry = answer.to_bytes().into();
        self.event(LinkEvent::Entry { peer: STORE, number: 1, entry });
        self.sequencer.tick(self.now, &mut self.said);
    }

    fn send(&mut self) {
        self.sends += 1;
        let send = ToSequencer::Send {
            address: Address { incarnation: 1, slot: 1, generation: 1 },
            user: "alice".into(),
            device: "laptop".into(),
            target: Target::User { user: "bob".into() },
            id: self.sends.to_string().as_str().into(),
            body: Body::Binary { bytes: vec![7; BODY_SIZE_MAX].into() },
        };
        let entry = send.to_bytes().into();
        self.event(LinkEvent::Entry { peer: EDGE, number: self.sends, entry });
        self.turn();
    }

    fn refusals(&self) -> usize {
        let refused =
            |said: &&ToEdge| matches!(said, ToEdge::Refused { code: Code::Unavailable, .. });
        self.said.edge.iter().filter(refused).count()
    }

    fn sent(&self) -> usize {
        self.said.edge.iter().filter(|said| matches!(said, ToEdge::Sent { .. })).count()
    }
}

#[test]
fn what_waits_for_a_slow_sync_is_bounded_and_the_rest_is_refused() {
    let mut world = World::new();
    let count = 2 * WAITING_SIZE_MAX / BODY_SIZE_MAX;
    for _ in 0..count {
        world.send();
        let waiting = world.sequencer.appender().waiting_size();
        assert!(waiting <= WAITING_SIZE_MAX + BODY_SIZE_MAX + 4096, "{waiting} bytes wait");
    }
    assert_eq!(world.syncing.len(), 1, "one batch is under way");
    assert_eq!(world.sent(), 0, "nothing is told before it is durable");
    let accepted = count - world.refusals();
    let held = WAITING_SIZE_MAX + 2 * BATCH_SIZE_MAX;
    assert!(accepted * BODY_SIZE_MAX <= held, "{accepted} messages are kept");
    assert!(world.refusals() > count / 3);
    // The disk comes back to life: everything that was taken is told, and sends are taken again.
    while let Some((to, next_lsn)) = world.syncing.pop() {
        world.answer(FromStore::Durable { to, next_lsn });
        world.turn();
        if world.sent() == accepted {
            break;
        }
    }
    assert_eq!(world.sent(), accepted);
    let before = world.refusals();
    world.send();
    assert_eq!(world.refusals(), before, "taken again");
}

#[test]
fn a_store_without_room_is_asked_again_and_new_sends_are_refused_until_it_has() {
    let mut world = World::new();
    world.send();
    let (to, next_lsn) = world.syncing.pop().expect("a batch is under way");
    world.answer(FromStore::Unavailable { to });
    world.send();
    assert_eq!((world.sent(), world.refusals()), (0, 1));
    assert!(world.syncing.is_empty(), "not at once");
    world.now.monotonic_us += 1_000_000;
    world.turn();
    let (to, again) = world.syncing.pop().expect("the same batch again");
    assert_eq!(again, next_lsn);
    world.answer(FromStore::Durable { to, next_lsn });
    assert_eq!(world.sent(), 1);
    world.send();
    assert_eq!((world.syncing.len(), world.refusals()), (1, 1), "taken again");
}

#[test]
fn an_edge_that_is_gone_is_waited_for_a_moment_and_then_forgotten() {
    let mut world = World::with_edges(&["edge", "gone"]);
    let told = ToSequencer::Retold.to_bytes().into();
    world.event(LinkEvent::Entry { peer: EDGE, number: 1, entry: told });
    world.send();
    world.sync();
    for _ in 0..19 {
        world.now.monotonic_us += 100_000;
        world.turn();
        world.sync();
        assert!(world.sequencer.fanout_lag() > 0, "the other edge may still come");
    }
    world.now.monotonic_us += 200_000;
    world.turn();
    let forgotten = world.said.store.iter().filter(|said| match said {
        ToStore::Append { records, .. } => records.windows(4).any(|window| window == b"gone"),
        _ => false,
    });
    assert_eq!(forgotten.count(), 1, "nor does the next life wait for it");
    // Fan-out goes on: bob, who never connected, gets his marker.
    world.sync();
    world.now.monotonic_us += 100_000;
    world.turn();
    world.sync();
    assert!(world.sequencer.counters.markers_total > 0);
}
