//! [`Ring`] over io_uring: one thread, one ring, completions run only when that thread asks.
//!
//! - Accepted sockets live in the registered-file table (`Socket::Direct`) unless the kernel is too
//!   old for it: see [`Descriptors`].
//! - The `user_data` of a request is its token, except for sends: theirs has bit 63 set and names
//!   the entry of [`sends::Sends`] that owns the bytes.
//! - What the ring asks for on its own account (cancel, close) carries [`Kind::Internal`] and is
//!   never delivered.
//! - Never a cancel by descriptor (it walks every request of the ring), never `OP_SHUTDOWN` (it
//!   goes to a worker thread).

#![expect(unsafe_code, reason = "the kernel reads and writes our memory by address")]

mod accepts;
mod fault;
mod handover;
mod listener;
mod options;
mod pool;
mod sends;
mod steering;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, RawFd};

use io_uring::types::{DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::{BufferId, Completion, Kind, Ring, Socket, Token};
use accepts::Accepts;
use pool::Pool;
use sends::{Progress, Sends};

pub use fault::{KERNEL_FLOOR, RingFault};
pub use listener::{Listener, listen, probe_bind};
pub use options::{Descriptors, RingOptions};
pub use steering::{steer_by_hash, steer_by_processor};

/// The kernel's own bound of a registered-file table.
const SOCKETS_MAX: u64 = 1 << 20;
const SEND_BIT: u64 = 1 << 63;
/// Of the requests of [`handover`], whose `user_data` has the index of a socket beside it.
const INSTALL_BIT: u64 = 1 << 62;
/// Rounds in which overflowed completions are fetched within one turn.
const OVERFLOW_ROUNDS_MAX: usize = 8;
/// `SO_LINGER` on, with no time to linger: the close sends RST. Static, for the kernel reads it
/// when the request runs.
static LINGER_RESET: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// One ring. It belongs to the thread that made it: the kernel refuses requests of any other.
pub struct KernelRing {
    // Dropped first: the kernel must be done with the memory below.
    ring: IoUring,
    pool: Pool,
    sends: Sends,
    accepts: Accepts,
    watches: Vec<(Token, RawFd)>,
    /// Addresses of connects that the kernel has not read yet.
    #[expect(clippy::vec_box, reason = "the kernel holds their addresses while the vector grows")]
    addresses: Vec<Box<SockAddr>>,
    /// Completions that had to be fetched outside of a turn, to make room.
    backlog: Vec<Completion>,
    /// Sends that went out in part and are to be continued.
    unfinished: Vec<u32>,
    /// Results of the requests of [`handover`], by the index of the socket.
    installed: Vec<(u32, i32)>,
    sockets_max: u32,
    descriptors: Descriptors,
    not_send: std::marker::PhantomData<*const ()>,
}

impl KernelRing {
    /// Sets the ring up with everything it will need.
    pub fn new(options: RingOptions) -> Result<KernelRing, RingFault> {
        options.check()?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(options.completions)
            .build(options.submissions)
            .map_err(RingFault::from_setup)?;
        check_kernel(&ring, options.descriptors)?;
        let sockets_max = register_sockets(&ring, &options)?;
        let pool = register_buffers(&ring, &options)
            .map_err(|source| RingFault::Buffers { options, source })?;
        Ok(KernelRing {
            ring,
            pool,
            sends: Sends::default(),
            accepts: Accepts::default(),
            watches: Vec::new(),
            addresses: Vec::new(),
            backlog: Vec::new(),
            unfinished: Vec::new(),
            installed: Vec::new(),
            sockets_max,
            descriptors: options.descriptors,
            not_send: std::marker::PhantomData,
        })
    }

    /// Accepted sockets at a time, after the limits of the host. Over it, `accept` ends with
    /// `-ENFILE`; ordinary descriptors are all the process's, and it is `-EMFILE`.
    pub fn sockets_max(&self) -> u32 {
        self.sockets_max
    }

    /// Receive buffers of the pool, free or not.
    pub fn buffers_max(&self) -> usize {
        self.pool.count()
    }

    /// Sends whose completion has not come yet.
    pub fn sends_in_flight(&self) -> usize {
        self.sends.in_flight()
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: every entry is built in this file from memory that outlives the request: the
        // pool's mapping, vectors owned by `sends`, boxes of `accepts`, boxed addresses kept until
        // submitted, statics.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.make_room();
        }
    }

    /// Submits early because the queue is full. The kernel refuses (EBUSY, EAGAIN) while it has
    /// no room for completions: they are fetched, for the next turn.
    fn make_room(&mut self) {
        if self.enter_now().is_err() {
            let mut backlog = std::mem::take(&mut self.backlog);
            self.harvest(&mut backlog);
            self.backlog = backlog;
        }
    }

    fn enter_now(&mut self) -> io::Result<()> {
        let pending = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the entries are valid as `push` says.
        unsafe {
            let submitter = self.ring.submitter();
            submitter.enter::<libc::sigset_t>(pending, 0, flags, None)?;
        }
        self.forget_addresses();
        Ok(())
    }

    /// Waits for one completion. More at a time (`wait_nr` 16 to 128 with a least wait of 20 to 50
    /// us) was measured on loopback echo with 16 to 1000 connections: slower or equal, always.
    fn enter_and_wait(&mut self, wait_us: u64) -> io::Result<()> {
        let timeout =
            Timespec::new().sec(wait_us / 1_000_000).nsec((wait_us % 1_000_000) as u32 * 1_000);
        let arguments = SubmitArgs::new().timespec(&timeout);
        self.ring.submitter().submit_with_args(1, &arguments)?;
        self.forget_addresses();
        Ok(())
    }

    /// The kernel has copied the addresses once it has taken the connects from the queue.
    fn forget_addresses(&mut self) {
        if !self.addresses.is_empty() && self.ring.submission().is_empty() {
            self.addresses.clear();
        }
    }

    /// One pass through the kernel. Its refusals are all for now: interrupted, timed out, short of
    /// memory or of room for completions. What was not submitted stays queued for the next turn.
    fn enter(&mut self, wait_us: u64) {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        let outcome = if wait_us > 0 {
            self.enter_and_wait(wait_us)
        } else if idle {
            Ok(())
        } else {
            self.enter_now()
        };
        let Err(error) = outcome else {
            return;
        };
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
            _ => panic!("io_uring_enter: {error}, which only a mistake of ours can cause"),
        }
    }

    /// Moves what the completion queue holds to `completions`, then continues partial sends.
    fn harvest(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let raw = entry.user_data();
            let completion = if raw & SEND_BIT != 0 {
                let key = raw as u32;
                match self.sends.complete(key, entry.result()) {
                    Progress::Done { token, result } => Some(finished(token, result)),
                    Progress::Partial => {
                        self.unfinished.push(key);
                        None
                    }
                }
            } else if raw & INSTALL_BIT != 0 {
                self.installed.push((raw as u32, entry.result()));
                None
            } else {
                let token = Token::from_raw(raw).filter(|token| token.kind() != Kind::Internal);
                token.map(|token| received(&entry, token, &mut self.pool))
            };
            let Some(completion) = completion else {
                continue;
            };
            match completion.token.kind() {
                Kind::Wake => drain_watch(&mut self.watches, &completion),
                Kind::Accept | Kind::LinkAccept => {
                    self.accepts.complete(completion.token, completion.result);
                }
                _ => {}
            }
            completions.push(completion);
        }
        while let Some(key) = self.unfinished.pop() {
            self.push_send(key);
        }
    }

    fn push_send(&mut self, key: u32) {
        let (socket, rest) = self.sends.rest(key);
        let (start, size) = (rest.as_ptr(), rest.len() as u32);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = match socket {
            Socket::Direct(slot) => {
                opcode::Send::new(Fixed(slot), start, size).flags(flags).build()
            }
            Socket::Ordinary(descriptor) => {
                opcode::Send::new(Fd(descriptor), start, size).flags(flags).build()
            }
        };
        self.push(entry.user_data(SEND_BIT | u64::from(key)));
    }

    /// Asks for a cancel; only a failure (nothing to cancel) makes a completion, which is dropped.
    fn push_cancel(&mut self, raw: u64) {
        let entry = opcode::AsyncCancel::new(raw).build();
        self.push_internal(entry);
    }

    fn push_internal(&mut self, entry: squeue::Entry) {
        let token = Token::new(Kind::Internal, 0, 0);
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(token.to_raw()));
    }

    /// The linger option is set just before the close, in order, as both run when submitted. The
    /// kernels with ordinary descriptors know no such request, nor is it needed for them.
    fn push_reset(&mut self, socket: Socket) {
        let slot = match socket {
            Socket::Direct(slot) => slot,
            Socket::Ordinary(descriptor) => return listener::linger_no_time(descriptor),
        };
        let option = (&raw const LINGER_RESET).cast();
        let size = size_of::<libc::linger>() as u32;
        let (level, name) = (libc::SOL_SOCKET as u32, libc::SO_LINGER as u32);
        let entry = opcode::SetSockOpt::new(Fixed(slot), level, name, option, size).build();
        self.push_internal(entry);
    }
}

impl Ring for KernelRing {
    fn accept(&mut self, listener: Socket, token: Token) {
        // What is in the ring's table is no descriptor of the process, nor inherited.
        let (is_direct, flags) = match self.descriptors {
            Descriptors::Direct => (true, 0),
            Descriptors::Ordinary => (false, libc::SOCK_CLOEXEC),
        };
        let entry = match listener {
            Socket::Direct(slot) => opcode::AcceptMulti::new(Fixed(slot)),
            Socket::Ordinary(descriptor) => opcode::AcceptMulti::new(Fd(descriptor)),
        };
        let entry = entry.flags(flags).allocate_file_index(is_direct).build();
        self.push(entry.user_data(token.to_raw()));
    }

    fn accept_one(&mut self, listener: Socket, token: Token) {
        let (address, size) = self.accepts.begin(token);
        let is_direct = self.descriptors == Descriptors::Direct;
        let slot = is_direct.then(DestinationSlot::auto_target);
        let entry = match listener {
            Socket::Direct(listener) => {
                opcode::Accept::new(Fixed(listener), address, size).file_index(slot).build()
            }
            Socket::Ordinary(descriptor) => {
                opcode::Accept::new(Fd(descriptor), address, size).file_index(slot).build()
            }
        };
        self.push(entry.user_data(token.to_raw()));
    }

    fn take_peer(&mut self, token: Token) -> Option<SocketAddr> {
        self.accepts.take(token)
    }

    fn accepted(&self, result: u32) -> Socket {
        match self.descriptors {
            Descriptors::Direct => Socket::Direct(result),
            Descriptors::Ordinary => Socket::Ordinary(result as RawFd),
        }
    }

    fn connect(&mut self, address: SocketAddr, token: Token) -> Result<Socket, i32> {
        let socket = listener::new_socket(address)
            .and_then(|socket| socket.set_tcp_nodelay(true).map(|()| socket))
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
        let descriptor = socket.into_raw_fd();
        let target = Box::new(SockAddr::from(address));
        let entry =
            opcode::Connect::new(Fd(descriptor), target.as_ptr().cast(), target.len()).build();
        self.addresses.push(target);
        self.push(entry.user_data(token.to_raw()));
        Ok(Socket::Ordinary(descriptor))
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        let entry = match socket {
            Socket::Direct(slot) => opcode::RecvMulti::new(Fixed(slot), pool::GROUP).build(),
            Socket::Ordinary(descriptor) => {
                opcode::RecvMulti::new(Fd(descriptor), pool::GROUP).build()
            }
        };
        self.push(entry.user_data(token.to_raw()));
    }

    fn receive_once(&mut self, socket: Socket, token: Token) {
        let (nowhere, size) = (std::ptr::null_mut(), self.pool.buffer_size());
        let entry = match socket {
            Socket::Direct(slot) => {
                opcode::Recv::new(Fixed(slot), nowhere, size).buf_group(pool::GROUP).build()
            }
            Socket::Ordinary(descriptor) => {
                opcode::Recv::new(Fd(descriptor), nowhere, size).buf_group(pool::GROUP).build()
            }
        };
        let entry = entry.flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(token.to_raw()));
    }

    fn poll(&mut self, socket: Socket, token: Token) {
        let readable = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = match socket {
            Socket::Direct(slot) => opcode::PollAdd::new(Fixed(slot), readable).build(),
            Socket::Ordinary(descriptor) => opcode::PollAdd::new(Fd(descriptor), readable).build(),
        };
        self.push(entry.user_data(token.to_raw()));
    }

    fn send(&mut self, socket: Socket, data: Vec<u8>, token: Token) {
        let key = self.sends.begin(socket, data, token);
        self.push_send(key);
    }

    fn take_sent(&mut self, token: Token) -> Option<Vec<u8>> {
        self.sends.take(token)
    }

    fn take_unsent(&mut self, token: Token) -> Option<Vec<u8>> {
        self.sends.take_unsent(token)
    }

    fn watch(&mut self, descriptor: RawFd, token: Token) {
        self.watches.push((token, descriptor));
        let entry = opcode::PollAdd::new(Fd(descriptor), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(token.to_raw()));
    }

    fn cancel(&mut self, token: Token) {
        if matches!(token.kind(), Kind::Send | Kind::LinkSend) {
            if let Some(key) = self.sends.cancel(token) {
                self.push_cancel(SEND_BIT | u64::from(key));
            }
        } else {
            self.push_cancel(token.to_raw());
        }
    }

    fn close(&mut self, socket: Socket, reset: bool) {
        if let Some(key) = self.sends.cancel_of(socket) {
            self.push_cancel(SEND_BIT | u64::from(key));
        }
        if reset {
            self.push_reset(socket);
        }
        // Through the queue for ordinary ones too: requests queued before must still find the
        // socket, not another one that was given the same number.
        self.push_internal(match socket {
            Socket::Direct(slot) => opcode::Close::new(Fixed(slot)).build(),
            Socket::Ordinary(descriptor) => opcode::Close::new(Fd(descriptor)).build(),
        });
    }

    fn turn(&mut self, wait_us: u64, completions: &mut Vec<Completion>) {
        self.sends.forget_done();
        self.accepts.forget_done();
        let already_there = !self.backlog.is_empty() || !self.ring.completion().is_empty();
        completions.append(&mut self.backlog);
        self.enter(if already_there { 0 } else { wait_us });
        self.harvest(completions);
        for _ in 0..OVERFLOW_ROUNDS_MAX {
            if !self.ring.submission().cq_overflow() {
                break;
            }
            self.enter(0);
            self.harvest(completions);
        }
    }

    fn bytes(&mut self, buffer: BufferId, size: usize) -> &mut [u8] {
        self.pool.bytes(buffer, size)
    }

    fn release(&mut self, buffer: BufferId) {
        self.pool.release(buffer);
    }

    fn buffers_free(&self) -> usize {
        self.pool.free()
    }
}

impl Drop for KernelRing {
    /// Ends every request, so that none reads or writes memory which is given back after this.
    fn drop(&mut self) {
        let everything = io_uring::types::CancelBuilder::any().all();
        let entry = opcode::AsyncCancel2::new(everything).build();
        self.push_internal(entry);
        let mut completions = Vec::new();
        for _ in 0..64 {
            self.sends.forget_done();
            self.enter(1_000);
            self.harvest(&mut completions);
            let in_flight = self.sends.in_flight() + self.accepts.in_flight();
            if completions.is_empty() && in_flight == 0 {
                return;
            }
            completions.clear();
        }
        if self.sends.in_flight() > 0 {
            std::mem::forget(std::mem::take(&mut self.sends));
        }
        if self.accepts.in_flight() > 0 {
            std::mem::forget(std::mem::take(&mut self.accepts));
        }
    }
}

fn check_kernel(ring: &IoUring, descriptors: Descriptors) -> Result<(), RingFault> {
    let kernel = fault::kernel_release();
    let is_direct = descriptors == Descriptors::Direct;
    if is_direct && fault::is_older(&kernel, fault::DIRECT_FLOOR) {
        return Err(RingFault::NoDirectDescriptors { kernel });
    }
    let lacking = if fault::is_older(&kernel, KERNEL_FLOOR) {
        "completions run at any time before it"
    } else if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        "it waits without a timeout, or loses completions"
    } else if !ring.params().is_feature_skip_cqe_on_success() {
        "it lacks IOSQE_CQE_SKIP_SUCCESS"
    } else {
        return Ok(());
    };
    Err(RingFault::KernelTooOld { kernel, lacking })
}

fn register_sockets(ring: &IoUring, options: &RingOptions) -> Result<u32, RingFault> {
    let limit = crate::sys::open_files_limit().unwrap_or(SOCKETS_MAX);
    let sockets = u64::from(options.sockets).min(limit).min(SOCKETS_MAX) as u32;
    if options.descriptors == Descriptors::Ordinary {
        return Ok(sockets);
    }
    match ring.submitter().register_files_sparse(sockets) {
        Ok(()) => Ok(sockets),
        Err(source) => Err(RingFault::SocketTable { sockets, limit, source }),
    }
}

fn register_buffers(ring: &IoUring, options: &RingOptions) -> io::Result<Pool> {
    let mut pool = Pool::new(options.buffer_count, options.buffer_size)?;
    let (address, count) = (pool.ring_address(), options.buffer_count as u16);
    // SAFETY: the address is that of a page-aligned mapping of `count` entries, which the returned
    // pool keeps for longer than the ring, next to which it is stored.
    unsafe {
        ring.submitter().register_buf_ring_with_flags(address, count, pool::GROUP, 0)?;
    }
    pool.offer_all();
    Ok(pool)
}

fn finished(token: Token, result: i32) -> Completion {
    Completion { token, result, more: false, buffer: None }
}

fn received(entry: &cqueue::Entry, token: Token, pool: &mut Pool) -> Completion {
    let result = entry.result();
    let mut buffer = cqueue::buffer_select(entry.flags()).map(BufferId);
    if let Some(id) = buffer {
        pool.take(id);
        if result <= 0 {
            pool.release(id);
            buffer = None;
        }
    }
    Completion { token, result, more: cqueue::more(entry.flags()), buffer }
}

/// Sets the counter of the event descriptor back, and forgets a watch that has ended.
fn drain_watch(watches: &mut Vec<(Token, RawFd)>, completion: &Completion) {
    let found = watches.iter().position(|(token, _)| *token == completion.token);
    let Some(index) = found else {
        return;
    };
    if completion.result >= 0 {
        crate::sys::drain_event(watches[index].1);
    }
    if !completion.more {
        watches.swap_remove(index);
    }
}

#[cfg(test)]
mod tests;
