//! Which store the records go to: opened once, and told what changes in the manifests.

use std::{path::Path, sync::Arc};

use anyhow::bail;

use super::manifests::Loaded;
use crate::log::{
    Log,
    embedded::{EmbeddedLog, EmbeddedOptions},
    kafka::{Access, KafkaLog},
};

#[derive(Clone)]
pub(super) enum Store {
    Embedded(Arc<EmbeddedLog>),
    Kafka(Arc<KafkaLog>),
}

impl Store {
    /// Kafka where the config names one, and returns once it answers; else the embedded store in the folder `data`.
    pub(super) async fn open(data: Option<&Path>, loaded: &Loaded) -> anyhow::Result<Store> {
        match (access(loaded), data) {
            (Some(access), _) => {
                let log = KafkaLog::open(access)?;
                log.reach().await;
                Ok(Store::Kafka(log))
            }
            (None, Some(data)) => Ok(Store::Embedded(EmbeddedLog::open(data, EmbeddedOptions::default())?)),
            (None, None) => bail!("there is no store; name one with --data or --kafka"),
        }
    }

    pub(super) fn log(&self) -> Arc<dyn Log> {
        match self {
            Store::Embedded(log) => log.clone(),
            Store::Kafka(log) => log.clone(),
        }
    }

    /// Addresses and credentials follow the manifests without a restart.
    pub(super) fn follow(&self, loaded: &Loaded) {
        if let (Store::Kafka(log), Some(access)) = (self, access(loaded)) {
            log.use_access(access);
        }
    }
}

/// Kafka's own logs and metrics name a broker by its instance.
fn access(loaded: &Loaded) -> Option<Access> {
    let client_id = format!("mqtt-{}", loaded.config.instance.replace('/', "-"));
    let kafka = loaded.config.kafka.clone()?;
    Some(Access::new(kafka, loaded.kafka_secrets.clone(), &client_id))
}
