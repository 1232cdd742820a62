//! What Kafka shall have for each ParentTopic that is in force, as the rendering of its instance says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use mqtt_broker_api::config::{Kafka, KafkaSecrets, Parent};
use mqtt_operator_api::render::ObjectName;
use parking_lot::Mutex;

use crate::queue::Queue;

/// What Kafka shall have for one ParentTopic.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The object's `metadata.generation`.
    pub generation: Option<i64>,
    /// The same as the instance's brokers are told.
    pub parent: Parent,
    pub packet_size: u32,
    pub access: Arc<Access>,
}

/// How the Kafka of an instance is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    pub kafka: Kafka,
    pub secrets: KafkaSecrets,
}

/// Without the secrets.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({:?})", self.kafka)
    }
}

/// Kafka topics that the brokers of an instance know as parents: all of them, or some.
struct Known {
    by_all: BTreeSet<String>,
    by_some: BTreeSet<String>,
}

pub struct Wants {
    queue: Arc<Queue>,
    /// By ParentTopic; with the instance that wants it.
    all: Mutex<HashMap<ObjectName, (ObjectName, Wanted)>>,
    /// By instance.
    accesses: Mutex<HashMap<ObjectName, Arc<Access>>>,
    /// By instance. Absent: its brokers were not asked so far.
    known: Mutex<HashMap<ObjectName, Known>>,
}

impl Wants {
    pub fn new(queue: Arc<Queue>) -> Self {
        Self { queue, all: Mutex::default(), accesses: Mutex::default(), known: Mutex::default() }
    }

    /// All that an instance wants; what has changed goes in the queue.
    pub fn set(&self, instance: &ObjectName, access: &Arc<Access>, wanted: BTreeMap<ObjectName, Wanted>) {
        self.accesses.lock().insert(instance.clone(), access.clone());
        self.replace(instance, wanted);
    }

    fn replace(&self, instance: &ObjectName, wanted: BTreeMap<ObjectName, Wanted>) {
        let mut all = self.all.lock();
        all.retain(|topic, (of, _)| of != instance || wanted.contains_key(topic));
        for (topic, wanted) in wanted {
            if all.get(&topic).is_some_and(|(of, same)| of == instance && *same == wanted) {
                continue;
            }
            all.insert(topic.clone(), (instance.clone(), wanted));
            self.queue.add_after(topic, Duration::ZERO);
        }
    }

    /// The instance is not in force.
    pub fn clear(&self, instance: &ObjectName) {
        self.accesses.lock().remove(instance);
        self.replace(instance, BTreeMap::new());
    }

    /// The instance is gone.
    pub fn release(&self, instance: &ObjectName) {
        self.clear(instance);
        self.known.lock().remove(instance);
    }

    /// Brokers of an instance may load a config with these parents from now on.
    pub fn loading(&self, instance: &ObjectName, parents: BTreeSet<String>) {
        if let Some(known) = self.known.lock().get_mut(instance) {
            known.by_some.extend(parents);
        }
    }

    /// All brokers of an instance have a config in force that has these parents, and no others. What is new among them goes
    /// in the queue.
    pub fn loaded(&self, instance: &ObjectName, parents: BTreeSet<String>) {
        let known = Known { by_all: parents.clone(), by_some: parents.clone() };
        let before = self.known.lock().insert(instance.clone(), known);
        let is_new = |topic: &str| {
            parents.contains(topic) && before.as_ref().is_none_or(|before| !before.by_all.contains(topic))
        };
        let all = self.all.lock();
        let new = all.iter().filter(|(_, (of, wanted))| of == instance && is_new(&wanted.parent.topic));
        new.for_each(|(topic, _)| self.queue.add_after(topic.clone(), Duration::ZERO));
    }

    /// Whether a broker of the instance may know the topic as a parent, so that it would make it anew.
    pub fn may_be_known(&self, instance: &ObjectName, topic: &str) -> bool {
        self.known.lock().get(instance).is_none_or(|known| known.by_some.contains(topic))
    }

    /// Whether every broker of the instance knows the topic as a parent; none: they were not asked so far.
    pub fn is_known(&self, instance: &ObjectName, topic: &str) -> Option<bool> {
        self.known.lock().get(instance).map(|known| known.by_all.contains(topic))
    }

    /// How the Kafka of an instance is reached, if the instance is in force.
    pub fn access(&self, instance: &ObjectName) -> Option<Arc<Access>> {
        self.accesses.lock().get(instance).cloned()
    }

    /// Whether another object in force has this topic of the instance.
    pub fn used_by_another(&self, object: &ObjectName, instance: &ObjectName, topic: &str) -> bool {
        let all = self.all.lock();
        all.iter()
            .any(|(other, (of, wanted))| other != object && of == instance && wanted.parent.topic == topic)
    }

    pub fn get(&self, topic: &ObjectName) -> Option<(ObjectName, Wanted)> {
        self.all.lock().get(topic).cloned()
    }

    pub fn instances(&self) -> BTreeSet<ObjectName> {
        self.accesses.lock().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use mqtt_operator_api::Kind;

    use super::*;

    #[test]
    fn a_topic_may_be_known_until_every_broker_has_a_config_without_it() {
        let wants = Wants::new(Arc::default());
        let instance =
            ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: "meters".into() };
        let parents = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let may_be_known = || ["a", "b"].map(|topic| wants.may_be_known(&instance, topic));
        wants.loading(&instance, parents(&["a"]));
        assert_eq!(may_be_known(), [true, true], "no broker was asked so far");
        wants.loaded(&instance, parents(&["a"]));
        assert_eq!(may_be_known(), [true, false]);
        wants.loading(&instance, parents(&["b"]));
        assert_eq!(may_be_known(), [true, true], "some have the one, some the other");
        let all_know = ["a", "b"].map(|topic| wants.is_known(&instance, topic));
        assert_eq!(all_know, [Some(true), Some(false)]);
        wants.clear(&instance);
        assert_eq!(may_be_known(), [true, true], "what is not in force changes nothing at brokers");
        wants.loaded(&instance, parents(&["b"]));
        assert_eq!(may_be_known(), [false, true]);
        let all_know = ["a", "b"].map(|topic| wants.is_known(&instance, topic));
        assert_eq!(all_know, [Some(false), Some(true)]);
        wants.release(&instance);
        assert_eq!(wants.is_known(&instance, "b"), None);
        assert_eq!(may_be_known(), [true, true]);
    }
}
