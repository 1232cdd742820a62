//! What a test asks of a cluster, besides records: topics and their settings, leaders, credentials.
//!
//! One `e2e/kafka/Admin.java` serves a cluster's life; it is started again if an answer stays away.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Kafka, Program, USER};
use crate::{PATIENCE, wait_until};

/// More than all the requests of a command may take; a cluster that is being harmed answers late.
const LIMIT: Duration = Duration::from_secs(40);

/// How long a follower may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A topic as Kafka has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Topic {
    pub partitions: Vec<Partition>,
    /// All that are in force, defaults included.
    pub settings: BTreeMap<String, Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Partition {
    /// Absent: there is none now.
    pub leader: Option<usize>,
    pub replicas: Vec<usize>,
    pub in_sync: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

impl Kafka {
    /// The nodes that are members of the cluster now.
    pub fn members(&self) -> Result<BTreeSet<usize>> {
        self.ask(&json!({"do": "nodes"}))
    }

    /// All topics but Kafka's internal ones, by name.
    pub fn topics(&self) -> Result<BTreeMap<String, Topic>> {
        self.ask(&json!({"do": "topics"}))
    }

    /// One topic; an error if it is not there.
    pub fn topic(&self, name: &str) -> Result<Topic> {
        self.topics()?.remove(name).with_context(|| format!("no topic {name}"))
    }

    pub fn create_topic(&self, topic: &str, partitions: u32, settings: &[(&str, &str)]) -> Result<()> {
        let settings: BTreeMap<_, _> = settings.iter().copied().collect();
        self.order(&json!({
            "do": "create", "topic": topic, "partitions": partitions, "replicas": self.copies(), "settings": settings,
        }))
    }

    pub fn delete_topics(&self, topics: &[&str]) -> Result<()> {
        self.order(&json!({"do": "delete", "topics": topics}))
    }

    /// Gives a topic more partitions, `count` in all.
    pub fn add_partitions(&self, topic: &str, count: u32) -> Result<()> {
        self.order(&json!({"do": "partitions", "topic": topic, "count": count}))
    }

    /// Sets a topic's setting, or with `None` makes it the default.
    pub fn set_topic(&self, topic: &str, setting: &str, value: Option<&str>) -> Result<()> {
        self.order(&json!({"do": "set", "topic": topic, "settings": {setting: value}}))
    }

    /// The node that leads a partition; an error if none does.
    pub fn leader(&self, topic: &str, partition: usize) -> Result<usize> {
        let found = self.topic(topic)?;
        let partition =
            found.partitions.get(partition).with_context(|| format!("{topic} has no {partition}"))?;
        partition.leader.with_context(|| format!("nobody leads {topic} {partition:?}"))
    }

    /// Makes a replica the leader of its partition.
    pub fn move_leader(&self, topic: &str, partition: usize, node: usize) -> Result<()> {
        self.order(&json!({"do": "lead", "topic": topic, "partition": partition, "node": node}))
    }

    /// Gives [`USER`] another password for a SCRAM mechanism.
    pub fn set_password(&self, mechanism: &str, password: &str) -> Result<()> {
        self.order(&json!({"do": "password", "user": USER, "mechanism": mechanism, "password": password}))
    }

    /// Deletes all topics, and returns when they are gone.
    pub fn clear(&self) -> Result<()> {
        wait_until("the end of all topics", PATIENCE, || {
            let topics = self.topics()?;
            if topics.is_empty() {
                return Ok(Some(()));
            }
            let names: Vec<&str> = topics.keys().map(String::as_str).collect();
            self.delete_topics(&names)?;
            Ok(None)
        })
    }

    /// Waits until every replica of every topic is in sync.
    pub fn wait_until_in_sync(&self) -> Result<()> {
        wait_until("all replicas in sync", CATCH_UP, || {
            let topics = self.topics()?;
            let mut partitions = topics.values().flat_map(|topic| &topic.partitions);
            Ok(partitions.all(|one| one.in_sync.len() == one.replicas.len()).then_some(()))
        })
    }

    fn order(&self, command: &Value) -> Result<()> {
        self.ask::<bool>(command).map(drop)
    }

    fn ask<T: DeserializeOwned>(&self, command: &Value) -> Result<T> {
        let mut admin = self.admin.lock();
        let mut program = match admin.take() {
            Some(program) => program,
            None => Program::start("Admin", &[&self.bootstrap()])?,
        };
        program.tell(command)?;
        let answer = program.next(LIMIT)?;
        *admin = Some(program);
        match answer {
            Answer::Ok(answer) => Ok(answer),
            Answer::Error(error) => bail!("asking Kafka {command}: {error}"),
        }
    }
}
