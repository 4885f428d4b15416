//! What happened, as far as it helps to understand a failure, and a hash of all of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// See the module. Clones are the same trace: it outlives a world that panics.
#[derive(Clone)]
pub struct Trace {
    event_count_max: usize,
    shared: Rc<RefCell<Shared>>,
}

#[derive(Default)]
struct Shared {
    step: u64,
    hash: u64,
    last: VecDeque<String>,
}

impl Trace {
    /// Keeps this many events for a failure to show.
    pub fn new(event_count_max: usize) -> Trace {
        Trace { event_count_max, shared: Rc::default() }
    }

    /// Begins the next step of the run.
    pub fn step(&self) {
        self.shared.borrow_mut().step += 1;
    }

    /// Steps begun so far.
    pub fn steps(&self) -> u64 {
        self.shared.borrow().step
    }

    /// Notes an event at a virtual time.
    pub fn note(&self, now_us: u64, event: fmt::Arguments) {
        let mut shared = self.shared.borrow_mut();
        let line = format!("{:>6} {:>12} us  {event}", shared.step, now_us);
        for byte in line.bytes() {
            shared.hash = (shared.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        shared.last.push_back(line);
        if shared.last.len() > self.event_count_max {
            shared.last.pop_front();
        }
    }

    /// Of every event since the beginning: two runs that agree in it went the same way.
    pub fn hash(&self) -> u64 {
        self.shared.borrow().hash
    }

    /// The last events, oldest first.
    pub fn last(&self) -> Vec<String> {
        self.shared.borrow().last.iter().cloned().collect()
    }
}
