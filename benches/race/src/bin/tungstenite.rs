//! tokio-tungstenite, used as its own echo example does: what has arrived together is answered with
//! one write.

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What its documentation recommends for many connections.
const READ_BUFFER_SIZE: usize = 4 * 1024;

fn main() -> std::io::Result<()> {
    aldis_race::serve(connection)
}

async fn connection(stream: TcpStream) {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_SIZE);
    let accepted = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await;
    if let Ok(mut socket) = accepted {
        // An end of the stream is how every connection of the race ends.
        let _ = echo(&mut socket).await;
    }
}

async fn echo(socket: &mut WebSocketStream<TcpStream>) -> Result<(), Error> {
    while let Some(message) = socket.next().await {
        feed(socket, message?).await?;
        while let Some(Some(message)) = socket.next().now_or_never() {
            feed(socket, message?).await?;
        }
        socket.flush().await?;
    }
    Ok(())
}

async fn feed(socket: &mut WebSocketStream<TcpStream>, message: Message) -> Result<(), Error> {
    if message.is_binary() || message.is_text() {
        socket.feed(message).await?;
    }
    Ok(())
}
