//! Clients that have to prove who they are, end to end: `aldis token`, `aldis up --auth jwt`, and
//! what becomes of a connection when its token ends.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue, StatusCode};
use tungstenite::{Error, Message};

use support::cluster::wait_until;
use support::{Client, Cluster};

/// The key of this test, good for nothing else.
const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIA2ptLyA2ZDI8aKctWM6YHy1O7G5Rzjx2eKULk581VVG
-----END PRIVATE KEY-----
";
/// Its `x` in a JWK set.
const PUBLIC_KEY: &str = "POQ1Fi54mN3d1Pn7x9m7KNV5GNALzk4aZmRDyPENsq0";

/// What `aldis token` prints.
fn token(key: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_aldis"))
        .args(["token", "--jwt-key"])
        .arg(key)
        .args(arguments)
        .output()
        .expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let printed = String::from_utf8(output.stdout).expect("text");
    printed.strip_suffix('\n').expect("one line").to_owned()
}

/// Connects with one header field; the first frame, and the subprotocol of the response.
fn connect_with(url: &str, name: &'static str, value: &str) -> (Value, Option<String>) {
    let mut request = url.into_client_request().expect("a URL");
    let value = HeaderValue::from_str(value).expect("a value");
    request.headers_mut().insert(HeaderName::from_static(name), value);
    let (mut socket, response) = tungstenite::connect(request).expect("it is let in");
    let chosen = response.headers().get("sec-websocket-protocol");
    let chosen = chosen.map(|value| value.to_str().expect("text").to_owned());
    let Message::Text(text) = socket.read().expect("a frame") else { panic!("text comes") };
    (serde_json::from_str(&text).expect("JSON"), chosen)
}

/// The status with which a connection is refused, and its body.
fn refused(url: &str) -> (StatusCode, Value) {
    match Client::try_connect(url).err().expect("it is refused") {
        Error::Http(response) => {
            let body = response.body().as_deref().unwrap_or_default();
            (response.status(), serde_json::from_slice(body).expect("JSON"))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn tokens_by_a_secret_from_the_command_to_the_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret.key");
    fs::write(&secret, "correct horse battery staple, thirty-two bytes at least\n")
        .expect("written");
    let key = secret.to_str().expect("text");
    let options = ["--shards", "1", "--auth", "jwt", "--jwt-key", key];
    let cluster = Cluster::start(folder.path().join("data"), &options);

    for query in ["", "user=alice", "token=x.y.z", "ticket=x"] {
        let (status, body) = refused(&cluster.url(query));
        assert_eq!((status, &body["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized")));
    }
    let alice = token(&secret, &["--user", "alice", "--device", "phone"]);
    let plain = cluster.url("user=mallory");
    let (welcome, _) = connect_with(&plain, "authorization", &format!("Bearer {alice}"));
    assert_eq!((&welcome["user"], &welcome["device"]), (&json!("alice"), &json!("phone")));
    let offered = format!("aldis.v1.json, bearer.{alice}");
    let (welcome, chosen) = connect_with(&plain, "sec-websocket-protocol", &offered);
    assert_eq!((&welcome["user"], chosen.as_deref()), (&json!("alice"), Some("aldis.v1.json")));

    let bob = token(&secret, &["--user", "bob", "--expires", "3s"]);
    let mut client = Client::try_connect(&cluster.url(&format!("token={bob}"))).expect("let in");
    let welcome = client.expect("welcome");
    assert_eq!(welcome["device"], "default");
    let mut sender = Client::connect(&cluster.url(&format!("token={alice}")));
    sender.send("bob", "1", "hello");
    assert_eq!(client.expect("msg")["body"], "hello");
    assert_eq!(client.expect_close(), Some(4004));
    assert_eq!(refused(&cluster.url(&format!("token={bob}"))).0, StatusCode::UNAUTHORIZED);
    let ticket = welcome["ticket"].as_str().expect("text");
    let mut again = Client::connect(&cluster.url(&format!("ticket={ticket}")));
    again.barrier();
    assert_eq!(cluster.metric("edge", "aldis_identity_cut_total"), Some(1.0));
    let refused_at_all = cluster.metric("edge", "aldis_identity_refused_total{reason=\"missing\"}");
    assert_eq!(refused_at_all, Some(2.0));
}

#[test]
fn tokens_by_a_published_set_that_comes_to_have_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let (private, keys) = (folder.path().join("key.pem"), folder.path().join("keys.json"));
    fs::write(&private, PRIVATE_KEY).expect("written");
    fs::write(&keys, r#"{"keys":[]}"#).expect("written");
    let place = keys.to_str().expect("text");
    let options = ["--shards", "1", "--auth", "jwt", "--jwks", place, "--jwt-audience", "aldis"];
    let cluster = Cluster::start(folder.path().join("data"), &options);

    let named = ["--user", "alice", "--key-id", "one", "--audience", "aldis"];
    let url = cluster.url(&format!("token={}", token(&private, &named)));
    assert_eq!(refused(&url).0, StatusCode::UNAUTHORIZED);
    let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": PUBLIC_KEY});
    fs::write(&keys, json!({"keys": [key]}).to_string()).expect("written");
    let is_let_in = || Client::try_connect(&url).is_ok();
    wait_until("the new key is known", Duration::from_secs(20), is_let_in);
    let elsewhere = ["--user", "alice", "--key-id", "one", "--audience", "elsewhere"];
    let url = cluster.url(&format!("token={}", token(&private, &elsewhere)));
    assert_eq!(refused(&url).0, StatusCode::UNAUTHORIZED);
}

#[test]
fn what_cannot_work_is_one_clear_line_and_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = folder.path().join("short");
    fs::write(&short, "short").expect("written");
    let short = short.to_str().expect("text");
    let data = folder.path().join("data");
    let table: [(&[&str], &str); 8] = [
        (&["up", "--auth", "magic"], "use dev or jwt"),
        (&["up", "--auth", "jwt"], "needs keys"),
        (&["up", "--jwt-key", short], "--jwt-key is of no use with --auth dev"),
        (&["up", "--auth", "jwt", "--jwt-key", short], "this one 5"),
        (&["up", "--auth", "jwt", "--jwks", "http://id.example.org/"], "use https"),
        (&["up", "--auth", "jwt", "--jwks", "no/such/file"], "opening the file"),
        (&["token", "--user", "", "--jwt-key", short], "--user: it must be 1 to 64 bytes"),
        (&["token", "--user", "a", "--expires", "1", "--jwt-key", short], "--expires 1: write"),
    ];
    for (arguments, reason) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
        command.args(arguments).args(["--log", "error"]).env("ALDIS_UP_DATA", &data);
        let output = command.output().expect("the binary runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
    assert!(!data.exists(), "it was refused before anything was done");
}
