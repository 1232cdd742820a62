//! Topics in Kafka: made with all their settings, or found and held to them.
//!
//! What the manifests name (partitions, retention, size of a record) is brought in line, and nothing else of the
//! topic is touched. What carries the promise (copies, in-sync replicas, compaction, timestamps) is verified and
//! never changed silently: a topic that does not keep it is refused, in one line that says how to mend it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::alter;
use crate::log::{Cleanup, LogError, TopicSettings};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long until all of Kafka knows of a change.
const NEWS: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

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

/// One setting that a topic shall have.
#[derive(Clone, Debug, PartialEq)]
struct Setting {
    name: &'static str,
    value: String,
    rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Changed to this.
    Follow,
    /// Changed to this if it is smaller.
    Grow,
    /// Refused if it is another.
    Exactly,
    /// Refused if it is smaller.
    AtLeast,
}

/// A topic as Kafka tells it.
#[derive(Clone, Debug, Default)]
struct Existing {
    partitions: u32,
    /// Of the partition that has fewest.
    copies: u32,
    settings: HashMap<String, String>,
}

/// What is to be done about an existing topic.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    grow_to: Option<u32>,
    alter: Vec<(String, String)>,
    /// What keeps it from being used, each with its remedy's part of a command.
    wrong: Vec<String>,
    mend: Vec<String>,
}

impl Admin {
    pub(super) fn new(config: &ClientConfig) -> Result<Admin, LogError> {
        let client = config.create().map_err(|error| {
            LogError::Settings(format!(
                "Kafka: no client could be started: {error}; check spec.kafka and its Secrets"
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
    let wanted = wanted(settings, u32::from(copies));
    let until = Instant::now() + NEWS;
    let mut made = false;
    let configs = loop {
        if let Some(configs) = describe(admin, name).await? {
            break configs;
        }
        made |= make(admin, name, settings.partitions, copies, &wanted).await?;
        if Instant::now() > until {
            return Err(LogError::Store(format!(
                "Kafka has topic {name} and does not tell its settings: give the broker's user DescribeConfigs"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let settings_of = |configs: ConfigResource| {
        configs.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    };
    let mut existing = Existing { settings: settings_of(configs), ..Existing::default() };
    let least = if made { settings.partitions } else { 1 };
    (existing.partitions, existing.copies) = layout(admin, name, least, until).await?;
    let plan = plan(&existing, &wanted, settings.partitions, u32::from(copies));
    if !plan.wrong.is_empty() {
        return Err(LogError::Settings(plan.complaint(name)));
    }
    if let Some(partitions) = plan.grow_to {
        grow(admin, name, partitions).await?;
        (existing.partitions, _) = layout(admin, name, partitions, until).await?;
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

/// In-sync replicas without which nothing is acknowledged: what is acknowledged survives the loss of a node wherever
/// there are two copies or more, and half of the nodes but one may be away.
fn min_in_sync(copies: u32) -> u32 {
    copies / 2 + 1
}

fn wanted(settings: TopicSettings, copies: u32) -> Vec<Setting> {
    let setting = |name, rule, value: String| Setting { name, value, rule };
    let mut wanted = vec![
        setting("min.insync.replicas", Rule::AtLeast, min_in_sync(copies).to_string()),
        setting("unclean.leader.election.enable", Rule::Exactly, "false".into()),
        setting("max.message.bytes", Rule::Grow, settings.record_bytes.to_string()),
    ];
    let exactly = |name, value: &str| setting(name, Rule::Exactly, value.into());
    let or_never = |limit: Option<u128>| limit.map_or("-1".into(), |limit| limit.to_string());
    match settings.cleanup {
        Cleanup::Retention { age, bytes } => wanted.extend([
            exactly("cleanup.policy", "delete"),
            setting("retention.ms", Rule::Follow, or_never(age.map(|age| age.as_millis()))),
            setting("retention.bytes", Rule::Follow, or_never(bytes.map(u128::from))),
        ]),
        Cleanup::KeepLatest => wanted.extend([
            exactly("cleanup.policy", "compact"),
            exactly("message.timestamp.type", "CreateTime"),
            exactly("message.timestamp.before.max.ms", "300000"),
            exactly("message.timestamp.after.max.ms", "300000"),
            exactly("min.compaction.lag.ms", "60000"),
            exactly("max.compaction.lag.ms", "600000"),
            exactly("segment.bytes", "33554432"),
            exactly("min.cleanable.dirty.ratio", "0.2"),
            exactly("delete.retention.ms", "900000"),
        ]),
    }
    wanted
}

/// What an existing topic lacks.
fn plan(existing: &Existing, wanted: &[Setting], partitions: u32, copies: u32) -> Plan {
    let mut plan =
        Plan { grow_to: (existing.partitions < partitions).then_some(partitions), ..Plan::default() };
    if existing.copies < copies {
        plan.wrong.push(format!("{} copies instead of {copies}", existing.copies));
    }
    for Setting { name, value, rule } in wanted {
        let is = existing.settings.get(*name).map_or("", String::as_str);
        let smaller = || match (is.parse::<f64>(), value.parse::<f64>()) {
            (Ok(is), Ok(wanted)) => is < wanted,
            _ => true,
        };
        match rule {
            Rule::Follow if !same(is, value) => plan.alter.push(((*name).to_owned(), value.clone())),
            Rule::Grow if smaller() => plan.alter.push(((*name).to_owned(), value.clone())),
            Rule::Exactly if !same(is, value) => plan.refuse(name, is, value),
            Rule::AtLeast if smaller() => plan.refuse(name, is, value),
            Rule::Follow | Rule::Grow | Rule::Exactly | Rule::AtLeast => {}
        }
    }
    // More in-sync replicas than there are copies: nothing would ever be acknowledged.
    let in_sync = existing.settings.get("min.insync.replicas").and_then(|value| value.parse().ok());
    if let Some(in_sync) = in_sync.filter(|in_sync: &u32| *in_sync > existing.copies) {
        plan.refuse("min.insync.replicas", &in_sync.to_string(), &min_in_sync(existing.copies).to_string());
    }
    plan
}

/// Numbers are compared as numbers.
fn same(one: &str, other: &str) -> bool {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => (one - other).abs() < 1e-9,
        _ => one == other,
    }
}

impl Plan {
    fn refuse(&mut self, name: &str, is: &str, wanted: &str) {
        self.wrong.push(match is {
            "" => format!("no {name}, which Kafka 3.6 and later have"),
            is => format!("{name}={is} instead of {wanted}"),
        });
        self.mend.push(format!("{name}={wanted}"));
    }

    /// One line: what is wrong and what mends it.
    fn complaint(&self, topic: &str) -> String {
        let mut line = format!("Kafka topic {topic} has {}", self.wrong.join(", "));
        if !self.mend.is_empty() {
            line += &format!(
                "; mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {topic} --add-config {}",
                self.mend.join(",")
            );
        }
        if self.wrong.len() > self.mend.len() {
            line += "; more copies are made with kafka-reassign-partitions.sh";
        }
        line
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// The topic's settings; none if there is no such topic, or none that may be seen.
async fn describe(admin: &Admin, name: &str) -> Result<Option<ConfigResource>, LogError> {
    let asked = admin.0.describe_configs(&[ResourceSpecifier::Topic(name)], &options()).await;
    match asked.map_err(|error| not_asked(name, &error))?.pop() {
        // rdkafka drops the error of a single topic; without it there would be settings.
        Some(Ok(configs)) => Ok(Some(configs).filter(|configs| !configs.entries.is_empty())),
        Some(Err(code)) => Err(refused("describe the settings of", name, code, "")),
        None => Err(LogError::Store(format!("Kafka said nothing about topic {name}"))),
    }
}

/// False if the topic is there already.
async fn make(
    admin: &Admin,
    name: &str,
    partitions: u32,
    copies: u16,
    wanted: &[Setting],
) -> Result<bool, LogError> {
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(i32::from(copies)));
    let topic = wanted.iter().fold(topic, |topic, Setting { name, value, .. }| topic.set(name, value));
    let asked = admin.0.create_topics(&[topic], &options()).await;
    match asked.map_err(|error| not_asked(name, &error))?.pop() {
        Some(Ok(_)) => {
            tracing::info!("Kafka: topic {name} made: {partitions} partitions, {copies} copies");
            Ok(true)
        }
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, code @ RDKafkaErrorCode::InvalidReplicationFactor))) => {
            let what = format!("with {copies} copies");
            Err(refused(
                "make",
                name,
                code,
                &format!("{what}: start more Kafka nodes, or lower spec.kafka.replicationFactor"),
            ))
        }
        Some(Err((_, code @ RDKafkaErrorCode::InvalidConfig))) => {
            Err(refused("make", name, code, "as it must be: Kafka 3.6 or later is needed"))
        }
        Some(Err((_, code))) => Err(refused("make", name, code, "")),
        None => Err(LogError::Store(format!("Kafka said nothing about topic {name}"))),
    }
}

/// Partitions and copies, once there are so many partitions, each with a leader if the topic is new.
async fn layout(admin: &Arc<Admin>, name: &str, least: u32, until: Instant) -> Result<(u32, u32), LogError> {
    loop {
        let (client, topic) = (admin.clone(), name.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = client.0.inner().fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
            let led = partitions.iter().filter(|partition| partition.leader() >= 0).count();
            let copies = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            Ok::<_, KafkaError>((partitions.len(), led, copies))
        });
        let asked = asked.await.map_err(|_| LogError::Store("the broker is stopping".to_owned()))?;
        let (partitions, led, copies) = asked.map_err(|error| not_asked(name, &error))?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        if count(partitions) >= least && (least <= 1 || led == partitions) {
            return Ok((count(partitions), count(copies)));
        }
        if Instant::now() > until {
            return Err(LogError::Store(format!(
                "Kafka: topic {name} has {led} partitions with a leader, {least} are needed"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn grow(admin: &Admin, name: &str, partitions: u32) -> Result<(), LogError> {
    let wanted = NewPartitions::new(name, usize::try_from(partitions).unwrap_or(usize::MAX));
    let asked = admin.0.create_partitions(&[wanted], &options()).await;
    match asked.map_err(|error| not_asked(name, &error))?.pop() {
        Some(Err((_, code))) => Err(refused("add partitions to", name, code, "")),
        _ => {
            tracing::info!("Kafka: topic {name} grew to {partitions} partitions");
            Ok(())
        }
    }
}

async fn alter_settings(
    admin: &Arc<Admin>,
    name: &str,
    settings: &[(String, String)],
) -> Result<(), LogError> {
    let (client, topic, settings) = (admin.clone(), name.to_owned(), settings.to_vec());
    let asked =
        tokio::task::spawn_blocking(move || alter::set(client.0.inner(), &topic, &settings, PATIENCE));
    let asked = asked.await.map_err(|_| LogError::Store("the broker is stopping".to_owned()))?;
    asked.map_err(|error| refused("change the settings of", name, error.code, &error.why))
}

fn pairs(settings: &[(String, String)]) -> String {
    let pairs: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(", ")
}

/// Kafka could not be asked at all.
fn not_asked(name: &str, error: &KafkaError) -> LogError {
    LogError::Store(format!("Kafka can't be asked about topic {name}: {error}"))
}

/// Kafka was asked and said no. What may pass is worth another try.
fn refused(what: &str, name: &str, code: RDKafkaErrorCode, why: &str) -> LogError {
    use RDKafkaErrorCode as Code;
    let line = match (code, why) {
        (Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed, _) => {
            format!(
                "Kafka does not let this broker {what} topic {name}: give its user the right, or make the topic yourself"
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
            | Code::NotController
            | Code::LeaderNotAvailable
            | Code::AllBrokersDown
    );
    if passes { LogError::Store(line) } else { LogError::Settings(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READINGS: TopicSettings = TopicSettings {
        partitions: 3,
        cleanup: Cleanup::Retention { age: Some(Duration::from_secs(60)), bytes: None },
        record_bytes: 2_000_000,
    };
    const NOTES: TopicSettings =
        TopicSettings { partitions: 3, cleanup: Cleanup::KeepLatest, record_bytes: 1_048_588 };

    /// The plan for a topic that is as asked for but for `change`.
    fn check(
        what: &str,
        settings: TopicSettings,
        change: impl Fn(&mut Existing),
        grow_to: Option<u32>,
        alter: &[(&str, &str)],
        complaint: Option<&str>,
    ) {
        let wanted = wanted(settings, 3);
        let values = wanted.iter().map(|setting| (setting.name.to_owned(), setting.value.clone()));
        let mut existing = Existing { partitions: 3, copies: 3, settings: values.collect() };
        change(&mut existing);
        let plan = plan(&existing, &wanted, 3, 3);
        assert_eq!(plan.grow_to, grow_to, "{what}");
        let alter: Vec<(String, String)> =
            alter.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(plan.alter, alter, "{what}");
        let found = (!plan.wrong.is_empty()).then(|| plan.complaint("t"));
        assert_eq!(found.as_deref(), complaint, "{what}");
    }

    fn set(existing: &mut Existing, name: &str, value: &str) {
        existing.settings.insert(name.to_owned(), value.to_owned());
    }

    #[test]
    fn what_the_manifests_name_is_brought_in_line_and_what_carries_the_promise_is_verified() {
        check("as asked", READINGS, |_| {}, None, &[], None);
        check("as asked, compacted", NOTES, |_| {}, None, &[], None);
        check("too few partitions", READINGS, |t| t.partitions = 1, Some(3), &[], None);
        check("more partitions", READINGS, |t| t.partitions = 6, None, &[], None);
        check("a larger record", READINGS, |t| set(t, "max.message.bytes", "9000000"), None, &[], None);
        check("all in sync", READINGS, |t| set(t, "min.insync.replicas", "3"), None, &[], None);
        check(
            "a ratio in other words",
            NOTES,
            |t| set(t, "min.cleanable.dirty.ratio", "0.20"),
            None,
            &[],
            None,
        );
        check(
            "another retention, a smaller record",
            READINGS,
            |t| {
                set(t, "retention.ms", "604800000");
                set(t, "max.message.bytes", "1000");
            },
            None,
            &[("max.message.bytes", "2000000"), ("retention.ms", "60000")],
            None,
        );
        check(
            "what loses acknowledged messages",
            READINGS,
            |t| {
                set(t, "min.insync.replicas", "1");
                set(t, "unclean.leader.election.enable", "true");
            },
            None,
            &[],
            Some(
                "Kafka topic t has min.insync.replicas=1 instead of 2, unclean.leader.election.enable=true instead of false; mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name t --add-config min.insync.replicas=2,unclean.leader.election.enable=false",
            ),
        );
        check(
            "what never acknowledges",
            READINGS,
            |t| set(t, "min.insync.replicas", "4"),
            None,
            &[],
            Some(
                "Kafka topic t has min.insync.replicas=4 instead of 2; mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name t --add-config min.insync.replicas=2",
            ),
        );
        check(
            "too few copies",
            READINGS,
            |t| t.copies = 2,
            None,
            &[],
            Some(
                "Kafka topic t has 2 copies instead of 3; more copies are made with kafka-reassign-partitions.sh",
            ),
        );
        check(
            "a compacted topic that is not",
            NOTES,
            |t| set(t, "cleanup.policy", "delete"),
            None,
            &[],
            Some(
                "Kafka topic t has cleanup.policy=delete instead of compact; mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name t --add-config cleanup.policy=compact",
            ),
        );
        check(
            "a Kafka before 3.6",
            NOTES,
            |t| drop(t.settings.remove("message.timestamp.before.max.ms")),
            None,
            &[],
            Some(
                "Kafka topic t has no message.timestamp.before.max.ms, which Kafka 3.6 and later have; mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name t --add-config message.timestamp.before.max.ms=300000",
            ),
        );
    }

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
    fn durability_follows_the_number_of_copies() {
        for (copies, in_sync) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
            assert_eq!(min_in_sync(copies), in_sync, "{copies} copies");
        }
    }
}
