//! `slow`: users who stop reading while they are written to. Measures what that does to others and
//! to the server's memory; then they read again, and everything that was acknowledged must reach
//! them, in order.

mod pour;
mod readers;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::accounting::Accounts;
use crate::crowd::orders::Stage;
use crate::idle::{PhaseName, Talk, p99_figures};
use crate::report::{Latencies, Report};
use crate::run::{self, Plan};
use crate::scene::{Of, Scene, Script};
use pour::{Pour, PourOptions};
use readers::Readers;

/// See the module.
pub struct Slow {
    /// With everybody reading and nobody writing to the crowd: what is normal for the others.
    pub calm: Duration,
    /// Without anybody of the crowd reading.
    pub window: Duration,
    /// How long the readers may take for what they missed.
    pub patience: Duration,
    pub talk: Option<Talk>,
    pub writers: Writers,
    pub books: Arc<Books>,
}

/// Those who write to the crowd.
#[derive(Clone)]
pub struct Writers {
    pub plan: Plan,
    pub rate: f64,
    pub size: usize,
    pub run: String,
    /// Members of the crowd.
    pub reader_count: usize,
}

/// What writers were told and readers heard.
#[derive(Debug, Default)]
pub struct Books {
    /// By reader: for each message by its number, the place that its writer was told; 0: none.
    told: Mutex<Vec<(usize, Vec<u64>)>>,
    /// Different messages that readers heard.
    heard: AtomicU64,
}

impl Script for Slow {
    type Hearing = Readers;

    fn hearing(&self, positions: Range<usize>) -> Readers {
        Readers::new(positions, Arc::clone(&self.books))
    }

    fn act(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        if !scene.open()? {
            scene.fail(format!("only {} connections could be opened", scene.open_count()));
        }
        if let Some(talk) = &self.talk {
            talk.begin(scene);
        }
        scene.hold("calm", self.calm);
        scene.order(Stage::Deaf);
        let Writers { plan, rate, size, run, reader_count } = self.writers.clone();
        let books = Arc::clone(&self.books);
        scene.begin_load(Of::Writers, plan.signals.clone(), move || {
            let all = plan.connections;
            run::run(&plan, |positions| {
                let rate = rate * positions.len() as f64 / all as f64;
                let options = PourOptions { run: run.clone(), size, rate, all, reader_count };
                Pour::new(options, positions, Arc::clone(&books))
            })
        })?;
        scene.hold("deaf", self.window);
        scene.end_load(Of::Writers)?;
        scene.order(Stage::Stay);
        let told = self.books.told_count();
        let heard = |books: &Books| books.heard.load(Ordering::Relaxed);
        let books = Arc::clone(&self.books);
        scene.wait("catching up", told, self.patience, move |_| heard(&books));
        scene.end_load(Of::Others)
    }

    fn conclude(self, heard: Vec<Readers>, scene: &Scene, report: &mut Report) {
        let mut accounts = Accounts::default();
        if let Some(outcome) = scene.outcome(Of::Writers) {
            accounts.add(&outcome.measured.accounts);
            for (of, histogram) in &outcome.measured.latencies {
                report.latencies.push(Latencies::of(of, histogram));
            }
        }
        for readers in heard {
            readers.settle(&mut accounts);
        }
        report.failures.extend(accounts.failures());
        report.accounts.add(&accounts);
        let phase = |phase, inside, name| PhaseName { first: phase, last: phase, inside, name };
        let phases = [
            phase("calm", true, "others' p99 in the calm before"),
            phase("deaf", true, "others' p99 while the crowd did not read"),
            phase("catching up", false, "others' p99 while it caught up"),
        ];
        p99_figures(scene, &phases, report);
        growth_figures(&self, scene, report);
    }
}

impl Books {
    fn told_count(&self) -> u64 {
        let told = self.told.lock().expect("nobody panics while holding it");
        told.iter().flat_map(|(_, seqs)| seqs).filter(|seq| **seq > 0).count() as u64
    }
}

fn growth_figures(script: &Slow, scene: &Scene, report: &mut Report) {
    let cut = report.crowd.as_ref().map_or(0, |crowd| crowd.lost);
    report.figure(
        "readers that the server cut",
        cut as f64,
        "",
        "with 4003, because they did not read, or 4002, because they answered no ping; all came \
         back and read the rest",
    );
    if let Some(outcome) = scene.outcome(Of::Writers) {
        let bytes = outcome.measured.accounts.acknowledged as f64 * script.writers.size as f64;
        report.figure(
            "written to each reader meanwhile",
            bytes / script.writers.reader_count.max(1) as f64 / 1024.0,
            "KiB",
            "bodies; the kernel keeps some of it at both ends, the server must keep the rest",
        );
    }
    let samples = scene.samples_of("deaf");
    let (Some(first), Some(_)) = (samples.first(), samples.last()) else {
        return;
    };
    for (name, before) in &first.resident {
        let most = samples.iter().filter_map(|sample| sample.resident.get(name)).max();
        let grown = most.map_or(0.0, |most| *most as f64 - *before as f64);
        report.figure(
            format!("{name}: memory grew at most by"),
            grown / f64::from(1 << 20),
            "MiB",
            "resident memory while nobody of the crowd read",
        );
    }
}
