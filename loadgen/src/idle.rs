//! `idle`: connections that are there. Measures what one costs while nothing is said on it but
//! heartbeats, and, when asked for, what messages between some users are like beside them.

use std::ops::Range;
use std::time::Duration;

use crate::chat::{self, Chat, ChatOptions};
use crate::crowd::Indifferent;
use crate::report::{Report, Sample};
use crate::run::{self, Plan};
use crate::scene::{Of, Scene, Script};

/// Messages between users that are not of the crowd.
#[derive(Clone, Debug)]
pub struct Talk {
    pub plan: Plan,
    pub rate: f64,
    pub size: usize,
    pub run: String,
}

/// See the module.
pub struct Idle {
    /// Without messages; heartbeats are measured here.
    pub quiet: Duration,
    /// With messages, if there are to be any.
    pub window: Duration,
    pub talk: Option<Talk>,
}

impl Talk {
    /// Begins it beside the crowd, and waits until it is measured. When it cannot be begun, the
    /// crowd is there all the same.
    pub fn begin(&self, scene: &mut Scene) {
        match self.try_begin(scene) {
            Ok(()) => scene.hold("warming up", self.plan.warmup),
            Err(error) => scene.fail(format!("{error:#}")),
        }
    }

    fn try_begin(&self, scene: &mut Scene) -> anyhow::Result<()> {
        let Talk { plan, rate, size, run } = self.clone();
        scene.begin_load(Of::Others, plan.signals.clone(), move || {
            let all = plan.connections as f64;
            run::run(&plan, |positions: Range<usize>| {
                let rate = rate * positions.len() as f64 / all;
                Chat::new(ChatOptions { run: run.clone(), size, rate }, positions)
            })
        })
    }

    /// Connections for this rate: an even number, a tenth of a message per second each at least.
    pub fn connections(rate: f64) -> usize {
        ((rate * 2.0) as usize / chat::PAIR).clamp(1, 1_000) * chat::PAIR
    }
}

impl Script for Idle {
    type Hearing = Indifferent;

    fn hearing(&self, _: Range<usize>) -> Indifferent {
        Indifferent
    }

    fn act(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        let reached = scene.open()?;
        if !reached {
            scene.fail(format!("only {} connections could be opened", scene.open_count()));
        }
        scene.hold("quiet", self.quiet);
        if let Some(talk) = &self.talk {
            talk.begin(scene);
            scene.hold("messages", self.window);
            scene.end_load(Of::Others)?;
        }
        Ok(())
    }

    fn conclude(self, _: Vec<Indifferent>, scene: &Scene, report: &mut Report) {
        let lost = report.crowd.as_ref().map_or(0, |crowd| crowd.lost);
        if lost > 0 {
            report.failures.push(format!("{lost} connections ended"));
        }
        memory_figures(scene, "quiet", report);
        heartbeat_figures(scene.samples_of("quiet"), report);
        processor_figures(scene.samples_of("messages"), "messages", report);
    }
}

/// Phases one after the other, and what the others' latencies in them are called.
pub struct PhaseName {
    pub first: &'static str,
    pub last: &'static str,
    /// Only seconds that lie in them as a whole.
    pub inside: bool,
    pub name: &'static str,
}

/// The others' p99 in these phases.
pub fn p99_figures(scene: &Scene, phases: &[PhaseName], report: &mut Report) {
    for PhaseName { first, last, inside, name } in phases {
        let latencies = scene.latencies_of([first, last], *inside);
        if !latencies.is_empty() {
            report.figure(
                *name,
                latencies.value_at_quantile(0.99) as f64 / 1e3,
                "ms",
                "from when a message was to be sent to when its receiver had it, between users \
                 to whom nothing happens; by whole seconds",
            );
        }
    }
}

/// What one connection costs: from before the first to the end of a phase in which all stood.
pub fn memory_figures(scene: &Scene, phase: &str, report: &mut Report) {
    let (Some(empty), Some(full)) = (scene.samples().first(), scene.samples_of(phase).last())
    else {
        return;
    };
    if full.open == 0 {
        return;
    }
    let each =
        |full_size: u64, empty_size: u64| (full_size as f64 - empty_size as f64) / full.open as f64;
    report.figure("connections open", full.open as f64, "", "at the end of the quiet phase");
    for (name, resident) in &full.resident {
        let before = empty.resident.get(name).copied().unwrap_or_default();
        report.figure(
            format!("{name}: user memory per connection"),
            each(*resident, before),
            "B",
            "growth of the process's resident memory since before the first connection, divided \
             by the connections",
        );
    }
    report.figure(
        "kernel memory per connection, both ends",
        each(full.kernel, empty.kernel),
        "B",
        "growth of slab and socket buffers on this machine; on loopback both ends are in it, the \
         generator's too",
    );
    report.figure(
        "generator: user memory per connection",
        each(full.client_resident, empty.client_resident),
        "B",
        "growth of the generator's own resident memory",
    );
    report.figure(
        "machine: memory per connection, all of it",
        each(full.used, empty.used),
        "B",
        "growth of what is in use on this machine without caches of files: a check on the sums \
         above, with everything else that ran",
    );
    let caches = full.memory.caches.iter().map(|(name, bytes)| {
        let before = empty.memory.caches.get(name).copied().unwrap_or_default();
        (name.clone(), each(*bytes, before))
    });
    report.kernel_caches = caches.filter(|(_, bytes)| bytes.abs() >= 1.0).collect();
}

/// What answering and sending heartbeats costs the server.
pub fn heartbeat_figures(samples: &[Sample], report: &mut Report) {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return;
    };
    let (seconds, pings) = (last.t_s - first.t_s, (last.pings - first.pings) as f64);
    if seconds <= 0.0 {
        return;
    }
    report.figure(
        "heartbeats answered per second",
        pings / seconds,
        "/s",
        "server pings that were answered in the quiet phase",
    );
    processor_figures(samples, "heartbeats", report);
    if let Some(used_s) = used_s(first, last, "edge").filter(|_| pings > 0.0) {
        report.figure(
            "edge: processor time per heartbeat",
            used_s / pings * 1e6,
            "us",
            "of the edge in the quiet phase, divided by the heartbeats",
        );
    }
}

fn used_s(first: &Sample, last: &Sample, name: &str) -> Option<f64> {
    let before = first.processor_s.get(name).copied().unwrap_or_default();
    last.processor_s.get(name).map(|processor_s| processor_s - before)
}

/// The shares of a processor of everybody, from the first of these samples to the last.
fn processor_figures(samples: &[Sample], with: &str, report: &mut Report) {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return;
    };
    let seconds = last.t_s - first.t_s;
    if seconds <= 0.0 {
        return;
    }
    let own_s = last.client_processor_s - first.client_processor_s;
    let servers = last.processor_s.keys();
    let all = servers.filter_map(|name| Some((name.as_str(), used_s(first, last, name)?)));
    for (name, used_s) in all.chain([("generator", own_s)]) {
        report.figure(
            format!("{name}: share of one processor, {with}"),
            used_s / seconds * 100.0,
            "%",
            match with {
                "heartbeats" => "processor time in the quiet phase: heartbeats and nothing else",
                _ => "processor time while messages were sent, heartbeats included",
            },
        );
    }
}
