//! When a child that died starts again: at once, unless it would only die again.

/// A life that ends sooner after its start or after being ready is a sign of a lasting fault.
const SETTLED_MS: u64 = 1_000;
const PAUSE_MS_MIN: u64 = 100;
const PAUSE_MS_MAX: u64 = 5_000;
/// A child that never was ready and says this often that it cannot start like this is believed.
const USAGE_EXITS_MAX: u32 = 2;
/// The same for faults, of which some pass by themselves.
const FAULT_EXITS_MAX: u32 = 5;

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal that others sent: SIGKILL, SIGTERM.
    Killed,
    /// Its own doing: an exit code, or a crash (which counts as code 1).
    Exited(u8),
}

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    StartAfterMs(u64),
    /// It cannot start, and never could: end with this code.
    GiveUp(u8),
}

/// The memory over the lives of one child.
#[derive(Debug, Default)]
pub struct Restart {
    was_ever_ready: bool,
    usage_exits: u32,
    fault_exits: u32,
    pause_ms: u64,
}

impl Restart {
    /// The child answered that it is healthy.
    pub fn ready(&mut self) {
        self.was_ever_ready = true;
    }

    /// `since_ready_ms`: how long it had been ready; `None`: this life never was.
    pub fn died(&mut self, since_ready_ms: Option<u64>, end: End) -> Verdict {
        if let Some(code) = self.hopeless(end) {
            return Verdict::GiveUp(code);
        }
        let hasty = match (since_ready_ms, end) {
            (Some(ready_ms), _) => ready_ms < SETTLED_MS,
            // Whoever kills a child that is still starting has not shown that it cannot.
            (None, End::Killed) => false,
            (None, End::Exited(_)) => true,
        };
        self.pause_ms = match (hasty, self.pause_ms) {
            (false, _) => 0,
            (true, 0) => PAUSE_MS_MIN,
            (true, pause_ms) => (2 * pause_ms).min(PAUSE_MS_MAX),
        };
        Verdict::StartAfterMs(self.pause_ms)
    }

    fn hopeless(&mut self, end: End) -> Option<u8> {
        let End::Exited(code) = end else {
            return None;
        };
        let (exits, exits_max) = match code {
            2 => (&mut self.usage_exits, USAGE_EXITS_MAX),
            _ => (&mut self.fault_exits, FAULT_EXITS_MAX),
        };
        *exits += 1;
        let hopeless = !self.was_ever_ready && *exits >= exits_max;
        hopeless.then_some(code.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_child_starts_again_at_once() {
        let mut restart = Restart::default();
        restart.ready();
        for end in [End::Killed, End::Exited(1), End::Exited(2)] {
            assert_eq!(restart.died(Some(1_000), end), Verdict::StartAfterMs(0));
        }
    }

    #[test]
    fn dying_soon_after_ready_doubles_the_pause_up_to_its_bound() {
        let mut restart = Restart::default();
        restart.ready();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(restart.died(Some(999), End::Killed));
        }
        let expected = [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000];
        assert_eq!(pauses, expected.map(Verdict::StartAfterMs));
        assert_eq!(restart.died(Some(5_000), End::Killed), Verdict::StartAfterMs(0));
        assert_eq!(restart.died(Some(0), End::Killed), Verdict::StartAfterMs(100));
    }

    #[test]
    fn a_kill_during_the_start_costs_nothing() {
        let mut restart = Restart::default();
        for _ in 0..100 {
            assert_eq!(restart.died(None, End::Killed), Verdict::StartAfterMs(0));
        }
    }

    #[test]
    fn a_child_that_never_could_start_is_given_up() {
        let mut restart = Restart::default();
        assert_eq!(restart.died(None, End::Exited(2)), Verdict::StartAfterMs(100));
        assert_eq!(restart.died(None, End::Exited(2)), Verdict::GiveUp(2));

        let mut restart = Restart::default();
        for _ in 0..4 {
            let verdict = restart.died(None, End::Exited(1));
            assert!(matches!(verdict, Verdict::StartAfterMs(_)));
        }
        assert_eq!(restart.died(None, End::Exited(1)), Verdict::GiveUp(1));
    }

    #[test]
    fn a_child_that_once_was_ready_is_never_given_up() {
        let mut restart = Restart::default();
        restart.ready();
        for _ in 0..100 {
            let verdict = restart.died(None, End::Exited(2));
            assert!(matches!(verdict, Verdict::StartAfterMs(_)));
        }
    }
}
