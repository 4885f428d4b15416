//! The echo server of fastwebsockets' own example, directly on the socket: its example goes through
//! hyper, which would cost it a little per read and write.

use std::io::{Error, ErrorKind};

use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUEST_SIZE_MAX: usize = 8 * 1024;

fn main() -> std::io::Result<()> {
    aldis_race::serve(connection)
}

async fn connection(mut stream: TcpStream) {
    if upgrade(&mut stream).await.is_err() {
        return;
    }
    let mut socket = FragmentCollector::new(WebSocket::after_handshake(stream, Role::Server));
    while let Ok(frame) = socket.read_frame().await {
        let is_last = match frame.opcode {
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await.is_err(),
            opcode => opcode == OpCode::Close,
        };
        if is_last {
            return;
        }
    }
}

/// Reads the request and answers it. Nothing may follow it before the answer.
async fn upgrade(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 || request.len() > REQUEST_SIZE_MAX {
            return Err(Error::from(ErrorKind::InvalidData));
        }
    }
    let text = String::from_utf8_lossy(&request);
    let key = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
    let accept = derive_accept_key(key.1.trim().as_bytes());
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(response.as_bytes()).await
}
