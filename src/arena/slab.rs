//! A fixed number of slots, each with a generation that tells its lives apart.
//!
//! Invariant: a key's generation equals its slot's only while the value put there under that key is
//! there. The generation rises when a value leaves, so a key that was given out before can name a
//! later value only after 2^32 lives of its slot.

use std::cell::Cell;

/// Names one value in one life of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub slot: u32,
    pub generation: u32,
}

/// Slots for at most `capacity` values; it refuses beyond, and never grows or moves.
pub struct Slab<T> {
    values: slab::Slab<T>,
    /// Outlives the values, which is why it is beside them. Zero pages until a slot is first freed.
    generations: Vec<u32>,
    /// Slots that were ever in use: those from the lowest up to this one.
    touched_count: usize,
    stale_count: Cell<u64>,
}

impl<T> Slab<T> {
    /// Takes the memory for `capacity` values, at most 2^32 - 1. The pages are touched as slots are
    /// first used, from the lowest.
    pub fn with_capacity(capacity: usize) -> Slab<T> {
        assert!(u32::try_from(capacity).is_ok(), "slots are 32 bits");
        Slab {
            values: slab::Slab::with_capacity(capacity),
            generations: vec![0; capacity],
            touched_count: 0,
            stale_count: Cell::new(0),
        }
    }

    /// A slab in the state of another one: its [`Slab::generations`], and its values, each in its
    /// slot. `None` when they do not fit `capacity`, or two have the same slot.
    pub fn restore(
        capacity: usize,
        mut generations: Vec<u32>,
        values: Vec<(u32, T)>,
    ) -> Option<Slab<T>> {
        let fits = values.iter().all(|(slot, _)| (*slot as usize) < capacity);
        if !fits || generations.len() > capacity {
            return None;
        }
        generations.resize(capacity, 0);
        let count = values.len();
        let touched_count = values.iter().map(|(slot, _)| *slot as usize + 1).max().unwrap_or(0);
        let slots = values.into_iter().map(|(slot, value)| (slot as usize, value));
        let mut values: slab::Slab<T> = slots.collect();
        if values.len() != count {
            return None;
        }
        values.reserve(capacity - values.len());
        Some(Slab { values, generations, touched_count, stale_count: Cell::new(0) })
    }

    /// Of each slot, up to the last one that has been in use.
    pub fn generations(&self) -> &[u32] {
        let used = self.generations.iter().rposition(|generation| *generation != 0);
        let taken = self.values.iter().map(|(slot, _)| slot).last();
        let end = used.max(taken).map_or(0, |slot| slot + 1);
        &self.generations[..end]
    }

    /// `None`, and the value is dropped, when every slot is taken.
    pub fn insert(&mut self, value: T) -> Option<Key> {
        self.insert_with(|_| value)
    }

    /// Like [`Slab::insert`], for values that need to know their key. `None` when full.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        let vacant = self.values.vacant_entry();
        let slot = vacant.key();
        let key = Key { slot: slot as u32, generation: self.generations[slot] };
        vacant.insert(make(key));
        self.touched_count = self.touched_count.max(slot + 1);
        Some(key)
    }

    /// `None` when the value of this key is gone; counted.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = key.slot as usize;
        let current = self.generations.get(slot) == Some(&key.generation);
        let value = self.values.get(slot).filter(|_| current);
        count_stale(&self.stale_count, value.is_none());
        value
    }

    /// `None` when the value of this key is gone; counted.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = key.slot as usize;
        let current = self.generations.get(slot) == Some(&key.generation);
        let value = self.values.get_mut(slot).filter(|_| current);
        count_stale(&self.stale_count, value.is_none());
        value
    }

    /// Takes the value out and ends this life of the slot. `None` when it is gone already; counted.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        #[cfg(test)]
        if crate::simulation::planted::Planted::ReuseSlot.is_planted() {
            return self.values.try_remove(key.slot as usize);
        }
        let generation = &mut self.generations[key.slot as usize];
        *generation = generation.wrapping_add(1);
        self.values.try_remove(key.slot as usize)
    }

    /// The key of the value that is in `slot` now. Not counted.
    pub fn key_of(&self, slot: u32) -> Option<Key> {
        let taken = self.values.contains(slot as usize);
        taken.then(|| Key { slot, generation: self.generations[slot as usize] })
    }

    /// Every value with its key, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.values.iter().map(|(slot, value)| {
            let generation = self.generations[slot];
            let slot = slot as u32;
            (Key { slot, generation }, value)
        })
    }

    /// Every value with its key, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        let generations = &self.generations;
        self.values.iter_mut().map(|(slot, value)| {
            let generation = generations[slot];
            let slot = slot as u32;
            (Key { slot, generation }, value)
        })
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    pub fn capacity(&self) -> usize {
        self.generations.len()
    }

    /// Slots that were ever in use, from the lowest: so many have memory.
    pub fn touched_count(&self) -> usize {
        self.touched_count
    }

    /// How often a key was used whose value was gone.
    pub fn stale_count(&self) -> u64 {
        self.stale_count.get()
    }
}

fn count_stale(stale_count: &Cell<u64>, stale: bool) {
    stale_count.set(stale_count.get() + u64::from(stale));
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_restored_slab_goes_on_where_it_was() {
        let mut slab = Slab::with_capacity(4);
        let keys = ['a', 'b', 'c'].map(|value| slab.insert(value).expect("room"));
        slab.remove(keys[1]);
        let values = || slab.iter().map(|(key, value)| (key.slot, *value)).collect::<Vec<_>>();
        let generations = slab.generations().to_vec();
        assert_eq!(generations, [0, 1, 0]);
        let mut again = Slab::restore(4, generations.clone(), values()).expect("it fits");
        assert_eq!((again.get(keys[0]), again.get(keys[2])), (Some(&'a'), Some(&'c')));
        assert_eq!(again.get(keys[1]), None);
        let next = again.insert('d').expect("room");
        assert_eq!((next.slot, next.generation), (1, 1));
        again.insert('e').expect("room");
        assert!(again.is_full());
        assert!(Slab::restore(2, generations.clone(), values()).is_none());
        assert!(Slab::restore(4, generations, vec![(0, 'a'), (0, 'b')]).is_none());
    }

    #[test]
    fn a_full_slab_refuses_and_does_not_grow() {
        let mut slab = Slab::with_capacity(2);
        let first = slab.insert('a').expect("two slots are free");
        slab.insert('b').expect("one slot is free");
        assert!(slab.is_full());
        assert_eq!(slab.insert('c'), None);
        assert_eq!(slab.remove(first), Some('a'));
        let third = slab.insert('c').expect("one slot is free");
        assert_eq!((third.slot, third.generation), (first.slot, 1));
        assert_eq!((slab.get(first), slab.stale_count()), (None, 1));
        assert_eq!(slab.capacity(), 2);
    }

    #[test]
    fn a_key_of_a_vacant_slot_is_stale_even_when_its_generation_fits() {
        let mut slab = Slab::<u8>::with_capacity(2);
        let guessed = Key { slot: 1, generation: 0 };
        assert_eq!(slab.remove(guessed), None);
        assert_eq!(slab.key_of(1), None);
        let beyond = Key { slot: 9, generation: 0 };
        assert_eq!(slab.get_mut(beyond), None);
        assert_eq!(slab.stale_count(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16),
        Remove(prop::sample::Index),
        Get(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u16>().prop_map(Step::Insert),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
            2 => any::<prop::sample::Index>().prop_map(Step::Get),
        ]
    }

    proptest! {
        /// The naive twin never forgets a key: a map from every key ever given to its value.
        #[test]
        fn behaves_as_a_map_that_never_reuses_keys(steps in prop::collection::vec(step(), 1..200)) {
            let mut slab = Slab::with_capacity(8);
            let mut twin = BTreeMap::<Key, u16>::new();
            let mut given = Vec::<Key>::new();
            let mut stale_count = 0;
            for step in steps {
                match step {
                    Step::Insert(value) => match slab.insert(value) {
                        Some(key) => {
                            prop_assert!(!given.contains(&key), "{key:?} was given twice");
                            given.push(key);
                            twin.insert(key, value);
                        }
                        None => prop_assert_eq!(twin.len(), 8),
                    },
                    Step::Remove(index) if !given.is_empty() => {
                        let key = *index.get(&given);
                        stale_count += u64::from(!twin.contains_key(&key));
                        prop_assert_eq!(slab.remove(key), twin.remove(&key));
                    }
                    Step::Get(index) if !given.is_empty() => {
                        let key = *index.get(&given);
                        stale_count += u64::from(!twin.contains_key(&key));
                        prop_assert_eq!(slab.get(key), twin.get(&key));
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.len(), twin.len());
                prop_assert_eq!(slab.stale_count(), stale_count);
            }
            let found: BTreeSet<_> = slab.iter().map(|(key, value)| (key, *value)).collect();
            prop_assert_eq!(found, twin.into_iter().collect::<BTreeSet<_>>());
        }
    }
}
