//! The link: frames come out alike however their bytes are cut, a value has one encoding, and a
//! session hands every entry on once and in order, whatever is lost on the way.

use std::fmt::Debug;

use bytes::Bytes;

use super::choices::Choices;
use crate::link::frame::{FrameReader, Header, LinkViolation};
use crate::link::greeting::{Begin, Challenge, Hello, Proof};
use crate::link::message::{FromStore, ToEdge, ToSequencer, ToStore};
use crate::link::record::Record;
use crate::link::session::Session;
use crate::link::wire::Wire;

/// Bytes of unanswered entries that a session of [`sessions`] takes.
const WINDOW_SIZE: usize = 64;

/// The first byte chooses what the rest is.
pub fn link(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 11 {
        0 => frames(rest),
        1 => sessions(rest),
        2 => has_one_encoding::<ToSequencer>(rest),
        3 => has_one_encoding::<ToEdge>(rest),
        4 => has_one_encoding::<ToStore>(rest),
        5 => has_one_encoding::<FromStore>(rest),
        6 => has_one_encoding::<Record>(rest),
        7 => has_one_encoding::<Hello>(rest),
        8 => has_one_encoding::<Challenge>(rest),
        9 => has_one_encoding::<Proof>(rest),
        _ => has_one_encoding::<Begin>(rest),
    }
}

fn has_one_encoding<T: Wire + Debug + PartialEq>(bytes: &[u8]) {
    if let Ok(value) = T::from_bytes(Bytes::copy_from_slice(bytes)) {
        assert_eq!(value.to_bytes(), bytes);
        let longer = Bytes::from([bytes, &[0]].concat());
        assert!(T::from_bytes(longer).is_err());
    }
}

/// The first byte says how the rest is cut.
fn frames(input: &[u8]) {
    let Some((&size, stream)) = input.split_first() else {
        return;
    };
    let pieces: Vec<&[u8]> = stream.chunks(1 + usize::from(size)).collect();
    assert_eq!(read_frames(&pieces), read_frames(&[stream]));
}

type Frames = (Vec<(Header, Bytes)>, Option<LinkViolation>);

fn read_frames(pieces: &[&[u8]]) -> Frames {
    let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.take_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(violation) => return (frames, Some(violation)),
            }
        }
    }
    (frames, None)
}

/// One end of a link, with the entries that went in and came out there.
struct End {
    session: Session,
    reader: FrameReader,
    submitted: Vec<Vec<u8>>,
    handed_on: Vec<Vec<u8>>,
}

impl End {
    fn new() -> End {
        let (session, reader) = (Session::new(1, WINDOW_SIZE), FrameReader::default());
        End { session, reader, submitted: Vec::new(), handed_on: Vec::new() }
    }

    fn submit(&mut self, entry: &[u8]) {
        if let Ok(number) = self.session.submit(entry.to_vec()) {
            self.submitted.push(entry.to_vec());
            assert_eq!(number, self.submitted.len() as u64);
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
        while let Some((header, payload)) = self.reader.take_frame().expect("as it was sent") {
            if self.session.receive(&header).expect("as it was sent") {
                self.handed_on.push(payload.to_vec());
            }
        }
    }

    fn say(&mut self, size_max: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.session.transmit(size_max, &mut out);
        self.session.beat(&mut out);
        out
    }
}

/// The rest is a script: who does what, and what is lost when their connection breaks.
fn sessions(script: &[u8]) {
    let mut choices = Choices::new(script);
    let (mut left, mut right) = (End::new(), End::new());
    while !choices.is_over() {
        std::mem::swap(&mut left, &mut right);
        match choices.byte() % 5 {
            0 | 1 => {
                let size = choices.below(WINDOW_SIZE / 2);
                left.submit(choices.bytes(size));
            }
            2 => right.receive(&left.say(choices.below(WINDOW_SIZE))),
            3 => left.session.answer(choices.number()),
            _ => {
                let said = left.say(usize::MAX);
                right.receive(&said[..choices.below(said.len())]);
                reconnect(&mut left, &mut right);
            }
        }
        for (from, to) in [(&left, &right), (&right, &left)] {
            assert!(from.submitted.starts_with(&to.handed_on), "once each, and in order");
        }
    }
    finish(left, right);
}

fn reconnect(left: &mut End, right: &mut End) {
    left.session.reconnect(right.session.received()).expect("it is what was received");
    right.session.reconnect(left.session.received()).expect("it is what was received");
    (left.reader, right.reader) = Default::default();
}

/// Once they talk without disturbance, nothing is missing.
fn finish(mut left: End, mut right: End) {
    reconnect(&mut left, &mut right);
    for _ in 0..2 {
        right.receive(&left.say(usize::MAX));
        std::mem::swap(&mut left, &mut right);
    }
    assert_eq!(left.submitted, right.handed_on);
    assert_eq!(right.submitted, left.handed_on);
}
