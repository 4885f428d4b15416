//! States survive the way, and no prefix of one is taken for one.

use proptest::prelude::*;

use super::*;
use crate::edge::router::ClientState;
use crate::link::message::{SessionNumber, ToSequencer};
use crate::link::wire::Wire;

const NOW_MS: u64 = 1 << 40;

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = MessageState> {
    let frame = (0_u8..3, any::<bool>(), any::<u32>(), any::<u32>());
    let frame = frame.prop_map(|(opcode, is_final, left, key)| FrameState {
        opcode,
        is_final,
        payload_left: u64::from(left),
        key,
    });
    let frame = proptest::option::of(frame);
    let header = proptest::collection::vec(any::<u8>(), 0..14).prop_map(Bytes::from);
    (header, frame, bytes(), bytes()).prop_map(|(header, frame, message, control)| MessageState {
        header,
        frame,
        opcode: frame.map(|_| 2),
        is_compressed: false,
        message,
        control,
    })
}

prop_compose! {
    fn connection()(
        numbers in any::<(u32, u32, u32, i32)>(),
        (phase, listening) in (1_u8..4, 1_u8..5),
        flags in any::<[bool; 6]>(),
        message in proptest::option::of(message()),
        request in proptest::option::of((bytes(), any::<Option<u32>>())),
        queue in proptest::option::of((bytes(), bytes())),
    ) -> ConnectionState {
        let (slot, generation, socket, since) = numbers;
        let since_ms = NOW_MS.saturating_add_signed(since.into());
        let [is_watched, is_pinged, is_cut, is_peer_done, is_finished, takes_compressed] = flags;
        let queue = queue.filter(|(queue, control)| queue.len() + control.len() > 0);
        ConnectionState {
            slot, generation, socket, since_ms, phase, listening,
            is_pinged, is_cut, is_peer_done,
            is_watched: is_watched && queue.is_some(),
            // What has frames has no request any more.
            is_finished: is_finished && phase > 1,
            takes_compressed: takes_compressed && phase > 1,
            deflate_window_bits: 9,
            message_size_max: if phase > 1 { 1_000 } else { 0 },
            message: message.filter(|_| !is_finished && phase > 1),
            request: request.filter(|_| phase == 1).map(|(bytes, size_needed)| {
                RequestState { bytes, size_needed: size_needed.map(u64::from) }
            }),
            queue: queue.map(|(queue, control)| {
                QueueState { frame_left: queue.len() as u64 / 2, queue, control }
            }),
        }
    }
}

proptest! {
    /// Over the wire and through a connection, and back.
    #[test]
    fn a_connection_survives_the_way(state in connection()) {
        let wire = Bytes::from(state.to_bytes());
        let arrived = ConnectionState::from_bytes(wire.clone());
        prop_assert_eq!(arrived.as_ref(), Ok(&state));
        let connection = state.clone().connection().expect("a connection can be like this");
        let id = ConnectionId { slot: state.slot, generation: state.generation };
        prop_assert_eq!(ConnectionState::of(id, &connection, NOW_MS), state);
        for size in 0..wire.len() {
            prop_assert!(ConnectionState::from_bytes(wire.slice(..size)).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_panic_nowhere(bytes in bytes()) {
        let _refused = ShardState::from_bytes(bytes.clone());
        let _refused = Batch::from_bytes(bytes.clone());
        if let Ok(state) = ConnectionState::from_bytes(bytes) {
            let _refused = state.connection();
        }
    }
}

#[test]
fn every_prefix_of_a_shard_and_a_batch_is_refused() {
    let session = SessionNumber { epoch: 3, counter: 4 };
    let close = crate::link::message::Address { incarnation: 7, slot: 1, generation: 2 };
    let (user, device) = ("alice".into(), "phone".into());
    let notice = ToSequencer::Close { address: close, session, user, device };
    let router = crate::edge::router::RouterState {
        epoch: 3,
        refuses_sequencer: false,
        in_session: true,
        turn_last: 9,
        unanswered: Vec::new(),
        waiting: vec![crate::edge::router::WaitingState::Notice { message: notice }],
        deadlines: vec![(5, (1, 2))],
    };
    let link = LinkState { incarnation: 8, next_session: 1, session: None };
    let chat = Some(ChatState { incarnation: 7, router, link });
    let shard =
        ShardState { generations: vec![0, 2], connection_count: 1, still_since_us: 5, chat };
    let client = ClientState {
        slot: 1,
        generation: 2,
        user: "alice".into(),
        device: "phone".into(),
        manual: true,
        subprotocol: 0,
        ticket_ends_unix_ms: 1,
        session: Some(session),
        parked: Vec::new(),
        outstanding_count: 1,
        outstanding_size: 2,
        pings: Vec::new(),
        tail: 1,
        behind: Some(4),
        room_wanted: None,
    };
    let batch = Batch { connections: vec![ConnectionState::default()], clients: vec![client] };
    let (shard_wire, batch_wire) = (Bytes::from(shard.to_bytes()), Bytes::from(batch.to_bytes()));
    assert_eq!(ShardState::from_bytes(shard_wire.clone()), Ok(shard));
    assert_eq!(Batch::from_bytes(batch_wire.clone()), Ok(batch));
    for size in 0..shard_wire.len() {
        assert!(ShardState::from_bytes(shard_wire.slice(..size)).is_err(), "{size} bytes");
    }
    for size in 0..batch_wire.len() {
        assert!(Batch::from_bytes(batch_wire.slice(..size)).is_err(), "{size} bytes");
    }
}
