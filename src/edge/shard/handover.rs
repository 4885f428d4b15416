//! A shard that stands still, so that another process can go on with its connections; and the shard
//! that goes on.
//!
//! While it stands still no request of the ring is at work for a connection, so nothing arrives or
//! leaves that its state does not tell. A shard that is not taken over after all moves on.

use crate::clock::Now;
use crate::ring::{Kind, Ring, Token};

use super::{ConnectionId, Connections, Shard, receive_token};
use crate::edge::application::Application;
use crate::edge::connection::{Armed, Connection};
use crate::edge::connections::ShardOptions;
use crate::edge::handover::{ConnectionState, ShardState};

/// Requests that are cancelled in one turn, so that their completions find room.
const CANCEL_COUNT_MAX: usize = 512;
/// How long the last completions may be awaited.
const STILL_MS_MAX: u64 = 2_000;
/// A turn waits for them so long.
const TURN_WAIT_US: u64 = 1_000;

/// Why nobody can go on with a shard of this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the connections do not fit this process's table")]
    TooMany,
    #[error("a connection's state is none that a connection can have")]
    Impossible,
}

impl<R: Ring, A: Application<R>> Shard<R, A> {
    /// Waits for no more than a moment in each turn, because it is about to stand still.
    pub fn hurry(&mut self) {
        self.turn_wait_max_us = TURN_WAIT_US;
    }

    /// Stands still: accepts, receives and sends nothing. What has arrived was handled; what a send
    /// had not sent is queued again. `false`: the kernel did not come to an end with a request;
    /// [`Shard::move_on`] undoes it.
    pub fn stand_still(&mut self, clock: &mut dyn FnMut() -> Now) -> bool {
        self.is_still = true;
        let now = clock();
        self.still_since_us = now.monotonic_us;
        self.application.standing_still(now, &mut self.ring);
        self.cancel_accepts();
        let ids = self.connections.ids();
        for some in ids.chunks(CANCEL_COUNT_MAX) {
            some.iter().for_each(|id| self.cancel_requests(*id));
            self.turn_still(0, clock);
        }
        let end_ms = now.monotonic_ms() + STILL_MS_MAX;
        let mut still_count = 0;
        loop {
            let rest = ids[still_count..].iter();
            still_count += rest.take_while(|id| self.is_idle(**id)).count();
            let listens = self.listeners.iter().any(|listener| listener.armed != 0);
            if still_count == ids.len() && !listens {
                break;
            }
            if self.connections.now.monotonic_ms() > end_ms {
                return false;
            }
            self.turn_still(TURN_WAIT_US, clock);
        }
        // Lets the closes of those that have left meanwhile enter the kernel.
        self.turn_still(0, clock);
        true
    }

    /// Goes on after all.
    pub fn move_on(&mut self) {
        self.is_still = false;
        self.turn_wait_max_us = super::TURN_WAIT_MAX_US;
        self.begin_requests();
    }

    /// What the next process needs to know, but for the application's part, the sockets and the
    /// connections of [`Shard::connection_ids`]. The shard stands still.
    pub fn state(&self) -> ShardState {
        ShardState {
            generations: self.connections.generations().to_vec(),
            connection_count: self.connections.count() as u32,
            still_since_us: self.still_since_us,
            chat: None,
        }
    }

    pub fn connection_ids(&self) -> Vec<ConnectionId> {
        self.connections.ids()
    }

    /// One connection's state; `None` when it is gone.
    pub fn connection_state(&self, id: ConnectionId) -> Option<ConnectionState> {
        let now_ms = self.connections.now.monotonic_ms();
        let connection = self.connections.get(id);
        connection.map(|connection| ConnectionState::of(id, connection, now_ms))
    }

    /// A shard that stands still where another one stood, with the same sockets in the same slots
    /// of its ring. [`Shard::move_on`] sets it going.
    pub fn restore(
        ring: R,
        application: A,
        options: ShardOptions,
        now: Now,
        state: (Vec<u32>, Vec<ConnectionState>),
    ) -> Result<Shard<R, A>, Unfit> {
        let (generations, connections) = state;
        let mut values = Vec::with_capacity(connections.len());
        for state in connections {
            let slot = state.slot;
            values.push((slot, state.connection().ok_or(Unfit::Impossible)?));
        }
        let mut shard = Shard::new(ring, application, options, now);
        shard.is_still = true;
        shard.connections.restore(generations, values).ok_or(Unfit::TooMany)?;
        Ok(shard)
    }

    /// Its ring, for a shard that goes on over the same one: it must be done with the polls, too,
    /// which another process would leave to the ring of the first.
    #[cfg(test)]
    pub fn into_ring(mut self, clock: &mut dyn FnMut() -> Now) -> R {
        let polls = |shard: &Self, id: &ConnectionId| {
            shard.connections.get(*id).is_some_and(|it| it.flags.armed == Armed::Poll)
        };
        let ids: Vec<ConnectionId> = self.connections.ids();
        let polling: Vec<_> = ids.into_iter().filter(|id| polls(&self, id)).collect();
        polling.iter().for_each(|id| self.ring.cancel(receive_token(*id)));
        while polling.iter().any(|id| polls(&self, id)) {
            self.turn_still(0, clock);
        }
        self.ring
    }

    /// A send was cancelled: what it had not sent leaves first in the next one.
    pub(super) fn unsent(&mut self, token: Token) {
        let id = super::id_of(token);
        let unsent = self.ring.take_unsent(token).unwrap_or_default();
        let Some(outbound) = self.connections.get_mut(id).and_then(|it| it.outbound.as_mut())
        else {
            return;
        };
        outbound.put_back(unsent);
        let is_empty = outbound.waiting() == 0;
        self.connections.recount_queue(id);
        if is_empty {
            // It was cancelled when all of it had left.
            self.connections.sent(id);
        } else if !self.is_still {
            // The end came when this shard had given up waiting for it, and had moved on.
            self.connections.queue(id, |_| {});
        }
    }

    fn cancel_requests(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        if takes_bytes(connection) {
            self.ring.cancel(receive_token(id));
        }
        if is_sending(connection) {
            self.ring.cancel(Token::new(Kind::Send, id.slot, id.generation));
        }
    }

    fn is_idle(&self, id: ConnectionId) -> bool {
        let connection = self.connections.get(id);
        connection.is_none_or(|it| !takes_bytes(it) && !is_sending(it))
    }

    /// A turn in which nothing begins.
    fn turn_still(&mut self, wait_us: u64, clock: &mut dyn FnMut() -> Now) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.turn(wait_us, &mut completions);
        self.pass_time(clock());
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.tell();
        self.remove_gone();
    }

    /// Waits on every socket and sends what is queued.
    fn begin_requests(&mut self) {
        self.starved.clear();
        for id in self.connections.ids() {
            self.wait(id);
            let is_queued = self.connections.get(id).is_some_and(|it| it.outbound.is_some());
            if is_queued {
                self.connections.queue(id, |_| {});
            }
        }
        self.flush();
        self.rearm_listeners();
    }
}

impl Connections {
    fn restore(&mut self, generations: Vec<u32>, values: Vec<(u32, Connection)>) -> Option<()> {
        let deflates = values.iter().any(|(_, it)| it.flags.deflate_window_bits > 0);
        if deflates && self.inflater.is_none() {
            // It was agreed to; newcomers are not asked any more.
            self.inflater = Some(Box::default());
        }
        self.restore_slots(generations, values)
    }
}

/// A receive is armed, which may take bytes off the socket. A poll takes none: it may stay with the
/// ring of a process that is about to end.
fn takes_bytes(connection: &Connection) -> bool {
    matches!(connection.flags.armed, Armed::Once | Armed::Stream)
}

fn is_sending(connection: &Connection) -> bool {
    connection.outbound.as_ref().is_some_and(|outbound| outbound.sending > 0)
}
