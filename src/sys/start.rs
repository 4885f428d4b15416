//! What every process does when it starts and ends: signals, patience, one random number.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// A kernel that ran io_uring keeps ports, files and locks of a killed process briefly: its
/// successor waits for them this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a sleeper looks at the flag.
const LOOK: Duration = Duration::from_millis(50);
/// What a shell shows for a command that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Raised by SIGTERM or SIGINT; the loops look at it once a turn.
#[derive(Clone)]
pub struct StopFlag {
    raised: Arc<AtomicBool>,
}

impl StopFlag {
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Sleeps for `pause`, or until it is raised.
    pub fn sleep(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.is_raised() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// From now on SIGTERM and SIGINT raise the flag, and do nothing else.
pub fn stop_flag() -> io::Result<StopFlag> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&raised))?;
    }
    Ok(StopFlag { raised })
}

/// As [`stop_flag`], for a command that a person waits for: the second signal ends it at once.
pub fn impatient_stop_flag() -> io::Result<StopFlag> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // Before the flag is raised by the same signal.
        let seen = Arc::clone(&raised);
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, seen)?;
        signal_hook::flag::register(signal, Arc::clone(&raised))?;
    }
    Ok(StopFlag { raised })
}

/// Repeats what fails because an address or a lock is still in use, for [`PATIENCE`].
pub fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if start.elapsed() > PATIENCE {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// A number that no other process start has: an incarnation.
///
/// # Panics
/// When the kernel has no random numbers: nothing that follows would be safe.
pub fn random_u64() -> u64 {
    getrandom::u64().expect("the kernel gives random numbers").max(1)
}
