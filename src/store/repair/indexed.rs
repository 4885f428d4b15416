//! What a repair asks of the index: whether its rows can be read, which messages were where the log
//! is lost, and which rows point to nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Loss, Witness};
use crate::link::record::LostMessage;
use crate::store::device::LogReader;
use crate::store::index::{Change, Index, IndexFault, Keyspace};
use crate::store::log_format::checksum_of;
use crate::store::rows::{self, Location};

/// What the index says about the log; an error if any row cannot be read.
pub fn witness(index: &impl Index) -> Result<Witness, IndexFault> {
    let state = rows::load_state(index)?;
    for keyspace in Keyspace::ALL {
        let mut broken = false;
        index.scan(keyspace, &[], &[], &mut |row, value| {
            broken = !rows::is_row(keyspace, row, value);
            !broken
        })?;
        if broken {
            return Err(IndexFault::Row(keyspace));
        }
    }
    let log_id = (state.applied_lsn > 0).then_some(state.log_id);
    Ok(Witness { log_id, applied_lsn: state.applied_lsn, epoch: state.epoch })
}

/// The messages that the index knows in each loss, in the order of the log.
pub fn lost_messages(
    index: &impl Index,
    losses: &[Loss],
) -> Result<Vec<Vec<LostMessage>>, IndexFault> {
    let mut found = vec![BTreeMap::new(); losses.len()];
    index.scan(Keyspace::Messages, &[], &[], &mut |row, value| {
        if let Some((convo, seq, location)) = rows::message_row(row, value) {
            let Location { segment, offset, .. } = location;
            if let Some(loss) = losses.iter().position(|loss| loss.covers(segment, offset)) {
                found[loss].insert((segment, offset), (convo.to_owned(), seq));
            }
        }
        true
    })?;
    let convos = found.iter().flat_map(BTreeMap::values).map(|(convo, _): &(String, u64)| convo);
    let mut accepted = BTreeMap::new();
    for convo in convos.collect::<BTreeSet<_>>() {
        rows::visit_accepted(index, convo, &mut |message| {
            accepted.insert((convo.clone(), message.seq), message);
        })?;
    }
    let message = |place: &(String, u64)| accepted.get(place).cloned();
    let messages = found.iter().map(|found| found.values().filter_map(message).collect());
    Ok(messages.collect())
}

/// Changes that take away the rows of messages which are lost, or which the log does not hold where
/// they say. (A lost commit's bytes may be there in part; but its checksum vouches for none.)
pub fn stale_rows<R: LogReader>(
    index: &impl Index,
    losses: &[Loss],
    reader: &mut R,
) -> Result<Vec<Change>, IndexFault> {
    let mut changes = Vec::new();
    index.scan(Keyspace::Messages, &[], &[], &mut |row, value| {
        let there = rows::message_row(row, value).is_some_and(|(_, _, location)| {
            let Location { segment, offset, .. } = location;
            if losses.iter().any(|loss| loss.covers(segment, offset)) {
                return false;
            }
            let mut bytes = vec![0; location.size as usize];
            let read = reader.read(location.segment, location.offset, &mut bytes);
            read.is_ok() && checksum_of(&bytes) == location.checksum
        });
        if !there {
            let (keyspace, key) = (Keyspace::Messages, row.to_vec());
            changes.push(Change { keyspace, key, value: None });
        }
        true
    })?;
    Ok(changes)
}
