//! The ring on real loopback TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::ring::scenario::{self, Client, Stage};
use crate::sys::Waker;

struct Loopback {
    ring: KernelRing,
    listeners: Vec<Listener>,
}

impl Loopback {
    fn new(options: RingOptions) -> Loopback {
        Loopback {
            ring: KernelRing::new(options).expect("the tests need a host with io_uring"),
            listeners: Vec::new(),
        }
    }
}

struct TcpClient {
    stream: TcpStream,
    closed: bool,
    reset: bool,
}

fn small() -> RingOptions {
    RingOptions {
        submissions: 64,
        completions: 256,
        sockets: 64,
        descriptors: Descriptors::Direct,
        buffer_count: 16,
        buffer_size: 1024,
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Stage for Loopback {
    type Ring = KernelRing;
    type Client = TcpClient;

    fn ring(&mut self) -> &mut KernelRing {
        &mut self.ring
    }

    fn listen(&mut self) -> (Socket, SocketAddr) {
        let listener = listen(any(), 16, false).expect("an ephemeral port");
        let (socket, address) = (listener.socket(), listener.address());
        self.listeners.push(listener);
        (socket, address)
    }

    fn vacant(&mut self) -> SocketAddr {
        let listener = listen(any(), 16, false).expect("an ephemeral port");
        listener.address()
    }

    fn dial(&mut self, address: SocketAddr) -> TcpClient {
        let stream = TcpStream::connect(address).expect("the listener's backlog takes it");
        stream.set_nonblocking(true).expect("a socket can be so");
        stream.set_nodelay(true).expect("a socket can be so");
        TcpClient { stream, closed: false, reset: false }
    }

    fn dial_named(&mut self, address: SocketAddr) -> (TcpClient, SocketAddr) {
        let client = self.dial(address);
        let name = client.stream.local_addr().expect("it is connected");
        (client, name)
    }

    fn pump(&mut self, completions: &mut Vec<Completion>) {
        self.ring.turn(1_000, completions);
    }
}

impl Client for TcpClient {
    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the client cannot write: {error}"),
        }
    }

    fn read(&mut self, size_max: usize) -> Vec<u8> {
        let mut bytes = vec![0; size_max];
        let size = match self.stream.read(&mut bytes) {
            Ok(size) => {
                self.closed |= size == 0;
                size
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.reset |= error.kind() == ErrorKind::ConnectionReset;
                self.closed = true;
                0
            }
        };
        bytes.truncate(size);
        bytes
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn was_reset(&self) -> bool {
        self.reset
    }

    fn close(self) {}
}

/// With direct descriptors and with ordinary ones.
fn in_both(run: impl Fn(&mut Loopback)) {
    for descriptors in [Descriptors::Direct, Descriptors::Ordinary] {
        run(&mut Loopback::new(RingOptions { descriptors, ..small() }));
    }
}

#[test]
fn echo() {
    in_both(scenario::echo);
}

#[test]
fn large_send_to_a_slow_reader() {
    in_both(scenario::large_send_to_a_slow_reader);
}

#[test]
fn starved_of_buffers() {
    in_both(scenario::starved_of_buffers);
}

#[test]
fn connect_refused() {
    in_both(scenario::connect_refused);
}

#[test]
fn link_to_itself() {
    in_both(scenario::link_to_itself);
}

#[test]
fn polled_and_received() {
    in_both(scenario::polled_and_received);
}

#[test]
fn cancelled_poll() {
    in_both(scenario::cancelled_poll);
}

#[test]
fn cancelled_receive() {
    in_both(scenario::cancelled_receive);
}

#[test]
fn cancelled_send_and_reset() {
    in_both(scenario::cancelled_send_and_reset);
}

#[test]
fn close_ends_a_send() {
    in_both(scenario::close_ends_a_send);
}

#[test]
fn orderly_close_reaches_the_client() {
    in_both(scenario::orderly_close_reaches_the_client);
}

#[test]
fn stale_token_after_close() {
    // Numbers of ordinary descriptors are also given to the tests beside this one.
    scenario::stale_token_after_close(&mut Loopback::new(small()));
}

#[test]
fn accepted_one_by_one() {
    scenario::accepted_one_by_one(&mut Loopback::new(small()));
}

/// On a listener for both families an IPv4 client has an IPv6 address that holds its own.
#[test]
fn a_peer_of_either_family_is_known() {
    let mut stage = Loopback::new(small());
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    let Ok(listener) = listen(any, 16, false) else {
        return println!("this host has no IPv6");
    };
    for host in ["127.0.0.1", "::1"] {
        let host: std::net::IpAddr = host.parse().expect("an address");
        let accept = Token::new(Kind::Accept, 0, 0);
        stage.ring.accept_one(listener.socket(), accept);
        let (_client, name) = stage.dial_named((host, listener.address().port()).into());
        let mut completions = Vec::new();
        while completions.is_empty() {
            stage.pump(&mut completions);
        }
        let peer = stage.ring.take_peer(accept).expect("it was accepted");
        assert_eq!((peer.ip().to_canonical(), peer.port()), (host, name.port()));
    }
}

#[test]
fn a_wake_up_ends_the_wait_again_and_again() {
    let mut ring = Loopback::new(small()).ring;
    let waker = Waker::new().expect("an event descriptor");
    let token = Token::new(Kind::Wake, 0, 0);
    ring.watch(waker.raw(), token);
    for _ in 0..3 {
        let other = waker.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            other.wake();
        });
        let mut completions = Vec::new();
        let started = Instant::now();
        ring.turn(10_000_000, &mut completions);
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(completions.len(), 1);
        assert!(completions[0].more && completions[0].token == token);
        thread.join().expect("the thread only wakes");
        completions.clear();
        ring.turn(0, &mut completions);
        assert_eq!(completions, [], "the event was drained");
    }
    let mut completions = Vec::new();
    ring.cancel(token);
    ring.turn(1_000_000, &mut completions);
    assert_eq!(completions[0].result, -libc::ECANCELED);
    assert!(!completions[0].more && ring.watches.is_empty());
}

#[test]
fn a_turn_waits_as_long_as_it_is_told_and_no_longer() {
    let mut ring = Loopback::new(small()).ring;
    let mut completions = Vec::new();
    let started = Instant::now();
    ring.turn(20_000, &mut completions);
    assert!(started.elapsed() >= Duration::from_millis(20));
    let started = Instant::now();
    ring.turn(0, &mut completions);
    assert!(started.elapsed() < Duration::from_millis(20));
    assert_eq!(completions, []);
}

/// More requests than both queues hold, in one turn: nothing is lost, nothing blocks.
#[test]
fn full_queues_lose_nothing() {
    let tiny = RingOptions { submissions: 2, completions: 4, ..small() };
    let mut stage = Loopback::new(tiny);
    let (listener, address) = stage.listen();
    let accept = Token::new(Kind::Accept, 0, 0);
    let mut completions = Vec::new();
    let mut accepted = Vec::new();
    stage.ring.accept(listener, accept);
    let mut clients: Vec<TcpClient> = (0..16).map(|_| stage.dial(address)).collect();
    for _ in 0..1000 {
        stage.pump(&mut completions);
        for completion in completions.drain(..) {
            accepted.push(completion.result as u32);
            if !completion.more {
                stage.ring.accept(listener, accept);
            }
        }
        if accepted.len() == clients.len() {
            break;
        }
    }
    assert_eq!(accepted.len(), clients.len());
    let message = vec![b'x'; 100];
    for (index, slot) in accepted.iter().enumerate() {
        let token = Token::new(Kind::Send, index as u32, 0);
        stage.ring.send(Socket::Direct(*slot), message.clone(), token);
    }
    let mut sent = 0;
    for _ in 0..1000 {
        stage.pump(&mut completions);
        let sends = completions.drain(..).filter(|c| c.token.kind() == Kind::Send);
        sent += sends.inspect(|send| assert_eq!(send.result, 100)).count();
    }
    assert_eq!(sent, clients.len());
    for client in &mut clients {
        assert_eq!(client.read(1000), message);
    }
}

/// Queues and buffers for a few, and streams for many: receives end for want of either all the
/// time, and are asked for again; no byte is lost or out of its place.
#[test]
fn starved_and_overflown_streams_keep_every_byte() {
    let tiny =
        RingOptions { submissions: 2, completions: 4, buffer_count: 4, buffer_size: 64, ..small() };
    const SIZE: usize = 10_000;
    let mut stage = Loopback::new(tiny);
    let (listener, address) = stage.listen();
    let accept = Token::new(Kind::Accept, 0, 0);
    stage.ring.accept(listener, accept);
    let message: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8).collect();
    let mut clients: Vec<TcpClient> = (0..8).map(|_| stage.dial(address)).collect();
    for client in &mut clients {
        assert_eq!(client.write(&message), SIZE);
    }
    let mut received = vec![0; 8];
    let mut completions = Vec::new();
    let mut restarts = 0;
    let started = Instant::now();
    while received.iter().sum::<usize>() < 8 * SIZE {
        assert!(started.elapsed() < Duration::from_secs(20), "{received:?}");
        stage.pump(&mut completions);
        for completion in std::mem::take(&mut completions) {
            let is_accept = completion.token == accept;
            let slot = if is_accept { completion.result as u32 } else { completion.token.slot() };
            if let Some(buffer) = completion.buffer {
                let size = completion.result as usize;
                let place = &mut received[slot as usize];
                assert_eq!(stage.ring.bytes(buffer, size), &message[*place..*place + size]);
                *place += size;
                stage.ring.release(buffer);
            }
            if is_accept || !completion.more {
                restarts += usize::from(!is_accept);
                let token = Token::new(Kind::Receive, slot, 0);
                stage.ring.receive(Socket::Direct(slot), token);
            }
            if is_accept && !completion.more {
                stage.ring.accept(listener, accept);
            }
        }
    }
    assert!(restarts > 0, "the test starves nobody");
    assert_eq!(stage.ring.buffers_free(), stage.ring.buffers_max());
}

/// The table is full: the accept ends with ENFILE and is asked for again when a slot is free.
#[test]
fn more_clients_than_slots() {
    let two = RingOptions { sockets: 2, ..small() };
    let mut stage = Loopback::new(two);
    assert_eq!(stage.ring.sockets_max(), 2);
    let (listener, address) = stage.listen();
    let accept = Token::new(Kind::Accept, 0, 0);
    stage.ring.accept(listener, accept);
    let clients: Vec<TcpClient> = (0..3).map(|_| stage.dial(address)).collect();
    let mut completions = Vec::new();
    for _ in 0..50 {
        stage.pump(&mut completions);
    }
    let results: Vec<i32> = completions.iter().map(|completion| completion.result).collect();
    assert_eq!(results, [0, 1, -libc::ENFILE]);
    assert!(!completions[2].more);
    stage.ring.close(Socket::Direct(1), false);
    stage.ring.accept(listener, accept);
    let fourth = stage.dial(address);
    completions.clear();
    for _ in 0..50 {
        stage.pump(&mut completions);
    }
    assert_eq!((completions.len(), completions[0].result), (1, 1));
    drop((clients, fourth));
}

#[test]
fn a_ring_is_dropped_with_everything_under_way() {
    let mut stage = Loopback::new(small());
    let (listener, address) = stage.listen();
    stage.ring.accept(listener, Token::new(Kind::Accept, 0, 0));
    let mut client = stage.dial(address);
    let mut completions = Vec::new();
    while completions.is_empty() {
        stage.pump(&mut completions);
    }
    let socket = Socket::Direct(completions[0].result as u32);
    stage.ring.receive(socket, Token::new(Kind::Receive, 0, 0));
    stage.ring.send(socket, vec![1; 24 << 20], Token::new(Kind::Send, 0, 0));
    let (other, _) = stage.listen();
    (0..8).for_each(|lane| stage.ring.accept_one(other, Token::new(Kind::LinkAccept, 0, lane)));
    stage.pump(&mut completions);
    drop(stage);
    let started = Instant::now();
    while !client.closed && started.elapsed() < Duration::from_secs(5) {
        client.read(1 << 20);
    }
    assert!(client.closed, "the peer sees that the ring is gone");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let odd = RingOptions { buffer_count: 3, ..small() };
    let fault = KernelRing::new(odd).err().expect("three is no power of two");
    assert!(fault.to_string().contains("buffer_count"));
}
