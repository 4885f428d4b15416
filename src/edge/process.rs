//! The edge as a process: its shards, each a thread, and the admin page.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context;

use super::capacity::Capacity;
use super::chat::{Chat, ChatOptions};
use super::connections::{SPARE_COUNT, ShardOptions};
use super::control::{Control, ControlSocket};
use super::handover::{
    Estate, Giver, Inheritance, OfferParts, Order, Said, Taking, obey, secret_mark,
};
use super::identity::{Door, Identities, KeySource, Tokens, jwks};
use super::ledger::account::{Account, Holder};
use super::ledger::{Class, Grades, machine, watch};
use super::metrics::Metrics;
use super::options::{Auth, EdgeOptions, Keys};
use super::pace::{Trial, process_capacity};
use super::router;
use super::shard::Shard;
use super::site::Site;
use super::ticket::Tickets;
use crate::admin::{Health, Part, Registry};
use crate::clock::Now;
use crate::limits::{CLIENT_MESSAGE_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
use crate::ring::kernel::{
    KernelRing, Listener, RingOptions, listen, steer_by_hash, steer_by_processor,
};
use crate::sys::{StopFlag, allowed_processors, patiently, pin_this_thread, random_u64};

const LISTEN_BACKLOG: u32 = 4096;
/// Bytes that wait in a socket of a client who takes nothing, about. More of them would be memory
/// of the kernel that nobody can give up.
const UNSENT_SIZE: u32 = 16 * 1024;
/// Bytes queued for one connection at most; the router cuts it well before.
const QUEUE_SIZE_MAX: usize = 16 * 1024 * 1024;
/// Of a plain request. None that is served has a body worth mention, and slow ones are to be cheap.
const BODY_SIZE_MAX: usize = 4 * 1024;
/// Receive buffers of all shards together, and of each at least.
const BUFFER_COUNT: u32 = 8_192;
const BUFFER_COUNT_LEAST: u32 = 64;
/// A drain ends at the latest after this.
const DRAIN_MS_MAX: u64 = 8_000;

const _: () = assert!(router::SLOW_SIZE + SERVER_FRAME_SIZE_MAX < QUEUE_SIZE_MAX);

/// What a shard tells the admin page.
struct Told {
    metrics: Metrics,
    part: Part,
    holder: Holder,
}

impl Told {
    fn new(registry: &Registry, part: Part, account: &Arc<Account>, shard: usize) -> Told {
        let holder = Holder::new(Arc::clone(account), shard);
        Told { metrics: Metrics::new(registry), part, holder }
    }

    fn publish(&mut self, shard: &mut Shard<KernelRing, Chat>) {
        let (now_us, connections) = (shard.application().now_us(), shard.connection_count());
        self.holder.exchange(now_us, connections, shard.ledger());
        self.metrics.publish(shard);
        self.part.set(shard.application().unready());
    }
}

/// How a shard begins.
enum Source {
    Fresh(Listener),
    Inherited(Inheritance),
}

/// What every shard thread is given.
struct ShardStart {
    index: usize,
    options: EdgeOptions,
    identities: Identities,
    stop: StopFlag,
    told: Told,
    orders: Receiver<Order>,
}

/// Serves clients until SIGTERM, which drains, or until a successor has taken over.
pub fn run(mut options: EdgeOptions) -> anyhow::Result<()> {
    options.capacity = try_capacity(&options);
    if options.is_successor {
        let outcome = succeed(&mut options);
        return outcome.inspect_err(|error| Said::Refused(format!("{error:#}")).say());
    }
    let listeners = open_listeners(&options)?;
    let admin = options.admin.bind().context("opening the admin page")?;
    serve(&options, admin, listeners.into_iter().map(Source::Fresh).collect(), None)
}

/// Serves what another edge has served so far.
fn succeed(options: &mut EdgeOptions) -> anyhow::Result<()> {
    let path = options.handover.clone().context("--take-over needs --handover")?;
    let (taking, inheritances) = Taking::begin(&path, options)?;
    let admin = match taking.keeps_admin {
        true => taking.admin.try_clone()?,
        false => options.admin.bind().context("opening the admin page")?,
    };
    let sources = inheritances.into_iter().map(Source::Inherited).collect();
    serve(options, admin, sources, Some(taking))
}

fn serve(
    options: &EdgeOptions,
    admin: TcpListener,
    sources: Vec<Source>,
    taking: Option<Taking>,
) -> anyhow::Result<()> {
    let registry = Registry::new("edge");
    let health = Health::starting();
    let stop = crate::sys::stop_flag().context("installing signal handlers")?;
    let kept_admin = admin.try_clone().context("opening the admin page")?;
    health.set_failing("no link to the sequencer yet");
    let mut admin = Some(admin);
    let mut open_admin = || match admin.take() {
        Some(admin) => options.admin.open_on(admin, &registry, &health),
        None => Ok(()),
    };
    if taking.is_none() {
        open_admin().context("opening the admin page")?;
    }
    let identities = identities(&options.auth, &registry)?;
    tracing::info!(listen = %options.listen, shards = options.shards, "edge starts");
    say_capacity(options);
    say_handshakes(options);
    let account = open_account(options, &registry)?;
    let links = Arc::new(AtomicUsize::new(0));
    let mut shards: Vec<JoinHandle<anyhow::Result<()>>> = Vec::new();
    let mut orders = Vec::new();
    for (index, source) in sources.into_iter().enumerate() {
        let (order, ordered) = mpsc::channel();
        orders.push(order);
        let part = health.part(format!("shard {index}"));
        let start = ShardStart {
            index,
            options: options.clone(),
            identities: identities.clone(),
            stop: stop.clone(),
            told: Told::new(&registry, part, &account, index),
            orders: ordered,
        };
        let (health, links, all) = (health.clone(), Arc::clone(&links), options.shards);
        let linked = move || {
            if links.fetch_add(1, Ordering::Relaxed) + 1 == all {
                health.set_ok();
                tracing::info!("edge serves");
            }
        };
        let work = move || run_shard(source, start, linked);
        shards.push(thread::Builder::new().name(format!("shard-{index}")).spawn(work)?);
    }
    let took = taking.map(Taking::finish).transpose().context("taking over")?;
    open_admin().context("opening the admin page")?;
    let giver = open_handover(options, kept_admin, orders);
    if let Some(took) = took {
        // Not before the next successor could come.
        took.say();
    }
    for shard in shards {
        match shard.join() {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    if let Some(giver) = giver {
        giver.settle();
    }
    tracing::info!("edge ends");
    Ok(())
}

/// From now on a successor may come. Without it the edge serves as well.
fn open_handover(
    options: &EdgeOptions,
    admin: TcpListener,
    orders: Vec<mpsc::Sender<Order>>,
) -> Option<Arc<Giver>> {
    let path = options.handover.as_ref()?;
    let offer = OfferParts {
        name: options.name.clone(),
        listen: options.listen.to_string(),
        sequencer: options.sequencer.to_string(),
        secret: secret_mark(&options.secret),
        sockets_max: capacity(options).sockets_per_shard,
        admin: options.admin.address.to_string(),
    };
    let opened = Giver::open(path, Estate { offer, admin, orders });
    opened
        .inspect_err(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "no hand-over socket: this edge cannot be upgraded");
        })
        .ok()
}

fn capacity(options: &EdgeOptions) -> Capacity {
    Capacity::of_this_process(options.descriptors, options.shards)
}

/// What all shards together bear, by a trial of a few milliseconds before anybody is listened to.
fn try_capacity(options: &EdgeOptions) -> u64 {
    // A successor must not read the clock that it is to take over.
    let start = Instant::now();
    let mut clock = || Now { monotonic_us: start.elapsed().as_micros() as u64, ..Now::default() };
    let trial_ns = Trial::new(clock()).run(&mut clock);
    process_capacity(trial_ns, processors(), options.shards)
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn say_handshakes(options: &EdgeOptions) {
    let (handshakes_per_second, processors) = (options.capacity, processors());
    let (shards, is_measured) = (options.shards, options.admission.is_measured);
    tracing::info!(handshakes_per_second, processors, shards, is_measured, "edge can open");
}

fn say_capacity(options: &EdgeOptions) {
    let capacity = capacity(options);
    let (connections, limit) = (capacity.connections(), capacity.limit());
    let descriptors = options.descriptors.name();
    tracing::info!(connections, limit, descriptors, "edge can hold");
}

/// The shards' common account, under the budget of the options.
fn open_account(options: &EdgeOptions, registry: &Registry) -> anyhow::Result<Arc<Account>> {
    let memory = machine::available();
    let budget = options.memory_budget.bytes(memory);
    let account = Arc::new(Account::new(Grades::new(budget), options.shards));
    tracing::info!(budget, memory, "edge may use memory");
    watch::start(Arc::clone(&account), registry).context("starting the ledger's thread")?;
    Ok(account)
}

fn open_listeners(options: &EdgeOptions) -> anyhow::Result<Vec<Listener>> {
    let open = |_| {
        let listener = patiently(|| listen(options.listen, LISTEN_BACKLOG, true))
            .with_context(|| format!("listening for clients on {}", options.listen))?;
        listener.limit_unsent(UNSENT_SIZE).context("bounding what waits in the kernel")?;
        Ok(listener)
    };
    let listeners: Vec<Listener> = (0..options.shards).map(open).collect::<anyhow::Result<_>>()?;
    if options.steer {
        let steered = steer_by_processor(&listeners[0], options.shards);
        steered.context("--steer: the kernel takes no program (SO_ATTACH_REUSEPORT_CBPF)")?;
    }
    Ok(listeners)
}

/// The listeners of another edge go by what this one was told. A failure costs no connection.
fn steer_inherited(listener: &Listener, options: &EdgeOptions) {
    let steered = match options.steer {
        true => steer_by_processor(listener, options.shards),
        false => steer_by_hash(listener),
    };
    if let Err(error) = steered {
        tracing::warn!(%error, steer = options.steer, "connections are dealt out as they were");
    }
}

/// Shard `index` runs on one of the process's processors alone, the first on the first.
fn pin(index: usize) -> anyhow::Result<()> {
    let allowed = allowed_processors().context("--pin: asking for this process's processors")?;
    let processor = allowed[index % allowed.len()];
    pin_this_thread(processor)
        .with_context(|| format!("--pin: pinning shard {index} to processor {processor}"))
}

fn run_shard(source: Source, start: ShardStart, linked: impl FnOnce()) -> anyhow::Result<()> {
    let ShardStart { index, options, identities, stop, mut told, orders } = start;
    if options.pin {
        pin(index)?;
    }
    let descriptors = options.descriptors;
    let sockets = capacity(&options).sockets_per_shard;
    let buffer_count = buffer_count(options.shards);
    let sizes = RingOptions { sockets, descriptors, buffer_count, ..RingOptions::default() };
    let ring = KernelRing::new(sizes)?;
    let shard_options = shard_options(&options, ring.sockets_max() as usize, told.holder.grades());
    let site = site(&options, identities)?;
    let chat = |incarnation| {
        Chat::new(ChatOptions {
            name: format!("{}/{index}", options.name),
            server: options.name.clone(),
            incarnation,
            secret: options.secret.clone(),
            sequencer: options.sequencer,
            heartbeat_ms: options.heartbeat_ms,
            site,
        })
    };
    let (mut shard, listener) = match source {
        Source::Fresh(listener) => {
            let mut shard = Shard::new(ring, chat(random_u64()), shard_options, Now::read());
            shard.add_listener(listener.socket());
            (shard, listener)
        }
        Source::Inherited(inheritance) => {
            let (shard, listener) = inheritance.take(ring, shard_options, chat)?.start()?;
            if index == 0 {
                steer_inherited(&listener, &options);
            }
            (shard, listener)
        }
    };
    shard.ledger().set(Class::Buffers, sizes.buffers_size());
    let mut linked = Some(linked);
    while !stop.is_raised() {
        shard.turn(&mut Now::read);
        if shard.application().is_linked()
            && let Some(linked) = linked.take()
        {
            linked();
        }
        told.publish(&mut shard);
        if let Ok(order) = orders.try_recv()
            && obey(&mut shard, &listener, &order)
        {
            // The kernel takes the ring apart when the process has ended. To do it here, request
            // by request, takes longer and is of no use to anybody.
            std::mem::forget(shard);
            return Ok(());
        }
    }
    drain(&mut shard, &mut told);
    Ok(())
}

fn shard_options(options: &EdgeOptions, sockets_max: usize, grades: Grades) -> ShardOptions {
    let possible = sockets_max.saturating_sub(SPARE_COUNT);
    ShardOptions {
        connection_count_max: match options.connections {
            0 => possible,
            connections => connections.div_ceil(options.shards).min(possible),
        },
        body_size_max: BODY_SIZE_MAX,
        admission: options.admission,
        capacity: options.capacity.div_ceil(options.shards as u64),
        message_size_max: CLIENT_MESSAGE_SIZE_MAX as u32,
        queue_size_max: QUEUE_SIZE_MAX,
        heartbeat_ms: u64::from(options.heartbeat_ms),
        deflate: options.deflate,
        tiers: options.tiers,
        grades,
        socket_cost: machine::socket_cost(options.listen.is_ipv6()),
        ..ShardOptions::default()
    }
}

/// Receive buffers of a shard: the process's are dealt out, since few shards run at a time.
fn buffer_count(shards: usize) -> u32 {
    let share = BUFFER_COUNT / shards.next_power_of_two() as u32;
    share.clamp(BUFFER_COUNT_LEAST, RingOptions::default().buffer_count)
}

/// How every shard is to know its clients.
fn identities(auth: &Auth, registry: &Registry) -> anyhow::Result<Identities> {
    let Auth::Jwt { keys, issuer, audience } = auth else {
        return Ok(Identities::Development);
    };
    let keys = match keys {
        Keys::Fixed(set) => KeySource::fixed(Arc::clone(set)),
        Keys::Published(place) => jwks::start(place.clone(), jwks::Pace::of(place), registry)?,
    };
    let (issuer, audience) = (issuer.clone(), audience.clone());
    Ok(Identities::Tokens(Tokens { keys, issuer, audience }))
}

fn site(options: &EdgeOptions, identities: Identities) -> anyhow::Result<Site> {
    let control = options.control.clone().map(ControlSocket::new).transpose()?;
    let is_development = matches!(identities, Identities::Development);
    let is_private = is_development && options.listen.ip().is_loopback();
    let (hosts, origins) = (options.hosts.clone(), options.origins.clone());
    Ok(Site {
        door: Door::new(hosts, origins, Tickets::new(&options.secret), identities),
        has_kill_buttons: control.is_some() && is_private,
        control: control.map(|control| Box::new(control) as Box<dyn Control>),
    })
}

/// Says `goaway` to every client, lets the answers under way arrive, and ends. Meanwhile newcomers
/// are accepted and answered 503, which is better than silence.
fn drain(shard: &mut Shard<KernelRing, Chat>, told: &mut Told) {
    let now = Now::read();
    let slots = shard.slots();
    let (chat, _, connections) = shard.parts();
    chat.drain(now, slots, connections);
    told.publish(shard);
    while shard.connection_count() > 0
        && Now::read().monotonic_ms() < now.monotonic_ms() + DRAIN_MS_MAX
    {
        shard.turn(&mut Now::read);
        told.publish(shard);
    }
    // Whoever is left, newcomers that were answered 503 included, has what is queued by now.
    shard.begin_stop();
    shard.turn(&mut Now::read);
}
