//! A bar on the terminal for phases that take long; nothing where standard error is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const COUNTED: &str = "  {msg:18} [{bar:40}] {human_pos} of {human_len} ({per_sec}, {eta} left)";
const TIMED: &str = "  {msg:18} [{bar:40}] {elapsed} of {len} s";

/// A bar that counts things.
pub fn counted(what: &'static str, total: u64) -> ProgressBar {
    bar(what, total, COUNTED)
}

/// A bar for a phase of this length.
pub fn timed(what: &'static str, length: Duration) -> ProgressBar {
    bar(what, length.as_secs(), TIMED)
}

fn bar(what: &'static str, total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the templates are constants");
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_templates_are_good() {
        counted("opening", 10).finish_and_clear();
        timed("holding", Duration::from_secs(1)).finish_and_clear();
    }
}
