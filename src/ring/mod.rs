//! The kernel as a type parameter: every process does its network I/O through [`Ring`].
//!
//! Two implementations: [`kernel::KernelRing`] over io_uring, and `simulation`'s seeded twin, which
//! delays, tears, resets, starves of buffers and ends multishot requests early. The code above
//! cannot tell which one it runs on.
//!
//! The contract, in both:
//! - Nothing completes inside the call that asks for it; completions come out of [`Ring::turn`].
//! - A request's completions carry its [`Token`]. Those of a multishot request (`accept`,
//!   `receive`, `watch`) come with `more = true` until the last one, which has `more = false`,
//!   whatever its result: the request is then gone and its owner decides whether to ask again.
//! - At most one of `poll`, `receive` and `receive_once` per socket is armed, and at most one
//!   `send` is under way (the caller's duty; checked by the simulator).
//! - After `close(socket)` no completion for that socket's requests is *promised* to be absent:
//!   late ones arrive and are recognised by the generation in their token.

pub mod kernel;
#[cfg(test)]
pub(crate) mod scenario;
mod token;

pub use token::{Kind, Token};

use std::net::SocketAddr;
use std::os::fd::RawFd;

/// A socket as this ring knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// A slot of the ring's registered-file table: accepted sockets, where the kernel can do it.
    Direct(u32),
    /// An ordinary file descriptor: listeners, outgoing links, event descriptors.
    Ordinary(RawFd),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub token: Token,
    /// Not negative: what the request yields (`accept`: see [`Ring::accepted`]; `receive`: bytes, 0
    /// at the end of the stream; `send`: bytes, always all of them; `connect`, `watch`, `poll`:
    /// any). Negative: `-errno`.
    pub result: i32,
    /// The request stays armed and will complete again.
    pub more: bool,
    /// The receive buffer that holds the bytes; whoever takes the completion releases it.
    pub buffer: Option<BufferId>,
}

/// One buffer of the ring's receive pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u16);

/// A completion ring with its sockets and receive buffers. See the module for the contract.
pub trait Ring {
    /// Accepts connections of `listener` until cancelled. Multishot.
    fn accept(&mut self, listener: Socket, token: Token);

    /// Accepts one connection of `listener` and notes who it is, which
    /// `accept` does not: see [`Ring::take_peer`]. Several may wait on one listener, each with a
    /// token of its own, none beside an `accept`.
    fn accept_one(&mut self, listener: Socket, token: Token);

    /// Who connected, when the `accept_one` with this token has just completed. There until the
    /// next [`Ring::turn`].
    fn take_peer(&mut self, token: Token) -> Option<SocketAddr>;

    /// The socket that an accept yielded with this result.
    fn accepted(&self, result: u32) -> Socket;

    /// Opens a connection to `address`; the result of the completion is 0 and the socket is the one
    /// returned here. `Err` is the errno of a failed attempt to make the socket.
    fn connect(&mut self, address: SocketAddr, token: Token) -> Result<Socket, i32>;

    /// Receives into pool buffers until the stream ends, fails, or is cancelled. Multishot.
    /// Ends with `-ENOBUFS` (and `more = false`) when the pool is empty: the caller asks again once
    /// buffers were released (see [`Ring::buffers_free`]).
    fn receive(&mut self, socket: Socket, token: Token);

    /// Receives once: what is there, or else what comes first. Ends like [`Ring::receive`].
    fn receive_once(&mut self, socket: Socket, token: Token);

    /// Completes, once, when a receive would yield something: bytes, the end of the stream, an
    /// error. It may also do so for nothing. The result says no more than that.
    ///
    /// What an idle socket costs the kernel beside itself: 256 bytes polled, 864 with a receive
    /// armed, multishot or not (measured on 6.18).
    fn poll(&mut self, socket: Socket, token: Token);

    /// Sends all of `data`, which the ring owns until the completion; fetch the emptied
    /// vector for reuse with [`Ring::take_sent`] after it. A partial send is continued inside.
    fn send(&mut self, socket: Socket, data: Vec<u8>, token: Token);

    /// The vector of the last send that completed with this token, emptied, capacity kept. There
    /// until the next [`Ring::turn`], which frees what nobody fetched.
    fn take_sent(&mut self, token: Token) -> Option<Vec<u8>>;

    /// What the last send with this token had not sent when it was cancelled. There until the next
    /// [`Ring::turn`], like the vector, and instead of it.
    fn take_unsent(&mut self, token: Token) -> Option<Vec<u8>>;

    /// Waits for readability of an ordinary descriptor (event descriptors of other threads) until
    /// cancelled. Multishot; the ring drains the eventfd counter itself.
    fn watch(&mut self, descriptor: RawFd, token: Token);

    /// Ends the requests that carry exactly `token`. Their last completions still come.
    fn cancel(&mut self, token: Token);

    /// Closes the socket. With `reset`, unread and unsent data is thrown away and the peer sees
    /// RST. A send under way ends, and completes. Receives and polls (accepts, for a listener) are
    /// the caller's to cancel before this, in the same turn or an earlier one: while one is armed,
    /// the kernel keeps the connection open, and the simulator panics.
    fn close(&mut self, socket: Socket, reset: bool);

    /// Submits what was asked for, waits at most `wait_us` microseconds for a completion (0: does
    /// not wait), and appends every completion that is there. All are collected before any is run.
    fn turn(&mut self, wait_us: u64, completions: &mut Vec<Completion>);

    /// The bytes of a receive buffer, `size` as its completion's result said. In place, writable:
    /// the framer unmasks here.
    fn bytes(&mut self, buffer: BufferId, size: usize) -> &mut [u8];

    /// Gives a receive buffer back to the pool.
    fn release(&mut self, buffer: BufferId);

    /// Receive buffers that are free now.
    fn buffers_free(&self) -> usize;
}
