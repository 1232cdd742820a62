//! What Kafka shall have for each ParentTopic that is in force, as the rendering of its instance says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
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

pub struct Wants {
    queue: Arc<Queue>,
    /// By ParentTopic; with the instance that wants it.
    all: Mutex<HashMap<ObjectName, (ObjectName, Wanted)>>,
    /// By instance.
    accesses: Mutex<HashMap<ObjectName, Arc<Access>>>,
}

impl Wants {
    pub fn new(queue: Arc<Queue>) -> Self {
        Self { queue, all: Mutex::default(), accesses: Mutex::default() }
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
            self.queue.add_after(topic, std::time::Duration::ZERO);
        }
    }

    /// The instance is not in force.
    pub fn clear(&self, instance: &ObjectName) {
        self.accesses.lock().remove(instance);
        self.replace(instance, BTreeMap::new());
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
