//! The site over whole requests.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::edge::identity::Identities;
use crate::edge::ticket::Tickets;

#[derive(Clone, Default)]
struct Record {
    killed: Rc<RefCell<Vec<Child>>>,
}

impl Control for Record {
    fn kill(&mut self, child: Child) -> bool {
        self.killed.borrow_mut().push(child);
        true
    }
}

fn site(control: Option<Box<dyn Control>>) -> Site {
    let tickets = Tickets::new(b"secret");
    let door = Door::new(Vec::new(), Vec::new(), tickets, Identities::Development);
    Site { door, has_kill_buttons: true, control }
}

fn answer_of(site: &mut Site, head: &str, draining: bool) -> Answer {
    let (request, _) = Request::parse(head.as_bytes()).expect("valid").expect("complete");
    site.answer(&request, draining, 5_000)
}

fn respond(site: &mut Site, line: &str, fields: &str) -> String {
    let head = format!("{line} HTTP/1.1\r\nHost: localhost:8080\r\n{fields}\r\n");
    match answer_of(site, &head, false) {
        Answer::Respond(response) => String::from_utf8(response).expect("text"),
        Answer::Connect(admitted) => panic!("{admitted:?}"),
    }
}

fn status(response: &str) -> u16 {
    let code = response.split(' ').nth(1).expect("a status line");
    code.parse().expect("a number")
}

#[test]
fn the_page_is_served_with_its_types() {
    let files = [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
    ];
    for (path, content_type) in files {
        let response = respond(&mut site(None), &format!("GET {path}"), "");
        assert_eq!(status(&response), 200, "{path}");
        let (head, body) = response.split_once("\r\n\r\n").expect("an empty line");
        assert!(head.contains(&format!("Content-Type: {content_type}\r\n")), "{head}");
        assert!(head.contains("Cache-Control: no-store\r\n"));
        assert!(head.contains("Aldis-Auth: dev\r\n"));
        assert!(head.contains("Content-Security-Policy: default-src 'none';"));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        let head_only = respond(&mut site(None), &format!("HEAD {path}"), "");
        assert_eq!(head_only, format!("{head}\r\n\r\n"));
        assert_eq!(status(&respond(&mut site(None), &format!("POST {path}"), "")), 405);
    }
}

#[test]
fn the_page_keeps_to_its_own_policy() {
    let page = Page::get("index.html").expect("embedded");
    let page = std::str::from_utf8(&page.data).expect("text");
    assert!(page.contains("<script src=\"/app.js\""));
    for forbidden in ["<script>", "<style", "style=\"", "onclick", "http://", "https://"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn everything_else_is_not_found() {
    for path in ["/v1", "/v1/connect/", "/app.js/", "/../Cargo.toml", "//app.js", "/dev/kill", "*"]
    {
        let response = respond(&mut site(None), &format!("GET {path}"), "");
        assert_eq!(status(&response), 404, "{path}");
        assert!(response.contains("Content-Type: application/json\r\n"));
        assert!(response.contains("{\"code\":\"not_found\",\"message\":\""));
    }
}

#[test]
fn foreign_hosts_get_nothing() {
    for path in ["/", "/v1/connect?user=a", "/nothing"] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: evil.example.org\r\n\r\n");
        let Answer::Respond(response) = answer_of(&mut site(None), &head, false) else {
            panic!("connected");
        };
        assert!(response.starts_with(b"HTTP/1.1 403 "));
    }
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn a_client_connects_unless_the_edge_is_draining() {
    let head = format!("GET /v1/connect?user=a HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n");
    let Answer::Connect(admitted) = answer_of(&mut site(None), &head, false) else {
        panic!("refused");
    };
    assert_eq!((&*admitted.user, &*admitted.device), ("a", "default"));
    let Answer::Respond(response) = answer_of(&mut site(None), &head, true) else {
        panic!("connected");
    };
    let response = String::from_utf8(response).expect("text");
    assert_eq!(status(&response), 503);
    assert!(response.contains("Retry-After: 1\r\n"));
}

#[test]
fn refusals_of_a_connect_are_json() {
    let mut site = site(None);
    let fields = "Origin: http://evil.example.org\r\n";
    let response = respond(&mut site, "GET /v1/connect?user=a", &format!("{UPGRADE}{fields}"));
    assert_eq!(status(&response), 403);
    assert!(response.contains("{\"code\":\"forbidden\""));
    let response = respond(&mut site, "GET /v1/connect", UPGRADE);
    assert_eq!(status(&response), 401);
    let response = respond(&mut site, "GET /v1/connect?user=a", "");
    assert_eq!(status(&response), 426);
    assert!(response.contains("Upgrade: websocket\r\n"));
    assert!(response.contains("Sec-WebSocket-Version: 13\r\n"));
}

const OURS: &str = "Origin: http://localhost:8080\r\nX-Aldis-Dev: 1\r\n";

#[test]
fn the_page_kills_and_no_other() {
    let record = Record::default();
    let mut site = site(Some(Box::new(record.clone())));
    for (name, child) in
        [("store", Child::Store), ("sequencer", Child::Sequencer), ("edge", Child::Edge)]
    {
        let response = respond(&mut site, &format!("POST /dev/kill/{name}"), OURS);
        assert_eq!(status(&response), 202);
        assert!(response.ends_with(&format!("{{\"killed\":\"{name}\"}}")));
        assert_eq!(record.killed.borrow_mut().pop(), Some(child));
    }
    let refused = [
        ("POST /dev/kill/edge", "", 403),
        ("POST /dev/kill/edge", "X-Aldis-Dev: 1\r\n", 403),
        ("POST /dev/kill/edge", "Origin: http://localhost:8080\r\n", 403),
        ("POST /dev/kill/edge", "Origin: http://localhost:80\r\nX-Aldis-Dev: 1\r\n", 403),
        ("POST /dev/kill/edge", "Origin: null\r\nX-Aldis-Dev: 1\r\n", 403),
        ("POST /dev/kill/up", OURS, 404),
        ("POST /dev/kill/", OURS, 404),
        ("GET /dev/kill/edge", OURS, 405),
    ];
    for (line, fields, wanted) in refused {
        assert_eq!(status(&respond(&mut site, line, fields)), wanted, "{line} {fields}");
    }
    assert!(record.killed.borrow().is_empty());
    site.has_kill_buttons = false;
    assert_eq!(status(&respond(&mut site, "POST /dev/kill/edge", OURS)), 404);
}

#[test]
fn without_anybody_to_kill_it_is_unavailable() {
    let response = respond(&mut site(None), "POST /dev/kill/edge", OURS);
    assert_eq!(status(&response), 503);
    assert!(response.contains("{\"code\":\"unavailable\""));
}
