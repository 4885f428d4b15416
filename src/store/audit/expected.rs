//! The index as the log says it should be, against the index as it is.
//!
//! Rows of which there is one per entity (a cursor, a member, a head) are kept as hashes until the
//! end. Rows of which there is one per message are looked up as their records come by; what is
//! there and should not be shows in a sum over all rows. So the memory goes with conversations,
//! devices and members, and not with messages.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Finding, Findings};
use crate::store::index::{Change, Index, IndexFault, Keyspace};
use crate::store::rows;

/// Rows that there is one of per message.
pub const BY_MESSAGE: [Keyspace; 3] = [Keyspace::Messages, Keyspace::Dedup, Keyspace::Links];

/// The record that put a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub segment: u64,
    pub offset: u64,
    pub lsn: u64,
}

type Key = (Keyspace, Vec<u8>);

/// See the module.
#[derive(Default)]
pub struct Expected {
    entities: BTreeMap<Key, (u64, Origin)>,
    /// Rows per message that differed when their record came by, or were to be removed.
    pending: BTreeMap<Key, (Option<u64>, Origin)>,
    sums: BTreeMap<Keyspace, u64>,
    pub rows: u64,
}

impl Expected {
    /// All rows of one per entity whose keys begin with these names are to be gone.
    pub fn forget(&mut self, keyspace: Keyspace, names: &[&str]) {
        let prefix = rows::key(names);
        let first = (keyspace, prefix.clone());
        let gone = self.entities.range(first..).map(|(at, _)| at.clone());
        let gone = gone.take_while(|(of, key)| *of == keyspace && key.starts_with(&prefix));
        let gone: Vec<Key> = gone.collect();
        for at in gone {
            self.entities.remove(&at);
        }
    }

    /// A record makes this change.
    pub fn note(
        &mut self,
        change: Change,
        origin: Origin,
        index: &impl Index,
    ) -> Result<(), IndexFault> {
        let Change { keyspace, key, value } = change;
        if keyspace == Keyspace::Meta && key == rows::STATE_KEY {
            return Ok(());
        }
        let at = (keyspace, key);
        let wanted = value.map(|value| hash_of(&at.1, &value));
        if !BY_MESSAGE.contains(&keyspace) {
            match wanted {
                Some(hash) => self.entities.insert(at, (hash, origin)),
                None => self.entities.remove(&at),
            };
            return Ok(());
        }
        let there = index.get(keyspace, &at.1)?.map(|value| hash_of(&at.1, &value));
        let sum = self.sums.entry(keyspace).or_default();
        match self.pending.get(&at) {
            Some((before, _)) => *sum = sum.wrapping_sub(before.unwrap_or(0)),
            // It was there as wanted until now, and counted.
            None if wanted.is_none() => *sum = sum.wrapping_sub(there.unwrap_or(0)),
            None => {}
        }
        *sum = sum.wrapping_add(wanted.unwrap_or(0));
        if wanted != there || wanted.is_none() || self.pending.contains_key(&at) {
            self.pending.insert(at, (wanted, origin));
        }
        Ok(())
    }

    /// Compares everything; `skip`: these rows are not compared.
    pub fn finish(
        mut self,
        index: &impl Index,
        skip: &[Keyspace],
        findings: &mut Findings,
    ) -> Result<u64, IndexFault> {
        for ((keyspace, key), (wanted, origin)) in std::mem::take(&mut self.pending) {
            let there = index.get(keyspace, &key)?.map(|value| hash_of(&key, &value));
            if there != wanted {
                findings.push(finding(keyspace, &key, wanted.is_some(), there.is_some(), origin));
            }
        }
        for keyspace in Keyspace::ALL {
            if skip.contains(&keyspace) {
                continue;
            }
            if BY_MESSAGE.contains(&keyspace) {
                self.compare_sum(keyspace, index, findings)?;
            } else {
                self.compare_entities(keyspace, index, findings)?;
            }
        }
        Ok(self.rows)
    }

    fn compare_sum(
        &mut self,
        keyspace: Keyspace,
        index: &impl Index,
        findings: &mut Findings,
    ) -> Result<(), IndexFault> {
        let (mut sum, mut rows) = (0u64, 0);
        index.scan(keyspace, &[], &[], &mut |key, value| {
            sum = sum.wrapping_add(hash_of(key, value));
            rows += 1;
            true
        })?;
        self.rows += rows;
        let wanted = self.sums.get(&keyspace).copied().unwrap_or(0);
        if sum != wanted {
            let what = format!("the rows of {keyspace:?} are not those that the log makes");
            findings.push(Finding { what, ..Finding::default() });
        }
        Ok(())
    }

    fn compare_entities(
        &mut self,
        keyspace: Keyspace,
        index: &impl Index,
        findings: &mut Findings,
    ) -> Result<(), IndexFault> {
        let from = (keyspace, Vec::new());
        let ours = self.entities.range(from..).take_while(|((at, _), _)| *at == keyspace);
        let mut ours = ours.peekable();
        let mut rows = 0;
        index.scan(keyspace, &[], &[], &mut |key, value| {
            // How far the index itself has come is no record's.
            if keyspace == Keyspace::Meta && key == rows::STATE_KEY {
                return true;
            }
            rows += 1;
            while let Some(((_, wanted), (_, origin))) =
                ours.next_if(|((_, wanted), _)| wanted.as_slice() < key)
            {
                findings.push(finding(keyspace, wanted, true, false, *origin));
            }
            match ours.next_if(|((_, wanted), _)| wanted.as_slice() == key) {
                Some((_, (hash, _))) if *hash == hash_of(key, value) => {}
                Some((_, (_, origin))) => {
                    findings.push(finding(keyspace, key, true, true, *origin));
                }
                None => findings.push(finding(keyspace, key, false, true, Origin::default())),
            }
            true
        })?;
        for ((_, wanted), (_, origin)) in ours {
            findings.push(finding(keyspace, wanted, true, false, *origin));
        }
        self.rows += rows;
        Ok(())
    }
}

fn finding(keyspace: Keyspace, key: &[u8], wanted: bool, there: bool, origin: Origin) -> Finding {
    let how = match (wanted, there) {
        (true, true) => "is not what the log says",
        (true, false) => "is missing",
        _ => "is of no record in the log",
    };
    let (names, seq) = super::names_of(keyspace, key);
    let what = format!("index: the row {keyspace:?} ({}) {how}", names.join(", "));
    let mut finding = Finding { what, seq, ..Finding::default() };
    finding.convo = super::conversation_of(keyspace, &names);
    if origin != Origin::default() {
        finding.segment = Some(origin.segment);
        finding.offset = Some(origin.offset);
        finding.lsn = Some(origin.lsn);
    }
    finding
}

fn hash_of(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    // 0 stands for a row that is not there.
    hasher.finish().max(1)
}
