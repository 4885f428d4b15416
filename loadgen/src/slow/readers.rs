//! What members of the crowd heard, against what their writers were told.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;

use super::Books;
use crate::accounting::Accounts;
use crate::crowd::Hearing;
use crate::messages::SIZE_MIN;

/// The readers of one thread.
pub struct Readers {
    first_position: usize,
    readers: Vec<Reader>,
    books: Arc<Books>,
    accounts: Accounts,
}

#[derive(Default)]
struct Reader {
    convo: String,
    /// By place, from 1: the number of the message that was there, plus one; 0: none yet.
    numbers: Vec<u64>,
    /// What was heard before this connection may come again on it: it was not acknowledged.
    may_repeat_upto: usize,
    /// The last place on this connection.
    last: usize,
}

#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
    #[serde(borrow, default)]
    convo: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    seq: Option<usize>,
    #[serde(borrow, default)]
    body: Option<Cow<'a, str>>,
}

impl Readers {
    pub fn new(positions: Range<usize>, books: Arc<Books>) -> Readers {
        let reader = || Reader::default();
        Readers {
            first_position: positions.start,
            readers: std::iter::repeat_with(reader).take(positions.len()).collect(),
            books,
            accounts: Accounts::default(),
        }
    }

    fn heard(&mut self, slot: usize, incoming: &Incoming) {
        let number = number_of(self.first_position + slot, incoming);
        let (Some(number), Some(seq @ 1..)) = (number, incoming.seq) else {
            self.accounts.corrupted += 1;
            return;
        };
        let reader = &mut self.readers[slot];
        reader.convo = incoming.convo.as_deref().unwrap_or_default().to_owned();
        let (last, accounts) = (reader.last, &mut self.accounts);
        // A connection begins where the device's cursor stands; after that it skips nothing.
        accounts.gaps += (seq.saturating_sub(last + 1) as u64) * u64::from(last > 0);
        accounts.reordered += u64::from(seq < last);
        reader.last = last.max(seq);
        if reader.numbers.len() <= seq {
            reader.numbers.resize(seq + 1, 0);
        }
        let place = &mut reader.numbers[seq];
        match *place {
            0 => {
                *place = number + 1;
                accounts.delivered += 1;
                self.books.heard.fetch_add(1, Ordering::Relaxed);
            }
            before if before != number + 1 => accounts.corrupted += 1,
            _ => accounts.duplicated += u64::from(seq > reader.may_repeat_upto || seq == last),
        }
    }

    /// Adds what was heard wrongly, and what was told to a writer and never heard.
    pub fn settle(mut self, accounts: &mut Accounts) {
        let told = self.books.told.lock().expect("nobody panics while holding it");
        let mine = self.first_position..self.first_position + self.readers.len();
        for (reader, seqs) in told.iter().filter(|(reader, _)| mine.contains(reader)) {
            let numbers = &self.readers[reader - self.first_position].numbers;
            for (number, seq) in (0_u64..).zip(seqs).filter(|(_, seq)| **seq > 0) {
                match numbers.get(*seq as usize).copied().unwrap_or_default() {
                    0 => self.accounts.lost += 1,
                    heard => self.accounts.corrupted += u64::from(heard != number + 1),
                }
            }
        }
        accounts.add(&self.accounts);
    }
}

impl Hearing for Readers {
    fn opened(&mut self, slot: usize) {
        let reader = &mut self.readers[slot];
        (reader.may_repeat_upto, reader.last) = (reader.numbers.len(), 0);
    }

    /// Acknowledges all at the end of each catching up.
    fn message(&mut self, slot: usize, payload: &[u8]) -> Option<Vec<u8>> {
        let Ok(incoming) = serde_json::from_slice::<Incoming>(payload) else {
            self.accounts.corrupted += 1;
            return None;
        };
        match incoming.t.as_ref() {
            "msg" => self.heard(slot, &incoming),
            "synced" => {
                let Reader { convo, last, .. } = &self.readers[slot];
                return (*last > 0).then(|| {
                    format!(r#"{{"t":"ack","convo":"{convo}","seq":{last},"kind":"delivered"}}"#)
                        .into_bytes()
                });
            }
            _ => {}
        }
        None
    }
}

/// The number of a message to this reader, as its id and its body say.
fn number_of(position: usize, incoming: &Incoming) -> Option<u64> {
    let (reader, number) = incoming.id.as_deref()?.split_once('-')?;
    let (reader, number): (usize, u64) = (reader.parse().ok()?, number.parse().ok()?);
    let head = incoming.body.as_deref()?.get(..SIZE_MIN)?;
    let is_whole = reader == position && u64::from_str_radix(head, 16) == Ok(number);
    is_whole.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(readers: &mut Readers, reader: usize, number: u64, seq: u64) {
        let body = format!("{number:016x}x");
        let text = format!(
            r#"{{"t":"msg","convo":"c","id":"{reader}-{number}","seq":{seq},"body":"{body}"}}"#
        );
        assert_eq!(readers.message(reader - 5, text.as_bytes()), None);
    }

    fn books(told: Vec<(usize, Vec<u64>)>) -> Arc<Books> {
        let books = Books::default();
        *books.told.lock().expect("whole") = told;
        Arc::new(books)
    }

    #[test]
    fn a_whole_catching_up_after_a_cut_is_good_and_acknowledged() {
        let books = books(vec![(5, vec![1, 2, 0, 3]), (6, vec![])]);
        let mut readers = Readers::new(5..7, Arc::clone(&books));
        readers.opened(0);
        hear(&mut readers, 5, 0, 1);
        readers.opened(0);
        hear(&mut readers, 5, 0, 1);
        hear(&mut readers, 5, 1, 2);
        hear(&mut readers, 5, 3, 3);
        let ack = readers.message(0, br#"{"t":"synced","convos":{}}"#).expect("an ack");
        let ack = String::from_utf8(ack).expect("text");
        assert_eq!(ack, r#"{"t":"ack","convo":"c","seq":3,"kind":"delivered"}"#);
        let mut accounts = Accounts::default();
        readers.settle(&mut accounts);
        assert_eq!(accounts, Accounts { delivered: 3, ..Accounts::default() });
        assert_eq!(books.heard.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_is_lost_repeated_skipped_or_foreign_is_noticed() {
        let mut readers = Readers::new(5..6, books(vec![(5, vec![1, 2, 3, 4])]));
        readers.opened(0);
        hear(&mut readers, 5, 0, 1);
        hear(&mut readers, 5, 0, 1);
        hear(&mut readers, 5, 2, 3);
        hear(&mut readers, 5, 9, 4);
        assert_eq!(readers.message(0, br#"{"t":"msg","id":"6-0","seq":1,"body":""}"#), None);
        let mut accounts = Accounts::default();
        readers.settle(&mut accounts);
        let seen = (accounts.duplicated, accounts.gaps, accounts.corrupted, accounts.lost);
        assert_eq!(seen, (1, 1, 2, 1));
    }
}
