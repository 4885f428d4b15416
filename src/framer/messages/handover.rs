//! A framer between two inputs as plain data, so that another process can go on with it.

use super::{Arriving, Framer, Partial, RESERVED_COMPRESSED, RESERVED_NONE};
use crate::framer::frame::{HEADER_SIZE_MAX, Opcode};

/// What [`Framer::state`] yields and [`Framer::from_state`] takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FramerState {
    pub message_size_max: u32,
    pub is_finished: bool,
    pub takes_compressed: bool,
    pub partial: Option<PartialState>,
}

/// What has arrived of a message or a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartialState {
    pub header: Vec<u8>,
    pub frame: Option<ArrivingState>,
    /// The opcode of the data message that is open.
    pub message_opcode: Option<u8>,
    pub is_compressed: bool,
    pub message: Vec<u8>,
    pub control: Vec<u8>,
}

/// The frame whose payload is arriving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArrivingState {
    pub opcode: u8,
    pub is_final: bool,
    pub payload_left: u64,
    /// Belongs to the next payload byte, which is the first in memory order.
    pub key: [u8; 4],
}

impl Framer {
    /// The framer's state between two inputs, when nothing is lent out.
    pub fn state(&self) -> FramerState {
        FramerState {
            message_size_max: self.message_size_max,
            is_finished: self.finished,
            takes_compressed: self.reserved_allowed == RESERVED_COMPRESSED,
            partial: self
                .partial
                .as_ref()
                .filter(|_| !self.finished)
                .map(|partial| partial.state()),
        }
    }

    /// The framer of a state; `None` when no framer has such a one.
    pub fn from_state(state: &FramerState) -> Option<Framer> {
        let partial = match &state.partial {
            Some(partial) => Some(Box::new(Partial::from_state(partial)?)),
            None => None,
        };
        Some(Framer {
            partial,
            message_size_max: state.message_size_max,
            finished: state.is_finished,
            reserved_allowed: match state.takes_compressed {
                true => RESERVED_COMPRESSED,
                false => RESERVED_NONE,
            },
        })
    }
}

impl Partial {
    fn state(&self) -> PartialState {
        // What was lent out is done with: the next call of the framer would have dropped it.
        let (control_is_lent, message_is_lent) =
            self.lent.map_or((false, false), |lent| (lent.is_control(), !lent.is_control()));
        PartialState {
            header: self.header[..usize::from(self.header_size)].to_vec(),
            frame: self.frame.map(|frame| ArrivingState {
                opcode: frame.opcode as u8,
                is_final: frame.is_final,
                payload_left: frame.payload_left,
                key: frame.key,
            }),
            message_opcode: self.message_opcode.map(|opcode| opcode as u8),
            is_compressed: self.is_compressed,
            message: if message_is_lent { Vec::new() } else { self.message.clone() },
            control: if control_is_lent { Vec::new() } else { self.control.clone() },
        }
    }

    fn from_state(state: &PartialState) -> Option<Partial> {
        let mut partial = Partial { is_compressed: state.is_compressed, ..Partial::default() };
        if state.header.len() >= HEADER_SIZE_MAX {
            return None;
        }
        partial.header[..state.header.len()].copy_from_slice(&state.header);
        partial.header_size = state.header.len() as u8;
        partial.frame = match state.frame {
            None => None,
            Some(frame) => Some(Arriving {
                opcode: Opcode::from_bits(frame.opcode).ok()?,
                is_final: frame.is_final,
                payload_left: frame.payload_left,
                key: frame.key,
            }),
        };
        partial.message_opcode = match state.message_opcode {
            None => None,
            Some(bits) => Some(Opcode::from_bits(bits).ok()?),
        };
        if partial.message_opcode == Some(Opcode::Text) && !partial.is_compressed {
            partial.text.push(&state.message).ok()?;
        }
        partial.message.clone_from(&state.message);
        partial.control.clone_from(&state.control);
        Some(partial)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Event, Input};
    use super::*;
    use crate::framer::mask::unmask;

    fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            size if size < 126 => bytes.push(0x80 | size as u8),
            size => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(size as u16).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&key);
        let mut payload = payload.to_vec();
        unmask(&mut payload, key);
        bytes.extend_from_slice(&payload);
        bytes
    }

    fn events(framer: &mut Framer, mut bytes: Vec<u8>, heard: &mut Vec<Vec<u8>>) {
        let mut input = Input::new(&mut bytes);
        while let Some(event) = framer.next(&mut input).expect("no violation") {
            heard.push(match event {
                Event::Text(text) => text.as_bytes().to_vec(),
                Event::Binary(bytes) | Event::Ping(bytes) | Event::Pong(bytes) => bytes.to_vec(),
                Event::Close { .. } => b"close".to_vec(),
            });
        }
    }

    proptest! {
        /// Wherever the stream is cut and handed over, the same is heard.
        #[test]
        fn a_framer_goes_on_from_its_state(
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
            key in any::<[u8; 4]>(),
            size in 0..300_usize,
        ) {
            let text = "\u{e4}\u{20ac}".repeat(size / 5);
            let (head, tail) = text.as_bytes().split_at(text.len() / 2);
            let mut stream = frame(0x82, &vec![7; size], key);
            stream.extend(frame(0x01, head, key));
            stream.extend(frame(0x89, b"ping", key));
            stream.extend(frame(0x80, tail, key));
            stream.extend(frame(0x88, b"", key));
            let mut whole = Vec::new();
            events(&mut Framer::new(1_000), stream.clone(), &mut whole);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let (mut framer, mut heard, mut from) = (Framer::new(1_000), Vec::new(), 0);
            for cut in cuts {
                events(&mut framer, stream[from..cut].to_vec(), &mut heard);
                from = cut;
                let state = framer.state();
                framer = Framer::from_state(&state).expect("a state of a framer");
                prop_assert_eq!(framer.state(), state);
            }
            prop_assert_eq!(heard, whole);
        }
    }
}
