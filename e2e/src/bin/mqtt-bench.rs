//! `mqtt-bench`: our broker beside mosquitto and rumqttd; a Markdown table on stdout, all figures as JSON.
//!
//! Exit status: 0 every run is sound; 1 a run failed or broke MQTT's promises (the table says which);
//! 2 the benchmark could not run.

use std::process::ExitCode;

use clap::Parser;
use mqtt_e2e::bench::{self, Options};

/// Compares our broker with mosquitto and rumqttd on this machine.
#[derive(Parser)]
#[command(name = "mqtt-bench", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match bench::run(&Cli::parse().options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("mqtt-bench: {e:#}");
            ExitCode::from(2)
        }
    }
}
