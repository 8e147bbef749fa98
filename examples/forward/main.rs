//! The local client: makes ports of a container or VM local ports.
//!
//! `cargo run --release --example forward -- 42 8888`, or without arguments for the whole chain in one
//! process.

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_programs::client::main()
}
