//! The end of a ParentTopic: its Kafka topic stays, unless `spec.deletionPolicy` is `Delete`.
//!
//! Promises: there is a finalizer only where the policy is `Delete`; a deletion never hangs on it for longer than
//! [`GIVE_UP`] while an operator runs, whatever has become of Kafka and the instance; a topic that another ParentTopic has
//! by now stays.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use mqtt_operator_api::{
    parent_topic::{DeletionPolicy, ParentTopic},
    render::ObjectName,
};
use serde_json::Value;

use super::Topics;
use crate::{
    apply::{Error, Subject},
    queue::Done,
    status::Verdict,
    watch::instance_of,
};

/// Keeps the object until its Kafka topic is deleted.
const FINALIZER: &str = "mqtt.dms.dev/kafka-topic";
/// Brokers make a topic anew that their config names. Kubelets mount a changed one within a minute and a half, so that by
/// then those know that can't be asked, too.
const BROKERS_KNOW: Duration = Duration::from_secs(100);
/// How soon it is looked again whether they do.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon it is looked again whether the instance is in force.
const MENDED: Duration = Duration::from_secs(10);
/// After that the topic stays, and the object goes.
const GIVE_UP: Duration = Duration::from_secs(300);

/// What is to be done for an object that is being deleted.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The finalizer is taken away, and the topic stays, for this reason.
    LetGo(&'static str),
    Wait(Duration),
    DeleteTopic,
}

/// What is known of the object's topic, `since` its deletion was asked for.
struct Facts {
    policy: DeletionPolicy,
    since: Duration,
    /// The instance is in force, so that its Kafka is known.
    kafka_is_known: bool,
    instance_exists: bool,
    /// Another object has the topic.
    used: bool,
    /// A broker's config may name the topic.
    named: bool,
}

fn next(facts: &Facts) -> Next {
    match facts {
        Facts { policy: DeletionPolicy::Retain, .. } => Next::LetGo("spec.deletionPolicy is Retain"),
        Facts { used: true, .. } => Next::LetGo("another ParentTopic has it"),
        Facts { instance_exists: false, .. } => {
            Next::LetGo("its instance is gone, and nothing says where Kafka is")
        }
        Facts { since, .. } if *since > GIVE_UP => Next::LetGo("Kafka could not be made to delete it"),
        Facts { named: true, since, .. } if *since < BROKERS_KNOW => Next::Wait(LOOK_AGAIN),
        Facts { kafka_is_known: false, .. } => Next::Wait(MENDED),
        Facts { .. } => Next::DeleteTopic,
    }
}

impl Topics {
    /// Sees to it that the object has the finalizer if and only if its topic goes with it.
    pub(super) async fn guard(&self, name: &ObjectName, topic: &ParentTopic) -> Result<(), Error> {
        let wanted = topic.spec.deletion_policy == DeletionPolicy::Delete;
        let has = topic.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if wanted == has { Ok(()) } else { self.set_finalizer(name, topic, wanted).await }
    }

    /// Brings the deletion of the object on its way.
    pub(super) async fn delete(&self, name: &ObjectName, topic: &ParentTopic) -> Result<Done, Error> {
        if !topic.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Done::Settled);
        }
        let instance = instance_of(topic, &topic.spec.instance_ref);
        let access = self.wants.access(&instance);
        let asked = topic.metadata.deletion_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let since = Timestamp::now().as_second().saturating_sub(asked);
        let facts = Facts {
            policy: topic.spec.deletion_policy,
            since: Duration::from_secs(u64::try_from(since).unwrap_or(0)),
            kafka_is_known: access.is_some(),
            instance_exists: self.world.instances.get(&instance.namespace, &instance.name).is_some(),
            used: self.wants.used_by_another(name, &instance, &topic.topic()),
            named: self.wants.may_be_known(&instance, &topic.topic()),
        };
        match (next(&facts), access) {
            (Next::Wait(time), _) => return Ok(Done::Again(time)),
            (Next::DeleteTopic, None) => return Ok(Done::Again(MENDED)),
            (Next::LetGo(why), _) => {
                let message = format!("Kafka topic {} stays: {why}", topic.topic());
                self.tell(name, topic, &Verdict::ready("TopicKept", message)).await;
            }
            (Next::DeleteTopic, Some(access)) => {
                let deleted = match self.client(&instance, &access) {
                    Ok(admin) => admin.delete(&topic.topic()).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = deleted {
                    self.say(topic, &Verdict::reconciling("Deleting", error.line)).await?;
                    return Ok(Done::Failed);
                }
                let message =
                    format!("Kafka topic {} is deleted, with all that was stored in it", topic.topic());
                self.tell(name, topic, &Verdict::ready("TopicDeleted", message)).await;
            }
        }
        self.set_finalizer(name, topic, false).await?;
        Ok(Done::Settled)
    }

    async fn set_finalizer(&self, name: &ObjectName, topic: &ParentTopic, there: bool) -> Result<(), Error> {
        let others = topic.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
        let finalizers: Vec<String> = others.chain(there.then(|| FINALIZER.to_owned())).collect();
        let version = topic.resource_version().unwrap_or_default();
        self.writer.set_finalizers(name, &version, &finalizers).await
    }

    async fn tell(&self, name: &ObjectName, topic: &ParentTopic, verdict: &Verdict) {
        tracing::info!("{name}: {}", verdict.message);
        let uid = topic.metadata.uid.as_deref().unwrap_or_default();
        let subject =
            Subject { object: name, uid, generation: topic.metadata.generation, seen: &Value::Null };
        self.writer.tell(&subject, verdict).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_goes_only_where_that_is_asked_for_and_nothing_hangs() {
        let seconds = Duration::from_secs;
        let good = || Facts {
            policy: DeletionPolicy::Delete,
            since: seconds(2),
            kafka_is_known: true,
            instance_exists: true,
            used: false,
            named: false,
        };
        let let_go = |facts: &Facts| matches!(next(facts), Next::LetGo(_));
        assert_eq!(next(&good()), Next::DeleteTopic);
        let named = |since| next(&Facts { named: true, since: seconds(since), ..good() });
        assert_eq!(named(99), Next::Wait(LOOK_AGAIN), "brokers are to know first");
        assert_eq!(named(100), Next::DeleteTopic, "one that can't be asked knows by now");
        assert!(let_go(&Facts { policy: DeletionPolicy::Retain, ..good() }), "the policy was changed since");
        assert!(let_go(&Facts { used: true, ..good() }), "another object has it");
        assert!(
            let_go(&Facts { instance_exists: false, since: seconds(0), ..good() }),
            "the instance is gone"
        );
        assert_eq!(
            next(&Facts { kafka_is_known: false, ..good() }),
            Next::Wait(MENDED),
            "a bad instance may be mended"
        );
        assert!(
            let_go(&Facts { since: seconds(301), kafka_is_known: false, ..good() }),
            "but is not waited for for ever"
        );
        assert!(let_go(&Facts { since: seconds(301), ..good() }), "nor is Kafka");
    }
}
