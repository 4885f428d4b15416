//! permessage-deflate: agreed to when wanted, one inflater for everybody, and off by default.

use super::*;
use crate::framer::{Deflater, Inflater};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";
const ANSWER: &str = "\r\nSec-WebSocket-Extensions: permessage-deflate; \
    server_no_context_takeover; client_no_context_takeover";
const COMPRESSED: u8 = 0x40;

fn stage(deflate: bool) -> Stage {
    let message_size_max = 100_000;
    Stage::with(ShardOptions { message_size_max, deflate, ..ShardOptions::default() })
}

/// Upgrades with these header lines; yields the answer.
fn open_offering(stage: &mut Stage, socket: u32, offer: &str) -> String {
    let request = String::from_utf8_lossy(UPGRADE);
    let request = request.replace("Host: a\r\n", &format!("Host: a\r\n{offer}\r\n"));
    stage.accept(socket);
    stage.arrive(socket, request.as_bytes());
    stage.sent_text()
}

fn compressed_frame(opcode: Opcode, message: &[u8]) -> Vec<u8> {
    let mut deflater = Deflater::default();
    let mut frame = client_frame(opcode, deflater.deflate(message, 15).expect("smaller"));
    frame[0] |= COMPRESSED;
    frame
}

/// The message in one server frame of less than 64 KiB, and whether it came compressed.
fn said(frame: &[u8]) -> (bool, Vec<u8>) {
    let payload = match frame[1] {
        126 => &frame[4..],
        _ => &frame[2..],
    };
    if frame[0] & COMPRESSED == 0 {
        return (false, payload.to_vec());
    }
    let message = Inflater::default().inflate(payload, false, 1 << 20).expect("good").to_vec();
    (true, message)
}

fn is_close(frame: &[u8], code: u16) -> bool {
    frame[0] == 0x88 && frame[2..4] == code.to_be_bytes()
}

#[test]
fn what_a_client_offers_is_agreed_to_and_used_both_ways() {
    let text = "the same words again and again, ".repeat(20);
    let mut stage = stage(true);
    let wide = open_offering(&mut stage, 1, OFFER);
    assert!(wide.contains(&format!("{ANSWER}\r\n")), "{wide}");
    let narrow = format!("{OFFER}; server_max_window_bits=9");
    let narrow = open_offering(&mut stage, 2, &narrow);
    assert!(narrow.contains(&format!("{ANSWER}; server_max_window_bits=9\r\n")), "{narrow}");
    for socket in [1, 2] {
        for size in [500, 0, 1, 127, 640, 0] {
            let message = &text.as_bytes()[..size];
            let frame = match size < 128 {
                true => client_frame(Opcode::Text, message),
                false => compressed_frame(Opcode::Text, message),
            };
            stage.arrive(socket, &frame);
            assert_eq!(said(&stage.sent()), (size >= 128, message.to_vec()));
        }
        // An empty compressed message that is not the first of its connection.
        for payload in [&[0][..], b""] {
            let mut frame = client_frame(Opcode::Text, payload);
            frame[0] |= COMPRESSED;
            stage.arrive(socket, &frame);
            assert_eq!(stage.sent(), b"\x81\x00");
        }
    }
}

#[test]
fn it_is_off_unless_both_sides_want_it() {
    let text = "the same words again and again, ".repeat(20);
    for (wanted, offer) in
        [(false, OFFER), (true, "X-Nothing: 1"), (true, "Sec-WebSocket-Extensions: x-other")]
    {
        let mut stage = stage(wanted);
        let answer = open_offering(&mut stage, 1, offer);
        assert!(answer.starts_with("HTTP/1.1 101 ") && !answer.contains("Extensions"), "{answer}");
        stage.arrive(1, &client_frame(Opcode::Text, text.as_bytes()));
        assert_eq!(said(&stage.sent()), (false, text.clone().into_bytes()));
        stage.arrive(1, &compressed_frame(Opcode::Text, text.as_bytes()));
        assert!(is_close(&stage.sent(), 1002));
    }
    let answer = open_offering(&mut stage(true), 1, "Sec-WebSocket-Extensions: permessage;;");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn connections_that_share_the_inflater_do_not_mix() {
    let mut stage = stage(true);
    open_offering(&mut stage, 1, OFFER);
    open_offering(&mut stage, 2, OFFER);
    let messages = [b'a', b'b'].map(|letter| [&[letter; 700][..], &[b'.'; 100]].concat());
    let frames = messages.each_ref().map(|message| compressed_frame(Opcode::Text, message));
    let size = frames[0].len();
    assert_eq!(size, frames[1].len());
    for at in 0..size {
        for (socket, frame) in [1, 2].into_iter().zip(&frames) {
            stage.arrive(socket, &frame[at..=at]);
            if at + 1 == size {
                assert_eq!(said(&stage.sent()).1, messages[socket as usize - 1]);
            }
        }
    }
}

#[test]
fn a_bomb_is_closed_with_1009_and_harms_nobody_else() {
    let mut stage = stage(true);
    open_offering(&mut stage, 1, OFFER);
    open_offering(&mut stage, 2, OFFER);
    stage.arrive(1, &compressed_frame(Opcode::Binary, &vec![0; 5_000_000]));
    assert!(is_close(&stage.sent(), 1009));
    stage.arrive(2, &compressed_frame(Opcode::Binary, &[9; 50_000]));
    assert_eq!(said(&stage.sent()), (true, vec![9; 50_000]));
    let bad_text = [&[b'a'; 300][..], b"\xff"].concat();
    stage.arrive(2, &compressed_frame(Opcode::Text, &bad_text));
    assert!(is_close(&stage.sent(), 1007));
    assert_eq!(stage.told().len(), 4, "two opened, two closed");
}
