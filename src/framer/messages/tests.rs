//! The framer against its naive twin (`fuzzing`), which sees the whole stream at once.

use super::super::encode_frame;
use super::*;
use crate::fuzzing::{self, Seen, naive};
use proptest::prelude::*;

const LIMIT: u32 = 1_000;

fn feed(framer: &mut Framer, bytes: &[u8], seen: &mut Vec<Seen>) {
    let mut buffer = bytes.to_vec();
    let mut input = Input::new(&mut buffer);
    loop {
        match framer.next(&mut input) {
            Ok(Some(event)) => seen.push(event.into()),
            Ok(None) => break,
            Err(violation) => seen.push(Seen::Violation(violation)),
        }
    }
    assert_eq!(input.position, bytes.len(), "all input is consumed");
}

fn run(pieces: &[&[u8]]) -> Vec<Seen> {
    fuzzing::run(pieces, false)
}

/// One masked frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(Opcode::Binary, payload, &mut out);
    let header_size = out.len() - payload.len();
    out[0] = first;
    out[1] |= 0x80;
    let key = [0x37, 0xfa, 0x21, 0x3d];
    for (index, byte) in out[header_size..].iter_mut().enumerate() {
        *byte ^= key[index % 4];
    }
    out.splice(header_size..header_size, key);
    out
}

#[test]
fn every_split_in_two_equals_the_whole() {
    let mut stream = frame(0x81, "h\u{e9}llo".as_bytes());
    stream.extend(frame(0x01, &"\u{1f600}".as_bytes()[..2]));
    stream.extend(frame(0x89, b"ping"));
    stream.extend(frame(0x00, b""));
    stream.extend(frame(0x80, &"\u{1f600}".as_bytes()[2..]));
    stream.extend(frame(0x82, &[5; 300]));
    stream.extend(frame(0x82, b""));
    stream.extend(frame(0x8a, b""));
    stream.extend(frame(0x88, b"\x03\xe8bye"));
    stream.extend(frame(0x81, b"after the close frame nothing counts"));
    let whole = run(&[&stream]);
    assert_eq!(whole, naive(&stream).said);
    assert_eq!(whole.len(), 7);
    for cut in 0..=stream.len() {
        assert_eq!(run(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
    let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(run(&bytewise), whole);
}

#[test]
fn violations_come_with_their_close_codes() {
    let mut too_big_together = frame(0x01, &[b'a'; 600]);
    too_big_together.extend(&frame(0x80, &[b'a'; 600])[..8]);
    let two = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
    for (stream, code) in [
        (frame(0x80, b"x"), 1002),
        (two(frame(0x01, b"a"), frame(0x81, b"b")), 1002),
        (frame(0x88, b"\x03"), 1002),
        (frame(0x88, &1005u16.to_be_bytes()), 1002),
        (frame(0x88, b"\x03\xe8\xff"), 1007),
        (frame(0x81, b"\xff"), 1007),
        (two(frame(0x01, b"\xc3"), frame(0x80, b"")), 1007),
        (frame(0x82, &[0; 1_001])[..8].to_vec(), 1009),
        (too_big_together, 1009),
        (vec![0x81, 0x01, b'a'], 1002),
    ] {
        for pieces in [vec![&stream[..]], stream.chunks(1).collect()] {
            let seen = run(&pieces);
            let Some(Seen::Violation(violation)) = seen.last() else {
                panic!("{seen:?} should end in a violation");
            };
            assert_eq!(violation.close_code(), code, "{stream:x?}");
        }
    }
}

#[test]
fn bad_text_fails_at_its_byte_inside_a_frame() {
    let stream = frame(0x81, b"good so far \xf4\x90 never arrives");
    let (mut framer, mut seen) = (Framer::new(LIMIT), Vec::new());
    let bad_at = 6 + 13;
    feed(&mut framer, &stream[..bad_at], &mut seen);
    assert_eq!(seen, []);
    feed(&mut framer, &stream[bad_at..=bad_at], &mut seen);
    assert_eq!(seen, [Seen::Violation(Violation::NotUtf8)]);
}

#[test]
fn what_is_announced_is_not_allocated() {
    let mut framer = Framer::new(1 << 30);
    let mut header = vec![0x82, 0xff];
    header.extend((1u64 << 30).to_be_bytes());
    header.extend([0; 4]);
    feed(&mut framer, &header, &mut Vec::new());
    assert!(framer.held_size() < 512);
    feed(&mut framer, &[0; 10_000], &mut Vec::new());
    assert!(framer.held_size() < 512 + 20_000);
}

#[test]
fn nothing_is_held_once_all_is_handed_out() {
    let mut framer = Framer::new(LIMIT);
    let mut stream = frame(0x01, b"a");
    stream.extend(frame(0x80, b"b"));
    for byte in stream.chunks(1) {
        feed(&mut framer, byte, &mut Vec::new());
    }
    assert_eq!(framer.held_size(), 0);
}

/// A good stream: messages in fragments of fragments, with control frames between them.
fn good_stream() -> impl Strategy<Value = Vec<u8>> {
    let control = || prop::option::of((9u8..=10, prop::collection::vec(any::<u8>(), 0..125)));
    let piece = (prop::collection::vec(any::<u8>(), 0..180), control());
    let text = ("\\PC{0,60}", prop::collection::vec(control(), 0..4));
    let message = prop_oneof![
        prop::collection::vec(piece, 1..4).prop_map(|pieces| fragments(2, &pieces)),
        text.prop_map(|(text, controls)| fragments(1, &cut_text(&text, controls))),
    ];
    let close = prop::option::of(prop::sample::select(vec![&b""[..], b"\x03\xe8", b"\x0f\xa0why"]));
    (prop::collection::vec(message, 0..6), close).prop_map(|(messages, close)| {
        let mut stream = messages.concat();
        stream.extend(close.map(|payload| frame(0x88, payload)).unwrap_or_default());
        stream
    })
}

type Piece = (Vec<u8>, Option<(u8, Vec<u8>)>);

fn cut_text(text: &str, controls: Vec<Option<(u8, Vec<u8>)>>) -> Vec<Piece> {
    let size = text.len().div_ceil(controls.len().max(1)).max(1);
    let mut pieces: Vec<Piece> = text
        .as_bytes()
        .chunks(size)
        .zip(controls.into_iter().chain(std::iter::repeat(None)))
        .map(|(piece, control)| (piece.to_vec(), control))
        .collect();
    if pieces.is_empty() {
        pieces.push((Vec::new(), None));
    }
    pieces
}

fn fragments(opcode: u8, pieces: &[Piece]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (index, (piece, control)) in pieces.iter().enumerate() {
        let first = if index == 0 { opcode } else { 0 };
        let last = if index + 1 == pieces.len() { 0x80 } else { 0 };
        stream.extend(frame(first | last, piece));
        if let Some((opcode, payload)) = control {
            stream.extend(frame(0x80 | opcode, payload));
        }
    }
    stream
}

proptest! {
    #[test]
    fn any_cuts_of_a_good_stream_equal_the_naive_twin(
        stream in good_stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let naive = naive(&stream).said;
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        prop_assert_eq!(run(&pieces), naive);
    }

    #[test]
    fn a_prefix_shows_a_prefix_of_the_events(stream in good_stream()) {
        let whole = run(&[&stream]);
        for end in (0..stream.len()).step_by(7) {
            let seen = run(&[&stream[..end]]);
            prop_assert_eq!(&whole[..seen.len()], &seen[..]);
        }
    }

    #[test]
    fn noise_never_panics_and_cuts_do_not_matter(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        start in good_stream(),
    ) {
        let stream = [start, noise].concat();
        let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(run(&bytewise), run(&[&stream]));
    }
}

mod compressed;
