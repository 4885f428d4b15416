//! Placeholder.

pub mod echo;
pub mod options;

/// Temporary.
pub fn run(_: options::EdgeOptions) -> anyhow::Result<()> {
    Ok(())
}
