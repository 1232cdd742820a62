//! The `mqtt-operator` binary.

use std::process::ExitCode;

/// Thousands of objects are rendered at once, and the memory is given back afterwards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mqtt_operator::cli::main()
}
