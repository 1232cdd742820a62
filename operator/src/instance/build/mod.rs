//! From an instance and its documents to the objects that run it. Pure: no clock, no randomness, no I/O.
//!
//! Promises: the pod template depends on the instance and the options alone, so that users, grants and parent topics
//! come and go without a restart; what must stay secret is in Secrets alone; what can't be built is a problem with its
//! field, and then nothing is built.

mod config;
mod monitoring;
mod names;
mod policy;
mod secrets;
mod services;
mod stateful_set;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Secret, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::core::DynamicObject;
use mqtt_broker_api::shards::SHARD_BYTES;
use mqtt_operator_api::{
    instance::MqttInstance,
    render::{Problem, Rendered},
};
use serde::Serialize;
use serde_json::Value;

use self::names::Frame;

/// How many shards of the ACL document a pod can take. All are in the pod template from the beginning.
pub const ACL_SHARDS: usize = 32;

/// What is the same for all instances of one operator.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker's image, unless an instance names its own.
    pub image: String,
    /// The namespace that the operator runs in: from there it asks brokers what they have loaded.
    pub operator_namespace: String,
    /// Bytes of a shard of the ACL document, at most.
    pub shard_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: concat!("mqtt-broker:", env!("CARGO_PKG_VERSION")).into(),
            operator_namespace: "mqtt-operator".into(),
            shard_bytes: SHARD_BYTES,
        }
    }
}

/// The objects of one instance.
#[derive(Clone, Debug)]
pub struct Built {
    pub config: ConfigMap,
    /// The hash of its file, as brokers tell it that have it in force.
    pub config_hash: String,
    /// At least one.
    pub acl: Vec<Secret>,
    /// What connections to Kafka need in secret; absent if they need nothing, or see [`Built::kept`].
    pub kafka: Option<Secret>,
    /// What the TLS listener shows; absent if there is none, or see [`Built::kept`].
    pub tls: Option<Secret>,
    /// What brokers show each other; absent: see [`Built::kept`].
    pub peers: Option<Secret>,
    /// Secrets that belong to the instance, but miss something now: what was applied before stays.
    pub kept: Vec<Kept>,
    /// The one that devices meet, and the headless one that gives pods their names.
    pub services: [Service; 2],
    pub network_policy: NetworkPolicy,
    pub disruption_budget: PodDisruptionBudget,
    pub stateful_set: StatefulSet,
    pub service_monitor: Option<DynamicObject>,
}

/// A Secret that misses something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub name: String,
    /// All that pods look for in it. Where what was applied before has less, pods must not be told to look.
    pub keys: Vec<&'static str>,
}

/// Builds the objects. `rendered` comes from the instance and all that belongs to it.
pub fn build(instance: &MqttInstance, rendered: &Rendered, options: &Options) -> Result<Built, Vec<Problem>> {
    let frame = Frame::new(instance, options);
    let mut problems = Vec::new();
    if rendered.config.kafka.is_none() {
        let message = "is missing; on a cluster all that is stored is kept in Kafka: say where it is";
        problems.push(frame.problem("spec.kafka", message.into()));
    }
    let config = or_report(config::config_map(&frame, &rendered.config), &mut problems);
    let acl = or_report(secrets::acl(&frame, &rendered.acl), &mut problems);
    let stateful_set = stateful_set::stateful_set(&frame, &rendered.config, &mut problems);
    let (Some((config, config_hash)), Some(acl), []) = (config, acl, problems.as_slice()) else {
        return Err(problems);
    };

    let mut kept = Vec::new();
    Ok(Built {
        config,
        config_hash,
        acl,
        kafka: secrets::kafka(&frame, &rendered.config, &rendered.kafka_secrets, &mut kept),
        tls: secrets::tls(&frame, &rendered.config, rendered.tls_secrets.as_ref(), &mut kept),
        peers: secrets::peers(&frame, rendered.peers_secrets.as_ref(), &mut kept),
        kept,
        services: [services::client(&frame), services::headless(&frame)],
        network_policy: policy::network_policy(&frame),
        disruption_budget: policy::disruption_budget(&frame),
        stateful_set,
        service_monitor: monitoring::service_monitor(&frame),
    })
}

/// The name of the StatefulSet.
pub fn broker_name(instance: &MqttInstance, options: &Options) -> String {
    Frame::new(instance, options).broker()
}

/// The name of the Service that devices meet.
pub fn client_service_name(instance: &MqttInstance, options: &Options) -> String {
    Frame::new(instance, options).client_service()
}

/// The name of the Secret with what brokers show each other.
pub fn peers_secret_name(instance: &MqttInstance, options: &Options) -> String {
    Frame::new(instance, options).peers()
}

/// What the host names of the brokers end with.
pub fn nodes_domain(instance: &MqttInstance, options: &Options) -> String {
    Frame::new(instance, options).nodes_domain()
}

/// The name of the Secret of one shard of the ACL document.
pub fn acl_secret_name(instance: &MqttInstance, options: &Options, shard: usize) -> String {
    Frame::new(instance, options).acl(shard)
}

impl Built {
    /// All objects as JSON, in the order in which they are best applied: pods come last, and find what they mount.
    pub fn objects(&self) -> Result<Vec<Value>, serde_json::Error> {
        let mut objects = vec![json(&self.config)?];
        for secret in self.acl.iter().chain(&self.kafka).chain(&self.tls).chain(&self.peers) {
            objects.push(json(secret)?);
        }
        for service in &self.services {
            objects.push(json(service)?);
        }
        objects.push(json(&self.network_policy)?);
        objects.push(json(&self.disruption_budget)?);
        objects.push(json(&self.stateful_set)?);
        objects.extend(self.service_monitor.iter().map(json).collect::<Result<Vec<_>, _>>()?);
        Ok(objects)
    }
}

fn json(object: &impl Serialize) -> Result<Value, serde_json::Error> {
    serde_json::to_value(object)
}

fn or_report<T>(outcome: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    outcome.map_err(|problem| problems.push(problem)).ok()
}
