//! What must hold for any bytes, as functions of them. A fuzzer looks for bytes that break it
//! (`tests/fuzz`); the tests run it over the seeds that the fuzzer starts from, and over noise.

mod choices;
mod framer;
mod handshake;
mod link;
mod protocol;
mod recovery;

pub use framer::framer;
pub use handshake::handshake;
pub use link::link;
pub use protocol::{binary, json};
pub use recovery::recovery;

#[cfg(test)]
pub(crate) use framer::{Seen, naive, run};
#[cfg(test)]
pub(crate) use protocol::{bytes, integer, number, written, zigzag};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    type Target = (&'static str, fn(&[u8]));

    /// As `tests/fuzz/seeds` names them.
    const TARGETS: [Target; 6] = [
        ("binary", binary),
        ("framer", framer),
        ("handshake", handshake),
        ("json", json),
        ("link", link),
        ("recovery", recovery),
    ];

    #[test]
    fn every_seed_holds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
        for (name, holds) in TARGETS {
            let folder = fs::read_dir(seeds.join(name)).expect("each target has seeds");
            let mut paths: Vec<_> = folder.map(|entry| entry.expect("readable").path()).collect();
            paths.sort();
            assert!(paths.len() > 3, "{name} has few seeds");
            for path in paths {
                let input = fs::read(&path).expect("readable");
                eprintln!("{}", path.display());
                holds(&input);
            }
        }
    }

    proptest! {
        #[test]
        fn noise_holds(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            TARGETS.iter().for_each(|(_, holds)| holds(&noise));
        }
    }
}
