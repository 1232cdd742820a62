//! Manifests as a user would write them, one file an object, and their way into a folder.
//!
//! Files are replaced by a rename, as editors and deployment tools do, so a reader never sees half a file.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A folder of manifests: file name → text. JSON is YAML, so that is what the builders write.
#[derive(Clone, Debug)]
pub struct Manifests {
    files: BTreeMap<String, String>,
}

impl Manifests {
    /// The instance `meters`, with default limits and nothing else.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { files: BTreeMap::new() }
            .instance(json!({"kafka": {"bootstrapServers": ["kafka-0.kafka:9092"], "replicationFactor": 3}}))
    }

    /// Sets the instance's spec, in place of what it was.
    pub fn instance(self, spec: Value) -> Self {
        self.object("MqttInstance", "meters", spec)
    }

    /// Registers a `Normal` parent topic of three partitions.
    pub fn parent(self, topic: &str) -> Self {
        let spec =
            json!({"instanceRef": {"name": "meters"}, "topic": topic, "type": "Normal", "partitions": 3});
        self.object("ParentTopic", &object_name(topic), spec)
    }

    /// Registers a `PartitionOrdered` parent topic of three partitions.
    pub fn ordered_parent(self, topic: &str) -> Self {
        let spec = json!({"instanceRef": {"name": "meters"}, "topic": topic, "type": "PartitionOrdered", "partitions": 3});
        self.object("ParentTopic", &object_name(topic), spec)
    }

    /// A user with its password in a Secret of the name `USER-password`.
    pub fn user(self, name: &str, password: &str) -> Self {
        self.user_with(name, password, json!({}))
    }

    /// A user with further fields of its spec, such as `clientIds`.
    pub fn user_with(self, name: &str, password: &str, more: Value) -> Self {
        let secret = format!("{name}-password");
        let mut spec = json!({
            "instanceRef": {"name": "meters"},
            "passwordSecretRef": {"name": secret, "key": "password"},
        });
        merge(&mut spec, more);
        self.object("MqttUser", name, spec).secret(&secret, password)
    }

    /// A user without a password: only good as the instance's anonymous user.
    pub fn user_without_password(self, name: &str) -> Self {
        self.object("MqttUser", name, json!({"instanceRef": {"name": "meters"}}))
    }

    pub fn secret(self, name: &str, password: &str) -> Self {
        self.secret_of(name, json!({"password": password}))
    }

    /// A Secret of any keys and texts.
    pub fn secret_of(self, name: &str, data: Value) -> Self {
        let document = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        self.file(&file_name("Secret", name), &document.to_string())
    }

    /// A grant for `user`, of rules `(action, filter)`.
    pub fn grant(self, name: &str, user: &str, rules: &[(&str, &str)]) -> Self {
        let rules: Vec<Value> =
            rules.iter().map(|(action, filter)| json!({"action": action, "filter": filter})).collect();
        let spec = json!({"instanceRef": {"name": "meters"}, "userRef": {"name": user}, "rules": rules});
        self.object("TopicGrant", name, spec)
    }

    /// An object of one of the four kinds.
    pub fn object(self, kind: &str, name: &str, spec: Value) -> Self {
        let document = json!({
            "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        self.file(&file_name(kind, name), &document.to_string())
    }

    /// A file of any text, well-formed or not.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.insert(name.to_owned(), format!("{text}\n"));
        self
    }

    /// The same without one object; a user's Secret stays.
    pub fn without(self, kind: &str, name: &str) -> Self {
        self.without_file(&file_name(kind, name))
    }

    pub fn without_file(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    /// The same with another Kafka in the instance; a file that isn't JSON stays as it is.
    pub(crate) fn on_kafka(mut self, servers: &str, copies: usize) -> Result<Self> {
        for text in self.files.values_mut() {
            let Ok(mut document) = serde_json::from_str::<Value>(text) else { continue };
            if document.get("kind").and_then(Value::as_str) != Some("MqttInstance") {
                continue;
            }
            let spec =
                document.get_mut("spec").and_then(Value::as_object_mut).context("an instance has a spec")?;
            let servers: Vec<&str> = servers.split(',').collect();
            let kafka = spec.entry("kafka").or_insert_with(|| json!({}));
            merge(kafka, json!({"bootstrapServers": servers, "replicationFactor": copies}));
            *text = format!("{document}\n");
        }
        Ok(self)
    }

    /// Makes the folder hold these files and no others.
    pub fn write_to(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, text) in &self.files {
            let path = folder.join(name);
            if fs::read_to_string(&path).is_ok_and(|there| there == *text) {
                continue;
            }
            let draft = folder.join(format!(".{name}.draft"));
            fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
            fs::rename(&draft, &path).with_context(|| format!("moving {} into place", path.display()))?;
        }
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !self.files.contains_key(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn file_name(kind: &str, name: &str) -> String {
    format!("{}-{name}.yaml", kind.to_lowercase())
}

/// A name Kubernetes allows, for a topic that may have capitals and `_`.
fn object_name(topic: &str) -> String {
    topic.to_lowercase().replace('_', "-")
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
