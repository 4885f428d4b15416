//! Both directions against raw deflate streams of flate2, which know nothing of messages.

use super::*;
use proptest::prelude::*;

const LIMIT: usize = 100_000;

fn inflate(payload: &[u8], is_text: bool) -> Result<Vec<u8>, Violation> {
    Inflater::default().inflate(payload, is_text, LIMIT).map(<[u8]>::to_vec)
}

fn binary(payload: &[u8]) -> Result<Vec<u8>, Violation> {
    inflate(payload, false)
}

/// What a peer sends: raw deflate, flushed, its tail taken off.
fn compressed(message: &[u8], level: u32, window_bits: u8) -> Vec<u8> {
    let mut compressor =
        Compress::new_with_window_bits(Compression::new(level), false, window_bits);
    let mut out = vec![0; 2 * message.len() + 64];
    compressor.compress(message, &mut out, FlushCompress::Sync).expect("room");
    assert_eq!(compressor.total_in() as usize, message.len());
    out.truncate(compressor.total_out() as usize);
    assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

/// A stream that ends with a last block.
fn finished(message: &[u8]) -> Vec<u8> {
    let mut compressor = Compress::new(Compression::default(), false);
    let mut out = vec![0; 2 * message.len() + 64];
    let status = compressor.compress(message, &mut out, FlushCompress::Finish);
    assert_eq!(status.expect("room"), Status::StreamEnd);
    out.truncate(compressor.total_out() as usize);
    out
}

/// A peer's inflater with this window and nothing of ours.
fn inflated_by_peer(payload: &[u8], window_bits: u8, size: usize) -> Vec<u8> {
    let mut state = Decompress::new_with_window_bits(false, window_bits);
    let mut out = vec![0; size + 1];
    let whole = [payload, &TAIL].concat();
    state.decompress(&whole, &mut out, FlushDecompress::Sync).expect("a good stream");
    assert_eq!(state.total_in() as usize, whole.len());
    out.truncate(state.total_out() as usize);
    out
}

/// Words that compress, without end.
fn prose(size: usize) -> Vec<u8> {
    let words = ["the ", "conversation ", "message ", "\u{e9}t\u{e9} ", "1234 ", "of ", "\n"];
    let mut state = 7usize;
    let mut text = Vec::new();
    while text.len() < size {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text.extend(words[(state >> 33) % words.len()].as_bytes());
    }
    text.truncate(size);
    text
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

#[test]
fn the_examples_of_the_rfc() {
    // RFC 7692 7.2.3.1, 7.2.3.3 (no compression), 7.2.3.4 (a last block), 7.2.3.5 (two blocks).
    for payload in [
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
        &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
    ] {
        assert_eq!(inflate(payload, true).as_deref(), Ok(&b"Hello"[..]), "{payload:x?}");
    }
    // 7.2.3.6: an empty message; and what some send for one that is not their first.
    assert_eq!(binary(&[0x00]).as_deref(), Ok(&[][..]));
    assert_eq!(binary(&[]).as_deref(), Ok(&[][..]));
}

#[test]
fn a_context_from_the_message_before_is_not_there() {
    let mut inflater = Inflater::default();
    let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    // RFC 7692 7.2.3.2: "Hello" again, by reference into the window.
    let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
    assert!(inflater.inflate(&first, true, LIMIT).is_ok());
    assert_eq!(inflater.inflate(&second, true, LIMIT), Err(Violation::NotDeflate));
    assert_eq!(inflater.inflate(&first, true, LIMIT), Ok(&b"Hello"[..]));
}

#[test]
fn every_prefix_of_a_message_is_cut() {
    for (message, level, window_bits) in
        [(prose(3_000), 6, 15), (prose(600), 1, 9), (noise(300), 6, 15), (prose(300), 0, 15)]
    {
        let payload = compressed(&message, level, window_bits);
        for end in 1..payload.len() {
            // What the standard puts behind a cut block may happen to complete it; what we put
            // behind that never adds anything.
            match binary(&payload[..end]) {
                Ok(cut) => {
                    let size_max = message.len() + 64;
                    assert!(cut == inflated_by_peer(&payload[..end], window_bits, size_max));
                }
                Err(violation) => assert_eq!(violation, Violation::NotDeflate),
            }
        }
    }
}

#[test]
fn a_stream_that_ended_is_a_message_with_and_without_its_pad() {
    for size in [1, 1_000, 70_000] {
        let message = prose(size);
        let mut payload = finished(&message);
        assert!(binary(&payload).as_ref() == Ok(&message));
        for end in 0..payload.len() {
            assert_ne!(binary(&payload[..end]).as_ref(), Ok(&message));
        }
        payload.push(0);
        assert!(binary(&payload).as_ref() == Ok(&message));
        payload.push(0);
        assert_eq!(binary(&payload), Err(Violation::NotDeflate));
        payload.extend(finished(&message));
        assert_eq!(binary(&payload), Err(Violation::NotDeflate));
    }
}

#[test]
fn what_is_put_behind_a_message_is_never_in_it() {
    // A stored block that announces more than there is: 9 bytes are what we put behind it.
    for announced in 1..=12u8 {
        for last in 0..=1 {
            let payload = [last, announced, 0, !announced, 0xff];
            match binary(&payload) {
                // The standard itself puts these four behind it.
                Ok(message) => assert_eq!((message.as_slice(), announced), (&TAIL[..], 4)),
                Err(violation) => assert_eq!(violation, Violation::NotDeflate),
            }
        }
    }
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let bomb = compressed(&vec![0; 64 << 20], 9, 15);
    assert!(bomb.len() < 100_000);
    let mut inflater = Inflater::default();
    for is_text in [false, true] {
        assert_eq!(inflater.inflate(&bomb, is_text, LIMIT), Err(Violation::TooBig));
        assert!(inflater.output.len() <= LIMIT + 1);
    }
    for size_max in [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, LIMIT] {
        let mut inflater = Inflater::default();
        let fits = compressed(&vec![7; size_max], 6, 15);
        assert_eq!(inflater.inflate(&fits, false, size_max).map(<[u8]>::len), Ok(size_max));
        let exceeds = compressed(&vec![7; size_max + 1], 6, 15);
        assert_eq!(inflater.inflate(&exceeds, false, size_max), Err(Violation::TooBig));
        assert!(inflater.output.len() <= size_max + 1);
    }
}

#[test]
fn a_message_of_the_greatest_size_fits_however_badly_it_compresses() {
    for size in [1, 100, 131_072] {
        for level in [0, 1, 6, 9] {
            let size_max = compressed_size_max(size as u32);
            assert!(compressed(&noise(size), level, 15).len() as u64 <= size_max);
            assert!(compressed(&noise(size), level, 9).len() as u64 <= size_max);
        }
    }
}

#[test]
fn a_bad_text_ends_in_the_piece_in_which_it_shows() {
    let mut text = b"good so far \xf4\x90".to_vec();
    text.resize(10_000_000, 0);
    let payload = compressed(&text, 6, 15);
    let mut inflater = Inflater::default();
    assert_eq!(inflater.inflate(&payload, true, 1 << 24), Err(Violation::NotUtf8));
    assert!(inflater.output.len() <= PIECE_SIZE);
    assert_eq!(inflater.inflate(&payload, false, 1 << 24).map(<[u8]>::len), Ok(10_000_000));
}

#[test]
fn a_character_may_be_cut_by_a_piece() {
    for shift in 0..4 {
        let text = "a".repeat(shift) + &"\u{1f600}".repeat(20_000);
        let payload = compressed(text.as_bytes(), 6, 15);
        assert!(inflate(&payload, true).as_deref() == Ok(text.as_bytes()));
    }
}

#[test]
fn large_messages_leave_no_large_buffers() {
    let (mut inflater, mut deflater) = (Inflater::default(), Deflater::default());
    let large = prose(4 << 20);
    let payload = deflater.deflate(&large, 15).expect("smaller").to_vec();
    assert!(inflater.inflate(&payload, true, 1 << 24) == Ok(&large));
    let small = prose(1_000);
    let payload = deflater.deflate(&small, 15).expect("smaller").to_vec();
    assert_eq!(inflater.inflate(&payload, true, 1 << 24), Ok(&small[..]));
    assert!(inflater.output.len() <= KEPT_SIZE_MAX);
    assert!(deflater.output.len() + deflater.last.message.capacity() <= 2 * KEPT_SIZE_MAX);
}

#[test]
fn what_does_not_get_smaller_is_sent_as_it_is() {
    let mut deflater = Deflater::default();
    assert_eq!(deflater.deflate(b"", 15), None);
    assert_eq!(deflater.deflate(&[0; DEFLATE_SIZE_MIN - 1], 15), None);
    for size in [DEFLATE_SIZE_MIN, 1_000, 65_536, 1 << 20] {
        assert_eq!(deflater.deflate(&noise(size), 15), None);
        assert!(deflater.deflate(&prose(size), 15).is_some());
    }
}

#[test]
fn messages_that_do_not_compress_do_not_harm_those_that_do() {
    let mut deflater = Deflater::default();
    for round in 0..40 {
        let size = 100_000 + round * 1_237;
        assert_eq!(deflater.deflate(&noise(size), 15), None);
        let mixed = [noise(size / 3), prose(size)].concat();
        let payload = deflater.deflate(&mixed, 15).expect("smaller");
        assert!(inflated_by_peer(payload, 15, mixed.len()) == mixed);
    }
}

#[test]
fn a_message_for_many_is_compressed_once() {
    let mut deflater = Deflater::default();
    let message = prose(5_000);
    let first = deflater.deflate(&message, 15).expect("smaller").to_vec();
    let compressor = deflater.compressors[WINDOW_COUNT - 1].take();
    assert_eq!(deflater.deflate(&message, 15), Some(&first[..]));
    assert!(compressor.is_some() && deflater.compressors.iter().all(Option::is_none));
    let narrow = deflater.deflate(&message, 9).expect("smaller").to_vec();
    assert_eq!(inflated_by_peer(&narrow, 9, 5_000), message);
    assert_eq!(deflater.deflate(&message, 15), Some(&first[..]));
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3_000),
        prop::collection::vec(0u8..4, 0..3_000),
        (0usize..60_000).prop_map(prose),
    ]
}

proptest! {
    #[test]
    fn what_peers_compress_is_inflated(
        messages in prop::collection::vec((message(), 0u32..=9, 9u8..=15), 1..5),
    ) {
        let mut inflater = Inflater::default();
        for (message, level, window_bits) in messages {
            let payload = compressed(&message, level, window_bits);
            let is_text = std::str::from_utf8(&message).is_ok();
            prop_assert_eq!(inflater.inflate(&payload, is_text, LIMIT), Ok(&message[..]));
        }
    }

    #[test]
    fn what_we_compress_is_inflated_by_peers_with_their_window(
        messages in prop::collection::vec((message(), 9u8..=15), 1..5),
    ) {
        let mut deflater = Deflater::default();
        for (message, window_bits) in messages {
            let Some(payload) = deflater.deflate(&message, window_bits) else {
                continue;
            };
            prop_assert!(payload.len() < message.len());
            prop_assert!(inflated_by_peer(payload, window_bits, message.len()) == message);
            prop_assert!(binary(payload).as_ref() == Ok(&message));
        }
    }

    #[test]
    fn noise_never_panics(payload: Vec<u8>, tail in prop::option::of(message()), text: bool) {
        let payload = tail.map_or(payload.clone(), |tail| {
            [compressed(&tail, 6, 15), payload].concat()
        });
        let _ = Inflater::default().inflate(&payload, text, 1_000);
    }
}
