//! `mqtt-broker run`: one node of an instance, steered by mounted ConfigMaps and Secrets. It is what pods run.
//!
//! Promises: each file may change at any time. A config that can't be used is told with its file, line and field, and
//! changes nothing; an ACL document is put in force when all its shards are there; a certificate that can't be used
//! leaves the last good one. No secret is in what is told.

mod files;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use mqtt_broker_api::{
    acl::AclDocument,
    config::{InstanceConfig, KafkaSecrets, TlsSecrets},
    node::{
        KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD, NodeConfig, PEERS_CA, PEERS_CERTIFICATE,
        PEERS_KEY, Peers, TlsFiles,
    },
};

use self::files::{File, read_acl, read_text};
use crate::{
    listener::tls::{self, Part},
    peers::{self, Addresses},
    process::{self, Documents, Source},
    standalone::node_name,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's config, YAML or JSON. It and all that it names is watched for changes.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The name of this node among those of its instance, such as its pod's; for a config with `shared: true`.
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    node: Option<String>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    process::run(Run { node: args.node, ..Run::new(args.config) })
}

/// The config file, and what was good of the files that it names.
struct Run {
    file: PathBuf,
    node: Option<String>,
    /// All that is to be watched.
    watched: Vec<PathBuf>,
    acl: Option<AclDocument>,
    compiler: tls::Compiler,
    terms: Option<Arc<tls::Terms>>,
    identities: peers::tls::Compiler,
    identity: Option<Arc<peers::tls::Identity>>,
}

impl Run {
    fn new(file: PathBuf) -> Run {
        let (watched, compiler) = (Vec::new(), tls::Compiler::default());
        let mut run = Run {
            watched,
            file,
            node: None,
            acl: None,
            compiler,
            terms: None,
            identities: peers::tls::Compiler::default(),
            identity: None,
        };
        run.watch(File::read(&run.file).and_then(|file| file.node_config()).ok().as_ref());
        run
    }

    fn watch(&mut self, config: Option<&NodeConfig>) {
        self.watched = vec![self.file.clone()];
        let Some(NodeConfig { acl, kafka_secrets, tls, peers, .. }) = config else { return };
        let peers = peers.as_ref().map(|peers| &peers.secrets);
        self.watched.extend(acl.iter().chain(kafka_secrets).chain(peers).cloned());
        if let Some(TlsFiles { certificate_file, key_file, client_ca_file }) = tls {
            self.watched.extend([certificate_file, key_file].into_iter().chain(client_ca_file).cloned());
        }
    }

    /// What the TLS listener shows; a problem is a warning if an older certificate can go on.
    fn terms(
        &mut self,
        files: &TlsFiles,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<tls::Terms>, Vec<String>> {
        match (read_terms(&mut self.compiler, files), &self.terms) {
            (Ok(terms), _) => {
                self.terms = Some(terms.clone());
                Ok(terms)
            }
            (Err(problem), Some(last)) => {
                warnings.push(format!("{problem}; the last good one stays in use"));
                Ok(last.clone())
            }
            (Err(problem), None) => Err(vec![problem]),
        }
    }

    /// How other nodes are reached; a problem with the certificate is a warning, as in [`Self::terms`].
    fn peers(&mut self, peers: &Peers, warnings: &mut Vec<String>) -> Result<peers::Settings, Vec<String>> {
        match (read_identity(&mut self.identities, &peers.secrets), &self.identity) {
            (Ok(identity), _) => self.identity = Some(identity),
            (Err(problem), Some(_)) => warnings.push(format!("{problem}; the last good one stays in use")),
            (Err(problem), None) => return Err(vec![problem]),
        }
        let Peers { listen, address, .. } = peers;
        let (listen, addresses) = (listen.clone(), Addresses::Pattern(address.clone()));
        Ok(peers::Settings { listen, addresses, identity: self.identity.clone() })
    }
}

impl Source for Run {
    const NAME: &'static str = "config";

    fn watched(&self) -> Vec<PathBuf> {
        self.watched.clone()
    }

    fn load(&mut self) -> Result<Documents, Vec<String>> {
        let file = File::read(&self.file).map_err(|problem| vec![problem])?;
        let config = file.node_config().map_err(|problem| vec![problem])?;
        self.watch(Some(&config));
        let mut problems = file.contradictions(&config);
        let NodeConfig { instance, shared, acl, kafka_secrets, tls, peers, data } = config;
        let kafka_secrets = kafka_secrets_of(&file, &instance, kafka_secrets.as_ref(), &mut problems);
        let node = self.node.clone().filter(|_| shared);
        if shared && node.is_none() {
            problems
                .push(file.problem("shared", "is true, and this node has no name: give it one with --node"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut warnings = Vec::new();
        let tls = tls.map(|files| self.terms(&files, &mut warnings)).transpose()?;
        let peers = peers.map(|peers| self.peers(&peers, &mut warnings)).transpose()?;
        match (read_acl(&acl), &self.acl) {
            (Ok(acl), _) => self.acl = Some(acl),
            (Err(why), Some(last)) => {
                let generation = last.generation;
                warnings.push(format!("acl: {why}; generation {generation} stays in force"));
            }
            (Err(why), None) => warnings.push(format!("acl: {why}; nobody is let in before it is complete")),
        }
        let (config, config_hash, acl) = (instance, Some(file.hash().to_owned()), self.acl.clone());
        Ok(Documents { config, config_hash, kafka_secrets, tls, acl, data, node, peers, warnings })
    }

    fn address_is_set(listener: &str) -> String {
        match listener {
            "peers" => "in peers.listen".to_owned(),
            listener => format!("in instance.listeners.{listener}"),
        }
    }
}

fn read_terms(compiler: &mut tls::Compiler, files: &TlsFiles) -> Result<Arc<tls::Terms>, String> {
    let TlsFiles { certificate_file, key_file, client_ca_file } = files;
    let secrets = TlsSecrets {
        certificate: read_text(certificate_file)?,
        key: read_text(key_file)?,
        client_ca: client_ca_file.as_ref().map(|file| read_text(file)).transpose()?,
    };
    compiler.compile(secrets).map_err(|error| {
        let file = match error.part {
            Part::Certificate => Some(certificate_file),
            Part::Key => Some(key_file),
            Part::ClientCa => client_ca_file.as_ref(),
        };
        format!("{}: {error}", file.unwrap_or(certificate_file).display())
    })
}

/// What a node shows to others, of a folder.
pub(crate) fn read_identity(
    compiler: &mut peers::tls::Compiler,
    folder: &Path,
) -> Result<Arc<peers::tls::Identity>, String> {
    let [certificate, key, ca] = [PEERS_CERTIFICATE, PEERS_KEY, PEERS_CA].map(|name| folder.join(name));
    let secrets = TlsSecrets {
        certificate: read_text(&certificate)?,
        key: read_text(&key)?,
        client_ca: Some(read_text(&ca)?),
    };
    compiler.compile(secrets).map_err(|error| {
        let file = match error.part {
            Part::Certificate => certificate,
            Part::Key => key,
            Part::ClientCa => ca,
        };
        format!("{}: {error}", file.display())
    })
}

/// What the config asks for of the mounted folder.
fn kafka_secrets_of(
    file: &File,
    instance: &InstanceConfig,
    folder: Option<&PathBuf>,
    problems: &mut Vec<String>,
) -> KafkaSecrets {
    let Some(kafka) = &instance.kafka else { return KafkaSecrets::default() };
    let mut get = |wanted: bool, name: &str, field: &str| {
        if !wanted {
            return None;
        }
        let Some(folder) = folder else {
            problems.push(
                file.problem("kafkaSecrets", &format!("is missing; name the folder of {name} for {field}")),
            );
            return None;
        };
        read_text(&folder.join(name)).map_err(|problem| problems.push(problem)).ok()
    };
    let (ca, pair) = kafka.tls.map_or((false, false), |tls| (tls.ca, tls.certificate));
    KafkaSecrets {
        ca: get(ca, KAFKA_CA, "instance.kafka.tls.ca"),
        certificate: get(pair, KAFKA_CERTIFICATE, "instance.kafka.tls.certificate"),
        key: get(pair, KAFKA_KEY, "instance.kafka.tls.certificate"),
        password: get(kafka.sasl.is_some(), KAFKA_PASSWORD, "instance.kafka.sasl"),
    }
}
