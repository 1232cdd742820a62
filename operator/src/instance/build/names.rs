//! What the objects of an instance are called, how they are labelled, and whom they belong to.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Resource as _, core::ObjectMeta};
use mqtt_operator_api::{
    Kind,
    instance::{MqttInstance, MqttInstanceSpec},
    render::{ObjectName, Problem, name_of},
};

use super::Options;

/// The longest addition to an instance's name in the name of its StatefulSet.
const BROKER: &str = "broker";

/// One instance, and all that its objects have in common.
pub(super) struct Frame<'a> {
    pub(super) instance: &'a MqttInstance,
    pub(super) options: &'a Options,
    name: ObjectName,
}

impl<'a> Frame<'a> {
    pub(super) fn new(instance: &'a MqttInstance, options: &'a Options) -> Self {
        Self { instance, options, name: name_of(Kind::MqttInstance, instance) }
    }

    pub(super) fn spec(&self) -> &'a MqttInstanceSpec {
        &self.instance.spec
    }

    /// The name of the StatefulSet, and of what there is one of beside it.
    pub(super) fn broker(&self) -> String {
        format!("{}-{BROKER}", self.name.name)
    }

    pub(super) fn config(&self) -> String {
        format!("{}-config", self.broker())
    }

    pub(super) fn acl(&self, shard: usize) -> String {
        format!("{}-acl-{shard:02}", self.broker())
    }

    pub(super) fn kafka(&self) -> String {
        format!("{}-kafka", self.broker())
    }

    pub(super) fn tls(&self) -> String {
        format!("{}-tls", self.broker())
    }

    /// The Secret with what brokers show each other.
    pub(super) fn peers(&self) -> String {
        format!("{}-peers", self.broker())
    }

    /// The Service that devices meet.
    pub(super) fn client_service(&self) -> String {
        format!("{}-mqtt", self.name.name)
    }

    pub(super) fn headless_service(&self) -> String {
        format!("{}-nodes", self.name.name)
    }

    /// What the host names of pods end with.
    pub(super) fn nodes_domain(&self) -> String {
        format!("{}.{}.svc", self.headless_service(), self.namespace())
    }

    pub(super) fn namespace(&self) -> &str {
        &self.name.namespace
    }

    /// The metadata of one object. An instance that the API server has not seen owns nothing.
    pub(super) fn meta(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace().into()),
            labels: Some(self.labels()),
            owner_references: self.instance.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// What the pods are found by. It can't change while the StatefulSet lives.
    pub(super) fn selector(&self) -> BTreeMap<String, String> {
        labels([("name", "mqtt-broker"), ("instance", &self.name.name)])
    }

    pub(super) fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), match_expressions: None }
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut all = self.selector();
        all.extend(labels([("component", BROKER), ("part-of", "mqtt"), ("managed-by", "mqtt-operator")]));
        all
    }

    pub(super) fn problem(&self, field: &str, message: String) -> Problem {
        Problem { object: self.name.clone(), field: field.into(), message }
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (format!("app.kubernetes.io/{key}"), value.to_owned())).collect()
}
