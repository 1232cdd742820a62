//! The command line: parses it, and turns errors into lines and an exit status.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use k8s_openapi::jiff::Timestamp;
use mqtt_broker_api::acl::AclDocument;
use mqtt_operator_api::{
    Kind,
    duration::Duration,
    manifests::{self, Salts},
    render::{name_of, render},
    validate::Validator,
};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::{
    check::check,
    instance::{
        build::{Options, build, nodes_domain},
        issuing,
    },
    run::{self, Settings},
    user::hasher::{HashKey, Hasher},
};

/// Exit status for manifests that can't be used.
const BAD_MANIFESTS: u8 = 2;

#[derive(Parser)]
#[command(name = "mqtt-operator", version, about = "Runs MqttInstances on Kubernetes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Act on all objects of the four kinds in a cluster, until told to end.
    Run(RunArgs),
    /// Print what the operator would apply for the MqttInstance in a folder of manifests, as YAML.
    Render(RenderArgs),
    /// Ask the API server whether an operator is at work: the kinds are served, and its Lease is renewed.
    Check(CheckArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// The namespace that the operator runs in, where its Lease and its own Secret are.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Who this is among the candidates for the Lease, such as the name of the pod.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Namespaces whose objects are acted on, with commas between; absent: all.
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACES")]
    watch_namespaces: Vec<String>,
    /// The broker's image, unless an instance names its own.
    #[arg(long, default_value_t = Options::default().image)]
    broker_image: String,
    /// The name of the Lease.
    #[arg(long, default_value = "mqtt-operator")]
    lease: String,
    /// Where health and metrics are served.
    #[arg(long, default_value = "[::]:8080")]
    address: SocketAddr,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What nobody announced is put back within this time.
    #[arg(long, default_value = "10m")]
    resync: Duration,
    /// For tests: after so many changes the process dies; zero: it lives.
    #[arg(long, default_value_t = 0, hide = true)]
    dies_after: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(clap::Args)]
struct CheckArgs {
    /// The namespace that the operator runs in.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// The name of its Lease.
    #[arg(long, default_value = "mqtt-operator")]
    lease: String,
}

#[derive(clap::Args)]
struct RenderArgs {
    /// The folder; its *.yaml files are read.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The broker's image, unless the instance names its own.
    #[arg(long, default_value_t = Options::default().image)]
    image: String,
    /// The namespace of the operator, which may ask the brokers for their state.
    #[arg(long, value_name = "NAMESPACE", default_value_t = Options::default().operator_namespace)]
    operator_namespace: String,
    /// Leave Secrets out: those for the ACL (with password hashes), for Kafka, for TLS and for links between brokers.
    #[arg(long)]
    without_secrets: bool,
}

pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run_operator(args),
        Command::Render(args) => print_rendered(args),
        Command::Check(args) => print_checked(args),
    }
}

fn run_operator(args: RunArgs) -> ExitCode {
    begin_to_log(args.log_format);
    let options = Options {
        image: args.broker_image,
        operator_namespace: args.namespace.clone(),
        ..Options::default()
    };
    let settings = Settings {
        namespace: args.namespace,
        identity: args.identity,
        watch_namespaces: args.watch_namespaces,
        lease: args.lease,
        address: args.address,
        resync: args.resync.get(),
        dies_after: args.dies_after,
        options,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(|error| format!("no runtime: {error}")).and_then(|runtime| {
        let ended = runtime.block_on(run::run(settings)).map_err(|error| error.to_string());
        // What blocks, such as a question to Kafka, is not waited for.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// To standard error; `MQTT_LOG` is a filter of tracing.
fn begin_to_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("MQTT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // It tells of each refusal, which we do, too, and say what it means.
    let filter = ["kube_client::client::builder=off"]
        .iter()
        .filter_map(|rule| rule.parse().ok())
        .fold(filter, EnvFilter::add_directive);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init()
        }
    }
}

fn print_checked(args: CheckArgs) -> ExitCode {
    let checked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"));
    let checked = checked.and_then(|runtime| {
        runtime.block_on(async {
            let client = kube::Client::try_default()
                .await
                .map_err(|error| format!("no API server is known: {error}"))?;
            check(client, &args.namespace, &args.lease).await.map_err(|missing| missing.to_string())
        })
    });
    match checked {
        Ok(holder) => {
            println!("all kinds are served, and {holder} acts");
            ExitCode::SUCCESS
        }
        Err(missing) => {
            eprintln!("mqtt-operator: {missing}");
            ExitCode::FAILURE
        }
    }
}

fn print_rendered(args: RenderArgs) -> ExitCode {
    let RenderArgs { manifests, image, operator_namespace, without_secrets } = args;
    let options = Options { image, operator_namespace, ..Options::default() };
    let documents = match rendered(&manifests, &options, !without_secrets) {
        Ok(documents) => documents,
        Err(lines) => {
            lines.iter().for_each(|line| eprintln!("{line}"));
            return ExitCode::from(BAD_MANIFESTS);
        }
    };
    let shown =
        documents.iter().filter(|object| !without_secrets || object.get("kind") != Some(&"Secret".into()));
    let written = shown.map(yaml).collect::<Result<String, _>>();
    let printed = written
        .map_err(|error| error.to_string())
        .and_then(|text| io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string()));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mqtt-operator: the objects can't be written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The objects; or a line for each thing that is wrong. Notes go to standard error.
fn rendered(folder: &Path, options: &Options, with_secrets: bool) -> Result<Vec<Value>, Vec<String>> {
    let validator = Validator::new().map_err(|error| vec![format!("mqtt-operator: {error}")])?;
    let lines = |problems: Vec<manifests::ManifestProblem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut manifests = manifests::read(folder, &validator).map_err(lines)?;
    let mut rendered = if with_secrets {
        let key = HashKey::random().map_err(|error| vec![format!("mqtt-operator: {error}")])?;
        let before = AclDocument::default();
        let mut hasher = Hasher::new(&key, &before, usize::MAX);
        render(&manifests.objects, 1, |password| hasher.hash(password))
    } else {
        // No hash is shown, so that it need not be a costly one.
        let salts = Salts::default();
        render(&manifests.objects, 1, |password| Some(salts.hash(password)))
    };
    if !rendered.pending.is_empty() {
        return Err(vec!["mqtt-operator: passwords could not be hashed for want of memory".into()]);
    }
    if with_secrets && manifests.objects.instance.spec.listeners.peers.secret_ref.is_none() {
        let domain = nodes_domain(&manifests.objects.instance, options);
        let issued = issuing::carry_out(issuing::Plan::Make, &domain, Timestamp::now());
        let issued = issued.map_err(|error| vec![format!("mqtt-operator: no certificate: {error}")])?;
        rendered.peers_secrets = Some(issued.shown);
    }
    let built = build(&manifests.objects.instance, &rendered, options);
    let found = built.as_ref().err().into_iter().flatten().chain(&rendered.problems);
    found.cloned().for_each(|problem| manifests.report(problem));
    let name = name_of(Kind::MqttInstance, &manifests.objects.instance);
    manifests.good().map_err(lines)?;
    // Where nothing is wrong, all was built.
    let Ok(built) = built else { return Err(vec![format!("mqtt-operator: {name} can't be built")]) };
    built.objects().map_err(|error| vec![format!("mqtt-operator: {name} can't be written: {error}")])
}

/// One document of a stream.
pub fn yaml(object: &Value) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(object).map(|text| format!("---\n{text}"))
}
