//! Who may come in: so many handshakes a second, and so many connections of one address at a time.
//!
//! Plain logic of one shard. An address is in the tables only while a connection of it is: whoever
//! has many addresses makes them no larger than the number of connections does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::clock::Now;

const US_PER_S: u64 = 1_000_000;
/// Those who are refused for the rate are spread over this time, or [`RETRY_STEPS_MIN`] tokens if
/// that is longer; whoever comes after so many begins a new round.
const RETRY_US_MAX: u64 = 30 * US_PER_S;
const RETRY_STEPS_MIN: u64 = 8;
/// Nothing says when a slot or an address will have room: these are spread from 2 s to 9 s.
const RETRY_S_FIRST: u64 = 2;
const RETRY_S_COUNT: u64 = 8;

/// The limits, 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionOptions {
    /// New connections per second of all shards together; each has an equal share.
    pub handshakes_per_second: u32,
    /// The shard's own capacity is the limit instead: see [`Admission::set_share`].
    pub is_measured: bool,
    /// How many shards share that, at least 1.
    pub shards: u32,
    /// Connections of one address at a time, in each shard.
    pub connections_per_address: u32,
    /// IPv6 addresses with this many first bits in common are one, 1 to 128.
    pub ipv6_prefix: u8,
}

impl Default for AdmissionOptions {
    fn default() -> AdmissionOptions {
        AdmissionOptions {
            handshakes_per_second: 0,
            is_measured: false,
            shards: 1,
            connections_per_address: 0,
            ipv6_prefix: 64,
        }
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All slots are taken.
    Full,
    /// Too many handshakes of all clients.
    Rate,
    /// Too many connections of this address.
    Address,
    /// The memory budget is nearly used up.
    Memory,
}

impl Reason {
    pub const ALL: [Reason; 4] = [Reason::Full, Reason::Rate, Reason::Address, Reason::Memory];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Full => "full",
            Reason::Rate => "rate",
            Reason::Address => "address",
            Reason::Memory => "memory",
        }
    }
}

/// A client that is not let in, and when it is to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    pub retry_after_s: u64,
}

/// See the module.
pub struct Admission {
    bucket: Option<Bucket>,
    is_measured: bool,
    addresses: Option<Addresses>,
    /// Refusals whose time to come again is nobody's to know.
    spread_count: u64,
}

impl Admission {
    pub fn new(options: AdmissionOptions, now: Now) -> Admission {
        let AdmissionOptions { handshakes_per_second, shards, .. } = options;
        let bucket = Bucket::new(handshakes_per_second, shards, now.monotonic_us);
        let has_limit = handshakes_per_second > 0 && !options.is_measured;
        Admission {
            bucket: has_limit.then_some(bucket),
            is_measured: options.is_measured,
            addresses: (options.connections_per_address > 0).then(|| Addresses {
                count_max: options.connections_per_address,
                ipv6_prefix: options.ipv6_prefix,
                counts: BTreeMap::new(),
                of_slots: BTreeMap::new(),
            }),
            spread_count: 0,
        }
    }

    /// From now on the shard lets in so many per second, if its capacity is the limit.
    pub fn set_share(&mut self, share_per_second: u64, now: Now) {
        if !self.is_measured {
            return;
        }
        let rate = u32::try_from(share_per_second).unwrap_or(u32::MAX).max(1);
        match &mut self.bucket {
            Some(bucket) => bucket.set_rate(rate, now.monotonic_us),
            None => self.bucket = Some(Bucket::new(rate, 1, now.monotonic_us)),
        }
    }

    /// Whether [`Admission::admit`] has use for an address.
    pub fn wants_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    /// Decides on a new connection. One that is let in counts until [`Admission::left`]; a refused
    /// one takes nothing from the others. Without an address there is no limit for it.
    pub fn admit(&mut self, now: Now, slot: u32, address: Option<IpAddr>) -> Result<(), Refused> {
        let addresses = self.addresses.as_mut();
        let counted = addresses.zip(address).map(|(addresses, address)| {
            let key = addresses.key(address);
            (addresses, key)
        });
        if counted.as_ref().is_some_and(|(addresses, key)| addresses.is_full(*key)) {
            return Err(self.spread(Reason::Address));
        }
        if let Some(bucket) = &mut self.bucket
            && !bucket.take(now.monotonic_us)
        {
            let retry_after_s = bucket.promise_s();
            return Err(Refused { reason: Reason::Rate, retry_after_s });
        }
        if let Some((addresses, key)) = counted {
            addresses.insert(slot, key);
        }
        Ok(())
    }

    /// The refusal of one for whom there is no slot.
    pub fn full(&mut self) -> Refused {
        self.spread(Reason::Full)
    }

    /// The refusal of one for whom there is no memory.
    pub fn no_memory(&mut self) -> Refused {
        self.spread(Reason::Memory)
    }

    /// The connection of this slot is no more, whether it was let in or not.
    pub fn left(&mut self, slot: u32) {
        if let Some(addresses) = &mut self.addresses {
            addresses.remove(slot);
        }
    }

    fn spread(&mut self, reason: Reason) -> Refused {
        let retry_after_s = RETRY_S_FIRST + self.spread_count % RETRY_S_COUNT;
        self.spread_count = self.spread_count.wrapping_add(1);
        Refused { reason, retry_after_s }
    }
}

/// Connections by address.
struct Addresses {
    count_max: u32,
    ipv6_prefix: u8,
    /// None is 0.
    counts: BTreeMap<u128, u32>,
    of_slots: BTreeMap<u32, u128>,
}

impl Addresses {
    /// An IPv4 address is itself, also where a listener for both shows it as an IPv6 one.
    fn key(&self, address: IpAddr) -> u128 {
        match address.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => {
                let host_bits = 128 - u32::from(self.ipv6_prefix.clamp(1, 128));
                address.to_bits() >> host_bits << host_bits
            }
        }
    }

    fn is_full(&self, key: u128) -> bool {
        self.counts.get(&key).is_some_and(|count| *count >= self.count_max)
    }

    fn insert(&mut self, slot: u32, key: u128) {
        self.remove(slot);
        self.of_slots.insert(slot, key);
        *self.counts.entry(key).or_default() += 1;
    }

    fn remove(&mut self, slot: u32) {
        let Some(key) = self.of_slots.remove(&slot) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

/// One shard's tokens, counted in parts so small that none is ever lost: a token has 10^6 parts for
/// each shard, and a microsecond brings as many parts as all shards together get tokens a second.
/// So many short steps of the clock bring what one long step does, to the last part, and the shards
/// together get exactly the rate, though it may not divide by their number.
///
/// Invariant: `level <= full`, and `full` is one second's worth and at least one token.
struct Bucket {
    parts_per_us: u64,
    parts_per_token: u64,
    full: u64,
    level: u64,
    /// The latest time that was ever seen.
    now_us: u64,
    /// When the token is there on which the last of the refused was put off.
    promised_us: u64,
}

impl Bucket {
    fn new(tokens_per_second: u32, shards: u32, now_us: u64) -> Bucket {
        let parts_per_us = u64::from(tokens_per_second);
        let parts_per_token = US_PER_S * u64::from(shards.max(1));
        let full = parts_per_token.max(parts_per_us * US_PER_S);
        Bucket { parts_per_us, parts_per_token, full, level: full, now_us, promised_us: 0 }
    }

    /// Another rate from now on. What has gathered stays, up to a second's worth of the new one.
    fn set_rate(&mut self, tokens_per_second: u32, now_us: u64) {
        self.gain(now_us);
        self.parts_per_us = u64::from(tokens_per_second);
        self.full = self.parts_per_token.max(self.parts_per_us * US_PER_S);
        self.level = self.level.min(self.full);
    }

    /// A clock that went back stands still.
    fn gain(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.now_us);
        self.now_us = self.now_us.max(now_us);
        let gained = passed_us.saturating_mul(self.parts_per_us);
        self.level = self.level.saturating_add(gained).min(self.full);
    }

    /// Takes a token, if there is one.
    fn take(&mut self, now_us: u64) -> bool {
        self.gain(now_us);
        let is_there = self.level >= self.parts_per_token;
        if is_there {
            self.level -= self.parts_per_token;
        }
        is_there
    }

    /// Puts one off to a token that was promised to nobody before, and says in how many seconds,
    /// rounded up, that is there.
    fn promise_s(&mut self) -> u64 {
        let missing = self.parts_per_token.saturating_sub(self.level);
        let first_us = self.now_us.saturating_add(missing.div_ceil(self.parts_per_us));
        let step_us = self.parts_per_token.div_ceil(self.parts_per_us);
        let window_us = RETRY_US_MAX.max(RETRY_STEPS_MIN * step_us);
        let next_us = self.promised_us.saturating_add(step_us).max(first_us);
        let is_too_late = next_us > self.now_us.saturating_add(window_us);
        self.promised_us = if is_too_late { first_us } else { next_us };
        (self.promised_us - self.now_us).div_ceil(US_PER_S).max(1)
    }
}

#[cfg(test)]
mod tests;
