//! Manifests in a folder, rendered into what the broker is steered by.
//!
//! Promises: what would be refused on a cluster, or be without effect there, is refused here, with one line a
//! problem that says where and what to do. Passwords never appear in a problem.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mqtt_broker_api::{
    acl::AclDocument,
    config::{InstanceConfig, KafkaSecrets},
};
use mqtt_operator_api::{
    Kind,
    instance::{Kafka, MqttInstance, PeersListener, SaslMechanism},
    manifests::{self, ManifestProblem, Salts},
    render::{self, Password, Problem, render},
    validate::{self, Validator},
};

use crate::listener::tls::{self, Part};

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// On this machine: what the instance says of Kafka counts for nothing, so that its Secrets may be missing.
    Embedded,
    /// In Kafka, at these addresses in place of the instance's, and for the rest as the instance says.
    Kafka(Vec<String>),
}

/// The manifests of one folder, to be loaded again whenever they change.
pub(crate) struct Manifests {
    dir: PathBuf,
    store: Store,
    validator: Validator,
    salts: Salts,
    last: AclDocument,
    terms: tls::Compiler,
}

/// What a folder of good manifests says.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// `kafka` is there if and only if records are kept in Kafka, with the addresses to use.
    pub(crate) config: InstanceConfig,
    /// Those that go with `config.kafka`.
    pub(crate) kafka_secrets: KafkaSecrets,
    /// There if and only if `config.listeners` use it.
    pub(crate) tls: Option<Arc<tls::Terms>>,
    /// Its generation rises with every load that brought a change.
    pub(crate) acl: AclDocument,
    /// One line each: what has no effect on one machine, and what is doubtful.
    pub(crate) warnings: Vec<String>,
}

impl Manifests {
    /// Nothing is read yet.
    pub(crate) fn new(dir: &Path, store: Store) -> Result<Self, validate::Error> {
        Ok(Self {
            dir: dir.to_owned(),
            store,
            validator: Validator::new()?,
            salts: Salts::default(),
            last: AclDocument::default(),
            terms: tls::Compiler::default(),
        })
    }

    /// Blocks on the file system.
    pub(crate) fn load(&mut self) -> Result<Loaded, Vec<ManifestProblem>> {
        let mut manifests = manifests::read(&self.dir, &self.validator)?;
        let warnings = warnings(&manifests.objects.instance, &self.store);
        with_store(&mut manifests.objects.instance, &self.store);
        manifests.objects.instance.spec.listeners.peers = PeersListener::default();
        // The document stays in this process, so that the passwords' hashes need not withstand guessing.
        let hasher = |password: &Password<'_>| Some(self.salts.hash(password));
        let rendered = render(&manifests.objects, self.last.generation, hasher);
        rendered.problems.into_iter().for_each(|problem| manifests.report(problem));
        let tls = match rendered.tls_secrets.map(|secrets| self.terms.compile(secrets)).transpose() {
            Ok(terms) => terms,
            Err(error) => {
                let field = match error.part {
                    Part::Certificate | Part::Key => "spec.listeners.mqtts.secretRef.name",
                    Part::ClientCa => "spec.listeners.mqtts.clientCaSecretRef.key",
                };
                manifests.report(Problem {
                    object: render::name_of(Kind::MqttInstance, &manifests.objects.instance),
                    field: field.into(),
                    message: format!("{error}; put another one there"),
                });
                None
            }
        };
        manifests.good()?;

        let mut acl = rendered.acl;
        if acl != self.last {
            acl.generation += 1;
            self.last = acl.clone();
        }
        Ok(Loaded { config: rendered.config, kafka_secrets: rendered.kafka_secrets, tls, acl, warnings })
    }
}

/// Makes it as if its manifest asked for just this store.
fn with_store(instance: &mut MqttInstance, store: &Store) {
    let kafka = instance.spec.kafka.take();
    instance.spec.kafka = match (store, kafka) {
        (Store::Embedded, _) => None,
        (Store::Kafka(servers), Some(kafka)) => Some(Kafka { bootstrap_servers: servers.clone(), ..kafka }),
        (Store::Kafka(servers), None) => Some(Kafka {
            bootstrap_servers: servers.clone(),
            // What any Kafka can keep, one of a single broker included.
            replication_factor: 1,
            rack: None,
            tls: None,
            sasl: None,
        }),
    };
}

/// What an instance asks for that one machine doesn't give, and what of Kafka a person may not have meant.
fn warnings(instance: &MqttInstance, store: &Store) -> Vec<String> {
    let name = render::name_of(Kind::MqttInstance, instance);
    let spec = &instance.spec;
    let mut warnings = Vec::new();
    if spec.replicas > 1 {
        warnings
            .push(format!("{name}: spec.replicas is {}, but a standalone broker is one node", spec.replicas));
    }
    if spec.listeners.peers != PeersListener::default() {
        warnings
            .push(format!("{name}: spec.listeners.peers is ignored: --peers and --peer say where nodes are"));
    }
    match (store, &spec.kafka) {
        (Store::Embedded, Some(kafka)) => warnings.push(format!(
            "{name}: spec.kafka is ignored: records are kept here, in one copy (replicationFactor {} is capped at 1)",
            kafka.replication_factor
        )),
        (Store::Kafka(_), None) => warnings.push(format!(
            "{name}: there is no spec.kafka: Kafka keeps records in one copy (replicationFactor 1), and is used without TLS and login"
        )),
        (Store::Kafka(_), Some(Kafka { sasl: Some(sasl), tls: None, .. }))
            if sasl.mechanism == SaslMechanism::Plain =>
        {
            warnings.push(format!(
                "{name}: spec.kafka.sasl: PLAIN without tls sends the password unencrypted; add spec.kafka.tls, or use SCRAM-SHA-512"
            ));
        }
        (Store::Embedded, None) | (Store::Kafka(_), Some(_)) => {}
    }
    warnings
}

#[cfg(test)]
mod tests;
