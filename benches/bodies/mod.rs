//! The bodies of the microbenchmarks: each is set up here once and then runs any number of times.
//!
//! `benches/micro.rs` times them, `tests/benches_smoke.rs` runs each once and small, so that they
//! cannot rot. Inputs are the same in every run.

use std::hint::black_box;
use std::rc::Rc;

use aldis::arena::{Slab, Wheel};
use aldis::framer::{Event, Framer, Input, Opcode, encode_frame, mask};
use aldis::link::frame::{FrameKind, FrameReader, write_frame};
use aldis::link::message::{Address, Target, ToSequencer};
use aldis::link::record::{Body, Message};
use aldis::link::wire::Wire;
use aldis::protocol::{json, operation};
use bytes::Bytes;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const MESSAGE_SIZE_MAX: u32 = 1 << 20;

/// One benchmark.
pub struct Bench {
    pub name: &'static str,
    /// Items (frames, messages, keys) that one run handles.
    pub items: u64,
    /// Bytes of input that one run handles; 0 where that says nothing.
    pub bytes: u64,
    /// Runs once, and returns how many items it handled.
    pub run: Box<dyn FnMut() -> u64>,
}

/// How much one run does.
#[derive(Clone, Copy)]
pub struct Scale {
    /// Items of a run.
    pub items: usize,
    /// Bytes of a chat message's body.
    pub body_size: usize,
}

/// For measuring.
pub const FULL: Scale = Scale { items: 1_000, body_size: 100 };

/// Every benchmark at this scale.
pub fn all(scale: Scale) -> Vec<Bench> {
    vec![
        framer("framer/100", scale.items, 100),
        framer("framer/512", scale.items, 512),
        framer("framer/16384", scale.items.div_ceil(16), 16_384),
        frame_encoding(scale),
        unmasking("unmask/100", 100),
        unmasking("unmask/16384", 16_384),
        wheel(scale),
        slab(scale),
        json_decoding_send(scale),
        json_decoding_ack(scale),
        json_encoding(scale),
        link_encoding(scale),
        link_decoding(scale),
    ]
}

/// Masked binary frames, back to back, to events. Unmasking is its own inverse, so that every other
/// run sees other payloads; the work is the same.
fn framer(name: &'static str, items: usize, size: usize) -> Bench {
    let mut stream = Vec::new();
    for _ in 0..items {
        let start = stream.len();
        encode_frame(Opcode::Binary, &vec![b'x'; size], &mut stream);
        // A client's frame: the mask bit, and the key before the payload.
        let head_size = stream.len() - start - size;
        stream[start + 1] |= 0x80;
        let at = start + head_size;
        stream.splice(at..at, MASK);
    }
    let bytes = stream.len() as u64;
    let run = move || {
        let mut framer = Framer::new(MESSAGE_SIZE_MAX);
        let mut input = Input::new(&mut stream);
        let mut events = 0;
        while let Some(event) = framer.next(&mut input).expect("the frames are good") {
            events += u64::from(matches!(black_box(event), Event::Binary(_)));
        }
        events
    };
    Bench { name, items: items as u64, bytes, run: Box::new(run) }
}

fn frame_encoding(scale: Scale) -> Bench {
    let payload = vec![b'x'; scale.body_size];
    let mut out = Vec::new();
    let bytes = (scale.items * scale.body_size) as u64;
    let run = move || {
        out.clear();
        for _ in 0..scale.items {
            encode_frame(Opcode::Text, black_box(&payload), &mut out);
        }
        black_box(&out);
        scale.items as u64
    };
    Bench { name: "frame encode", items: scale.items as u64, bytes, run: Box::new(run) }
}

fn unmasking(name: &'static str, size: usize) -> Bench {
    let mut payload = vec![b'x'; size];
    let run = move || {
        black_box(mask::unmask(black_box(&mut payload), MASK));
        1
    };
    Bench { name, items: 1, bytes: size as u64, run: Box::new(run) }
}

/// Deadlines come in, and all of them pass a little later: what heartbeats do.
fn wheel(scale: Scale) -> Bench {
    let mut now_ms = 0;
    let mut wheel = Wheel::new(now_ms, 100, 1024, scale.items);
    let mut expired = Vec::with_capacity(scale.items);
    let run = move || {
        for slot in 0..scale.items as u32 {
            let deadline_ms = now_ms + 30_000 + u64::from(slot % 1_000);
            wheel.insert(slot, deadline_ms);
        }
        now_ms += 32_000;
        expired.clear();
        wheel.expire(now_ms, &mut expired);
        expired.len() as u64
    };
    Bench { name: "wheel", items: scale.items as u64, bytes: 0, run: Box::new(run) }
}

/// Connections come, are looked up, and go.
fn slab(scale: Scale) -> Bench {
    let mut slab = Slab::with_capacity(scale.items);
    let mut keys = Vec::with_capacity(scale.items);
    let run = move || {
        let mut found = 0;
        keys.extend((0..scale.items as u64).filter_map(|value| slab.insert([value; 8])));
        for key in &keys {
            found += u64::from(slab.get(*key).is_some());
        }
        for key in keys.drain(..) {
            slab.remove(key);
        }
        found
    };
    Bench { name: "slab", items: scale.items as u64, bytes: 0, run: Box::new(run) }
}

fn json_decoding_send(scale: Scale) -> Bench {
    let body = "x".repeat(scale.body_size);
    let frame = format!(r#"{{"t":"send","to":"bob-4711","id":"1234","body":"{body}"}}"#);
    json_decoding("json decode send", scale, frame)
}

fn json_decoding_ack(scale: Scale) -> Bench {
    let frame = r#"{"t":"ack","convo":"dm:alice-4711:bob-4711","seq":815,"kind":"delivered"}"#;
    json_decoding("json decode ack", scale, frame.to_owned())
}

fn json_decoding(name: &'static str, scale: Scale, frame: String) -> Bench {
    let bytes = (scale.items * frame.len()) as u64;
    let run = move || {
        let decode = || json::decode(black_box(frame.as_bytes())).is_ok();
        (0..scale.items).map(|_| u64::from(decode())).sum()
    };
    Bench { name, items: scale.items as u64, bytes, run: Box::new(run) }
}

fn json_encoding(scale: Scale) -> Bench {
    let message = message(scale);
    let mut out = Vec::new();
    let run = move || {
        for _ in 0..scale.items {
            out.clear();
            json::encode(&operation::Event::Message(black_box(&message)), &mut out);
            black_box(&out);
        }
        scale.items as u64
    };
    Bench { name: "json encode msg", items: scale.items as u64, bytes: 0, run: Box::new(run) }
}

/// Sends of clients to entries, and those to frames of a link.
fn link_encoding(scale: Scale) -> Bench {
    let send = send(scale);
    let mut out = Vec::new();
    let run = move || {
        out.clear();
        for number in 1..=scale.items as u64 {
            let entry = black_box(&send).to_bytes();
            write_frame(FrameKind::Entry, number, 0, &entry, &mut out);
        }
        black_box(&out);
        scale.items as u64
    };
    Bench { name: "link encode send", items: scale.items as u64, bytes: 0, run: Box::new(run) }
}

/// Frames of a link, in pieces as a socket gives them, to sends.
fn link_decoding(scale: Scale) -> Bench {
    let entry = send(scale).to_bytes();
    let mut stream = Vec::new();
    for number in 1..=scale.items as u64 {
        write_frame(FrameKind::Entry, number, 0, &entry, &mut stream);
    }
    let bytes = stream.len() as u64;
    let run = move || {
        let mut reader = FrameReader::default();
        reader.trust();
        let mut sends = 0;
        for piece in stream.chunks(16 * 1024) {
            reader.push(piece);
            while let Some((_, entry)) = reader.take_frame().expect("the frames are good") {
                let send = ToSequencer::from_bytes(entry).expect("the entries are good");
                sends += u64::from(matches!(black_box(send), ToSequencer::Send { .. }));
            }
        }
        sends
    };
    Bench { name: "link decode send", items: scale.items as u64, bytes, run: Box::new(run) }
}

fn body(scale: Scale) -> Body {
    Body::Text { text: Bytes::from(vec![b'x'; scale.body_size]) }
}

fn send(scale: Scale) -> ToSequencer {
    ToSequencer::Send {
        address: Address { incarnation: 1, slot: 2, generation: 3 },
        user: Rc::from("alice-4711"),
        device: Rc::from("phone"),
        target: Target::User { user: Rc::from("bob-4711") },
        id: Rc::from("1234"),
        body: body(scale),
    }
}

fn message(scale: Scale) -> Message {
    Message {
        convo: Rc::from("dm:alice-4711:bob-4711"),
        seq: 815,
        mid: 251_000_000_000_000_000,
        ts: 1_764_000_000_000,
        from: Rc::from("alice-4711"),
        device: Rc::from("phone"),
        id: Rc::from("1234"),
        body: body(scale),
    }
}
