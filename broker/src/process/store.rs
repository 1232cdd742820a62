//! Which store the records go to: opened once, and told what changes in the documents.

use std::sync::Arc;

use anyhow::bail;

use super::Documents;
use crate::log::{
    Log,
    embedded::{EmbeddedLog, EmbeddedOptions},
    kafka::{Access, KafkaLog},
};
use crate::session::log::Place;

/// The name of a node that serves alone.
const ALONE: &str = "0";

#[derive(Clone)]
pub(super) enum Store {
    Embedded(Arc<EmbeddedLog>),
    Kafka(Arc<KafkaLog>),
}

impl Store {
    /// Kafka where the config names one, see [`Self::reach`]; else the embedded store in its folder.
    pub(super) fn open(documents: &Documents) -> anyhow::Result<Store> {
        match (access(documents), &documents.data) {
            (Some(access), _) => Ok(Store::Kafka(KafkaLog::open(access)?)),
            (None, Some(data)) => Ok(Store::Embedded(EmbeddedLog::open(data, EmbeddedOptions::default())?)),
            (None, None) => bail!("there is no store; name a folder, or Kafka"),
        }
    }

    /// Returns once it answers; until then `told` is told why it does not.
    pub(super) async fn reach(&self, told: impl FnMut(&str)) {
        if let Store::Kafka(log) = self {
            log.reach(told).await;
        }
    }

    pub(super) fn log(&self) -> Arc<dyn Log> {
        match self {
            Store::Embedded(log) => log.clone(),
            Store::Kafka(log) => log.clone(),
        }
    }

    /// A log on this machine is written by one thread: more partitions would only make it more records for a message that many
    /// get.
    pub(super) fn place<'a>(&self, documents: &'a Documents) -> Place<'a> {
        let node = documents.node.as_deref();
        match self {
            Store::Embedded(_) => Place { node: ALONE, partitions: 1, shared: false },
            Store::Kafka(_) => Place { node: node.unwrap_or(ALONE), partitions: 12, shared: node.is_some() },
        }
    }

    /// Addresses and credentials follow the documents without a restart.
    pub(super) fn follow(&self, documents: &Documents) {
        match (self, access(documents)) {
            (Store::Kafka(log), Some(access)) => log.use_access(access),
            (Store::Embedded(_), None) => {}
            (Store::Kafka(_), None) | (Store::Embedded(_), Some(_)) => {
                tracing::warn!("records stay in the store they are in until the broker is started again");
            }
        }
    }
}

/// Kafka's own logs and metrics name a broker by its instance.
fn access(documents: &Documents) -> Option<Access> {
    let client_id = format!("mqtt-{}", documents.config.instance.replace('/', "-"));
    let kafka = documents.config.kafka.clone()?;
    Some(Access::new(kafka, documents.kafka_secrets.clone(), &client_id))
}
