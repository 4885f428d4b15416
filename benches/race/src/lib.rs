//! What both peers of this workspace have in common.

use std::future::Future;
use std::io;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

/// Serves 127.0.0.1 at the port that is the first argument, on this thread, until it is killed.
pub fn serve<F: Future + 'static>(connection: fn(TcpStream) -> F) -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| io::Error::other("the argument is a port"))?;
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // Without it a task gives way every 128 operations, for which one of many has no need.
            tokio::task::spawn_local(tokio::task::unconstrained(connection(stream)));
        }
    })
}
