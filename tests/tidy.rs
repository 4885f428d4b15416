//! House rules as a test: who may import whom, which code must be pure, where unsafe lives, sizes,
//! names. A rule that only a reviewer holds is lost with the reviewer.
//!
//! Every rule lists all its violations at once. The words that are forbidden are put together from
//! parts here, so that this file keeps its own rules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of `src`, and which of their siblings each may import. Libraries know no process;
/// processes meet only on the wire; `simulation` alone knows them all.
const LAYERS: [(&str, &[&str]); 16] = [
    ("clock", &[]),
    ("limits", &[]),
    ("sys", &["limits"]),
    ("admin", &["limits", "sys"]),
    ("arena", &["clock", "limits", "sys"]),
    ("ring", &["clock", "limits", "sys"]),
    ("framer", &["clock", "limits"]),
    ("link", &["arena", "clock", "limits", "ring", "sys"]),
    ("protocol", &["clock", "limits", "link"]),
    ("edge", LIBRARIES),
    ("sequencer", LIBRARIES),
    ("store", LIBRARIES),
    ("cli", PROCESSES_TOO),
    ("simulation", PROCESSES_TOO),
    ("fuzzing", SIMULATION_TOO),
    ("lib", &[]),
];

const LIBRARIES: &[&str] =
    &["admin", "arena", "clock", "framer", "limits", "link", "protocol", "ring", "sys"];

const PROCESSES_TOO: &[&str] = &[
    "admin",
    "arena",
    "clock",
    "edge",
    "framer",
    "limits",
    "link",
    "protocol",
    "ring",
    "sequencer",
    "store",
    "sys",
];

const SIMULATION_TOO: &[&str] =
    &["clock", "framer", "limits", "link", "protocol", "simulation", "store"];

/// Code that owns no socket, clock, thread, file or randomness: path prefixes under `src`.
const PURE: [&str; 22] = [
    "arena/",
    "edge/admission",
    "edge/connection",
    "edge/identity/keys",
    "edge/identity/pem",
    "edge/identity/token",
    "edge/ledger.rs",
    "edge/ledger/account",
    "edge/pace",
    "edge/router",
    "edge/ticket",
    "framer/",
    "link/",
    "protocol/",
    "sequencer/",
    "simulation/",
    "store/core",
    "store/ledger",
    "store/log_format",
    "store/positions",
    "store/recovery",
    "store/rows",
];

/// What stands under such a prefix and drives the pure code with real sockets and clocks.
const HOSTS: [&str; 3] = ["link/host", "sequencer/process.rs", "sequencer/mod.rs"];

/// Calls that reach out of the program.
const IMPURE: [&str; 11] = [
    "Instant::now",
    "SystemTime",
    "Now::read",
    "std::thread",
    "thread::spawn",
    "getrandom::",
    "rand::",
    "std::net::Tcp",
    "TcpStream",
    "TcpListener",
    "std::fs",
];

/// The only places whose code may be unsafe: folders, and the generator's io_uring.
const UNSAFE_PLACES: [&str; 3] = ["src/ring/", "src/sys/", "loadgen/src/kernel"];

/// The packages that the design was asked to be built on.
const PACKAGES: [&str; 10] = [
    "base64",
    "bytes",
    "crossbeam",
    "hdrhistogram",
    "httparse",
    "io-uring",
    "mimalloc",
    "sha1",
    "slab",
    "tokio-uring",
];

const TOP_FOLDERS: [&str; 5] = ["benches", "loadgen", "src", "tests", "tuning"];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;

/// A text file of the tree. `path` is relative to its root.
struct Source {
    path: String,
    text: String,
}

/// A line that is not part of a test, without its comment.
struct CodeLine<'a> {
    number: usize,
    code: &'a str,
}

#[test]
fn libraries_know_no_process_and_processes_do_not_know_each_other() {
    let allowed: BTreeMap<_, _> = LAYERS.into_iter().collect();
    let mut violations = Vec::new();
    for source in rust_sources().iter().filter(|source| source.path.starts_with("src/")) {
        let module = module_of(&source.path);
        let Some(allowed) = allowed.get(module) else {
            violations.push(format!("{}: {module} has no place in LAYERS", source.path));
            continue;
        };
        for (number, import) in imports(source) {
            let is_module = LAYERS.iter().any(|(name, _)| *name == import);
            if is_module && import != module && !allowed.contains(&import.as_str()) {
                let path = &source.path;
                violations.push(format!("{path}:{number}: {module} imports {import}"));
            }
        }
    }
    report(violations);
}

#[test]
fn logic_owns_no_socket_clock_thread_or_randomness() {
    let is_pure = |path: &str| {
        let inside = path.strip_prefix("src/").unwrap_or_default();
        let under = |prefixes: &[&str]| prefixes.iter().any(|prefix| inside.starts_with(prefix));
        under(&PURE) && !under(&HOSTS)
    };
    let sources = rust_sources();
    let pure = sources.iter().filter(|source| is_pure(&source.path));
    report(find_words(pure, &IMPURE));
}

#[test]
fn unsafe_code_has_its_address() {
    let word = concat!("un", "safe ");
    let elsewhere =
        |source: &&Source| !UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place));
    let mut violations = Vec::new();
    for source in rust_sources().iter().filter(elsewhere) {
        for (index, line) in source.text.lines().enumerate() {
            if without_comment(line).contains(word) {
                violations.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    report(violations);
}

#[test]
fn logs_are_written_by_the_log_alone() {
    let is_process =
        |source: &&Source| source.path.starts_with("src/") && !source.path.starts_with("src/cli/");
    let sources = rust_sources();
    let words = ["println!(", "print!("].map(|word| word.to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    report(find_words(sources.iter().filter(is_process), &words));
}

#[test]
fn files_functions_and_lines_end_in_time() {
    let mut violations = Vec::new();
    for source in rust_sources() {
        let path = &source.path;
        let line_count = source.text.lines().count();
        if line_count > FILE_LINES_MAX {
            violations.push(format!("{path}: {line_count} lines"));
        }
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS_MAX {
                violations.push(format!("{path}:{}: {columns} columns", index + 1));
            }
        }
        for (number, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES_MAX {
                violations.push(format!("{path}:{number}: a function of {lines} lines"));
            }
        }
    }
    report(violations);
}

#[test]
fn source_is_ascii_and_begins_with_its_purpose() {
    let mut violations = Vec::new();
    for source in rust_sources() {
        if !source.text.starts_with("//!") {
            violations.push(format!("{}: does not begin with //!", source.path));
        }
        for (index, line) in source.text.lines().enumerate() {
            if !line.is_ascii() {
                violations.push(format!("{}:{}: not ASCII", source.path, index + 1));
            }
        }
    }
    report(violations);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("to", "do!("),
        concat!("un", "implemented!("),
        concat!("db", "g!("),
        concat!("#[", "ignore"),
        concat!("Place", "holder"),
    ];
    let mut violations = Vec::new();
    for source in rust_sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                violations.push(format!("{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    report(violations);
}

#[test]
fn no_module_is_named_after_nothing() {
    let vague = ["util", "utils", "helper", "helpers", "manager", "common", "misc"];
    let mut violations = Vec::new();
    for source in rust_sources() {
        let parts = source.path.trim_end_matches(".rs").split('/');
        if parts.into_iter().any(|part| vague.contains(&part)) {
            violations.push(source.path);
        }
    }
    report(violations);
}

#[test]
fn every_dependency_has_its_reason_and_the_asked_for_ones_are_there() {
    let mut violations = Vec::new();
    for path in ["Cargo.toml", "loadgen/Cargo.toml", "benches/race/Cargo.toml"] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        for (number, name) in dependencies_without_reason(&text) {
            violations.push(format!("{path}:{number}: {name} has no reason above it"));
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for package in PACKAGES {
        if !manifest.lines().any(|line| line.starts_with(&format!("{package} = "))) {
            violations.push(format!("Cargo.toml: {package} is not there"));
        }
    }
    report(violations);
}

#[test]
fn the_tree_is_whole_and_names_no_place_outside_of_it() {
    let mut violations = Vec::new();
    for folder in TOP_FOLDERS {
        if !root().join(folder).is_dir() {
            violations.push(format!("{folder}: is not there"));
        }
    }
    let outside = ["/wo-rk/", "/ro-ot/", "/ho-me/", "../sh-ared"].map(|word| word.replace('-', ""));
    for source in texts() {
        for (index, line) in source.text.lines().enumerate() {
            for word in outside.iter().filter(|word| line.contains(*word)) {
                violations.push(format!("{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    report(violations);
}

#[test]
fn the_rules_themselves_find_what_they_look_for() {
    let text = "use crate::{\n    edge::options,\n    store,\n};\nuse crate::ring::Ring;\n\
                #[cfg(test)]\nmod tests {\n    use crate::cli;\n}\nfn after() {\n    one();\n}\n";
    let source = Source { path: "src/link/x.rs".to_owned(), text: text.to_owned() };
    let names: Vec<String> = imports(&source).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["edge", "store", "ring"]);
    assert_eq!(functions(text), [(10, 3)]);
    let manifest = "[dependencies]\n# why\na = \"1\"\nb = \"1\"\n\n[profile.dev]\nc = 1\n";
    assert_eq!(dependencies_without_reason(manifest), [(4, "b".to_owned())]);
    assert_eq!(without_comment("let a = \"http://b\"; // c"), "let a = \"http://b\"; ");
}

fn report(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_sources() -> Vec<Source> {
    let mut sources = texts();
    sources.retain(|source| source.path.ends_with(".rs"));
    assert!(sources.len() > 10, "the tree was not found");
    sources
}

/// All text files of the tree, apart from what tools write.
fn texts() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root(), &mut sources);
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let written_by_tools = [".git", "target", "aldis-data", "proptest-regressions"];
        if written_by_tools.contains(&name.as_str()) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, sources);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let relative = path.strip_prefix(root()).unwrap();
            sources.push(Source { path: relative.to_string_lossy().into_owned(), text });
        }
    }
}

/// `src/link/wire.rs` is part of `link`, `src/clock.rs` is `clock`.
fn module_of(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    let first = inside.split('/').next().unwrap_or_default();
    match first.trim_end_matches(".rs") {
        "main" => "cli",
        module => module,
    }
}

/// First words after `crate::`, also in braces, outside of tests.
fn imports(source: &Source) -> Vec<(usize, String)> {
    if is_test_file(&source.path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut depth = 0;
    for line in code_lines(&source.text) {
        let mut rest = line.code;
        if depth > 0 {
            take_group(rest, &mut depth, line.number, &mut found);
            continue;
        }
        while let Some(start) = rest.find("crate::") {
            rest = &rest[start + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(group) => {
                    depth = 1;
                    take_group(group, &mut depth, line.number, &mut found);
                }
                None => found.push((line.number, first_word(rest))),
            }
        }
    }
    found
}

/// Reads names at depth 1 of a brace group until the group or the line ends.
fn take_group(text: &str, depth: &mut usize, number: usize, found: &mut Vec<(usize, String)>) {
    let mut name_may_begin = true;
    for (index, character) in text.char_indices() {
        match character {
            '{' => *depth += 1,
            '}' => *depth -= 1,
            ',' => name_may_begin = true,
            _ if *depth == 1 && name_may_begin && character.is_alphabetic() => {
                found.push((number, first_word(&text[index..])));
                name_may_begin = false;
            }
            _ => {}
        }
        if *depth == 0 {
            return;
        }
    }
}

fn first_word(text: &str) -> String {
    let is_part = |character: &char| character.is_alphanumeric() || *character == '_';
    text.chars().take_while(is_part).collect()
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.starts_with("tests/")
}

/// The lines outside of items marked `#[cfg(test)]`. Relies on rustfmt: such an item ends at the
/// first line with a closing brace at its own indentation, or with a semicolon.
fn code_lines(text: &str) -> Vec<CodeLine<'_>> {
    let mut lines = Vec::new();
    let mut skipped_indentation = None;
    for (index, line) in text.lines().enumerate() {
        let indentation = line.len() - line.trim_start().len();
        if let Some(skipped) = skipped_indentation {
            let brace = line.trim_start().starts_with('}') && indentation == skipped;
            let one_line = line.ends_with(';') && indentation == skipped;
            if brace || one_line {
                skipped_indentation = None;
            }
        } else if line.trim_start().starts_with("#[cfg(test)]") {
            skipped_indentation = Some(indentation);
        } else {
            lines.push(CodeLine { number: index + 1, code: without_comment(line) });
        }
    }
    lines
}

/// Cuts a comment off. `//` inside of a string stays when something other than a space is before.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.find(" // ").map_or(line, |start| &line[..start + 1])
}

fn find_words<'a>(sources: impl Iterator<Item = &'a Source>, words: &[&str]) -> Vec<String> {
    let mut violations = Vec::new();
    for source in sources.filter(|source| !is_test_file(&source.path)) {
        for line in code_lines(&source.text) {
            for word in words.iter().filter(|word| line.code.contains(**word)) {
                violations.push(format!("{}:{}: {word}", source.path, line.number));
            }
        }
    }
    violations
}

/// Line number and length of every function. Relies on rustfmt: a function ends at the first
/// closing brace at its own indentation.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().take(5).collect();
        let is_function = words.contains(&"fn") && !line.trim_start().starts_with("//");
        if !is_function || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indentation}}}");
        let length = lines[index..].iter().position(|line| *line == end);
        if let Some(length) = length {
            found.push((index + 1, length + 1));
        }
    }
    found
}

/// Line number and name of each dependency without a comment on the line above.
fn dependencies_without_reason(manifest: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut among_dependencies = false;
    let mut reason_above = false;
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            among_dependencies = line.trim_end_matches(']').ends_with("dependencies");
        } else if let Some((name, _)) = line.split_once(" = ")
            && among_dependencies
            && !reason_above
        {
            found.push((index + 1, name.to_owned()));
        }
        reason_above = line.starts_with('#');
    }
    found
}
