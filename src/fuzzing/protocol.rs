//! The two subprotocols: what one decodes is valid, and both read it again once it is written in
//! either; what one refuses is told in a frame that a client can read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::limits::{BODY_SIZE_MAX, SERVER_FRAME_SIZE_MAX};
use crate::link::message::{ChannelChange, GroupChange, Target, Watermark};
use crate::link::record::{Body, Id};
use crate::protocol::operation::{Event, INTEGER_MAX, LATER, Operation, Rejected, Request};
use crate::protocol::{Subprotocol, conversation};

/// The input is one text message.
pub fn json(input: &[u8]) {
    decoder(Subprotocol::Json, input);
}

/// The input is one binary message.
pub fn binary(input: &[u8]) {
    decoder(Subprotocol::Binary, input);
}

fn decoder(subprotocol: Subprotocol, input: &[u8]) {
    match subprotocol.decode(input) {
        Ok(request) => {
            is_valid(&request);
            let (binary, object) = written(&request);
            let text = object.to_string();
            assert_eq!(Subprotocol::Binary.decode(&binary), Ok(request.clone()));
            assert_eq!(Subprotocol::Json.decode(text.as_bytes()), Ok(request));
        }
        Err(rejected) => is_told(&rejected),
    }
}

/// "Valid by construction", as the module of operations promises.
fn is_valid(request: &Request) {
    let within = |value: u64| assert!(value <= INTEGER_MAX as u64);
    let named = |name: &str| assert!(conversation::parse(name).is_ok());
    request.reference.iter().for_each(|reference| within(reference.unsigned_abs()));
    match &request.operation {
        Operation::Send { target, id, body } => {
            assert!(conversation::is_id(id) && body.bytes().len() <= BODY_SIZE_MAX);
            match target {
                Target::Conversation { name } => named(name),
                Target::User { user } => assert!(conversation::is_id(user)),
            }
            if let Body::Text { text } = body {
                assert!(std::str::from_utf8(text).is_ok());
            }
        }
        Operation::Acknowledge { convo, seq, .. } => {
            named(convo);
            within(*seq);
        }
        Operation::Sync { convos } => {
            let convos = convos.as_deref().unwrap_or_default();
            assert!(convos.is_sorted_by(|(one, _), (other, _)| one < other));
            for (name, seq) in convos {
                named(name);
                within(*seq);
            }
        }
        Operation::History { convo, before, limit } => {
            named(convo);
            before.iter().for_each(|before| within(before.checked_sub(1).expect("from 1 on")));
            assert!((1..=200).contains(limit));
        }
        Operation::Conversations { after, limit } => {
            after.iter().for_each(|after| named(after));
            assert!((1..=200).contains(limit));
        }
        Operation::Revoke { device } => assert!(conversation::is_id(device)),
        Operation::PresenceSubscribe { users } | Operation::PresenceUnsubscribe { users } => {
            assert!(users.iter().all(|user| conversation::is_id(user)));
        }
        Operation::Typing { convo } => named(convo),
        Operation::Devices | Operation::Privacy { .. } => {}
        Operation::Group { convo, change } => {
            assert_eq!(conversation::parse(convo), Ok(conversation::Conversation::Named));
            assert!(group_members(change).iter().all(|member| conversation::is_id(member)));
        }
        Operation::Channel { convo, .. } => {
            assert_eq!(conversation::parse(convo), Ok(conversation::Conversation::Named));
        }
        Operation::Ping => {}
        Operation::Later(name) => assert!(LATER.contains(name)),
    }
}

fn is_told(rejected: &Rejected) {
    let Rejected { reference, id, code, message, limit } = rejected;
    let (reference, code, limit) = (*reference, *code, *limit);
    let error = Event::Error { reference, id: id.as_deref(), code, message, limit, retry_ms: None };
    for subprotocol in Subprotocol::ALL {
        let mut out = Vec::new();
        subprotocol.encode(&error, &mut out);
        assert!(out.len() < SERVER_FRAME_SIZE_MAX);
        if subprotocol == Subprotocol::Json {
            let told: Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(told["t"], "error");
            assert_eq!(told["ref"].as_i64(), reference);
            assert_eq!(told["id"].as_str(), id.as_deref());
        }
    }
}

pub fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low + 128);
    }
}

pub fn integer(tag: u8, value: u64) -> Vec<u8> {
    [vec![tag], number(value)].concat()
}

pub fn bytes(tag: u8, value: &[u8]) -> Vec<u8> {
    [vec![tag], number(value.len() as u64), value.to_vec()].concat()
}

pub fn zigzag(value: i64) -> u64 {
    if value < 0 { value.unsigned_abs() * 2 - 1 } else { value.unsigned_abs() * 2 }
}

/// The naive encoder of operations, in both subprotocols.
pub fn written(request: &Request) -> (Vec<u8>, Value) {
    let (mut binary, mut object) = match &request.operation {
        Operation::Send { target, id, body } => written_send(target, id, body),
        Operation::Acknowledge { convo, seq, watermark } => {
            let (number, kind) = match watermark {
                Watermark::Delivered => (1, "delivered"),
                Watermark::Read => (2, "read"),
            };
            let fields = [bytes(1, convo.as_bytes()), integer(4, *seq), integer(10, number)];
            let object = json!({"t":"ack","convo":&**convo,"seq":seq,"kind":kind});
            ([vec![2], fields.concat()].concat(), object)
        }
        Operation::Sync { convos: None } => (vec![3], json!({"t":"sync"})),
        Operation::Sync { convos: Some(convos) } => {
            let entries = convos.iter().map(|(name, seq)| {
                let entry = [bytes(1, name.as_bytes()), integer(4, *seq)].concat();
                [number(entry.len() as u64), entry].concat()
            });
            let list: Vec<u8> = entries.flatten().collect();
            let map: Map<String, Value> =
                convos.iter().map(|(name, seq)| (name.to_string(), json!(seq))).collect();
            ([vec![3], bytes(13, &list)].concat(), json!({"t":"sync","convos":map}))
        }
        Operation::History { convo, before, limit } => {
            let before_field = before.map(|before| integer(14, before)).unwrap_or_default();
            let fields = [bytes(1, convo.as_bytes()), before_field, integer(16, (*limit).into())];
            let object = json!({"t":"history","convo":&**convo,"before":before,"limit":limit});
            ([vec![4], fields.concat()].concat(), object)
        }
        Operation::Conversations { after, limit } => {
            let field = after.as_ref().map(|after| bytes(17, after.as_bytes()));
            let fields = [field.unwrap_or_default(), integer(16, (*limit).into())];
            let object = json!({"t":"convos","after":after.as_deref(),"limit":limit});
            ([vec![5], fields.concat()].concat(), object)
        }
        Operation::Ping => (vec![6], json!({"t":"ping"})),
        Operation::Later(name) => {
            let index = LATER.iter().position(|later| later == name).expect("one of them");
            (vec![16 + index as u8], json!({"t":name}))
        }
        Operation::Channel { convo, change } => {
            let (number_of, name) = match change {
                ChannelChange::Create => (13, "channel.create"),
                ChannelChange::Subscribe => (14, "channel.subscribe"),
                ChannelChange::Unsubscribe => (15, "channel.unsubscribe"),
            };
            let binary = [vec![number_of], bytes(1, convo.as_bytes())].concat();
            (binary, json!({"t":name,"convo":&**convo}))
        }
        Operation::Group { convo, change } => written_group(convo, change),
        other => written_of_users(other),
    };
    if let Some(reference) = request.reference {
        binary.extend(integer(2, zigzag(reference)));
        object["ref"] = json!(reference);
    }
    (binary, object)
}

/// Those about users and their devices.
fn written_of_users(operation: &Operation) -> (Vec<u8>, Value) {
    match operation {
        Operation::Devices => (vec![0x11], json!({"t":"devices"})),
        Operation::Revoke { device } => (
            [vec![0x12], bytes(0x15, device.as_bytes())].concat(),
            json!({"t":"device.revoke","device":&**device}),
        ),
        Operation::Privacy { hidden } => {
            let presence = if *hidden { "nobody" } else { "everyone" };
            let number = if *hidden { 2 } else { 1 };
            let binary = [vec![0x13], integer(0x38, number)].concat();
            (binary, json!({"t":"privacy","presence":presence}))
        }
        Operation::PresenceSubscribe { users } => written_users(0x14, "presence.sub", users),
        Operation::PresenceUnsubscribe { users } => written_users(0x15, "presence.unsub", users),
        Operation::Typing { convo } => (
            [vec![0x16], bytes(1, convo.as_bytes())].concat(),
            json!({"t":"typing","convo":&**convo}),
        ),
        other => unreachable!("{other:?} is written elsewhere"),
    }
}

fn written_users(kind: u8, name: &str, users: &[Id]) -> (Vec<u8>, Value) {
    let texts: Vec<&str> = users.iter().map(|user| &**user).collect();
    let entries = texts.iter().map(|text| [number(text.len() as u64), (*text).into()].concat());
    let list = entries.collect::<Vec<Vec<u8>>>().concat();
    ([vec![kind], bytes(0x2b, &list)].concat(), json!({"t":name,"users":texts}))
}

fn group_members(change: &GroupChange) -> &[Id] {
    match change {
        GroupChange::Create { members } | GroupChange::Add { members } => members,
        GroupChange::Remove { members } | GroupChange::Role { members, .. } => members,
        GroupChange::Leave | GroupChange::Info => &[],
    }
}

fn written_group(convo: &str, change: &GroupChange) -> (Vec<u8>, Value) {
    let (number_of, name) = match change {
        GroupChange::Create { .. } => (7, "group.create"),
        GroupChange::Add { .. } => (8, "group.add"),
        GroupChange::Remove { .. } => (9, "group.remove"),
        GroupChange::Role { .. } => (10, "group.role"),
        GroupChange::Leave => (11, "group.leave"),
        GroupChange::Info => (12, "group.info"),
    };
    let mut binary = [vec![number_of], bytes(1, convo.as_bytes())].concat();
    let mut object = json!({"t":name,"convo":convo});
    if let GroupChange::Role { admin, .. } = change {
        binary.extend(integer(0x2a, if *admin { 1 } else { 2 }));
        object["role"] = json!(if *admin { "admin" } else { "member" });
    }
    if !matches!(change, GroupChange::Leave | GroupChange::Info) {
        let members = group_members(change);
        let entries = members.iter().map(|member| [number(member.len() as u64), (**member).into()]);
        binary
            .extend(bytes(0x21, &entries.map(|entry| entry.concat()).collect::<Vec<_>>().concat()));
        object["members"] = members.iter().map(|member| json!(&**member)).collect();
    }
    (binary, object)
}

fn written_send(target: &Target, id: &Id, body: &Body) -> (Vec<u8>, Value) {
    let (field, name, value) = match target {
        Target::Conversation { name } => (bytes(1, name.as_bytes()), "convo", name),
        Target::User { user } => (bytes(3, user.as_bytes()), "to", user),
    };
    let (body_field, body_name, text) = match body {
        Body::Text { text } => {
            (bytes(7, text), "body", String::from_utf8(text.to_vec()).expect("text"))
        }
        Body::Binary { bytes: body } => (bytes(9, body), "body64", STANDARD.encode(body)),
    };
    let binary = [vec![1], field, bytes(5, id.as_bytes()), body_field].concat();
    (binary, json!({"t":"send",name:&**value,"id":&**id,body_name:text}))
}
