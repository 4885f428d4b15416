//! The binary `aldis`: every process of Aldis is one of its subcommands.

/// Long-lived connections allocate and free in small pieces; see `Cargo.toml` for the version.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The one backend of this build, said aloud: a second one, brought by some dependency, would
    // otherwise make the first token panic.
    let installed = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    debug_assert!(installed.is_ok(), "nothing runs before main");
    aldis::cli::run()
}
