//! Up to which seq each conversation was printed: what is new, what is a repetition, what is ahead
//! of a gap. No message beyond a gap is printed or acknowledged before the gap was asked for.

use std::collections::BTreeMap;

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Print it, then say [`Marks::printed`].
    New,
    Repeated,
    /// Ask for what is behind `behind`, with this `ref`.
    Ahead {
        reference: u64,
        behind: u64,
    },
    /// It comes again with the answer that is under way.
    Awaited,
}

/// See the module.
#[derive(Default)]
pub struct Marks {
    conversations: BTreeMap<String, Mark>,
    /// Between a connection, or `behind`, and `synced`: what is left out is not there for us.
    is_catching_up: bool,
    references: u64,
}

#[derive(Default)]
struct Mark {
    printed: u64,
    acknowledged: u64,
    asked: Option<Asked>,
}

/// A `sync` under way. Its answer begins at `begins_max` at the latest; what is above that before
/// it began was on its way already, and comes again.
struct Asked {
    reference: u64,
    begins_max: u64,
    has_begun: bool,
}

impl Marks {
    /// A connection begins, with the backlog.
    pub fn connected(&mut self) {
        self.is_catching_up = true;
        for mark in self.conversations.values_mut() {
            mark.asked = None;
        }
    }

    /// The server left something out and will catch up by itself.
    pub fn behind(&mut self) {
        self.is_catching_up = true;
    }

    pub fn take(&mut self, convo: &str, seq: u64) -> Verdict {
        let Some(mark) = self.conversations.get_mut(convo) else {
            self.conversations.insert(convo.to_owned(), Mark::default());
            return Verdict::New;
        };
        if seq <= mark.printed {
            mark.acknowledged = mark.acknowledged.min(seq.saturating_sub(1));
            return Verdict::Repeated;
        }
        if let Some(asked) = &mut mark.asked {
            asked.has_begun |= seq <= asked.begins_max;
            return if asked.has_begun { Verdict::New } else { Verdict::Awaited };
        }
        if self.is_catching_up || seq == mark.printed + 1 {
            return Verdict::New;
        }
        self.references += 1;
        let reference = self.references;
        mark.asked = Some(Asked { reference, begins_max: seq, has_begun: false });
        Verdict::Ahead { reference, behind: mark.printed }
    }

    pub fn printed(&mut self, convo: &str, seq: u64) {
        if let Some(mark) = self.conversations.get_mut(convo) {
            mark.printed = mark.printed.max(seq);
        }
    }

    /// The answer to a `sync`, or the end of what came by itself: whatever did not come up to its
    /// head is not there for us.
    pub fn synced<'a>(
        &mut self,
        reference: Option<u64>,
        heads: impl Iterator<Item = (&'a str, u64)>,
    ) {
        self.is_catching_up &= reference.is_some();
        for (convo, head) in heads {
            let mark = self.conversations.entry(convo.to_owned()).or_default();
            mark.printed = mark.printed.max(head);
        }
        let answered = |asked: &Asked| reference == Some(asked.reference);
        for mark in self.conversations.values_mut() {
            mark.asked.take_if(|asked| answered(asked));
        }
    }

    /// What is to be acknowledged now, and counts as that from here on.
    pub fn unacknowledged(&mut self) -> Vec<(String, u64)> {
        let mut due = Vec::new();
        for (convo, mark) in &mut self.conversations {
            if mark.printed > mark.acknowledged {
                mark.acknowledged = mark.printed;
                due.push((convo.clone(), mark.printed));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes and prints; whether it was new.
    fn print(marks: &mut Marks, seq: u64) -> bool {
        let is_new = marks.take("c", seq) == Verdict::New;
        if is_new {
            marks.printed("c", seq);
        }
        is_new
    }

    fn live(printed: u64) -> Marks {
        let mut marks = Marks::default();
        marks.connected();
        assert!(print(&mut marks, printed));
        marks.synced(None, [("c", printed)].into_iter());
        marks
    }

    #[test]
    fn repetitions_are_dropped_and_acknowledged_again() {
        let mut marks = live(5);
        assert_eq!(marks.unacknowledged(), [("c".to_owned(), 5)]);
        assert_eq!(marks.unacknowledged(), []);
        marks.connected();
        assert_eq!(marks.take("c", 5), Verdict::Repeated);
        assert_eq!(marks.unacknowledged(), [("c".to_owned(), 5)]);
        assert!(print(&mut marks, 6));
        assert_eq!(marks.unacknowledged(), [("c".to_owned(), 6)]);
    }

    #[test]
    fn a_gap_is_asked_for_and_nothing_beyond_it_is_printed_before() {
        let mut marks = live(5);
        assert_eq!(marks.take("c", 8), Verdict::Ahead { reference: 1, behind: 5 });
        assert_eq!(marks.take("c", 9), Verdict::Awaited);
        assert_eq!(marks.unacknowledged(), [("c".to_owned(), 5)]);
        // 6 is gone for good; the answer begins at 7.
        assert!((7..=9).all(|seq| print(&mut marks, seq)));
        marks.synced(Some(1), [("c", 9)].into_iter());
        assert!(print(&mut marks, 10));
        assert_eq!(marks.take("c", 12), Verdict::Ahead { reference: 2, behind: 10 });
        marks.synced(Some(2), [("c", 12)].into_iter());
        assert!(print(&mut marks, 13));
    }

    #[test]
    fn a_backlog_may_leave_things_out_and_a_reconnect_forgets_what_was_asked() {
        let mut marks = live(5);
        assert_eq!(marks.take("c", 7), Verdict::Ahead { reference: 1, behind: 5 });
        marks.connected();
        assert!(print(&mut marks, 6) && print(&mut marks, 9));
        marks.synced(None, [("c", 9), ("d", 4)].into_iter());
        assert_eq!(marks.unacknowledged(), [("c".to_owned(), 9), ("d".to_owned(), 4)]);
        marks.behind();
        assert!(print(&mut marks, 20));
    }
}
