//! `mqtt-load`: one run of the load generator, one JSON object on stdout.
//!
//! Exit status: 0 the run is sound; 1 it was measured, but messages were lost, repeated or reordered;
//! 2 it could not be measured.

use std::process::ExitCode;

use clap::Parser;
use mqtt_e2e::load::{self, Options, Plan};

/// Loads an MQTT broker on this machine and checks every message.
#[derive(Parser)]
#[command(name = "mqtt-load", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let report = match Plan::try_from(Cli::parse().options).map_err(anyhow::Error::from) {
        Ok(plan) => load::run(&plan).map_err(anyhow::Error::from),
        Err(e) => Err(e),
    };
    let report = report.and_then(|report| Ok((serde_json::to_string(&report)?, report.failures())));
    match report {
        Ok((json, failures)) => {
            println!("{json}");
            for failure in &failures {
                eprintln!("mqtt-load: {failure}");
            }
            if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(e) => {
            eprintln!("mqtt-load: {e}");
            ExitCode::from(2)
        }
    }
}
