//! The binary `aldis`: every process of Aldis is one of its subcommands.

/// Long-lived connections allocate and free in small pieces; see `Cargo.toml` for the version.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    aldis::cli::run()
}
