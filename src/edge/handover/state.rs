//! What one edge hands to the next, byte for byte: little endian, as `link::wire` lays it out.
//!
//! [`STATE_VERSION`] is raised with every change of a declaration here, in the protocol of the
//! hand-over, or in what of the link's messages is kept in a state. A process that does not know
//! the version refuses before anything is changed.

use bytes::Bytes;

use crate::framer::{ArrivingState, Framer, FramerState, PartialState};
use crate::link::host::LinkState;
use crate::link::wire::wire_struct;

use crate::edge::application::ConnectionId;
use crate::edge::connection::{
    ArrivingRequest, Connection, Flags, Listening, Moment, Outbound, Phase, Reading,
};
use crate::edge::router::{ClientState, RouterState};

/// See the module.
pub const STATE_VERSION: u32 = 1;

wire_struct! {
    /// A shard, all but its connections.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ShardState {
        /// Of each connection slot, up to the last one that was ever in use.
        pub generations: Vec<u32>,
        pub connection_count: u32,
        /// When it began to stand still.
        pub still_since_us: u64,
        pub chat: Option<ChatState>,
    }
}

wire_struct! {
    /// The messenger on a shard, all but its clients.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ChatState {
        pub incarnation: u64,
        pub router: RouterState,
        pub link: LinkState,
    }
}

wire_struct! {
    /// Connections, as many as sockets go in one message.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Batch {
        pub connections: Vec<ConnectionState>,
        /// Of those of them that are the router's.
        pub clients: Vec<ClientState>,
    }
}

wire_struct! {
    /// One connection. Times are on the monotonic clock, which goes on in the next process.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct ConnectionState {
        pub slot: u32,
        pub generation: u32,
        /// Its place in the ring's table, here and there.
        pub socket: u32,
        pub since_ms: u64,
        pub phase: u8,
        pub listening: u8,
        pub is_watched: bool,
        pub is_pinged: bool,
        pub is_cut: bool,
        pub is_peer_done: bool,
        pub deflate_window_bits: u8,
        pub message_size_max: u32,
        pub is_finished: bool,
        pub takes_compressed: bool,
        pub message: Option<MessageState>,
        pub request: Option<RequestState>,
        pub queue: Option<QueueState>,
    }
}

wire_struct! {
    /// What has arrived of a message or a frame.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct MessageState {
        pub header: Bytes,
        pub frame: Option<FrameState>,
        pub opcode: Option<u8>,
        pub is_compressed: bool,
        pub message: Bytes,
        pub control: Bytes,
    }
}

wire_struct! {
    /// The frame whose payload is arriving.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FrameState {
        pub opcode: u8,
        pub is_final: bool,
        pub payload_left: u64,
        /// In memory order.
        pub key: u32,
    }
}

wire_struct! {
    /// What has arrived of an HTTP request.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct RequestState {
        pub bytes: Bytes,
        pub size_needed: Option<u64>,
    }
}

wire_struct! {
    /// What waits to be sent.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct QueueState {
        pub queue: Bytes,
        pub frame_left: u64,
        pub control: Bytes,
    }
}

impl ConnectionState {
    /// The state of a connection that no request of the ring is at work for.
    pub fn of(id: ConnectionId, connection: &Connection, now_ms: u64) -> ConnectionState {
        let FramerState { message_size_max, is_finished, takes_compressed, partial } =
            match &connection.reading {
                Reading::Frames(framer) => framer.state(),
                Reading::Request(_) => Framer::default().state(),
            };
        let outbound = connection.outbound.as_ref();
        let Flags { is_pinged, is_cut, is_peer_done, deflate_window_bits, .. } = connection.flags;
        ConnectionState {
            slot: id.slot,
            generation: id.generation,
            socket: connection.socket,
            since_ms: connection.since.ms(now_ms),
            phase: phase_byte(connection.phase),
            listening: listening_byte(connection.listening),
            is_watched: outbound.is_some_and(|outbound| outbound.is_watched),
            is_pinged,
            is_cut,
            is_peer_done,
            deflate_window_bits,
            message_size_max,
            is_finished,
            takes_compressed,
            message: partial.map(MessageState::of),
            request: connection.reading.request().map(|request| RequestState {
                bytes: Bytes::copy_from_slice(&request.bytes),
                size_needed: request.size_needed.map(|size| size as u64),
            }),
            queue: outbound.map(|outbound| {
                let (queue, frame_left, control) = outbound.parts();
                QueueState {
                    queue: Bytes::copy_from_slice(queue),
                    frame_left: frame_left as u64,
                    control: Bytes::copy_from_slice(control),
                }
            }),
        }
    }

    /// The connection of a state; `None` when no connection has such a one.
    pub fn connection(self) -> Option<Connection> {
        let framer = Framer::from_state(&FramerState {
            message_size_max: self.message_size_max,
            is_finished: self.is_finished,
            takes_compressed: self.takes_compressed,
            partial: self.message.map(MessageState::partial),
        })?;
        let outbound = self.queue.map(|state| {
            let frame_left = usize::try_from(state.frame_left).unwrap_or(usize::MAX);
            let (queue, control) = (state.queue.to_vec(), state.control.to_vec());
            let mut outbound = Outbound::of_parts(queue, frame_left, control);
            outbound.is_watched = self.is_watched;
            Box::new(outbound)
        });
        let request = self.request.map(|request| {
            Box::new(ArrivingRequest {
                bytes: request.bytes.to_vec(),
                size_needed: request.size_needed.and_then(|size| usize::try_from(size).ok()),
            })
        });
        let phase = phase_of(self.phase)?;
        Some(Connection {
            reading: match phase {
                Phase::Request => Reading::Request(request),
                _ => Reading::Frames(framer),
            },
            // An empty queue is none: nothing would ever say that it has left.
            outbound: outbound.filter(|outbound| outbound.waiting() > 0),
            since: Moment::at_ms(self.since_ms),
            timer: Moment::far(self.since_ms),
            socket: self.socket,
            phase,
            listening: listening_of(self.listening)?,
            flags: Flags {
                is_pinged: self.is_pinged,
                is_cut: self.is_cut,
                is_peer_done: self.is_peer_done,
                deflate_window_bits: self.deflate_window_bits,
                ..Flags::default()
            },
        })
    }
}

impl MessageState {
    fn of(partial: PartialState) -> MessageState {
        let frame = partial.frame.map(|frame| FrameState {
            opcode: frame.opcode,
            is_final: frame.is_final,
            payload_left: frame.payload_left,
            key: u32::from_le_bytes(frame.key),
        });
        MessageState {
            header: partial.header.into(),
            frame,
            opcode: partial.message_opcode,
            is_compressed: partial.is_compressed,
            message: partial.message.into(),
            control: partial.control.into(),
        }
    }

    fn partial(self) -> PartialState {
        let frame = self.frame.map(|frame| ArrivingState {
            opcode: frame.opcode,
            is_final: frame.is_final,
            payload_left: frame.payload_left,
            key: frame.key.to_le_bytes(),
        });
        PartialState {
            header: self.header.to_vec(),
            frame,
            message_opcode: self.opcode,
            is_compressed: self.is_compressed,
            message: self.message.to_vec(),
            control: self.control.to_vec(),
        }
    }
}

fn phase_byte(phase: Phase) -> u8 {
    match phase {
        Phase::Request => 1,
        Phase::Open => 2,
        Phase::Closing => 3,
        Phase::Gone => 4,
    }
}

/// Nobody hands over what is gone.
fn phase_of(byte: u8) -> Option<Phase> {
    match byte {
        1 => Some(Phase::Request),
        2 => Some(Phase::Open),
        3 => Some(Phase::Closing),
        _ => None,
    }
}

fn listening_byte(listening: Listening) -> u8 {
    match listening {
        Listening::Frames => 1,
        Listening::CloseFrame => 2,
        Listening::EndOfStream => 3,
        Listening::Nothing => 4,
    }
}

fn listening_of(byte: u8) -> Option<Listening> {
    match byte {
        1 => Some(Listening::Frames),
        2 => Some(Listening::CloseFrame),
        3 => Some(Listening::EndOfStream),
        4 => Some(Listening::Nothing),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
