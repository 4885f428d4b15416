//! What the index keeps about time: where in the log it was which service time.
//!
//! A message is as old as the time since the first record of the time that stands behind it; so
//! nothing is ever taken for older than it is.

use super::index::{Index, IndexFault, Keyspace};
use super::rows::{Location, NewRows, decode};
use crate::link::wire::{Wire, wire_struct};

/// The row of the last service time.
pub const SERVICE_KEY: &[u8] = b"service";
/// Two records of the time are closer together than this, in milliseconds of service.
const TIMES_APART_MS_MAX: u64 = 10 * 60_000;

wire_struct! {
    /// A place in the log, in its order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct LogPlace {
        pub segment: u64,
        pub offset: u64,
    }
}

impl LogPlace {
    pub fn of(location: &Location) -> LogPlace {
        LogPlace { segment: location.segment, offset: location.offset }
    }
}

/// The last service time that the log tells.
pub fn service_ms(index: &impl Index) -> Result<u64, IndexFault> {
    match index.get(Keyspace::Meta, SERVICE_KEY)? {
        Some(value) => decode(Keyspace::Meta, &value),
        None => Ok(0),
    }
}

/// What stands before the place was in the log when the service time was `ms`. `None`: nothing is
/// known to have been.
pub fn place_at(index: &impl Index, ms: u64) -> Result<Option<LogPlace>, IndexFault> {
    let mut found = None;
    let mut broken = false;
    let start = ms.saturating_sub(TIMES_APART_MS_MAX).to_be_bytes();
    index.scan(Keyspace::Times, &[], &start, &mut |row, value| {
        match row.try_into().map(u64::from_be_bytes) {
            Ok(at) if at > ms => return false,
            Ok(_) => match decode(Keyspace::Times, value) {
                Ok(place) => found = Some(place),
                Err(_) => broken = true,
            },
            Err(_) => broken = true,
        }
        !broken
    })?;
    if broken { Err(IndexFault::Row(Keyspace::Times)) } else { Ok(found) }
}

pub(super) fn note_time(ms: u64, location: Location, rows: &mut NewRows) {
    let key = ms.to_be_bytes().to_vec();
    rows.insert((Keyspace::Times, key), Some(LogPlace::of(&location).to_bytes()));
    rows.insert((Keyspace::Meta, SERVICE_KEY.to_vec()), Some(ms.to_bytes()));
}

pub(super) fn is_time_row(row: &[u8], value: &[u8]) -> bool {
    row.len() == 8 && decode::<LogPlace>(Keyspace::Times, value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::{Change, MemoryIndex};

    #[test]
    fn the_place_of_a_time_is_the_last_one_not_after_it() {
        let mut index = MemoryIndex::default();
        let mut rows = NewRows::new();
        for minute in 1..=30u64 {
            let location =
                Location { segment: minute / 10, offset: minute, size: 9, checksum: 0, sender: 0 };
            note_time(minute * 60_000, location, &mut rows);
        }
        let change = |((keyspace, key), value)| Change { keyspace, key, value };
        index.apply(rows.into_iter().map(change).collect()).expect("in memory");
        let at = |ms| place_at(&index, ms).expect("good rows").map(|place| place.offset);
        assert_eq!((at(0), at(59_999), at(60_000), at(119_999)), (None, None, Some(1), Some(1)));
        assert_eq!((at(15 * 60_000), at(30 * 60_000 + 5)), (Some(15), Some(30)));
        assert_eq!(service_ms(&index).expect("a good row"), 30 * 60_000);
    }
}
