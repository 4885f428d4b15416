//! A crowd, somebody who watches it, and messages between other users meanwhile: what `idle`,
//! `storm`, `churn`, `slow` and `million` have in common. What happens, in which order, is the
//! script's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;

use crate::crowd::orders::{Orders, Stage, Tally, count};
use crate::crowd::{self, CrowdOutcome, CrowdPlan, Hearing};
use crate::observe::{self, Memory, Process};
use crate::processor::Shares;
use crate::progress;
use crate::report::{Crowd, Latencies, Phase, Report, Sample};
use crate::run::{Outcome, Signals, latency_histogram};

/// Between looks at the counts.
const LOOK: Duration = Duration::from_millis(20);
const SAMPLE: Duration = Duration::from_secs(1);
/// Between samples of something that is over soon.
const SAMPLE_CLOSELY: Duration = Duration::from_millis(100);
/// Opening is sampled closely for so long; at large it takes minutes.
const OPENING_CLOSELY: Duration = Duration::from_secs(5);
/// Opening ends when nothing more was opened for so long.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Memory that is left to the machine.
const MEMORY_FLOOR: u64 = 600 << 20;
/// The longest that other users take to open their connections.
const LOAD_OPENING_MAX: Duration = Duration::from_secs(60);

/// A second that begins or ends so little outside of a phase is inside.
const EDGE_S: f64 = 0.1;

/// What happens to a crowd.
pub trait Script {
    type Hearing: Hearing + 'static;

    /// What the members at these positions do with messages.
    fn hearing(&self, positions: std::ops::Range<usize>) -> Self::Hearing;

    /// Everything from the first connection to the last.
    fn act(&mut self, scene: &mut Scene) -> anyhow::Result<()>;

    /// Adds what this scenario is about.
    fn conclude(self, heard: Vec<Self::Hearing>, scene: &Scene, report: &mut Report);
}

/// Messages on their way while the crowd stands.
struct Load {
    of: Of,
    thread: JoinHandle<anyhow::Result<Outcome>>,
    signals: Arc<Signals>,
}

/// Whose messages they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Users beside the crowd who write to each other: what is measured.
    Others,
    /// Users who write to the crowd.
    Writers,
}

/// See the module.
pub struct Scene<'a> {
    plan: &'a CrowdPlan,
    orders: &'a Orders,
    tally: &'a Tally,
    servers: Vec<Process>,
    samples: Vec<Sample>,
    phases: Vec<Phase>,
    loads: Vec<Load>,
    outcomes: Vec<(Of, Outcome)>,
    notes: Vec<String>,
    failures: Vec<String>,
    sampled: Instant,
    memory: (Instant, Memory),
}

/// Plays a script, and reports it.
pub fn play<S: Script>(
    name: &str,
    plan: &CrowdPlan,
    servers: Vec<Process>,
    mut script: S,
) -> anyhow::Result<Report> {
    let (orders, tally) = (Orders::new(), Tally::default());
    let mut scene = Scene::new(plan, &orders, &tally, servers);
    observe::shrink_caches();
    scene.memory.1 = Memory::read();
    scene.sample();
    let outcomes = thread::scope(|scope| {
        let threads =
            crowd::start(scope, plan, &orders, &tally, |positions| script.hearing(positions));
        let acted = scene.check(&mut script, || threads.iter().any(|thread| thread.is_finished()));
        scene.sample();
        orders.give(Stage::Leave);
        let join = |thread: thread::ScopedJoinHandle<'_, anyhow::Result<CrowdOutcome<_>>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are joined before any error is told; that of a thread explains that of the script.
        let outcomes: Vec<_> = threads.into_iter().map(join).collect();
        let outcomes = outcomes.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        acted.map(|()| outcomes)
    })?;
    Ok(scene.report(name, script, outcomes))
}

impl<'a> Scene<'a> {
    fn new(
        plan: &'a CrowdPlan,
        orders: &'a Orders,
        tally: &'a Tally,
        servers: Vec<Process>,
    ) -> Scene<'a> {
        let now = Instant::now();
        Scene {
            plan,
            orders,
            tally,
            servers,
            samples: Vec::new(),
            phases: Vec::new(),
            loads: Vec::new(),
            outcomes: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            sampled: now,
            memory: (now, Memory::read()),
        }
    }

    pub fn tally(&self) -> &Tally {
        self.tally
    }

    pub fn order(&self, stage: Stage) {
        self.orders.give(stage);
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    pub fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    pub fn open_count(&self) -> usize {
        count(&self.tally.open) as usize
    }

    fn check<S: Script>(
        &mut self,
        script: &mut S,
        has_ended: impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let acted = script.act(self);
        for load in self.loads.drain(..) {
            load.signals.stop.store(true, Ordering::Release);
            let _outcome = load.thread.join();
        }
        if has_ended() {
            bail!("a thread of the crowd ended early");
        }
        acted
    }

    /// Waits until everybody is there. Whether that came about; why not, is noted.
    pub fn open(&mut self) -> anyhow::Result<bool> {
        let wanted = self.plan.count;
        let bar = progress::counted("opening", wanted as u64);
        let from = self.now_s();
        let start = Instant::now();
        let (mut best, mut progressed) = (0, start);
        let reached = loop {
            let every = match start.elapsed() < OPENING_CLOSELY {
                true => SAMPLE_CLOSELY,
                false => SAMPLE,
            };
            self.look(every, &bar, self.open_count() as u64);
            let open = self.open_count();
            if open >= wanted {
                break true;
            }
            if open > best {
                (best, progressed) = (open, Instant::now());
            }
            let available = self.available();
            if available < MEMORY_FLOOR {
                self.orders.stop_opening();
                self.notes.push(format!(
                    "opening stopped at {open} of {wanted} connections: {} MiB of memory are left, \
                     and the machine keeps {} MiB",
                    available >> 20,
                    MEMORY_FLOOR >> 20
                ));
                break false;
            }
            if progressed.elapsed() > STALL_MAX {
                self.orders.stop_opening();
                self.notes.push(self.stall(open));
                break false;
            }
        };
        bar.finish_and_clear();
        self.end_phase("opening", from);
        if self.open_count() == 0 {
            bail!("{}: {}", self.plan.target.name, self.reason());
        }
        Ok(reached)
    }

    /// Memory that is left. The kernel counts sockets' inodes and names among what it could take
    /// back, which it cannot while they are open: what grew there is not left.
    fn available(&self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else {
            return u64::MAX;
        };
        let (empty, now) = (&first.memory, &last.memory);
        now.available.saturating_sub(now.reclaimable.saturating_sub(empty.reclaimable))
    }

    fn stall(&self, open: usize) -> String {
        let seconds = STALL_MAX.as_secs();
        let (wanted, reason) = (self.plan.count, self.reason());
        format!(
            "opening stopped at {open} of {wanted} connections, after {seconds} s without \
                 another one: {reason}"
        )
    }

    /// The most frequent trouble.
    fn reason(&self) -> String {
        let troubles = self.tally.troubles();
        troubles.first().map_or_else(
            || "the server does not answer".to_owned(),
            |(reason, count)| format!("{reason} ({count} times)"),
        )
    }

    /// Lets time pass.
    pub fn hold(&mut self, name: &'static str, length: Duration) {
        self.sample();
        let (from, start) = (self.now_s(), Instant::now());
        let bar = progress::timed(name, length);
        while start.elapsed() < length {
            self.look(SAMPLE, &bar, start.elapsed().as_secs());
        }
        bar.finish_and_clear();
        self.sample();
        self.end_phase(name, from);
    }

    /// Waits until `counted` reaches `total`, closely, `limit` at most. Whether it did.
    pub fn wait(
        &mut self,
        name: &'static str,
        total: u64,
        limit: Duration,
        counted: impl Fn(&Scene) -> u64,
    ) -> bool {
        self.sample();
        let (from, start) = (self.now_s(), Instant::now());
        let bar = progress::counted(name, total);
        let mut is_there = counted(self) >= total;
        while !is_there && start.elapsed() < limit {
            self.look(SAMPLE_CLOSELY, &bar, counted(self));
            is_there = counted(self) >= total;
        }
        bar.finish_and_clear();
        self.sample();
        self.end_phase(name, from);
        is_there
    }

    /// Begins messages between other users, and waits until the first are due.
    pub fn begin_load(
        &mut self,
        of: Of,
        signals: Arc<Signals>,
        work: impl FnOnce() -> anyhow::Result<Outcome> + Send + 'static,
    ) -> anyhow::Result<()> {
        let thread = thread::spawn(work);
        let start = Instant::now();
        while !signals.has_begun.load(Ordering::Acquire) {
            if thread.is_finished() || start.elapsed() > LOAD_OPENING_MAX {
                signals.stop.store(true, Ordering::Release);
                let outcome = thread.join().unwrap_or_else(|panic| {
                    std::panic::resume_unwind(panic);
                });
                outcome.context("the users who send messages")?;
                bail!("the users who send messages did not begin");
            }
            thread::sleep(LOOK);
        }
        self.loads.push(Load { of, thread, signals });
        Ok(())
    }

    /// Ends these messages, if they were begun, and waits for the last answers.
    pub fn end_load(&mut self, of: Of) -> anyhow::Result<()> {
        let Some(index) = self.loads.iter().position(|load| load.of == of) else {
            return Ok(());
        };
        let load = self.loads.remove(index);
        load.signals.stop.store(true, Ordering::Release);
        let outcome = load.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.outcomes.push((of, outcome.context("the users who send messages")?));
        Ok(())
    }

    /// What these messages' run found; `None` before its end.
    pub fn outcome(&self, of: Of) -> Option<&Outcome> {
        self.outcomes.iter().find(|(whose, _)| *whose == of).map(|(_, outcome)| outcome)
    }

    /// Latencies of what was to be sent in these phases, one after the other, by whole seconds:
    /// those `inside`, or all that they touch.
    pub fn latencies_of(&self, phases: [&str; 2], inside: bool) -> Histogram<u64> {
        let [first, last] = phases.map(|name| self.phase(name));
        match (first, last, self.outcome(Of::Others)) {
            (Some(first), Some(last), Some(outcome)) => {
                let second = |t_s: f64| (t_s - outcome.measured_from_ns as f64 / 1e9).max(0.0);
                let (from, to) = (second(first.from_s), second(last.to_s));
                let seconds = match inside {
                    true => (from - EDGE_S).ceil() as usize..(to + EDGE_S).floor() as usize,
                    false => from.floor() as usize..to.ceil() as usize,
                };
                outcome.measured.timeline.between(seconds)
            }
            _ => Histogram::new_with_bounds(1, 2, 2).expect("the bounds are constants"),
        }
    }

    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// The samples of a phase, from its beginning to its end.
    pub fn samples_of(&self, name: &str) -> &[Sample] {
        let Some(phase) = self.phase(name) else {
            return &[];
        };
        let from = self.samples.partition_point(|sample| sample.t_s < phase.from_s);
        let to = self.samples.partition_point(|sample| sample.t_s <= phase.to_s);
        &self.samples[from.saturating_sub(1)..to]
    }

    fn now_s(&self) -> f64 {
        self.plan.clock.now_ns() as f64 / 1e9
    }

    fn end_phase(&mut self, name: &'static str, from_s: f64) {
        let to_s = self.now_s();
        self.phases.push(Phase { name, from_s, to_s });
    }

    fn look(&mut self, every: Duration, bar: &ProgressBar, position: u64) {
        bar.set_position(position);
        if self.sampled.elapsed() >= every {
            self.sample();
        }
        thread::sleep(LOOK);
    }

    /// Notes what the machine and the crowd are like now.
    pub fn sample(&mut self) {
        let now = Instant::now();
        self.sampled = now;
        // Reading all of the kernel's tables takes a while.
        if now - self.memory.0 >= SAMPLE || self.samples.is_empty() {
            self.memory = (now, Memory::read());
        }
        let memory = self.memory.1.clone();
        let (mut resident, mut processor_s) = (BTreeMap::new(), BTreeMap::new());
        let own = observe::own_usage();
        for server in &self.servers {
            if let Some(usage) = server.usage() {
                resident.insert(server.name.clone(), usage.resident);
                processor_s.insert(server.name.clone(), usage.processor_s);
            }
        }
        self.samples.push(Sample {
            t_s: self.now_s(),
            open: count(&self.tally.open),
            lost: count(&self.tally.lost),
            cut: count(&self.tally.cut),
            retried: count(&self.tally.retried),
            pings: count(&self.tally.pings),
            available: memory.available,
            kernel: memory.kernel(),
            used: memory.used,
            client_resident: own.resident,
            client_processor_s: own.processor_s,
            resident,
            processor_s,
            memory,
        });
    }

    fn report<S: Script>(
        mut self,
        name: &str,
        script: S,
        outcomes: Vec<CrowdOutcome<S::Hearing>>,
    ) -> Report {
        let rings = outcomes.len();
        let (mut opening, mut returning) = (latency_histogram(), latency_histogram());
        let (mut heard, mut shares): (Vec<S::Hearing>, Vec<Shares>) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            opening.add(&outcome.opening).expect("the bounds are the same");
            returning.add(&outcome.returning).expect("the bounds are the same");
            heard.push(outcome.hearing);
            shares.push(outcome.shares);
        }
        let mut report = Report::empty(name, &self.plan.target.name, self.plan.count);
        let pairs = [("connection opened", &opening), ("connection back", &returning)];
        report.latencies.extend(pairs.map(|(of, histogram)| Latencies::of(of, histogram)));
        report.opening_s = self.phase("opening").map_or(0.0, |phase| phase.to_s - phase.from_s);
        report.threads = rings;
        let last = self.samples.last().cloned().unwrap_or_default();
        report.crowd = Some(Crowd {
            connections: self.plan.count,
            rings,
            opened: count(&self.tally.opened),
            lost: last.lost,
            cut: last.cut,
            retried: last.retried,
            open_at_end: last.open,
            pings: last.pings,
            messages: count(&self.tally.messages),
            troubles: self.tally.troubles(),
        });
        for (_, outcome) in &self.outcomes {
            report.connections += outcome.connections;
        }
        if let Some(outcome) = self.outcome(Of::Others) {
            report.add_messages(outcome.clone());
        }
        report.add_client(shares);
        script.conclude(heard, &self, &mut report);
        report.samples = std::mem::take(&mut self.samples);
        report.phases = std::mem::take(&mut self.phases);
        report.notes.append(&mut self.notes);
        report.failures.append(&mut self.failures);
        report
    }
}
