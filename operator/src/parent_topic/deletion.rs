//! The end of a ParentTopic: its Kafka topic stays, unless `spec.deletionPolicy` is `Delete`.
//!
//! Promises: nothing holds up the deletion of the object, for there is no finalizer: that the topic goes with it is remembered
//! beforehand ([`Keeper`]), wherever the operator is when it goes; a topic that another ParentTopic has by now stays; where the
//! instance is gone, too, it is its own policy that counts.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use mqtt_operator_api::{parent_topic::ParentTopic, render::ObjectName};
use serde_json::Value;
use tokio::time::Instant;

use super::Topics;
use crate::{
    apply::{Error, Subject},
    queue::Done,
    status::Verdict,
};

/// What kept the object until its topic was deleted, in an earlier version. Nobody would take it away.
const FINALIZER: &str = "mqtt.dms.dev/kafka-topic";
/// A namespace that goes takes its objects one after the other, the instance perhaps last.
const INSTANCE_GOES_TOO: Duration = Duration::from_secs(60);
/// Brokers make a topic anew that their config names. Kubelets mount a changed one within a minute and a half, so that by
/// then those know that can't be asked, too.
const BROKERS_KNOW: Duration = Duration::from_secs(100);
/// How soon it is looked again whether they do.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon it is looked again whether the instance is in force.
const MENDED: Duration = Duration::from_secs(10);
/// The longest that nothing is looked at, as clocks may be moved.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is to be done for an object that is gone.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The topic stays, for another ParentTopic has it.
    LetGo,
    Wait(Duration),
    DeleteTopic,
}

/// What is known of the object's topic, `since` the object was seen to be gone.
struct Facts {
    since: Duration,
    /// It was of an instance before, and may be taken back for so long.
    kept_for: Duration,
    /// The instance is in force, so that its Kafka is known.
    kafka_is_known: bool,
    /// Another object has the topic.
    used: bool,
    /// A broker's config may name the topic.
    named: bool,
}

fn next(facts: &Facts) -> Next {
    match facts {
        Facts { used: true, .. } => Next::LetGo,
        Facts { kept_for, .. } if !kept_for.is_zero() => Next::Wait((*kept_for).min(LONGEST)),
        Facts { since, .. } if *since < INSTANCE_GOES_TOO => Next::Wait(LOOK_AGAIN),
        Facts { named: true, since, .. } if *since < BROKERS_KNOW => Next::Wait(LOOK_AGAIN),
        Facts { kafka_is_known: false, .. } => Next::Wait(MENDED),
        Facts { .. } => Next::DeleteTopic,
    }
}

impl Topics {
    /// Takes away what an earlier version has put in the way of the object's deletion.
    pub(super) async fn free(&self, name: &ObjectName, topic: &ParentTopic) -> Result<(), Error> {
        let (ours, others): (Vec<_>, Vec<_>) =
            topic.finalizers().iter().cloned().partition(|finalizer| finalizer == FINALIZER);
        if ours.is_empty() {
            return Ok(());
        }
        let version = topic.resource_version().unwrap_or_default();
        self.writer.set_finalizers(name, &version, &others).await
    }

    /// Deletes the topic that goes with an object which is gone, once that does no harm.
    pub(super) async fn delete(&self, name: &ObjectName) -> Result<Done, Error> {
        if self.world.was_to_stay(name) {
            self.keeper.forget_topic(name).await?;
        }
        let Some((instance, topic, of)) = self.keeper.topic_of(name) else {
            self.gone.lock().remove(name);
            return Ok(Done::Settled);
        };
        let since = self.gone.lock().entry(name.clone()).or_insert_with(Instant::now).elapsed();
        let access = self.wants.access(&instance);
        let left = of.until.map_or(0, |until| until.saturating_sub(Timestamp::now().as_second()));
        let facts = Facts {
            since,
            kept_for: Duration::from_secs(u64::try_from(left).unwrap_or(0)),
            kafka_is_known: access.is_some(),
            used: self.wants.used_by_another(name, &instance, &topic)
                || self.world.has_topic(&instance, &topic),
            named: self.wants.may_be_known(&instance, &topic),
        };
        let verdict = match (next(&facts), access) {
            (Next::Wait(time), _) => return Ok(Done::Again(time)),
            (Next::DeleteTopic, None) => return Ok(Done::Again(MENDED)),
            (Next::LetGo, _) => {
                Verdict::ready("TopicKept", format!("Kafka topic {topic} stays: another ParentTopic has it"))
            }
            (Next::DeleteTopic, Some(access)) => {
                // A watch may lag behind, or see less than it did.
                if self.writer.is_there(name).await? || !self.writer.is_there(&instance).await? {
                    return Ok(Done::Again(MENDED));
                }
                self.writer.leads()?;
                let deleted = match self.client(&instance, &access) {
                    Ok(admin) => admin.delete(&topic).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = deleted {
                    tracing::warn!(
                        "{name} is gone, and its Kafka topic {topic} is still to be deleted: {}",
                        error.line
                    );
                    return Ok(Done::Failed);
                }
                self.writer.step(&format!("delete Kafka topic {topic}"));
                let message = format!("Kafka topic {topic} is deleted, with all that was stored in it");
                Verdict::ready("TopicDeleted", message)
            }
        };
        self.keeper.forget_topic(name).await?;
        self.gone.lock().remove(name);
        tracing::info!("{name}: {}", verdict.message);
        let subject = Subject { object: name, uid: &of.uid, generation: None, seen: &Value::Null };
        self.writer.tell(&subject, &verdict).await;
        Ok(Done::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_goes_once_no_broker_makes_it_anew_and_not_with_its_namespace() {
        let seconds = Duration::from_secs;
        let good = || Facts {
            since: seconds(60),
            kept_for: Duration::ZERO,
            kafka_is_known: true,
            used: false,
            named: false,
        };
        assert_eq!(next(&good()), Next::DeleteTopic);
        assert_eq!(
            next(&Facts { since: seconds(59), ..good() }),
            Next::Wait(LOOK_AGAIN),
            "the instance may be about to go, too"
        );
        let named = |since| next(&Facts { named: true, since: seconds(since), ..good() });
        assert_eq!(named(99), Next::Wait(LOOK_AGAIN), "brokers are to know first");
        assert_eq!(named(100), Next::DeleteTopic, "one that can't be asked knows by now");
        assert_eq!(next(&Facts { used: true, ..good() }), Next::LetGo, "another object has it");
        assert_eq!(
            next(&Facts { kafka_is_known: false, ..good() }),
            Next::Wait(MENDED),
            "a bad instance may be mended"
        );
        for (kept_for, expected) in [(7, 7), (100_000, 3_600)] {
            let facts = Facts { kept_for: seconds(kept_for), ..good() };
            assert_eq!(next(&facts), Next::Wait(seconds(expected)), "it may be taken back");
        }
    }
}
