//! `churn`: connections leave (by reset, as a phone does that loses its network) and come back, at
//! a rate. An open loop: the handshake of the one that was due at a time counts from there.

use std::ops::Range;
use std::time::Duration;

use crate::crowd::Indifferent;
use crate::crowd::orders::{Stage, count};
use crate::idle::Talk;
use crate::report::Report;
use crate::scene::{Of, Scene, Script};

/// How long the last ones are waited for.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// See the module.
pub struct Churn {
    pub window: Duration,
    pub talk: Option<Talk>,
}

impl Script for Churn {
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
        let standing = scene.open_count() as u64;
        scene.order(Stage::Churn);
        scene.hold("churn", self.window);
        scene.order(Stage::Stay);
        let is_settled =
            scene.wait("settling", standing, SETTLE_MAX, |scene| count(&scene.tally().open));
        if !is_settled {
            scene.fail(format!("{} did not come back", standing - scene.open_count() as u64));
        }
        scene.end_load(Of::Others)
    }

    fn conclude(self, _: Vec<Indifferent>, scene: &Scene, report: &mut Report) {
        let lost = report.crowd.as_ref().map_or(0, |crowd| crowd.lost);
        if lost > 0 {
            report.failures.push(format!("{lost} connections ended that nobody cut"));
        }
        let samples = scene.samples_of("churn");
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            return;
        };
        let seconds = last.t_s - first.t_s;
        report.figure(
            "connections left and came back per second",
            (last.cut - first.cut) as f64 / seconds.max(f64::MIN_POSITIVE),
            "/s",
            "as many as were asked for, unless handshakes took longer than a round",
        );
        for (name, after) in &last.resident {
            let before = first.resident.get(name).copied().unwrap_or_default();
            report.figure(
                format!("{name}: memory grew by"),
                (*after as f64 - before as f64) / f64::from(1 << 20),
                "MiB",
                "resident memory over the churn: what comes and goes leaves nothing behind",
            );
        }
    }
}
