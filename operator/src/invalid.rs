//! Objects that can't be read: nothing but a status can be done for them.

use kube::core::error_boundary::InvalidObject;
use mqtt_operator_api::{Kind, render::ObjectName};
use serde_json::{Map, Value};

use crate::{
    apply::{Error, Subject, Writer},
    status::Verdict,
};

/// Says on the object that it can't be read, and why.
pub async fn say(writer: &Writer, name: &ObjectName, invalid: &InvalidObject) -> Result<(), Error> {
    let verdict = Verdict::stalled("Invalid", format!("can't be read: {}; mend it", invalid.error));
    // It is rendered into nothing; of an instance brokers keep what they have.
    let verdict = if name.kind == Kind::MqttInstance { verdict } else { verdict.not_enforced() };
    let metadata = &invalid.metadata;
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let subject = Subject { object: name, uid, generation: metadata.generation, seen: &Value::Null };
    writer.say(&subject, &verdict, Map::new()).await.map(drop)
}
