//! Placeholder of the edge's own module.

pub mod echo;
pub mod options;

use options::EdgeOptions;

/// Serves the admin page and waits for SIGTERM.
pub fn run(options: EdgeOptions) -> anyhow::Result<()> {
    let registry = crate::admin::Registry::new("edge");
    registry.gauge("aldis_connections", "Open client connections.");
    let health = crate::admin::Health::starting();
    let listener = std::net::TcpListener::bind(options.listen)?;
    options.admin.open(&registry, &health)?;
    health.set_ok();
    wait_for_term()?;
    drop(listener);
    Ok(())
}

pub fn wait_for_term() -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    signals.wait().next();
    Ok(())
}
