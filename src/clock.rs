//! Time as a value: read once per turn of a loop and handed to all logic, which never asks for it.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static START: OnceLock<Instant> = OnceLock::new();

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since an arbitrary start, never falling. For every timeout and interval.
    pub monotonic_us: u64,
    /// Milliseconds since 1970 UTC, as the host has it. May jump; only ever shown or logged.
    pub unix_ms: u64,
}

impl Now {
    /// Reads the clocks of this host. Only the loops in `main` and the process hosts call this.
    pub fn read() -> Now {
        let start = *START.get_or_init(Instant::now);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic_us: start.elapsed().as_micros() as u64 + 1,
            unix_ms: unix.as_millis() as u64,
        }
    }

    /// Lets the monotonic clock of this process go on where another one's stands, whose times are
    /// then good here too. `false` when it was read before.
    pub fn continue_from(monotonic: Duration) -> bool {
        let start = Instant::now().checked_sub(monotonic);
        start.is_some_and(|start| START.set(start).is_ok())
    }

    /// Milliseconds since the same arbitrary start as `monotonic_us`.
    pub fn monotonic_ms(self) -> u64 {
        self.monotonic_us / 1_000
    }
}
