//! Keys that a provider publishes over https, as a real edge fetches them: an authority that the
//! host is told to trust, keys that come and go, a provider that hangs, and one that is another.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use support::cluster::wait_until;
use support::{Authority, Client, Cluster};

/// Longer than everything that a fetch may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the provider does with a request.
#[derive(Clone)]
enum Behaviour {
    Publishes(Vec<&'static str>),
    /// It takes the request and never says a word.
    Hangs,
}

/// An identity provider. Its threads end with the test's process.
struct Provider {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    behaviour: Behaviour,
    certificate: Arc<ServerConfig>,
    requests: usize,
}

impl Provider {
    fn start(authority: &Authority, ids: &[&'static str]) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let (behaviour, certificate) = (Behaviour::Publishes(ids.to_vec()), authority.vouch());
        let state = Arc::new(Mutex::new(State { behaviour, certificate, requests: 0 }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.expect("accepted"), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Provider { address, state }
    }

    fn turn(&self, behaviour: Behaviour) {
        self.state.lock().expect("no panic").behaviour = behaviour;
    }

    fn publish(&self, ids: &[&'static str]) {
        self.turn(Behaviour::Publishes(ids.to_vec()));
    }

    fn requests(&self) -> usize {
        self.state.lock().expect("no panic").requests
    }

    fn url(&self) -> String {
        format!("https://{}/keys", self.address)
    }
}

/// Serves one connection. A client that does not like the certificate is gone at once.
fn serve(stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    let certificate = Arc::clone(&state.lock().ok()?.certificate);
    let mut stream = StreamOwned::new(ServerConnection::new(certificate).ok()?, stream);
    let mut lines = BufReader::new(&mut stream).lines();
    while !lines.next()?.ok()?.is_empty() {}
    let behaviour = {
        let mut state = state.lock().ok()?;
        state.requests += 1;
        state.behaviour.clone()
    };
    let Behaviour::Publishes(ids) = behaviour else {
        // Until the client has had enough.
        let mut lines = BufReader::new(&mut stream).lines();
        while lines.next()?.is_ok() {}
        return None;
    };
    let body = set(&ids);
    let size = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

fn secret(id: &str) -> Vec<u8> {
    format!("the secret with the id {id} and with enough bytes").into_bytes()
}

fn set(ids: &[&str]) -> String {
    let key = |id: &&str| json!({"kty": "oct", "kid": id, "k": URL_SAFE_NO_PAD.encode(secret(id))});
    json!({"keys": ids.iter().map(key).collect::<Vec<_>>()}).to_string()
}

fn token(id: &str) -> String {
    let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(&secret(id));
    let claims = json!({"sub": "alice", "exp": 4_102_444_800_u64});
    jsonwebtoken::encode(&header, &claims, &key).expect("signed")
}

/// Whether a token that was signed with this key opens the door.
fn is_let_in(cluster: &Cluster, id: &str) -> bool {
    Client::try_connect(&cluster.url(&format!("token={}", token(id)))).is_ok()
}

fn edge(folder: &Path, provider: &Provider, trusted: &Path) -> Cluster {
    let url = provider.url();
    let options = ["--shards", "1", "--auth", "jwt", "--jwks", &url];
    let trusted = trusted.to_str().expect("text");
    // A proxy of the host's would not find this provider.
    let environment = [("SSL_CERT_FILE", trusted), ("NO_PROXY", "127.0.0.1")];
    Cluster::start_with(folder.join("data"), &options, &environment)
}

#[test]
fn keys_come_and_go_over_https_and_a_provider_that_hangs_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, trusted) = (Authority::new(), folder.path().join("trusted.pem"));
    authority.write(&trusted);
    let provider = Provider::start(&authority, &["a"]);
    let cluster = edge(folder.path(), &provider, &trusted);
    assert!(is_let_in(&cluster, "a"), "the first set is there before the edge serves");
    assert!(!is_let_in(&cluster, "b"));
    provider.publish(&["a", "b"]);
    wait_until("the new key is known", PATIENCE, || is_let_in(&cluster, "b"));
    assert!(is_let_in(&cluster, "a"), "the old one as long as it is published");
    provider.publish(&["b"]);
    // What makes the edge look is a key that it does not know.
    wait_until("the old key is gone", PATIENCE, || {
        !is_let_in(&cluster, "c") && !is_let_in(&cluster, "a")
    });
    provider.turn(Behaviour::Hangs);
    let before = provider.requests();
    wait_until("the provider is asked", PATIENCE, || {
        !is_let_in(&cluster, "c") && provider.requests() > before
    });
    let failures = || cluster.metric("edge", "aldis_jwks_failures_total").unwrap_or_default();
    wait_until("the fetch is given up", PATIENCE, || {
        assert!(is_let_in(&cluster, "b"), "nobody waits for a provider that hangs");
        failures() >= 1.0
    });
    provider.publish(&["b", "c"]);
    wait_until("it is asked again", PATIENCE, || is_let_in(&cluster, "c"));
}

#[test]
fn a_provider_that_nobody_vouches_for_is_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, trusted) = (Authority::new(), folder.path().join("trusted.pem"));
    authority.write(&trusted);
    let stranger = Provider::start(&Authority::new(), &["a"]);
    let cluster = edge(folder.path(), &stranger, &trusted);
    let failures = || cluster.metric("edge", "aldis_jwks_failures_total").unwrap_or_default();
    wait_until("the fetch has failed", PATIENCE, || failures() >= 1.0);
    assert_eq!(stranger.requests(), 0, "it is not even asked");
    assert!(!is_let_in(&cluster, "a"));
    stranger.state.lock().expect("no panic").certificate = authority.vouch();
    wait_until("it is believed once somebody does", PATIENCE, || is_let_in(&cluster, "a"));
}
