//! Questions that an administrator puts to the process behind an admin page: one JSON object each,
//! answered by the process's own loop. Whoever asks proves that he has the link's secret.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use tokio::sync::oneshot;

/// Questions that may wait.
const QUESTION_COUNT_MAX: usize = 64;

/// An answer: an HTTP status and a JSON object.
pub type Answer = (u16, String);

/// One question. Dropped without an answer, it is answered that the process ended.
pub struct Question {
    pub object: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

impl Question {
    pub fn answer(self, answer: Answer) {
        // Who asked may have gone.
        drop(self.answer.send(answer));
    }
}

/// Where questions are put.
#[derive(Clone)]
pub struct Desk {
    secret: Arc<[u8]>,
    questions: SyncSender<Question>,
}

impl Desk {
    /// A desk, and where its process finds the questions.
    pub fn new(secret: &[u8]) -> (Desk, Receiver<Question>) {
        let (questions, receiver) = sync_channel(QUESTION_COUNT_MAX);
        (Desk { secret: secret.into(), questions }, receiver)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Every byte is looked at, so the time says nothing about how many are right.
        let differ = given.iter().zip(self.secret.iter()).fold(0, |sum, (a, b)| sum | (a ^ b));
        differ == 0 && given.len() == self.secret.len()
    }
}

pub(super) async fn ask(
    State(desk): State<Desk>,
    headers: HeaderMap,
    object: Bytes,
) -> (StatusCode, String) {
    if !desk.admits(&headers) {
        return (StatusCode::UNAUTHORIZED, r#"{"error":"the secret is needed"}"#.to_owned());
    }
    let (answer, answered) = oneshot::channel();
    let busy = || {
        let why = r#"{"error":"the process is busy or ending"}"#;
        (StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
    };
    if desk.questions.try_send(Question { object: object.to_vec(), answer }).is_err() {
        return busy();
    }
    match answered.await {
        Ok((status, body)) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
        }
        Err(_) => busy(),
    }
}
