//! The receiving side of one connection: received bytes in, messages and control frames out.
//!
//! A whole unfragmented frame is unmasked and handed out where it lies in the receive buffer. What
//! the buffer's end cuts, and fragmented messages, gather in a [`Partial`], which exists only until
//! it is handed out: an idle framer is 16 bytes. What is gathered never exceeds twice of what has
//! arrived, whatever a header announced.
//!
//! A compressed message is inflated once it is whole, by the [`Inflater`] that comes with the input
//! and holds the message while it is lent out.

mod handover;

use std::fmt;

pub use handover::{ArrivingState, FramerState, PartialState};

use super::Violation;
use super::deflate::{Inflater, compressed_size_max};
use super::frame::{
    HEADER_SIZE_MAX, Header, Opcode, RESERVED_COMPRESSED, RESERVED_NONE, is_close_code,
};
use super::mask::unmask;
use super::utf8::Validator;

/// What a peer has said. Not `Debug`, so that no message gets into a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The last event: whatever follows a close frame is ignored.
    Close {
        code: Option<u16>,
        reason: &'a str,
    },
}

/// A receive buffer on its way through a framer: invariant `position <= bytes.len()`, and what lies
/// before `position` is consumed.
pub struct Input<'a> {
    bytes: &'a mut [u8],
    position: usize,
    inflater: Option<&'a mut Inflater>,
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Input<'a> {
        Input { bytes, position: 0, inflater: None }
    }

    /// With what a framer that was made by [`Framer::with_deflate`] needs.
    pub fn with_inflater(bytes: &'a mut [u8], inflater: Option<&'a mut Inflater>) -> Input<'a> {
        Input { bytes, position: 0, inflater }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.position..]
    }

    /// Consumes up to `size_max` bytes.
    fn take(&mut self, size_max: u64) -> &mut [u8] {
        let start = self.position;
        let left = self.bytes.len() - start;
        self.position += usize::try_from(size_max).map_or(left, |size| size.min(left));
        &mut self.bytes[start..self.position]
    }

    fn last_taken(&self, size: usize) -> &[u8] {
        &self.bytes[self.position - size..self.position]
    }

    /// The message of which this is the compressed form.
    fn inflate<'i>(
        &'i mut self,
        payload: Compressed,
        opcode: Opcode,
        size_max: u32,
    ) -> Result<&'i [u8], Violation> {
        let inflater = self.inflater.as_deref_mut().ok_or(Violation::ReservedBits)?;
        let payload = match payload {
            Compressed::Taken(size) => &self.bytes[self.position - size..self.position],
            Compressed::Gathered(payload) => payload,
        };
        inflater.inflate(payload, opcode == Opcode::Text, size_max as usize)
    }
}

/// Where the payload of a compressed message is.
enum Compressed<'p> {
    /// The bytes of the input that were consumed last.
    Taken(usize),
    Gathered(&'p [u8]),
}

/// Per-connection state. Sans I/O: see the module.
#[derive(Default)]
pub struct Framer {
    partial: Option<Box<Partial>>,
    message_size_max: u32,
    finished: bool,
    /// [`RESERVED_COMPRESSED`] when compression was agreed.
    reserved_allowed: u8,
}

const _: () = assert!(size_of::<Framer>() <= 16);

/// What has arrived and cannot be handed out yet.
#[derive(Default)]
struct Partial {
    /// A header that the end of a buffer cut.
    header: [u8; HEADER_SIZE_MAX],
    header_size: u8,
    /// The frame whose payload is arriving.
    frame: Option<Arriving>,
    /// The data message that is open: begun and not ended by a final frame.
    message_opcode: Option<Opcode>,
    /// That message, or the last one.
    is_compressed: bool,
    message: Vec<u8>,
    text: Validator,
    /// The payload of a control frame: at most 125 bytes, its header was checked.
    control: Vec<u8>,
    /// What of this the last event lent out, to be dropped at the next call.
    lent: Option<Opcode>,
}

#[derive(Clone, Copy)]
struct Arriving {
    opcode: Opcode,
    is_final: bool,
    payload_left: u64,
    /// Belongs to the next payload byte.
    key: [u8; 4],
}

/// Where the payload of a frame that makes an event is.
enum Arrived {
    /// The last `size` bytes of the input that were consumed.
    InPlace { opcode: Opcode, size: usize, is_compressed: bool },
    /// In the partial.
    Gathered(Opcode),
}

use Arrived::{Gathered, InPlace};

/// What a partial lends out.
enum Lent<'p> {
    Plain(&'p [u8]),
    Compressed(&'p [u8]),
}

/// How far a partial came with an input.
enum Progress {
    InputEnded,
    BetweenFrames,
    Finished(Opcode),
}

impl Framer {
    /// Takes messages of at most `message_size_max` bytes, reassembled.
    pub fn new(message_size_max: u32) -> Framer {
        Framer { message_size_max, reserved_allowed: RESERVED_NONE, ..Framer::default() }
    }

    /// Takes compressed messages too: [`Input::with_inflater`] brings what inflates them. The bound
    /// is that of the inflated message.
    pub fn with_deflate(message_size_max: u32) -> Framer {
        Framer { message_size_max, reserved_allowed: RESERVED_COMPRESSED, ..Framer::default() }
    }

    /// The next event of `input`, or `None` when all of it is consumed: to be called until then.
    /// After a close frame or a violation all further input is ignored.
    pub fn next<'e>(&'e mut self, input: &'e mut Input) -> Result<Option<Event<'e>>, Violation> {
        self.drop_lent();
        if self.finished {
            input.take(u64::MAX);
            return Ok(None);
        }
        let arrived = self.advance(input);
        let Framer { partial, finished, message_size_max, .. } = self;
        let partial = partial.as_deref();
        let event = match arrived {
            Ok(None) => return Ok(None),
            Ok(Some(InPlace { opcode, size, is_compressed: false })) => {
                event(opcode, input.last_taken(size))
            }
            Ok(Some(InPlace { opcode, size, .. })) => input
                .inflate(Compressed::Taken(size), opcode, *message_size_max)
                .and_then(|message| event(opcode, message)),
            Ok(Some(Gathered(opcode))) => match partial.map_or(Lent::Plain(&[]), Partial::lent) {
                Lent::Plain(payload) => event(opcode, payload),
                Lent::Compressed(payload) => input
                    .inflate(Compressed::Gathered(payload), opcode, *message_size_max)
                    .and_then(|message| event(opcode, message)),
            },
            Err(violation) => Err(violation),
        };
        *finished = matches!(event, Err(_) | Ok(Event::Close { .. }));
        event.map(Some)
    }

    /// Bytes held for what is not complete yet; 0 for an idle framer.
    pub fn held_size(&self) -> usize {
        let partial = self.partial.as_ref();
        partial.map_or(0, |partial| {
            size_of::<Partial>() + partial.message.capacity() + partial.control.capacity()
        })
    }

    /// Gives back what is held beyond what has arrived.
    pub fn shrink(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.message.shrink_to_fit();
            partial.control.shrink_to_fit();
        }
    }

    /// Frees what the event before lent out, and the whole partial when nothing else is in it.
    fn drop_lent(&mut self) {
        let Some(partial) = &mut self.partial else {
            return;
        };
        match partial.lent.take() {
            Some(opcode) if opcode.is_control() => partial.control = Vec::new(),
            Some(_) => partial.message = Vec::new(),
            None => {}
        }
        if partial.is_vacant() {
            self.partial = None;
        }
    }

    /// Consumes input until a frame that makes an event is whole, or the input ends.
    fn advance(&mut self, input: &mut Input) -> Result<Option<Arrived>, Violation> {
        loop {
            if let Some(partial) = &mut self.partial {
                match partial.gather(input)? {
                    Progress::InputEnded => return Ok(None),
                    Progress::Finished(opcode) => return Ok(Some(Gathered(opcode))),
                    Progress::BetweenFrames => {}
                }
            }
            let Some(header) = self.next_header(input)? else {
                return Ok(None);
            };
            self.check_against_message(&header)?;
            let is_whole = header.payload_size <= input.rest().len() as u64;
            let is_alone = header.is_final && header.opcode != Opcode::Continuation;
            if is_whole && is_alone {
                let payload = input.take(header.payload_size);
                unmask(payload, header.key);
                let (opcode, size, is_compressed) =
                    (header.opcode, payload.len(), header.is_compressed);
                return Ok(Some(InPlace { opcode, size, is_compressed }));
            }
            self.partial.get_or_insert_default().begin(&header);
        }
    }

    /// The header at the front of the input, consumed; a cut one is kept.
    fn next_header(&mut self, input: &mut Input) -> Result<Option<Header>, Violation> {
        if let Some(partial) = &mut self.partial
            && partial.header_size > 0
        {
            return partial.complete_header(input, self.reserved_allowed);
        }
        let header = Header::decode(input.rest(), self.reserved_allowed)?;
        match &header {
            Some(header) => {
                input.take(header.header_size as u64);
            }
            None if input.rest().is_empty() => {}
            None => self.partial.get_or_insert_default().keep_header(input),
        }
        Ok(header)
    }

    fn check_against_message(&self, header: &Header) -> Result<(), Violation> {
        let open = self.partial.as_ref().filter(|partial| partial.message_opcode.is_some());
        match (header.opcode, open.is_some()) {
            (opcode, _) if opcode.is_control() => return Ok(()),
            (Opcode::Continuation, false) => return Err(Violation::NothingToContinue),
            (Opcode::Text | Opcode::Binary, true) => return Err(Violation::MessageUnfinished),
            _ => {}
        }
        let held = open.map_or(0, |partial| partial.message.len() as u64);
        let is_compressed = header.is_compressed || open.is_some_and(|open| open.is_compressed);
        let size_max = match is_compressed {
            true => compressed_size_max(self.message_size_max),
            false => u64::from(self.message_size_max),
        };
        if held + header.payload_size > size_max {
            return Err(Violation::TooBig);
        }
        Ok(())
    }
}

/// Sizes only: what people write to each other does not get into logs.
impl fmt::Debug for Framer {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter
            .debug_struct("Framer")
            .field("held_size", &self.held_size())
            .field("message_size_max", &self.message_size_max)
            .field("finished", &self.finished)
            .finish()
    }
}

impl Partial {
    fn is_vacant(&self) -> bool {
        self.header_size == 0 && self.frame.is_none() && self.message_opcode.is_none()
    }

    fn lent(&self) -> Lent<'_> {
        match self.lent {
            Some(opcode) if opcode.is_control() => Lent::Plain(&self.control),
            Some(_) if self.is_compressed => Lent::Compressed(&self.message),
            Some(_) => Lent::Plain(&self.message),
            None => Lent::Plain(&[]),
        }
    }

    /// Keeps all that is left of the input, which is less than a header.
    fn keep_header(&mut self, input: &mut Input) {
        let cut = input.take(HEADER_SIZE_MAX as u64 - 1);
        self.header[..cut.len()].copy_from_slice(cut);
        self.header_size = cut.len() as u8;
    }

    /// Adds to the kept header, byte by byte, until it is one.
    fn complete_header(
        &mut self,
        input: &mut Input,
        reserved_allowed: u8,
    ) -> Result<Option<Header>, Violation> {
        loop {
            let size = usize::from(self.header_size);
            if let Some(header) = Header::decode(&self.header[..size], reserved_allowed)? {
                self.header_size = 0;
                return Ok(Some(header));
            }
            let &mut [byte] = input.take(1) else {
                return Ok(None);
            };
            self.header[size] = byte;
            self.header_size += 1;
        }
    }

    fn begin(&mut self, header: &Header) {
        if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
            self.message_opcode = Some(header.opcode);
            self.is_compressed = header.is_compressed;
            self.text = Validator::default();
        }
        self.frame = Some(Arriving {
            opcode: header.opcode,
            is_final: header.is_final,
            payload_left: header.payload_size,
            key: header.key,
        });
    }

    /// Moves what has arrived of the frame under way out of the input.
    fn gather(&mut self, input: &mut Input) -> Result<Progress, Violation> {
        let Some(frame) = &mut self.frame else {
            return Ok(Progress::BetweenFrames);
        };
        let piece = input.take(frame.payload_left);
        frame.payload_left -= piece.len() as u64;
        frame.key = unmask(piece, frame.key);
        let frame = *frame;
        self.append(frame.opcode, piece)?;
        if frame.payload_left > 0 {
            return Ok(Progress::InputEnded);
        }
        self.frame = None;
        self.end_frame(frame)
    }

    fn append(&mut self, opcode: Opcode, piece: &[u8]) -> Result<(), Violation> {
        if opcode.is_control() {
            self.control.extend_from_slice(piece);
            return Ok(());
        }
        if self.message_opcode == Some(Opcode::Text) && !self.is_compressed {
            self.text.push(piece).map_err(|_| Violation::NotUtf8)?;
        }
        self.message.extend_from_slice(piece);
        Ok(())
    }

    fn end_frame(&mut self, frame: Arriving) -> Result<Progress, Violation> {
        let opcode = match self.message_opcode {
            _ if frame.opcode.is_control() => frame.opcode,
            Some(_) if !frame.is_final => return Ok(Progress::BetweenFrames),
            Some(Opcode::Text) if !self.text.is_complete() => return Err(Violation::NotUtf8),
            Some(opcode) => {
                self.message_opcode = None;
                opcode
            }
            None => return Err(Violation::NothingToContinue),
        };
        self.lent = Some(opcode);
        Ok(Progress::Finished(opcode))
    }
}

fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, Violation> {
    Ok(match opcode {
        Opcode::Text => Event::Text(text(payload)?),
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => close_event(payload)?,
    })
}

fn close_event(payload: &[u8]) -> Result<Event<'_>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        let (code, reason) = (None, "");
        return match payload {
            [] => Ok(Event::Close { code, reason }),
            _ => Err(Violation::CloseSize),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_close_code(code) {
        return Err(Violation::CloseCode(code));
    }
    let reason = text(reason).map_err(|_| Violation::CloseReason)?;
    let code = Some(code);
    Ok(Event::Close { code, reason })
}

fn text(payload: &[u8]) -> Result<&str, Violation> {
    simdutf8::basic::from_utf8(payload).map_err(|_| Violation::NotUtf8)
}

#[cfg(test)]
mod tests;
