//! `storm`: all connections of the crowd are cut at once, and come back. Measures how long that
//! takes, and what it is like meanwhile for users who were not cut.

use std::ops::Range;
use std::time::Duration;

use crate::crowd::Indifferent;
use crate::crowd::orders::{Stage, count};
use crate::idle::{PhaseName, Talk, p99_figures};
use crate::report::Report;
use crate::scene::{Of, Scene, Script};

/// Time for the cut itself to be carried out by every thread.
const CUT_MAX: Duration = Duration::from_secs(60);
/// Messages go on for this long after everybody is back.
const AFTER: Duration = Duration::from_secs(2);

/// See the module.
pub struct Storm {
    /// Before the cut: what is normal.
    pub calm: Duration,
    /// How long a return is waited for.
    pub patience: Duration,
    pub talk: Option<Talk>,
}

impl Script for Storm {
    type Hearing = Indifferent;

    fn hearing(&self, _: Range<usize>) -> Indifferent {
        Indifferent
    }

    fn act(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        if !scene.open()? {
            scene.fail(format!("only {} connections could be opened", scene.open_count()));
        }
        if let Some(talk) = &self.talk {
            talk.begin(scene);
        }
        scene.hold("calm", self.calm);
        let standing = scene.open_count() as u64;
        let opened = count(&scene.tally().opened);
        scene.order(Stage::Cut);
        scene.wait("cut", standing, CUT_MAX, |scene| count(&scene.tally().cut));
        let is_back = scene
            .wait("return", standing, self.patience, |scene| count(&scene.tally().opened) - opened);
        if !is_back {
            let back = count(&scene.tally().opened) - opened;
            scene
                .fail(format!("{} of {standing} did not come back", standing - back.min(standing)));
        }
        scene.order(Stage::Stay);
        scene.hold("after", AFTER);
        scene.end_load(Of::Others)
    }

    fn conclude(self, _: Vec<Indifferent>, scene: &Scene, report: &mut Report) {
        let lost = report.crowd.as_ref().map_or(0, |crowd| crowd.lost);
        if lost > 0 {
            report.failures.push(format!("{lost} connections ended that nobody cut"));
        }
        return_figures(scene, report);
        let phase = |first, last, inside, name| PhaseName { first, last, inside, name };
        let phases = [
            phase("calm", "calm", true, "others' p99 in the calm before"),
            phase("cut", "return", false, "others' p99 from the cut to the last return"),
        ];
        p99_figures(scene, &phases, report);
    }
}

fn return_figures(scene: &Scene, report: &mut Report) {
    let Some(cut) = scene.phase("cut") else {
        return;
    };
    let samples = scene.samples_of("return");
    let standing = scene.samples_of("calm").last().map_or(0, |sample| sample.open);
    for (share, name) in [
        (0.5, "half of them back after"),
        (0.9, "nine tenths of them back after"),
        (1.0, "all of them back after"),
    ] {
        let wanted = (standing as f64 * share).ceil() as u64;
        let back = samples.iter().find(|sample| sample.t_s > cut.from_s && sample.open >= wanted);
        if let Some(back) = back.filter(|_| standing > 0) {
            let after_s = back.t_s - cut.from_s;
            report.figure(name, after_s, "s", "since the first connection was cut");
            if share == 1.0 {
                report.figure(
                    "handshakes per second, over the whole return",
                    standing as f64 / after_s,
                    "/s",
                    "connections that were opened again, divided by the time it took",
                );
            }
        }
    }
}
