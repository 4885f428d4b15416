//! `tuning/` and `aldis check`: what the files want is what the command says, the units are units,
//! and the scripts do what they say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aldis"));
    command.arg("check").args(arguments).output().expect("the binary runs")
}

/// As the kernel has it, with one space between several values.
fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn what_the_files_want_is_what_the_check_says_of_this_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("not/yet");
    let output = check(&["--json", "--shards", "3", "--data", data.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(0), "the tests before this one needed a ring too");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["can_run"], true);
    let facts = report["facts"].as_array().expect("facts");
    let fact = |name: &str| {
        let found = facts.iter().find(|fact| fact["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is checked"))
    };
    let changes = report["changes"].as_array().expect("changes");
    let file = fs::read_to_string("tuning/90-aldis.conf").expect("the tree is here");
    let mut count = 0;
    for line in file.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, wanted)) = line.split_once(" = ") else { continue };
        count += 1;
        let fact = fact(name);
        match sysctl(name) {
            None => assert_eq!(fact["value"], "not there"),
            Some(actual) => assert_eq!(fact["value"], actual.as_str()),
        }
        let is_low = fact["verdict"] == "low";
        assert_eq!(changes.iter().any(|change| change == name), is_low, "{name}");
        if is_low {
            assert_eq!(fact["change"]["wanted"], wanted);
        }
    }
    assert!(count > 5, "the file was read");
    assert_eq!(fact("io_uring")["verdict"], "ok");
    assert!(fact("fdatasync of --data")["value"].as_str().is_some_and(|text| text.contains("p99")));
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing is left");

    let sockets = &report["sockets"];
    let bounds = sockets["bounds"].as_array().expect("bounds");
    let numbers: Vec<u64> = bounds.iter().filter_map(|bound| bound["sockets"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.len() == bounds.len(), "{bounds:?}");
    assert_eq!(sockets["total"], numbers[0]);
    assert_eq!(sockets["limited_by"], bounds[0]["by"]);
    assert_eq!(sockets["shards"], 3);
}

#[test]
fn the_check_of_a_person_ends_with_what_to_change() {
    let output = check(&[]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("Aldis can run here.\nSockets: "), "{text}");
    let is_said = text.contains("\nTo change, the most effective first:\n  1. ");
    assert!(is_said || text.contains("\nNothing to change."), "{text}");
}

#[test]
fn a_low_limit_of_open_files_is_what_bounds_the_sockets_and_comes_first() {
    let line = "ulimit -n 500 && exec \"$0\" check --json --shards 2";
    let output = Command::new("sh").args(["-c", line, env!("CARGO_BIN_EXE_aldis")]).output();
    let report: Value = serde_json::from_slice(&output.expect("sh runs").stdout).expect("JSON");
    assert_eq!(report["sockets"]["limited_by"], "limit of open files", "{report}");
    assert_eq!(report["sockets"]["per_shard"], 500 - 64);
    assert_eq!(report["sockets"]["total"], 2 * (500 - 64));
    assert_eq!(report["changes"][0], "limit of open files");
}

#[test]
fn what_stops_aldis_is_code_1_and_said_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, b"").expect("written");
    // Not even root writes there.
    let output = check(&["--data", "/proc"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("Aldis cannot run here.\n"), "{text}");
    assert!(text.contains("  1. --data: make it writable"), "{text}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("aldis check: Aldis cannot run here: --data: "), "{error}");
}

/// Where systemd is not installed, only their form is looked at.
#[test]
fn the_units_start_what_there_is_and_are_accepted_by_systemd() {
    let folder = tempfile::tempdir().expect("a folder");
    let binary = env!("CARGO_BIN_EXE_aldis");
    let mut units = Vec::new();
    for entry in fs::read_dir("tuning/systemd").expect("the tree is here").flatten() {
        let name = entry.file_name().into_string().expect("text");
        let Some(process) =
            name.strip_prefix("aldis-").and_then(|name| name.strip_suffix(".service"))
        else {
            continue;
        };
        let text = fs::read_to_string(entry.path()).expect("it is readable");
        let start =
            format!("ExecStart=/usr/local/bin/aldis {process} --config /etc/aldis/aldis.toml");
        assert!(text.lines().any(|line| line == start), "{name}: {start}");
        for line in ["LimitNOFILE=1048576", "LimitMEMLOCK=infinity", "NoNewPrivileges=yes"] {
            assert!(text.lines().any(|given| given == line), "{name}: {line}");
        }
        let path = folder.path().join(&name);
        fs::write(&path, text.replace("/usr/local/bin/aldis", binary)).expect("written");
        units.push(path);
    }
    assert_eq!(units.len(), 4);
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").args(&units).output() else {
        println!("no systemd-analyze here: the units were not verified");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("aldis-"), "{said}");
}

#[test]
fn interrupts_are_spread_over_the_processors_of_a_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let put = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    };
    let processors: String = (0..40).map(|index| format!("processor\t: {index}\n")).collect();
    put("proc/cpuinfo", &processors);
    put("proc/interrupts", "  24:  1 2 PCI-MSI eth0-rx-0\n  25:  1 2 PCI-MSI eth01-rx-0\n");
    for number in [24, 25, 30] {
        put(&format!("proc/irq/{number}/smp_affinity_list"), "0-39\n");
    }
    put("sys/class/net/eth0/device/msi_irqs/30", "");
    for queue in 0..2 {
        put(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), "0\n");
        put(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "0\n");
    }
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("it is there");
    let run = |arguments: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/irq");
        let output =
            Command::new("bash").arg(script).args(arguments).env("ALDIS_ROOT", root).output();
        output.expect("bash runs")
    };
    assert!(run(&["eth0"]).status.success());
    assert_eq!(read("proc/irq/24/smp_affinity_list"), "0-39\n", "only said");
    assert!(run(&["eth0", "--apply"]).status.success());
    let list = |number: u32| read(&format!("proc/irq/{number}/smp_affinity_list"));
    assert_eq!([list(24), list(25), list(30)], ["0\n", "0-39\n", "1\n"]);
    let queue = |path: &str| read(&format!("sys/class/net/eth0/queues/{path}"));
    assert_eq!([queue("tx-0/xps_cpus"), queue("tx-1/xps_cpus")], ["1\n", "2\n"]);
    assert_eq!(queue("rx-0/rps_cpus"), "ff,ffffffff\n", "fewer queues than processors");
    assert_eq!(run(&["eth9"]).status.code(), Some(2));
}

/// Numbers of system calls, from the kernel's headers; `None` where they are not installed.
fn system_calls() -> Option<BTreeMap<String, u32>> {
    let header = fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").ok()?;
    let lines = header.lines().filter_map(|line| line.strip_prefix("#define __NR_"));
    let numbers = lines.filter_map(|line| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    });
    Some(numbers.collect())
}

/// The profile as a filter program of the kernel (seccomp(2), struct sock_filter): the number of
/// the call is compared with each allowed one. x86-64 only.
fn filter(allowed: &[&str], numbers: &BTreeMap<String, u32>) -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const NOT_THERE: u32 = 0x0005_0000 | 38;
    let mut program = Vec::new();
    let mut add = |code: u16, if_not: u8, operand: u32| {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[0, if_not]);
        program.extend_from_slice(&operand.to_ne_bytes());
    };
    add(LOAD, 0, 0);
    for name in allowed {
        add(JUMP_EQUAL, 1, *numbers.get(*name).unwrap_or_else(|| panic!("{name} is a call")));
        add(RETURN, 0, ALLOW);
    }
    add(RETURN, 0, NOT_THERE);
    program
}

/// Runs `aldis check` under the filter; `None` where nothing can apply one.
fn check_filtered(folder: &Path, program: &[u8]) -> Option<Output> {
    let mut trial = Command::new("bwrap");
    let trial = trial.args(["--dev-bind", "/", "/", "true"]).output();
    trial.ok().filter(|output| output.status.success())?;
    let file = folder.join("filter");
    fs::write(&file, program).expect("written");
    let line = "exec bwrap --dev-bind / / --seccomp 3 \"$0\" check --data \"$1\" 3<\"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", line, env!("CARGO_BIN_EXE_aldis")]).arg(folder).arg(&file);
    Some(command.output().expect("sh runs"))
}

#[test]
fn the_profile_of_containers_allows_io_uring_and_without_it_the_check_says_so() {
    let text = fs::read_to_string("tuning/seccomp.json").expect("the tree is here");
    let profile: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(profile["syscalls"][0]["action"], "SCMP_ACT_ALLOW");
    let names = profile["syscalls"][0]["names"].as_array().expect("names");
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    assert!(names.is_sorted(), "each name is found at its place");
    for name in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(names.contains(&name), "{name}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let Some(numbers) = system_calls().filter(|_| cfg!(target_arch = "x86_64")) else {
        println!("no headers of the kernel here: the profile was not run");
        return;
    };
    let Some(output) = check_filtered(folder.path(), &filter(&names, &numbers)) else {
        println!("no bwrap here: the profile was not run");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let is_filtered = |line: &str| line.contains("(seccomp)") && line.ends_with("  filter");
    assert!(text.lines().any(is_filtered), "{text}");
    // As the default profiles of containers are.
    let without: Vec<&str> =
        names.iter().copied().filter(|name| !name.starts_with("io_uring_")).collect();
    let output = check_filtered(folder.path(), &filter(&without, &numbers)).expect("it ran above");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("Aldis cannot run here.\n"), "{text}");
    assert!(text.contains("  STOPS  io_uring ") && text.contains("tuning/seccomp.json"), "{text}");
}
