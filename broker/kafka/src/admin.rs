//! Questions to Kafka about topics: owns the client that asks them, how long each may take, and what an answer means.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::{Client, DefaultClientContext},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    access::{Access, without_value},
    alter,
    plan::{Setting, pairs},
};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks and changes; a clone is the same client. The last one's drop waits for the client to end.
#[derive(Clone)]
pub struct Admin {
    client: Arc<AdminClient<DefaultClientContext>>,
    who: &'static str,
}

/// Why a topic is not as it was asked for, in one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct Error {
    pub fault: Fault,
    pub line: String,
}

/// What has to change before another try is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing but time: Kafka could not be asked, or can't do it now.
    Passing,
    /// How Kafka is reached: no client could be started.
    Access,
    /// Kafka's ACLs.
    Forbidden,
    /// What was asked for: Kafka can't or won't do it.
    Refused,
    /// The topic: it is there, and does not keep what it has to.
    Unfit,
}

impl Error {
    pub(crate) fn new(fault: Fault, line: String) -> Error {
        Error { fault, line }
    }

    pub(crate) fn passing(line: String) -> Error {
        Error::new(Fault::Passing, line)
    }

    /// Whether the same question may be answered otherwise though nobody does anything.
    pub fn may_pass(&self) -> bool {
        self.fault == Fault::Passing
    }
}

/// What Kafka's metadata tells of a topic.
pub(crate) struct Look {
    nodes: usize,
    pub(crate) error: Option<Error>,
    pub(crate) partitions: Vec<Partition>,
}

pub(crate) struct Partition {
    pub(crate) id: i32,
    pub(crate) led: bool,
    pub(crate) copies: usize,
}

impl Admin {
    /// Starts a client. `who` asks, in words such as `broker`, for errors.
    pub fn new(access: &Access, who: &'static str) -> Result<Admin, Error> {
        let client = access.client().create().map_err(|error| {
            let why = without_value(&error);
            let line = format!("Kafka: no client could be started: {why}; check spec.kafka and its Secrets");
            Error::new(Fault::Access, line)
        })?;
        Ok(Admin { client: Arc::new(client), who })
    }

    /// The id that the cluster has given itself; it is the same whichever of its nodes is asked, by whatever name.
    pub async fn cluster_id(&self) -> Result<String, Error> {
        let asked = self.blocking(|client| client.fetch_cluster_id(PATIENCE)).await?;
        asked.ok_or_else(|| Error::passing("Kafka can't be asked which cluster it is".into()))
    }

    /// The topic's settings; none if there is no such topic.
    pub(crate) async fn describe(&self, name: &str) -> Result<Option<ConfigResource>, Error> {
        let asked = self.client.describe_configs(&[ResourceSpecifier::Topic(name)], &options()).await;
        match asked.map_err(|error| not_asked(name, &error))?.pop() {
            Some(Ok(configs)) if !configs.entries.is_empty() => return Ok(Some(configs)),
            Some(Err(code)) => return Err(self.refused(Asked::Describe, name, code, "")),
            Some(Ok(_)) | None => {}
        }
        // rdkafka drops the error of a single topic: there is no such topic, or its settings may not be seen.
        let topic = name.to_owned();
        match self.blocking(move |client| alter::describe(client, &topic, PATIENCE)).await? {
            // Somebody else has made it since.
            Ok(()) => Ok(None),
            Err(no) if no.code == RDKafkaErrorCode::UnknownTopicOrPartition => Ok(None),
            Err(no) => Err(self.refused(Asked::Describe, name, no.code, &no.why)),
        }
    }

    /// False if the topic is there already.
    pub(crate) async fn make(
        &self,
        name: &str,
        partitions: u32,
        copies: u16,
        wanted: &[Setting],
    ) -> Result<bool, Error> {
        let number = i32::try_from(partitions).unwrap_or(i32::MAX);
        let topic = NewTopic::new(name, number, TopicReplication::Fixed(i32::from(copies)));
        let topic = wanted.iter().fold(topic, |topic, Setting { name, value, .. }| topic.set(name, value));
        let asked = self.client.create_topics(&[topic], &options()).await;
        let code = match asked.map_err(|error| not_asked(name, &error))?.pop() {
            Some(Ok(_)) => {
                tracing::info!("Kafka: topic {name} made: {partitions} partitions, {copies} copies");
                return Ok(true);
            }
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(false),
            Some(Err((_, code))) => code,
            None => return Err(no_answer(name)),
        };
        let why = match code {
            RDKafkaErrorCode::InvalidReplicationFactor => format!(
                "{copies} copies were asked for and {} Kafka nodes are up: start more, or lower spec.kafka.replicationFactor",
                self.look(name).await?.nodes
            ),
            RDKafkaErrorCode::InvalidConfig => {
                let wanted: Vec<_> = wanted.iter().map(|s| (s.name.to_owned(), s.value.clone())).collect();
                let pairs = pairs(&wanted);
                let since = if pairs.contains("message.timestamp") {
                    "Kafka 3.6 or later is needed, and "
                } else {
                    ""
                };
                format!("{since}each of these must be allowed: {pairs}")
            }
            RDKafkaErrorCode::InvalidTopic => {
                "is there one whose name differs only in '.' and '_'? Kafka takes them for the same"
                    .to_owned()
            }
            _ => String::new(),
        };
        Err(self.refused(Asked::Make, name, code, &why))
    }

    pub(crate) async fn look(&self, name: &str) -> Result<Look, Error> {
        let topic = name.to_owned();
        let asked = self.blocking(move |client| {
            let metadata = client.fetch_metadata(Some(&topic), PATIENCE)?;
            let found = metadata.topics().first();
            let partitions = found.map_or(&[][..], |topic| topic.partitions()).iter();
            let partitions = partitions.map(|partition| Partition {
                id: partition.id(),
                led: partition.leader() >= 0,
                copies: partition.replicas().len(),
            });
            let error = found.and_then(|topic| topic.error()).map(RDKafkaErrorCode::from);
            Ok((metadata.brokers().len(), error, partitions.collect()))
        });
        let (nodes, code, partitions) = asked.await?.map_err(|error| not_asked(name, &error))?;
        let error = code.map(|code| self.refused(Asked::Look, name, code, ""));
        Ok(Look { nodes, error, partitions })
    }

    pub(crate) async fn grow(&self, name: &str, partitions: u32) -> Result<(), Error> {
        let wanted = NewPartitions::new(name, usize::try_from(partitions).unwrap_or(usize::MAX));
        let asked = self.client.create_partitions(&[wanted], &options()).await;
        match asked.map_err(|error| not_asked(name, &error))?.pop() {
            // Somebody else was first: it has so many already, or more.
            Some(Err((_, RDKafkaErrorCode::InvalidPartitions))) => Ok(()),
            Some(Err((_, code))) => Err(self.refused(Asked::Grow, name, code, "")),
            Some(Ok(_)) => {
                tracing::info!("Kafka: topic {name} grew to {partitions} partitions");
                Ok(())
            }
            None => Err(no_answer(name)),
        }
    }

    pub(crate) async fn alter(&self, name: &str, settings: &[(String, String)]) -> Result<(), Error> {
        let (topic, settings) = (name.to_owned(), settings.to_vec());
        let asked = self.blocking(move |client| alter::set(client, &topic, &settings, PATIENCE));
        asked.await?.map_err(|no| self.refused(Asked::Alter, name, no.code, &no.why))
    }

    /// Takes the topic away, with its records. False if there was none.
    pub async fn delete(&self, name: &str) -> Result<bool, Error> {
        let asked = self.client.delete_topics(&[name], &options()).await;
        match asked.map_err(|error| not_asked(name, &error))?.pop() {
            Some(Ok(_)) => {
                tracing::info!("Kafka: topic {name} deleted");
                Ok(true)
            }
            Some(Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))) => Ok(false),
            Some(Err((_, code))) => Err(self.refused(Asked::Delete, name, code, "")),
            None => Err(no_answer(name)),
        }
    }

    /// For questions that block their thread until they are answered.
    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Client<DefaultClientContext>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let client = self.client.clone();
        let asked = tokio::task::spawn_blocking(move || ask(client.inner()));
        asked.await.map_err(|_| Error::passing(format!("the {} is stopping", self.who)))
    }

    fn refused(&self, asked: Asked, name: &str, code: RDKafkaErrorCode, why: &str) -> Error {
        refused(self.who, asked, name, code, why)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// Kafka could not be asked at all.
fn not_asked(name: &str, error: &KafkaError) -> Error {
    Error::passing(format!("Kafka can't be asked about topic {name}: {error}"))
}

fn no_answer(name: &str) -> Error {
    Error::passing(format!("Kafka said nothing about topic {name}"))
}

/// What Kafka was asked to do.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Look,
    Describe,
    Make,
    Grow,
    Alter,
    Delete,
}

impl Asked {
    /// In words, and the operation that an ACL of Kafka must allow.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Asked::Look => ("see", "Describe"),
            Asked::Describe => ("see the settings of", "DescribeConfigs"),
            Asked::Make => ("make", "Create"),
            Asked::Grow => ("add partitions to", "Alter"),
            Asked::Alter => ("change the settings of", "AlterConfigs"),
            Asked::Delete => ("delete", "Delete"),
        }
    }
}

/// Kafka was asked and said no. What may pass is worth another try.
fn refused(who: &str, asked: Asked, name: &str, code: RDKafkaErrorCode, why: &str) -> Error {
    use RDKafkaErrorCode as Code;
    let (what, right) = asked.words();
    let line = match (code, why) {
        (Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed, _) => {
            let or_so = match asked {
                Asked::Look | Asked::Describe => "",
                Asked::Make | Asked::Grow | Asked::Alter | Asked::Delete => ", or do it yourself",
            };
            format!(
                "Kafka does not let this {who} {what} topic {name}: allow its user {right} on the topic{or_so}"
            )
        }
        (_, "") => format!("Kafka could not {what} topic {name}: {code}"),
        (_, why) => format!("Kafka could not {what} topic {name}: {code}: {why}"),
    };
    let fault = match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => Fault::Forbidden,
        Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::BrokerTransportFailure
            | Code::NetworkException
            | Code::NotController
            | Code::LeaderNotAvailable
            | Code::AllBrokersDown
            // Deleted or made a moment ago, and not every node knows.
            | Code::UnknownTopicOrPartition
            | Code::ReassignmentInProgress
        | Code::ThrottlingQuotaExceeded => Fault::Passing,
        _ => Fault::Refused,
    };
    Error::new(fault, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_a_missing_right_is_named() {
        use RDKafkaErrorCode as Code;
        for (asked, code, why, fault, line) in [
            (
                Asked::Describe,
                Code::TopicAuthorizationFailed,
                "Topic authorization failed.",
                Fault::Forbidden,
                "Kafka does not let this broker see the settings of topic t: allow its user DescribeConfigs on the topic",
            ),
            (
                Asked::Grow,
                Code::TopicAuthorizationFailed,
                "",
                Fault::Forbidden,
                "Kafka does not let this broker add partitions to topic t: allow its user Alter on the topic, or do it yourself",
            ),
            (
                Asked::Alter,
                Code::PolicyViolation,
                "not here",
                Fault::Refused,
                "Kafka could not change the settings of topic t: PolicyViolation (Broker: Policy violation): not here",
            ),
            (
                Asked::Make,
                Code::ThrottlingQuotaExceeded,
                "",
                Fault::Passing,
                "Kafka could not make topic t: ThrottlingQuotaExceeded (Broker: Throttling quota has been exceeded)",
            ),
        ] {
            let error = refused("broker", asked, "t", code, why);
            assert_eq!(error.to_string(), line);
            assert_eq!(error.fault, fault, "{line}");
        }
    }
}
