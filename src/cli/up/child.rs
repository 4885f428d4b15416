//! The children of `up`: their command lines and how each is started and ended.

use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;

use super::directory::{admin_path, secret_path, store_path};
use super::restart::End;
use crate::cli::identity::IdentitySettings;
use crate::edge::handover::TAKE_OVER_FLAG;
use crate::sys;

const SIGKILL: i32 = signal_hook::consts::SIGKILL;
const SIGTERM: i32 = signal_hook::consts::SIGTERM;

/// What a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Store,
    Sequencer,
    Edge,
}

/// In the order of starting; ending goes the other way.
pub const ROLES: [Role; 3] = [Role::Store, Role::Sequencer, Role::Edge];

/// What the children are told. The same in each of their lives.
pub struct Plan {
    pub executable: PathBuf,
    pub directory: PathBuf,
    pub listen: SocketAddr,
    pub store_link: SocketAddr,
    pub sequencer_link: SocketAddr,
    /// `None`: the page has no kill buttons.
    pub control: Option<PathBuf>,
    /// `None`: the edge cannot be upgraded in place.
    pub handover: Option<PathBuf>,
    pub shards: Option<usize>,
    pub identity: IdentitySettings,
    pub hosts: Vec<String>,
    pub origins: Vec<String>,
    pub deflate: Option<bool>,
    pub config: Option<PathBuf>,
    pub log: Option<String>,
}

impl Role {
    /// The subcommand, and the name in the process list.
    pub fn name(self) -> &'static str {
        match self {
            Role::Store => "store",
            Role::Sequencer => "sequencer",
            Role::Edge => "edge",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(name: &str) -> Result<Role, ()> {
        ROLES.into_iter().find(|role| role.name() == name).ok_or(())
    }
}

impl Plan {
    /// The file in which a child's admin address appears.
    pub fn admin_path(&self, role: Role) -> PathBuf {
        admin_path(&self.directory, role.name())
    }

    /// The child's command, to be started from the main thread only: the child dies when the
    /// *thread* that started it ends. It is a process group of its own, so that Ctrl-C on a
    /// terminal reaches `up` alone, which then ends the children in their order.
    pub fn command(&self, role: Role) -> Command {
        self.command_of(executable(&self.executable), role)
    }

    /// The command of an edge that takes over from the one that runs. As [`Plan::command`].
    pub fn successor(&self, program: &Path) -> Command {
        let mut command = self.command_of(program, Role::Edge);
        command.arg(TAKE_OVER_FLAG);
        command
    }

    /// As [`Plan::command`], of another program.
    pub fn command_of(&self, program: &Path, role: Role) -> Command {
        let mut command = Command::new(program);
        command
            .arg0("aldis")
            .arg(role.name())
            .args(self.arguments(role))
            .stdin(Stdio::null())
            .process_group(0);
        sys::die_with_parent(&mut command);
        command
    }

    fn arguments(&self, role: Role) -> Vec<PathBuf> {
        let mut arguments = Vec::new();
        let mut flag = |name: &str, value: &dyn AsRef<Path>| {
            arguments.push(PathBuf::from(name));
            arguments.push(value.as_ref().to_owned());
        };
        match role {
            Role::Store => {
                flag("--data", &store_path(&self.directory));
                flag("--listen", &self.store_link.to_string());
            }
            Role::Sequencer => {
                flag("--listen", &self.sequencer_link.to_string());
                flag("--store", &self.store_link.to_string());
            }
            Role::Edge => {
                flag("--listen", &self.listen.to_string());
                flag("--sequencer", &self.sequencer_link.to_string());
                for (name, value) in self.identity.flags() {
                    flag(name, &value);
                }
                if let Some(shards) = self.shards {
                    flag("--shards", &shards.to_string());
                }
                for host in &self.hosts {
                    flag("--host", host);
                }
                for origin in &self.origins {
                    flag("--origin", origin);
                }
                if let Some(deflate) = self.deflate {
                    flag("--deflate", &deflate.to_string());
                }
                if let Some(control) = &self.control {
                    flag("--control", control);
                }
                if let Some(handover) = &self.handover {
                    flag("--handover", handover);
                }
            }
        }
        flag("--secret-file", &secret_path(&self.directory));
        flag("--admin-file", &self.admin_path(role));
        if let Some(config) = &self.config {
            flag("--config", config);
        }
        if let Some(log) = &self.log {
            flag("--log", log);
        }
        arguments
    }
}

/// How a life ended, as the restart policy sees it.
pub fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code as u8),
        (None, Some(SIGKILL | SIGTERM)) => End::Killed,
        (None, _) => End::Exited(1),
    }
}

/// A program file that was replaced while it ran has no path any more, but still this name: all
/// children are of the same build as their parent.
fn executable(path: &Path) -> &Path {
    if path.exists() { path } else { Path::new("/proc/self/exe") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            executable: PathBuf::from("/usr/bin/aldis"),
            directory: PathBuf::from("data"),
            listen: "127.0.0.1:8080".parse().unwrap(),
            store_link: "127.0.0.1:20001".parse().unwrap(),
            sequencer_link: "127.0.0.1:20002".parse().unwrap(),
            control: Some(PathBuf::from("data/up.sock")),
            handover: Some(PathBuf::from("data/run/edge.sock")),
            shards: Some(2),
            identity: IdentitySettings {
                auth: "jwt".to_owned(),
                jwt_keys: vec![PathBuf::from("a.pem"), PathBuf::from("b.pem")],
                jwks: None,
                issuer: Some("https://id.local".to_owned()),
                audience: None,
            },
            hosts: vec!["chat.local".to_owned()],
            origins: Vec::new(),
            deflate: Some(true),
            config: None,
            log: None,
        }
    }

    fn line(role: Role) -> String {
        let command = plan().command(role);
        let words = command.get_args().map(|word| word.to_string_lossy());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_children_are_told_where_the_others_are() {
        assert_eq!(
            line(Role::Store),
            "store --data data/store --listen 127.0.0.1:20001 --secret-file data/secret \
             --admin-file data/run/store.admin"
        );
        assert_eq!(
            line(Role::Sequencer),
            "sequencer --listen 127.0.0.1:20002 --store 127.0.0.1:20001 \
             --secret-file data/secret --admin-file data/run/sequencer.admin"
        );
        assert_eq!(
            line(Role::Edge),
            "edge --listen 127.0.0.1:8080 --sequencer 127.0.0.1:20002 --auth jwt \
             --jwt-key a.pem --jwt-key b.pem --jwt-issuer https://id.local --shards 2 \
             --host chat.local --deflate true --control data/up.sock \
             --handover data/run/edge.sock --secret-file data/secret \
             --admin-file data/run/edge.admin"
        );
    }

    #[test]
    fn roles_are_known_by_name() {
        assert_eq!("edge".parse(), Ok(Role::Edge));
        assert_eq!("up".parse::<Role>(), Err(()));
    }

    #[test]
    fn a_crash_counts_as_a_fault_of_its_own() {
        assert_eq!(end_of(ExitStatus::from_raw(9)), End::Killed);
        assert_eq!(end_of(ExitStatus::from_raw(6)), End::Exited(1));
        assert_eq!(end_of(ExitStatus::from_raw(2 << 8)), End::Exited(2));
    }
}
