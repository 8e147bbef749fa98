//! The tunnel server beside the containers: joins sessions to agents, or dials targets itself.
//!
//! `cargo run --release --example runner -- --target kohakuriver-vps-42=127.0.0.1`

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_programs::runner::main()
}
