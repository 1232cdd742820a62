//! One ParentTopic: from the object to the Kafka topic that keeps its records, and to what is said on the object.
//!
//! | reason | whose turn | when |
//! |---|---|---|
//! | `Created` | nobody's | the operator made the Kafka topic |
//! | `Adopted` | nobody's | it was there before, and does what is asked of it |
//! | `Loading` | ours | brokers do not know yet that it is a parent |
//! | `KafkaUnreachable` | ours | Kafka could not be asked, or can't do it now |
//! | `KafkaAccess` | a person's | no connection can be made of `spec.kafka` |
//! | `KafkaForbidden`, `KafkaRefused` | a person's | Kafka does not allow it, or can't do it |
//! | `TopicUnfit` | a person's | the topic is there, and does not keep what it has to |
//!
//! [`clients`] has the clients that ask it. [`wants`] tells what Kafka shall have: of objects that are in force alone.

pub mod clients;
mod deletion;
pub mod wants;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::Resource as _;
use mqtt_kafka::{Admin, Fault, Found, TopicSettings};
use mqtt_operator_api::{
    Kind,
    parent_topic::{DeletionPolicy, ParentTopic},
    render::{ObjectName, name_of},
    status::READY,
};
use parking_lot::Mutex;
use serde_json::{Map, json};
use tokio::time::Instant;

pub use self::{
    clients::Clients,
    wants::{Access, Wanted, Wants},
};
use crate::{
    apply::{Error, Subject, Writer},
    kept::Keeper,
    queue::Done,
    status::{Enforced, Verdict, is_ready},
    watch::World,
};

const CREATED: &str = "Created";

/// The Kafka topics of all instances.
pub struct Topics {
    world: Arc<World>,
    writer: Arc<Writer>,
    wants: Arc<Wants>,
    resync: std::time::Duration,
    clients: Arc<Clients>,
    /// UIDs of objects whose topic was made by this process: their status may not have been seen to say so.
    made: Mutex<HashSet<String>>,
    keeper: Arc<Keeper>,
    /// Objects whose topic is still to be deleted, and when they were seen to be gone.
    gone: Mutex<HashMap<ObjectName, Instant>>,
}

impl Topics {
    pub fn new(
        world: Arc<World>,
        writer: Arc<Writer>,
        wants: Arc<Wants>,
        clients: Arc<Clients>,
        keeper: Arc<Keeper>,
        resync: std::time::Duration,
    ) -> Self {
        Self { world, writer, wants, resync, clients, made: Mutex::default(), keeper, gone: Mutex::default() }
    }

    /// Brings the topic of one object in line: made, adopted, grown, its settings put back. Takes a minute at most.
    pub async fn reconcile(&self, name: &ObjectName) -> Result<Done, Error> {
        let found = self.world.topics.get(&name.namespace, &name.name);
        let topic = match found.as_ref().map(|found| &found.0) {
            Some(Ok(topic)) => topic,
            Some(Err(invalid)) => {
                crate::invalid::say(&self.writer, name, invalid).await?;
                return Ok(Done::Settled);
            }
            None => return self.delete(name).await,
        };
        self.gone.lock().remove(name);
        self.free(name, topic).await?;
        if topic.metadata.deletion_timestamp.is_some() {
            return Ok(Done::Settled);
        }
        if topic.spec.deletion_policy == DeletionPolicy::Retain {
            self.keeper.forget_topic(name).await?;
        }
        // Of what is not in force the instance's loop speaks.
        let Some((instance, wanted)) = self.wants.get(name) else { return Ok(Done::Settled) };
        let outcome = self.ensure(&instance, &wanted).await;
        // Meanwhile it may have lost its name to another object, or its instance.
        if self.wants.get(name).is_none() {
            return Ok(Done::Settled);
        }
        let created = self.was_created(topic, &outcome);
        let known = self.is_in_force(topic, &instance, &wanted);
        let enforced = if known {
            Enforced::everywhere("every broker has it as a parent topic")
        } else {
            Enforced::no("Loading", format!("it is on its way to the brokers of {instance}"))
        };
        let verdict = if outcome.is_ok() && !known {
            let message = format!(
                "Kafka topic {} is there, and on its way to the brokers of {instance}",
                wanted.parent.topic
            );
            Verdict::reconciling("Loading", message)
        } else {
            verdict(&wanted, &outcome, created, &instance)
        };
        self.say(topic, &verdict.with(enforced)).await?;
        Ok(if outcome.is_ok() {
            Done::Again(self.resync.mul_f64(1.0 + 0.1 * fastrand::f64()))
        } else {
            Done::Failed
        })
    }

    /// Whether every broker stores what comes under the topic. After a start of the operator a status counts until they
    /// were asked.
    fn is_in_force(&self, topic: &ParentTopic, instance: &ObjectName, wanted: &Wanted) -> bool {
        let said =
            || topic.status.as_ref().is_some_and(|status| is_ready(&status.conditions, wanted.generation));
        self.wants.is_known(instance, &wanted.parent.topic).unwrap_or_else(said)
    }

    async fn ensure(&self, instance: &ObjectName, wanted: &Wanted) -> Result<Found, mqtt_kafka::Error> {
        let admin = self.client(instance, &wanted.access)?;
        let settings = TopicSettings::of_parent(&wanted.parent, wanted.packet_size);
        let copies = wanted.access.kafka.replication_factor;
        let found = mqtt_kafka::ensure(&admin, &wanted.parent.topic, settings, copies).await;
        if found.as_ref().is_ok_and(|found| found.made) {
            self.writer.step(&format!("make Kafka topic {}", wanted.parent.topic));
        }
        found
    }

    fn client(&self, instance: &ObjectName, access: &Access) -> Result<Admin, mqtt_kafka::Error> {
        let used = self.wants.instances();
        self.clients.get(instance, access, |instance| used.contains(instance))
    }

    /// Whether the operator made the Kafka topic, now or before.
    fn was_created(&self, topic: &ParentTopic, outcome: &Result<Found, mqtt_kafka::Error>) -> bool {
        let uid = topic.metadata.uid.as_deref().unwrap_or_default();
        let mut made = self.made.lock();
        if outcome.as_ref().is_ok_and(|found| found.made) {
            made.insert(uid.to_owned());
        }
        let conditions = topic.status.iter().flat_map(|status| &status.conditions);
        made.contains(uid)
            || conditions.into_iter().any(|condition| condition.type_ == READY && condition.reason == CREATED)
    }

    async fn say(&self, topic: &ParentTopic, verdict: &Verdict) -> Result<(), Error> {
        let (name, seen) = (name_of(Kind::ParentTopic, topic), json!(topic.status));
        let metadata = topic.meta();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let subject = Subject { object: &name, uid, generation: metadata.generation, seen: &seen };
        self.writer.say(&subject, verdict, Map::new()).await.map(drop)
    }
}

fn verdict(
    wanted: &Wanted,
    outcome: &Result<Found, mqtt_kafka::Error>,
    was_created: bool,
    instance: &ObjectName,
) -> Verdict {
    let topic = &wanted.parent.topic;
    let error = match outcome {
        Ok(Found { partitions, .. }) => {
            let more = if *partitions > wanted.parent.partitions {
                format!(", more than the {} asked for; Kafka can't take any away", wanted.parent.partitions)
            } else {
                String::new()
            };
            return if was_created {
                Verdict::ready(CREATED, format!("Kafka topic {topic} has {partitions} partitions{more}"))
            } else {
                let message = format!(
                    "Kafka topic {topic} was there before, and is used; it has {partitions} partitions{more}"
                );
                Verdict::ready("Adopted", message)
            };
        }
        Err(error) => error,
    };
    let line = error.line.clone();
    match error.fault {
        Fault::Passing => Verdict::reconciling(
            "KafkaUnreachable",
            format!("{line}; if Kafka is up, check spec.kafka of {instance}"),
        ),
        Fault::Access => Verdict::stalled("KafkaAccess", line),
        Fault::Forbidden => Verdict::stalled("KafkaForbidden", line),
        Fault::Refused => Verdict::stalled("KafkaRefused", line),
        Fault::Unfit => Verdict::stalled("TopicUnfit", line),
    }
}

#[cfg(test)]
mod tests {
    use mqtt_broker_api::config::{Kafka, KafkaSecrets, Ordering, Parent, Retention};

    use super::*;
    use crate::status::Turn;

    #[test]
    fn it_is_told_whether_a_topic_was_made_or_found_and_whose_turn_it_is_where_it_is_not_there() {
        let kafka = Kafka {
            bootstrap_servers: vec!["kafka:9092".into()],
            replication_factor: 1,
            rack: None,
            tls: None,
            sasl: None,
        };
        let wanted = Wanted {
            generation: Some(1),
            parent: Parent {
                topic: "readings".into(),
                ordering: Ordering::Normal,
                partitions: 3,
                retention: Retention::default(),
            },
            packet_size: 1024,
            access: Arc::new(Access { kafka, secrets: KafkaSecrets::default() }),
        };
        let instance =
            ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: "meters".into() };
        let found = |made, partitions| Ok(Found { partitions, max_record: 1, min_in_sync: 1, made });
        let failed = |fault| Err(mqtt_kafka::Error { fault, line: "Kafka says no".into() });
        for (outcome, was_created, turn, reason, message) in [
            (found(true, 3), true, Turn::Nobody, "Created", "Kafka topic readings has 3 partitions"),
            (found(false, 3), true, Turn::Nobody, "Created", "Kafka topic readings has 3 partitions"),
            (
                found(false, 3),
                false,
                Turn::Nobody,
                "Adopted",
                "Kafka topic readings was there before, and is used; it has 3 partitions",
            ),
            (
                found(false, 5),
                false,
                Turn::Nobody,
                "Adopted",
                "Kafka topic readings was there before, and is used; it has 5 partitions, more than the 3 asked for; Kafka can't take any away",
            ),
            (
                failed(Fault::Passing),
                true,
                Turn::Ours,
                "KafkaUnreachable",
                "Kafka says no; if Kafka is up, check spec.kafka of MqttInstance plant/meters",
            ),
            (failed(Fault::Access), true, Turn::Theirs, "KafkaAccess", "Kafka says no"),
            (failed(Fault::Forbidden), true, Turn::Theirs, "KafkaForbidden", "Kafka says no"),
            (failed(Fault::Refused), true, Turn::Theirs, "KafkaRefused", "Kafka says no"),
            (failed(Fault::Unfit), true, Turn::Theirs, "TopicUnfit", "Kafka says no"),
        ] {
            let found = verdict(&wanted, &outcome, was_created, &instance);
            assert_eq!(found, Verdict::new(turn, reason, message), "{outcome:?}");
        }
    }
}
