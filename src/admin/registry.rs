//! Counters, gauges and latency summaries, and their Prometheus text (exposition format 0.0.4).
//!
//! Each call to [`Registry::counter`] and its like makes a new *cell*; cells of the same name and
//! labels are added up when the page is rendered. So every shard counts in its own memory and no
//! two threads write to one cache line. Setting a metric up takes a lock; counting never does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;

/// Every metric's name begins with this.
const NAME_PREFIX: &str = "aldis_";
/// What a summary shows of its distribution.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// All metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Registry {
    process: &'static str,
    families: Arc<Mutex<BTreeMap<String, Family>>>,
    pages: Arc<Mutex<BTreeMap<&'static str, Page>>>,
}

/// What a page of a process is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Something is to be done, not only told.
    pub is_post: bool,
    /// What stands behind the question mark.
    pub query: String,
}

/// Answers in JSON.
pub type Page = Arc<dyn Fn(&Ask) -> String + Send + Sync>;

/// Only rises while the process lives.
#[derive(Clone)]
pub struct Counter {
    cell: Cell,
}

/// Rises and falls; never below zero.
#[derive(Clone)]
pub struct Gauge {
    cell: Cell,
}

/// A distribution of times. Its owner records into a histogram of its own, in **microseconds**,
/// and publishes a copy now and then; the page merges the copies and shows seconds.
#[derive(Clone)]
pub struct Summary {
    copy: Arc<Mutex<Option<Histogram<u64>>>>,
}

type Cell = Arc<CachePadded<AtomicU64>>;

struct Family {
    help: String,
    kind: Kind,
    /// By label text (`{kind="json"}`, or nothing).
    series: BTreeMap<String, Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Summary,
}

#[derive(Default)]
struct Series {
    cells: Vec<Cell>,
    summaries: Vec<Summary>,
}

impl Registry {
    /// `process` is shown by the metric `aldis_process_info`.
    pub fn new(process: &'static str) -> Registry {
        Registry { process, families: Arc::default(), pages: Arc::default() }
    }

    /// A page beside the metrics, which may be offered at any time. It is answered on the admin
    /// thread, so it is quick.
    pub fn page(&self, path: &'static str, page: impl Fn(&Ask) -> String + Send + Sync + 'static) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(path, Arc::new(page));
    }

    /// The page at a path, if there is one.
    pub fn page_at(&self, path: &str) -> Option<Page> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// A new cell of the counter `name`, which ends in `_total` unless it must read zero.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.counter_with(name, help, &[])
    }

    /// As [`Registry::counter`], with labels (name, value).
    pub fn counter_with(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        Counter { cell: self.cell(name, help, Kind::Counter, labels) }
    }

    /// A new cell of the gauge `name`.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.gauge_with(name, help, &[])
    }

    /// As [`Registry::gauge`], with labels (name, value).
    pub fn gauge_with(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        Gauge { cell: self.cell(name, help, Kind::Gauge, labels) }
    }

    /// A new part of the summary `name`, which ends in `_seconds`.
    pub fn summary(&self, name: &str, help: &str) -> Summary {
        let summary = Summary { copy: Arc::default() };
        self.with_series(name, help, Kind::Summary, &[], |series| {
            series.summaries.push(summary.clone());
        });
        summary
    }

    /// The page, as Prometheus reads it.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# HELP aldis_process_info Which process this is.\n# TYPE aldis_process_info gauge\n\
             aldis_process_info{{process=\"{}\",version=\"{}\"}} 1\n",
            self.process,
            env!("CARGO_PKG_VERSION"),
        );
        for (name, family) in self.lock().iter() {
            family.render(name, &mut text);
        }
        text
    }

    fn cell(&self, name: &str, help: &str, kind: Kind, labels: &[(&str, &str)]) -> Cell {
        let cell = Cell::default();
        self.with_series(name, help, kind, labels, |series| {
            series.cells.push(cell.clone());
        });
        cell
    }

    fn with_series(
        &self,
        name: &str,
        help: &str,
        kind: Kind,
        labels: &[(&str, &str)],
        add: impl FnOnce(&mut Series),
    ) {
        assert!(is_name(name), "{name} is not a metric name of ours");
        let mut families = self.lock();
        let family = families.entry(name.to_owned()).or_insert_with(|| Family {
            help: help.to_owned(),
            kind,
            series: BTreeMap::new(),
        });
        assert_eq!(family.kind, kind, "{name} is two kinds of metric");
        add(family.series.entry(label_text(labels)).or_default());
    }

    /// A panic elsewhere leaves the map whole: every change to it is one insertion.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter {
    pub fn add(&self, count: u64) {
        self.cell.fetch_add(count, Ordering::Relaxed);
    }

    /// For a count that its owner keeps itself and copies here now and then.
    pub fn set(&self, count: u64) {
        self.cell.store(count, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.cell.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub fn add(&self, count: u64) {
        self.cell.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes away what was added before.
    pub fn sub(&self, count: u64) {
        self.cell.fetch_sub(count, Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.cell.store(value, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.cell.load(Ordering::Relaxed)
    }
}

impl Summary {
    /// Puts a copy of `histogram` (microseconds since the start of the process) on the page, in
    /// place of the one before. Once a second is often enough: it copies the whole histogram.
    pub fn publish(&self, histogram: &Histogram<u64>) {
        let copy = Some(histogram.clone());
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = copy;
    }
}

impl Family {
    fn render(&self, name: &str, text: &mut String) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
        };
        let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, series) in &self.series {
            match self.kind {
                Kind::Counter | Kind::Gauge => {
                    let value = series.cells.iter().map(|cell| cell.load(Ordering::Relaxed));
                    let sum = value.fold(0_u64, u64::wrapping_add);
                    text.push_str(&format!("{name}{labels} {sum}\n"));
                }
                Kind::Summary => render_summary(name, &series.summaries, text),
            }
        }
    }
}

fn render_summary(name: &str, summaries: &[Summary], text: &mut String) {
    let mut merged = Histogram::<u64>::new(3).expect("three digits are within its bounds");
    merged.auto(true);
    for summary in summaries {
        let copy = summary.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(histogram) = &*copy {
            merged.add(histogram).expect("it grows as it must");
        }
    }
    let seconds = |microseconds: f64| microseconds / 1e6;
    for quantile in QUANTILES {
        let value = seconds(merged.value_at_quantile(quantile) as f64);
        text.push_str(&format!("{name}{{quantile=\"{quantile}\"}} {value}\n"));
    }
    let sum = seconds(merged.mean() * merged.len() as f64);
    text.push_str(&format!("{name}_sum {sum}\n{name}_count {}\n", merged.len()));
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.starts_with(NAME_PREFIX) && name.bytes().all(allowed)
}

fn label_text(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    for (name, value) in labels {
        let separator = if text.is_empty() { '{' } else { ',' };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(text, "{separator}{name}=\"{value}\"").expect("a string takes all");
    }
    text.push('}');
    text
}
