//! The proxy in front of the runners: joins a client to the runner of its task.
//!
//! `cargo run --release --example host -- --task 42=kohakuriver-vps-42@http://127.0.0.1:8001`

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_programs::host::main()
}
