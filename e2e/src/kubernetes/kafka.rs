//! A Kafka beside the cluster, which its pods reach. An instance has one for itself, so each story takes a new one.

use std::{io::Write as _, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use mqtt_broker_api::admin::RecordView;
use tempfile::NamedTempFile;

use crate::kafka::{Kafka, KafkaOptions, Program};

pub struct PodKafka {
    servers: String,
    ours: Option<Kafka>,
}

impl PodKafka {
    pub(super) fn start(host: Ipv4Addr) -> Result<Self> {
        let kafka = Kafka::start(KafkaOptions { host, ..KafkaOptions::default() })?;
        Ok(Self { servers: kafka.bootstrap(), ours: Some(kafka) })
    }

    pub(super) fn named() -> Result<Self> {
        let servers = std::env::var("KAFKA").context("KAFKA is needed beside KUBECONFIG")?;
        Ok(Self { servers, ours: None })
    }

    /// Its bootstrap servers.
    pub fn servers(&self) -> Vec<String> {
        self.servers.split(',').map(str::to_owned).collect()
    }

    /// For what a story does there beside the brokers.
    pub fn admin(&self) -> Result<&Kafka> {
        self.ours.as_ref().context("this can't be done to a Kafka of somebody else: run without KUBECONFIG")
    }

    /// Reads the records of topics from their beginning, as a member of a group.
    pub fn consumer(&self, group: &str, topics: &[&str]) -> Result<Consumer> {
        let mut settings = NamedTempFile::new()?;
        write!(settings, "bootstrap.servers={}", self.servers)?;
        let path = settings.path().to_string_lossy().into_owned();
        let program = Program::start("ParentConsumer", &[&[path.as_str(), group], topics].concat())?;
        Ok(Consumer { program, _settings: settings })
    }
}

/// A cloud application.
pub struct Consumer {
    program: Program,
    _settings: NamedTempFile,
}

impl Consumer {
    /// Waits for the next record.
    pub fn next(&mut self, limit: Duration) -> Result<RecordView> {
        self.program.next(limit)
    }
}
