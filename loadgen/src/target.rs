//! Where the load goes.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// `HOST:PORT`, looked up once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was given; the `Host` of requests.
    pub name: String,
    pub address: SocketAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        let addresses = name.to_socket_addrs().map_err(|error| format!("`{name}`: {error}"))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        // `localhost` has two; servers that listen on loopback mostly mean the older one.
        let version_4 = addresses.iter().find(|address| address.is_ipv4());
        match version_4.or(addresses.first()) {
            Some(address) => Ok(Target { name: name.to_owned(), address: *address }),
            None => Err(format!("`{name}` has no address")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up() {
        let target: Target = "127.0.0.1:9001".parse().expect("an address");
        assert_eq!(target.address, SocketAddr::from(([127, 0, 0, 1], 9001)));
        let error = "127.0.0.1".parse::<Target>().expect_err("a port is missing");
        assert!(error.starts_with("`127.0.0.1`: "), "{error}");
    }
}
