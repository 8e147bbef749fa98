//! The local client: makes ports of a container or VM available on this machine.
//!
//! `cargo run --release --example forward -- 42 8888`. Without arguments it runs the whole chain in
//! one process.

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_programs::client::main()
}
