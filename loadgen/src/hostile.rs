//! `hostile`: one attack after the other, while users beside it write to each other. Measures what
//! they feel of each, in multiples of the calm before.

mod attacks;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::crowd::Indifferent;
use crate::idle::Talk;
use crate::report::Report;
use crate::scene::{Of, Scene, Script};
use crate::target::Target;
use attacks::{ATTACKS, Attack};

/// Between two attacks.
const REST: Duration = Duration::from_secs(2);

/// See the module.
pub struct Hostile {
    pub target: Target,
    pub calm: Duration,
    /// Of each attack.
    pub window: Duration,
    /// Connections that the attackers have at once, where an attack is one of many.
    pub attackers: usize,
    pub talk: Talk,
    /// The most that the others' p99 may be, in multiples of the calm; `None`: it is only told.
    pub bound: Option<f64>,
    pub run: String,
}

impl Script for Hostile {
    type Hearing = Indifferent;

    fn hearing(&self, _: Range<usize>) -> Indifferent {
        Indifferent
    }

    fn act(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        if !scene.open()? {
            scene.fail(format!("only {} connections could be opened", scene.open_count()));
        }
        self.talk.begin(scene);
        scene.hold("calm", self.calm);
        for attack in ATTACKS {
            self.attack(attack, scene);
            scene.hold("rest", REST);
        }
        scene.end_load(Of::Others)
    }

    fn conclude(self, _: Vec<Indifferent>, scene: &Scene, report: &mut Report) {
        let lost = report.crowd.as_ref().map_or(0, |crowd| crowd.lost);
        if lost > 0 {
            report.failures.push(format!("{lost} connections ended that did no harm"));
        }
        let calm = scene.latencies_of(["calm", "calm"], true).value_at_quantile(0.99) as f64;
        report.figure("others' p99, calm", calm / 1e3, "ms", OTHERS);
        for Attack { name, .. } in ATTACKS {
            let latencies = scene.latencies_of([name, name], true);
            if latencies.is_empty() || calm == 0.0 {
                report.failures.push(format!("nothing was heard during: {name}"));
                continue;
            }
            let p99 = latencies.value_at_quantile(0.99) as f64;
            report.figure(format!("others' p99, {name}"), p99 / 1e3, "ms", OTHERS);
            report.figure(format!("in multiples of the calm, {name}"), p99 / calm, "x", MULTIPLES);
            if self.bound.is_some_and(|bound| p99 > bound * calm) {
                let times = p99 / calm;
                report.failures.push(format!("{name}: others' p99 was {times:.2} x the calm"));
            }
        }
        memory_figures(scene, report);
    }
}

const OTHERS: &str = "from when a message was to be sent to when its receiver had it, between \
                      users who do no harm; by whole seconds";
const MULTIPLES: &str = "others' p99 during the attack, divided by that of the calm before";

impl Hostile {
    fn attack(&self, attack: &Attack, scene: &mut Scene) {
        let stop = Arc::new(AtomicBool::new(false));
        let aim = attacks::Aim {
            target: self.target.clone(),
            connections: self.attackers,
            run: self.run.clone(),
            stop: Arc::clone(&stop),
        };
        let act = attack.act;
        let thread = thread::spawn(move || act(&aim));
        scene.hold(attack.name, self.window);
        stop.store(true, Ordering::Release);
        match thread.join() {
            Ok(Ok(attempts)) if attempts > 0 => {}
            Ok(Ok(_)) => scene.fail(format!("{}: the attack did nothing", attack.name)),
            Ok(Err(error)) => scene.fail(format!("{}: {error}", attack.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What each process grew by from the calm to the worst moment after it.
fn memory_figures(scene: &Scene, report: &mut Report) {
    let Some(calm) = scene.samples_of("calm").last() else {
        return;
    };
    for (name, before) in &calm.resident {
        let all = scene.samples().iter().filter(|sample| sample.t_s >= calm.t_s);
        let most = all.filter_map(|sample| sample.resident.get(name)).max();
        let grown = most.map_or(0.0, |most| *most as f64 - *before as f64);
        report.figure(
            format!("{name}: memory grew at most by"),
            grown / f64::from(1 << 20),
            "MiB",
            "resident memory since the calm",
        );
    }
}
