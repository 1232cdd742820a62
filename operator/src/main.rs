//! The `mqtt-operator` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    mqtt_operator::cli::main()
}
