//! Operations out of the fields of a message, however a subprotocol writes those: both read the
//! same operations, and refuse the same with the same words.

use std::borrow::Cow;

use super::conversation;
use super::operation::{
    CONVERSATIONS_COUNT_DEFAULT, ErrorCode, HISTORY_COUNT_DEFAULT, LATER, Operation,
    PAGE_COUNT_MAX, Rejected,
};
use crate::limits::BODY_SIZE_MAX;
use crate::link::message::{ChannelChange, GroupChange, Target, Watermark};
use crate::link::record::{Body, ConversationName, Id};

/// A field whose value both subprotocols write as text or as an integer.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Convo,
    To,
    Id,
    Seq,
    Before,
    After,
    Limit,
}

/// The fields of one message, not yet looked into.
pub(super) trait Fields {
    /// Whether it is there, whatever it holds.
    fn has(&self, field: Field) -> bool;
    /// What it holds, if that is text.
    fn text(&self, field: Field) -> Option<Cow<'_, str>>;
    /// What it holds, if that is an integer from 0 to `INTEGER_MAX`.
    fn integer(&self, field: Field) -> Option<u64>;
    fn body(&self) -> Result<Body, Fault>;
    fn watermark(&self) -> Option<Watermark>;
    /// The `role` of a `group.role`: whether it is `admin`.
    fn admin(&self) -> Option<bool>;
    /// The texts of `members`; `None`: it is absent, or no list of texts.
    fn members(&self) -> Option<Vec<Cow<'_, str>>>;
    /// The `convos` of a `sync`, by name.
    fn heads(&self) -> Result<Option<Vec<(ConversationName, u64)>>, Fault>;
}

/// What is wrong with a message.
pub(super) struct Fault {
    code: ErrorCode,
    message: &'static str,
    limit: Option<u64>,
}

pub(super) const fn bad(message: &'static str) -> Fault {
    Fault { code: ErrorCode::BadRequest, message, limit: None }
}

pub(super) fn rejected(reference: Option<i64>, id: Option<Id>, fault: Fault) -> Rejected {
    let Fault { code, message, limit } = fault;
    Rejected { reference, id, code, message, limit }
}

/// The operation of this name.
pub(super) fn operation(name: &str, fields: &impl Fields) -> Result<Operation, Fault> {
    match name {
        "send" => send(fields),
        "ack" => acknowledge(fields),
        "sync" => Ok(Operation::Sync { convos: fields.heads()? }),
        "history" => history(fields),
        "convos" => conversations(fields),
        "ping" => Ok(Operation::Ping),
        "group.create" => group(fields, GroupChange::Create { members: members(fields)? }),
        "group.add" => group(fields, GroupChange::Add { members: members(fields)? }),
        "group.remove" => group(fields, GroupChange::Remove { members: members(fields)? }),
        "group.role" => {
            let admin = fields.admin().ok_or(bad("role is neither admin nor member"))?;
            group(fields, GroupChange::Role { members: members(fields)?, admin })
        }
        "group.leave" => group(fields, GroupChange::Leave),
        "group.info" => group(fields, GroupChange::Info),
        "channel.create" => channel(fields, ChannelChange::Create),
        "channel.subscribe" => channel(fields, ChannelChange::Subscribe),
        "channel.unsubscribe" => channel(fields, ChannelChange::Unsubscribe),
        other => match LATER.iter().find(|later| **later == other) {
            Some(later) => Ok(Operation::Later(later)),
            None => Err(UNKNOWN_OPERATION),
        },
    }
}

pub(super) const UNKNOWN_OPERATION: Fault =
    Fault { code: ErrorCode::UnknownOperation, message: "no such operation", limit: None };

const RESERVED: Fault = Fault {
    code: ErrorCode::Forbidden,
    message: "names that begin with dm: are those of direct conversations",
    limit: None,
};

const TOO_LARGE: Fault = Fault {
    code: ErrorCode::TooLarge,
    message: "the body is too large",
    limit: Some(BODY_SIZE_MAX as u64),
};

/// A conversation's name, if it can be one.
pub(super) fn conversation_name(text: &str) -> Option<ConversationName> {
    conversation::parse(text).is_ok().then(|| text.into())
}

fn send(fields: &impl Fields) -> Result<Operation, Fault> {
    let target = match (fields.has(Field::Convo), fields.has(Field::To)) {
        (true, false) => Target::Conversation { name: convo(fields)? },
        (false, true) => {
            let user = id(fields, Field::To).ok_or(bad("to is not an id of 1 to 64 bytes"))?;
            Target::User { user }
        }
        _ => return Err(bad("exactly one of convo and to is wanted")),
    };
    let id = id(fields, Field::Id).ok_or(bad("id is not an id of 1 to 64 bytes"))?;
    let body = fields.body()?;
    if body.bytes().len() > BODY_SIZE_MAX {
        return Err(TOO_LARGE);
    }
    Ok(Operation::Send { target, id, body })
}

fn acknowledge(fields: &impl Fields) -> Result<Operation, Fault> {
    let convo = convo(fields)?;
    let seq = fields.integer(Field::Seq).ok_or(bad("seq is not an integer of at least 0"))?;
    let watermark = fields.watermark().ok_or(bad("kind is neither delivered nor read"))?;
    Ok(Operation::Acknowledge { convo, seq, watermark })
}

fn history(fields: &impl Fields) -> Result<Operation, Fault> {
    let convo = convo(fields)?;
    let before = match fields.integer(Field::Before).filter(|before| *before >= 1) {
        None if fields.has(Field::Before) => {
            return Err(bad("before is not an integer of at least 1"));
        }
        before => before,
    };
    let limit = limit(fields, HISTORY_COUNT_DEFAULT)?;
    Ok(Operation::History { convo, before, limit })
}

fn conversations(fields: &impl Fields) -> Result<Operation, Fault> {
    let after = match name(fields, Field::After) {
        None if fields.has(Field::After) => {
            return Err(bad("after is not the name of a conversation"));
        }
        after => after,
    };
    let limit = limit(fields, CONVERSATIONS_COUNT_DEFAULT)?;
    Ok(Operation::Conversations { after, limit })
}

fn group(fields: &impl Fields, change: GroupChange) -> Result<Operation, Fault> {
    Ok(Operation::Group { convo: unreserved(fields)?, change })
}

fn channel(fields: &impl Fields, change: ChannelChange) -> Result<Operation, Fault> {
    Ok(Operation::Channel { convo: unreserved(fields)?, change })
}

/// A name that a group or a channel may have.
fn unreserved(fields: &impl Fields) -> Result<ConversationName, Fault> {
    let name = fields.text(Field::Convo);
    if name.is_some_and(|name| name.starts_with(conversation::DIRECT_PREFIX)) {
        return Err(RESERVED);
    }
    convo(fields)
}

fn members(fields: &impl Fields) -> Result<Vec<Id>, Fault> {
    let members = fields.members().ok_or(bad("members is not a list of users"))?;
    let id = |member: Cow<str>| conversation::is_id(&member).then(|| Id::from(&*member));
    let ids: Option<Vec<Id>> = members.into_iter().map(id).collect();
    ids.ok_or(bad("members has one that is not an id of 1 to 64 bytes"))
}

fn limit(fields: &impl Fields, default: u32) -> Result<u32, Fault> {
    if !fields.has(Field::Limit) {
        return Ok(default);
    }
    let limit = fields.integer(Field::Limit).and_then(|limit| u32::try_from(limit).ok());
    let limit = limit.filter(|limit| (1..=PAGE_COUNT_MAX).contains(limit));
    limit.ok_or(bad("limit is not an integer of 1 to 200"))
}

fn convo(fields: &impl Fields) -> Result<ConversationName, Fault> {
    name(fields, Field::Convo).ok_or(bad("convo is not the name of a conversation"))
}

fn name(fields: &impl Fields, field: Field) -> Option<ConversationName> {
    conversation_name(&fields.text(field)?)
}

fn id(fields: &impl Fields, field: Field) -> Option<Id> {
    let id = fields.text(field)?;
    conversation::is_id(&id).then(|| id.into())
}
