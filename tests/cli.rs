//! `aldis send` and `aldis tail` as a person and a script meet them: real processes, real kills.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use support::cluster::{signal, wait_until};
use support::{Authority, Cluster};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

/// Far more than anything here takes on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(60);

fn aldis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.args(arguments).stdin(Stdio::null()).env_remove("ALDIS_URL").env_remove("ALDIS_TOKEN");
    command
}

fn address(cluster: &Cluster) -> String {
    format!("ws://{}", cluster.address)
}

/// What `aldis send --json` prints.
fn send(cluster: &Cluster, arguments: &[&str]) -> Value {
    let url = address(cluster);
    let output =
        aldis(&["send", "--json", "--timeout", "60s", "--url", &url]).args(arguments).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{}", error_of(&output));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The end of a command that cannot work: its code, and the last line of stderr.
fn failure(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("the binary runs");
    let error = error_of(&output);
    assert!(output.stdout.is_empty(), "{output:?}");
    let last = error.lines().last().unwrap_or_default().to_owned();
    (output.status.code().expect("it ends by itself"), last)
}

/// A running `aldis tail`; killed at the end of the test.
struct Tail {
    process: Child,
    lines: Receiver<String>,
}

impl Tail {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Tail {
        Tail::start_with(aldis(&["tail", "--url", &address(cluster)]).args(arguments))
    }

    fn start_with(command: &mut Command) -> Tail {
        let mut process =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Tail { process, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line comes")
    }

    fn message(&self) -> Value {
        serde_json::from_str(&self.line()).expect("one line of JSON")
    }

    /// Ends it with a signal: its code, what it still printed, and its stderr.
    fn end(mut self, name: &str) -> (Option<i32>, Vec<String>, String) {
        assert!(signal(self.process.id(), name));
        self.wait()
    }

    fn wait(&mut self) -> (Option<i32>, Vec<String>, String) {
        let mut error = String::new();
        let mut stderr = self.process.stderr.take().expect("piped");
        stderr.read_to_string(&mut error).expect("text");
        let code = self.process.wait().expect("ours").code();
        (code, self.lines.iter().collect(), error)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn receipts_of_bob(cluster: &Cluster) -> u64 {
    let mut alice = support::Client::connect(&cluster.url("user=alice&device=asks"));
    alice.say(json!({"t": "convos"}));
    alice.expect("convos")["convos"][0]["others_delivered"].as_u64().unwrap_or_default()
}

#[test]
fn what_is_sent_is_printed_once_and_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let first = send(&cluster, &["--as", "alice", "--to", "bob", "--id", "one", "hello"]);
    assert_eq!(
        (&first["t"], &first["seq"], &first["dup"]),
        (&json!("sent"), &json!(1), &json!(false))
    );
    let again = send(&cluster, &["--as", "alice", "--to", "bob", "--id", "one", "other"]);
    assert_eq!((&again["seq"], &again["dup"]), (&json!(1), &json!(true)));
    assert_eq!(again["mid"], first["mid"]);

    let tail = Tail::start(&cluster, &["--as", "bob", "--json"]);
    let message = tail.message();
    let expected = json!({"t": "msg", "convo": "dm:alice:bob", "seq": 1, "mid": first["mid"],
        "from": "alice", "id": "one", "ts": first["ts"], "body": "hello"});
    assert_eq!(message, expected);
    wait_until("bob's tail acknowledges", PATIENCE, || receipts_of_bob(&cluster) == 1);
    send(&cluster, &["--as", "alice", "--convo", "dm:alice:bob", "--", "-x\ny"]);
    assert_eq!(tail.message()["body"], "-x\ny");
    assert_eq!(tail.end("INT"), (Some(0), vec![], String::new()));
    wait_until("all is acknowledged", PATIENCE, || receipts_of_bob(&cluster) == 2);

    let text = aldis(&["send", "--as", "alice", "--to", "bob", "--url", &cluster.address, "three"])
        .output()
        .expect("the binary runs");
    let printed = String::from_utf8(text.stdout).expect("text");
    assert!(printed.starts_with("sent seq=3 mid="), "{printed}");
    assert!(printed.ends_with(" convo=dm:alice:bob\n"), "{printed}");
    let tail = Tail::start(&cluster, &["--as", "bob"]);
    let line = tail.line();
    assert!(
        line.ends_with("Z dm:alice:bob #3 alice: three"),
        "what was acknowledged is over: {line}"
    );
    assert_eq!(tail.end("TERM").0, Some(0));
}

#[test]
fn the_message_comes_from_stdin_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let pipe = |body: &[u8]| {
        let url = address(&cluster);
        let mut command = aldis(&["send", "--as", "alice", "--to", "bob", "--url", &url, "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        // It may end before it has read all that is too long.
        let _ = child.stdin.take().expect("piped").write_all(body);
        child.wait_with_output().expect("ours")
    };
    let largest = vec![b'x'; 65_536];
    for body in [&b"two\nlines\n"[..], b"", b"\xff\x00", &largest] {
        assert!(pipe(body).status.success());
    }
    let refused = pipe(&[largest.as_slice(), b"x"].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(error_of(&refused).contains("at most 65536 bytes"), "{}", error_of(&refused));

    let tail = Tail::start(&cluster, &["--as", "bob", "--json"]);
    assert_eq!(tail.message()["body"], "two\nlines\n");
    assert_eq!(tail.message()["body"], "");
    assert_eq!(tail.message()["body64"], "/wA=");
    assert_eq!(tail.message()["body"].as_str().map(str::len), Some(65_536));
}

#[test]
fn each_process_is_killed_and_each_message_is_printed_once_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let tail = Tail::start(&cluster, &["--as", "bob", "--json"]);
    let mut expected = 0;
    for process in ["edge", "sequencer", "store", "edge"] {
        for when in ["before", "after"] {
            expected += 1;
            let body = format!("{when} {process}");
            let sent = send(&cluster, &["--as", "alice", "--to", "bob", &body]);
            assert_eq!(sent["seq"], expected);
            let message = tail.message();
            assert_eq!((&message["seq"], &message["body"]), (&json!(expected), &json!(body)));
            if when == "before" {
                wait_until("it runs, to be killed", PATIENCE, || cluster.kill(process));
            }
        }
    }
    // A drain tells the tail when to come back.
    let edge = cluster.child("edge").expect("it runs");
    assert!(signal(edge, "TERM"));
    wait_until("another edge runs", PATIENCE, || {
        cluster.child("edge").is_some_and(|pid| pid != edge)
    });
    send(&cluster, &["--as", "alice", "--to", "bob", "last"]);
    assert_eq!(tail.message()["body"], "last");
    let (code, more, error) = tail.end("INT");
    assert_eq!((code, more), (Some(0), vec![]), "{error}");
    assert!(error.contains("trying again") && error.contains("connected again"), "{error}");
}

#[test]
fn a_tail_ends_when_nobody_reads_it_and_when_another_takes_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let mut unread = Tail::start(&cluster, &["--as", "bob"]);
    send(&cluster, &["--as", "alice", "--to", "bob", "hello"]);
    unread.line();
    let mut first = Tail::start(&cluster, &["--as", "bob"]);
    let (code, _, error) = unread.wait();
    assert_eq!(code, Some(1));
    assert!(error.contains("another connection of the same user and device took over"), "{error}");
    // As `aldis tail | head -1` does.
    let mut piped = aldis(&["tail", "--as", "carol", "--url", &address(&cluster)]);
    let mut piped = piped.stdout(Stdio::piped()).spawn().expect("the binary runs");
    drop(piped.stdout.take());
    let mut code = None;
    wait_until("it notices", PATIENCE, || {
        code = piped.try_wait().expect("ours").and_then(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(0));
    assert!(signal(first.process.id(), "INT"));
    assert_eq!(first.wait().0, Some(0));
}

#[test]
fn what_cannot_work_says_what_to_do() {
    let closed = "ws://127.0.0.1:1";
    let send = |more: &[&str]| {
        failure(aldis(&["send", "--as", "alice", "--timeout", "1s", "--url", closed]).args(more))
    };
    let (code, line) = send(&["--to", "bob", "--id", "x1", "hello"]);
    assert_eq!(code, 1);
    for part in ["not sent", "Connection refused", "is `aldis up` running?"] {
        assert!(line.contains(part), "{line}");
    }
    for (more, part) in [
        (&["--to", "", "hello"][..], "--to: it must be 1 to 64 bytes"),
        (&["--to", "bob", "--id", "", "hello"], "--id: it must be 1 to 64 bytes"),
        (&["--convo", "dm:b:a", "hello"], "is no conversation's name"),
        (&["--to", "bob", "--timeout", "soon", "hello"], "write it as 10s or 5m"),
        (&["--to", "bob", "--jsno"], "For more information, try '--help'."),
    ] {
        let mut command = aldis(&["send", "--as", "alice", "--url", closed]);
        let (code, line) = failure(command.args(more));
        assert_eq!(code, 2, "{line}");
        assert!(line.contains(part), "{line}");
    }
    let (code, line) = failure(&mut aldis(&["tail", "--as", "bob", "--url", "ftp://x"]));
    assert_eq!(code, 2, "{line}");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("ws://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"220 a mail server\r\n");
        }
    });
    let (code, line) = failure(&mut aldis(&["tail", "--as", "bob", "--url", &silent]));
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("is no edge of Aldis"), "{line}");
}

#[test]
fn a_server_that_hangs_is_given_the_time_that_was_given_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let deaf = format!("ws://{}", listener.local_addr().expect("bound"));
    let begin = Instant::now();
    let arguments = ["send", "--as", "a", "--to", "b", "--timeout", "1s", "--url", &deaf, "hello"];
    let (code, line) = failure(&mut aldis(&arguments));
    // Its patience with a server is 10 s where nobody says otherwise.
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("not sent") && line.contains("no answer to the handshake"), "{line}");
}

#[test]
fn a_server_that_says_never_does_not_break_a_client() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = format!("ws://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).read(&mut [0; 4096]);
            let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close";
            let _ = write!(&stream, "{head}\r\nRetry-After: {}\r\n\r\n", u64::MAX);
        }
    });
    let arguments = ["send", "--as", "alice", "--to", "bob", "--url", &busy, "hello"];
    let (code, line) = failure(&mut aldis(&arguments));
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("not sent") && line.contains("refused for now, 503"), "{line}");
}

#[test]
fn an_edge_that_asks_for_tokens_is_told_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret.key");
    std::fs::write(&secret, "correct horse battery staple, thirty-two bytes at least\n")
        .expect("written");
    let key = secret.to_str().expect("text");
    let options = ["--shards", "1", "--auth", "jwt", "--jwt-key", key];
    let cluster = Cluster::start(folder.path().join("data"), &options);
    let url = address(&cluster);
    let token = |user: &str| {
        let output = aldis(&["token", "--jwt-key", key, "--user", user]).output().expect("runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let send = ["send", "--to", "bob", "--url", &url, "hello"];
    let (code, line) = failure(aldis(&send).args(["--as", "alice"]));
    assert_eq!(code, 2);
    assert!(line.contains("asks for a token: --token TOKEN or ALDIS_TOKEN"), "{line}");
    let (code, line) = failure(aldis(&send).args(["--token", "x.y.z"]));
    assert_eq!(code, 2);
    assert!(line.contains("does not accept the token"), "{line}");
    assert!(!line.contains("x.y.z"), "{line}");
    let alice = token("alice");
    let (code, line) = failure(aldis(&send).args(["--as", "mallory", "--token", alice.trim_end()]));
    assert_eq!(code, 2);
    assert!(line.contains("the token is that of \"alice\", not of \"mallory\""), "{line}");
    let output = aldis(&send).env("ALDIS_TOKEN", &alice).output().expect("runs");
    assert!(output.status.success(), "{}", error_of(&output));

    let bob = token("bob");
    let tail = Tail::start(&cluster, &["--json", "--token", bob.trim_end()]);
    assert_eq!(tail.message()["body"], "hello");
    // Back with the ticket.
    wait_until("it runs, to be killed", PATIENCE, || cluster.kill("edge"));
    let output = aldis(&send).args(["--timeout", "60s"]).env("ALDIS_TOKEN", &alice).output();
    assert!(output.expect("runs").status.success());
    assert_eq!(tail.message()["seq"], 2);
}

#[test]
fn many_at_once_of_one_user_are_all_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let url = address(&cluster);
    let children: Vec<Child> = (0..8)
        .map(|index| {
            let body = index.to_string();
            aldis(&[
                "send",
                "--as",
                "alice",
                "--to",
                "bob",
                "--timeout",
                "60s",
                "--url",
                &url,
                &body,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs")
        })
        .collect();
    // They are one device, so that each pushes the others out.
    for mut child in children {
        assert!(child.wait().expect("ours").success());
    }
    let tail = Tail::start(&cluster, &["--as", "bob", "--json"]);
    let mut bodies: Vec<String> =
        (0..8).map(|_| tail.message()["body"].as_str().expect("text").to_owned()).collect();
    bodies.sort();
    assert_eq!(bodies, ["0", "1", "2", "3", "4", "5", "6", "7"]);
}

/// An edge that a test plays, behind TLS.
type Played = WebSocket<StreamOwned<ServerConnection, TcpStream>>;

/// The first client that likes the certificate, welcomed.
fn played(listener: &TcpListener, certificate: &Arc<ServerConfig>) -> Played {
    #[allow(clippy::result_large_err, reason = "tungstenite's own type")]
    fn choose(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let json = HeaderValue::from_static("aldis.v1.json");
        response.headers_mut().insert("sec-websocket-protocol", json);
        Ok(response)
    }
    loop {
        let (stream, _) = listener.accept().expect("a client");
        let connection = ServerConnection::new(Arc::clone(certificate)).expect("a connection");
        if let Ok(mut edge) = tungstenite::accept_hdr(StreamOwned::new(connection, stream), choose)
        {
            say(
                &mut edge,
                json!({"t": "welcome", "user": "bob", "device": "cli-tail",
                "session": "1", "heartbeat_ms": 30_000, "ticket": "t", "server": "played"}),
            );
            return edge;
        }
    }
}

fn say(edge: &mut Played, frame: Value) {
    edge.send(Message::text(frame.to_string())).expect("the client is there");
}

fn push(edge: &mut Played, seq: u64) {
    say(
        edge,
        json!({"t": "msg", "convo": "c", "seq": seq, "mid": seq.to_string(),
        "from": "alice", "id": seq.to_string(), "ts": 0, "body": "x"}),
    );
}

/// The next frame of this kind that the client says.
fn hear(edge: &mut Played, t: &str) -> Value {
    loop {
        let Message::Text(text) = edge.read().expect("the client is there") else { continue };
        let frame: Value = serde_json::from_str(&text).expect("JSON");
        if frame["t"] == t {
            return frame;
        }
    }
}

#[test]
fn over_tls_a_tail_drops_repetitions_and_asks_for_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let trusted = folder.path().join("authority.pem");
    authority.write(&trusted);
    let certificate = authority.vouch();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("wss://{}", listener.local_addr().expect("bound"));
    let edge = std::thread::spawn(move || {
        let mut edge = played(&listener, &certificate);
        [1, 1, 2].iter().for_each(|seq| push(&mut edge, *seq));
        say(&mut edge, json!({"t": "synced", "convos": {"c": 2}}));
        while hear(&mut edge, "ack")["seq"] != 2 {}
        push(&mut edge, 4);
        let asked = hear(&mut edge, "sync");
        assert_eq!(asked["convos"], json!({"c": 2}));
        [3, 4].iter().for_each(|seq| push(&mut edge, *seq));
        say(&mut edge, json!({"t": "synced", "ref": asked["ref"], "convos": {"c": 4}}));
        while hear(&mut edge, "ack")["seq"] != 4 {}
        // Gone, and back: what was acknowledged comes once more, as after a crash.
        drop(edge);
        let mut edge = played(&listener, &certificate);
        [4, 5].iter().for_each(|seq| push(&mut edge, *seq));
        while hear(&mut edge, "ack")["seq"] != 5 {}
        edge
    });
    let (code, line) = failure(&mut aldis(&["tail", "--as", "bob", "--url", &url]));
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("no TLS with wss://127.0.0.1:"), "{line}");
    let mut command = aldis(&["tail", "--as", "bob", "--json", "--url", &url]);
    let tail = Tail::start_with(command.env("SSL_CERT_FILE", &trusted));
    for seq in 1..=5 {
        assert_eq!(tail.message()["seq"], seq);
    }
    let _edge = edge.join().expect("it went as it was to go");
    let (code, more, _) = tail.end("INT");
    assert_eq!((code, more), (Some(0), vec![]));
}
