//! `aldis up` as its user meets it: real processes, real signals.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// Far more than anything here takes on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// A running `up` and what it printed so far. Killed at the end of the test, if it still runs.
struct Up {
    process: Child,
    lines: Receiver<String>,
    listen: SocketAddr,
}

impl Up {
    fn start(data: &Path) -> Up {
        Up::start_at(free_address(), data)
    }

    /// Starts it and waits for `ready`.
    fn start_at(listen: SocketAddr, data: &Path) -> Up {
        let mut process =
            command(listen, data).stdout(Stdio::piped()).spawn().expect("aldis starts");
        let output = process.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Up { process, lines, listen }
    }

    /// Everything printed until the line `ready`.
    fn first_screen(&self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut screen = Vec::new();
        while screen.last().is_none_or(|line| line != "ready") {
            let left = deadline.saturating_duration_since(Instant::now());
            screen.push(self.lines.recv_timeout(left).expect("ready comes in time"));
        }
        screen
    }

    /// The process number of the child whose command line begins with `aldis <name> `.
    fn child(&self, name: &str) -> Option<u32> {
        let parent = self.process.id();
        let beginning = format!("aldis {name} ");
        all_processes().into_iter().find(|&process| {
            parent_of(process) == Some(parent) && command_line(process).starts_with(&beginning)
        })
    }

    /// Waits for a child of this name other than `before`.
    fn next_child(&self, name: &str, before: u32) -> u32 {
        wait_for(|| self.child(name).filter(|&child| child != before))
    }

    fn end_code(&mut self) -> Option<i32> {
        let status = wait_for(|| self.process.try_wait().expect("it is ours"));
        status.code()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_first_screen_says_what_to_do_and_the_children_are_in_the_process_list() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("new/data");
    let mut up = Up::start(&data);
    let screen = up.first_screen().join("\n");
    let listen = up.listen;
    assert!(screen.contains(&format!("open http://{listen}/")), "{screen}");
    assert!(screen.contains(&format!("websocat 'ws://{listen}/v1/connect?user=alice'")));
    assert!(screen.contains(&format!("aldis tail --as bob --url ws://{listen}\n")), "{screen}");
    for name in ["store", "sequencer", "edge"] {
        assert!(up.child(name).is_some(), "aldis {name} is not in the process list");
        let health = get(&data, name, "/healthz").expect("it answers");
        assert!(health.ends_with("\r\n\r\nok\n"), "{name}: {health}");
        let metrics = get(&data, name, "/metrics").expect("it answers");
        assert!(metrics.contains(&format!("aldis_process_info{{process=\"{name}\"")));
    }
    let connections = get(&data, "edge", "/metrics").expect("it answers");
    assert!(connections.contains("\naldis_connections "), "{connections}");
    signal("TERM", up.process.id());
    assert_eq!(up.end_code(), Some(0));
}

#[test]
fn a_child_that_is_killed_comes_back_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(folder.path());
    up.first_screen();
    for name in ["store", "sequencer", "edge"] {
        let others = ["store", "sequencer", "edge"].into_iter().filter(|other| *other != name);
        let others: Vec<_> = others.map(|other| (other, up.child(other))).collect();
        let killed = up.child(name).expect("it runs");
        signal("KILL", killed);
        up.next_child(name, killed);
        wait_for(|| get(folder.path(), name, "/healthz").filter(|text| text.ends_with("ok\n")));
        for (other, before) in others {
            assert_eq!(up.child(other), before, "{other} was restarted too");
        }
    }
}

#[test]
fn the_control_socket_kills_a_child() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(folder.path());
    up.first_screen();
    let before = up.child("sequencer").expect("it runs");
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.send_to(b"kill sequencer", folder.path().join("up.sock")).unwrap();
    up.next_child("sequencer", before);
}

#[test]
fn however_up_ends_its_children_end_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path());
    up.first_screen();
    let names = ["store", "sequencer", "edge"];
    let children = names.map(|name| up.child(name).expect("it runs"));
    signal("KILL", up.process.id());
    assert_eq!(up.end_code(), None);
    for child in children {
        wait_for(|| (!command_line(child).starts_with("aldis ")).then_some(()));
    }
    let again = Up::start_at(up.listen, folder.path());
    again.first_screen();
}

#[test]
fn an_interrupt_ends_it_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path());
    up.first_screen();
    let edge = up.child("edge").expect("it runs");
    signal("INT", up.process.id());
    assert_eq!(up.end_code(), Some(0));
    assert!(!command_line(edge).starts_with("aldis "), "the edge is left behind");
}

#[test]
fn a_directory_in_use_is_one_clear_line_and_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(folder.path());
    up.first_screen();
    let second = command(free_address(), folder.path()).output().unwrap();
    refused(&second, "another aldis up is running on ");
}

#[test]
fn an_address_in_use_is_one_clear_line_and_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let refusal = command(listen, &folder.path().join("data")).output().unwrap();
    refused(&refusal, &format!("{listen} is in use"));
}

#[test]
fn a_directory_that_cannot_be_made_is_one_clear_line_and_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let refusal = command(free_address(), &file.join("data")).output().unwrap();
    refused(&refusal, "cannot write to the data directory");
}

#[test]
fn anyone_being_anyone_is_refused_where_others_can_connect() {
    let folder = tempfile::tempdir().unwrap();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refusal = command(everywhere, folder.path()).output().unwrap();
    refused(&refusal, "--auth dev");
}

fn refused(output: &Output, beginning: &str) {
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with(&format!("aldis up: {beginning}")), "{text}");
    assert!(output.stdout.is_empty());
}

/// Only warnings are logged, so that a refusal is the one line.
fn command(listen: SocketAddr, data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command
        .args(["up", "--shards", "1", "--log", "warn", "--listen"])
        .arg(listen.to_string())
        .arg("--data")
        .arg(data)
        .stdin(Stdio::null());
    command
}

/// Free now; outside of the range from which the kernel takes ports of outgoing connections, and
/// different in each test of each run.
fn free_address() -> SocketAddr {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 100) as u16 * 50;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 50;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().expect("it is bound");
        }
    }
}

/// The whole answer of a process's admin page; `None` while it has none.
fn get(data: &Path, name: &str, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let file: PathBuf = data.join("run").join(format!("{name}.admin"));
    let address: SocketAddr = fs::read_to_string(file).ok()?.trim_end().parse().ok()?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn wait_for<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        thread::sleep(POLL_PAUSE);
    }
}

/// By the shell, whose `kill` is built in.
fn signal(name: &str, process: u32) {
    let line = format!("kill -{name} {process}");
    let status = Command::new("sh").args(["-c", &line]).status().unwrap();
    assert!(status.success(), "{line}");
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// The arguments, each followed by a space; empty when the process has ended.
fn command_line(process: u32) -> String {
    let bytes = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Field 4 of /proc/PID/stat; the name before it is in parentheses and may contain spaces.
fn parent_of(process: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let after_name = &text[text.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}
