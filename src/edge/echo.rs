//! Placeholder of the echo server.

pub fn run(_listen: std::net::SocketAddr, _shards: usize) -> anyhow::Result<()> {
    Ok(())
}
