//! Placeholder of the sequencer's own module.

pub mod options;

use options::SequencerOptions;

/// Serves the admin page and waits for SIGTERM.
pub fn run(options: SequencerOptions) -> anyhow::Result<()> {
    let registry = crate::admin::Registry::new("sequencer");
    let health = crate::admin::Health::starting();
    let listener = std::net::TcpListener::bind(options.listen)?;
    options.admin.open(&registry, &health)?;
    health.set_ok();
    crate::edge::wait_for_term()?;
    drop(listener);
    Ok(())
}
