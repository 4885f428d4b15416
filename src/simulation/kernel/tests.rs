//! The simulated kernel passes the scenarios of the real one, and is deterministic and faulty.

use super::*;
use crate::ring::kernel::RingOptions;
use crate::ring::scenario::{self, Client, Stage};
use crate::ring::{Completion, Kind, Ring, Socket, Token};

struct Simulated {
    network: SimNetwork,
    ring: SimRing,
    port: u16,
}

fn small() -> RingOptions {
    RingOptions { sockets: 64, buffer_count: 16, buffer_size: 1024, ..RingOptions::default() }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn polite(seed: u64) -> Simulated {
    simulated(seed, FaultRates::default())
}

/// Late and mixed completions, which the scenarios allow; they count those of each request.
fn impolite(seed: u64) -> Simulated {
    let faults = FaultRates {
        late_completion: 0.5,
        reorder: 1.0,
        delay: 0.1,
        overtake: 0.5,
        ..FaultRates::default()
    };
    simulated(seed, faults)
}

fn simulated(seed: u64, faults: FaultRates) -> Simulated {
    let options = SimOptions { faults, ..SimOptions::default() };
    let network = SimNetwork::new(seed, options);
    let ring = SimRing::new(&network, small());
    Simulated { network, ring, port: 1 }
}

impl Stage for Simulated {
    type Ring = SimRing;
    type Client = ClientSocket;

    fn ring(&mut self) -> &mut SimRing {
        &mut self.ring
    }

    fn listen(&mut self) -> (Socket, SocketAddr) {
        self.port += 1;
        (self.ring.listen(address(self.port)), address(self.port))
    }

    fn vacant(&mut self) -> SocketAddr {
        address(1)
    }

    fn dial(&mut self, address: SocketAddr) -> ClientSocket {
        self.network.dial(address)
    }

    fn dial_named(&mut self, address: SocketAddr) -> (ClientSocket, SocketAddr) {
        self.port += 1;
        let from = IpAddr::V4([10, 7, 0, self.port as u8].into());
        let client = self.network.dial_from(from, address);
        let name = client.address();
        (client, name)
    }

    fn pump(&mut self, completions: &mut Vec<Completion>) {
        step(&self.network);
        self.ring.turn(0, completions);
    }
}

impl Client for ClientSocket {
    fn write(&mut self, bytes: &[u8]) -> usize {
        ClientSocket::write(self, bytes)
    }

    fn read(&mut self, size_max: usize) -> Vec<u8> {
        self.read_at_most(size_max)
    }

    fn is_closed(&self) -> bool {
        ClientSocket::is_closed(self)
    }

    fn was_reset(&self) -> bool {
        ClientSocket::was_reset(self)
    }

    fn close(mut self) {
        ClientSocket::close(&mut self);
    }
}

/// To the next event, or a millisecond on when there is none.
fn step(network: &SimNetwork) {
    let later_us = network.now_us() + 1_000;
    network.advance_to(network.next_event_us().unwrap_or(later_us));
}

fn run_to_rest(network: &SimNetwork) {
    while let Some(us) = network.next_event_us() {
        network.advance_to(us);
    }
}

#[test]
fn passes_the_scenarios_of_the_kernel() {
    for make in [polite, impolite] {
        for seed in 0..10 {
            scenario::echo(&mut make(seed));
            scenario::starved_of_buffers(&mut make(seed));
            scenario::connect_refused(&mut make(seed));
            scenario::link_to_itself(&mut make(seed));
            scenario::cancelled_receive(&mut make(seed));
            scenario::cancelled_poll(&mut make(seed));
            scenario::polled_and_received(&mut make(seed));
            scenario::cancelled_send_and_reset(&mut make(seed));
            scenario::close_ends_a_send(&mut make(seed));
            scenario::orderly_close_reaches_the_client(&mut make(seed));
            scenario::stale_token_after_close(&mut make(seed));
            scenario::accepted_one_by_one(&mut make(seed));
        }
        scenario::large_send_to_a_slow_reader(&mut make(1));
    }
}

/// The byte at a place of every stream of these tests.
fn byte_at(index: usize) -> u8 {
    (index * 31 % 251) as u8
}

/// A process with one link, over which it sends numbered bytes and checks those that come.
struct Side {
    ring: SimRing,
    slot: u32,
    opening: Option<Socket>,
    socket: Option<Socket>,
    sent: usize,
    sending: bool,
    received: usize,
    starved: bool,
    ended: bool,
}

impl Side {
    fn new(network: &SimNetwork, slot: u32) -> Side {
        Side {
            ring: SimRing::new(network, small()),
            slot,
            opening: None,
            socket: None,
            sent: 0,
            sending: false,
            received: 0,
            starved: false,
            ended: false,
        }
    }

    fn token(&self, kind: Kind) -> Token {
        Token::new(kind, self.slot, 0)
    }

    fn begin(&mut self, socket: Socket) {
        self.socket = Some(socket);
        self.ring.receive(socket, self.token(Kind::LinkReceive));
    }

    fn turn(&mut self, random: &mut Random, trace: &mut Vec<(u64, Completion)>, now_us: u64) {
        let mut completions = Vec::new();
        self.ring.turn(0, &mut completions);
        trace.extend(completions.iter().map(|completion| (now_us, *completion)));
        for completion in completions {
            self.handle(completion);
        }
        let Some(socket) = self.socket.filter(|_| !self.ended) else {
            return;
        };
        if !self.sending && self.sent < 200_000 {
            let size = 1 + random.index(20_000);
            let bytes = (self.sent..self.sent + size).map(byte_at).collect();
            self.ring.send(socket, bytes, self.token(Kind::LinkSend));
            self.sending = true;
        }
        if std::mem::take(&mut self.starved) {
            self.ring.receive(socket, self.token(Kind::LinkReceive));
        }
    }

    fn handle(&mut self, completion: Completion) {
        match completion.token.kind() {
            Kind::LinkAccept => self.begin(Socket::Direct(completion.result as u32)),
            Kind::LinkConnect => {
                let socket = self.opening.expect("set when it was asked for");
                assert_eq!(completion.result, 0);
                self.begin(socket);
            }
            Kind::LinkSend => {
                self.sending = false;
                self.sent += completion.result.max(0) as usize;
                self.ended |= completion.result < 0;
            }
            Kind::LinkReceive => self.handle_receive(completion),
            kind => panic!("nobody asked for {kind:?}"),
        }
    }

    fn handle_receive(&mut self, completion: Completion) {
        if let Some(buffer) = completion.buffer {
            let size = completion.result as usize;
            for byte in self.ring.bytes(buffer, size) {
                assert_eq!(*byte, byte_at(self.received), "byte {}", self.received);
                self.received += 1;
            }
            self.ring.release(buffer);
        }
        let over = completion.result <= 0 && completion.result != -libc::ENOBUFS;
        self.ended |= over;
        self.starved |= !completion.more && !over;
    }
}

struct Outcome {
    trace: Vec<(u64, Completion)>,
    sent: [usize; 2],
    received: [usize; 2],
    ended: bool,
}

fn exchange(seed: u64, faults: FaultRates) -> Outcome {
    let options = SimOptions { faults, ..SimOptions::default() };
    let network = SimNetwork::new(seed, options);
    let mut random = Random::new(seed);
    let (mut near, mut far) = (Side::new(&network, 1), Side::new(&network, 2));
    let listener = far.ring.listen(address(9));
    far.ring.accept(listener, far.token(Kind::LinkAccept));
    let connect = near.token(Kind::LinkConnect);
    near.opening = near.ring.connect(address(9), connect).ok();
    let mut trace = Vec::new();
    for _ in 0..3_000 {
        step(&network);
        let now_us = network.now_us();
        near.turn(&mut random, &mut trace, now_us);
        far.turn(&mut random, &mut trace, now_us);
    }
    Outcome {
        trace,
        sent: [near.sent, far.sent],
        received: [near.received, far.received],
        ended: near.ended || far.ended,
    }
}

/// Everything but what breaks connections.
fn rough_but_whole() -> FaultRates {
    FaultRates { reset: 0.0, refuse: 0.0, ..FaultRates::rough() }
}

#[test]
fn a_rough_network_keeps_every_byte_in_order() {
    for seed in 0..30 {
        let outcome = exchange(seed, rough_but_whole());
        assert!(!outcome.ended, "seed {seed}");
        let [near, far] = outcome.sent;
        assert!(near >= 200_000 && far >= 200_000, "seed {seed}: {near}, {far}");
        assert_eq!(outcome.received, [far, near], "seed {seed}");
        let has = |wanted: fn(&Completion) -> bool| outcome.trace.iter().any(|(_, c)| wanted(c));
        assert!(has(|completion| completion.result > 0 && !completion.more));
    }
}

#[test]
fn resets_end_both_sides_and_tear_no_prefix() {
    let faults = FaultRates { reset: 0.05, ..rough_but_whole() };
    let ended = (0..30).filter(|seed| exchange(*seed, faults).ended);
    assert!(ended.count() > 20);
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| exchange(seed, FaultRates { refuse: 0.0, ..FaultRates::rough() }).trace;
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
fn a_crash_resets_peers_and_the_next_life_listens_again() {
    let network = SimNetwork::new(1, SimOptions::default());
    let mut first = SimRing::new(&network, small());
    let listener = first.listen(address(9));
    let token = Token::new(Kind::Accept, 0, 0);
    first.accept(listener, token);
    let mut completions = Vec::new();
    first.turn(0, &mut completions);
    let mut client = network.dial(address(9));
    assert_eq!(client.write(b"before"), 6);
    run_to_rest(&network);
    assert!(client.is_connected() && network.is_due(first.id()));
    network.crash(first.id());
    run_to_rest(&network);
    assert!(client.was_reset());
    first.turn(0, &mut completions);
    assert_eq!(completions, [], "the dead see nothing");
    let refused = network.dial(address(9));
    run_to_rest(&network);
    assert!(refused.was_reset());
    let mut second = SimRing::new(&network, small());
    let listener = second.listen(address(9));
    second.accept(listener, token);
    let _again = network.dial(address(9));
    run_to_rest(&network);
    second.turn(0, &mut completions);
    assert_eq!((completions.len(), completions[0].result), (1, 0));
}

#[test]
fn a_silent_crash_is_noticed_late() {
    let faults = FaultRates { silent_crash: 1.0, ..FaultRates::default() };
    let options = SimOptions { faults, ..SimOptions::default() };
    let network = SimNetwork::new(4, options);
    let mut ring = SimRing::new(&network, small());
    ring.listen(address(9));
    let client = network.dial(address(9));
    run_to_rest(&network);
    drop(ring);
    network.advance_to(network.now_us() + 10_000);
    assert!(!client.was_reset());
    run_to_rest(&network);
    assert!(client.was_reset());
}

#[test]
fn rings_share_an_address() {
    let network = SimNetwork::new(2, SimOptions::default());
    let mut rings = [0, 1].map(|_| SimRing::new(&network, small()));
    for ring in &mut rings {
        let listener = ring.listen(address(9));
        ring.accept(listener, Token::new(Kind::Accept, 0, 0));
    }
    let clients: Vec<ClientSocket> = (0..40).map(|_| network.dial(address(9))).collect();
    run_to_rest(&network);
    let counts = rings.each_mut().map(|ring| {
        let mut completions = Vec::new();
        ring.turn(0, &mut completions);
        completions.len()
    });
    assert_eq!(counts[0] + counts[1], clients.len());
    assert!(counts[0] > 5 && counts[1] > 5, "{counts:?}");
}

#[test]
fn a_waker_is_heard_before_and_after_the_watch() {
    let network = SimNetwork::new(1, SimOptions::default());
    let mut ring = SimRing::new(&network, small());
    let (waker, descriptor) = ring.waker();
    waker.wake();
    let token = Token::new(Kind::Wake, 0, 0);
    ring.watch(descriptor, token);
    let mut completions = Vec::new();
    ring.turn(0, &mut completions);
    assert_eq!((completions.len(), completions[0].token), (1, token));
    ring.turn(0, &mut completions);
    assert_eq!(completions.len(), 1);
    waker.wake();
    ring.turn(0, &mut completions);
    assert_eq!(completions.len(), 2);
}

fn accepted() -> (SimNetwork, SimRing, ClientSocket) {
    let network = SimNetwork::new(1, SimOptions::default());
    let mut ring = SimRing::new(&network, small());
    let listener = ring.listen(address(9));
    ring.accept(listener, Token::new(Kind::Accept, 0, 0));
    let client = network.dial(address(9));
    run_to_rest(&network);
    let mut completions = Vec::new();
    ring.turn(0, &mut completions);
    assert_eq!(completions[0].result, 0);
    (network, ring, client)
}

#[test]
#[should_panic(expected = "two sends")]
fn a_second_send_before_the_first_completed_is_a_breach() {
    let (_network, mut ring, _client) = accepted();
    ring.send(Socket::Direct(0), b"one".to_vec(), Token::new(Kind::Send, 0, 0));
    ring.send(Socket::Direct(0), b"two".to_vec(), Token::new(Kind::Send, 0, 1));
    ring.turn(0, &mut Vec::new());
}

#[test]
#[should_panic(expected = "closed under its")]
fn closing_under_an_armed_receive_is_a_breach() {
    let (_network, mut ring, _client) = accepted();
    ring.receive(Socket::Direct(0), Token::new(Kind::Receive, 0, 0));
    ring.close(Socket::Direct(0), false);
    ring.turn(0, &mut Vec::new());
}
