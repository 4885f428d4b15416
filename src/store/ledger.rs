//! The ledger: per conversation a hash chain over its messages, kept beside the index's rows.
//!
//! h(n) = SHA-256(h(n-1) || seq || mid || length || SHA-256(body)), integers little endian, h(0)
//! zeros. A checksum finds what happened to bytes; the chain says that the messages of a
//! conversation are those that were accepted, all of them, in their order. Nothing shows its hashes
//! outside yet: whoever rewrites log and index together is not found out by it.
//!
//! Kept are the hash of each conversation's head, and every [`LINK_DISTANCE`] messages a link.
//! The chain has a position of its own: an index that was written before there was a ledger gets
//! its chain from the log when it is next opened ([`Ledger::chained_lsn`]).

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

use super::index::{Change, Index, IndexFault, Keyspace};
use super::rows;
use crate::link::record::Record;
use crate::link::wire::{Wire, wire_struct};

/// Messages between two links of one conversation. A link for each would cost a row for each, and
/// which record is wrong its checksum in the row says.
pub const LINK_DISTANCE: u64 = 64;
/// Conversations whose chain heads are kept in memory; more cost a read of the index each.
const CACHE_COUNT_MAX: usize = 65_536;
/// The row with the chain's position; no conversation has an empty key.
const POSITION_KEY: &[u8] = b"";

/// What stands for the body of a message that a repair gave up: no body is as long.
const LOST_SIZE: u64 = u64::MAX;

pub type Hash = [u8; 32];

wire_struct! {
    /// A SHA-256 in a row.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct StoredHash {
        pub first: u64,
        pub second: u64,
        pub third: u64,
        pub fourth: u64,
    }
}

impl From<Hash> for StoredHash {
    fn from(hash: Hash) -> StoredHash {
        let part = |index: usize| {
            let bytes = hash[index * 8..][..8].try_into().expect("sliced with that size");
            u64::from_le_bytes(bytes)
        };
        StoredHash { first: part(0), second: part(1), third: part(2), fourth: part(3) }
    }
}

impl From<StoredHash> for Hash {
    fn from(stored: StoredHash) -> Hash {
        let mut hash = [0; 32];
        let parts = [stored.first, stored.second, stored.third, stored.fourth];
        for (bytes, part) in hash.chunks_exact_mut(8).zip(parts) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        hash
    }
}

wire_struct! {
    /// How far the chains of an index reach.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Reach {
        /// Everything up to here is in them.
        pub lsn: u64,
        /// As far as the rows. Not so while they are made for a log that was there before.
        pub is_whole: bool,
    }
}

wire_struct! {
    /// The chain of a conversation up to its head.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Chain {
        /// The message that it begins with: 1, unless what was before it had gone already.
        pub first: u64,
        /// The last message in it; 0: none.
        pub seq: u64,
        pub hash: StoredHash,
    }
}

impl Chain {
    /// The chain with one more message. What begins anew, or behind a gap, begins at zeros.
    pub fn with(self, link: &Link) -> Chain {
        let goes_on = link.seq > 1 && self.seq + 1 == link.seq;
        let (first, before) = if goes_on { (self.first, self.hash) } else { Default::default() };
        let first = if goes_on { first } else { link.seq };
        Chain { first, seq: link.seq, hash: link.after(&before.into()).into() }
    }
}

/// What the chain takes of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub seq: u64,
    pub mid: u64,
    size: u64,
    body: Hash,
}

impl Link {
    /// Of a record, with the conversation; `None`: it is no message.
    pub fn of(record: &Record) -> Option<(&str, Link)> {
        match record {
            Record::Message { message }
            | Record::Group { message, .. }
            | Record::Channel { message, .. } => {
                let body = message.body.bytes();
                let (size, body) = (body.len() as u64, Sha256::digest(body).into());
                Some((&message.convo, Link { seq: message.seq, mid: message.mid, size, body }))
            }
            Record::Lost { message: Some(lost) } => {
                let (size, body) = (LOST_SIZE, [0; 32]);
                Some((&lost.convo, Link { seq: lost.seq, mid: lost.mid, size, body }))
            }
            _ => None,
        }
    }

    fn after(&self, before: &Hash) -> Hash {
        let mut hash = Sha256::new();
        hash.update(before);
        for number in [self.seq, self.mid, self.size] {
            hash.update(number.to_le_bytes());
        }
        hash.update(self.body);
        hash.finalize().into()
    }
}

/// Rows of the chain as the log of a stretch makes them; see [`Ledger::changes`].
#[derive(Debug, Default)]
pub struct Stretch {
    links: Vec<(String, Link)>,
}

impl Stretch {
    /// The next record.
    pub fn note(&mut self, record: &Record) {
        self.links.extend(Link::of(record).map(|(convo, link)| (convo.to_owned(), link)));
    }
}

/// The chains of an index. See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    chained_lsn: u64,
    heads: HashMap<String, Chain>,
}

impl Ledger {
    pub fn open(index: &impl Index) -> Result<Ledger, IndexFault> {
        let chained_lsn = reach(index)?.map_or(0, |reach| reach.lsn);
        Ok(Ledger { chained_lsn, heads: HashMap::new() })
    }

    /// Everything up to here is in the chains.
    pub fn chained_lsn(&self) -> u64 {
        self.chained_lsn
    }

    /// The rows that the records from `first_lsn` to `last_lsn` make; none while something before
    /// them is not in the chains. `applied_lsn`: how far the other rows reach.
    pub fn changes(
        &mut self,
        index: &impl Index,
        (first_lsn, last_lsn): (u64, u64),
        applied_lsn: u64,
        stretch: Stretch,
    ) -> Result<Vec<Change>, IndexFault> {
        if first_lsn > self.chained_lsn + 1 {
            return Ok(Vec::new());
        }
        if self.heads.len() > CACHE_COUNT_MAX {
            self.heads.clear();
        }
        let mut rows = BTreeMap::new();
        for (convo, link) in stretch.links {
            let head = match self.heads.get_mut(&convo) {
                Some(head) => head,
                None => {
                    let stored = chain(index, &convo)?.unwrap_or_default();
                    self.heads.entry(convo.clone()).or_insert(stored)
                }
            };
            if link.seq <= head.seq && link.seq != 1 {
                continue;
            }
            *head = head.with(&link);
            note_rows(&convo, head, &mut rows);
        }
        self.chained_lsn = self.chained_lsn.max(last_lsn);
        let (lsn, is_whole) = (self.chained_lsn, self.chained_lsn == applied_lsn);
        let reach = Reach { lsn, is_whole };
        rows.insert((Keyspace::Chains, POSITION_KEY.to_vec()), reach.to_bytes());
        let change = |((keyspace, key), value)| Change { keyspace, key, value: Some(value) };
        Ok(rows.into_iter().map(change).collect())
    }
}

/// The rows that say of a chain where it stands.
pub fn note_rows(convo: &str, chain: &Chain, rows: &mut BTreeMap<(Keyspace, Vec<u8>), Vec<u8>>) {
    rows.insert((Keyspace::Chains, rows::conversation_key(convo)), chain.to_bytes());
    if chain.seq.is_multiple_of(LINK_DISTANCE) {
        rows.insert((Keyspace::Links, rows::message_key(convo, chain.seq)), chain.hash.to_bytes());
    }
}

/// How far the chains reach; `None`: the index is from before there were chains, or new.
pub fn reach(index: &impl Index) -> Result<Option<Reach>, IndexFault> {
    match index.get(Keyspace::Chains, POSITION_KEY)? {
        Some(value) => rows::decode(Keyspace::Chains, &value).map(Some),
        None => Ok(None),
    }
}

/// The row that says how far the chains reach.
pub fn reach_change(reach: Reach) -> Change {
    let (keyspace, key) = (Keyspace::Chains, POSITION_KEY.to_vec());
    Change { keyspace, key, value: Some(reach.to_bytes()) }
}

/// The chain of a conversation up to its head.
pub fn chain(index: &impl Index, convo: &str) -> Result<Option<Chain>, IndexFault> {
    match index.get(Keyspace::Chains, &rows::conversation_key(convo))? {
        Some(value) => rows::decode(Keyspace::Chains, &value).map(Some),
        None => Ok(None),
    }
}

/// The changes after which the chains are made anew from the log, from its beginning.
pub fn forget(index: &impl Index) -> Result<Vec<Change>, IndexFault> {
    let mut changes = Vec::new();
    for keyspace in [Keyspace::Chains, Keyspace::Links] {
        index.scan(keyspace, &[], &[], &mut |row, _| {
            changes.push(Change { keyspace, key: row.to_vec(), value: None });
            true
        })?;
    }
    changes.push(reach_change(Reach::default()));
    Ok(changes)
}

/// Whether a row of `Keyspace::Chains` can be read.
pub fn is_chain_row(row: &[u8], value: &[u8]) -> bool {
    match row {
        POSITION_KEY => rows::decode::<Reach>(Keyspace::Chains, value).is_ok(),
        _ => rows::decode::<Chain>(Keyspace::Chains, value).is_ok() && rows::is_name(row),
    }
}

/// Whether a row of `Keyspace::Links` can be read.
pub fn is_link_row(row: &[u8], value: &[u8]) -> bool {
    let seq = row.split_last_chunk::<8>();
    rows::decode::<StoredHash>(Keyspace::Links, value).is_ok()
        && seq.is_some_and(|(convo, _)| rows::is_name(convo))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::MemoryIndex;
    use crate::store::tests::harness::message_record;

    fn chained(ledger: &mut Ledger, index: &mut MemoryIndex, seqs: std::ops::Range<u64>) {
        let mut stretch = Stretch::default();
        seqs.clone().for_each(|seq| stretch.note(&message_record("g", seq, 10)));
        let extent = (seqs.start, seqs.end - 1);
        let changes = ledger.changes(index, extent, extent.1, stretch).expect("in memory");
        index.apply(changes).expect("in memory");
    }

    #[test]
    fn a_chain_does_not_depend_on_how_it_was_made() {
        let mut once = MemoryIndex::default();
        chained(&mut Ledger::default(), &mut once, 1..200);
        let mut piecewise = MemoryIndex::default();
        for first in 1..200 {
            // Each piece is of a life of its own, and the one before it is applied again.
            let mut ledger = Ledger::open(&piecewise).expect("in memory");
            chained(&mut ledger, &mut piecewise, first.max(2) - 1..first + 1);
        }
        let chain_of = |index: &MemoryIndex| chain(index, "g").expect("in memory");
        assert_eq!(chain_of(&once), chain_of(&piecewise));
        assert_eq!(chain_of(&once).map(|chain| (chain.first, chain.seq)), Some((1, 199)));
        let mut links = Vec::new();
        once.scan(Keyspace::Links, &[], &[], &mut |row, value| {
            assert_eq!(piecewise.get(Keyspace::Links, row).expect("in memory").unwrap(), value);
            links.push(row.to_vec());
            true
        })
        .expect("in memory");
        assert_eq!(links, [64, 128, 192].map(|seq| rows::message_key("g", seq)));
    }

    #[test]
    fn every_field_is_in_the_hash_and_the_definition_is_the_documented_one() {
        let link = Link { seq: 1, mid: 2, size: 3, body: [4; 32] };
        let mut bytes = vec![9; 32];
        [1u64, 2, 3].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend([4; 32]);
        let hash: Hash = Sha256::digest(&bytes).into();
        assert_eq!(link.after(&[9; 32]), hash);
        assert_eq!(Hash::from(StoredHash::from(hash)), hash);
        let others = [
            Link { seq: 2, ..link.clone() },
            Link { mid: 3, ..link.clone() },
            Link { size: 4, ..link.clone() },
            Link { body: [5; 32], ..link.clone() },
        ];
        assert!(others.iter().all(|other| other.after(&[9; 32]) != hash));
        assert_ne!(link.after(&[8; 32]), hash);
    }

    #[test]
    fn nothing_is_chained_behind_a_gap() {
        let (mut ledger, mut index) = (Ledger::default(), MemoryIndex::default());
        chained(&mut ledger, &mut index, 5..9);
        assert_eq!((ledger.chained_lsn(), chain(&index, "g").expect("in memory")), (0, None));
    }
}
