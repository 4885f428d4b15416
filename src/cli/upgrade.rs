//! `aldis upgrade`: asks `up`, or an edge that runs alone, for a successor of the edge.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::failure::Usage;
use super::up::upgrade_path;
use crate::edge::handover::{Lane, ToNew, ToOld};

#[derive(Args, Debug)]
pub struct UpgradeSettings {
    /// The directory of an `aldis up`. Default: ./aldis-data
    #[arg(long, value_name = "DIR", conflicts_with = "handover")]
    data: Option<PathBuf>,
    /// Instead: the --handover socket of an edge that runs alone.
    #[arg(long, value_name = "PATH")]
    handover: Option<PathBuf>,
    /// The new program. Default: what is now at the path of the one that runs
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

pub fn run(settings: UpgradeSettings) -> anyhow::Result<()> {
    let UpgradeSettings { data, handover, binary } = settings;
    let socket = handover
        .unwrap_or_else(|| upgrade_path(&data.unwrap_or_else(|| PathBuf::from("./aldis-data"))));
    let binary = match binary {
        Some(path) => absolute(&path)?,
        None => String::new(),
    };
    let stream = UnixStream::connect(&socket)
        .with_context(|| format!("nobody answers at {}", socket.display()))?;
    let lane = Lane::new(stream);
    lane.say(&ToOld::Upgrade { binary: binary.as_str().into() })?;
    let mut output = io::stdout().lock();
    loop {
        match lane.hear().context("whoever was asked has ended")? {
            ToNew::Told { line } => writeln!(output, "{line}")?,
            ToNew::Done { line } => return Ok(writeln!(output, "{line}")?),
            ToNew::Refused { reason } => bail!("{reason}"),
            _ => bail!("the answer makes no sense"),
        }
    }
}

/// Whoever starts the program may have another working directory.
fn absolute(path: &Path) -> Result<String, Usage> {
    let unusable =
        |why: &dyn std::fmt::Display| Usage(format!("--binary {}: {why}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| unusable(&error))?;
    if !absolute.is_file() {
        return Err(unusable(&"there is no such file"));
    }
    absolute.into_os_string().into_string().map_err(|_| unusable(&"the path is not UTF-8"))
}
