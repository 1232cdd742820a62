//! The command line: parses it, starts what it names, and turns errors into one line and an exit code.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use jiff::{Timestamp, civil::Date};
use tracing_subscriber::EnvFilter;

use crate::{admin, run, standalone};

#[derive(Parser)]
#[command(name = "mqtt-broker", version, about = "An MQTT broker that stores what it acknowledges")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve devices on this machine alone, from a folder of manifests, with an embedded store or Kafka.
    Standalone(standalone::Args),
    /// Serve devices as one node of an instance, as its config file says: what pods run.
    Run(run::Args),
    /// Read or append records of a running broker.
    #[command(subcommand)]
    Records(Records),
    /// Print what happened to a device: connections, subscriptions, sessions resumed, dropped or taken over.
    Trace {
        client_id: String,
        /// The broker's admin address, HOST:PORT.
        #[arg(long)]
        admin: String,
        /// A day of UTC, such as 2026-11-22; left out: today. Events are kept 7 days.
        #[arg(long, conflicts_with_all = ["from", "to"])]
        day: Option<Date>,
        /// The beginning instead, such as 2026-11-22T08:30:00Z.
        #[arg(long)]
        from: Option<Timestamp>,
        /// The end, which is not part of it.
        #[arg(long)]
        to: Option<Timestamp>,
        /// One JSON object a line, for scripts.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Records {
    /// Print a topic's records, one JSON object a line.
    Read {
        topic: String,
        /// The broker's admin address, HOST:PORT.
        #[arg(long)]
        admin: String,
        /// The first offset of each partition; left out: the oldest.
        #[arg(long)]
        from: Option<u64>,
        /// Go on with new records as they come.
        #[arg(long)]
        follow: bool,
    },
    /// Append a record to `mq2mqtt`: a message from the cloud to devices.
    Append {
        topic: String,
        #[arg(long)]
        admin: String,
        /// NAME=VALUE; mqttTopic is needed, qoslevel and cleanSession are known.
        #[arg(long = "header", value_parser = name_and_value)]
        headers: Vec<(String, String)>,
        #[arg(long)]
        key: Option<String>,
        /// The payload; left out: standard input.
        #[arg(long, conflicts_with = "file")]
        value: Option<String>,
        /// A file whose bytes are the payload.
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

pub(crate) fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Standalone(args) => {
            log_to_stderr();
            standalone::run(args)
        }
        Command::Run(args) => {
            log_to_stderr();
            run::run(args)
        }
        Command::Trace { client_id, admin, day, from, to, json } => {
            let span = admin::trace_client::Span::new(day, from, to, Timestamp::now());
            finish(span.and_then(|span| admin::trace_client::read(&admin, &client_id, span, json)))
        }
        Command::Records(Records::Read { topic, admin, from, follow }) => {
            finish(admin::client::read(&admin, &topic, from, follow))
        }
        Command::Records(Records::Append { topic, admin, headers, key, value, file }) => {
            let value = match (value, file) {
                (Some(value), _) => admin::client::Payload::Text(value),
                (None, Some(file)) => admin::client::Payload::File(file),
                (None, None) => admin::client::Payload::Stdin,
            };
            finish(admin::client::append(&admin, &topic, headers, key, value))
        }
    }
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mqtt-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("MQTT_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,fjall=warn,lsm_tree=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
