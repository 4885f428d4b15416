//! Dead letters as JSON: an administrator's object becomes an inquiry, its answer an object.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::inquiries::{Answered, Inquiry, Refused};
use crate::limits::CONVERSATION_NAME_SIZE_MAX;
use crate::link::message::DeadLetter;
use crate::link::record::{Body, Message};

/// Reads a question. `Err`: what is wrong with it.
pub fn inquiry_of(object: &[u8]) -> Result<Inquiry, &'static str> {
    let object: Map<String, Value> =
        serde_json::from_slice(object).map_err(|_| "not a JSON object")?;
    let text = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= CONVERSATION_NAME_SIZE_MAX => {
            Ok(Some(text.as_str()))
        }
        Some(_) => Err("a field is no text, or too long"),
    };
    let seq = || object.get("seq").and_then(Value::as_u64).filter(|seq| *seq > 0);
    match text("op")?.unwrap_or_default() {
        "list" => {
            let after = match object.get("after") {
                None | Some(Value::Null) => Bytes::new(),
                Some(Value::String(after)) => {
                    STANDARD.decode(after).map_err(|_| "after is not base64")?.into()
                }
                Some(_) => return Err("after is no text"),
            };
            let (user, convo) = (text("user")?.map(Into::into), text("convo")?.map(Into::into));
            Ok(Inquiry::List { user, convo, after })
        }
        "show" => {
            let convo = text("convo")?.ok_or("convo is missing")?.into();
            Ok(Inquiry::Show { convo, seq: seq().ok_or("seq is missing")? })
        }
        "replay" => {
            let user = text("user")?.ok_or("user is missing")?.into();
            let convo = text("convo")?.ok_or("convo is missing")?.into();
            Ok(Inquiry::Replay { user, convo, first: seq().unwrap_or(1) })
        }
        _ => Err("op is list, show or replay"),
    }
}

/// The HTTP status and the object of an answer. The body of a message is only for who asked for
/// it: `shows_body`.
pub fn answer_of(answer: &Result<Answered, Refused>, shows_body: bool) -> (u16, String) {
    let (status, object) = match answer {
        Ok(Answered::Listed { rows, next }) => {
            let letters: Vec<Value> = rows.iter().map(letter).collect();
            let next = (!next.is_empty()).then(|| STANDARD.encode(next));
            (200, json!({"letters": letters, "next": next}))
        }
        Ok(Answered::Shown { message }) => (200, shown(message, shows_body)),
        Ok(Answered::Replayed { count }) => (200, json!({"replayed": count})),
        Err(Refused::Unavailable(why)) => (503, json!({"error": why})),
        Err(Refused::Unknown(why)) => (404, json!({"error": why})),
        Err(Refused::Conflict(why)) => (409, json!({"error": why})),
    };
    (status, object.to_string())
}

/// Whether a question asks for the body.
pub fn wants_body(object: &[u8]) -> bool {
    let object = serde_json::from_slice::<Value>(object).unwrap_or_default();
    object["body"] == true
}

/// The answer to a question that is none.
pub fn bad_question(why: &str) -> (u16, String) {
    (400, json!({"error": why}).to_string())
}

fn letter(letter: &DeadLetter) -> Value {
    let DeadLetter { user, convo, seq, from, id, at } = letter;
    let (user, convo, from, id) = (&**user, &**convo, &**from, &**id);
    json!({"user": user, "convo": convo, "seq": seq, "from": from, "id": id, "service_ms": at})
}

fn shown(message: &Message, shows_body: bool) -> Value {
    let Message { convo, seq, mid, ts, from, id, body, .. } = message;
    let mut shown = json!({
        "convo": &**convo, "seq": seq, "mid": mid.to_string(), "from": &**from, "id": &**id,
        "ts": ts, "body_bytes": body.bytes().len(),
    });
    match body {
        _ if !shows_body => {}
        Body::Text { text } => shown["body"] = String::from_utf8_lossy(text).into(),
        Body::Binary { bytes } => shown["body64"] = STANDARD.encode(bytes).into(),
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_to_who_asks_for_it_alone() {
        let text = Bytes::from_static(b"attack at dawn");
        let message = Message {
            convo: "dm:a:b".into(),
            seq: 1,
            mid: 2,
            ts: 3,
            from: "a".into(),
            device: "phone".into(),
            id: "1".into(),
            body: Body::Text { text },
        };
        let answer = Ok(Answered::Shown { message });
        assert!(!answer_of(&answer, false).1.contains("attack"));
        assert!(answer_of(&answer, true).1.contains("attack at dawn"));
        assert!(wants_body(br#"{"op":"show","body":true}"#) && !wants_body(b"{}"));
    }

    #[test]
    fn what_is_no_question_is_said() {
        let list = Inquiry::List { user: Some("bob".into()), convo: None, after: Bytes::new() };
        assert_eq!(inquiry_of(br#"{"op":"list","user":"bob","convo":null}"#), Ok(list));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"op":"shut down"}"#,
            r#"{"op":"list","user":7}"#,
            r#"{"op":"list","after":"?"}"#,
            r#"{"op":"show","convo":"g","seq":0}"#,
            r#"{"op":"replay","convo":"g"}"#,
        ] {
            assert!(inquiry_of(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
