//! The binary layout against a decoder and an encoder of its own, and against JSON: whatever one
//! subprotocol says, the other says as well.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::fuzzing::{bytes, integer, number, written, zigzag};
use crate::limits::{BODY_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
use crate::link::message::{ChannelChange, GroupChange, GroupState, Tally, Target};
use crate::protocol::operation::Operation;
use crate::protocol::{conversation, json};

/// Names and kinds of fields, as `docs/protocol.md` lists them.
const FIELDS: [(u8, &str); 49] = [
    (0x01, "convo"),
    (0x02, "ref"),
    (0x03, "to"),
    (0x04, "seq"),
    (0x05, "id"),
    (0x06, "mid"),
    (0x07, "body"),
    (0x08, "ts"),
    (0x09, "body64"),
    (0x0a, "kind"),
    (0x0b, "from"),
    (0x0c, "dup"),
    (0x0d, "convos"),
    (0x0e, "before"),
    (0x0f, "msgs"),
    (0x10, "limit"),
    (0x11, "after"),
    (0x12, "more"),
    (0x13, "user"),
    (0x14, "retry_ms"),
    (0x15, "device"),
    (0x16, "reconnect_ms"),
    (0x17, "session"),
    (0x18, "heartbeat_ms"),
    (0x19, "ticket"),
    (0x1a, "head"),
    (0x1b, "server"),
    (0x1c, "delivered"),
    (0x1d, "by"),
    (0x1e, "read"),
    (0x1f, "message"),
    (0x20, "unread"),
    (0x22, "others_delivered"),
    (0x24, "others_read"),
    (0x26, "reason"),
    (0x28, "code"),
    (0x21, "members"),
    (0x23, "admins"),
    (0x25, "owner"),
    (0x2a, "role"),
    (0x2c, "version"),
    (0x2e, "count"),
    (0x30, "of"),
    (0x3c, "subscribers"),
    (0x29, "devices"),
    (0x2b, "users"),
    (0x34, "last_seen"),
    (0x36, "state"),
    (0x38, "presence"),
];

/// Those without a name are none.
const EVENTS: [&str; 19] = [
    "welcome", "sent", "msg", "receipt", "synced", "page", "convos", "pong", "goaway", "behind",
    "error", "group", "", "", "", "devices", "privacy", "presence", "typing",
];

const CODES: [&str; 10] = [
    "bad_request",
    "unknown_op",
    "not_member",
    "no_such_convo",
    "too_large",
    "rate_limited",
    "group_full",
    "forbidden",
    "unavailable",
    "internal",
];

fn take_number(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let byte = rest[0];
        *rest = &rest[1..];
        value += u64::from(byte % 128) << (7 * place);
        if byte < 128 {
            break;
        }
    }
    value
}

fn take_sized<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let size = take_number(rest) as usize;
    let (value, after) = rest.split_at(size);
    *rest = after;
    value
}

/// The naive decoder of events: the JSON that says the same.
fn as_json(message: &[u8]) -> Value {
    let name = match message[0] {
        0xbc => "channel",
        0xc6 => "failed",
        kind => EVENTS[usize::from(kind - 0x81)],
    };
    let mut object = fields_as_json(&message[1..], name);
    object.insert("t".into(), name.into());
    object.into()
}

fn fields_as_json(mut rest: &[u8], event: &str) -> Map<String, Value> {
    let mut object = Map::new();
    while let Some((&tag, value)) = rest.split_first() {
        rest = value;
        let name = FIELDS.iter().find(|(known, _)| *known == tag).expect("documented").1;
        let value = if tag % 2 == 0 {
            integer_as_json(name, take_number(&mut rest))
        } else {
            bytes_as_json(name, take_sized(&mut rest), event)
        };
        assert_eq!(object.insert(name.into(), value), None, "{name} comes twice");
    }
    object
}

fn integer_as_json(name: &str, value: u64) -> Value {
    let numbered = |names: &[&str]| json!(names[value as usize - 1]);
    match name {
        "ref" => json!((value >> 1) as i64 ^ -((value & 1) as i64)),
        "mid" => json!(value.to_string()),
        "dup" | "more" => json!(value == 1),
        "kind" => numbered(&["delivered", "read", "system"]),
        "reason" => numbered(&["drain", "replaced", "overload", "slow"]),
        "code" => numbered(&CODES),
        "state" => numbered(&["online", "offline"]),
        "presence" => numbered(&["everyone", "nobody"]),
        _ => json!(value),
    }
}

fn bytes_as_json(name: &str, mut value: &[u8], event: &str) -> Value {
    if matches!(name, "members" | "admins") {
        let mut names = Vec::new();
        while !value.is_empty() {
            names.push(String::from_utf8(take_sized(&mut value).to_vec()).expect("text"));
        }
        return json!(names);
    }
    if !matches!(name, "convos" | "msgs" | "devices") {
        let text = || std::str::from_utf8(value).expect("text");
        return if name == "body64" { json!(STANDARD.encode(value)) } else { json!(text()) };
    }
    let mut entries = Vec::new();
    while !value.is_empty() {
        entries.push(fields_as_json(take_sized(&mut value), event));
    }
    if event != "synced" {
        return json!(entries);
    }
    let heads = entries.iter().map(|entry| {
        let convo = entry["convo"].as_str().expect("text");
        (convo.to_owned(), entry["head"].clone())
    });
    Value::Object(heads.collect())
}

fn any_id() -> impl Strategy<Value = Id> {
    "[a-c:%\"\u{e4}\u{1f600}]{1,16}".prop_map(|id| id.as_str().into())
}

fn any_name() -> impl Strategy<Value = ConversationName> {
    let pairs = (any_id(), any_id()).prop_map(|(one, other)| conversation::direct(&one, &other));
    prop_oneof![any_id(), pairs]
}

fn any_integer() -> impl Strategy<Value = u64> {
    let max = INTEGER_MAX as u64;
    prop_oneof![0..=300u64, 0..=max, Just(max)]
}

fn any_reference() -> impl Strategy<Value = Option<i64>> {
    let ends = prop_oneof![Just(INTEGER_MAX), Just(-INTEGER_MAX)];
    proptest::option::of(prop_oneof![-300..=300i64, -INTEGER_MAX..=INTEGER_MAX, ends])
}

fn any_body() -> impl Strategy<Value = Body> {
    let text = ".{0,200}".prop_map(|text| Body::Text { text: Bytes::from(text) });
    let binary = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![text, binary.prop_map(|bytes| Body::Binary { bytes: bytes.into() })]
}

fn any_watermark() -> impl Strategy<Value = Watermark> {
    prop_oneof![Just(Watermark::Delivered), Just(Watermark::Read)]
}

fn any_heads() -> impl Strategy<Value = Vec<(ConversationName, u64)>> {
    let heads = proptest::collection::btree_map(any_name(), any_integer(), 0..5);
    heads.prop_map(|heads| heads.into_iter().collect())
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let target = prop_oneof![
        any_name().prop_map(|name| Target::Conversation { name }),
        any_id().prop_map(|user| Target::User { user }),
    ];
    let before = proptest::option::of(any_integer().prop_map(|before| before.max(1)));
    prop_oneof![
        (target, any_id(), any_body()).prop_map(|(target, id, body)| Operation::Send {
            target,
            id,
            body
        }),
        (any_name(), any_integer(), any_watermark()).prop_map(|(convo, seq, watermark)| {
            Operation::Acknowledge { convo, seq, watermark }
        }),
        proptest::option::of(any_heads()).prop_map(|convos| Operation::Sync { convos }),
        (any_name(), before, 1..=200u32)
            .prop_map(|(convo, before, limit)| { Operation::History { convo, before, limit } }),
        (proptest::option::of(any_name()), 1..=200u32)
            .prop_map(|(after, limit)| Operation::Conversations { after, limit }),
        Just(Operation::Ping),
        (any_id(), any_change()).prop_map(|(convo, change)| Operation::Group { convo, change }),
        (any_id(), 0..3usize).prop_map(|(convo, index)| {
            let changes =
                [ChannelChange::Create, ChannelChange::Subscribe, ChannelChange::Unsubscribe];
            Operation::Channel { convo, change: changes[index] }
        }),
        any_device_operation(),
        (0..LATER.len()).prop_map(|index| Operation::Later(LATER[index])),
    ]
}

fn any_device_operation() -> impl Strategy<Value = Operation> {
    let users = proptest::collection::btree_set(any_id(), 1..4);
    let users = users.prop_map(|users| users.into_iter().collect::<Vec<Id>>());
    (0..6u8, any_id(), any::<bool>(), users, any_name()).prop_map(
        |(kind, device, hidden, users, convo)| match kind {
            0 => Operation::Devices,
            1 => Operation::Revoke { device },
            2 => Operation::Privacy { hidden },
            3 => Operation::PresenceSubscribe { users },
            4 => Operation::PresenceUnsubscribe { users },
            _ => Operation::Typing { convo },
        },
    )
}

fn any_change() -> impl Strategy<Value = GroupChange> {
    let members = proptest::collection::vec(any_id(), 0..4);
    (0..6u8, members, any::<bool>()).prop_map(|(kind, members, admin)| match kind {
        0 => GroupChange::Create { members },
        1 => GroupChange::Add { members },
        2 => GroupChange::Remove { members },
        3 => GroupChange::Role { members, admin },
        4 => GroupChange::Leave,
        _ => GroupChange::Info,
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let numbers = (any_integer(), any::<u64>(), any_integer());
    let id = prop_oneof![3 => any_id(), 1 => Just(Id::from(""))];
    (any_name(), numbers, any_id(), id, any_body()).prop_map(
        |(convo, (seq, mid, ts), from, id, body)| {
            let device = "never told".into();
            Message { convo, seq, mid, ts, from, device, id, body }
        },
    )
}

fn any_standing() -> impl Strategy<Value = Standing> {
    (any_name(), proptest::array::uniform6(any_integer())).prop_map(|(convo, numbers)| {
        let [head, delivered, read, unread, others_delivered, others_read] = numbers;
        Standing { convo, head, delivered, read, unread, others_delivered, others_read }
    })
}

fn says_the_same(event: Event) {
    let (mut text, mut binary) = (Vec::new(), b"kept".to_vec());
    json::encode(&event, &mut text);
    encode(&event, &mut binary);
    let expected: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(as_json(&binary[4..]), expected);
}

proptest! {
    #[test]
    fn both_subprotocols_read_the_same_operation(
        reference in any_reference(), operation in any_operation(),
    ) {
        let request = Request { reference, operation };
        let (binary, object) = written(&request);
        let text = object.to_string();
        prop_assert_eq!(json::decode(text.as_bytes()), Ok(request.clone()));
        prop_assert_eq!(decode(&binary), Ok(request.clone()));
        let unknown = [bytes(0x7f, b"later"), integer(0x7e, u64::MAX)].concat();
        let extended = [&binary[..1], &unknown, &binary[1..], &unknown].concat();
        prop_assert_eq!(decode(&extended), Ok(request));
    }

    #[test]
    fn both_subprotocols_say_the_same_event(
        reference in any_reference(), names in (any_name(), any_id(), any_id()),
        numbers in (any_integer(), any::<u64>(), any_integer()), flag in any::<bool>(),
        options in (proptest::option::of(any_integer()), proptest::option::of(any_integer())),
        watermark in any_watermark(), heads in any_heads(),
        messages in proptest::collection::vec(any_message(), 0..4),
        standings in proptest::collection::vec(any_standing(), 0..4),
    ) {
        let (convo, id, user) = (&*names.0, &*names.1, &*names.2);
        let ((seq, mid, ts), (limit, retry_ms)) = (numbers, options);
        says_the_same(Event::Welcome {
            user, device: id, session: "7-9", heartbeat_ms: ts, ticket: convo, server: "edge",
        });
        says_the_same(Event::Sent { reference, convo, id, seq, mid, ts, dup: flag });
        says_the_same(Event::Receipt { convo, seq, watermark, by: user, tally: None });
        let tally = limit.map(|count| Tally { count, of: ts });
        says_the_same(Event::Receipt { convo, seq, watermark, by: user, tally });
        let (owner, members) = (flag.then(|| names.1.clone()), vec![names.1.clone(), "b".into()]);
        let admins = members.iter().take(usize::from(flag)).cloned().collect();
        let group = GroupState { convo: names.0.clone(), owner, admins, members, version: ts };
        says_the_same(Event::Group { reference, group: &group });
        let (convo, owner, subscribers) = (&*group.convo, "owner", group.version);
        says_the_same(Event::Channel { reference, convo, owner, subscribers });
        says_the_same(Event::Synced { reference, heads: &heads });
        says_the_same(Event::Page { reference, convo, messages: &messages, more: flag });
        says_the_same(Event::Conversations { reference, convos: &standings });
        says_the_same(Event::Pong { reference, ts });
        let devices = [(names.1.clone(), seq), (names.2.clone(), ts)];
        says_the_same(Event::Devices { reference, devices: &devices });
        says_the_same(Event::Privacy { reference, hidden: flag });
        says_the_same(Event::Presence { reference, user, online: flag, last_seen: limit });
        says_the_same(Event::Typing { convo, from: user });
        says_the_same(Event::Failed { convo, seq, id });
        for goodbye in [Goodbye::Drain, Goodbye::Replaced, Goodbye::Overload, Goodbye::Slow] {
            says_the_same(Event::Goaway { goodbye, reconnect_ms: limit });
        }
        let id = flag.then_some(id);
        for code in ALL_CODES {
            says_the_same(Event::Error { reference, id, code, message: user, limit, retry_ms });
        }
        messages.iter().for_each(|message| says_the_same(Event::Message(message)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn a_mutilated_message_is_an_operation_or_refused(
        operation in any_operation(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let (mut binary, _) = written(&Request { reference: Some(1), operation });
        let at = at.index(binary.len());
        binary[at] = byte;
        let code = decode(&binary).err().map(|rejected| rejected.code);
        let codes = [
            None,
            Some(ErrorCode::BadRequest),
            Some(ErrorCode::UnknownOperation),
            Some(ErrorCode::Forbidden),
        ];
        prop_assert!(codes.contains(&code));
    }

    /// No prefix is read as something else: what is cut inside a field is refused, and what is cut
    /// between two is the operation without the later ones.
    #[test]
    fn every_prefix_is_refused_or_lacks_its_last_fields(operation in any_operation()) {
        let (binary, _) = written(&Request { reference: Some(-5), operation });
        prop_assert_eq!(decode(&[]).map_err(|rejected| rejected.code), Err(ErrorCode::BadRequest));
        for size in 1..binary.len() {
            match decode(&binary[..size]) {
                Ok(request) => {
                    prop_assert!(is_whole(&binary[1..size]));
                    prop_assert!(request.reference.is_none());
                }
                Err(rejected) => prop_assert_eq!(rejected.code, ErrorCode::BadRequest),
            }
        }
    }
}

const ALL_CODES: [ErrorCode; 10] = [
    ErrorCode::BadRequest,
    ErrorCode::UnknownOperation,
    ErrorCode::NotMember,
    ErrorCode::NoSuchConversation,
    ErrorCode::TooLarge,
    ErrorCode::RateLimited,
    ErrorCode::GroupFull,
    ErrorCode::Forbidden,
    ErrorCode::Unavailable,
    ErrorCode::Internal,
];

fn is_whole(mut rest: &[u8]) -> bool {
    while let Some((&tag, value)) = rest.split_first() {
        rest = value;
        let whole = match tag % 2 {
            0 => varint(&mut rest).is_some(),
            _ => sized(&mut rest).is_some(),
        };
        if !whole {
            return false;
        }
    }
    true
}

fn refused(fields: &[Vec<u8>]) -> Rejected {
    let message = fields.concat();
    decode(&message).expect_err("malformed")
}

#[test]
fn a_varint_has_one_spelling() {
    let read = |bytes: &[u8]| {
        let mut rest = bytes;
        varint(&mut rest).filter(|_| rest.is_empty())
    };
    assert_eq!(read(&[0]), Some(0));
    assert_eq!(read(&[0xac, 2]), Some(300));
    assert_eq!(read(&[&[0xff; 9][..], &[1]].concat()), Some(u64::MAX));
    assert_eq!(read(&[&[0xff; 9][..], &[2]].concat()), None);
    assert_eq!(read(&[&[0xff; 9][..], &[0x81, 0]].concat()), None);
    for wrong in [&[][..], &[0x80], &[0x80, 0], &[0xac, 0x82, 0], &[0x80; 11]] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[test]
fn malformed_messages_carry_what_could_be_read() {
    let (send, reference, id) = (vec![1], integer(2, 10), bytes(5, b"c9"));
    let (to, body) = (bytes(3, b"b"), bytes(7, b"x"));
    let tails = [
        to.clone(),
        body.clone(),
        [to.clone(), bytes(1, b"team"), body.clone()].concat(),
        [to.clone(), body.clone(), bytes(9, b"x")].concat(),
        [to.clone(), bytes(7, &[0xff])].concat(),
        [to.clone(), bytes(7, &[0xed, 0xa0, 0x80])].concat(),
        [bytes(3, b""), body.clone()].concat(),
        [bytes(3, b"b\x07"), body.clone()].concat(),
        [bytes(1, b"dm:b:a"), body.clone()].concat(),
        [to.clone(), body.clone(), vec![0x7f]].concat(),
        [to.clone(), body.clone(), vec![0x7f, 2, 0]].concat(),
        [to.clone(), body.clone(), vec![0x7e, 0x80, 0]].concat(),
    ];
    for tail in tails {
        let rejected = refused(&[send.clone(), reference.clone(), id.clone(), tail.clone()]);
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{tail:02x?}");
        assert_eq!((rejected.reference, rejected.id.as_deref()), (Some(5), Some("c9")));
    }
    let beyond = integer(2, zigzag(INTEGER_MAX + 1));
    let rejected = refused(&[send, beyond, id.clone(), to, body]);
    assert_eq!((rejected.reference, rejected.id.as_deref()), (None, Some("c9")));
    // Only a send has an id to carry.
    assert_eq!(refused(&[vec![2], id]).id, None);
}

#[test]
fn values_out_of_bounds_are_bad_requests() {
    let convo = bytes(1, b"team");
    let over = INTEGER_MAX as u64 + 1;
    let entry = |fields: &[u8]| bytes(13, &[number(fields.len() as u64), fields.to_vec()].concat());
    let wrong = [
        vec![vec![2], convo.clone(), integer(4, over), integer(10, 1)],
        vec![vec![2], convo.clone(), integer(4, 1), integer(10, 0)],
        vec![vec![2], convo.clone(), integer(4, 1), integer(10, 3)],
        vec![vec![2], convo.clone(), integer(4, 1)],
        vec![vec![2], convo.clone(), integer(10, 1)],
        vec![vec![3], bytes(13, &[9])],
        vec![vec![3], entry(&convo)],
        vec![vec![3], entry(&integer(4, 1))],
        vec![vec![3], entry(&[convo.clone(), integer(4, over)].concat())],
        vec![vec![3], entry(&[0x7f])],
        vec![vec![4], integer(16, 1)],
        vec![vec![4], convo.clone(), integer(14, 0)],
        vec![vec![4], convo.clone(), integer(14, over)],
        vec![vec![4], convo.clone(), integer(16, 0)],
        vec![vec![4], convo.clone(), integer(16, 201)],
        vec![vec![4], convo, integer(16, (1 << 32) + 1)],
        vec![vec![5], integer(16, 0)],
        vec![vec![5], bytes(17, b"")],
        vec![vec![5], bytes(17, b"dm:b:a")],
        vec![Vec::new()],
    ];
    for message in wrong {
        assert_eq!(refused(&message).code, ErrorCode::BadRequest, "{message:02x?}");
    }
}

#[test]
fn absent_fields_and_repeated_ones() {
    let decoded = |fields: &[Vec<u8>]| decode(&fields.concat()).expect("valid");
    let history = decoded(&[vec![4], bytes(1, b"team")]).operation;
    assert_eq!(history, Operation::History { convo: "team".into(), before: None, limit: 50 });
    let conversations = decoded(&[vec![5]]).operation;
    assert_eq!(conversations, Operation::Conversations { after: None, limit: 200 });
    let sync = decoded(&[vec![3], bytes(13, b"")]).operation;
    assert_eq!(sync, Operation::Sync { convos: Some(Vec::new()) });
    assert_eq!(decoded(&[vec![6], integer(2, 2), integer(2, 4)]).reference, Some(2));
    let entry = |seq| [number(8), bytes(1, b"team"), integer(4, seq)].concat();
    let sync = decoded(&[vec![3], bytes(13, &[entry(7), entry(3)].concat())]).operation;
    assert_eq!(sync, Operation::Sync { convos: Some(vec![("team".into(), 3)]) });
}

#[test]
fn unknown_types_and_large_bodies() {
    for kind in [0, 0x17, 0x7f, 0x80, 0x81, 0xff] {
        let rejected = refused(&[vec![kind], integer(2, 6), bytes(5, b"c")]);
        assert_eq!((rejected.code, rejected.reference), (ErrorCode::UnknownOperation, Some(3)));
        assert_eq!(rejected.id, None);
    }
    for tag in [7, 9] {
        let send = |size| {
            let body = bytes(tag, &vec![b'x'; size]);
            [vec![1], integer(2, 2), bytes(3, b"b"), bytes(5, b"c"), body]
        };
        assert!(decode(&send(BODY_SIZE_MAX).concat()).is_ok());
        let rejected = refused(&send(BODY_SIZE_MAX + 1));
        assert_eq!((rejected.code, rejected.limit), (ErrorCode::TooLarge, Some(65_536)));
        assert_eq!((rejected.reference, rejected.id.as_deref()), (Some(1), Some("c")));
    }
}

#[test]
fn a_page_that_would_pass_the_bound_of_a_frame_keeps_the_newest() {
    let body = Body::Binary { bytes: vec![7; BODY_SIZE_MAX].into() };
    let message = |seq| Message {
        convo: "team".into(),
        seq,
        mid: 1,
        ts: 1,
        from: "a".into(),
        device: "d".into(),
        id: "c".into(),
        body: body.clone(),
    };
    let messages: Vec<Message> = (1..=10).map(message).collect();
    let mut out = Vec::new();
    let page = Event::Page { reference: None, convo: "team", messages: &messages, more: false };
    encode(&page, &mut out);
    assert!(out.len() < SERVER_FRAME_SIZE_MAX);
    let page = as_json(&out);
    let entries = page["msgs"].as_array().expect("a list");
    assert_eq!((entries.len(), &page["more"]), (7, &json!(true)));
    assert_eq!(entries[6]["seq"], 10);
}
