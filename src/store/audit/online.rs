//! The audit of a store that runs: on a thread of its own at the lowest priority, over a view of
//! the index as of one moment and the log up to that position. Nothing waits for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Report, audit};
use crate::admin::{Ask, Gauge, Registry};
use crate::store::directory::list_segments;
use crate::store::fjall_index::Views;
use crate::store::uring_device::FileReader;

/// Where the admin page has it.
pub const PATH: &str = "/audit";

/// What the page says: POST begins an audit, unless one is under way, and GET tells how it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Counts the audits of this process; 0: there was none.
    pub number: u64,
    pub is_running: bool,
    /// Bytes of the log that were read, and that there are.
    pub read: u64,
    pub of: u64,
    /// Of the last one that ended.
    pub report: Option<Report>,
    /// Why it could not be made.
    pub failed: Option<String>,
}

struct Auditor {
    views: Views,
    log_path: PathBuf,
    status: Mutex<Status>,
    unaccounted: Gauge,
}

/// Offers audits on the admin page.
pub fn offer(registry: &Registry, views: Views, log_path: &Path) {
    let unaccounted = registry.gauge(
        "aldis_messages_unaccounted",
        "Accepted messages that a read should have found and did not; must stay 0",
    );
    let (log_path, status) = (log_path.to_owned(), Mutex::default());
    let auditor = Arc::new(Auditor { views, log_path, status, unaccounted });
    registry.page(PATH, move |ask: &Ask| {
        if ask.is_post {
            begin(&auditor);
        }
        serde_json::to_string(&*auditor.status()).unwrap_or_default()
    });
}

fn begin(auditor: &Arc<Auditor>) {
    let mut status = auditor.status();
    if status.is_running {
        return;
    }
    *status = Status { number: status.number + 1, is_running: true, ..Status::default() };
    let worker = auditor.clone();
    let started = std::thread::Builder::new().name("store-audit".into()).spawn(move || {
        if let Err(error) = crate::sys::lower_priority() {
            tracing::warn!(%error, "the audit runs at the priority of everything else");
        }
        let result = worker.run();
        let mut status = worker.status();
        match result {
            Ok(report) => status.report = Some(report),
            Err(error) => status.failed = Some(format!("{error:#}")),
        }
        status.is_running = false;
    });
    if let Err(error) = started {
        status.is_running = false;
        status.failed = Some(error.to_string());
    }
}

impl Auditor {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> anyhow::Result<Report> {
        let view = self.views.view();
        // After the view: what it has applied is in these.
        let segments = list_segments(&self.log_path)?;
        self.status().of = segments.iter().map(|segment| segment.size).sum();
        let mut reader = FileReader::new(&self.log_path);
        let report =
            audit(&mut reader, &segments, &view, true, &mut |read| self.status().read = read)?;
        let lost = report.deliveries.unaccounted + report.difference().unsigned_abs() as u64;
        self.unaccounted.set(lost);
        for finding in &report.findings.told {
            tracing::error!(?finding, "the audit found something wrong");
        }
        Ok(report)
    }
}
