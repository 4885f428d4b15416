//! The shard over the simulated kernel: torn, late, reordered, starved of buffers and reset. A
//! failing seed is in the panic's message and replays exactly.

use super::*;
use crate::edge::echo::EchoApplication;
use crate::edge::handover::{ConnectionState, ShardState};
use crate::framer::frame::frame_size;
use crate::link::wire::Wire;
use crate::ring::kernel::RingOptions;
use crate::simulation::kernel::{
    ClientSocket, FaultRates, RingId, SimNetwork, SimOptions, SimRing,
};
use crate::simulation::random::Random;

const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const CLIENT_COUNT: usize = 12;
const TIME_MAX_US: u64 = 600_000_000;

struct World {
    network: SimNetwork,
    shard: Shard<SimRing, EchoApplication>,
    ring: RingId,
    random: Random,
}

impl World {
    fn new(seed: u64, faults: FaultRates) -> World {
        let mut random = Random::new(seed);
        let network = SimNetwork::new(
            seed,
            SimOptions {
                socket_buffer_size: 512 << random.below(8),
                faults,
                ..SimOptions::default()
            },
        );
        let mut ring = SimRing::new(
            &network,
            RingOptions {
                sockets: 64,
                buffer_count: 1 << random.below(4),
                buffer_size: 16 << random.below(6),
                ..RingOptions::default()
            },
        );
        let options =
            ShardOptions { connection_count_max: CLIENT_COUNT, ..ShardOptions::default() };
        let (listener, id) = (ring.listen(ADDRESS.into()), ring.id());
        let mut shard = Shard::new(ring, EchoApplication, options, Now::default());
        shard.add_listener(listener);
        World { network, shard, ring: id, random }
    }

    fn turn(&mut self) {
        let step_us = self.random.below(1_000);
        self.network.advance_to(self.network.now_us() + step_us);
        self.turn_shard();
    }

    /// Another shard goes on where this one stands, or this one does after all.
    fn hand_over(&mut self) {
        let network = self.network.clone();
        let mut clock = || {
            network.advance_to(network.now_us() + 100);
            Now { monotonic_us: network.now_us(), unix_ms: 0 }
        };
        assert!(self.shard.stand_still(&mut clock), "every request ends");
        if self.random.chance(0.3) {
            return self.shard.move_on();
        }
        let state = ShardState::from_bytes(self.shard.state().to_bytes().into());
        let ids = self.shard.connection_ids();
        let connections = ids.into_iter().map(|id| {
            let state = self.shard.connection_state(id).expect("listed");
            ConnectionState::from_bytes(state.to_bytes().into()).expect("of a connection")
        });
        let connections: Vec<_> = connections.collect();
        let spare = World::spare();
        let old = std::mem::replace(&mut self.shard, spare);
        let (options, listener) = (old.connections.options, old.listeners[0].socket);
        let ring = old.into_ring(&mut clock);
        let now = Now { monotonic_us: self.network.now_us(), unix_ms: 0 };
        let state = (state.expect("of a shard").generations, connections);
        let mut shard =
            Shard::restore(ring, EchoApplication, options, now, state).expect("the same size");
        shard.add_listener(listener);
        shard.move_on();
        self.shard = shard;
    }

    /// Stands where the real one is for a moment.
    fn spare() -> Shard<SimRing, EchoApplication> {
        let network = SimNetwork::new(0, SimOptions::default());
        let ring =
            SimRing::new(&network, RingOptions { buffer_count: 1, ..RingOptions::default() });
        let options = ShardOptions { connection_count_max: 1, ..ShardOptions::default() };
        Shard::new(ring, EchoApplication, options, Now::default())
    }

    fn turn_shard(&mut self) {
        let network = self.network.clone();
        self.shard.turn(&mut || Now { monotonic_us: network.now_us(), unix_ms: 0 });
        self.shard.connections.check_ledger();
    }

    /// Lets time pass until nobody is connected; deadlines see to it that this comes.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            self.network.advance_to(self.network.now_us() + 100_000);
            self.turn_shard();
            if self.shard.connection_count() == 0 && !self.network.is_due(self.ring) {
                return;
            }
        }
        panic!("{} connections stay for ever", self.shard.connection_count());
    }
}

/// Says something, wants it back, closes.
struct Talker {
    socket: ClientSocket,
    outgoing: Vec<u8>,
    /// The payloads of the data frames said, and of the pings.
    data: Vec<Vec<u8>>,
    pings: Vec<Vec<u8>>,
    incoming: Vec<u8>,
}

impl Talker {
    fn new(world: &mut World) -> Talker {
        let (mut outgoing, mut data, mut pings) = (UPGRADE.to_vec(), Vec::new(), Vec::new());
        for _ in 0..world.random.below(20) {
            let size = [0, 3, 125, 126, 1_000, 4_000, 70_000][world.random.index(7)];
            let payload = vec![world.random.next_u64() as u8; size];
            if world.random.chance(0.3) {
                let payload = payload[..size.min(9)].to_vec();
                outgoing.extend(client_frame(Opcode::Ping, &payload));
                pings.push(payload);
            } else {
                outgoing.extend(client_frame(Opcode::Binary, &payload));
                data.push(payload);
            }
        }
        outgoing.extend(client_frame(Opcode::Close, &close_payload(1000, "")));
        Talker {
            socket: world.network.dial(ADDRESS.into()),
            outgoing,
            data,
            pings,
            incoming: Vec::new(),
        }
    }

    fn step(&mut self, random: &mut Random) {
        let size = random.index(self.outgoing.len().max(1)).max(1);
        let written = self.socket.write(&self.outgoing[..size.min(self.outgoing.len())]);
        self.outgoing.drain(..written);
        if random.chance(0.7) {
            let arrived = self.socket.read_at_most(1 + random.index(10_000));
            self.incoming.extend(arrived);
        }
    }

    /// Whether everything came back, in order, with the close frame at last.
    fn check(&self, is_complete: bool) {
        let head_size = self.incoming.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let Some(head_size) = head_size else {
            assert!(!is_complete, "not even upgraded");
            return;
        };
        let (mut data, mut pongs, mut is_closed) = (self.data.iter(), self.pings.iter(), false);
        for (opcode, payload) in frames(&self.incoming[head_size + 4..]) {
            assert!(!is_closed, "nothing follows a close frame");
            match opcode {
                2 => assert!(data.next().is_some_and(|said| said == payload)),
                10 => assert!(pongs.next().is_some_and(|said| said == payload)),
                8 => is_closed = true,
                9 => {}
                _ => panic!("opcode {opcode} was never said"),
            }
        }
        if is_complete {
            assert!(is_closed && data.len() == 0 && pongs.len() == 0, "something is missing");
        }
    }
}

/// The whole frames of a server's stream.
fn frames(mut stream: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while stream.len() >= 10 || stream.len() >= 2 && stream[1] < 126 {
        let size = frame_size(stream);
        let Some((frame, rest)) = stream.split_at_checked(size) else {
            break;
        };
        let header_size = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        frames.push((frame[0] & 15, &frame[header_size..]));
        stream = rest;
    }
    frames
}

fn run(seed: u64, faults: FaultRates) {
    run_with(seed, faults, 0.0);
}

fn run_with(seed: u64, faults: FaultRates, hand_over: f64) {
    let mut world = World::new(seed, faults);
    let mut talkers: Vec<Talker> = (0..CLIENT_COUNT).map(|_| Talker::new(&mut world)).collect();
    while talkers.iter().any(|talker| !talker.socket.is_closed()) {
        for talker in &mut talkers {
            talker.step(&mut world.random);
        }
        world.turn();
        if world.random.chance(hand_over) {
            world.hand_over();
        }
        assert!(world.network.now_us() < TIME_MAX_US, "somebody hangs");
    }
    for talker in &talkers {
        talker.check(faults.reset == 0.0);
    }
    drop(talkers);
    world.settle();
}

#[test]
fn without_resets_everything_comes_back() {
    for seed in 0..40 {
        println!("seed {seed}");
        run(
            seed,
            FaultRates {
                reset: 0.0,
                overtake: 0.0,
                refuse: 0.0,
                silent_crash: 0.0,
                ..FaultRates::rough()
            },
        );
    }
}

#[test]
fn with_resets_what_comes_back_is_right_and_nothing_stays() {
    for seed in 0..40 {
        println!("seed {seed}");
        run(seed, FaultRates { reset: 0.005, ..FaultRates::rough() });
    }
}

#[test]
fn nothing_is_lost_or_repeated_by_a_hand_over() {
    for seed in 0..60 {
        println!("seed {seed}");
        let gentle = FaultRates {
            reset: 0.0,
            overtake: 0.0,
            refuse: 0.0,
            silent_crash: 0.0,
            ..FaultRates::rough()
        };
        run_with(seed, gentle, 0.2);
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut world = World::new(seed, FaultRates::rough());
        let mut talkers: Vec<Talker> = (0..CLIENT_COUNT).map(|_| Talker::new(&mut world)).collect();
        for _ in 0..world.random.below(100) {
            for talker in &mut talkers {
                talker.step(&mut world.random);
            }
            world.turn();
        }
        for talker in &mut talkers {
            match world.random.below(3) {
                0 => talker.socket.close(),
                1 => talker.socket.reset(),
                _ => {}
            }
        }
        world.settle();
    }
}
