//! Placeholder.
/// Temporary.
pub fn run(_: std::net::SocketAddr, _: usize) -> anyhow::Result<()> {
    Ok(())
}
