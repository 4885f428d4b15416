//! The control socket: one datagram `kill store`, `kill sequencer` or `kill edge` kills that child
//! at once. For the page's buttons, which show that nothing is lost; only this user may write.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;

use super::child::Role;
use super::supervisor::Event;

/// `sun_path` has 108 bytes, of which the last is 0.
const SOCKET_PATH_SIZE_MAX: usize = 107;
/// Longer than any command.
const DATAGRAM_SIZE_MAX: usize = 64;

/// Opens the socket at `path` and returns the path for the edge. Without it `up` runs as well, so
/// an obstacle is logged and the answer is `None`.
pub fn open(path: &Path, events: Sender<Event>) -> Option<PathBuf> {
    let Some(path) = short_path(path) else {
        tracing::warn!(
            "the path of the data directory is too long for a socket: no kill buttons on the page"
        );
        return None;
    };
    match bind(&path) {
        Ok(socket) => {
            thread::spawn(move || receive(&socket, &events));
            Some(path)
        }
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "no control socket: no kill buttons on the page");
            None
        }
    }
}

/// The path, or the same one from the working directory (which the children share), if it fits.
pub fn short_path(path: &Path) -> Option<PathBuf> {
    let fits = |path: &Path| path.as_os_str().len() <= SOCKET_PATH_SIZE_MAX;
    if fits(path) {
        return Some(path.to_owned());
    }
    let here = std::env::current_dir().ok()?;
    let relative = path.strip_prefix(here).ok()?;
    fits(relative).then(|| relative.to_owned())
}

/// A socket of an earlier life is removed: the lock of the directory proves that life over.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

fn receive(socket: &UnixDatagram, events: &Sender<Event>) {
    let mut datagram = [0; DATAGRAM_SIZE_MAX];
    while let Ok(size) = socket.recv(&mut datagram) {
        match parse(&datagram[..size]) {
            Some(role) if events.send(Event::Kill(role)).is_err() => return,
            Some(_) => {}
            None => tracing::warn!(size, "a command on the control socket is not understood"),
        }
    }
}

fn parse(datagram: &[u8]) -> Option<Role> {
    let text = std::str::from_utf8(datagram).ok()?;
    text.trim_end().strip_prefix("kill ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_datagram_becomes_an_event_and_rubbish_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("up.sock");
        fs::write(&path, b"of an earlier life").unwrap();
        let (sender, receiver) = mpsc::channel();
        assert_eq!(open(&path, sender), Some(path.clone()));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let edge = UnixDatagram::unbound().unwrap();
        for command in [&b"kill up"[..], b"\xff", b"", b"kill store\n"] {
            edge.send_to(command, &path).unwrap();
        }
        assert!(matches!(receiver.recv(), Ok(Event::Kill(Role::Store))));
    }

    #[test]
    fn a_long_path_is_taken_from_the_working_directory_or_refused() {
        let long = std::env::current_dir().unwrap().join("x".repeat(100));
        assert_eq!(short_path(&long), Some(PathBuf::from("x".repeat(100))));
        assert_eq!(short_path(&long.join("y".repeat(100))), None);
    }
}
