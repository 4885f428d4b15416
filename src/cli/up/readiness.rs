//! Finds out whether a child is ready: its admin address appears in its file, and `/readyz` is 200.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::child::Role;
use super::supervisor::Event;
use crate::admin::Part;

const POLL_PAUSE: Duration = Duration::from_millis(20);
/// Once a child was ready, how often it is asked whether it still is.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const REQUEST_PATIENCE: Duration = Duration::from_millis(500);
/// More than the head and the word that we look for.
const ANSWER_SIZE_MAX: u64 = 4 * 1024;

/// One life of a child that is to be watched.
pub struct Watch {
    pub role: Role,
    pub life: u64,
    /// The life that the supervisor is at; the watch ends when it moves on.
    pub current_life: Arc<AtomicU64>,
    pub admin_file: PathBuf,
    /// Where `up` says that it is not ready.
    pub part: Part,
}

impl Watch {
    /// Watches on a thread of its own, and says [`Event::Ready`] once.
    pub fn start(mut self, events: Sender<Event>) {
        self.part.set(Some("starting"));
        thread::spawn(move || {
            let mut was_ready = false;
            while self.current_life.load(Ordering::Relaxed) == self.life {
                let is_ready = is_ready(&self.admin_file);
                if is_ready && !was_ready {
                    was_ready = true;
                    let (role, life) = (self.role, self.life);
                    let _ = events.send(Event::Ready { role, life });
                }
                self.part.set(match (is_ready, was_ready) {
                    (true, _) => None,
                    (false, false) => Some("starting"),
                    (false, true) => Some("not ready; its own /readyz says why"),
                });
                thread::sleep(if was_ready { LOOK_PAUSE } else { POLL_PAUSE });
            }
        });
    }
}

fn is_ready(admin_file: &Path) -> bool {
    let Ok(text) = fs::read_to_string(admin_file) else {
        return false;
    };
    let Ok(address) = text.trim_end().parse() else {
        return false;
    };
    ask(address).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_PATIENCE)?;
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_SIZE_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::admin::{AdminOptions, Health, Registry};

    fn watch(life: u64, current: &Arc<AtomicU64>, admin_file: &Path, of: &Health) -> Watch {
        Watch {
            role: Role::Store,
            life,
            current_life: Arc::clone(current),
            admin_file: admin_file.to_owned(),
            part: of.part("store"),
        }
    }

    fn wait_for(what: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(std::time::Instant::now() < deadline, "it did not happen in time");
            thread::sleep(POLL_PAUSE);
        }
    }

    #[test]
    fn ready_is_said_once_the_page_says_ok() {
        let folder = tempfile::tempdir().unwrap();
        let admin_file = folder.path().join("store.admin");
        let (events, inbox) = mpsc::channel();
        let all = Health::starting();
        all.set_ok();
        let life = Arc::new(AtomicU64::new(7));
        watch(7, &life, &admin_file, &all).start(events);
        assert_eq!(all.unready().as_deref(), Some("store: starting"));
        let health = Health::starting();
        let options =
            AdminOptions { address: "127.0.0.1:0".parse().unwrap(), file: Some(admin_file) };
        options.open(&Registry::new("store"), &health).unwrap();
        assert!(inbox.recv_timeout(Duration::from_millis(100)).is_err());
        health.set_ok();
        let event = inbox.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(event, Event::Ready { role: Role::Store, life: 7 }));
        wait_for(|| all.unready().is_none());
        let mut link = health.part("link");
        link.set(Some("down"));
        wait_for(|| all.unready().is_some_and(|reason| reason.starts_with("store: not ready")));
        link.set(None);
        wait_for(|| all.unready().is_none());
        life.store(8, Ordering::Relaxed);
        assert!(inbox.recv().is_err(), "it is said once, and the watch ends");
    }

    #[test]
    fn a_watch_ends_with_the_life_it_watches() {
        let (events, inbox) = mpsc::channel();
        let life = Arc::new(AtomicU64::new(2));
        watch(1, &life, Path::new("absent"), &Health::starting()).start(events);
        let end = inbox.recv_timeout(Duration::from_secs(10)).unwrap_err();
        assert_eq!(end, mpsc::RecvTimeoutError::Disconnected);
    }
}
