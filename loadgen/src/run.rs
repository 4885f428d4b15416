//! One run: threads, the phases they go through together, and what they measured.
//!
//! Opening (all connections of all threads), warming up, measuring, draining. Latencies and
//! processor shares are those of the measured window; accounts are those of every message.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use hdrhistogram::Histogram;

use crate::accounting::Accounts;
use crate::fleet::{Clock, Conversation, Fleet, Losses, Outboxes};
use crate::observe::Process;
use crate::processor::{Shares, ThreadTime};
use crate::target::Target;

const NS_PER_S: u64 = 1_000_000_000;
/// From the moment the last thread is ready to the first message.
const START_DELAY_NS: u64 = 5_000_000;
const OPENING_TURN: Duration = Duration::from_millis(1);
/// A turn waits at most this long.
const TURN_MAX: Duration = Duration::from_millis(50);
/// Time for opening: a constant part, and a part per connection.
const OPENING_MAX: Duration = Duration::from_secs(10);
const OPENING_MAX_EACH: Duration = Duration::from_millis(1);
/// Latencies are kept to three digits up to a minute, and counted as a minute beyond.
const LATENCY_NS_MAX: u64 = 60 * NS_PER_S;

/// What all workloads have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: Target,
    pub connections: usize,
    pub threads: usize,
    pub warmup: Duration,
    pub window: Duration,
    /// How long answers are waited for after the last message.
    pub drain_max: Duration,
    /// Connections are dealt to threads in multiples of this.
    pub group: usize,
    /// All times of the run are on this clock.
    pub clock: Clock,
    pub signals: Arc<Signals>,
    /// Processes of the server, whose time in the window is told.
    pub servers: Vec<Process>,
}

/// What a run and whoever watches it tell each other.
#[derive(Debug, Default)]
pub struct Signals {
    /// All connections are open and the first messages are due.
    pub has_begun: AtomicBool,
    /// The window is to end now, and not when its time is over.
    pub stop: AtomicBool,
}

/// Moments on the shared clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    pub start_ns: u64,
    pub measure_from_ns: u64,
    pub end_ns: u64,
}

impl Schedule {
    /// Whether what was to be sent then lies in the measured window.
    pub fn is_measured(&self, intended_ns: u64) -> bool {
        intended_ns >= self.measure_from_ns && intended_ns < self.end_ns
    }
}

/// Something that keeps one thread's connections busy.
pub trait Workload: Conversation {
    /// Every connection can be used.
    fn is_ready(&self) -> bool {
        true
    }

    /// Why it will never be ready, in words.
    fn failure(&self) -> Option<&str> {
        None
    }

    fn begin(&mut self, schedule: Schedule, outboxes: &mut Outboxes);

    /// Says what is due, and returns when something is due next.
    fn drive(&mut self, now_ns: u64, outboxes: &mut Outboxes) -> u64;

    /// Sends nothing that is due later than now.
    fn stop(&mut self, now_ns: u64);

    /// Nothing more will be sent.
    fn has_sent_all(&self) -> bool;

    /// Every message is accounted for.
    fn is_settled(&self) -> bool;

    fn finish(self) -> Measured;
}

/// What one thread, or all of them, measured.
#[derive(Clone, Debug)]
pub struct Measured {
    pub accounts: Accounts,
    pub latencies: Vec<(&'static str, Histogram<u64>)>,
    /// Deliveries in each second of the window.
    pub per_second: Vec<u64>,
    /// Latencies of what was to be sent in each second of the window.
    pub timeline: Timeline,
    /// What the server said when it first refused a message.
    pub first_refusal: Option<String>,
}

/// The whole of a run.
#[derive(Clone)]
pub struct Outcome {
    pub connections: usize,
    pub measured: Measured,
    pub threads: Vec<Shares>,
    pub losses: Losses,
    pub opening: Duration,
    /// The measured window as it was.
    pub window: Duration,
    /// Where it began, on the clock of the plan.
    pub measured_from_ns: u64,
    pub servers: Vec<ServerTime>,
}

/// What a process of the server used in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTime {
    pub name: String,
    /// `None` when it ended meanwhile.
    pub processor_s: Option<f64>,
}

struct ThreadOutcome {
    measured: Measured,
    losses: Losses,
    opening_ns: u64,
    measured_from_ns: u64,
    window: Window,
}

/// The measured window as it was.
struct Window {
    shares: Shares,
    length_ns: u64,
    servers: Vec<ServerTime>,
}

/// A moment of a thread and of the server.
struct Moment {
    now_ns: u64,
    thread: ThreadTime,
    servers: Vec<Option<f64>>,
}

/// Where threads wait for each other.
struct Gate {
    missing: AtomicUsize,
    has_failed: AtomicBool,
    /// Why the first of them failed; what others say is only that one did.
    failure: Mutex<Option<anyhow::Error>>,
    start_ns: OnceLock<u64>,
}

/// A histogram for latencies in nanoseconds.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants")
}

/// Counts of events by second.
#[derive(Clone, Debug, Default)]
pub struct PerSecond(pub Vec<u64>);

impl PerSecond {
    /// Counts one event at `now_ns`, if it lies in the measured window.
    pub fn count(&mut self, now_ns: u64, schedule: &Schedule) {
        if !schedule.is_measured(now_ns) {
            return;
        }
        let second = ((now_ns - schedule.measure_from_ns) / NS_PER_S) as usize;
        if self.0.len() <= second {
            self.0.resize(second + 1, 0);
        }
        self.0[second] += 1;
    }
}

/// Latencies by the second of the window in which a message was to be sent, in microseconds to two
/// digits: a second costs little memory.
#[derive(Clone, Debug, Default)]
pub struct Timeline(pub Vec<Histogram<u64>>);

impl Timeline {
    /// Notes the latency of a message that was to be sent at `intended_ns`, in the window.
    pub fn record(&mut self, intended_ns: u64, latency_ns: u64, schedule: &Schedule) {
        if !schedule.is_measured(intended_ns) {
            return;
        }
        let second = ((intended_ns - schedule.measure_from_ns) / NS_PER_S) as usize;
        if self.0.len() <= second {
            self.0.resize_with(second + 1, second_histogram);
        }
        self.0[second].saturating_record(latency_ns / 1_000);
    }

    /// All latencies of these seconds.
    pub fn between(&self, seconds: Range<usize>) -> Histogram<u64> {
        let mut all = second_histogram();
        let chosen = self.0.iter().skip(seconds.start).take(seconds.len());
        chosen.for_each(|second| all.add(second).expect("the bounds are the same"));
        all
    }

    fn add(&mut self, other: &Timeline) {
        if self.0.len() < other.0.len() {
            self.0.resize_with(other.0.len(), second_histogram);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.add(theirs).expect("the bounds are the same");
        }
    }
}

fn second_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX / 1_000, 2).expect("the bounds are constants")
}

/// Runs the workloads that `make` returns for ranges of connections.
pub fn run<W: Workload>(
    plan: &Plan,
    make: impl Fn(Range<usize>) -> W + Sync,
) -> anyhow::Result<Outcome> {
    let clock = plan.clock;
    let ranges = deal(plan);
    let gate = Gate {
        missing: AtomicUsize::new(ranges.len()),
        has_failed: AtomicBool::new(false),
        failure: Mutex::default(),
        start_ns: OnceLock::new(),
    };
    let outcomes: Vec<Option<ThreadOutcome>> = thread::scope(|scope| {
        let (gate, make) = (&gate, &make);
        let spawn = |range: Range<usize>| {
            scope.spawn(move || {
                let outcome = run_thread(plan, range.clone(), make(range), clock, gate);
                outcome.map_err(|error| gate.fail(error)).ok()
            })
        };
        let threads: Vec<_> = ranges.into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    match gate.failure.into_inner().expect("nobody panics while holding it") {
        Some(error) => Err(error),
        None => Ok(merge(plan.connections, outcomes.into_iter().flatten())),
    }
}

impl Gate {
    fn fail(&self, error: anyhow::Error) {
        let mut failure = self.failure.lock().expect("nobody panics while holding it");
        failure.get_or_insert(error);
        self.has_failed.store(true, Ordering::Release);
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.has_failed.load(Ordering::Acquire) {
            bail!("another thread failed");
        }
        Ok(())
    }
}

/// Ranges of connections, as even as groups allow.
fn deal(plan: &Plan) -> Vec<Range<usize>> {
    let groups = plan.connections / plan.group;
    let threads = plan.threads.clamp(1, groups.max(1));
    let bound = |thread: usize| groups * thread / threads * plan.group;
    (0..threads).map(|thread| bound(thread)..bound(thread + 1)).collect()
}

fn run_thread<W: Workload>(
    plan: &Plan,
    range: Range<usize>,
    mut workload: W,
    clock: Clock,
    gate: &Gate,
) -> anyhow::Result<ThreadOutcome> {
    let servers = if range.start == 0 { &plan.servers[..] } else { &[] };
    let mut fleet = Fleet::new(plan.target.clone(), range, clock)?;
    // The clock may have run for a long time: these connections may join others.
    let began_ns = clock.now_ns();
    let opening_max = OPENING_MAX + OPENING_MAX_EACH * plan.connections as u32;
    while !(fleet.is_open() && workload.is_ready()) {
        fleet.open_more()?;
        fleet.turn(&mut workload, OPENING_TURN)?;
        if let Some(failure) = workload.failure() {
            bail!("{}: {failure}", plan.target.name);
        }
        gate.check()?;
        let losses = fleet.losses();
        if let Some(reason) = &losses.first_reason {
            bail!("{}: a connection ended at once: {reason}", plan.target.name);
        }
        if clock.now_ns() - began_ns > opening_max.as_nanos() as u64 {
            bail!("{}: not all connections are open after {opening_max:?}", plan.target.name);
        }
    }
    let opening_ns = clock.now_ns() - began_ns;
    let start_ns = wait_for_others(gate, &mut fleet, &mut workload, clock)?;
    let measure_from_ns = start_ns + plan.warmup.as_nanos() as u64;
    let end_ns = measure_from_ns.saturating_add(plan.window.as_nanos() as u64);
    let schedule = Schedule { start_ns, measure_from_ns, end_ns };
    plan.signals.has_begun.store(true, Ordering::Release);
    let window = send_all(&mut fleet, &mut workload, plan, schedule, servers)?;
    let drain_end_ns = clock.now_ns() + plan.drain_max.as_nanos() as u64;
    while !workload.is_settled() && clock.now_ns() < drain_end_ns {
        if fleet.losses().count == fleet.count() {
            break;
        }
        fleet.turn(&mut workload, TURN_MAX)?;
    }
    let losses = fleet.losses().clone();
    let measured = workload.finish();
    let measured_from_ns = measure_from_ns;
    Ok(ThreadOutcome { measured, losses, opening_ns, measured_from_ns, window })
}

/// Keeps the connections alive until every thread is ready; returns the common start.
fn wait_for_others<W: Workload>(
    gate: &Gate,
    fleet: &mut Fleet,
    workload: &mut W,
    clock: Clock,
) -> anyhow::Result<u64> {
    if gate.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
        gate.start_ns.get_or_init(|| clock.now_ns() + START_DELAY_NS);
    }
    loop {
        if let Some(start_ns) = gate.start_ns.get() {
            return Ok(*start_ns);
        }
        gate.check()?;
        fleet.turn(workload, OPENING_TURN)?;
    }
}

/// Warms up and measures.
fn send_all<W: Workload>(
    fleet: &mut Fleet,
    workload: &mut W,
    plan: &Plan,
    schedule: Schedule,
    servers: &[Process],
) -> anyhow::Result<Window> {
    let clock = plan.clock;
    loop {
        let wait_ns = schedule.start_ns.saturating_sub(clock.now_ns());
        if wait_ns == 0 {
            break;
        }
        fleet.turn(workload, Duration::from_nanos(wait_ns))?;
    }
    workload.begin(schedule, fleet.outboxes());
    let mut measured_from = None;
    while !workload.has_sent_all() && fleet.losses().count < fleet.count() {
        let now_ns = clock.now_ns();
        if measured_from.is_none() && now_ns >= schedule.measure_from_ns {
            measured_from = Some(Moment::read(now_ns, servers));
        }
        if plan.signals.stop.load(Ordering::Acquire) {
            workload.stop(now_ns);
        }
        let due_ns = workload.drive(now_ns, fleet.outboxes());
        let wait = Duration::from_nanos(due_ns.saturating_sub(clock.now_ns())).min(TURN_MAX);
        fleet.turn(workload, wait)?;
    }
    let end = Moment::read(clock.now_ns(), servers);
    let from = measured_from.unwrap_or_else(|| Moment::read(end.now_ns, servers));
    let length_ns = end.now_ns.min(schedule.end_ns).saturating_sub(from.now_ns);
    let used = |(server, (from, end)): (&Process, (&Option<f64>, &Option<f64>))| ServerTime {
        name: server.name.clone(),
        processor_s: from.zip(*end).map(|(from, end)| end - from),
    };
    let times = from.servers.iter().zip(&end.servers);
    let servers = servers.iter().zip(times).map(used).collect();
    Ok(Window { shares: from.thread.until(end.thread), length_ns, servers })
}

impl Moment {
    fn read(now_ns: u64, servers: &[Process]) -> Moment {
        let servers = servers.iter().map(Process::processor_s).collect();
        Moment { now_ns, thread: ThreadTime::read(now_ns), servers }
    }
}

fn merge(connections: usize, threads: impl IntoIterator<Item = ThreadOutcome>) -> Outcome {
    let mut merged: Option<Outcome> = None;
    for thread in threads {
        let window = Duration::from_nanos(thread.window.length_ns);
        let opening = Duration::from_nanos(thread.opening_ns);
        match &mut merged {
            None => {
                let ThreadOutcome { measured, losses, measured_from_ns, .. } = thread;
                merged = Some(Outcome {
                    connections,
                    measured,
                    threads: vec![thread.window.shares],
                    losses,
                    opening,
                    window,
                    measured_from_ns,
                    servers: thread.window.servers,
                });
            }
            Some(all) => {
                all.measured.add(&thread.measured);
                all.threads.push(thread.window.shares);
                all.losses.count += thread.losses.count;
                all.losses.first_reason =
                    all.losses.first_reason.take().or(thread.losses.first_reason);
                all.opening = all.opening.max(opening);
                all.window = all.window.max(window);
                all.servers.extend(thread.window.servers);
            }
        }
    }
    merged.expect("there is at least one thread")
}

impl Measured {
    fn add(&mut self, other: &Measured) {
        self.accounts.add(&other.accounts);
        for ((_, mine), (_, theirs)) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.add(theirs).expect("the bounds are the same");
        }
        if self.per_second.len() < other.per_second.len() {
            self.per_second.resize(other.per_second.len(), 0);
        }
        for (mine, theirs) in self.per_second.iter_mut().zip(&other.per_second) {
            *mine += theirs;
        }
        self.timeline.add(&other.timeline);
        self.first_refusal = self.first_refusal.take().or_else(|| other.first_refusal.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn plan(connections: usize, threads: usize, group: usize) -> Plan {
        Plan {
            target: Target { name: String::new(), address: ([127, 0, 0, 1], 1).into() },
            connections,
            threads,
            warmup: Duration::ZERO,
            window: Duration::ZERO,
            drain_max: Duration::ZERO,
            group,
            clock: Clock(Instant::now()),
            signals: Arc::default(),
            servers: Vec::new(),
        }
    }

    #[test]
    fn connections_are_dealt_in_whole_groups_to_every_thread() {
        let bounds = |plan| deal(&plan).into_iter().map(|range| (range.start, range.end));
        let dealt = |plan| bounds(plan).collect::<Vec<_>>();
        assert_eq!(dealt(plan(10, 1, 1)), [(0, 10)]);
        assert_eq!(dealt(plan(10, 3, 1)), [(0, 3), (3, 6), (6, 10)]);
        assert_eq!(dealt(plan(10, 2, 2)), [(0, 4), (4, 10)]);
        assert_eq!(dealt(plan(2, 8, 2)), [(0, 2)]);
    }

    /// Says at once that it will never be ready, when it has the last connection.
    struct Failing(Range<usize>);

    impl Conversation for Failing {
        fn path(&self, _: usize) -> String {
            "/".to_owned()
        }

        fn message(&mut self, _: usize, _: &[u8], _: u64, _: &mut Outboxes) {}

        fn lost(&mut self, _: usize) {}
    }

    impl Workload for Failing {
        fn failure(&self) -> Option<&str> {
            (self.0.end == 2).then_some("no: the server's words")
        }

        fn begin(&mut self, _: Schedule, _: &mut Outboxes) {
            panic!("it is never ready");
        }

        fn drive(&mut self, _: u64, _: &mut Outboxes) -> u64 {
            0
        }

        fn stop(&mut self, _: u64) {}

        fn has_sent_all(&self) -> bool {
            true
        }

        fn is_settled(&self) -> bool {
            true
        }

        fn finish(self) -> Measured {
            panic!("it is never ready");
        }
    }

    #[test]
    fn the_first_failure_is_the_error_whichever_threads_it_is() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut plan = plan(2, 2, 1);
        plan.target.address = server.local_addr().expect("it is bound");
        let error = run(&plan, Failing).err().expect("one fails");
        assert!(error.to_string().ends_with("no: the server's words"), "{error}");
    }

    #[test]
    fn seconds_of_the_window_are_counted_and_no_others() {
        let schedule = Schedule { start_ns: 0, measure_from_ns: 10, end_ns: 10 + 2 * NS_PER_S };
        let mut per_second = PerSecond::default();
        for now_ns in [9, 10, 11, 10 + NS_PER_S, 10 + 2 * NS_PER_S] {
            per_second.count(now_ns, &schedule);
        }
        assert_eq!(per_second.0, [2, 1]);
    }

    #[test]
    fn latencies_are_kept_by_the_second_of_the_intended_time() {
        let schedule = Schedule { start_ns: 0, measure_from_ns: 10, end_ns: 10 + 3 * NS_PER_S };
        let mut timeline = Timeline::default();
        timeline.record(9, 5_000_000, &schedule);
        timeline.record(10, 1_000_000, &schedule);
        timeline.record(10 + 2 * NS_PER_S, 9_000_000, &schedule);
        timeline.record(10 + 3 * NS_PER_S, 5_000_000, &schedule);
        let counts: Vec<u64> = timeline.0.iter().map(Histogram::len).collect();
        assert_eq!(counts, [1, 0, 1]);
        assert!((980..1_020).contains(&timeline.between(0..2).max()));
        let mut all = Timeline::default();
        all.add(&timeline);
        all.add(&timeline);
        assert_eq!(all.between(0..3).len(), 4);
    }

    #[test]
    fn threads_add_up() {
        let mut one = latency_histogram();
        one.record(1_000).expect("in bounds");
        let accounts = Accounts { sent: 1, ..Accounts::default() };
        let part = |per_second: Vec<u64>| Measured {
            accounts,
            latencies: vec![("echo", one.clone())],
            per_second,
            timeline: Timeline::default(),
            first_refusal: None,
        };
        let mut all = part(vec![1]);
        all.add(&part(vec![2, 3]));
        assert_eq!((all.accounts.sent, all.latencies[0].1.len()), (2, 2));
        assert_eq!(all.per_second, [3, 3]);
    }
}
