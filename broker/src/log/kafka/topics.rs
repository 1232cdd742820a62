//! Topics in Kafka: made with all their settings, or found and held to them.
//!
//! What the manifests name (partitions, retention, size of a record) is brought in line, and nothing else of the
//! topic is touched. What carries the promise (copies, in-sync replicas, compaction, timestamps) is verified and
//! never changed silently: a topic that does not keep it is refused, in one line that says how to mend it.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::{Client, DefaultClientContext},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    access::without_value,
    alter,
    plan::{self, Existing, Setting, pairs},
};
use crate::log::{LogError, TopicSettings};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long until all of Kafka knows of a change.
const NEWS: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Asks and changes; shared by all topics.
pub(super) struct Admin(AdminClient<DefaultClientContext>);

/// What a topic turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) partitions: u32,
    /// Bytes; Kafka takes nothing larger.
    pub(super) max_record: u32,
    pub(super) min_in_sync: u32,
}

impl Admin {
    pub(super) fn new(config: &ClientConfig) -> Result<Admin, LogError> {
        let client = config.create().map_err(|error| {
            LogError::Settings(format!(
                "Kafka: no client could be started: {}; check spec.kafka and its Secrets",
                without_value(&error)
            ))
        })?;
        Ok(Admin(client))
    }
}

/// Makes the topic, or verifies an existing one and brings what the manifests name in line.
pub(super) async fn ensure(
    admin: &Arc<Admin>,
    name: &str,
    settings: TopicSettings,
    copies: u16,
) -> Result<Found, LogError> {
    check_name(name)?;
    let wanted = plan::wanted(settings, u32::from(copies));
    let until = Instant::now() + NEWS;
    let mut made = None;
    let configs = loop {
        if let Some(configs) = describe(admin, name).await? {
            break configs;
        }
        if made.is_none() {
            made = Some(make(admin, name, settings.partitions, copies, &wanted).await?);
        }
        if Instant::now() > until {
            return Err(LogError::Store(format!("Kafka: topic {name} was made and is not there yet")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let settings_of = |configs: ConfigResource| {
        configs.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    };
    let mut existing = Existing { settings: settings_of(configs), ..Existing::default() };
    let new = if made == Some(true) { 0..settings.partitions } else { 0..0 };
    (existing.partitions, existing.copies) = layout(admin, name, new, until).await?;
    let plan = plan::plan(&existing, &wanted, settings.partitions, u32::from(copies));
    if !plan.wrong.is_empty() {
        return Err(LogError::Settings(plan.complaint(name)));
    }
    if let Some(partitions) = plan.grow_to {
        grow(admin, name, partitions).await?;
        (existing.partitions, _) = layout(admin, name, existing.partitions..partitions, until).await?;
    }
    if !plan.alter.is_empty() {
        tracing::info!("Kafka: topic {name}: setting {}", pairs(&plan.alter));
        alter_settings(admin, name, &plan.alter).await?;
        existing.settings.extend(plan.alter);
    }
    let number = |name: &str| existing.settings.get(name).and_then(|value| value.parse().ok());
    Ok(Found {
        partitions: existing.partitions,
        max_record: number("max.message.bytes").unwrap_or(settings.record_bytes),
        min_in_sync: number("min.insync.replicas").unwrap_or(1),
    })
}

/// What Kafka allows as a topic's name.
fn check_name(name: &str) -> Result<(), LogError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&name.len()) && name.chars().all(allowed) && name != "." && name != ".." {
        return Ok(());
    }
    Err(LogError::Settings(format!(
        "Kafka has no topic names such as {name:?}: use 1 to 249 letters, digits, '.', '_' and '-'"
    )))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// The topic's settings; none if there is no such topic.
async fn describe(admin: &Arc<Admin>, name: &str) -> Result<Option<ConfigResource>, LogError> {
    let asked = admin.0.describe_configs(&[ResourceSpecifier::Topic(name)], &options()).await;
    match asked.map_err(|error| not_asked(name, &error))?.pop() {
        Some(Ok(configs)) if !configs.entries.is_empty() => return Ok(Some(configs)),
        Some(Err(code)) => return Err(refused(Asked::Describe, name, code, "")),
        Some(Ok(_)) | None => {}
    }
    // rdkafka drops the error of a single topic: there is no such topic, or its settings may not be seen.
    let topic = name.to_owned();
    match blocking(admin, move |client| alter::describe(client, &topic, PATIENCE)).await? {
        // Somebody else has made it since.
        Ok(()) => Ok(None),
        Err(no) if no.code == RDKafkaErrorCode::UnknownTopicOrPartition => Ok(None),
        Err(no) => Err(refused(Asked::Describe, name, no.code, &no.why)),
    }
}

/// False if the topic is there already.
async fn make(
    admin: &Arc<Admin>,
    name: &str,
    partitions: u32,
    copies: u16,
    wanted: &[Setting],
) -> Result<bool, LogError> {
    let number = i32::try_from(partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(name, number, TopicReplication::Fixed(i32::from(copies)));
    let topic = wanted.iter().fold(topic, |topic, Setting { name, value, .. }| topic.set(name, value));
    let asked = admin.0.create_topics(&[topic], &options()).await;
    let code = match asked.map_err(|error| not_asked(name, &error))?.pop() {
        Some(Ok(_)) => {
            tracing::info!("Kafka: topic {name} made: {partitions} partitions, {copies} copies");
            return Ok(true);
        }
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(false),
        Some(Err((_, code))) => code,
        None => return Err(LogError::Store(format!("Kafka said nothing about topic {name}"))),
    };
    let why = match code {
        RDKafkaErrorCode::InvalidReplicationFactor => format!(
            "{copies} copies were asked for and {} Kafka nodes are up: start more, or lower spec.kafka.replicationFactor",
            look(admin, name).await?.nodes
        ),
        RDKafkaErrorCode::InvalidConfig => {
            let wanted: Vec<_> = wanted.iter().map(|s| (s.name.to_owned(), s.value.clone())).collect();
            let pairs = pairs(&wanted);
            let since =
                if pairs.contains("message.timestamp") { "Kafka 3.6 or later is needed, and " } else { "" };
            format!("{since}each of these must be allowed: {pairs}")
        }
        RDKafkaErrorCode::InvalidTopic => {
            "is there one whose name differs only in '.' and '_'? Kafka takes them for the same".to_owned()
        }
        _ => String::new(),
    };
    Err(refused(Asked::Make, name, code, &why))
}

/// What Kafka's metadata tells of a topic.
struct Look {
    nodes: usize,
    error: Option<RDKafkaErrorCode>,
    partitions: Vec<Partition>,
}

struct Partition {
    id: i32,
    led: bool,
    copies: usize,
}

async fn look(admin: &Arc<Admin>, name: &str) -> Result<Look, LogError> {
    let topic = name.to_owned();
    let asked = blocking(admin, move |client| {
        let metadata = client.fetch_metadata(Some(&topic), PATIENCE)?;
        let found = metadata.topics().first();
        let partitions = found.map_or(&[][..], |topic| topic.partitions()).iter().map(|partition| {
            Partition { id: partition.id(), led: partition.leader() >= 0, copies: partition.replicas().len() }
        });
        Ok(Look {
            nodes: metadata.brokers().len(),
            error: found.and_then(|topic| topic.error()).map(RDKafkaErrorCode::from),
            partitions: partitions.collect(),
        })
    });
    asked.await?.map_err(|error| not_asked(name, &error))
}

/// Partitions and copies, once each of the new partitions is there and has a leader.
async fn layout(
    admin: &Arc<Admin>,
    name: &str,
    new: Range<u32>,
    until: Instant,
) -> Result<(u32, u32), LogError> {
    loop {
        let Look { error, partitions, .. } = look(admin, name).await?;
        if let Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed) = error {
            return Err(refused(Asked::Look, name, code, ""));
        }
        let is_new = |partition: &&Partition| u32::try_from(partition.id).is_ok_and(|id| new.contains(&id));
        let ready = partitions.iter().filter(is_new).filter(|partition| partition.led).count();
        let copies = partitions.iter().map(|partition| partition.copies).min();
        if let Some(copies) = copies.filter(|_| ready == new.len()) {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            return Ok((count(partitions.len()), count(copies)));
        }
        if Instant::now() > until {
            return Err(LogError::Store(match partitions.len() {
                0 => {
                    format!("Kafka has settings of topic {name} and no partitions: was it deleted just now?")
                }
                _ => format!("Kafka: topic {name}: {ready} of {} new partitions have a leader", new.len()),
            }));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn grow(admin: &Admin, name: &str, partitions: u32) -> Result<(), LogError> {
    let wanted = NewPartitions::new(name, usize::try_from(partitions).unwrap_or(usize::MAX));
    let asked = admin.0.create_partitions(&[wanted], &options()).await;
    match asked.map_err(|error| not_asked(name, &error))?.pop() {
        // Somebody else was first: it has so many already, or more.
        Some(Err((_, RDKafkaErrorCode::InvalidPartitions))) => Ok(()),
        Some(Err((_, code))) => Err(refused(Asked::Grow, name, code, "")),
        Some(Ok(_)) => {
            tracing::info!("Kafka: topic {name} grew to {partitions} partitions");
            Ok(())
        }
        None => Err(LogError::Store(format!("Kafka said nothing about topic {name}"))),
    }
}

async fn alter_settings(
    admin: &Arc<Admin>,
    name: &str,
    settings: &[(String, String)],
) -> Result<(), LogError> {
    let (topic, settings) = (name.to_owned(), settings.to_vec());
    let asked = blocking(admin, move |client| alter::set(client, &topic, &settings, PATIENCE));
    asked.await?.map_err(|no| refused(Asked::Alter, name, no.code, &no.why))
}

/// For questions that block their thread until they are answered.
async fn blocking<T: Send + 'static>(
    admin: &Arc<Admin>,
    ask: impl FnOnce(&Client<DefaultClientContext>) -> T + Send + 'static,
) -> Result<T, LogError> {
    let admin = admin.clone();
    let asked = tokio::task::spawn_blocking(move || ask(admin.0.inner()));
    asked.await.map_err(|_| LogError::Store("the broker is stopping".to_owned()))
}

/// Kafka could not be asked at all.
fn not_asked(name: &str, error: &KafkaError) -> LogError {
    LogError::Store(format!("Kafka can't be asked about topic {name}: {error}"))
}

/// What Kafka was asked to do.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Look,
    Describe,
    Make,
    Grow,
    Alter,
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
        }
    }
}

/// Kafka was asked and said no. What may pass is worth another try.
fn refused(asked: Asked, name: &str, code: RDKafkaErrorCode, why: &str) -> LogError {
    use RDKafkaErrorCode as Code;
    let (what, right) = asked.words();
    let line = match (code, why) {
        (Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed, _) => {
            let or_so = match asked {
                Asked::Look | Asked::Describe => "",
                Asked::Make | Asked::Grow | Asked::Alter => ", or do it yourself",
            };
            format!(
                "Kafka does not let this broker {what} topic {name}: allow its user {right} on the topic{or_so}"
            )
        }
        (_, "") => format!("Kafka could not {what} topic {name}: {code}"),
        (_, why) => format!("Kafka could not {what} topic {name}: {code}: {why}"),
    };
    let passes = matches!(
        code,
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
            | Code::ThrottlingQuotaExceeded
    );
    if passes { LogError::Store(line) } else { LogError::Settings(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_does_not_have_are_refused_before_it_is_asked() {
        let long = "a".repeat(250);
        for (name, good) in [
            ("readings", true),
            ("a.b_c-D9", true),
            ("", false),
            (".", false),
            ("..", false),
            ("ä", false),
            ("a/b", false),
            (&*long, false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_a_missing_right_is_named() {
        use RDKafkaErrorCode as Code;
        for (asked, code, why, again, line) in [
            (
                Asked::Describe,
                Code::TopicAuthorizationFailed,
                "Topic authorization failed.",
                false,
                "Kafka does not let this broker see the settings of topic t: allow its user DescribeConfigs on the topic",
            ),
            (
                Asked::Grow,
                Code::TopicAuthorizationFailed,
                "",
                false,
                "Kafka does not let this broker add partitions to topic t: allow its user Alter on the topic, or do it yourself",
            ),
            (
                Asked::Alter,
                Code::PolicyViolation,
                "not here",
                false,
                "Kafka could not change the settings of topic t: PolicyViolation (Broker: Policy violation): not here",
            ),
            (
                Asked::Make,
                Code::ThrottlingQuotaExceeded,
                "",
                true,
                "Kafka could not make topic t: ThrottlingQuotaExceeded (Broker: Throttling quota has been exceeded)",
            ),
        ] {
            let error = refused(asked, "t", code, why);
            assert_eq!(error.to_string(), line);
            assert_eq!(matches!(error, LogError::Store(_)), again, "{line}");
        }
    }
}
