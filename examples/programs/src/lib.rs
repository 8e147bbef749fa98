//! The four example programs, and what they share. Each program is a function that `main` calls.

pub mod agent;
pub mod client;
mod common;
pub mod host;
pub mod runner;

pub use common::retry;
