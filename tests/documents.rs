//! The documents keep up with what they describe.

use std::fs;

/// Declarations that are the byte layout of the link and of the log's records.
const LINK_SOURCES: [&str; 4] =
    ["src/link/frame.rs", "src/link/greeting.rs", "src/link/message.rs", "src/link/record.rs"];

#[test]
fn the_link_page_was_read_after_the_last_change_of_its_sources() {
    let mut declarations = String::new();
    for path in LINK_SOURCES {
        let source = fs::read_to_string(path).expect("the tree is here");
        let code = source.split("#[cfg(test)]").next().expect("split yields one at least");
        declarations.extend(code.lines().filter(|line| !line.trim_start().starts_with("//")));
    }
    let declarations: String = declarations.split_whitespace().collect();
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, declarations.as_bytes());
    let page = fs::read_to_string("docs/link.md").expect("the page is here");
    let line = format!("    sources: {sum:08x}");
    assert!(
        page.lines().any(|given| given == line),
        "the link's declarations changed: see what docs/link.md says of them, then put there\n\
         {line}"
    );
}

#[test]
fn the_map_names_every_folder() {
    let map = fs::read_to_string("README.md").expect("the page is here");
    let folders = fs::read_dir("src").expect("the tree is here").flatten();
    for folder in folders.filter(|entry| entry.path().is_dir()) {
        let row = format!("| `src/{}` |", folder.file_name().display());
        assert!(map.contains(&row), "README.md's map lacks {row}");
    }
    for page in fs::read_dir("docs").expect("the tree is here").flatten() {
        let name = format!("docs/{}", page.file_name().display());
        assert!(map.contains(&name), "README.md does not name {name}");
    }
}
