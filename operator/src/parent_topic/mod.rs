//! One ParentTopic: from the object to the Kafka topic that keeps its records, and to what is said on the object.
//!
//! | part | does |
//! |---|---|
//! | fetch | the loop does: it hands over a [`Wanted`] whose object is in force (no other claims its name, its instance is there) |
//! | [`Topics::ensure`] | brings the Kafka topic in line, and says how it fares |
//! | [`Topics::gone`] | is told that the object was deleted |

use std::{sync::Arc, time::Duration};

use mqtt_broker_api::config::{Kafka, KafkaSecrets, Parent};
use mqtt_operator_api::{instance::MqttInstance, parent_topic::ParentTopic, render::ObjectName};

use crate::status::Verdict;

/// What Kafka shall have for one ParentTopic.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub object: Arc<ParentTopic>,
    pub instance: Arc<MqttInstance>,
    /// The same as the instance's brokers are told.
    pub parent: Parent,
    pub access: Arc<Access>,
}

/// How the Kafka of an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub kafka: Kafka,
    pub secrets: KafkaSecrets,
}

/// How an object fares, and when to look at it again without a change; absent: at the next resync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub again: Option<Duration>,
}

/// The Kafka topics of all instances.
#[derive(Debug, Default)]
pub struct Topics {}

impl Topics {
    /// Brings one topic in line. Called at each change of the object or its instance, at each resync, and when it asked
    /// for it; never twice at a time for one object. Takes a minute at most.
    pub async fn ensure(&self, wanted: &Wanted) -> Outcome {
        // The brokers make and check the topics that their config names.
        let message = format!("the brokers store what is published below {}/", wanted.parent.topic);
        Outcome { verdict: Verdict::ready("Registered", message), again: None }
    }

    /// The object is gone; its topic stays.
    pub async fn gone(&self, object: &ObjectName) {
        tracing::info!("{object} is gone; its Kafka topic is kept");
    }
}
