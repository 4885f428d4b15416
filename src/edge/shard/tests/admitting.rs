//! Who is let in, what the refused hear, and what slow requests cost the others.

use std::net::IpAddr;

use super::super::super::admission::AdmissionOptions;
use super::*;
use crate::edge::echo::EchoApplication;
use crate::ring::kernel::RingOptions;
use crate::simulation::kernel::{ClientSocket, FaultRates, SimNetwork, SimOptions, SimRing};

const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const SLOW_COUNT: usize = 2_000;

fn limited(admission: AdmissionOptions) -> ShardOptions {
    ShardOptions { connection_count_max: 100, admission, ..ShardOptions::default() }
}

fn retry_after_s(text: &str) -> u64 {
    let (_, rest) = text.split_once("\r\nRetry-After: ").expect("when to come again");
    let (value, _) = rest.split_once("\r\n").expect("a line");
    value.parse().expect("seconds")
}

#[test]
fn a_byte_a_second_never_extends_the_deadline() {
    let mut stage = Stage::new();
    stage.accept(7);
    for byte in UPGRADE.chunks(1).take(HANDSHAKE_MS as usize / 1_000 - 1) {
        stage.pass_ms(1_000);
        stage.arrive(7, byte);
    }
    assert_eq!(stage.closed(), []);
    stage.pass_ms(1_100);
    assert_eq!(stage.closed(), [(Socket::Direct(7), true)]);
    assert_eq!((stage.told(), stage.sent()), (Vec::new(), Vec::new()));
    assert_eq!(stage.shard.counters().timed_out, 1);
}

#[test]
fn a_refused_one_does_not_keep_out_others_by_staying() {
    let mut stage = Stage::new();
    stage.open(0);
    stage.open(1);
    // Refused, and silent from then on.
    stage.accept(2);
    assert!(stage.sent_text().starts_with("HTTP/1.1 503 "));
    stage.end_of_stream(0);
    stage.open(3);
    stage.pass_ms(CLOSE_MS + 200);
    assert_eq!(stage.shard.connection_count(), 2);
    assert_eq!(stage.shard.counters().accepted, 3);
}

#[test]
fn over_the_rate_the_answer_is_429_and_the_time_to_come_again() {
    let limits = AdmissionOptions { handshakes_per_second: 2, ..AdmissionOptions::default() };
    let mut stage = Stage::with(limited(limits));
    stage.open(0);
    stage.open(1);
    let mut told = Vec::new();
    for socket in 2..8 {
        stage.accept(socket);
        let text = stage.sent_text();
        assert!(text.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{text}");
        assert!(text.contains("{\"code\":\"rate_limited\",\"message\":\""), "{text}");
        told.push(retry_after_s(&text));
        // The request that follows is read and answered by nothing more.
        stage.arrive(socket, UPGRADE);
        stage.end_of_stream(socket);
        assert_eq!(stage.closed(), [(Socket::Direct(socket), false)]);
    }
    assert_eq!(told, [1, 1, 2, 2, 3, 3]);
    stage.pass_ms(1_000);
    stage.open(8);
    stage.open(9);
    stage.accept(10);
    assert!(stage.sent_text().starts_with("HTTP/1.1 429 "));
    assert_eq!(stage.shard.counters().refused, [0, 7, 0, 0]);
    assert_eq!(stage.shard.counters().accepted, 4);
}

#[test]
fn the_measured_capacity_is_the_limit_and_follows_what_was_sustained() {
    let admission = AdmissionOptions { is_measured: true, ..AdmissionOptions::default() };
    let options = ShardOptions { connection_count_max: 300, capacity: 100, ..limited(admission) };
    let mut stage = Stage::with(options);
    (0..100).for_each(|socket| stage.open(socket));
    stage.accept(400);
    assert!(stage.sent_text().starts_with("HTTP/1.1 429 "));
    assert_eq!(stage.shard.slots(), Slots::new(50, 1), "half of it for those who return");
    // A second's worth had gathered, and another came: so many were served within a second.
    stage.pass_ms(990);
    (100..199).for_each(|socket| stage.open(socket));
    stage.pass_ms(20);
    let capacity = stage.shard.capacity();
    assert!((190..199).contains(&capacity), "{capacity}");
    stage.pass_ms(1_000);
    let room = (200..290).map(|socket| stage.open(socket)).count();
    assert_eq!((room, stage.shard.counters().accepted), (90, 289), "and so many are let in now");
    assert_eq!(stage.shard.slots(), Slots::new(capacity / 2, 1));
}

#[test]
fn a_limit_that_was_given_is_the_rate_of_those_who_return() {
    let admission =
        AdmissionOptions { handshakes_per_second: 30, shards: 3, ..AdmissionOptions::default() };
    let mut stage = Stage::with(limited(admission));
    (0..10).for_each(|socket| stage.open(socket));
    assert_eq!(stage.shard.slots(), Slots::new(30, 3), "ten a second for each shard");
}

#[test]
fn of_very_many_refused_the_last_are_cut_off() {
    let limits = AdmissionOptions { handshakes_per_second: 1, ..AdmissionOptions::default() };
    let mut stage = Stage::with(limited(limits));
    stage.open(0);
    let heard = SPARE_COUNT + 100 / 16;
    for socket in 1..=heard + 10 {
        stage.accept(socket as u32);
    }
    let answers = stage.sent_text().matches("HTTP/1.1 429 ").count();
    assert_eq!(answers, heard);
    assert_eq!(stage.closed().len(), 10);
    stage.pass_ms(CLOSE_MS + 1_000);
    assert_eq!(stage.shard.connection_count(), 1);
    stage.open(500);
}

#[test]
fn without_a_limit_by_address_one_accept_goes_on_and_on() {
    let mut stage = Stage::new();
    assert_eq!(stage.ring().accepts.len(), 1);
    let limits = AdmissionOptions { connections_per_address: 1, ..AdmissionOptions::default() };
    let mut stage = Stage::with(limited(limits));
    assert_eq!(stage.ring().accepts.len(), ACCEPT_LANES as usize);
    let token = stage.ring().accepts[5];
    stage.ring().complete(token, 0, false, None);
    stage.settle();
    assert_eq!(stage.ring().accepts.last(), Some(&token), "that lane again, and no other");
    assert_eq!(stage.ring().accepts.len(), ACCEPT_LANES as usize + 1);
    stage.shard.begin_stop();
    assert_eq!(stage.ring().pending.len(), ACCEPT_LANES as usize, "each lane is cancelled");
}

/// A shard on the simulated kernel, whose clients have addresses.
struct World {
    network: SimNetwork,
    shard: Shard<SimRing, EchoApplication>,
}

impl World {
    fn new(seed: u64, faults: FaultRates, options: ShardOptions) -> World {
        let network = SimNetwork::new(seed, SimOptions { faults, ..SimOptions::default() });
        let ring_options = RingOptions {
            sockets: (options.connection_count_max + SPARE_COUNT) as u32,
            buffer_count: 64,
            buffer_size: 256,
            ..RingOptions::default()
        };
        let mut ring = SimRing::new(&network, ring_options);
        let listener = ring.listen(ADDRESS.into());
        let mut shard = Shard::new(ring, EchoApplication, options, Now::default());
        shard.add_listener(listener);
        World { network, shard }
    }

    fn dial(&self, from: IpAddr) -> ClientSocket {
        self.network.dial_from(from, ADDRESS.into())
    }

    fn pass_ms(&mut self, time_ms: u64) {
        let end_us = self.network.now_us() + time_ms * 1_000;
        while self.network.now_us() < end_us {
            self.network.advance_to(self.network.now_us() + 1_000);
            let network = self.network.clone();
            self.shard.turn(&mut || Now { monotonic_us: network.now_us(), unix_ms: 0 });
        }
    }

    /// Says a whole request and returns the first line of the answer.
    fn ask(&mut self, client: &mut ClientSocket) -> String {
        client.write(UPGRADE);
        self.pass_ms(60);
        let answer = String::from_utf8_lossy(&client.read()).into_owned();
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

#[test]
fn an_address_has_its_connections_and_no_more_and_others_theirs() {
    let late = FaultRates { late_completion: 0.3, reorder: 1.0, ..FaultRates::default() };
    for (seed, faults) in [(1, FaultRates::default()), (2, late), (3, late), (4, late)] {
        let limits = AdmissionOptions { connections_per_address: 3, ..AdmissionOptions::default() };
        let mut world = World::new(seed, faults, limited(limits));
        let crowd = IpAddr::from([192, 0, 2, 9]);
        let mut clients: Vec<ClientSocket> = (0..40).map(|_| world.dial(crowd)).collect();
        let mut others: Vec<ClientSocket> =
            (0..20).map(|host| world.dial([198, 51, 100, host].into())).collect();
        world.pass_ms(100);
        let answers: Vec<String> = clients.iter_mut().map(|client| world.ask(client)).collect();
        let count = |of: &str| answers.iter().filter(|line| line.contains(of)).count();
        assert_eq!((count(" 101 "), count(" 429 ")), (3, 37), "seed {seed}: {answers:?}");
        for other in &mut others {
            assert!(world.ask(other).contains(" 101 "), "seed {seed}");
        }
        assert_eq!(world.shard.counters().refused, [0, 0, 37, 0]);
        // Those who leave make room for as many.
        let is_in = |index: &usize| answers[*index].contains(" 101 ");
        let leaver = (0..40).find(is_in).expect("three are in");
        clients[leaver].close();
        world.pass_ms(1_200);
        let (mut next, mut last) = (world.dial(crowd), world.dial(crowd));
        world.pass_ms(100);
        let both = [world.ask(&mut next), world.ask(&mut last)];
        assert_eq!(both.iter().filter(|line| line.contains(" 101 ")).count(), 1, "seed {seed}");
    }
}

/// Thousands who send a byte a second: each goes after ten seconds, and who speaks is served.
#[test]
fn slow_requests_cost_little_and_harm_nobody() {
    let options = ShardOptions { connection_count_max: SLOW_COUNT + 10, ..ShardOptions::default() };
    let mut world = World::new(7, FaultRates::default(), options);
    let from = IpAddr::from([192, 0, 2, 1]);
    let mut slow: Vec<ClientSocket> = (0..SLOW_COUNT).map(|_| world.dial(from)).collect();
    let started_us = world.network.now_us();
    let mut talker = world.dial(from);
    assert!(world.ask(&mut talker).contains(" 101 "));
    let hello = client_frame(Opcode::Text, b"hello");
    for second in 0..12 {
        for client in &mut slow {
            client.write(&UPGRADE[second..=second]);
        }
        world.pass_ms(940);
        talker.write(&hello);
        world.pass_ms(10);
        assert_eq!(talker.read(), server_frame(Opcode::Text, b"hello"), "second {second}");
        let mut other = world.dial(from);
        assert!(world.ask(&mut other).contains(" 101 "), "second {second}");
        drop(other);
        let held: usize = world.shard.ledger().size(Class::Requests);
        assert!(held <= SLOW_COUNT * 64, "{held} bytes for them");
    }
    assert!(world.network.now_us() - started_us > HANDSHAKE_MS * 1_000);
    world.pass_ms(100);
    assert!(slow.iter().all(ClientSocket::was_reset), "they are gone");
    assert_eq!(world.shard.counters().timed_out, SLOW_COUNT as u64);
    assert_eq!(world.shard.connection_count(), 1);
}
