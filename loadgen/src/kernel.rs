//! The generator's io_uring: connections by index, receive buffers that the kernel picks, and whole
//! sends. With the file below it, the only one whose code may be unsafe.
//!
//! - One ring belongs to one thread. Nothing completes inside the call that asks for it.
//! - A connection has at most one send under way; the ring owns its bytes until it is done.
//! - Sockets linger for no time: closing them sends RST, so that no run leaves ports in TIME_WAIT
//!   for the next one.

#![expect(unsafe_code, reason = "the kernel reads and writes our memory by address")]

pub mod direct;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 16_384;
const BUFFER_COUNT: u16 = 1024;
const BUFFER_SIZE: usize = 16 * 1024;
const BUFFER_GROUP: u16 = 0;
const PAGE_SIZE: usize = 4096;
/// Source addresses 127.0.0.1 to 127.0.0.250: each has its own range of ports.
const SOURCE_ADDRESS_COUNT: usize = 250;
/// Rounds in which a ring that is dropped waits for its requests to end.
const DROP_ROUNDS_MAX: usize = 200;

/// What became of a request. `result` is negative for an errno.
#[derive(Debug)]
pub struct Completion {
    pub index: usize,
    pub result: i32,
    pub of: Request,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Connect,
    /// The buffer holds `result` bytes and is to be released. `armed`: more will come by itself.
    Receive {
        buffer: Option<BufferId>,
        armed: bool,
    },
    /// The bytes are out; their vector waits in [`Ring::take_sent`].
    Send,
}

/// A receive buffer with bytes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(u16);

/// See the module.
pub struct Ring {
    // Dropped first: the kernel must be done with the memory below.
    ring: IoUring,
    pool: Pool,
    /// Read by the kernel when it runs a connect.
    target: Box<SockAddr>,
    address: SocketAddr,
    connections: Vec<Connection>,
    /// Requests whose last completion has not come.
    under_way: usize,
    unfinished: Vec<usize>,
}

#[derive(Default)]
struct Connection {
    socket: Option<Socket>,
    data: Vec<u8>,
    sent: usize,
}

impl Ring {
    /// A ring of this thread for connections `0..count` to `address`.
    pub fn new(address: SocketAddr, count: usize) -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let mut pool = Pool::new();
        // SAFETY: the address is that of a page-aligned allocation of BUFFER_COUNT entries, which
        // the pool keeps for longer than the ring, next to which it is stored.
        unsafe {
            let entries = pool.entries.start as u64;
            let submitter = ring.submitter();
            submitter.register_buf_ring_with_flags(entries, BUFFER_COUNT, BUFFER_GROUP, 0)?;
        }
        (0..BUFFER_COUNT).for_each(|id| pool.release(BufferId(id)));
        Ok(Ring {
            ring,
            pool,
            target: Box::new(SockAddr::from(address)),
            address,
            connections: std::iter::repeat_with(Connection::default).take(count).collect(),
            under_way: 0,
            unfinished: Vec::new(),
        })
    }

    /// Begins to connect. `position` is the connection's place among those of all threads; it
    /// chooses the source address on a loopback target.
    pub fn connect(&mut self, index: usize, position: usize) -> io::Result<()> {
        let socket = open_socket(self.address, position)?;
        let descriptor = Fd(socket.as_raw_fd());
        self.connections[index].socket = Some(socket);
        let entry =
            opcode::Connect::new(descriptor, self.target.as_ptr().cast(), self.target.len());
        self.push(entry.build().user_data(user_data(Kind::Connect, index)));
        Ok(())
    }

    /// Receives until the stream ends.
    pub fn receive(&mut self, index: usize) {
        let Some(socket) = &self.connections[index].socket else {
            return;
        };
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP);
        self.push(entry.build().user_data(user_data(Kind::Receive, index)));
    }

    /// Sends all of `data`.
    pub fn send(&mut self, index: usize, data: Vec<u8>) {
        let connection = &mut self.connections[index];
        assert!(connection.data.is_empty(), "a second send of connection {index}");
        connection.data = data;
        connection.sent = 0;
        self.push_send(index);
    }

    /// The emptied vector of a send that completed, for reuse.
    pub fn take_sent(&mut self, index: usize) -> Vec<u8> {
        let mut data = std::mem::take(&mut self.connections[index].data);
        data.clear();
        data
    }

    /// Closes a connection; nothing is sent or received on it any more.
    pub fn close(&mut self, index: usize) {
        self.connections[index].socket = None;
    }

    /// Submits what was asked for, waits at most `wait` for a completion, and appends all.
    pub fn turn(&mut self, wait: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let outcome = if wait.is_zero() || !self.ring.completion().is_empty() {
            self.enter_now()
        } else {
            let timeout = Timespec::from(wait);
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.ring.submitter().submit_with_args(1, &arguments).map(drop)
        };
        pass_temporary(outcome)?;
        self.harvest(completions);
        Ok(())
    }

    /// The first `size` bytes of a buffer.
    pub fn bytes(&self, buffer: BufferId, size: usize) -> &[u8] {
        self.pool.bytes(buffer, size)
    }

    /// Gives a buffer back.
    pub fn release(&mut self, buffer: BufferId) {
        self.pool.release(buffer);
    }

    fn push_send(&mut self, index: usize) {
        let connection = &self.connections[index];
        let Some(socket) = &connection.socket else {
            return;
        };
        let rest = &connection.data[connection.sent..];
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
        self.push(entry.build().user_data(user_data(Kind::Send, index)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.under_way += 1;
        // SAFETY: every entry is built in this file from memory that outlives the request: the
        // pool, vectors owned by `connections`, the boxed target. Sockets that close meanwhile
        // are held by the kernel until their requests end.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // No room for completions: they are taken in the next turn, of which this is a part.
            if self.enter_now().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn enter_now(&mut self) -> io::Result<()> {
        let pending = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the entries are valid as `push` says.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, flags, None) }.map(drop)
    }

    fn harvest(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let Some((kind, index)) = kind_and_index(entry.user_data()) else {
                continue;
            };
            let armed = cqueue::more(entry.flags());
            if !armed {
                self.under_way -= 1;
            }
            let mut result = entry.result();
            let of = match kind {
                Kind::Connect => Request::Connect,
                Kind::Receive => {
                    let buffer = self.pool.take(&entry);
                    Request::Receive { buffer, armed }
                }
                Kind::Send => {
                    let connection = &mut self.connections[index];
                    connection.sent += result.max(0) as usize;
                    let is_whole = connection.sent == connection.data.len();
                    if result > 0 && !is_whole && connection.socket.is_some() {
                        self.unfinished.push(index);
                        continue;
                    }
                    if result >= 0 && !is_whole {
                        result = -libc::EPIPE;
                    }
                    Request::Send
                }
            };
            completions.push(Completion { index, result, of });
        }
        while let Some(index) = self.unfinished.pop() {
            self.push_send(index);
        }
    }
}

impl Drop for Ring {
    /// Ends every request, so that the kernel writes to no memory which is given back after this.
    fn drop(&mut self) {
        self.connections.iter_mut().for_each(|connection| connection.socket = None);
        let everything = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        self.push(everything.user_data(CANCEL));
        self.under_way -= 1;
        let mut completions = Vec::new();
        for _ in 0..DROP_ROUNDS_MAX {
            if self.under_way == 0 {
                return;
            }
            if self.turn(Duration::from_millis(1), &mut completions).is_err() {
                break;
            }
            for Completion { of, .. } in completions.drain(..) {
                if let Request::Receive { buffer: Some(buffer), .. } = of {
                    self.pool.release(buffer);
                }
            }
        }
        if self.under_way > 0 {
            std::mem::forget(std::mem::take(&mut self.connections));
            self.pool.leak();
        }
    }
}

/// Has the child terminated (SIGTERM) when the thread that spawns it ends: ours is the main one.
pub fn end_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec; it makes one system call, which is safe
    // after a fork in a threaded process, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

/// Raises the limit of open files to what this process may have, and returns it.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to and reads from the one struct that lives here.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[derive(Clone, Copy)]
enum Kind {
    Connect = 1,
    Receive = 2,
    Send = 3,
}

const CANCEL: u64 = 0;

fn user_data(kind: Kind, index: usize) -> u64 {
    ((kind as u64) << 56) | index as u64
}

fn kind_and_index(user_data: u64) -> Option<(Kind, usize)> {
    let kind = match user_data >> 56 {
        1 => Kind::Connect,
        2 => Kind::Receive,
        3 => Kind::Send,
        _ => return None,
    };
    Some((kind, (user_data & ((1 << 56) - 1)) as usize))
}

/// Interrupted, timed out, short of room for completions: the next turn tries again.
fn pass_temporary(outcome: io::Result<()>) -> io::Result<()> {
    match outcome.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
        _ => outcome,
    }
}

fn open_socket(target: SocketAddr, position: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    if let IpAddr::V4(address) = target.ip()
        && address.is_loopback()
    {
        let last = 1 + (position % SOURCE_ADDRESS_COUNT) as u8;
        set_bind_without_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))))?;
    }
    Ok(socket)
}

/// The port is chosen by `connect`, which may use one again for another target.
fn set_bind_without_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one integer that lives here.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The receive buffers. A buffer is free (the kernel's) or held (from its completion to its
/// release); we read held ones only.
struct Pool {
    entries: Pages,
    bytes: Pages,
    held: Vec<bool>,
    tail: u16,
}

impl Pool {
    fn new() -> Pool {
        let count = usize::from(BUFFER_COUNT);
        Pool {
            entries: Pages::new(count * size_of::<BufRingEntry>()),
            bytes: Pages::new(count * BUFFER_SIZE),
            held: vec![true; count],
            tail: 0,
        }
    }

    /// Notes the buffer that a completion names; without bytes in it, it goes back at once.
    fn take(&mut self, entry: &cqueue::Entry) -> Option<BufferId> {
        let id = cqueue::buffer_select(entry.flags())?;
        let held = &mut self.held[usize::from(id)];
        assert!(!*held, "the kernel filled buffer {id} twice");
        *held = true;
        if entry.result() > 0 {
            return Some(BufferId(id));
        }
        self.release(BufferId(id));
        None
    }

    fn bytes(&self, BufferId(id): BufferId, size: usize) -> &[u8] {
        let index = usize::from(id);
        assert!(self.held[index] && size <= BUFFER_SIZE, "buffer {index} is not held");
        // SAFETY: the index is below the count and the size at most a buffer's, so the range lies
        // in the allocation; the kernel does not write to a held buffer, and releasing it needs
        // `self` exclusively.
        unsafe { std::slice::from_raw_parts(self.bytes.start.add(index * BUFFER_SIZE), size) }
    }

    fn release(&mut self, BufferId(id): BufferId) {
        let index = usize::from(id);
        assert!(self.held[index], "buffer {index} is released twice");
        self.held[index] = false;
        let entries = self.entries.start.cast::<BufRingEntry>();
        // SAFETY: the masked tail is below the count of entries; the kernel reads no entry at or
        // beyond the tail, which is stored atomically after the entry.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail & (BUFFER_COUNT - 1)));
            entry.set_addr(self.bytes.start.add(index * BUFFER_SIZE) as u64);
            entry.set_len(BUFFER_SIZE as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let shared = BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*shared).store(self.tail, Ordering::Release);
        }
    }

    /// Never gives the memory back: the kernel may still write to it.
    fn leak(&mut self) {
        self.entries.is_leaked = true;
        self.bytes.is_leaked = true;
    }
}

/// Zeroed memory that begins at a page.
struct Pages {
    start: *mut u8,
    layout: Layout,
    is_leaked: bool,
}

impl Pages {
    fn new(size: usize) -> Pages {
        let layout = Layout::from_size_align(size, PAGE_SIZE).expect("sizes are constants here");
        assert!(size > 0);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Pages { start, layout, is_leaked: false }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !self.is_leaked {
            // SAFETY: allocated in `new` with this layout, and not given back before.
            unsafe { dealloc(self.start, self.layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_keeps_kind_and_index() {
        let (kind, index) = kind_and_index(user_data(Kind::Send, 1_000_000)).expect("known");
        assert_eq!((kind as u64, index), (3, 1_000_000));
        assert!(kind_and_index(CANCEL).is_none());
    }

    #[test]
    fn bytes_go_out_and_come_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut ring = Ring::new(listener.local_addr().expect("bound"), 1).expect("a ring");
        ring.connect(0, 41).expect("a socket");
        let mut completions = Vec::new();
        ring.turn(Duration::from_secs(1), &mut completions).expect("a turn");
        assert!(matches!(completions[..], [Completion { result: 0, of: Request::Connect, .. }]));
        let (peer, source) = listener.accept().expect("it has connected");
        assert_eq!(source.ip(), Ipv4Addr::new(127, 0, 0, 42));
        ring.receive(0);
        ring.send(0, b"ping".to_vec());
        let mut received = Vec::new();
        io::Write::write_all(&mut &peer, b"pong").expect("it is connected");
        while received.len() < 4 {
            completions.clear();
            ring.turn(Duration::from_secs(1), &mut completions).expect("a turn");
            for completion in &completions {
                if let Request::Receive { buffer: Some(buffer), .. } = completion.of {
                    let size = completion.result as usize;
                    received.extend_from_slice(ring.bytes(buffer, size));
                    ring.release(buffer);
                }
            }
        }
        assert_eq!(received, b"pong");
        let mut sent = [0; 4];
        io::Read::read_exact(&mut &peer, &mut sent).expect("it was sent");
        assert_eq!(&sent, b"ping");
        drop(ring);
        let end = io::Read::read(&mut &peer, &mut sent);
        assert_eq!(end.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    }
}
