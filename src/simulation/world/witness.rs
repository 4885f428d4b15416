//! What all clients were told, compared with each other and with the durable log as they hear it.

use std::collections::BTreeMap;

use super::ledger::{Ledger, Verdict};
use crate::link::message::Watermark;
use crate::link::record::Body;

/// The first answer to a send.
type Answer = (u64, u64, u64);

/// One `sent` or `msg`, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub convo: String,
    pub seq: u64,
    pub mid: u64,
    pub ts: u64,
    pub from: String,
    pub id: String,
    /// Of a `msg`.
    pub body: Option<Vec<u8>>,
}

/// See the module.
#[derive(Default)]
pub struct Witness {
    promised: BTreeMap<(String, String, String), Answer>,
    pub sent_count: u64,
    pub message_count: u64,
    pub receipt_count: u64,
}

impl Witness {
    /// A client hears `sent`: the first answer, and durable.
    pub fn sent(&mut self, told: &Told, ledger: &Ledger) -> Verdict {
        self.sent_count += 1;
        let key = (told.from.clone(), told.convo.clone(), told.id.clone());
        let answer = (told.seq, told.mid, told.ts);
        let first = *self.promised.entry(key).or_insert(answer);
        if first != answer {
            return Err(format!("the first answer was {first:?}, now it is {told:?}"));
        }
        check_durable("sent", told, ledger)
    }

    /// A client hears `msg`: it is for him, and durable.
    pub fn message(&mut self, user: &str, told: &Told, ledger: &Ledger) -> Verdict {
        self.message_count += 1;
        if !ledger.is_for(user, &told.convo, told.seq) {
            return Err(format!("{user} hears {} {}", told.convo, told.seq));
        }
        check_durable("msg", told, ledger)
    }

    /// A client hears a receipt: the acknowledgement behind it is durable.
    pub fn receipt(
        &mut self,
        convo: &str,
        seq: u64,
        kind: Watermark,
        by: &str,
        ledger: &Ledger,
    ) -> Verdict {
        self.receipt_count += 1;
        let durable = ledger.watermark(by, convo, kind);
        if seq > durable {
            return Err(format!("{by} reached {seq} of {convo}, durable is {durable}: {kind:?}"));
        }
        Ok(())
    }

    /// Everything that was promised is in the log. Returns how many promises there were.
    pub fn audit(&self, ledger: &Ledger) -> Result<usize, String> {
        for ((from, convo, id), (seq, mid, ts)) in &self.promised {
            let told = Told {
                convo: convo.clone(),
                seq: *seq,
                mid: *mid,
                ts: *ts,
                from: from.clone(),
                id: id.clone(),
                body: None,
            };
            check_durable("a promise", &told, ledger)?;
        }
        Ok(self.promised.len())
    }
}

fn check_durable(what: &str, told: &Told, ledger: &Ledger) -> Verdict {
    let Some(message) = ledger.message(&told.convo, told.seq) else {
        return Err(format!("{what} speaks of what is not durable: {told:?}"));
    };
    let logged = (message.mid, message.ts, &*message.from, &*message.id);
    let body = match &message.body {
        Body::Text { text } => text,
        Body::Binary { bytes } => bytes,
    };
    let same_body = told.body.as_ref().is_none_or(|told| *told == body[..]);
    if logged == (told.mid, told.ts, told.from.as_str(), told.id.as_str()) && same_body {
        Ok(())
    } else {
        Err(format!("{what} differs from the log: {told:?} is {logged:?}"))
    }
}
