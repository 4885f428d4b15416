//! The side of the successor: agrees with the offer, makes all that can be made beforehand, takes
//! the states and sockets, and touches nothing before the old edge has let go.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::lane::Lane;
use super::said::Said;
use super::state::{Batch, ChatState, ConnectionState, STATE_VERSION, ShardState};
use super::talk::{Offer, ToNew, ToOld};
use crate::clock::Now;
use crate::edge::chat::Chat;
use crate::edge::connections::ShardOptions;
use crate::edge::options::EdgeOptions;
use crate::edge::shard::Shard;
use crate::link::wire::Wire;
use crate::ring::kernel::{KernelRing, Listener};
use crate::sys::{host_uptime, random_u64};

/// How long one step of the old edge may take. Longer than what it grants a successor, so that it
/// is the old one that gives up.
const PATIENCE: Duration = Duration::from_secs(15);

/// An old edge that will let go.
pub struct Taking {
    lane: Lane,
    /// The listening socket of its admin page.
    pub admin: TcpListener,
    /// Whether that is where this edge is to have its own.
    pub keeps_admin: bool,
    reports: Receiver<anyhow::Result<Step>>,
    gates: Vec<Sender<()>>,
}

/// How a shard comes to its state.
pub struct Inheritance {
    lane: Lane,
    report: Sender<anyhow::Result<Step>>,
    gate: Receiver<()>,
}

/// How far a shard is.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Prepared,
    Adopted { connections: u64, still_since_us: u64 },
}

/// A shard that may be set going, with its listener.
pub struct Inherited {
    pub shard: Shard<KernelRing, Chat>,
    pub listener: Listener,
    gate: Receiver<()>,
}

impl Taking {
    /// Asks the edge at `path` for everything it has. The number of shards is the old one's from
    /// here on, and the clock goes on where its stands.
    pub fn begin(
        path: &Path,
        options: &mut EdgeOptions,
    ) -> anyhow::Result<(Taking, Vec<Inheritance>)> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("no edge to take over at {}", path.display()))?;
        let lane = Lane::new(stream);
        lane.set_patience(Some(PATIENCE))?;
        lane.say(&ToOld::TakeOver { version: STATE_VERSION })?;
        let (offer, admin) = offered(&lane)?;
        if let Err(reason) = agree(&offer, options) {
            let _gone = lane.say(&ToOld::Refused { reason: reason.to_string().into() });
            return Err(reason);
        }
        let keeps_admin = options.admin.address.to_string() == *offer.admin;
        let (report, reports) = channel();
        let (mut gates, mut inheritances) = (Vec::new(), Vec::new());
        for _ in 0..options.shards {
            let (theirs, ours) = UnixStream::pair()?;
            lane.say_with(&ToOld::ShardLane, &[OwnedFd::from(theirs)])?;
            let (open, gate) = channel();
            let shard_lane = Lane::new(ours);
            inheritances.push(Inheritance { lane: shard_lane, report: report.clone(), gate });
            gates.push(open);
        }
        Ok((Taking { lane, admin, keeps_admin, reports, gates }, inheritances))
    }

    /// Takes everything; sets the shards going when the old edge has let go. Yields what is to be
    /// said of it.
    pub fn finish(self) -> anyhow::Result<Said> {
        let refuse = |error: anyhow::Error| {
            let _gone = self.lane.say(&ToOld::Refused { reason: format!("{error:#}").into() });
            error
        };
        for _ in &self.gates {
            self.next_step().map_err(refuse)?;
        }
        Said::Ready.say();
        self.lane.say(&ToOld::Ready)?;
        let (mut count, mut since_us) = (0, u64::MAX);
        for _ in &self.gates {
            if let Step::Adopted { connections, still_since_us } =
                self.next_step().map_err(refuse)?
            {
                count += connections;
                since_us = since_us.min(still_since_us);
            }
        }
        self.lane.say(&ToOld::Adopted)?;
        match self.lane.hear()? {
            ToNew::Go => {}
            ToNew::Refused { reason } => bail!("{reason}"),
            _ => bail!("the old edge says what makes no sense"),
        }
        // Before any of our shards moves: as long as the old edge has not heard it, and sees us
        // end, everything is its own again.
        self.lane.say(&ToOld::Serving)?;
        for gate in &self.gates {
            let _ended = gate.send(());
        }
        let pause_us = Now::read().monotonic_us.saturating_sub(since_us);
        tracing::info!(connections = count, pause_us, "took everything over");
        Ok(Said::Serving { connections: count, pause_us })
    }

    fn next_step(&self) -> anyhow::Result<Step> {
        self.reports.recv().context("a shard has ended")?
    }
}

impl Inheritance {
    /// Takes the shard's state, for which `ring` and what `chat` makes are prepared.
    pub fn take(
        self,
        ring: KernelRing,
        options: ShardOptions,
        chat: impl FnOnce(u64) -> Chat,
    ) -> anyhow::Result<Inherited> {
        let Inheritance { lane, report, gate } = self;
        let _ended = report.send(Ok(Step::Prepared));
        match take_shard(&lane, ring, options, chat) {
            Ok((shard, listener, adopted)) => {
                let _ended = report.send(Ok(adopted));
                Ok(Inherited { shard, listener, gate })
            }
            Err(error) => {
                let reason = format!("{error:#}");
                let _gone = lane.say(&ToOld::Refused { reason: reason.as_str().into() });
                let _ended = report.send(Err(anyhow::anyhow!(reason)));
                Err(error)
            }
        }
    }
}

impl Inherited {
    /// Waits until it may be touched, and sets it going.
    pub fn start(mut self) -> anyhow::Result<(Shard<KernelRing, Chat>, Listener)> {
        self.gate.recv().context("the old edge goes on")?;
        self.shard.add_listener(self.listener.socket());
        self.shard.move_on();
        Ok((self.shard, self.listener))
    }
}

/// What of a secret an offer shows.
pub fn secret_mark(secret: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes any key size");
    mac.update(b"aldis hand-over");
    mac.finalize().into_bytes().to_vec()
}

fn offered(lane: &Lane) -> anyhow::Result<(Offer, TcpListener)> {
    match lane.hear_with::<ToNew>().context("the old edge makes no offer")? {
        (ToNew::Made { version, offer }, mut sockets) => {
            ensure!(
                version == STATE_VERSION,
                "the old edge hands over in version {version}; this program knows {STATE_VERSION}"
            );
            let offer = Offer::from_bytes(offer)?;
            let admin = sockets.pop().context("the old edge has no admin page")?;
            Ok((offer, TcpListener::from(admin)))
        }
        (ToNew::Refused { reason }, _) => bail!("{reason}"),
        _ => bail!("the old edge says what makes no sense"),
    }
}

/// What differs would part the clients from their sessions, or from their address.
fn agree(offer: &Offer, options: &mut EdgeOptions) -> anyhow::Result<()> {
    let link_version = crate::link::greeting::LINK_VERSION;
    let given = offer.link_version;
    ensure!(given == link_version, "the link has version {given} there and {link_version} here");
    ensure!(*offer.name == *options.name, "--name is {} there", offer.name);
    ensure!(*offer.listen == *options.listen.to_string(), "--listen is {} there", offer.listen);
    let sequencer = options.sequencer.to_string();
    ensure!(*offer.sequencer == *sequencer, "--sequencer is {} there", offer.sequencer);
    ensure!(
        *offer.secret == *secret_mark(&options.secret),
        "--secret-file has another secret there"
    );
    let shards = offer.shards as usize;
    if shards != options.shards {
        tracing::warn!(shards, "the number of shards stays what it was until the next start");
        options.shards = shards;
    }
    let limit = crate::sys::open_files_limit().unwrap_or(u64::MAX);
    let there = u64::from(offer.sockets_max);
    ensure!(limit >= there, "the limit of open files is {limit} here and {there} there");
    let host_us = i64::try_from(host_uptime().as_micros()).unwrap_or(i64::MAX);
    let clock_us = host_us.saturating_add(offer.clock_ahead_us);
    let clock = Duration::from_micros(u64::try_from(clock_us).context("the clocks disagree")?);
    ensure!(Now::continue_from(clock), "the clock was read too early");
    Ok(())
}

fn take_shard(
    lane: &Lane,
    mut ring: KernelRing,
    options: ShardOptions,
    chat: impl FnOnce(u64) -> Chat,
) -> anyhow::Result<(Shard<KernelRing, Chat>, Listener, Step)> {
    let (state, mut listeners) = lane.hear_with::<ShardState>()?;
    lane.set_patience(Some(PATIENCE))?;
    let listener = listeners.pop().context("a shard without a listener")?;
    let listener = Listener::inherited(listener)?;
    let ChatState { incarnation, .. } = *state.chat.as_ref().context("a shard without a chat")?;
    let mut chat = chat(incarnation);
    let mut connections: Vec<ConnectionState> = Vec::new();
    while connections.len() < state.connection_count as usize {
        let (mut batch, sockets) = lane.hear_with::<Batch>()?;
        ensure!(sockets.len() == batch.connections.len(), "sockets and connections differ");
        let slots = batch.connections.iter().map(|connection| connection.socket);
        let slots = ring.take_in(slots.zip(sockets).collect())?;
        for (connection, slot) in batch.connections.iter_mut().zip(slots) {
            connection.socket = slot;
        }
        connections.extend(batch.connections);
        for client in batch.clients {
            chat.continue_client(client).context("a client's state is impossible")?;
        }
        lane.say(&ToOld::More)?;
    }
    let now = Now::read();
    if let Some(state) = state.chat {
        chat.continue_from(state, random_u64(), now);
    }
    let count = connections.len() as u64;
    let shard = Shard::restore(ring, chat, options, now, (state.generations, connections))?;
    lane.say(&ToOld::Adopted)?;
    let step = Step::Adopted { connections: count, still_since_us: state.still_since_us };
    Ok((shard, listener, step))
}
