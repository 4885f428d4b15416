//! What `tuning/` wants of a machine, read from its files, which are built in: they are the one
//! place that says it.

/// The files, as they are installed.
const SYSCTL_FILE: &str = include_str!("../../../tuning/90-aldis.conf");
const LIMITS_FILE: &str = include_str!("../../../tuning/90-aldis-limits.conf");

/// One setting of the tuning files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `net.core.somaxconn`, or the item of a limit: `nofile`.
    pub name: String,
    pub value: String,
    pub compare: Compare,
    pub default: String,
    pub why: String,
    pub see: String,
}

/// When a machine's value is as good as the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Exactly,
    AtLeast,
    AtMost,
}

/// A file that does not keep its own form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct Malformed {
    name: String,
    what: &'static str,
}

impl Wanted {
    /// Kernel settings, the most effective first.
    pub fn sysctls() -> Result<Vec<Wanted>, Malformed> {
        parse(SYSCTL_FILE, |line| {
            let (name, value) = line.split_once('=')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        })
    }

    /// Limits of the process.
    pub fn limits() -> Result<Vec<Wanted>, Malformed> {
        parse(LIMITS_FILE, |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["aldis", "-", item, value] => Some((item.to_owned(), value.to_owned())),
            _ => None,
        })
    }

    /// Whether `actual`, as the kernel says it, will do. Several numbers are compared one by one.
    pub fn is_met_by(&self, actual: &str) -> bool {
        let wanted: Vec<&str> = self.value.split_whitespace().collect();
        let actual: Vec<&str> = actual.split_whitespace().collect();
        let meets = |(actual, wanted): (&&str, &&str)| match self.compare {
            Compare::Exactly => actual == wanted,
            Compare::AtLeast => number(actual) >= number(wanted),
            Compare::AtMost => number(actual) <= number(wanted),
        };
        wanted.len() == actual.len() && actual.iter().zip(&wanted).all(meets)
    }
}

/// `unlimited` is above every number.
fn number(text: &str) -> Option<u64> {
    match text {
        "unlimited" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

fn parse(
    file: &str,
    setting: impl Fn(&str) -> Option<(String, String)>,
) -> Result<Vec<Wanted>, Malformed> {
    let mut found = Vec::new();
    for block in file.split("\n\n") {
        let (comments, settings): (Vec<&str>, Vec<&str>) =
            block.lines().partition(|line| line.starts_with('#'));
        for line in settings.into_iter().filter(|line| !line.trim().is_empty()) {
            let wrong = |what| Malformed { name: line.to_owned(), what };
            let (name, value) = setting(line).ok_or_else(|| wrong("not a setting"))?;
            let field = |key| field(&comments, key);
            let compare = match field("Compare: ").as_deref() {
                Some("Exactly") => Compare::Exactly,
                Some("At least") => Compare::AtLeast,
                Some("At most") => Compare::AtMost,
                _ => return Err(wrong("Compare: is not there")),
            };
            found.push(Wanted {
                name,
                value,
                compare,
                default: field("Default: ").ok_or_else(|| wrong("Default: is not there"))?,
                why: field("Why: ").ok_or_else(|| wrong("Why: is not there"))?,
                see: field("See: ").ok_or_else(|| wrong("See: is not there"))?,
            });
        }
    }
    Ok(found)
}

/// The text behind `key` and on the lines that go on with it.
fn field(comments: &[&str], key: &str) -> Option<String> {
    let keys = ["Default: ", "Why: ", "See: ", "Compare: "];
    let mut lines = comments.iter().map(|line| line.trim_start_matches('#').trim());
    let first = lines.find_map(|line| line.strip_prefix(key))?;
    let rest = lines.take_while(|line| !keys.iter().any(|key| line.starts_with(key)));
    let whole: Vec<&str> = std::iter::once(first).chain(rest).collect();
    Some(capitalized(&whole.join(" ")))
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_files_says_what_it_is_for() {
        let sysctls = Wanted::sysctls().expect("the file keeps its form");
        let assignments = SYSCTL_FILE
            .lines()
            .filter(|line| line.starts_with(|character: char| character.is_ascii_lowercase()));
        assert_eq!(sysctls.len(), assignments.count());
        assert_eq!(sysctls[0].name, "kernel.io_uring_disabled");
        let backlog = sysctls.iter().find(|wanted| wanted.name == "net.core.somaxconn").unwrap();
        assert_eq!((backlog.value.as_str(), backlog.default.as_str()), ("65535", "4096"));
        assert!(
            backlog.why.ends_with("come back at once.") && backlog.why.starts_with("After "),
            "{}",
            backlog.why
        );
        let limits = Wanted::limits().expect("the file keeps its form");
        let names: Vec<&str> = limits.iter().map(|wanted| wanted.name.as_str()).collect();
        assert_eq!(names, ["nofile", "memlock"]);
        assert!(limits[1].why.contains("registered memory"), "lines that go on are read");
    }

    #[test]
    fn values_are_compared_as_their_entry_says() {
        let of = |value: &str, compare| Wanted {
            name: String::new(),
            value: value.to_owned(),
            compare,
            default: String::new(),
            why: String::new(),
            see: String::new(),
        };
        assert!(of("0", Compare::Exactly).is_met_by("0"));
        assert!(!of("0", Compare::Exactly).is_met_by("2"));
        assert!(of("65535", Compare::AtLeast).is_met_by("70000"));
        assert!(!of("65535", Compare::AtLeast).is_met_by("4096"));
        assert!(of("65535", Compare::AtLeast).is_met_by("unlimited"));
        assert!(!of("unlimited", Compare::AtLeast).is_met_by("8192"));
        assert!(of("4096 16384 1048576", Compare::AtMost).is_met_by("4096\t8192\t1048576"));
        assert!(!of("4096 16384 1048576", Compare::AtMost).is_met_by("4096 16384 4194304"));
        assert!(!of("4096 16384", Compare::AtMost).is_met_by("4096"));
        assert!(!of("1", Compare::AtLeast).is_met_by("not there"));
    }

    #[test]
    fn an_entry_that_leaves_something_out_is_refused() {
        let setting = |line: &str| line.split_once('=').map(|(a, b)| (a.into(), b.into()));
        let whole = "# x\n# Default: 1\n# Why: y\n# See: z\n# Compare: exactly\na=2\n";
        assert_eq!(parse(whole, setting).map(|found| found.len()), Ok(1));
        for key in ["Default", "Why", "See", "Compare"] {
            let without = whole.replace(&format!("# {key}: "), "# ");
            assert!(parse(&without, setting).is_err(), "{key}");
        }
        assert!(parse("a\n", setting).is_err());
    }
}
