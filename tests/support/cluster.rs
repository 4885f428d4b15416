//! A real `aldis up` on a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long everything may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// Where the ports of the tests begin, how many a test program has, and for how many programs at a
/// time: below the ports of outgoing connections.
const PORT_FIRST: u16 = 5_000;
const PORT_COUNT: u16 = 250;
const PORT_RANGE_COUNT: u16 = 110;

/// `aldis up` with its children. Ends them when dropped.
pub struct Cluster {
    pub address: String,
    pub data: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    up: Option<Child>,
}

impl Cluster {
    /// Starts on `data` and waits for the line `ready`.
    pub fn start(data: PathBuf, options: &[&str]) -> Cluster {
        Cluster::start_with(data, options, &[])
    }

    /// The same, with variables of the environment that differ from the test's.
    pub fn start_with(data: PathBuf, options: &[&str], environment: &[(&str, &str)]) -> Cluster {
        let address = free_address();
        let options = options.iter().map(ToString::to_string).collect();
        let environment = environment.iter().map(|&(name, value)| (name.into(), value.into()));
        let environment = environment.collect();
        let mut cluster = Cluster { address, data, options, environment, up: None };
        cluster.restart();
        cluster
    }

    /// Starts again what ended, on the same address and directory.
    pub fn restart(&mut self) {
        let mut up = Command::new(env!("CARGO_BIN_EXE_aldis"))
            .args(["up", "--listen", &self.address, "--data"])
            .arg(&self.data)
            .args(&self.options)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file(&self.data))
            .spawn()
            .expect("the binary runs");
        let output = BufReader::new(up.stdout.take().expect("piped"));
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line == "ready" {
                    // The test may have given up waiting; the output is drained all the same.
                    let _given_up = ready.send(());
                }
            }
        });
        self.up = Some(up);
        is_ready.recv_timeout(READY).expect("`aldis up` says ready");
    }

    pub fn url(&self, query: &str) -> String {
        format!("ws://{}/v1/connect?{query}", self.address)
    }

    /// The process id of `up`.
    pub fn pid(&self) -> u32 {
        self.up.as_ref().expect("started").id()
    }

    /// The process id of a child, by its subcommand, if it runs just now.
    pub fn child(&self, process: &str) -> Option<u32> {
        let parent = self.pid();
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| parent_of(*pid) == Some(parent) && subcommand(*pid) == process)
    }

    /// Kills a child with SIGKILL. `false`: it did not run just now.
    pub fn kill(&self, process: &str) -> bool {
        self.child(process).is_some_and(kill_nine)
    }

    /// Kills the whole tree at once with SIGKILL, and reaps `up`.
    pub fn kill_all(&mut self) {
        let children = ["edge", "sequencer", "store"].map(|process| self.child(process));
        let mut up = self.up.take().expect("started");
        kill_nine(up.id());
        children.into_iter().flatten().for_each(|pid| {
            kill_nine(pid);
        });
        up.wait().expect("it was killed");
    }

    /// Whether `up` has ended by itself; if so it is reaped.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.up.as_mut().is_none_or(|up| up.try_wait().is_ok_and(|end| end.is_some()));
        if ended {
            self.up = None;
        }
        ended
    }

    /// `aldis audit` of the directory, running or not: everything balances. Returns what it says.
    pub fn audit(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_aldis"))
            .args(["audit", "--data"])
            .arg(&self.data)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}{complaint}");
        assert!(said.contains("dead-lettered, difference 0"), "{said}");
        said
    }

    /// The value of a metric of one process, from its admin page; `None` while it is away.
    pub fn metric(&self, process: &str, name: &str) -> Option<f64> {
        let address = fs::read_to_string(self.data.join("run").join(format!("{process}.admin")));
        let page = http_get(address.ok()?.trim(), "/metrics")?;
        let line = page.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up.is_some() {
            self.kill_all();
        }
    }
}

/// Free now, and not given to anyone else before it is taken. Two clusters on one port would share
/// their clients, since edges listen with SO_REUSEPORT.
pub fn free_address() -> String {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU16, Ordering};
    static RANGE: OnceLock<(UnixListener, u16)> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (_, first) = RANGE.get_or_init(port_range);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(next < PORT_COUNT, "this test program has used up its ports");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", first + next)) {
            return listener.local_addr().expect("it is bound").to_string();
        }
    }
}

/// The first port of a range that no other test program on this machine uses, and what says so: a
/// name that is taken as long as this process lives.
fn port_range() -> (UnixListener, u16) {
    let range = (0..PORT_RANGE_COUNT).find_map(|range| {
        let name = format!("aldis-test-ports-{range}");
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let taken = UnixListener::bind_addr(&address).ok()?;
        Some((taken, PORT_FIRST + range * PORT_COUNT))
    });
    range.expect("fewer test programs than ranges")
}

/// Sends SIGKILL to a process that this test started.
pub fn kill_nine(pid: u32) -> bool {
    signal(pid, "KILL")
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, signal: &str) -> bool {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    status.is_ok_and(|status| status.success())
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "after {limit:?}: not yet {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A GET by hand: the body of a 200, else `None`.
pub fn http_get(address: &str, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut response = String::new();
    socket.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

fn log_file(data: &std::path::Path) -> Stdio {
    let path = data.with_extension("log");
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.expect("the directory beside the data is writable").into()
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("PPid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn subcommand(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    String::from_utf8_lossy(words.nth(1).unwrap_or_default()).into_owned()
}
