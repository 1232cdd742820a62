//! What a topic must be like, and what an existing one lacks: decided without asking Kafka.
//!
//! What the manifests name is changed; what carries the promise is only refused, with the command that mends it.

use std::collections::HashMap;

use crate::settings::{Cleanup, TopicSettings};

/// Kafka's own default of the largest record (batch); topics take no less.
pub(crate) const SMALLEST_RECORD_BYTES: u32 = 1_048_588;

/// One setting that a topic shall have.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub name: &'static str,
    pub value: String,
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
pub struct Existing {
    pub partitions: u32,
    /// Of the partition that has fewest.
    pub copies: u32,
    pub settings: HashMap<String, String>,
}

/// What is to be done about an existing topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub grow_to: Option<u32>,
    pub alter: Vec<(String, String)>,
    /// What keeps it from being used, each with its remedy's part of a command.
    pub wrong: Vec<String>,
    mend: Vec<String>,
}

/// In-sync replicas without which nothing is acknowledged: what is acknowledged survives the loss of a node wherever
/// there are two copies or more, and half of the nodes but one may be away.
fn min_in_sync(copies: u32) -> u32 {
    copies / 2 + 1
}

/// Every setting that a topic is made with, and what is done where an existing one differs.
pub fn wanted(settings: TopicSettings, copies: u32) -> Vec<Setting> {
    let setting = |name, rule, value: String| Setting { name, value, rule };
    let mut wanted = vec![
        setting("min.insync.replicas", Rule::AtLeast, min_in_sync(copies).to_string()),
        setting("unclean.leader.election.enable", Rule::Exactly, "false".into()),
        setting(
            "max.message.bytes",
            Rule::Grow,
            settings.record_bytes.max(SMALLEST_RECORD_BYTES).to_string(),
        ),
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
pub fn plan(existing: &Existing, wanted: &[Setting], partitions: u32, copies: u32) -> Plan {
    let mut plan =
        Plan { grow_to: (existing.partitions < partitions).then_some(partitions), ..Plan::default() };
    if existing.copies < copies {
        plan.wrong.push(format!("replication factor {} instead of {copies}", existing.copies));
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
    pub fn complaint(&self, topic: &str) -> String {
        let mut remedies = Vec::new();
        if self.wrong.len() > self.mend.len() {
            remedies.push("raise the replication factor with kafka-reassign-partitions.sh".to_owned());
        }
        if !self.mend.is_empty() {
            remedies.push(format!(
                "mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {topic} --add-config {}",
                self.mend.join(",")
            ));
        }
        format!("Kafka topic {topic} has {}; {}", self.wrong.join(", "), remedies.join(", then "))
    }
}

pub fn pairs(settings: &[(String, String)]) -> String {
    let pairs: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
                "Kafka topic t has replication factor 2 instead of 3; raise the replication factor with kafka-reassign-partitions.sh",
            ),
        );
        check(
            "one copy, and no two in sync: they are there before they are asked for",
            READINGS,
            |t| {
                t.copies = 1;
                set(t, "min.insync.replicas", "1");
            },
            None,
            &[],
            Some(
                "Kafka topic t has replication factor 1 instead of 3, min.insync.replicas=1 instead of 2; raise the replication factor with kafka-reassign-partitions.sh, then mend it with kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name t --add-config min.insync.replicas=2",
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
    fn durability_follows_the_number_of_copies() {
        for (copies, in_sync) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
            assert_eq!(min_in_sync(copies), in_sync, "{copies} copies");
        }
    }
}
