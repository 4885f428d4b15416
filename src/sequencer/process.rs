//! The sequencer as a process: its logic between a ring and its links.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use anyhow::Context;

use super::budget::Budget;
use super::core::{Outcome, Sequencer};
use super::desk;
use super::metrics::Metrics;
use super::options::SequencerOptions;
use crate::admin::{Desk, Health, Question, Registry};
use crate::clock::Now;
use crate::link::greeting::{Role, Secret};
use crate::link::host::{LinkOptions, Links};
use crate::ring::kernel::{KernelRing, RingOptions, listen};
use crate::ring::{Completion, Ring, Socket};

/// The longest a turn waits when nothing is due.
const WAIT_US_MAX: u64 = 100_000;

/// A sequencer over any ring: the kernel's, or the simulator's.
pub struct Process<R: Ring> {
    pub ring: R,
    pub links: Links,
    pub logic: Sequencer,
    completions: Vec<Completion>,
}

impl<R: Ring> Process<R> {
    /// `incarnation` is random; `listener` is where edges link to.
    pub fn new(
        mut ring: R,
        name: &str,
        incarnation: u64,
        secret: Secret,
        listener: Socket,
        store: std::net::SocketAddr,
        budget: Budget,
    ) -> Process<R> {
        let options = LinkOptions { role: Role::Sequencer, name: name.into(), incarnation, secret };
        let mut links = Links::new(options);
        let store = links.dial(store);
        links.listen(listener, &mut ring);
        let logic = Sequencer::new(incarnation, store, budget);
        Process { ring, links, logic, completions: Vec::new() }
    }

    /// Why nothing becomes durable just now.
    pub fn unready(&self) -> Option<&'static str> {
        (!self.links.is_reachable(self.logic.store)).then_some("the store is not there")
    }

    /// Submits and waits until something happens or is due.
    pub fn wait(&mut self) {
        let wait_us = self.links.wait_us(WAIT_US_MAX).min(self.logic.wait_us(WAIT_US_MAX));
        self.ring.turn(wait_us, &mut self.completions);
    }

    /// Runs everything that was collected, then what is due at `now`.
    pub fn run(&mut self, now: Now) -> Outcome {
        for completion in self.completions.drain(..) {
            self.links.complete(now, completion, &mut self.ring);
        }
        while let Some(event) = self.links.next_event() {
            self.logic.handle(now, event, &mut self.links);
        }
        for peer in std::mem::take(&mut self.logic.broken) {
            self.links.end(peer, &mut self.ring);
        }
        let outcome = self.logic.tick(now, &mut self.links);
        self.links.set_durable_seen(self.logic.durable_lsn());
        self.links.flush(now, &mut self.ring);
        outcome
    }
}

/// Runs a sequencer until SIGTERM, or until the store refuses its epoch: then everything it had
/// decided and not made durable goes with the process, and the next one acquires a higher epoch.
pub fn run(options: SequencerOptions) -> anyhow::Result<()> {
    let registry = Registry::new("sequencer");
    let health = Health::starting();
    let mut metrics = Metrics::new(&registry);
    let stop = crate::sys::stop_flag().context("installing signal handlers")?;
    let listener = crate::sys::patiently(|| listen(options.listen, 1024, false))
        .with_context(|| format!("listening for edges on {}", options.listen))?;
    let (at_desk, questions) = Desk::new(&options.secret);
    let opened = options.admin.open_with_desk(&registry, &health, at_desk);
    opened.context("opening the admin page")?;
    let mut asked = Asked { questions, waiting: BTreeMap::new(), count: 0 };
    let sizes = RingOptions {
        sockets: 4096,
        buffer_size: 65_536,
        buffer_count: 256,
        ..RingOptions::default()
    };
    let ring = KernelRing::new(sizes)?;
    let secret = Secret::new(&options.secret);
    let incarnation = crate::sys::random_u64();
    let socket = listener.socket();
    let mut process = Process::new(
        ring,
        &options.name,
        incarnation,
        secret,
        socket,
        options.store,
        Budget::default(),
    );
    process.logic.set_limits(options.limits);
    process.logic.set_dead_after(options.dead_after_ms);
    tracing::info!(listen = %options.listen, store = %options.store, "sequencer starts");
    health.set_failing("no epoch yet: the store has not answered");
    let (mut whole, mut link) = (health.part(""), health.part("link to the store"));
    let mut served = false;
    while !stop.is_raised() {
        process.wait();
        let now = Now::read();
        asked.ask(&mut process, now);
        if process.run(now) == Outcome::Rebuild {
            anyhow::bail!("the store serves a higher epoch, or another log: starting anew");
        }
        if process.logic.is_serving() && !served {
            served = true;
            health.set_ok();
            tracing::info!("sequencer serves");
        }
        asked.answer(&mut process);
        link.set(process.unready());
        metrics.publish(&process.logic, &process.links.counters, now.monotonic_us);
    }
    whole.set(Some("ending"));
    tracing::info!("sequencer ends");
    Ok(())
}

/// What an administrator has asked and is not answered.
struct Asked {
    questions: Receiver<Question>,
    waiting: BTreeMap<u64, Question>,
    count: u64,
}

impl Asked {
    fn ask(&mut self, process: &mut Process<KernelRing>, now: Now) {
        while let Ok(question) = self.questions.try_recv() {
            match desk::inquiry_of(&question.object) {
                Err(why) => question.answer(desk::bad_question(why)),
                Ok(inquiry) => {
                    self.count += 1;
                    self.waiting.insert(self.count, question);
                    process.logic.inquire(now, self.count, inquiry, &mut process.links);
                }
            }
        }
    }

    fn answer(&mut self, process: &mut Process<KernelRing>) {
        for (number, answer) in process.logic.take_answered() {
            if let Some(question) = self.waiting.remove(&number) {
                let shows_body = desk::wants_body(&question.object);
                question.answer(desk::answer_of(&answer, shows_body));
            }
        }
    }
}
