//! Starting a successor: for an edge that runs alone, and what `up` needs to do it.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::lane::Lane;
use super::said::Said;
use super::talk::ToNew;

/// The flag with which a successor is started.
pub const TAKE_OVER_FLAG: &str = "--take-over";
/// How long a successor may take to be ready.
pub const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take from there.
pub const SERVING_PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel adds to the name of a program file that was replaced.
const DELETED: &str = " (deleted)";

/// The program to start: `wanted`, or what is now at the path from which this process was started.
pub fn program(wanted: &str) -> Result<PathBuf, String> {
    if !wanted.is_empty() {
        return Ok(PathBuf::from(wanted));
    }
    // A path that was written out may lead over a link to what is current.
    let first = env::args_os().next().map(PathBuf::from);
    let written = first.filter(|path| path.components().count() > 1 && path.is_file());
    if let Some(path) = written {
        return Ok(path);
    }
    let running = env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let text = running.to_string_lossy();
    let path = Path::new(text.strip_suffix(DELETED).unwrap_or(&text));
    match path.is_file() {
        true => Ok(path.to_owned()),
        false => Err(format!("there is no program at {} any more", path.display())),
    }
}

/// What is said of a successor that serves.
pub fn success(process: u32, connections: u64, pause_us: u64) -> String {
    let (whole, rest) = (pause_us / 1_000, pause_us % 1_000 / 100);
    format!("process {process} serves; {connections} connections stood still for {whole}.{rest} ms")
}

/// Starts a successor of this process with the arguments of this process, and waits until it has
/// taken over. Yields what to tell, and what to tell if it has not.
pub(super) fn start_successor(wanted: &str, lane: &Lane) -> Result<String, String> {
    let program = program(wanted)?;
    let (name, mut arguments) = (env::args_os().next(), env::args_os().skip(1));
    let mut command = Command::new(&program);
    if let Some(name) = name {
        command.arg0(name);
    }
    command.args(arguments.by_ref().filter(|argument| argument != TAKE_OVER_FLAG));
    command.arg(TAKE_OVER_FLAG).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    let line = format!("process {} is starting", child.id());
    let _gone = lane.say(&ToNew::Told { line: line.into() });
    let (say, said) = channel();
    if let Some(output) = child.stdout.take() {
        Said::listen(output, move |step| {
            let _over = say.send(step);
        });
    }
    let mut patience = READY_PATIENCE;
    let reason = loop {
        match said.recv_timeout(patience) {
            Ok(Said::Ready) => patience = SERVING_PATIENCE,
            Ok(Said::Serving { connections, pause_us }) => {
                announce_main_process(child.id());
                return Ok(success(child.id(), connections, pause_us));
            }
            Ok(Said::Refused(reason)) => break reason,
            Err(RecvTimeoutError::Timeout) => {
                break format!("the successor was not ready within {} s", patience.as_secs());
            }
            Ok(Said::Ended) | Err(RecvTimeoutError::Disconnected) => {
                break "the successor ended at once".to_owned();
            }
        }
    };
    let _ended = child.kill();
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(format!("{reason} ({status}); nothing has changed"))
}

/// Tells systemd, if it started this process, which one to watch from now on (`sd_notify`).
fn announce_main_process(process: u32) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let text = path.to_string_lossy();
    let address = match text.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| {
        let message = format!("MAINPID={process}\nREADY=1\n");
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell systemd of the new process");
    }
}
