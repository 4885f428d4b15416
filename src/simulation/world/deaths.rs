//! What the ledger knows of service time and dead letters: by the records alone, with none of the
//! product's logic.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Ledger, Verdict};
use crate::link::message::Watermark;
use crate::link::record::{ConversationName, Failure, Id, Letter};

/// See the module.
#[derive(Default)]
pub struct Deaths {
    /// In milliseconds of service.
    pub age_ms: u64,
    /// Since the world began.
    pub monotonic_us: u64,
    /// Positions of the records of the time, and what they say.
    times: Vec<(u64, u64)>,
    /// By user and conversation: up to where the inbox is empty.
    floors: BTreeMap<(Id, ConversationName), u64>,
    /// By conversation and seq: its sender and id, once it is dead for anybody.
    failed: BTreeMap<(ConversationName, u64), (Id, Id)>,
    /// Letters altogether.
    pub letter_count: u64,
}

impl Ledger {
    /// Up to where the inbox of a user ends in the dead letters.
    pub fn floor(&self, user: &str, convo: &str) -> u64 {
        self.deaths.floors.get(&(user.into(), convo.into())).copied().unwrap_or(0)
    }

    /// The messages of a user that are dead for somebody else.
    pub fn failed_of(&self, user: &str) -> BTreeSet<(String, u64)> {
        let own =
            self.deaths.failed.iter().filter(|(_, (from, id))| **from == *user && !id.is_empty());
        own.map(|((convo, seq), _)| (convo.to_string(), *seq)).collect()
    }

    /// A sender hears `failed`: it is durable, and his.
    pub fn check_failed(&self, user: &str, convo: &str, seq: u64, id: &str) -> Verdict {
        match self.deaths.failed.get(&(convo.into(), seq)) {
            Some((from, of)) if **from == *user && **of == *id => Ok(()),
            known => Err(format!("{user} hears that {convo} {seq} {id} failed: {known:?}")),
        }
    }

    pub(super) fn take_service_time(&mut self, lsn: u64, ms: u64) -> Verdict {
        let before = self.deaths.times.last().map_or(0, |(_, ms)| *ms);
        if ms <= before || ms > self.deaths.monotonic_us / 1_000 {
            let now_us = self.deaths.monotonic_us;
            return Err(format!("service time goes from {before} to {ms} ms at {now_us} us"));
        }
        self.deaths.times.push((lsn, ms));
        Ok(())
    }

    /// Letters are all that is left of an inbox up to a seq, and every one is old enough.
    pub(super) fn take_dead(
        &mut self,
        (user, convo): (&Id, &ConversationName),
        last: u64,
        at: u64,
        letters: &[Letter],
    ) -> Verdict {
        let reached = self.watermark(user, convo, Watermark::Delivered);
        let (joined, _) = self.range(user, convo);
        let first = reached.max(self.floor(user, convo)).max(joined - 1) + 1;
        if last < first {
            return Err(format!("{user} has {convo} up to {first}, and it dies up to {last}"));
        }
        let mut expected = Vec::new();
        for seq in first..=last {
            let (lsn, message) = self.logged(convo, seq).ok_or(format!("no {convo} {seq}"))?;
            let since = self.deaths.times.iter().find(|(time_lsn, _)| *time_lsn > lsn);
            let is_old = since.is_some_and(|(_, ms)| ms + self.deaths.age_ms <= at);
            if !is_old {
                return Err(format!("{convo} {seq} dies early for {user}: {since:?}, at {at}"));
            }
            if message.from != *user {
                expected.push((seq, message.from.clone(), message.id.clone()));
            }
        }
        let said = letters.iter().map(|it| (it.seq, it.from.clone(), it.id.clone()));
        if said.collect::<Vec<_>>() != expected {
            return Err(format!("{user} loses {first}..={last} of {convo}: {letters:?}"));
        }
        for letter in letters {
            let place = (convo.clone(), letter.seq);
            if letter.is_news == self.deaths.failed.contains_key(&place) {
                return Err(format!("{convo} {letter:?} is news: {}", letter.is_news));
            }
            self.deaths.failed.insert(place, (letter.from.clone(), letter.id.clone()));
        }
        self.deaths.letter_count += letters.len() as u64;
        self.deaths.floors.insert((user.clone(), convo.clone()), last);
        self.check_position(convo)
    }

    pub(super) fn take_replayed(
        &mut self,
        user: &Id,
        convo: &ConversationName,
        first: u64,
    ) -> Verdict {
        self.deaths.floors.insert((user.clone(), convo.clone()), first - 1);
        self.check_position(convo)
    }

    pub(super) fn check_told(&self, user: &Id, failures: &[Failure]) -> Verdict {
        failures.iter().try_for_each(|it| self.check_failed(user, &it.convo, it.seq, &it.id))
    }
}
