//! The layers of configuration, and the answers to mistakes in it.

use clap::Parser;
use clap::error::ErrorKind;

use super::file::ConfigurationFile;
use super::*;
use crate::edge::admission::AdmissionOptions;
use crate::edge::ledger::MemoryBudget;

fn edge_settings(arguments: &[&str]) -> EdgeSettings {
    let mut line = vec!["aldis", "edge"];
    line.extend(arguments);
    match CommandLine::try_parse_from(line).unwrap().command {
        Command::Edge(settings) => settings,
        _ => unreachable!("the subcommand is edge"),
    }
}

fn secret_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    file
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let secret = secret_file();
    let file = format!(
        "[edge]\nlisten = \"127.0.0.1:1\"\nsequencer = \"127.0.0.1:2\"\nauth = \"dev\"\n\
         shards = 3\nhost = [\"a.local\"]\nsecret-file = {:?}\n",
        secret.path()
    );
    let file = ConfigurationFile::parse("aldis.toml", &file).unwrap().edge;
    let flags = edge_settings(&["--listen", "127.0.0.1:9", "--host", "b.local", "--host", "c"]);
    let options = flags.over(file).filled().into_options().unwrap();
    assert_eq!(options.listen.port(), 9);
    assert_eq!(options.sequencer.port(), 2);
    assert_eq!(options.shards, 3);
    assert_eq!(options.hosts, ["b.local", "c"]);
    assert_eq!(options.secret, b"0123456789abcdef0123456789abcdef");
    assert_eq!(options.heartbeat_ms, 30_000);
    assert_eq!(options.name, "edge-1");
    assert_eq!(options.admin.address.to_string(), "127.0.0.1:0");
}

#[test]
fn compression_is_off_unless_it_is_turned_on() {
    let secret = secret_file();
    let file = |line: &str| {
        let text = format!(
            "[edge]\nlisten = \"127.0.0.1:1\"\nsequencer = \"127.0.0.1:2\"\nauth = \"dev\"\n\
             secret-file = {:?}\n{line}\n",
            secret.path()
        );
        ConfigurationFile::parse("aldis.toml", &text).unwrap().edge
    };
    for (flags, line, expected) in [
        (&[][..], "", false),
        (&["--deflate"], "", true),
        (&["--deflate", "--name", "e"], "", true),
        (&["--deflate", "true"], "deflate = false", true),
        (&["--deflate=false"], "deflate = true", false),
        (&[], "deflate = true", true),
    ] {
        let options = edge_settings(flags).over(file(line)).filled().into_options().unwrap();
        assert_eq!(options.deflate, expected, "{flags:?} {line}");
    }
}

#[test]
fn the_memory_budget_is_a_share_unless_it_is_given() {
    let secret = secret_file();
    let file = |line: &str| {
        let text = format!(
            "[edge]\nlisten = \"127.0.0.1:1\"\nsequencer = \"127.0.0.1:2\"\nauth = \"dev\"\n\
             secret-file = {:?}\n{line}\n",
            secret.path()
        );
        ConfigurationFile::parse("aldis.toml", &text).unwrap().edge
    };
    let (flag, line) = (&["--memory-budget", "4G"][..], "memory-budget = \"50%\"");
    for (flags, line, expected) in [
        (&[][..], "", MemoryBudget::Percent(75)),
        (&[], line, MemoryBudget::Percent(50)),
        (flag, line, MemoryBudget::Bytes(4 << 30)),
    ] {
        let options = edge_settings(flags).over(file(line)).filled().into_options().unwrap();
        assert_eq!(options.memory_budget, expected, "{flags:?} {line}");
    }
    let wrong = edge_settings(&["--memory-budget", "1M"]).over(file("")).filled();
    let said = wrong.into_options().err().expect("too little").0;
    assert!(said.contains("--memory-budget") && said.contains("16M"), "{said}");
}

#[test]
fn admission_has_no_limits_but_a_measured_one_unless_they_are_given() {
    let secret = secret_file();
    let file = |text: &str| ConfigurationFile::parse("aldis.toml", text).unwrap().edge;
    let bare = format!(
        "[edge]\nlisten = \"127.0.0.1:1\"\nsequencer = \"127.0.0.1:2\"\nauth = \"dev\"\n\
         shards = 3\nsecret-file = {:?}\n",
        secret.path()
    );
    let options = edge_settings(&[]).over(file(&bare)).filled().into_options().unwrap();
    assert_eq!(options.connections, 0);
    let measured = AdmissionOptions { shards: 3, is_measured: true, ..AdmissionOptions::default() };
    assert_eq!(options.admission, measured);
    let off = format!("{bare}handshakes-per-second = 0\n");
    let options = edge_settings(&[]).over(file(&off)).filled().into_options().unwrap();
    assert_eq!(options.admission, AdmissionOptions { is_measured: false, ..measured });
    let given = format!("{bare}handshakes-per-second = 500\nconnections-per-address = 7\n");
    let flags = ["--connections-per-address", "9", "--ipv6-prefix", "56", "--connections", "50"];
    let options = edge_settings(&flags).over(file(&given)).filled().into_options().unwrap();
    assert_eq!(options.connections, 50);
    let expected = AdmissionOptions {
        handshakes_per_second: 500,
        is_measured: false,
        shards: 3,
        connections_per_address: 9,
        ipv6_prefix: 56,
    };
    assert_eq!(options.admission, expected);
    for bits in ["0", "129"] {
        let wrong = edge_settings(&["--ipv6-prefix", bits]).over(file(&bare)).filled();
        let refused = wrong.into_options().err().expect("no such prefix");
        assert!(refused.to_string().contains("it must be 1 to 128"), "{refused}");
    }
}

#[test]
fn every_flag_can_come_from_the_environment() {
    for process in CommandLine::command().get_subcommands() {
        let name = process.get_name().to_uppercase();
        if !["UP", "EDGE", "SEQUENCER", "STORE"].contains(&name.as_str()) {
            continue;
        }
        for argument in process.get_arguments() {
            let Some(long) = argument.get_long() else {
                continue;
            };
            if ["help", "config", "log", "print-config", "take-over"].contains(&long) {
                continue;
            }
            let expected = format!("ALDIS_{name}_{}", long.to_uppercase().replace('-', "_"));
            let actual = argument.get_env().unwrap_or_default();
            assert_eq!(actual.to_str(), Some(expected.as_str()));
        }
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let text = "[edge]\nlisten = \"127.0.0.1:1\"\n\n[store]\nlisen = \"127.0.0.1:1\"\n";
    let error = ConfigurationFile::parse("aldis.toml", text).unwrap_err();
    assert!(error.0.starts_with("aldis.toml, line 5: unknown field `lisen`"), "{error}");
}

#[test]
fn a_wrong_address_in_the_file_is_named_with_its_line() {
    let error = ConfigurationFile::parse("a.toml", "[up]\nlisten = \"8080\"\n").unwrap_err();
    assert!(error.0.starts_with("a.toml, line 2: \"8080\" is not an address"), "{error}");
    let error = ConfigurationFile::parse("a.toml", "[up]\nlisten = 8080\n").unwrap_err();
    assert!(error.0.starts_with("a.toml, line 2: invalid type"), "{error}");
}

#[test]
fn development_identity_is_refused_where_others_can_connect() {
    let flags = ["--listen", "0.0.0.0:8080", "--auth", "dev"];
    let error = edge_settings(&flags).filled().into_options().err().unwrap();
    assert!(error.0.contains("refused on 0.0.0.0:8080"), "{error}");
    let up = UpSettings::default().filled().into_options(None, None).unwrap();
    assert_eq!(up.listen.to_string(), "127.0.0.1:8080");
}

#[test]
fn what_is_missing_is_asked_for_by_all_its_names() {
    let error = edge_settings(&[]).filled().into_options().err().unwrap();
    for name in ["--listen", "ALDIS_EDGE_LISTEN", "`listen` in [edge]"] {
        assert!(error.0.contains(name), "{error}");
    }
}

#[test]
fn a_short_secret_and_no_shards_are_refused() {
    let short = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(short.path(), "short").unwrap();
    let path = short.path().to_str().unwrap();
    let all = ["--listen", "[::1]:1", "--sequencer", "localhost:2", "--auth", "dev"];
    let with = |more: &[&str]| {
        let flags = [&all[..], more].concat();
        edge_settings(&flags).filled().into_options().err().unwrap().0
    };
    assert!(with(&["--secret-file", path]).contains("has 5 characters"));
    assert!(with(&["--shards", "0"]).starts_with("--shards 0: it must be 1 to"));
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let usage = CommandLine::try_parse_from(["aldis", "edge", "--no"]).err().unwrap();
    assert_eq!(usage.exit_code(), 2);
    let help = CommandLine::try_parse_from(["aldis", "--help"]).err().unwrap();
    assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
    assert!(help.to_string().contains("Exit codes:"));
}

/// What `--print-config` shows of an edge that was told `flags` and has `file`.
fn printed(flags: &[&str], file: &ConfigurationFile) -> String {
    let mut line = vec!["aldis", "edge", "--print-config"];
    line.extend(flags);
    let matches = CommandLine::command().try_get_matches_from(line).unwrap();
    let command_line = CommandLine::from_arg_matches(&matches).unwrap();
    let shown = effective(&command_line.command, &matches, file).expect("it is asked for");
    let Command::Edge(flags) = command_line.command else { unreachable!("it is edge") };
    let path = "a.toml".to_owned();
    let file = ConfigurationFile::parse(&path, &toml::to_string(&file.raw).unwrap()).unwrap();
    shown.text(&toml::Table::try_from(flags.over(file.edge).filled()).unwrap())
}

#[test]
fn what_is_printed_says_where_it_is_from_and_means_the_same() {
    let text = "[edge]\nsequencer = \"127.0.0.1:2\"\nhost = [\"a\", \"b\"]\n";
    let file = ConfigurationFile::parse("/etc/a.toml", text).unwrap();
    let printed_once = printed(&["--listen", "[::1]:9", "--deflate"], &file);
    for line in [
        "[edge]",
        "listen = \"[::1]:9\"  # --listen",
        "sequencer = \"127.0.0.1:2\"  # /etc/a.toml",
        "host = [\"a\", \"b\"]  # /etc/a.toml",
        "deflate = true  # --deflate",
        "name = \"edge-1\"  # default",
        "heartbeat-ms = 30000  # default",
        "# jwks is not set",
        "# jwt-key is not set",
    ] {
        assert!(printed_once.lines().any(|printed| printed == line), "{line}: {printed_once}");
    }
    let again = ConfigurationFile::parse("b.toml", &printed_once).unwrap();
    let values = |text: &str| text.parse::<toml::Table>().unwrap();
    assert_eq!(values(&printed(&[], &again)), values(&printed_once));
}
