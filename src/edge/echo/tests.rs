//! Echoes over the real ring, against a WebSocket client that shares no code with ours.

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use tungstenite::{Message as Said, WebSocket, client};

use super::*;
use crate::edge::Counters;

/// A shard on a thread of its own.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Counters>>,
}

impl Server {
    fn start() -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let listener = listen(([127, 0, 0, 1], 0).into(), 64, false).expect("a free port");
            sender.send(listener.address()).expect("the test waits");
            let ring = KernelRing::new(RingOptions::default()).expect("a ring");
            let options = ShardOptions {
                message_size_max: ECHO_MESSAGE_SIZE_MAX as u32,
                queue_size_max: QUEUE_SIZE_MAX,
                ..ShardOptions::default()
            };
            let mut shard = Shard::new(ring, EchoApplication, options, Now::read());
            shard.add_listener(listener.socket());
            shard.run(&flag);
            shard.counters()
        });
        Server { address: receiver.recv().expect("the shard starts"), stop, thread: Some(thread) }
    }

    fn connect(&self) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(self.address).expect("it listens");
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).expect("a timeout");
        client(format!("ws://{}/", self.address), stream).expect("upgraded").0
    }

    fn stop(mut self) -> Counters {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("started once");
        thread.join().expect("the shard ends")
    }
}

#[test]
fn messages_of_every_size_come_back() {
    let server = Server::start();
    let mut socket = server.connect();
    for size in [0, 1, 125, 126, 4_095, 4_096, 65_535, 65_536, 1_000_000] {
        let said = Said::binary(vec![size as u8; size]);
        socket.send(said.clone()).expect("sent");
        assert!(socket.read().expect("answered") == said, "of {size} bytes");
    }
    socket.send(Said::text("h\u{e9}llo")).expect("sent");
    assert_eq!(socket.read().expect("answered"), Said::text("h\u{e9}llo"));
    socket.close(None).expect("closing");
    assert!(socket.read().expect("the answer").is_close());
    let counters = server.stop();
    assert_eq!((counters.opened, counters.messages), (1, 10));
    assert_eq!((counters.violations, counters.lost, counters.slow), (0, 0, 0));
}

#[test]
fn a_pipelined_burst_is_answered_with_few_sends() {
    const COUNT: u32 = 10_000;
    let server = Server::start();
    let mut socket = server.connect();
    for number in 0..COUNT {
        let said = Said::binary(number.to_be_bytes().to_vec());
        socket.write(said).expect("written");
    }
    socket.flush().expect("sent");
    for number in 0..COUNT {
        let said = socket.read().expect("answered");
        assert_eq!(said.into_data()[..], number.to_be_bytes());
    }
    let counters = server.stop();
    assert_eq!(counters.messages, u64::from(COUNT));
    assert!(counters.sends < u64::from(COUNT) / 20, "{} sends", counters.sends);
}

#[test]
fn many_connections_come_and_go_and_slots_are_used_again() {
    let server = Server::start();
    for round in 0..5 {
        let mut sockets: Vec<_> = (0..100).map(|_| server.connect()).collect();
        for (index, socket) in sockets.iter_mut().enumerate() {
            let said = Said::text(format!("{round} {index}"));
            socket.send(said.clone()).expect("sent");
            assert_eq!(socket.read().expect("answered"), said);
        }
    }
    let counters = server.stop();
    assert_eq!((counters.opened, counters.messages, counters.refused), (500, 500, [0; 4]));
}

#[test]
fn stopping_says_goodbye() {
    let server = Server::start();
    let mut socket = server.connect();
    server.stop.store(true, Ordering::Relaxed);
    let Said::Close(Some(frame)) = socket.read().expect("a close frame") else {
        panic!("it should be a close frame with a code");
    };
    assert_eq!(u16::from(frame.code), 1001);
    server.stop();
}
