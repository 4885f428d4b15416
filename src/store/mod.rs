//! Placeholder.

pub mod options;

/// Temporary.
pub fn run(_: options::StoreOptions) -> anyhow::Result<()> {
    Ok(())
}
