//! `docs/operations.md` against what there is: its commands run, its tables name every key, metric
//! and log line, and no others. And `/readyz` of processes whose neighbours die.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::cluster::{free_address, signal, wait_until};
use support::{Client, Cluster};

/// Far more than anything here takes on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(60);
const PROCESSES: [&str; 4] = ["up", "edge", "sequencer", "store"];

fn page() -> String {
    fs::read_to_string("docs/operations.md").expect("the tree is here")
}

/// The first cells of the rows below this head.
fn table(head: &str) -> Vec<Vec<String>> {
    let page = page();
    let (_, below) = page.split_once(head).unwrap_or_else(|| panic!("{head} is a table"));
    let rows = below.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn aldis() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.stdin(Stdio::null());
    command
}

/// Long flags of a command, as its help has them.
fn flags(process: &str) -> BTreeSet<String> {
    let help = aldis().args([process, "--help"]).output().expect("the binary runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let names = lines.filter_map(|line| line.split("--").nth(1)?.split([' ', '[', '=']).next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_key_of_every_process_is_in_the_page_and_no_other() {
    let mut told: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in table("| key | of | default | meaning |") {
        let key = quoted(&row[0]).remove(0);
        for process in row[1].split(' ') {
            let process = PROCESSES.into_iter().find(|name| *name == process);
            let process = process.unwrap_or_else(|| panic!("{row:?} names processes"));
            assert!(told.entry(process).or_default().insert(key.clone()), "{key} is there twice");
        }
    }
    for process in PROCESSES {
        let mut flags = flags(process);
        for global in ["config", "log", "help", "print-config"] {
            assert!(flags.remove(global), "{process} --{global}");
        }
        assert_eq!(told[process], flags, "{process}");
    }
}

#[test]
fn every_command_and_what_it_takes_is_in_the_page() {
    let page = page();
    let help = aldis().arg("--help").output().expect("the binary runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let (_, commands) = help.split_once("Commands:\n").expect("a list");
    let commands = commands.lines().take_while(|line| line.starts_with("  "));
    let names: Vec<&str> = commands
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() > 10, "{help}");
    for name in names {
        assert!(page.contains(&format!("    aldis {name} ")), "aldis {name}");
    }
    for command in ["send", "tail", "check", "repair"] {
        for flag in flags(command) {
            let is_said = ["help", "shards"].contains(&flag.as_str());
            assert!(is_said || page.contains(&format!("--{flag}")), "aldis {command} --{flag}");
        }
    }
}

/// Messages at info, warn and error of everything that runs, up to what is filled in.
fn log_messages() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the tree is here").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs")
            {
                let source = fs::read_to_string(&path).expect("text");
                let code = source.split("#[cfg(test)]").next().unwrap_or_default();
                found.extend(messages_of(code));
            }
        }
    }
    found
}

/// The message is the last text among the macro's arguments.
fn messages_of(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for level in ["info", "warn", "error"] {
        for call in code.split(&format!("tracing::{level}!(")).skip(1) {
            let message = texts_of(call).pop().expect("a message");
            found.push(shown(&message));
        }
    }
    found
}

/// The texts up to the parenthesis that ends the call.
fn texts_of(call: &str) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let (mut depth, mut is_inside, mut is_escaped) = (1, false, false);
    for character in call.chars() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_inside => is_escaped = true,
            '"' => {
                is_inside = !is_inside;
                texts.extend(is_inside.then(String::new));
            }
            _ if is_inside => texts.last_mut().expect("it began").push(character),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    texts
}

/// `: {error:#}` is `: ...` in the page.
fn shown(message: &str) -> String {
    match message.split_once('{') {
        Some((before, _)) => format!("{before}..."),
        None => message.to_owned(),
    }
}

#[test]
fn every_line_of_the_log_is_in_the_page_and_no_other() {
    let told = table("| line | of | what to do |");
    let told: BTreeSet<String> = told.iter().flat_map(|row| quoted(&row[0])).collect();
    let written = log_messages();
    assert!(written.len() > 20, "they were found");
    assert_eq!(told, written);
}

#[test]
fn every_metric_of_every_process_is_in_the_page_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys.json");
    fs::write(&keys, r#"{"keys":[]}"#).expect("written");
    let keys = keys.to_str().expect("text");
    let options = ["--shards", "1", "--auth", "jwt", "--jwks", keys];
    let cluster = Cluster::start(folder.path().join("data"), &options);
    let mut told: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in table("| name | of | meaning |") {
        let of = row[1].split(" with ").next().expect("split yields one at least");
        for process in
            PROCESSES.into_iter().filter(|name| of == "all" || of.split(' ').any(|it| it == *name))
        {
            told.entry(process).or_default().extend(quoted(&row[0]));
        }
    }
    for process in PROCESSES {
        let file = cluster.data.join("run").join(format!("{process}.admin"));
        let address = fs::read_to_string(file).expect("it runs");
        let metrics = get(address.trim(), "/metrics").expect("it answers").1;
        let names =
            metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        assert_eq!(told[process], names, "{process}");
    }
    // What the rest of the page names is there too.
    let all: BTreeSet<&String> = told.values().flatten().collect();
    let page = page();
    for (start, _) in page.match_indices("aldis_") {
        let is_part = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
        let name: String = page[start..].chars().take_while(is_part).collect();
        assert!(name == "aldis_" || all.contains(&name), "{name} is no metric");
    }
}

/// The three processes as the page starts them, on addresses and in a folder of this test.
struct Apart {
    lines: BTreeMap<&'static str, Vec<String>>,
    running: BTreeMap<&'static str, Child>,
    admin: BTreeMap<&'static str, String>,
    edge: String,
}

impl Apart {
    fn new(folder: &Path) -> Apart {
        let mut page = page();
        let addresses = ["8080", "15001", "15002", "9101", "9102", "9103"].map(|port| {
            let address = format!("127.0.0.1:{port}");
            let free = free_address();
            page = page.replace(&address, &free);
            free
        });
        page = page.replace("/var/lib/aldis", folder.to_str().expect("text"));
        page = page.replace("/etc/aldis", folder.to_str().expect("text"));
        let secret = page.lines().find_map(|line| line.strip_prefix("    umask 077; "));
        let secret = secret.expect("the page makes the secret").to_owned();
        let made = Command::new("sh").args(["-c", &secret]).status().expect("sh runs");
        assert!(made.success(), "{secret}");
        let line = |process: &'static str| {
            let start = format!("    aldis {process} --");
            let line = page.lines().find(|line| line.starts_with(&start));
            let words = line.expect("the page starts it").split_whitespace().skip(1);
            (process, words.map(str::to_owned).collect())
        };
        let [edge, _, _, store_admin, sequencer_admin, edge_admin] = addresses;
        Apart {
            lines: ["store", "sequencer", "edge"].map(line).into(),
            running: BTreeMap::new(),
            admin: [("store", store_admin), ("sequencer", sequencer_admin), ("edge", edge_admin)]
                .into(),
            edge,
        }
    }

    fn start(&mut self, process: &'static str) {
        let child = aldis().args(&self.lines[process]).args(["--log", "error"]).spawn();
        self.running.insert(process, child.expect("the binary runs"));
    }

    fn kill(&mut self, process: &str) {
        let mut child = self.running.remove(process).expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it was killed");
    }

    /// Waits for this line of `/readyz`, with the status that belongs to it.
    fn wait_until_ready_says(&self, process: &str, line: &str) {
        let status = if line == "ok" { 200 } else { 503 };
        let expected = Some((status, format!("{line}\n")));
        let mut last = None;
        wait_until(&format!("{process} says {line}"), PATIENCE, || {
            let now = get(&self.admin[process], "/readyz");
            if now != last {
                println!("{process}: {now:?}");
                last = now;
            }
            last == expected
        });
    }

    fn url(&self, query: &str) -> String {
        format!("ws://{}/v1/connect?{query}", self.edge)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for process in ["edge", "sequencer", "store"] {
            if self.running.contains_key(process) {
                self.kill(process);
            }
        }
    }
}

/// Status and body.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut response = String::new();
    socket.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[test]
fn the_three_processes_apart_and_what_readyz_says_when_one_dies() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut apart = Apart::new(folder.path());
    // In any order.
    apart.start("edge");
    apart.wait_until_ready_says("edge", "no link to the sequencer yet");
    apart.start("sequencer");
    apart.wait_until_ready_says("sequencer", "no epoch yet: the store has not answered");
    apart.start("store");
    for process in ["store", "sequencer", "edge"] {
        apart.wait_until_ready_says(process, "ok");
    }
    let mut alice = Client::connect(&apart.url("user=alice&device=phone"));
    assert_eq!(alice.send("bob", "1", "hello")["seq"], 1);

    apart.kill("store");
    apart.wait_until_ready_says("sequencer", "link to the store: the store is not there");
    // Whoever asks nothing is not harmed; somebody asks.
    alice.say(json!({"t": "send", "to": "bob", "id": "2", "body": "is anyone there?"}));
    wait_until("the edge notices", PATIENCE, || {
        get(&apart.admin["edge"], "/readyz").is_some_and(|(status, line)| {
            status == 503
                && line.ends_with(": the sequencer has not answered for 2 s; does its store run?\n")
        })
    });
    assert_eq!(get(&apart.admin["edge"], "/healthz"), Some((200, "ok\n".to_owned())));
    apart.start("store");
    for process in ["store", "sequencer", "edge"] {
        apart.wait_until_ready_says(process, "ok");
    }
    assert_eq!(alice.expect("sent")["seq"], 2);

    apart.kill("sequencer");
    wait_until("the edge notices", PATIENCE, || {
        get(&apart.admin["edge"], "/readyz").is_some_and(|(status, line)| {
            status == 503 && line.ends_with(": no link to the sequencer\n")
        })
    });
    apart.start("sequencer");
    for process in ["sequencer", "edge"] {
        apart.wait_until_ready_says(process, "ok");
    }
    assert_eq!(alice.send("bob", "3", "on we go")["seq"], 3);

    // An edge that drains waits for the answers that it owes, for a while.
    apart.kill("sequencer");
    alice.say(json!({"t": "send", "to": "bob", "id": "4", "body": "the last"}));
    let edge = apart.running["edge"].id();
    assert!(signal(edge, "TERM"));
    apart.wait_until_ready_says("edge", "shard 0: draining");
    let mut edge = apart.running.remove("edge").expect("it runs");
    assert!(edge.wait().expect("it is ours").success());
}

#[test]
fn up_is_ready_when_all_three_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path().join("data"), &["--shards", "1"]);
    let address = fs::read_to_string(cluster.data.join("run/up.admin")).expect("it runs");
    let ready = || get(address.trim(), "/readyz").expect("up answers");
    wait_until("up is ready", PATIENCE, || ready() == (200, "ok\n".to_owned()));
    // Stopped, it neither serves nor dies: that is seen however slow this machine is.
    let edge = cluster.child("edge").expect("it runs");
    assert!(signal(edge, "STOP"));
    let expected = (503, "edge: not ready; its own /readyz says why\n".to_owned());
    wait_until("up says so", PATIENCE, || ready() == expected);
    assert!(signal(edge, "CONT"));
    wait_until("up is ready again", PATIENCE, || ready().0 == 200);
    assert!(cluster.kill("store"));
    let metrics = || get(address.trim(), "/metrics").expect("up answers").1;
    let line = "aldis_child_restarts_total{child=\"store\"} 1\n";
    wait_until("it counts", PATIENCE, || metrics().contains(line));
    wait_until("up is ready again", PATIENCE, || ready().0 == 200);
}

#[test]
fn a_copy_of_a_stopped_directory_is_all_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let mut cluster = Cluster::start(data.clone(), &["--shards", "1"]);
    let mut alice = Client::connect(&cluster.url("user=alice&device=phone"));
    for id in 1..=50 {
        alice.send("bob", &id.to_string(), &format!("number {id}"));
    }
    assert!(signal(cluster.pid(), "TERM"));
    wait_until("it ends", PATIENCE, || cluster.has_ended());
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    cluster.restart();
    let mut alice = Client::connect(&cluster.url("user=alice&device=phone"));
    assert_eq!(alice.send("bob", "51", "only in the first")["seq"], 51);
    drop(cluster);

    let restored = Cluster::start(copy, &["--shards", "1"]);
    let (_bob, messages) = Client::connect_synced(&restored.url("user=bob"));
    let bodies: Vec<&str> = messages.iter().filter_map(|frame| frame["body"].as_str()).collect();
    let expected: Vec<String> = (1..=50).map(|id| format!("number {id}")).collect();
    assert_eq!(bodies, expected);
    let mut alice = Client::connect(&restored.url("user=alice&device=phone"));
    let again = alice.send("bob", "50", "other");
    assert_eq!((&again["seq"], &again["dup"]), (&json!(50), &json!(true)));
    assert_eq!(
        alice.send("bob", "52", "new")["seq"],
        51,
        "numbers are given again, as the page says"
    );
}

#[test]
fn what_print_config_prints_is_a_configuration_that_means_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef\n").expect("written");
    let text = fs::read_to_string("tuning/systemd/aldis.toml").expect("the tree is here");
    let text = text.replace("/etc/aldis/secret", secret.to_str().expect("text"));
    let given = folder.path().join("aldis.toml");
    fs::write(&given, text).expect("written");
    let print = |process: &str, file: &Path| {
        let output = aldis()
            .args([process, "--print-config", "--config"])
            .arg(file)
            .env("ALDIS_UP_HOST", "chat.example.org,b.example.org")
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    for process in PROCESSES {
        let printed = print(process, &given);
        assert!(!printed.contains("0123456789abcdef"), "no secret stands in it: {printed}");
        let file = folder.path().join(format!("{process}.toml"));
        fs::write(&file, &printed).expect("written");
        let values = |text: &str| text.parse::<toml::Table>().expect("TOML");
        assert_eq!(values(&print(process, &file)), values(&printed), "{process}");
    }
    let up = print("up", &given);
    assert!(
        up.contains("host = [\"chat.example.org\", \"b.example.org\"]  # ALDIS_UP_HOST\n"),
        "{up}"
    );
    assert!(up.contains("\n[store]\n"), "its children read the rest: {up}");
    let refused = aldis().args(["edge", "--print-config"]).output().expect("the binary runs");
    assert_eq!(refused.status.code(), Some(2), "it could not start");
    assert!(String::from_utf8_lossy(&refused.stdout).contains("# listen is not set\n"));
}

#[test]
fn completions_and_manual_name_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = aldis().args(["completions", shell]).output().expect("the binary runs");
        let script = String::from_utf8(output.stdout).expect("text");
        for word in ["tail", "sequencer", "print-config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), script).expect("written");
        // Each shell that is here reads it.
        if ["bash", "fish", "zsh"].contains(&shell)
            && let Ok(status) = Command::new(shell).arg("-n").arg(file.path()).status()
        {
            assert!(status.success(), "{shell} -n");
        }
    }
    let manual = aldis().arg("man").output().expect("the binary runs");
    let manual = String::from_utf8(manual.stdout).expect("text");
    for part in [".TH aldis 1", "aldis\\-tail", ".SH OPTIONS"] {
        assert!(manual.contains(part), "{part}: {manual}");
    }
    let edge = aldis().args(["man", "edge"]).output().expect("the binary runs");
    assert!(String::from_utf8_lossy(&edge.stdout).contains("heartbeat\\-ms"));
    let unknown = aldis().args(["man", "no"]).output().expect("the binary runs");
    assert_eq!(unknown.status.code(), Some(2));
}
