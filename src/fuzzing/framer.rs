//! The framer: however a stream is cut, it says the same; and what its naive twin says.

use crate::framer::{Deflater, Event, Framer, Inflater, Input, Opcode, Violation, frame};

const MESSAGE_SIZE_MAX: u32 = 1_000;
/// Bits of the input's first byte: compression was agreed; what was inflated is deflated again.
const WITH_DEFLATE: u8 = 1;
const WITH_DEFLATER: u8 = 2;

/// The first byte chooses, the second says how the rest, a stream, is cut.
pub fn framer(input: &[u8]) {
    let Some(([choice, sizes], stream)) = input.split_first_chunk::<2>() else {
        return;
    };
    let with_deflate = choice & WITH_DEFLATE != 0;
    let whole = run(&[stream], with_deflate);
    assert_eq!(run(&cut(stream, *sizes), with_deflate), whole);
    let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(run(&bytewise, with_deflate), whole);
    if with_deflate && choice & WITH_DEFLATER != 0 {
        whole.iter().for_each(survives_deflate);
    }
    if !with_deflate {
        compare_with_twin(stream, &whole);
    }
}

fn compare_with_twin(stream: &[u8], whole: &[Seen]) {
    let (violation, said) = match whole.split_last() {
        Some((Seen::Violation(violation), said)) => (Some(*violation), said),
        _ => (None, whole),
    };
    let twin = naive(stream);
    assert_eq!(said, twin.said);
    match twin.close_code {
        Some(code) => assert_eq!(violation.map(Violation::close_code), Some(code)),
        // The framer finds a violation with its byte, the twin with the end of its frame.
        None => assert!(twin.is_cut || violation.is_none(), "{violation:?}"),
    }
}

fn survives_deflate(seen: &Seen) {
    let (message, is_text) = match seen {
        Seen::Text(text) => (text.as_bytes(), true),
        Seen::Binary(bytes) => (&bytes[..], false),
        _ => return,
    };
    let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
    if let Some(deflated) = deflater.deflate(message, 9) {
        let inflated = inflater.inflate(deflated, is_text, MESSAGE_SIZE_MAX as usize);
        assert_eq!(inflated, Ok(message));
    }
}

/// Pieces of two sizes by turns.
fn cut(mut stream: &[u8], sizes: u8) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    for size in [1 + sizes % 16, 1 + sizes / 16].into_iter().cycle() {
        let Some((piece, rest)) = stream.split_at_checked(size.into()) else {
            pieces.push(stream);
            return pieces;
        };
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

/// What happened, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Violation(Violation),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event) -> Seen {
        match event {
            Event::Text(text) => Seen::Text(text.into()),
            Event::Binary(bytes) => Seen::Binary(bytes.into()),
            Event::Ping(bytes) => Seen::Ping(bytes.into()),
            Event::Pong(bytes) => Seen::Pong(bytes.into()),
            Event::Close { code, reason } => Seen::Close(code, reason.into()),
        }
    }
}

/// What a framer makes of the pieces of a stream, one after the other.
pub fn run(pieces: &[&[u8]], with_deflate: bool) -> Vec<Seen> {
    let (mut inflater, mut seen) = (Inflater::default(), Vec::new());
    let mut framer = match with_deflate {
        true => Framer::with_deflate(MESSAGE_SIZE_MAX),
        false => Framer::new(MESSAGE_SIZE_MAX),
    };
    for piece in pieces {
        let mut buffer = piece.to_vec();
        let mut input = Input::with_inflater(&mut buffer, with_deflate.then_some(&mut inflater));
        loop {
            match framer.next(&mut input) {
                Ok(Some(event)) => seen.push(event.into()),
                Ok(None) => break,
                Err(violation) => seen.push(Seen::Violation(violation)),
            }
        }
    }
    seen
}

/// What the twin makes of a whole stream.
#[derive(Debug, Default)]
pub struct Naive {
    pub said: Vec<Seen>,
    /// Of the violation in the last frame, which is whole.
    pub close_code: Option<u16>,
    /// The last frame is not whole.
    pub is_cut: bool,
}

/// The naive twin: frame by frame, each whole or not at all, copies everything.
pub fn naive(mut stream: &[u8]) -> Naive {
    let mut naive = Naive::default();
    let mut message: Option<(u8, Vec<u8>)> = None;
    while !stream.is_empty() {
        let Some((first, payload, rest)) = naive_frame(stream) else {
            naive.is_cut = true;
            return naive;
        };
        stream = rest;
        let outcome = match payload {
            Ok(payload) => naive_event(first, payload, &mut message),
            Err(code) => Err(code),
        };
        match outcome {
            Ok(seen) => naive.said.extend(seen),
            Err(code) => naive.close_code = Some(code),
        }
        if naive.close_code.is_some() || matches!(naive.said.last(), Some(Seen::Close(..))) {
            return naive;
        }
    }
    naive
}

type NaiveFrame<'a> = (u8, Result<Vec<u8>, u16>, &'a [u8]);

/// First byte, payload and what follows; `Err`: the close code for a header that is wrong.
fn naive_frame(stream: &[u8]) -> Option<NaiveFrame<'_>> {
    let (&[first, second], _) = stream.split_first_chunk()?;
    let short = u64::from(second & 0x7f);
    let (size, size_min, at) = match short {
        126 => (u64::from(u16::from_be_bytes(*stream[2..].first_chunk()?)), 126, 4),
        127 => (u64::from_be_bytes(*stream[2..].first_chunk()?), 0x1_0000, 10),
        _ => (short, 0, 2),
    };
    let is_control = first & 8 != 0;
    let is_wrong = first & 0x70 != 0
        || !matches!(first & 15, 0..=2 | 8..=10)
        || (is_control && (first & 0x80 == 0 || size > 125))
        || second & 0x80 == 0
        || size < size_min
        || size >> 63 != 0;
    if is_wrong {
        return Some((first, Err(1002), &[]));
    }
    let key: &[u8; 4] = stream.get(at..)?.first_chunk()?;
    let end = usize::try_from(size).ok()?.checked_add(at + 4)?;
    let masked = stream.get(at + 4..end)?.iter().zip(key.iter().cycle());
    Some((first, Ok(masked.map(|(byte, key)| byte ^ key).collect()), &stream[end..]))
}

fn naive_event(
    first: u8,
    payload: Vec<u8>,
    message: &mut Option<(u8, Vec<u8>)>,
) -> Result<Option<Seen>, u16> {
    match (first & 15, &message) {
        (8, _) => return naive_close(&payload).map(Some),
        (9, _) => return Ok(Some(Seen::Ping(payload))),
        (10, _) => return Ok(Some(Seen::Pong(payload))),
        (0, None) | (1 | 2, Some(_)) => return Err(1002),
        _ => {}
    }
    let (opcode, whole) = message.get_or_insert((first & 15, Vec::new()));
    whole.extend(payload);
    if whole.len() > MESSAGE_SIZE_MAX as usize {
        return Err(1009);
    }
    let is_final = first & 0x80 != 0;
    let text = std::str::from_utf8(whole);
    let may_go_on = |error: &std::str::Utf8Error| !is_final && error.error_len().is_none();
    if *opcode == Opcode::Text as u8 && text.is_err_and(|error| !may_go_on(&error)) {
        return Err(1007);
    }
    let done = if is_final { message.take() } else { None };
    Ok(done.map(|(opcode, whole)| match String::from_utf8(whole) {
        Ok(text) if opcode == Opcode::Text as u8 => Seen::Text(text),
        Ok(text) => Seen::Binary(text.into_bytes()),
        Err(error) => Seen::Binary(error.into_bytes()),
    }))
}

fn naive_close(payload: &[u8]) -> Result<Seen, u16> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(Seen::Close(None, String::new())) } else { Err(1002) };
    };
    let code = u16::from_be_bytes(*code);
    if !frame::is_close_code(code) {
        return Err(1002);
    }
    let reason = String::from_utf8(reason.to_vec()).map_err(|_| 1007u16)?;
    Ok(Seen::Close(Some(code), reason))
}
