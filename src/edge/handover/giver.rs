//! The side of the edge that serves: answers at its hand-over socket, and gives everything to a
//! successor that is ready, or nothing.

use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::lane::Lane;
use super::starter;
use super::state::{Batch, STATE_VERSION, ShardState};
use super::talk::{Offer, ToNew, ToOld};
use crate::clock::Now;
use crate::edge::chat::Chat;
use crate::edge::shard::Shard;
use crate::link::wire::Wire;
use crate::ring::kernel::{KernelRing, Listener};
use crate::sys::DESCRIPTORS_PER_MESSAGE_MAX;

/// How long a successor may take until it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How long one step of it may take while the clients wait.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a shard serves on until the others have heard of it too.
const GATHER_MS_MAX: u64 = 1_000;
/// Bytes of one batch, but for its last connection.
const BATCH_SIZE_MAX: usize = 4 * 1024 * 1024;

/// To a shard: give your state.
pub struct Order {
    lane: Lane,
    /// Shards that have not heard of it. They stand still together, so that none waits for others
    /// to notice.
    awaited: Arc<AtomicUsize>,
    report: Sender<Result<usize, String>>,
    /// `true`: it is the successor's now. Else, and when there is nobody to say anything: move on.
    verdict: Receiver<bool>,
}

/// What the edge has for a successor beside its shards.
pub struct Estate {
    /// All but the clock.
    pub offer: OfferParts,
    pub admin: TcpListener,
    pub orders: Vec<Sender<Order>>,
}

/// An [`Offer`] that may cross threads.
#[derive(Clone)]
pub struct OfferParts {
    pub name: String,
    pub listen: String,
    pub sequencer: String,
    pub secret: Vec<u8>,
    pub sockets_max: u32,
    pub admin: String,
}

/// Answers at the hand-over socket, on threads of its own.
pub struct Giver {
    estate: Mutex<Estate>,
    /// Commands that have not been told the outcome.
    asking: AtomicUsize,
}

impl Giver {
    /// Opens the socket at `path`, for this user alone. One of an earlier edge is replaced.
    pub fn open(path: &Path, estate: Estate) -> io::Result<Arc<Giver>> {
        let listener = bind(path)?;
        let giver = Arc::new(Giver { estate: Mutex::new(estate), asking: AtomicUsize::new(0) });
        let accepting = Arc::clone(&giver);
        thread::Builder::new().name("handover".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let giver = Arc::clone(&accepting);
                thread::spawn(move || giver.answer(stream));
            }
        })?;
        Ok(giver)
    }

    /// Waits, not for long, until whoever asked for an upgrade was told of it.
    pub fn settle(&self) {
        for _ in 0..100 {
            if self.asking.load(Ordering::Acquire) == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn answer(&self, stream: UnixStream) {
        let lane = Lane::new(stream);
        if lane.set_patience(Some(READY_PATIENCE)).is_err() {
            return;
        }
        match lane.hear() {
            Ok(ToOld::Upgrade { binary }) => {
                self.asking.fetch_add(1, Ordering::AcqRel);
                let outcome = starter::start_successor(&binary, &lane);
                let _gone = lane.say(&match outcome {
                    Ok(line) => ToNew::Done { line: line.into() },
                    Err(reason) => ToNew::Refused { reason: reason.into() },
                });
                self.asking.fetch_sub(1, Ordering::AcqRel);
            }
            Ok(ToOld::TakeOver { .. }) => {
                if let Err(reason) = self.give(&lane) {
                    tracing::warn!(reason, "the upgrade failed; this process goes on");
                    let _gone = lane.say(&ToNew::Refused { reason: reason.into() });
                }
            }
            _ => {}
        }
    }

    /// Gives everything, or says why nothing.
    fn give(&self, lane: &Lane) -> Result<(), String> {
        let Ok(estate) = self.estate.try_lock() else {
            return Err("another upgrade is under way".to_owned());
        };
        let admin = estate.admin.try_clone().map_err(|error| told(&error))?;
        let made = estate.offer.offer(estate.orders.len());
        let made = ToNew::Made { version: STATE_VERSION, offer: made.to_bytes().into() };
        lane.say_with(&made, &[OwnedFd::from(admin)]).map_err(|error| told(&error))?;
        let lanes = ready(lane)?;
        if lanes.len() != estate.orders.len() {
            return Err("the successor has another number of shards".to_owned());
        }
        tracing::info!("a successor is ready; the shards stand still");
        let (report, reports) = channel();
        let mut verdicts = Vec::new();
        let awaited = Arc::new(AtomicUsize::new(lanes.len()));
        for (order, shard_lane) in estate.orders.iter().zip(lanes) {
            let (say, verdict) = channel();
            let wanted = Order {
                lane: shard_lane,
                awaited: Arc::clone(&awaited),
                report: report.clone(),
                verdict,
            };
            order.send(wanted).map_err(|_| "a shard has ended".to_owned())?;
            verdicts.push(say);
        }
        drop(report);
        for _ in &verdicts {
            reports.recv().map_err(|_| "a shard has ended".to_owned())??;
        }
        // From here on the verdicts are sent, or dropped with what the return says.
        commit(lane)?;
        for verdict in verdicts {
            let _ended = verdict.send(true);
        }
        tracing::info!("the successor serves");
        Ok(())
    }
}

impl OfferParts {
    fn offer(&self, shards: usize) -> Offer {
        let clock_us = Now::read().monotonic_us as i64;
        let host_us = crate::sys::host_uptime().as_micros() as i64;
        Offer {
            program: env!("CARGO_PKG_VERSION").into(),
            link_version: crate::link::greeting::LINK_VERSION,
            name: self.name.as_str().into(),
            listen: self.listen.as_str().into(),
            sequencer: self.sequencer.as_str().into(),
            secret: self.secret.clone().into(),
            shards: shards as u32,
            sockets_max: self.sockets_max,
            admin: self.admin.as_str().into(),
            clock_ahead_us: clock_us - host_us,
        }
    }
}

/// A shard does as it was ordered. `true`: it is not this process's any more.
pub fn obey(shard: &mut Shard<KernelRing, Chat>, listener: &Listener, order: &Order) -> bool {
    let _unlikely = order.lane.set_patience(Some(STEP_PATIENCE));
    order.awaited.fetch_sub(1, Ordering::AcqRel);
    shard.hurry();
    let end_ms = Now::read().monotonic_ms() + GATHER_MS_MAX;
    while order.awaited.load(Ordering::Acquire) > 0 && Now::read().monotonic_ms() < end_ms {
        shard.turn(&mut Now::read);
    }
    let given = match shard.application().router().is_draining() {
        true => Err("it is draining".to_owned()),
        false => give_shard(shard, listener, &order.lane),
    };
    let gave = given.is_ok();
    let _gone = order.report.send(given);
    if gave && order.verdict.recv() == Ok(true) {
        return true;
    }
    shard.move_on();
    false
}

fn give_shard(
    shard: &mut Shard<KernelRing, Chat>,
    listener: &Listener,
    lane: &Lane,
) -> Result<usize, String> {
    if !shard.stand_still(&mut Now::read) {
        return Err("a request of the kernel did not end".to_owned());
    }
    let state = ShardState { chat: Some(shard.application().state()), ..shard.state() };
    let listener = listener.descriptor().map_err(|error| told(&error))?;
    lane.say_with(&state, &[listener]).map_err(|error| told(&error))?;
    let ids = shard.connection_ids();
    let mut rest = &ids[..];
    while !rest.is_empty() {
        let (batch, count) = batch(shard, rest);
        rest = &rest[count..];
        let slots: Vec<u32> = batch.connections.iter().map(|it| it.socket).collect();
        let sockets = shard.parts().1.descriptors_of(&slots).map_err(|error| told(&error))?;
        lane.say_with(&batch, &sockets).map_err(|error| told(&error))?;
        drop(sockets);
        heard(lane, &ToOld::More)?;
    }
    heard(lane, &ToOld::Adopted)?;
    Ok(ids.len())
}

/// The next connections, and how many of `ids` they are.
fn batch(shard: &Shard<KernelRing, Chat>, ids: &[crate::edge::ConnectionId]) -> (Batch, usize) {
    let mut batch = Batch { connections: Vec::new(), clients: Vec::new() };
    let (mut count, mut size) = (0, 0);
    for id in ids.iter().take(DESCRIPTORS_PER_MESSAGE_MAX) {
        if size > BATCH_SIZE_MAX {
            break;
        }
        count += 1;
        if let Some(state) = shard.connection_state(*id) {
            size += state.queue.as_ref().map_or(0, |queue| queue.queue.len());
            size += state.message.as_ref().map_or(0, |message| message.message.len());
            batch.connections.push(state);
        }
        batch.clients.extend(shard.application().client_state(*id));
    }
    (batch, count)
}

fn heard(lane: &Lane, expected: &ToOld) -> Result<(), String> {
    match lane.hear::<ToOld>() {
        Ok(said) if said == *expected => Ok(()),
        Ok(ToOld::Refused { reason }) => Err(reason.to_string()),
        Ok(_) => Err("the successor says what makes no sense".to_owned()),
        Err(error) => Err(told(&error)),
    }
}

/// Waits until the successor is ready; yields its lanes.
fn ready(lane: &Lane) -> Result<Vec<Lane>, String> {
    let mut lanes = Vec::new();
    loop {
        match lane.hear_with::<ToOld>() {
            Ok((ToOld::ShardLane, mut sockets)) => {
                let socket = sockets.pop().ok_or("a lane without a socket")?;
                lanes.push(Lane::new(UnixStream::from(socket)));
            }
            Ok((ToOld::Ready, _)) => return Ok(lanes),
            Ok((ToOld::Refused { reason }, _)) => return Err(reason.to_string()),
            Ok(_) => return Err("the successor says what makes no sense".to_owned()),
            Err(error) => return Err(told(&error)),
        }
    }
}

/// All has arrived. After `Go` only the end of the successor, which it meets before it touches a
/// socket, gives everything back; so its word is awaited for as long as it lives.
fn commit(lane: &Lane) -> Result<(), String> {
    heard(lane, &ToOld::Adopted)?;
    lane.set_patience(None).map_err(|error| told(&error))?;
    lane.say(&ToNew::Go).map_err(|error| told(&error))?;
    heard(lane, &ToOld::Serving)
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the successor has ended; its reason is above".to_owned()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "the successor takes too long".to_owned()
        }
        _ => format!("to the successor: {error}"),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody else can connect before it has its mode, and nobody ever finds none at the path.
    let listener = UnixListener::bind(unfinished)?;
    fs::set_permissions(unfinished, Permissions::from_mode(0o600))?;
    fs::rename(unfinished, path)?;
    Ok(listener)
}
