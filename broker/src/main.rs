//! The `mqtt-broker` binary: serves devices, and talks to a running broker.

mod admin;
mod admission;
mod allocator;
mod auth;
mod bridge;
mod cli;
mod connection;
mod counters;
mod limits;
mod listener;
mod log;
mod node;
mod outside;
mod peers;
mod process;
mod router;
mod run;
mod server;
mod session;
mod settings;
#[cfg(test)]
mod simulation;
mod standalone;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
