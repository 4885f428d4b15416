//! The thread that looks at the process from outside: what is resident, what waits in its sockets.
//! It decides the grade, says so in the log when it changes, and fills in the metrics page.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::account::Account;
use super::machine::{self, SocketMemory};
use crate::admin::{Gauge, Registry};
use crate::sys::resident_size;

/// Short against the time that a machine's network needs to fill a budget of some size.
const LOOK: Duration = Duration::from_millis(100);
/// The kernel's sockets are looked at every so many looks: once a second.
const LOOKS_PER_SOCKETS: u32 = 10;

/// What the thread shows.
struct Shown {
    used: Gauge,
    resident: Gauge,
    pressure: Gauge,
    unseen: Gauge,
    socket_buffers: Gauge,
}

/// Starts it; it lives as long as the process.
pub fn start(account: Arc<Account>, registry: &Registry) -> std::io::Result<()> {
    let shown = Shown::new(&account, registry);
    let watch = move || {
        let mut sockets = None;
        for look in 0u32.. {
            if look.is_multiple_of(LOOKS_PER_SOCKETS) {
                sockets = machine::socket_memory();
            }
            shown.look(&account, sockets);
            thread::sleep(LOOK);
        }
    };
    thread::Builder::new().name("ledger".to_owned()).spawn(watch)?;
    Ok(())
}

/// The name of what a class of memory is published under.
pub const CLASS_METRIC: &str = "aldis_memory_bytes";
pub const CLASS_HELP: &str = "Memory by what it is held for";

impl Shown {
    fn new(account: &Account, registry: &Registry) -> Shown {
        let help = "Memory that the edge may use";
        registry.gauge("aldis_memory_budget_bytes", help).set(account.grades().budget());
        let class = |name: &str| registry.gauge_with(CLASS_METRIC, CLASS_HELP, &[("class", name)]);
        let gauge = |name: &str, help: &str| registry.gauge(name, help);
        Shown {
            used: gauge("aldis_memory_used_bytes", "Memory that counts against the budget"),
            resident: gauge("aldis_memory_resident_bytes", "Memory of the process"),
            pressure: gauge("aldis_memory_pressure", "What is done for lack of memory, 0 to 4"),
            unseen: class("unseen"),
            socket_buffers: class("socket_buffers"),
        }
    }

    fn look(&self, account: &Account, sockets: Option<SocketMemory>) {
        let sums = account.sums();
        let resident = resident_size().unwrap_or(sums.counted);
        let unseen = resident.saturating_sub(sums.counted);
        let socket_buffers = sockets.map_or(0, |sockets| share(sockets, sums.connections));
        let (used, before, after) = account.found(unseen, socket_buffers);
        self.used.set(used);
        self.resident.set(resident);
        self.pressure.set(after as u64);
        self.unseen.set(unseen);
        self.socket_buffers.set(socket_buffers);
        if before != after {
            let (before, after, budget) = (before.name(), after.name(), account.grades().budget());
            tracing::warn!(before, after, used, budget, "the pressure of memory changes");
        }
    }
}

/// The kernel tells the whole machine's only: ours is what is ours of the sockets.
fn share(sockets: SocketMemory, connections: u64) -> u64 {
    let all = sockets.sockets.max(connections).max(1);
    (u128::from(sockets.bytes) * u128::from(connections) / u128::from(all)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_socket_buffers_we_have_the_share_that_we_have_of_sockets() {
        let sockets = SocketMemory { sockets: 200, bytes: 1_000_000 };
        assert_eq!(share(sockets, 100), 500_000);
        assert_eq!(share(sockets, 0), 0);
        assert_eq!(share(sockets, 300), 1_000_000, "counts of different moments");
    }
}
