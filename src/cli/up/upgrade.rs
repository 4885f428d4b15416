//! `aldis upgrade` at the socket of `up`, and the successor of the edge while there are two.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::child::Plan;
use super::control::short_path;
use super::supervisor::Event;
use crate::edge::handover::{
    Lane, READY_PATIENCE, SERVING_PATIENCE, Said, ToNew, ToOld, program, success,
};

/// How long a command may take to say what it wants.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// How long an edge that has nothing any more may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A command that waits for the outcome.
#[derive(Debug)]
pub struct Asked {
    /// Empty: what is now at the path of the program that runs.
    binary: String,
    lane: Lane,
}

/// A successor that has not taken over yet.
pub struct Succession {
    process: Child,
    program: PathBuf,
    lane: Lane,
    deadline: Instant,
}

/// An edge that was taken over.
pub struct Replaced {
    process: Child,
    deadline: Instant,
}

/// What became of a successor.
pub enum Outcome {
    /// It is the edge now, from this program.
    Serves(Child, PathBuf),
    /// It is gone.
    Failed(ExitStatus),
}

/// Opens the socket. Without it `up` runs as well.
pub fn open(path: &Path, events: Sender<Event>) {
    let Some(path) = short_path(path) else {
        tracing::warn!("the path of the data directory is too long for a socket: no upgrades");
        return;
    };
    match bind(&path) {
        Ok(listener) => {
            thread::spawn(move || accept(&listener, &events));
        }
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "no upgrade socket: no upgrades");
        }
    }
}

/// A socket of an earlier life is removed: the lock of the directory proves that life over.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, events: &Sender<Event>) {
    for stream in listener.incoming().flatten() {
        let lane = Lane::new(stream);
        let asked = lane.set_patience(Some(ASK_PATIENCE)).and_then(|()| lane.hear());
        if let Ok(ToOld::Upgrade { binary }) = asked {
            let asked = Asked { binary: binary.to_string(), lane };
            if events.send(Event::Upgrade(asked)).is_err() {
                return;
            }
        }
    }
}

impl Asked {
    pub fn refuse(self, reason: &str) {
        tracing::warn!(reason, "no upgrade");
        // The command may have been ended meanwhile.
        let _gone = self.lane.say(&ToNew::Refused { reason: reason.into() });
    }

    /// Starts a successor. `None`: it could not be started, and the command was told.
    pub fn start(self, plan: &Plan, events: &Sender<Event>) -> Option<Succession> {
        match start(plan, &self.binary, events) {
            Ok((process, program)) => {
                let line = format!("process {} is starting", process.id());
                tracing::info!(child_pid = process.id(), "an edge is started as a successor");
                let _gone = self.lane.say(&ToNew::Told { line: line.into() });
                let deadline = Instant::now() + READY_PATIENCE;
                Some(Succession { process, program, lane: self.lane, deadline })
            }
            Err(reason) => {
                self.refuse(&reason);
                None
            }
        }
    }
}

fn start(plan: &Plan, binary: &str, events: &Sender<Event>) -> Result<(Child, PathBuf), String> {
    let program = program(binary)?;
    let mut command = plan.successor(&program);
    let failed = |error: io::Error| format!("cannot start {}: {error}", program.display());
    let mut process = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let (successor, events) = (process.id(), events.clone());
    if let Some(output) = process.stdout.take() {
        Said::listen(output, move |said| {
            let _ending = events.send(Event::Successor { successor, said });
        });
    }
    Ok((process, program))
}

impl Succession {
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The successor says how far it is. The succession comes back until it has an outcome.
    pub fn said(mut self, said: Said) -> Result<Outcome, Succession> {
        match said {
            Said::Ready => {
                self.deadline = Instant::now() + SERVING_PATIENCE;
                Err(self)
            }
            Said::Serving { connections, pause_us } => {
                let line = success(self.process.id(), connections, pause_us);
                tracing::info!(
                    child_pid = self.process.id(),
                    connections,
                    pause_us,
                    "the successor of the edge serves"
                );
                let _gone = self.lane.say(&ToNew::Done { line: line.into() });
                Ok(Outcome::Serves(self.process, self.program))
            }
            Said::Refused(reason) => Ok(self.fail(&reason)),
            Said::Ended => Ok(self.fail("the successor ended at once")),
        }
    }

    /// Gives it up if it takes too long.
    pub fn look(self) -> Result<Outcome, Succession> {
        if Instant::now() < self.deadline {
            return Err(self);
        }
        Ok(self.fail("the successor takes too long"))
    }

    /// Ends it.
    pub fn fail(mut self, reason: &str) -> Outcome {
        // It fails only when the process has ended already.
        let _ended = self.process.kill();
        let status = self.process.wait().unwrap_or_default();
        let reason = format!("{reason} ({status}); nothing has changed");
        Asked { binary: String::new(), lane: self.lane }.refuse(&reason);
        Outcome::Failed(status)
    }
}

impl Replaced {
    pub fn new(process: Child) -> Replaced {
        Replaced { process, deadline: Instant::now() + END_PATIENCE }
    }

    /// Whether it still runs. It is killed when it takes too long.
    pub fn runs(&mut self) -> bool {
        if Instant::now() > self.deadline {
            let _ended = self.process.kill();
        }
        matches!(self.process.try_wait(), Ok(None))
    }
}
