//! What a shard holds in memory, by class, and how hard it is pressed by the budget that all shards
//! of the process share.
//!
//! Counted on the events that change it, in plain fields of the shard: nothing is scanned, and no
//! thread but the shard's own writes here. What the others hold comes in by [`Ledger::hear`], once
//! a millisecond at most, so that the shard knows at any moment of a turn how far it may go.
//!
//! Invariant: each class is what a full count of the shard's connections would find, and `counted`
//! is the sum of those that are in the process ([`Class::is_resident`]).
//!
//! The files below: `account` what the shards tell each other, `machine` what the kernel says,
//! `watch` the thread that joins both and decides.

pub mod account;
pub mod machine;
pub mod watch;

use std::str::FromStr;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Connections' slots, as far as they were ever used.
    Slots,
    /// Their entries on the timing wheel.
    Wheel,
    /// What waits to be sent, and what is being sent.
    Queues,
    /// Messages that have arrived in part.
    Frames,
    /// Requests that have arrived in part.
    Requests,
    /// Emptied queues and vectors that are kept for reuse.
    Spares,
    /// The ring's receive buffers.
    Buffers,
    /// What the application keeps of each connection.
    Sessions,
    /// Operations that are unanswered, or wait for `welcome`.
    Operations,
    /// The kernel's side of the connections, by what one costs; not in the process.
    Sockets,
}

impl Class {
    pub const ALL: [Class; 10] = [
        Class::Slots,
        Class::Wheel,
        Class::Queues,
        Class::Frames,
        Class::Requests,
        Class::Spares,
        Class::Buffers,
        Class::Sessions,
        Class::Operations,
        Class::Sockets,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Class::Slots => "slots",
            Class::Wheel => "wheel",
            Class::Queues => "queues",
            Class::Frames => "frames",
            Class::Requests => "requests",
            Class::Spares => "spares",
            Class::Buffers => "buffers",
            Class::Sessions => "sessions",
            Class::Operations => "operations",
            Class::Sockets => "sockets",
        }
    }

    /// Whether it is memory of the process, not of the kernel.
    pub fn is_resident(self) -> bool {
        self != Class::Sockets
    }
}

/// What has to be done for lack of memory. Each grade includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    #[default]
    None,
    /// Keep nothing for reuse, and shrink what is larger than its contents.
    Shrink,
    /// Do without what nobody has to be told: presence.
    Quiet,
    /// Those who read slowly are behind earlier, and so are queued less.
    Behind,
    /// Let nobody in.
    Refuse,
}

impl Pressure {
    pub const ALL: [Pressure; 5] =
        [Pressure::None, Pressure::Shrink, Pressure::Quiet, Pressure::Behind, Pressure::Refuse];

    pub fn name(self) -> &'static str {
        match self {
            Pressure::None => "none",
            Pressure::Shrink => "shrink",
            Pressure::Quiet => "quiet",
            Pressure::Behind => "behind",
            Pressure::Refuse => "refuse",
        }
    }

    fn below(self) -> Pressure {
        Pressure::ALL[(self as usize).saturating_sub(1)]
    }
}

/// Percent of the budget at which each grade after [`Pressure::None`] begins.
const BEGIN_PERCENT: [u64; 4] = [60, 70, 80, 90];
/// It ends so many percent lower, so that what it frees does not end it at once.
const HYSTERESIS_PERCENT: u64 = 5;

/// This part of the budget is left for what is under way when nothing more is to grow.
const RESERVE_DIVISOR: u64 = 16;
/// What a shard may hold of one class, whatever else is held.
const FLOOR_SIZE: u64 = 1 << 20;
/// That is at most this part of the budget.
const FLOOR_DIVISOR: u64 = 64;

/// The budget in bytes and where the grades begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grades {
    budget: u64,
    begin: [u64; 4],
    end: [u64; 4],
}

impl Grades {
    pub fn new(budget: u64) -> Grades {
        let percent = |percent: u64| (u128::from(budget) * u128::from(percent) / 100) as u64;
        Grades {
            budget,
            begin: BEGIN_PERCENT.map(percent),
            end: BEGIN_PERCENT.map(|begin| percent(begin - HYSTERESIS_PERCENT)),
        }
    }

    pub fn budget(self) -> u64 {
        self.budget
    }

    /// The grade of this use, without regard to what it was before.
    pub fn at(self, used: u64) -> Pressure {
        Pressure::ALL[self.begin.iter().take_while(|begin| used >= **begin).count()]
    }

    /// The grade after `before`, at this use.
    pub fn next(self, before: Pressure, used: u64) -> Pressure {
        let mut pressure = before.max(self.at(used));
        while pressure > Pressure::None && used < self.end[pressure as usize - 1] {
            pressure = pressure.below();
        }
        pressure
    }
}

/// No budget at all.
impl Default for Grades {
    fn default() -> Grades {
        Grades::new(u64::MAX)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    sizes: [usize; Class::ALL.len()],
    counted: usize,
    /// The most that was counted since the process was last measured: what was freed since may be
    /// with the allocator still.
    counted_most: usize,
    grades: Grades,
    /// What the shard has no part in: the other shards, socket buffers, what nobody counts.
    others: u64,
    /// The grade of the whole process when it was last heard of.
    heard: Pressure,
}

impl Ledger {
    pub fn new(grades: Grades) -> Ledger {
        Ledger { grades, ..Ledger::default() }
    }

    /// Something of this class was `before` and is `after`.
    pub fn change(&mut self, class: Class, before: usize, after: usize) {
        let size = self.sizes[class as usize] + after;
        debug_assert!(size >= before, "{class:?}: {before} were never counted");
        self.set(class, size.saturating_sub(before));
    }

    /// All of this class.
    pub fn set(&mut self, class: Class, size: usize) {
        let before = std::mem::replace(&mut self.sizes[class as usize], size);
        if class.is_resident() {
            self.counted = self.counted - before + size;
            self.counted_most = self.counted_most.max(self.counted);
        }
    }

    pub fn size(&self, class: Class) -> usize {
        self.sizes[class as usize]
    }

    /// What the shard holds in the process.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// What everybody else uses, and the grade of the process, by a new measurement.
    pub fn hear(&mut self, others: u64, pressure: Pressure) {
        self.others = others;
        self.heard = pressure;
        self.counted_most = self.counted;
    }

    /// What everybody else uses, measured no more recently than before.
    pub fn hear_others(&mut self, others: u64) {
        self.others = others;
    }

    /// The grade at this moment.
    pub fn pressure(&self) -> Pressure {
        self.heard.max(self.grades.at(self.used()))
    }

    /// Whether this class may grow: there is memory left, or it is so small that what goes on may
    /// go on.
    pub fn has_room(&self, class: Class) -> bool {
        let Grades { budget, .. } = self.grades;
        let floor = FLOOR_SIZE.min(budget / FLOOR_DIVISOR);
        self.free() as u64 > budget / RESERVE_DIVISOR || self.size(class) as u64 <= floor
    }

    /// What is left of the budget.
    pub fn free(&self) -> usize {
        let free = self.grades.budget.saturating_sub(self.used());
        usize::try_from(free).unwrap_or(usize::MAX)
    }

    /// What is used beyond the budget.
    pub fn excess(&self) -> u64 {
        self.used().saturating_sub(self.grades.budget)
    }

    fn used(&self) -> u64 {
        let own = self.counted_most + self.sizes[Class::Sockets as usize];
        self.others.saturating_add(own as u64)
    }
}

/// What a connection costs the kernel, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketCost {
    /// Its socket, with what an idle one waits with.
    pub idle: usize,
    /// What a busy one costs more.
    pub busy: usize,
}

/// A socket of Linux 6.18 on x86-64: tcp_sock 2521, inode 862, file 195, directory entry 195,
/// security 56 (slabs as they are packed).
pub const SOCKET_SIZE: usize = 3_829;
/// Its place in the ring's table, and its poll.
pub const ARMED_SIZE: usize = 40 + 256;
/// An armed receive is 864 bytes.
pub const BUSY_SIZE: usize = 864 - 256;

impl Default for SocketCost {
    fn default() -> SocketCost {
        SocketCost { idle: SOCKET_SIZE + ARMED_SIZE, busy: BUSY_SIZE }
    }
}

/// A budget as it is given: bytes, with `K`, `M`, `G` or `T` (powers of 1024), or a percentage of
/// the memory that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    Bytes(u64),
    Percent(u8),
}

/// Below it, the process alone would be over it.
pub const BUDGET_MIN: u64 = 16 << 20;

impl MemoryBudget {
    pub fn bytes(self, memory: u64) -> u64 {
        match self {
            MemoryBudget::Bytes(bytes) => bytes,
            MemoryBudget::Percent(percent) => (memory / 100 * u64::from(percent)).max(BUDGET_MIN),
        }
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<MemoryBudget, String> {
        let hint = "write it as 512M, 4G, 1073741824 or 75%, at least 16M";
        let wrong = || format!("{text:?}: {hint}");
        if let Some(digits) = text.strip_suffix('%') {
            let percent = digits.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(MemoryBudget::Percent).ok_or_else(wrong);
        }
        let digits = text.trim_end_matches(|end: char| end.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err(wrong()),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        let bytes = bytes.filter(|bytes| *bytes >= BUDGET_MIN);
        bytes.map(MemoryBudget::Bytes).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests;
