//! Logs to stderr: a line of text on a terminal, a line of JSON otherwise. Each names its process.
//!
//! No line contains a message's body. Nobody logs one; and a panic's formatted payload, which may
//! quote data (slicing a string does), is left out: its place in the source is logged instead.

use std::fmt;
use std::io;
use std::panic::PanicHookInfo;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::failure::Usage;

/// What Aldis itself says; of the libraries in it only what is wrong.
const FILTER: &str = "warn,aldis=info";

/// Begins logging for `process`, as `filter` says (by default [`FILTER`]), until the process ends.
/// From then on a panic of any thread is logged and ends the whole process: a process that lost
/// a thread would go on half dead.
pub fn start(process: &'static str, filter: Option<&str>, on_terminal: bool) -> Result<(), Usage> {
    let filter = filter.unwrap_or(FILTER);
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        Usage(format!("--log {filter:?}: {error}; write `info` or `info,aldis::link=debug`"))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .event_format(Lines { process, text: on_terminal })
        .init();
    std::panic::set_hook(Box::new(|panic| {
        log_panic(panic);
        std::process::abort();
    }));
    Ok(())
}

/// Formats one event as one line.
struct Lines {
    process: &'static str,
    text: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = if self.text {
            self.text_line(&time, event, &fields)
        } else {
            self.json_line(&time, event, fields)
        };
        writeln!(writer, "{line}")
    }
}

impl Lines {
    fn text_line(&self, time: &str, event: &Event<'_>, fields: &Fields) -> String {
        let level = event.metadata().level().as_str();
        let process = self.process;
        let mut line = format!("{time} {level:5} {process:9} {}", fields.message);
        for (name, value) in &fields.others {
            line.push_str(&format!(" {name}={value}"));
        }
        line
    }

    fn json_line(&self, time: &str, event: &Event<'_>, fields: Fields) -> String {
        let mut object = fields.others;
        object.insert("time".to_owned(), json!(time));
        object.insert("level".to_owned(), json!(event.metadata().level().as_str()));
        object.insert("process".to_owned(), json!(self.process));
        object.insert("pid".to_owned(), json!(std::process::id()));
        object.insert("target".to_owned(), json!(event.metadata().target()));
        object.insert("message".to_owned(), json!(fields.message));
        Value::Object(object).to_string()
    }
}

/// The fields of an event, taken out.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            _ => self.put(field, Value::String(text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            _ => self.put(field, Value::String(value.to_owned())),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(String::new, |location| location.to_string());
    // A constant message cannot contain data; a formatted one can.
    let constant = panic.payload().downcast_ref::<&'static str>().copied();
    let message = constant.unwrap_or("(formatted, not shown: it may quote data)");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(place, thread, "panic, ending the process: {message}");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(text: bool) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines { process: "edge", text })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(connections = 3, peer = "store-1", "a \"link\" began");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_of_json_parses_and_names_the_process() {
        let value: Value = serde_json::from_str(logged(false).trim_end()).unwrap();
        assert_eq!(value["process"], "edge");
        assert_eq!(value["message"], "a \"link\" began");
        assert_eq!(value["connections"], 3);
        assert_eq!(value["peer"], "store-1");
    }

    #[test]
    fn a_line_of_text_names_the_process() {
        let line = logged(true);
        assert!(line.contains(" INFO  edge      a \"link\" began"), "{line}");
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
    }
}
