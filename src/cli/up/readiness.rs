//! Finds out when a child is ready: its admin address appears in its file, and `/healthz` is 200.

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

const POLL_PAUSE: Duration = Duration::from_millis(20);
const REQUEST_PATIENCE: Duration = Duration::from_millis(500);
/// More than the head and the word that we look for.
const ANSWER_SIZE_MAX: u64 = 4 * 1024;

/// One life of a child that is to be watched until it is ready.
pub struct Watch {
    pub role: Role,
    pub life: u64,
    /// The life that the supervisor is at; the watch ends when it moves on.
    pub current_life: Arc<AtomicU64>,
    pub admin_file: PathBuf,
}

impl Watch {
    /// Watches on a thread of its own and says [`Event::Ready`] once.
    pub fn start(self, events: Sender<Event>) {
        thread::spawn(move || {
            while self.current_life.load(Ordering::Relaxed) == self.life {
                if is_ready(&self.admin_file) {
                    let (role, life) = (self.role, self.life);
                    let _ = events.send(Event::Ready { role, life });
                    return;
                }
                thread::sleep(POLL_PAUSE);
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
    health(address).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

fn health(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_PATIENCE)?;
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_SIZE_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::admin::{AdminOptions, Health, Registry};

    #[test]
    fn ready_is_said_once_the_page_says_ok() {
        let folder = tempfile::tempdir().unwrap();
        let admin_file = folder.path().join("store.admin");
        let (events, inbox) = mpsc::channel();
        let watch = Watch {
            role: Role::Store,
            life: 7,
            current_life: Arc::new(AtomicU64::new(7)),
            admin_file: admin_file.clone(),
        };
        watch.start(events);
        let health = Health::starting();
        let options =
            AdminOptions { address: "127.0.0.1:0".parse().unwrap(), file: Some(admin_file) };
        options.open(&Registry::new("store"), &health).unwrap();
        assert!(inbox.recv_timeout(Duration::from_millis(100)).is_err());
        health.set_ok();
        let event = inbox.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(event, Event::Ready { role: Role::Store, life: 7 }));
    }

    #[test]
    fn a_watch_ends_with_the_life_it_watches() {
        let (events, inbox) = mpsc::channel();
        let watch = Watch {
            role: Role::Edge,
            life: 1,
            current_life: Arc::new(AtomicU64::new(2)),
            admin_file: PathBuf::from("absent"),
        };
        watch.start(events);
        let end = inbox.recv_timeout(Duration::from_secs(10)).unwrap_err();
        assert_eq!(end, mpsc::RecvTimeoutError::Disconnected);
    }
}
