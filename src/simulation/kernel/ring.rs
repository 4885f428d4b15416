//! One process's view of the simulated network: the twin of the kernel's ring.
//!
//! As in the kernel, requests wait in a queue and are run, in order, by the next turn; a crash
//! before it forgets them.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;

use super::state::{
    Accept, Armed, EndId, Ending, Posted, RingId, RingState, State, Stream, Thing, completion,
    inward, outward,
};
use super::{NOWHERE, SimNetwork};
use crate::ring::kernel::RingOptions;
use crate::ring::{BufferId, Completion, Ring, Socket, Token};

/// Ordinary descriptors start here, so that they are not mistaken for direct slots.
const DESCRIPTOR_FIRST: RawFd = 1000;
/// Streams of things that are no connections: listeners, event descriptors, failures at once.
const LISTENER_STREAM: Stream = 1 << 62;
const EVENT_STREAM: Stream = 1 << 61;
const REFUSED_STREAM: Stream = 1 << 60;

enum Request {
    Accept(Socket, Accept),
    Connect(EndId, SocketAddr, Token),
    Receive(Socket, Token),
    ReceiveOnce(Socket, Token),
    Poll(Socket, Token),
    Send(Socket, Vec<u8>, Token),
    Watch(RawFd, Token),
    Cancel(Token),
    Close(Socket, bool),
}

/// A ring of the simulation. Dropping it is a crash of its process.
pub struct SimRing {
    state: Rc<RefCell<State>>,
    id: RingId,
    requests: Vec<Request>,
    memory: Vec<u8>,
    buffer_size: usize,
    held: Vec<bool>,
    free: std::collections::VecDeque<u16>,
    /// Vectors of the sends that completed in this turn.
    sent: Vec<(Token, Vec<u8>)>,
    /// What those of them that were cancelled had not sent.
    unsent: Vec<(Token, Vec<u8>)>,
    /// Who was accepted by requests whose completions were not seen yet.
    peers_coming: Vec<(Token, SocketAddr)>,
    /// Who was accepted by the completions of this turn.
    peers: Vec<(Token, SocketAddr)>,
}

/// Wakes the ring that watches it, like the eventfd of another thread.
#[derive(Clone)]
pub struct SimWaker {
    state: Rc<RefCell<State>>,
    ring: RingId,
    descriptor: RawFd,
}

impl SimRing {
    /// A ring of a new process. Of `options`, the sockets and the buffers count.
    pub fn new(network: &SimNetwork, options: RingOptions) -> SimRing {
        let state = network.state.clone();
        let mut world = state.borrow_mut();
        world.rings.push(RingState {
            alive: true,
            direct_max: options.sockets as usize,
            ..RingState::default()
        });
        let id = RingId(world.rings.len() - 1);
        drop(world);
        let count = options.buffer_count as usize;
        SimRing {
            state,
            id,
            requests: Vec::new(),
            memory: vec![0; count * options.buffer_size as usize],
            buffer_size: options.buffer_size as usize,
            held: vec![false; count],
            free: (0..count as u16).collect(),
            sent: Vec::new(),
            unsent: Vec::new(),
            peers_coming: Vec::new(),
            peers: Vec::new(),
        }
    }

    pub fn id(&self) -> RingId {
        self.id
    }

    /// Listens on `address`, together with everybody who does so already.
    pub fn listen(&mut self, address: SocketAddr) -> Socket {
        let mut world = self.state.borrow_mut();
        let listener = world.listen(self.id, address);
        let ring = &mut world.rings[self.id.0];
        Socket::Ordinary(add_ordinary(ring, Thing::Listener(listener)))
    }

    /// A waker and the descriptor by which this ring can watch it.
    pub fn waker(&mut self) -> (SimWaker, RawFd) {
        let mut world = self.state.borrow_mut();
        let signalled = &mut world.rings[self.id.0].signalled;
        let descriptor = -10 - signalled.len() as RawFd;
        signalled.insert(descriptor, false);
        let waker = SimWaker { state: self.state.clone(), ring: self.id, descriptor };
        (waker, descriptor)
    }

    fn run(&mut self, world: &mut State, request: Request) {
        match request {
            Request::Accept(socket, accept) => self.run_accept(world, socket, accept),
            Request::Connect(end, address, token) => {
                self.arm(world, token, Armed::Connect(end));
                world.ends[end].connect = Some(token);
                world.open(end, address);
            }
            Request::Receive(socket, token) => self.run_receive(world, socket, token, false),
            Request::ReceiveOnce(socket, token) => self.run_receive(world, socket, token, true),
            Request::Poll(socket, token) => self.run_poll(world, socket, token),
            Request::Send(socket, data, token) => self.run_send(world, socket, data, token),
            Request::Watch(descriptor, token) => self.run_watch(world, descriptor, token),
            Request::Cancel(token) => self.run_cancel(world, token),
            Request::Close(socket, reset) => self.run_close(world, socket, reset),
        }
    }

    fn run_accept(&mut self, world: &mut State, socket: Socket, accept: Accept) {
        let token = accept.token;
        match self.thing(world, socket) {
            Some(Thing::Listener(index)) => {
                let listener = world.listeners[index].as_mut();
                let listener = listener.expect("a listener lives as long as its descriptor");
                let is_alone = listener.accepts.is_empty();
                let is_one_of_many =
                    !accept.is_multishot && listener.accepts.iter().all(|it| !it.is_multishot);
                assert!(is_alone || is_one_of_many, "{accept:?} beside {:?}", listener.accepts);
                listener.accepts.push_back(accept);
                self.arm(world, token, Armed::Accept(index));
            }
            _ => self.refuse(world, token, libc::EBADF, None),
        }
    }

    fn run_receive(&mut self, world: &mut State, socket: Socket, token: Token, once: bool) {
        let Some(Thing::End(end)) = self.thing(world, socket) else {
            return self.refuse(world, token, libc::EBADF, None);
        };
        if world.is_connecting(end) {
            return self.refuse(world, token, libc::ENOTCONN, None);
        }
        let armed = world.ends[end].receive.replace(token);
        assert!(armed.is_none(), "two receives on {socket:?}: {armed:?}, {token:?}");
        world.ends[end].receives_once = once;
        self.arm(world, token, Armed::Receive(end));
        // The kernel looks for a buffer at once for a multishot one, when bytes are there else.
        if self.free.is_empty() && !once {
            self.end_receive(world, end, -libc::ENOBUFS);
        }
    }

    fn run_poll(&mut self, world: &mut State, socket: Socket, token: Token) {
        let Some(Thing::End(end)) = self.thing(world, socket) else {
            return self.refuse(world, token, libc::EBADF, None);
        };
        let armed = world.ends[end].receive.replace(token);
        assert!(armed.is_none(), "a poll beside a receive on {socket:?}: {armed:?}, {token:?}");
        self.arm(world, token, Armed::Poll(end));
        if world.random.chance(world.options.faults.spurious_poll) {
            self.end_receive(world, end, 1);
        }
    }

    fn run_send(&mut self, world: &mut State, socket: Socket, data: Vec<u8>, token: Token) {
        let Some(Thing::End(end)) = self.thing(world, socket) else {
            return self.refuse(world, token, libc::EBADF, Some(data));
        };
        let unseen = std::mem::replace(&mut world.ends[end].send_unseen, true);
        assert!(!unseen, "two sends on {socket:?}, the second with {token:?}");
        match world.send_refusal(end) {
            Some(errno) => {
                let failed = completion(token, -errno, false);
                world.post(self.id, outward(end), failed, Some(data));
            }
            None => {
                self.arm(world, token, Armed::Send(end));
                world.begin_send(end, data, token);
            }
        }
    }

    fn run_watch(&mut self, world: &mut State, descriptor: RawFd, token: Token) {
        self.arm(world, token, Armed::Watch(descriptor));
        let signalled = world.rings[self.id.0].signalled.entry(descriptor);
        if std::mem::take(signalled.or_default()) {
            wake(world, self.id, descriptor);
        }
    }

    fn run_cancel(&mut self, world: &mut State, token: Token) {
        let armed = world.rings[self.id.0].armed.get(&token.to_raw()).copied();
        let stream = match armed {
            None => return,
            Some(Armed::Send(end)) => return world.complete_send(end, -libc::ECANCELED),
            Some(Armed::Poll(end)) => return self.end_receive(world, end, -libc::ECANCELED),
            Some(Armed::Receive(end)) => {
                // What arrives between the last turn and the cancel still completes, or does not.
                if world.random.chance(0.5) {
                    self.fill_buffers(world, end);
                }
                return self.end_receive(world, end, -libc::ECANCELED);
            }
            Some(Armed::Connect(end)) => {
                world.ends[end].connect = None;
                inward(end)
            }
            Some(Armed::Accept(index)) => {
                if let Some(listener) = &mut world.listeners[index] {
                    listener.accepts.retain(|accept| accept.token != token);
                }
                LISTENER_STREAM | index as u64
            }
            Some(Armed::Watch(descriptor)) => EVENT_STREAM | u64::from(descriptor as u32),
        };
        world.rings[self.id.0].armed.remove(&token.to_raw());
        let ended = completion(token, -libc::ECANCELED, false);
        world.post(self.id, stream, ended, None);
    }

    fn run_close(&mut self, world: &mut State, socket: Socket, reset: bool) {
        let thing = self.thing(world, socket);
        let ring = &mut world.rings[self.id.0];
        match socket {
            Socket::Direct(slot) if thing.is_some() => ring.direct[slot as usize] = None,
            Socket::Direct(_) => {}
            Socket::Ordinary(descriptor) => {
                ring.ordinary.remove(&descriptor);
            }
        }
        match thing {
            Some(Thing::End(end)) => {
                let armed = world.ends[end].receive;
                assert!(armed.is_none(), "{socket:?} is closed under its {armed:?}");
                world.close(end, reset);
            }
            Some(Thing::Listener(index)) => {
                let accept = world.listeners[index].as_ref().and_then(|l| l.accepts.front());
                assert!(accept.is_none(), "{socket:?} is closed under its {accept:?}");
                world.close_listener(index);
            }
            None => {}
        }
    }

    fn thing(&self, world: &State, socket: Socket) -> Option<Thing> {
        let ring = &world.rings[self.id.0];
        match socket {
            Socket::Direct(slot) => ring.direct.get(slot as usize)?.map(Thing::End),
            Socket::Ordinary(descriptor) => ring.ordinary.get(&descriptor).copied(),
        }
    }

    fn arm(&self, world: &mut State, token: Token, armed: Armed) {
        let before = world.rings[self.id.0].armed.insert(token.to_raw(), armed);
        assert!(before.is_none(), "two requests carry {token:?}");
    }

    fn refuse(&self, world: &mut State, token: Token, errno: i32, data: Option<Vec<u8>>) {
        let refused = completion(token, -errno, false);
        world.post(self.id, REFUSED_STREAM, refused, data);
    }

    fn end_receive(&self, world: &mut State, end: EndId, result: i32) {
        if let Some(token) = world.ends[end].receive.take() {
            world.rings[self.id.0].armed.remove(&token.to_raw());
            world.post(self.id, inward(end), completion(token, result, false), None);
        }
    }

    fn take_connections(&mut self, world: &mut State, index: usize) {
        while let Some(listener) = &mut world.listeners[index] {
            let Some(Accept { token, is_multishot }) = listener.accepts.front().copied() else {
                break;
            };
            let Some(end) = listener.pending.pop_front() else {
                break;
            };
            let slot = add_direct(&mut world.rings[self.id.0], end);
            let result = slot.map_or(-libc::ENFILE, |slot| slot as i32);
            if slot.is_none() {
                world.close(end, true);
            } else if !is_multishot {
                let client = world.ends[end].peer;
                self.peers_coming.push((token, world.ends[client].address));
            }
            let more = is_multishot && slot.is_some() && world.stays_armed();
            if !more {
                world.rings[self.id.0].armed.remove(&token.to_raw());
                let listener = world.listeners[index].as_mut();
                listener.expect("it was there above").accepts.pop_front();
            }
            let stream = LISTENER_STREAM | index as u64;
            world.post(self.id, stream, completion(token, result, more), None);
        }
    }

    /// Runs an armed receive: fills buffers with what has arrived, then tells of the end.
    fn fill_buffers(&mut self, world: &mut State, end: EndId) {
        while let Some(token) = world.ends[end].receive {
            if world.ends[end].inbound.is_empty() {
                match world.ends[end].ended {
                    Some(Ending::Orderly) => self.end_receive(world, end, 0),
                    Some(Ending::Reset) => self.end_receive(world, end, -libc::ECONNRESET),
                    None => break,
                }
                continue;
            }
            let Some(buffer) = self.free.pop_front() else {
                self.end_receive(world, end, -libc::ENOBUFS);
                break;
            };
            let size = self.fill_buffer(world, end, buffer);
            let more = !world.ends[end].receives_once && world.stays_armed();
            if !more {
                world.ends[end].receive = None;
                world.rings[self.id.0].armed.remove(&token.to_raw());
            }
            let received = Completion {
                buffer: Some(BufferId(buffer)),
                ..completion(token, size as i32, more)
            };
            world.post(self.id, inward(end), received, None);
        }
    }

    fn fill_buffer(&mut self, world: &mut State, end: EndId, buffer: u16) -> usize {
        let mut size_max = self.buffer_size;
        if world.random.chance(world.options.faults.short_read) {
            size_max = 1 + world.random.index(size_max);
        }
        let bytes = world.read(end, size_max);
        let start = usize::from(buffer) * self.buffer_size;
        self.memory[start..start + bytes.len()].copy_from_slice(&bytes);
        self.held[usize::from(buffer)] = true;
        bytes.len()
    }

    fn run_armed(&mut self, world: &mut State) {
        let armed: Vec<Armed> = world.rings[self.id.0].armed.values().copied().collect();
        for armed in armed {
            match armed {
                Armed::Accept(index) => self.take_connections(world, index),
                Armed::Receive(end) => self.fill_buffers(world, end),
                Armed::Poll(end) if world.is_readable(end) => self.end_receive(world, end, 1),
                _ => {}
            }
        }
    }

    fn harvest(&mut self, world: &mut State, completions: &mut Vec<Completion>) {
        let now_us = world.now_us();
        let posted = std::mem::take(&mut world.rings[self.id.0].posted);
        let (due, later): (Vec<Posted>, _) =
            posted.into_iter().partition(|posted| posted.due_us <= now_us);
        world.rings[self.id.0].posted = later;
        for posted in mixed(world, due) {
            if let Some(mut data) = posted.data {
                if posted.completion.result == -libc::ECANCELED {
                    self.unsent.push((posted.completion.token, data.clone()));
                }
                data.clear();
                self.sent.push((posted.completion.token, data));
                if let Some(end) = world.ends.get_mut(posted.stream as usize / 2) {
                    end.send_unseen = false;
                }
            }
            let token = posted.completion.token;
            let peer = self.peers_coming.iter().position(|(coming, _)| *coming == token);
            self.peers.extend(peer.map(|index| self.peers_coming.swap_remove(index)));
            completions.push(posted.completion);
        }
    }
}

impl Ring for SimRing {
    fn accept(&mut self, listener: Socket, token: Token) {
        self.requests.push(Request::Accept(listener, Accept { token, is_multishot: true }));
    }

    fn accept_one(&mut self, listener: Socket, token: Token) {
        self.requests.push(Request::Accept(listener, Accept { token, is_multishot: false }));
    }

    fn take_peer(&mut self, token: Token) -> Option<SocketAddr> {
        let index = self.peers.iter().position(|(accepted, _)| *accepted == token)?;
        Some(self.peers.swap_remove(index).1)
    }

    fn accepted(&self, result: u32) -> Socket {
        Socket::Direct(result)
    }

    fn connect(&mut self, address: SocketAddr, token: Token) -> Result<Socket, i32> {
        let mut world = self.state.borrow_mut();
        let end = world.new_connection(Some(self.id), NOWHERE);
        let descriptor = add_ordinary(&mut world.rings[self.id.0], Thing::End(end));
        self.requests.push(Request::Connect(end, address, token));
        Ok(Socket::Ordinary(descriptor))
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        self.requests.push(Request::Receive(socket, token));
    }

    fn receive_once(&mut self, socket: Socket, token: Token) {
        self.requests.push(Request::ReceiveOnce(socket, token));
    }

    fn poll(&mut self, socket: Socket, token: Token) {
        self.requests.push(Request::Poll(socket, token));
    }

    fn send(&mut self, socket: Socket, data: Vec<u8>, token: Token) {
        self.requests.push(Request::Send(socket, data, token));
    }

    fn take_sent(&mut self, token: Token) -> Option<Vec<u8>> {
        let index = self.sent.iter().position(|(sent, _)| *sent == token)?;
        Some(self.sent.swap_remove(index).1)
    }

    fn take_unsent(&mut self, token: Token) -> Option<Vec<u8>> {
        let index = self.unsent.iter().position(|(sent, _)| *sent == token)?;
        Some(self.unsent.swap_remove(index).1)
    }

    fn watch(&mut self, descriptor: RawFd, token: Token) {
        self.requests.push(Request::Watch(descriptor, token));
    }

    fn cancel(&mut self, token: Token) {
        self.requests.push(Request::Cancel(token));
    }

    fn close(&mut self, socket: Socket, reset: bool) {
        self.requests.push(Request::Close(socket, reset));
    }

    /// Never waits: virtual time is the scheduler's.
    fn turn(&mut self, _wait_us: u64, completions: &mut Vec<Completion>) {
        self.sent.clear();
        self.unsent.clear();
        self.peers.clear();
        let requests = std::mem::take(&mut self.requests);
        let state = self.state.clone();
        let mut world = state.borrow_mut();
        if !world.rings[self.id.0].alive {
            return;
        }
        for request in requests {
            self.run(&mut world, request);
        }
        self.run_armed(&mut world);
        self.harvest(&mut world, completions);
    }

    fn bytes(&mut self, buffer: BufferId, size: usize) -> &mut [u8] {
        let index = usize::from(buffer.0);
        assert!(self.held[index], "buffer {index} is not held");
        assert!(size <= self.buffer_size, "{size} bytes exceed a buffer");
        let start = index * self.buffer_size;
        &mut self.memory[start..start + size]
    }

    fn release(&mut self, buffer: BufferId) {
        let index = usize::from(buffer.0);
        assert!(self.held[index], "buffer {index} is released twice");
        self.held[index] = false;
        // Whoever still reads a released buffer shall notice.
        self.memory[index * self.buffer_size..][..self.buffer_size].fill(0xdb);
        self.free.push_back(buffer.0);
    }

    fn buffers_free(&self) -> usize {
        self.free.len()
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        // A panic inside a turn unwinds with the world borrowed; then there is nothing to tidy.
        if let Ok(mut world) = self.state.try_borrow_mut() {
            world.crash(self.id);
        }
    }
}

impl SimWaker {
    pub fn wake(&self) {
        wake(&mut self.state.borrow_mut(), self.ring, self.descriptor);
    }
}

fn wake(world: &mut State, ring: RingId, descriptor: RawFd) {
    let mut armed = world.rings[ring.0].armed.iter();
    let found = armed.find(|(_, armed)| matches!(armed, Armed::Watch(it) if *it == descriptor));
    let Some(token) = found.and_then(|(raw, _)| Token::from_raw(*raw)) else {
        world.rings[ring.0].signalled.insert(descriptor, true);
        return;
    };
    let more = world.stays_armed();
    if !more {
        world.rings[ring.0].armed.remove(&token.to_raw());
    }
    let stream = EVENT_STREAM | u64::from(descriptor as u32);
    world.post(ring, stream, completion(token, 1, more), None);
}

/// The lowest free number, as the kernel gives them out: numbers are reused at once.
fn add_ordinary(ring: &mut RingState, thing: Thing) -> RawFd {
    let mut numbers = DESCRIPTOR_FIRST..;
    let free = numbers.find(|number| !ring.ordinary.contains_key(number));
    let descriptor = free.expect("a process has fewer descriptors than there are numbers");
    ring.ordinary.insert(descriptor, thing);
    descriptor
}

fn add_direct(ring: &mut RingState, end: EndId) -> Option<u32> {
    let free = ring.direct.iter().position(Option::is_none);
    let slot = free.unwrap_or(ring.direct.len());
    if slot == ring.direct_max {
        return None;
    }
    if slot == ring.direct.len() {
        ring.direct.push(None);
    }
    ring.direct[slot] = Some(end);
    Some(slot as u32)
}

/// Mixes completions, sometimes, keeping the order within each stream.
fn mixed(world: &mut State, mut due: Vec<Posted>) -> Vec<Posted> {
    if !world.random.chance(world.options.faults.reorder) {
        return due;
    }
    let mut mixed = Vec::with_capacity(due.len());
    while !due.is_empty() {
        let stream = due[world.random.index(due.len())].stream;
        let first = due.iter().position(|posted| posted.stream == stream);
        mixed.push(due.remove(first.expect("the chosen one is of this stream")));
    }
    mixed
}
