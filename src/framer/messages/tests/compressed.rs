//! Compressed messages in frames: where the bit may be, every cut, and the bounds.

use flate2::{Compress, Compression, FlushCompress};

use super::*;

fn run_deflate(pieces: &[&[u8]]) -> Vec<Seen> {
    fuzzing::run(pieces, true)
}

fn feed_deflate(framer: &mut Framer, inflater: &mut Inflater, bytes: &[u8], seen: &mut Vec<Seen>) {
    let mut buffer = bytes.to_vec();
    let mut input = Input::with_inflater(&mut buffer, Some(inflater));
    loop {
        match framer.next(&mut input) {
            Ok(Some(event)) => seen.push(event.into()),
            Ok(None) => break,
            Err(violation) => seen.push(Seen::Violation(violation)),
        }
    }
    assert_eq!(input.position, bytes.len(), "all input is consumed");
}

fn compressed(message: &[u8]) -> Vec<u8> {
    let mut compressor = Compress::new(Compression::default(), false);
    let mut out = vec![0; 2 * message.len() + 64];
    compressor.compress(message, &mut out, FlushCompress::Sync).expect("room");
    out.truncate(compressor.total_out() as usize - 4);
    out
}

/// A message in frames of at most `size` bytes, a ping behind each but the last.
fn fragmented(first: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let mut pieces: Vec<Piece> = payload
        .chunks(size)
        .map(|piece| (piece.to_vec(), Some((9, b"between".to_vec()))))
        .collect();
    if let Some(last) = pieces.last_mut() {
        last.1 = None;
    }
    fragments(first, &pieces)
}

#[test]
fn every_split_in_two_equals_the_whole() {
    let text = "h\u{e9}llo h\u{e9}llo h\u{e9}llo \u{1f600}\u{1f600}";
    let mut stream = frame(0xc1, &compressed(text.as_bytes()));
    stream.extend(frame(0x81, b"as it is"));
    stream.extend(fragmented(0x41, &compressed(text.as_bytes()), 5));
    stream.extend(fragmented(0x02, b"in pieces", 4));
    stream.extend(frame(0xc2, &compressed(&[5; 300])));
    // Empty messages, the first of them as nothing at all, as some compressors have it.
    stream.extend(frame(0xc2, b""));
    stream.extend(frame(0xc1, &[0]));
    stream.extend(frame(0x41, b""));
    stream.extend(frame(0x80, &[0]));
    stream.extend(frame(0x8a, b""));
    stream.extend(frame(0x88, b"\x03\xe8bye"));
    let whole = run_deflate(&[&stream]);
    let said: Vec<&Seen> =
        whole.iter().filter(|seen| !matches!(seen, Seen::Ping(_) | Seen::Pong(_))).collect();
    let text = || Seen::Text(text.to_owned());
    let expected = [
        text(),
        Seen::Text("as it is".into()),
        text(),
        Seen::Binary(b"in pieces".to_vec()),
        Seen::Binary(vec![5; 300]),
        Seen::Binary(Vec::new()),
        Seen::Text(String::new()),
        Seen::Text(String::new()),
        Seen::Close(Some(1000), "bye".into()),
    ];
    assert_eq!(said, expected.iter().collect::<Vec<_>>());
    for cut in 0..=stream.len() {
        assert_eq!(run_deflate(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
    let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(run_deflate(&bytewise), whole);
}

#[test]
fn violations_come_with_their_close_codes() {
    let two = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
    let hello = compressed(b"hello");
    let too_big = compressed(&[0; LIMIT as usize + 1]);
    let size_max = compressed_size_max(LIMIT) as usize;
    for (stream, code) in [
        // The bit on a continuation, on control frames, and other bits.
        (two(frame(0x41, &hello), frame(0xc0, b"")), 1002),
        (two(frame(0x01, b"a"), frame(0xc0, &hello)), 1002),
        (frame(0xc9, b""), 1002),
        (frame(0xc8, b""), 1002),
        (frame(0xe1, &hello), 1002),
        (frame(0xa1, &hello), 1002),
        // Not deflate, not text, too much: inflated, and compressed.
        (frame(0xc2, b"\xff\xff\xff"), 1007),
        (frame(0xc1, &compressed(b"\xc3\x28")), 1007),
        (frame(0xc1, &compressed(b"cut \xc3")), 1007),
        (fragmented(0x41, &compressed(b"abc\xff"), 2), 1007),
        (frame(0xc2, &too_big), 1009),
        (fragmented(0x42, &too_big, 3), 1009),
        (frame(0xc2, &vec![0; size_max + 1])[..8].to_vec(), 1009),
        (frame(0x82, &vec![0; LIMIT as usize + 1])[..8].to_vec(), 1009),
        (fragmented(0x42, &vec![0; size_max + 1], 100), 1009),
    ] {
        for pieces in [vec![&stream[..]], stream.chunks(1).collect()] {
            let seen = run_deflate(&pieces);
            let Some(Seen::Violation(violation)) = seen.last() else {
                panic!("{seen:?} should end in a violation");
            };
            assert_eq!(violation.close_code(), code, "{stream:x?}");
        }
    }
}

#[test]
fn without_the_agreement_the_bit_is_a_violation_at_its_byte() {
    assert_eq!(run(&[&[0xc1]]), [Seen::Violation(Violation::ReservedBits)]);
    let mut seen = Vec::new();
    let stream = frame(0xc1, &compressed(b"hello"));
    feed(&mut Framer::with_deflate(LIMIT), &stream, &mut seen);
    assert_eq!(seen, [Seen::Violation(Violation::ReservedBits)], "nothing inflates it");
}

#[test]
fn a_message_of_the_greatest_size_may_be_larger_while_compressed() {
    let noise: Vec<u8> =
        (0..LIMIT).map(|index| ((index * index) >> 3) as u8 ^ index as u8).collect();
    let mut compressor = Compress::new(Compression::none(), false);
    let mut payload = vec![0; 2_000];
    compressor.compress(&noise, &mut payload, FlushCompress::Sync).expect("room");
    payload.truncate(compressor.total_out() as usize - 4);
    assert!(payload.len() > LIMIT as usize);
    for stream in [frame(0xc2, &payload), fragmented(0x42, &payload, 77)] {
        let seen = run_deflate(&[&stream]);
        assert!(seen.last() == Some(&Seen::Binary(noise.clone())));
    }
}

#[test]
fn nothing_is_held_once_all_is_handed_out() {
    let (mut framer, mut inflater) = (Framer::with_deflate(LIMIT), Inflater::default());
    for byte in fragmented(0x41, &compressed(b"hello hello"), 3).chunks(1) {
        feed_deflate(&mut framer, &mut inflater, byte, &mut Vec::new());
    }
    assert_eq!(framer.held_size(), 0);
}

/// Each message compressed or not, in frames of some size.
fn mixed_stream() -> impl Strategy<Value = (Vec<u8>, Vec<Seen>)> {
    let payload = prop_oneof![
        "[a-c]{0,200}".prop_map(Seen::Text),
        "\\PC{0,60}".prop_map(Seen::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Seen::Binary),
    ];
    let message = (payload, any::<bool>(), 1usize..400);
    prop::collection::vec(message, 0..6).prop_map(|messages| {
        let (mut stream, mut said) = (Vec::new(), Vec::new());
        for (seen, is_compressed, size) in messages {
            let (opcode, bytes) = match &seen {
                Seen::Text(text) => (1, text.as_bytes()),
                Seen::Binary(bytes) => (2, &bytes[..]),
                _ => continue,
            };
            let framed = match is_compressed {
                true => fragmented(0x40 | opcode, &compressed(bytes), size),
                false if bytes.is_empty() => frame(0x80 | opcode, b""),
                false => fragmented(opcode, bytes, size),
            };
            stream.extend(framed);
            said.push(seen);
        }
        (stream, said)
    })
}

proptest! {
    #[test]
    fn any_cuts_of_a_good_stream_give_what_was_said(
        (stream, said) in mixed_stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        let mut seen = run_deflate(&pieces);
        seen.retain(|seen| !matches!(seen, Seen::Ping(_)));
        prop_assert_eq!(seen, said);
    }

    #[test]
    fn noise_never_panics_and_cuts_do_not_matter(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        (start, _) in mixed_stream(),
    ) {
        let stream = [start, noise].concat();
        let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(run_deflate(&bytewise), run_deflate(&[&stream]));
    }
}
