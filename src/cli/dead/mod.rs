//! `aldis dead`: what was never delivered, of a sequencer that runs.

mod desk;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::desk::Desk;

#[derive(Args, Debug)]
pub struct DeadSettings {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    place: Place,
}

/// Which sequencer is asked.
#[derive(Args, Debug)]
pub struct Place {
    /// The directory of an `aldis up`. Default: ./aldis-data
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Instead: the admin address of a sequencer that runs alone; --secret-file is needed then.
    #[arg(long, value_name = "ADDR", global = true)]
    admin: Option<String>,
    /// The file with the secret that all processes share. Default: that of the directory
    #[arg(long, value_name = "FILE", global = true)]
    secret_file: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Print the dead letters: recipient, conversation, seq, sender, id.
    List(Chosen),
    /// Print what is known of one message; its body only with --body.
    Show {
        #[arg(long, value_name = "NAME")]
        convo: String,
        #[arg(long, value_name = "N")]
        seq: u64,
        /// The body too.
        #[arg(long)]
        body: bool,
    },
    /// Put the letters of one recipient in one conversation back into his inbox, from --seq on.
    Replay {
        #[arg(long, value_name = "NAME")]
        user: String,
        #[arg(long, value_name = "NAME")]
        convo: String,
        /// Default: from the first one on
        #[arg(long, value_name = "N", default_value_t = 1)]
        seq: u64,
    },
    /// Print the dead letters with their messages and bodies, a JSON object a line.
    Export(Chosen),
}

#[derive(Args, Debug)]
pub struct Chosen {
    /// Of this recipient only.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Of this conversation only.
    #[arg(long, value_name = "NAME")]
    convo: Option<String>,
}

pub fn run(settings: DeadSettings) -> anyhow::Result<()> {
    let Place { data, admin, secret_file } = settings.place;
    let desk = Desk::find(data, admin, secret_file)?;
    let mut output = io::stdout().lock();
    match settings.action {
        Action::List(chosen) => each(&desk, &chosen, |letter| {
            let text = |name: &str| letter[name].as_str().unwrap_or_default().to_owned();
            let (user, convo, from, id) = (text("user"), text("convo"), text("from"), text("id"));
            Ok(writeln!(output, "{user}\t{convo}\t{}\t{from}\t{id}", letter["seq"])?)
        }),
        Action::Show { convo, seq, body } => {
            let ask = json!({"op": "show", "convo": convo, "seq": seq, "body": body});
            Ok(writeln!(output, "{}", desk.ask(&ask)?)?)
        }
        Action::Replay { user, convo, seq } => {
            let ask = json!({"op": "replay", "user": user, "convo": convo, "seq": seq});
            Ok(writeln!(output, "{}", desk.ask(&ask)?)?)
        }
        Action::Export(chosen) => each(&desk, &chosen, |letter| {
            let (convo, seq) = (&letter["convo"], &letter["seq"]);
            let ask = json!({"op": "show", "convo": convo, "seq": seq, "body": true});
            let message = desk.ask(&ask)?;
            let line = json!({
                "user": letter["user"], "service_ms": letter["service_ms"], "msg": message,
            });
            Ok(writeln!(output, "{line}")?)
        }),
    }
}

/// Every letter that was chosen, as the pages come.
fn each(
    desk: &Desk,
    chosen: &Chosen,
    mut visit: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after = Value::Null;
    loop {
        let (user, convo) = (&chosen.user, &chosen.convo);
        let page =
            desk.ask(&json!({"op": "list", "user": user, "convo": convo, "after": after}))?;
        page["letters"].as_array().into_iter().flatten().try_for_each(&mut visit)?;
        after = page["next"].clone();
        if after.is_null() {
            return Ok(());
        }
    }
}
