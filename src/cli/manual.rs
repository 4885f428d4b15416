//! The manual pages, out of the declarations of the command line.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

use super::failure::Usage;

/// Prints the page of the whole program, or of one of its commands.
pub fn print(program: Command, of: Option<&str>) -> anyhow::Result<()> {
    let mut program = program;
    program.build();
    let page = match of {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name).cloned();
            found.ok_or_else(|| Usage(format!("no command is called {name:?}")))?
        }
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    io::stdout().lock().write_all(&text)?;
    Ok(())
}
