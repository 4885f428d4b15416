//! Connections as direct descriptors, by slot: for crowds that mostly keep still.
//!
//! - The limit of open files bounds each ring's table by itself, so that a process holds as many
//!   sockets as it has rings for.
//! - An idle connection costs a multishot poll (256 bytes of the kernel's) and nothing of ours; its
//!   bytes are received into memory that is lent for one turn.
//! - Completions name slot and generation: a slot may be opened again while something of its
//!   former connection is still under way.
//! - Sends of one connection are not ordered by this ring: its user has one under way at a time.
//! - Closing sends RST, at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::{DROP_ROUNDS_MAX, open_socket, pass_temporary};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;
/// Bytes of one receive; what is longer takes several.
pub const RECEIVE_SIZE: usize = 4096;
/// Vectors kept for reuse.
const SPARE_MAX: usize = 256;
const NO_FILE: i32 = -1;
/// Completions of what this ring asks for on its own account.
const INTERNAL: u64 = 0;

/// A slot and which of its connections, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    pub slot: u32,
    pub generation: u16,
}

/// What became of a request. `result` is negative for an errno.
#[derive(Debug)]
pub struct Completion {
    pub id: ConnectionId,
    pub result: i32,
    pub of: Request,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Connect,
    /// There is something to receive, or the end. `armed`: it will be told again.
    Watch {
        armed: bool,
    },
    /// The first `result` bytes of this vector, which is to be given back.
    Receive(Vec<u8>),
    Send,
}

/// See the module.
pub struct DirectRing {
    // Dropped first: the kernel must be done with the memory below.
    ring: IoUring,
    /// Read by the kernel when it runs a connect.
    target: Box<SockAddr>,
    address: SocketAddr,
    receive_buffer: Option<usize>,
    transfers: Vec<Transfer>,
    free: Vec<u32>,
    spare: Vec<Vec<u8>>,
    /// Requests whose last completion has not come.
    under_way: usize,
    /// A slot was closed since requests were last submitted: until then its number may stand in
    /// one of them.
    has_closed: bool,
}

/// Bytes that the kernel reads or writes. Invariant: a vector in here keeps its place in memory
/// until its completion.
struct Transfer {
    id: ConnectionId,
    bytes: Vec<u8>,
    sent: usize,
}

impl DirectRing {
    /// A ring of this thread for slots `0..count` of connections to `address`, each with a receive
    /// buffer of this size in the kernel.
    pub fn new(
        address: SocketAddr,
        count: u32,
        receive_buffer: Option<usize>,
    ) -> io::Result<DirectRing> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        ring.submitter().register_files_sparse(count)?;
        Ok(DirectRing {
            ring,
            target: Box::new(SockAddr::from(address)),
            address,
            receive_buffer,
            transfers: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            under_way: 0,
            has_closed: false,
        })
    }

    /// Begins to connect on an empty slot. `position` is the connection's place among all; it
    /// chooses the source address on a loopback target.
    pub fn connect(&mut self, id: ConnectionId, position: usize) -> io::Result<()> {
        if self.has_closed {
            pass_temporary(self.enter_now())?;
        }
        let socket = open_socket(self.address, position)?;
        if let Some(size) = self.receive_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        self.ring.submitter().register_files_update(id.slot, &[socket.as_raw_fd()])?;
        let entry =
            opcode::Connect::new(Fixed(id.slot), self.target.as_ptr().cast(), self.target.len());
        self.push(entry.build().user_data(user_data(Kind::Connect, id)));
        Ok(())
    }

    /// Tells from now on when there is something to receive.
    pub fn watch(&mut self, id: ConnectionId) {
        let entry = opcode::PollAdd::new(Fixed(id.slot), libc::POLLIN as u32).multi(true);
        self.push(entry.build().user_data(user_data(Kind::Watch, id)));
    }

    /// Receives what is there; nothing there is `-EAGAIN`.
    pub fn receive(&mut self, id: ConnectionId) {
        let mut bytes = self.spare_vector();
        bytes.resize(RECEIVE_SIZE, 0);
        let (index, address) = self.begin_transfer(id, bytes);
        let entry = opcode::Recv::new(Fixed(id.slot), address, RECEIVE_SIZE as u32)
            .flags(libc::MSG_DONTWAIT);
        self.push(entry.build().user_data(transfer_data(Kind::Receive, index)));
    }

    /// Sends what `write` appends to an empty vector.
    pub fn send(&mut self, id: ConnectionId, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.spare_vector();
        bytes.clear();
        write(&mut bytes);
        let (index, _) = self.begin_transfer(id, bytes);
        self.push_send(index);
    }

    /// Gives the vector of a receive back.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(bytes);
        }
    }

    /// Closes a connection; the other end sees a reset.
    pub fn close(&mut self, id: ConnectionId) -> io::Result<()> {
        self.has_closed = true;
        // The poll holds the socket too. When it is not there, nothing is cancelled.
        let cancel = opcode::AsyncCancel::new(user_data(Kind::Watch, id)).build();
        self.push(cancel.user_data(INTERNAL));
        self.ring.submitter().register_files_update(id.slot, &[NO_FILE]).map(drop)
    }

    /// Closes these connections, which may be all: slots from 0, without a gap. Cancelling
    /// everything at once would look at all requests for each of them.
    pub fn close_all(&mut self, ids: &[ConnectionId]) -> io::Result<()> {
        for id in ids {
            let cancel = opcode::AsyncCancel::new(user_data(Kind::Watch, *id)).build();
            self.push(cancel.user_data(INTERNAL));
        }
        pass_temporary(self.enter_now())?;
        self.has_closed = true;
        let none = vec![NO_FILE; ids.len()];
        self.ring.submitter().register_files_update(0, &none).map(drop)
    }

    /// Submits what was asked for, waits until `many` completions are there or `wait` is over, and
    /// appends all.
    pub fn turn(
        &mut self,
        many: usize,
        wait: Duration,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let outcome = if wait.is_zero() {
            self.enter_now()
        } else {
            let timeout = Timespec::from(wait);
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.has_closed = false;
            self.ring.submitter().submit_with_args(many, &arguments).map(drop)
        };
        pass_temporary(outcome)?;
        self.harvest(completions);
        Ok(())
    }

    fn spare_vector(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(RECEIVE_SIZE))
    }

    fn begin_transfer(&mut self, id: ConnectionId, mut bytes: Vec<u8>) -> (u32, *mut u8) {
        let address = bytes.as_mut_ptr();
        let transfer = Transfer { id, bytes, sent: 0 };
        let index = match self.free.pop() {
            Some(index) => {
                self.transfers[index as usize] = transfer;
                index
            }
            None => {
                self.transfers.push(transfer);
                self.transfers.len() as u32 - 1
            }
        };
        (index, address)
    }

    fn push_send(&mut self, index: u32) {
        let Transfer { id, bytes, sent } = &self.transfers[index as usize];
        let rest = &bytes[*sent..];
        let entry = opcode::Send::new(Fixed(id.slot), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
        self.push(entry.build().user_data(transfer_data(Kind::Send, index)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.under_way += 1;
        // SAFETY: every entry is built in this file from memory that outlives the request: vectors
        // owned by `transfers` until their completion, the boxed target. Sockets that close
        // meanwhile are held by the kernel until their requests end.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // No room for completions: they are taken in the next turn, of which this is a part.
            if self.enter_now().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn enter_now(&mut self) -> io::Result<()> {
        self.has_closed = false;
        let pending = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the entries are valid as `push` says.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, flags, None) }.map(drop)
    }

    fn harvest(&mut self, completions: &mut Vec<Completion>) {
        let mut unfinished = Vec::new();
        for entry in self.ring.completion() {
            let armed = cqueue::more(entry.flags());
            if !armed {
                self.under_way -= 1;
            }
            let (data, result) = (entry.user_data(), entry.result());
            let (id, of) = match kind_of(data) {
                None => continue,
                Some(Kind::Connect) => (id_of(data), Request::Connect),
                Some(Kind::Watch) => (id_of(data), Request::Watch { armed }),
                Some(Kind::Receive) => {
                    let index = data as u32;
                    self.free.push(index);
                    let transfer = &mut self.transfers[index as usize];
                    (transfer.id, Request::Receive(std::mem::take(&mut transfer.bytes)))
                }
                Some(Kind::Send) => {
                    let index = data as u32;
                    let transfer = &mut self.transfers[index as usize];
                    transfer.sent += result.max(0) as usize;
                    if result > 0 && transfer.sent < transfer.bytes.len() {
                        unfinished.push(index);
                        continue;
                    }
                    self.free.push(index);
                    let emptied = std::mem::take(&mut transfer.bytes);
                    if self.spare.len() < SPARE_MAX {
                        self.spare.push(emptied);
                    }
                    (transfer.id, Request::Send)
                }
            };
            completions.push(Completion { id, result, of });
        }
        unfinished.into_iter().for_each(|index| self.push_send(index));
    }
}

impl Drop for DirectRing {
    /// Ends every request, so that the kernel writes to no memory which is given back after this.
    fn drop(&mut self) {
        let everything = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        self.push(everything.user_data(INTERNAL));
        let mut completions = Vec::new();
        for _ in 0..DROP_ROUNDS_MAX {
            if self.under_way == 0 {
                return;
            }
            let turn = self.turn(1, Duration::from_millis(1), &mut completions);
            if turn.is_err() {
                break;
            }
            completions.clear();
        }
        if self.under_way > 0 {
            std::mem::forget(std::mem::take(&mut self.transfers));
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Connect = 1,
    Watch = 2,
    Receive = 3,
    Send = 4,
}

fn user_data(kind: Kind, id: ConnectionId) -> u64 {
    ((kind as u64) << 56) | (u64::from(id.generation) << 32) | u64::from(id.slot)
}

fn transfer_data(kind: Kind, index: u32) -> u64 {
    ((kind as u64) << 56) | u64::from(index)
}

fn kind_of(user_data: u64) -> Option<Kind> {
    match user_data >> 56 {
        1 => Some(Kind::Connect),
        2 => Some(Kind::Watch),
        3 => Some(Kind::Receive),
        4 => Some(Kind::Send),
        _ => None,
    }
}

fn id_of(user_data: u64) -> ConnectionId {
    ConnectionId { slot: user_data as u32, generation: (user_data >> 32) as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    fn until(ring: &mut DirectRing, wanted: impl Fn(&Completion) -> bool) -> Completion {
        let mut completions = Vec::new();
        for _ in 0..1000 {
            ring.turn(1, Duration::from_millis(10), &mut completions).expect("a turn");
            if let Some(index) = completions.iter().position(&wanted) {
                return completions.swap_remove(index);
            }
        }
        panic!("it did not come: {completions:?}");
    }

    #[test]
    fn user_data_keeps_kind_slot_and_generation() {
        let id = ConnectionId { slot: 0xfedc_ba98, generation: 0xabcd };
        let data = user_data(Kind::Watch, id);
        assert_eq!(id_of(data), id);
        assert!(matches!(kind_of(data), Some(Kind::Watch)));
        assert!(kind_of(INTERNAL).is_none());
    }

    #[test]
    fn a_watched_connection_tells_receives_sends_and_closes_by_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut ring = DirectRing::new(address, 4, Some(16_384)).expect("a ring");
        let id = ConnectionId { slot: 2, generation: 7 };
        ring.connect(id, 9).expect("a socket");
        let connected = until(&mut ring, |completion| completion.of == Request::Connect);
        assert_eq!((connected.id, connected.result), (id, 0));
        let (mut peer, source) = listener.accept().expect("it has connected");
        assert_eq!(source.ip().to_string(), "127.0.0.10");
        ring.watch(id);
        peer.write_all(b"ping").expect("it is connected");
        until(&mut ring, |completion| completion.of == Request::Watch { armed: true });
        ring.receive(id);
        let got = until(&mut ring, |completion| matches!(completion.of, Request::Receive(_)));
        let Request::Receive(bytes) = got.of else { panic!("asked for") };
        assert_eq!(&bytes[..got.result as usize], b"ping");
        ring.give_back(bytes);
        ring.send(id, |out| out.extend_from_slice(b"pong"));
        let mut heard = [0; 4];
        ring.turn(1, Duration::from_secs(1), &mut Vec::new()).expect("a turn");
        peer.read_exact(&mut heard).expect("it was sent");
        assert_eq!(&heard, b"pong");
        ring.close(id).expect("it is there");
        // The slot is free at once, also for a connection of its own.
        let next = ConnectionId { slot: 2, generation: 8 };
        ring.connect(next, 9).expect("a socket");
        until(&mut ring, |completion| completion.of == Request::Connect && completion.id == next);
        let end = peer.read(&mut heard).map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        let (mut second, _) = listener.accept().expect("it has connected");
        let ids = [0, 1, 2, 3].map(|slot| ConnectionId { slot, generation: 8 });
        ring.close_all(&ids).expect("they are there");
        ring.turn(1, Duration::from_millis(1), &mut Vec::new()).expect("a turn");
        let end = second.read(&mut heard).map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    }
}
