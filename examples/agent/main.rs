//! The end of the tunnel in a container: registers at the runner and connects to services.
//!
//! `cargo run --release --example agent -- --runner-url ws://127.0.0.1:8001 --container-id NAME`

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_programs::agent::main()
}
