//! The names of devices, of which most are the same few: each kept once for all the connections of
//! a shard that have it.
//!
//! Invariant: a place's count is the number of connections that entered it and have not left, and
//! a place that nobody has is free. A name whose place another one has gets none: its connection
//! keeps it itself, so names that are all different cost what they cost without this table.

use crate::link::record::Id;

const PLACE_COUNT: usize = 128;

/// A name's place in the table.
pub(super) type DevicePlace = Option<std::num::NonZeroU8>;

const _: () = assert!(PLACE_COUNT < u8::MAX as usize && size_of::<DevicePlace>() == 1);

/// See the module.
pub(super) struct Devices {
    /// With how many connections have the name.
    places: Vec<Option<(Id, u32)>>,
}

impl Default for Devices {
    fn default() -> Devices {
        Devices { places: vec![None; PLACE_COUNT] }
    }
}

impl Devices {
    /// One more connection has this name.
    pub fn enter(&mut self, name: &Id) -> DevicePlace {
        let index = index_of(name);
        let place = self.places.get_mut(index)?;
        match place {
            None => *place = Some((name.clone(), 1)),
            Some((other, count)) if other == name => *count = count.checked_add(1)?,
            Some(_) => return None,
        }
        u8::try_from(index + 1).ok().and_then(std::num::NonZeroU8::new)
    }

    /// A connection with the name in this place is gone.
    pub fn leave(&mut self, place: DevicePlace) {
        let Some(entry) = place.and_then(|place| self.places.get_mut(usize::from(place.get()) - 1))
        else {
            return;
        };
        if let Some((_, count)) = entry {
            *count -= 1;
        }
        entry.take_if(|(_, count)| *count == 0);
    }

    /// The name in this place.
    pub fn name(&self, place: DevicePlace) -> Option<&Id> {
        let entry = self.places.get(usize::from(place?.get()) - 1)?;
        entry.as_ref().map(|(name, _)| name)
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.places.iter().flatten().count()
    }
}

/// FNV-1a (Fowler, Noll and Vo 1991). Names that are made to meet only cost memory.
fn index_of(name: &str) -> usize {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash % PLACE_COUNT as u32) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The naive twin counts who has which name.
        #[test]
        fn a_place_is_a_name_as_long_as_somebody_has_it(
            steps in proptest::collection::vec((any::<bool>(), 0..400_u32), 1..600),
        ) {
            let mut devices = Devices::default();
            let mut holders: Vec<(Id, DevicePlace)> = Vec::new();
            for (enters, number) in steps {
                if enters || holders.is_empty() {
                    let name: Id = format!("device-{number}").into();
                    let place = devices.enter(&name);
                    holders.push((name, place));
                } else {
                    let (_, place) = holders.swap_remove(number as usize % holders.len());
                    devices.leave(place);
                }
                let mut kept = BTreeMap::new();
                for (name, place) in holders.iter().filter(|(_, place)| place.is_some()) {
                    prop_assert_eq!(devices.name(*place), Some(name));
                    kept.insert(name.clone(), *place);
                }
                prop_assert_eq!(devices.count(), kept.len());
            }
        }
    }

    #[test]
    fn a_name_whose_place_is_taken_gets_none_until_it_is_free() {
        let mut devices = Devices::default();
        let first: Id = "device-0".into();
        let met = (1..).map(|number| Id::from(format!("device-{number}")));
        let second = met.into_iter().find(|name| index_of(name) == index_of(&first)).expect("one");
        let place = devices.enter(&first);
        assert!(place.is_some());
        assert_eq!(devices.enter(&second), None);
        assert_eq!(devices.enter(&first), place);
        devices.leave(place);
        assert_eq!(devices.enter(&second), None);
        devices.leave(place);
        assert_eq!(devices.enter(&second), place);
        assert_eq!(devices.name(place), Some(&second));
    }
}
