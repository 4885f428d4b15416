//! The handshake: a head is read whole or not at all, and an answer is one HTTP response that holds
//! nothing but what was agreed.

use crate::framer::{Refusal, Request, Upgrade};

/// The first two bytes choose where the rest, what a client sends, is cut.
pub fn handshake(input: &[u8]) {
    let Some((choice, stream)) = input.split_first_chunk::<2>() else {
        return;
    };
    match Request::parse(stream) {
        Ok(None) => {}
        Err(refusal) => refuses(&refusal),
        Ok(Some((request, size))) => {
            let cut = usize::from(u16::from_be_bytes(*choice)) % size;
            assert!(matches!(Request::parse(&stream[..cut]), Ok(None)), "cut at {cut}");
            let alone = Request::parse(&stream[..size]);
            assert!(alone.is_ok_and(|alone| alone.is_some_and(|(_, again)| again == size)));
            answer(&request);
        }
    }
}

fn answer(request: &Request) {
    if let Err(refusal) = request.body_size() {
        refuses(&refusal);
    }
    match request.upgrade() {
        Err(refusal) => refuses(&refusal),
        Ok(upgrade) => {
            assert!(request.wants_upgrade());
            for subprotocol in upgrade.subprotocols.iter().copied().map(Some).chain([None]) {
                agrees(&upgrade, subprotocol);
            }
        }
    }
}

fn refuses(refusal: &Refusal) {
    is_response(&refusal.response(), refusal.status);
}

fn agrees(upgrade: &Upgrade, subprotocol: Option<&str>) {
    let mut response = Vec::new();
    upgrade.write_response(subprotocol, upgrade.deflate, &mut response);
    let said = is_response(&response, 101);
    let mut names = vec!["Upgrade", "Connection", "Sec-WebSocket-Accept"];
    names.extend(subprotocol.map(|_| "Sec-WebSocket-Protocol"));
    names.extend(upgrade.deflate.map(|_| "Sec-WebSocket-Extensions"));
    assert_eq!(said.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), names);
    if let Some(subprotocol) = subprotocol {
        assert_eq!(said[3].1, subprotocol.as_bytes());
    }
}

/// Reads a whole response; its header fields.
fn is_response(bytes: &[u8], status: u16) -> Vec<(String, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(bytes).expect("a response");
    assert!(head.is_complete());
    assert_eq!(response.code, Some(status));
    let field = |header: &httparse::Header| (header.name.to_owned(), header.value.to_vec());
    let fields: Vec<(String, Vec<u8>)> = response.headers.iter().map(field).collect();
    let is_size = |(name, _): &&(String, Vec<u8>)| name == "Content-Length";
    let size = fields
        .iter()
        .find(is_size)
        .map_or("0".into(), |(_, value)| String::from_utf8(value.clone()).expect("a number"));
    assert_eq!(head.unwrap() + size.parse::<usize>().expect("a number"), bytes.len());
    fields
}
