//! The loop of `up`: starts children, restarts them, ends them. All of it on the main thread;
//! other threads only send it events.
//!
//! Invariant: a child has a process, or a time at which it starts, or (while ending) neither.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::child::{self, Plan, ROLES, Role};
use super::readiness::Watch;
use super::restart::{Restart, Verdict};
use super::upgrade::{Asked, Outcome, Replaced, Succession};
use super::welcome;
use crate::admin::{Counter, Health, Part, Registry};
use crate::cli::failure::{CODE_USAGE, Usage};
use crate::edge::handover::Said;
use crate::sys;

/// Children are looked at this often even if their signal is missed.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// What the other threads tell the loop.
#[derive(Debug)]
pub enum Event {
    /// Some child ended.
    ChildEnded,
    /// SIGTERM.
    Stop,
    /// SIGINT: the first asks as SIGTERM does, one during the stop makes it short. Not so a second
    /// SIGTERM, since `timeout` and service managers may well send two.
    Interrupt,
    /// From the control socket.
    Kill(Role),
    Ready {
        role: Role,
        life: u64,
    },
    /// `aldis upgrade`.
    Upgrade(Asked),
    /// The successor of the edge with this process number.
    Successor {
        successor: u32,
        said: Said,
    },
}

/// Watches the children of one plan.
pub struct Supervisor {
    plan: Plan,
    children: Vec<Supervised>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    health: Health,
    ending: Part,
    welcomed: bool,
    succession: Option<Succession>,
    replaced: Vec<Replaced>,
}

struct Supervised {
    role: Role,
    /// Another program than the plan's, since an upgrade.
    program: Option<PathBuf>,
    process: Option<Child>,
    /// When to start, if there is no process.
    start_at: Option<Instant>,
    ready_at: Option<Instant>,
    restart: Restart,
    restarts: Counter,
    /// Counts the lives; shared with the watch for readiness.
    life: Arc<AtomicU64>,
}

/// Whether a stop ran to its end.
#[derive(PartialEq, Eq)]
enum Waited {
    Ended,
    TooLong,
    Interrupted,
}

/// Opens the loop's inbox and lets signals go to it. From now on SIGTERM and SIGINT end nothing by
/// themselves.
pub fn channel() -> io::Result<(Sender<Event>, Receiver<Event>)> {
    let (events, inbox) = mpsc::channel();
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT])?;
    let sender = events.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGCHLD => Event::ChildEnded,
                SIGINT => Event::Interrupt,
                _ => Event::Stop,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    Ok((events, inbox))
}

impl Supervisor {
    /// `health` is told which children are ready, `registry` how often each was restarted.
    pub fn new(
        plan: Plan,
        events: Sender<Event>,
        inbox: Receiver<Event>,
        health: Health,
        registry: &Registry,
    ) -> Supervisor {
        Supervisor {
            plan,
            children: ROLES.map(|role| Supervised::new(role, registry)).into(),
            events,
            inbox,
            ending: health.part(""),
            health,
            welcomed: false,
            succession: None,
            replaced: Vec::new(),
        }
    }

    /// Runs until it is told to stop. Whatever the result, no child is left.
    pub fn run(mut self) -> anyhow::Result<()> {
        let result = self.supervise();
        match result {
            Ok(()) => self.stop(),
            Err(_) => self.kill_all(),
        }
        result
    }

    fn supervise(&mut self) -> anyhow::Result<()> {
        loop {
            self.start_due()?;
            match self.inbox.recv_timeout(self.until_next_start()) {
                Ok(Event::Stop | Event::Interrupt) => return Ok(()),
                Ok(Event::Kill(role)) => self.kill(role),
                Ok(Event::Ready { role, life }) => self.ready(role, life),
                Ok(Event::Upgrade(asked)) => self.begin_upgrade(asked),
                Ok(Event::Successor { successor, said }) => self.successor_said(successor, said)?,
                Ok(Event::ChildEnded) | Err(_) => {}
            }
            self.collect_ended()?;
            self.look_at_upgrade()?;
        }
    }

    fn start_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for child in &mut self.children {
            if child.start_at.is_some_and(|start_at| start_at <= now) {
                child.start(&self.plan, &self.events, &self.health)?;
            }
        }
        Ok(())
    }

    fn until_next_start(&self) -> Duration {
        let starts = self.children.iter().filter_map(|child| child.start_at);
        let wait = starts.min().map(|start| start.saturating_duration_since(Instant::now()));
        wait.unwrap_or(LOOK_PAUSE).min(LOOK_PAUSE)
    }

    fn kill(&mut self, role: Role) {
        tracing::warn!(child = role.name(), "killing it, as the page asked");
        for child in &mut self.children {
            if child.role == role {
                child.kill();
            }
        }
    }

    fn ready(&mut self, role: Role, life: u64) {
        for child in &mut self.children {
            if child.role == role && child.life.load(Ordering::Relaxed) == life {
                child.ready_at = Some(Instant::now());
                child.restart.ready();
                tracing::info!(child = role.name(), "ready");
            }
        }
        if !self.welcomed && self.children.iter().all(|child| child.ready_at.is_some()) {
            self.welcomed = true;
            self.health.set_ok();
            let is_development = self.plan.identity.auth == "dev";
            let program = std::env::args().next().unwrap_or_else(|| "aldis".to_owned());
            let text =
                welcome::text(&program, self.plan.listen, &self.plan.directory, is_development);
            let mut output = io::stdout().lock();
            // Nobody may be listening; the children serve all the same.
            let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        }
    }

    fn begin_upgrade(&mut self, asked: Asked) {
        let edge = self.children.iter().find(|child| child.role == Role::Edge);
        let is_ready = edge.is_some_and(|edge| edge.process.is_some() && edge.ready_at.is_some());
        if self.succession.is_some() {
            asked.refuse("another upgrade is under way");
        } else if !is_ready || self.plan.handover.is_none() {
            asked.refuse("the edge is not ready to be taken over");
        } else {
            self.succession = asked.start(&self.plan, &self.events);
        }
    }

    fn successor_said(&mut self, successor: u32, said: Said) -> anyhow::Result<()> {
        let is_it = |succession: &mut Succession| succession.process_id() == successor;
        match self.succession.take_if(is_it) {
            Some(succession) => self.follow(succession.said(said)),
            None => Ok(()),
        }
    }

    fn look_at_upgrade(&mut self) -> anyhow::Result<()> {
        self.replaced.retain_mut(Replaced::runs);
        match self.succession.take() {
            Some(succession) => self.follow(succession.look()),
            None => Ok(()),
        }
    }

    fn follow(&mut self, step: Result<Outcome, Succession>) -> anyhow::Result<()> {
        let outcome = match step {
            Ok(outcome) => outcome,
            Err(succession) => {
                self.succession = Some(succession);
                return Ok(());
            }
        };
        let Supervisor { children, plan, events, health, replaced, .. } = self;
        let Some(edge) = children.iter_mut().find(|child| child.role == Role::Edge) else {
            return Ok(());
        };
        match outcome {
            Outcome::Serves(process, program) => {
                edge.program = Some(program);
                edge.start_at = None;
                replaced.extend(edge.process.replace(process).map(Replaced::new));
                edge.watch(plan, events, health);
                // It was before it took over.
                edge.ready_at = Some(Instant::now());
                Ok(())
            }
            // The old one had ended, because it was taken over, and then the new one failed.
            Outcome::Failed(status) if edge.process.is_none() && edge.start_at.is_none() => {
                edge.plan_restart(status)
            }
            Outcome::Failed(_) => Ok(()),
        }
    }

    fn collect_ended(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.ended()? {
                let is_taken_over = child.role == Role::Edge && self.succession.is_some();
                if is_taken_over && status.success() {
                    // Its successor says so in a moment.
                    continue;
                }
                child.plan_restart(status)?;
            }
        }
        Ok(())
    }

    /// Ends the children from the clients' side on, each with its time to finish. A SIGINT
    /// meanwhile kills what is left.
    fn stop(&mut self) {
        tracing::info!("stopping edge, sequencer and store");
        self.ending.set(Some("ending"));
        if let Some(succession) = self.succession.take() {
            succession.fail("everything is told to end");
        }
        for role in ROLES.into_iter().rev() {
            match self.stop_one(role) {
                Waited::Ended => {}
                Waited::TooLong => {
                    tracing::warn!(child = role.name(), "did not end in time: killing it");
                    self.kill(role);
                }
                Waited::Interrupted => {
                    tracing::warn!("interrupted again: killing what is left");
                    break;
                }
            }
        }
        self.kill_all();
    }

    fn stop_one(&mut self, role: Role) -> Waited {
        let deadline = Instant::now() + patience(role);
        let mut asked = false;
        loop {
            let child = self.children.iter_mut().find(|child| child.role == role);
            let Some(process) = child.and_then(|child| child.process.as_mut()) else {
                return Waited::Ended;
            };
            if matches!(process.try_wait(), Ok(Some(_)) | Err(_)) {
                return Waited::Ended;
            }
            if !asked {
                // It fails only when the process has ended already.
                let _ = sys::terminate(process);
                asked = true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TooLong;
            }
            if let Ok(Event::Interrupt) = self.inbox.recv_timeout(left.min(LOOK_PAUSE)) {
                return Waited::Interrupted;
            }
        }
    }

    fn kill_all(&mut self) {
        if let Some(succession) = self.succession.take() {
            succession.fail("everything ends");
        }
        for child in &mut self.children {
            child.kill();
        }
        for child in &mut self.children {
            if let Some(mut process) = child.process.take() {
                let _ = process.wait();
            }
        }
    }
}

impl Supervised {
    fn new(role: Role, registry: &Registry) -> Supervised {
        let (name, help) =
            ("aldis_child_restarts_total", "Children started again after they ended");
        Supervised {
            role,
            program: None,
            process: None,
            start_at: Some(Instant::now()),
            ready_at: None,
            restart: Restart::default(),
            restarts: registry.counter_with(name, help, &[("child", role.name())]),
            life: Arc::default(),
        }
    }

    fn start(
        &mut self,
        plan: &Plan,
        events: &Sender<Event>,
        health: &Health,
    ) -> anyhow::Result<()> {
        let name = self.role.name();
        // The address of an earlier life must not be taken for this one's.
        let _ = std::fs::remove_file(plan.admin_path(self.role));
        let mut command = match &self.program {
            Some(program) if program.exists() => plan.command_of(program, self.role),
            _ => plan.command(self.role),
        };
        let process = command.spawn().with_context(|| format!("cannot start the {name}"))?;
        tracing::info!(child = name, child_pid = process.id(), "started");
        self.process = Some(process);
        self.start_at = None;
        self.watch(plan, events, health);
        Ok(())
    }

    /// Watches for the readiness of a process that has just come.
    fn watch(&mut self, plan: &Plan, events: &Sender<Event>, health: &Health) {
        self.ready_at = None;
        let life = 1 + self.life.fetch_add(1, Ordering::Relaxed);
        let watch = Watch {
            role: self.role,
            life,
            current_life: self.life.clone(),
            admin_file: plan.admin_path(self.role),
            part: health.part(self.role.name()),
        };
        watch.start(events.clone());
    }

    /// The status of a process that has ended and was not asked for before.
    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else {
            return Ok(None);
        };
        let status = process.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    fn plan_restart(&mut self, status: ExitStatus) -> anyhow::Result<()> {
        let name = self.role.name();
        let since_ready_ms = self.ready_at.map(|ready_at| ready_at.elapsed().as_millis() as u64);
        match self.restart.died(since_ready_ms, child::end_of(status)) {
            Verdict::StartAfterMs(pause_ms) => {
                tracing::warn!(child = name, %status, pause_ms, "ended; starting it again");
                self.ready_at = None;
                self.restarts.add(1);
                self.start_at = Some(Instant::now() + Duration::from_millis(pause_ms));
                Ok(())
            }
            Verdict::GiveUp(code) => {
                let message = format!("the {name} cannot start ({status}); its reason is above");
                Err(match code {
                    CODE_USAGE => Usage(message).into(),
                    _ => anyhow::anyhow!(message),
                })
            }
        }
    }

    fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            // It fails only when the process has ended already.
            let _ = process.kill();
        }
    }
}

/// How long a child may take to end: the edge drains its clients for 10 s.
fn patience(role: Role) -> Duration {
    match role {
        Role::Edge => Duration::from_secs(12),
        Role::Sequencer => Duration::from_secs(5),
        Role::Store => Duration::from_secs(10),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::cli::failure::{CODE_FAULT, Failure};
    use crate::cli::identity::IdentitySettings;

    /// Runs a supervisor whose children all are the shell script `body`.
    fn supervise(body: &str, send: impl FnOnce(&Sender<Event>)) -> anyhow::Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        write_script(&script, body);
        let loopback = "127.0.0.1:1".parse().unwrap();
        let plan = Plan {
            executable: script,
            directory: folder.path().to_owned(),
            listen: loopback,
            store_link: loopback,
            sequencer_link: loopback,
            control: None,
            handover: None,
            shards: None,
            identity: IdentitySettings {
                auth: "dev".to_owned(),
                jwt_keys: Vec::new(),
                jwks: None,
                issuer: None,
                audience: None,
            },
            hosts: Vec::new(),
            origins: Vec::new(),
            deflate: None,
            config: None,
            log: None,
        };
        let (events, inbox) = mpsc::channel();
        send(&events);
        let (health, registry) = (Health::starting(), Registry::new("up"));
        Supervisor::new(plan, events, inbox, health, &registry).run()
    }

    /// Written by another process: a file that is open for writing here may be inherited by a child
    /// that another test starts at this moment, and then cannot be executed.
    fn write_script(path: &Path, body: &str) {
        let line = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 700 \"$0\"";
        let mut shell = Command::new("sh");
        let status = shell.args(["-c", line]).arg(path).arg(body).status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn children_that_cannot_start_end_it_with_their_code() {
        let failure = Failure::of(&supervise("exit 2", |_| {}).unwrap_err());
        assert_eq!(failure.code, CODE_USAGE);
        assert!(failure.message.contains(" cannot start (exit status: 2)"));

        let failure = Failure::of(&supervise("exit 1", |_| {}).unwrap_err());
        assert_eq!(failure.code, CODE_FAULT);
    }

    #[test]
    fn a_stop_ends_children_and_an_interrupt_ends_deaf_ones() {
        let begin = Instant::now();
        supervise("exec sleep 60", |events| events.send(Event::Stop).unwrap()).unwrap();
        supervise("trap '' TERM; while :; do sleep 0.1; done", |events| {
            events.send(Event::Stop).unwrap();
            events.send(Event::Interrupt).unwrap();
        })
        .unwrap();
        assert!(begin.elapsed() < patience(Role::Edge));
    }
}
