//! The ports of `up`: whether the clients' one is free, and which ones the links use.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::cli::failure::Usage;

/// io_uring keeps a dead process's listener for a moment; the edge of an earlier `up` on the same
/// directory may have died right now.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Below the ports that servers usually take.
const LINK_PORT_MIN: u16 = 15_000;
const LINK_PORT_TRIALS: usize = 64;

/// Makes sure that `address` can be listened on, and returns it with its port in place of 0.
/// Binds without SO_REUSEPORT: with it, a second bind of the same user succeeds silently.
/// `patient`: an earlier owner may be on its way out.
pub fn probe(address: SocketAddr, patient: bool) -> Result<SocketAddr, Usage> {
    let patience = if patient { PROBE_PATIENCE } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    loop {
        match bind(address) {
            Ok(bound) => return Ok(bound),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(Usage(format!(
                    "cannot listen on {address}: {error}; choose another with --listen ADDR"
                )));
            }
            Err(_) if Instant::now() < deadline => thread::sleep(PROBE_PAUSE),
            Err(_) => {
                return Err(Usage(format!(
                    "{address} is in use by another program; stop that, or choose another \
                     address with --listen ADDR"
                )));
            }
        }
    }
}

/// Two loopback addresses for the links to the store and to the sequencer. They are kept for the
/// life of `up`, so they lie outside the range from which the kernel takes the local ports of
/// outgoing connections: one of those could hold the port just while its child restarts.
pub fn choose_link_ports(listen: SocketAddr) -> io::Result<[SocketAddr; 2]> {
    let first = choose_link_port(&[listen.port()])?;
    let second = choose_link_port(&[listen.port(), first.port()])?;
    Ok([first, second])
}

fn choose_link_port(taken: &[u16]) -> io::Result<SocketAddr> {
    let end = local_range_start().max(LINK_PORT_MIN + 1);
    for _ in 0..LINK_PORT_TRIALS {
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let offset = u16::from_le_bytes(random) % (end - LINK_PORT_MIN);
        let port = LINK_PORT_MIN + offset;
        if taken.contains(&port) {
            continue;
        }
        if let Ok(address) = bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)) {
            return Ok(address);
        }
    }
    bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
}

/// Where the kernel's range for outgoing connections begins; its default if that cannot be read.
fn local_range_start() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = text.split_ascii_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(32_768)
}

/// Binds without listening, so that no client connects to a probe, and lets go again.
/// SO_REUSEADDR: connections of an earlier life in TIME_WAIT are no obstacle, a listener is.
fn bind(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket();
    bound.ok_or_else(|| io::Error::other("the socket has no Internet address"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_even_with_reuse_port() {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        let taken = socket.local_addr().unwrap().as_socket().unwrap();
        let refusal = probe(taken, false).unwrap_err();
        assert!(refusal.0.starts_with(&format!("{taken} is in use")));
    }

    #[test]
    fn patience_outlasts_a_listener_that_goes_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(listener);
        });
        assert_eq!(probe(address, true).unwrap(), address);
        closing.join().unwrap();
    }

    #[test]
    fn link_ports_differ_and_are_free() {
        let listen: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let [store, sequencer] = choose_link_ports(listen).unwrap();
        assert_ne!(store, sequencer);
        TcpListener::bind(store).unwrap();
        TcpListener::bind(sequencer).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let refusal = probe("192.0.2.1:80".parse().unwrap(), false).unwrap_err();
        assert!(refusal.0.starts_with("cannot listen on 192.0.2.1:80"));
    }
}
