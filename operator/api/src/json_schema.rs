//! JSON schemas of the four kinds for checkers that know no CRDs, such as kubeconform and editors: what is in
//! `crds/schemas`.
//!
//! Promises: a field that the CRD does not know is an error here, where an API server would only drop it. Rules in CEL
//! are not part of it.

use serde_json::{Map, Value, json};

use crate::{GROUP, Kind, VERSION, crds};

/// The schema of a kind, and the name that kubeconform looks for: `mqttinstance-mqtt-v1alpha1.json`.
pub fn file(kind: Kind) -> Result<(String, Value), crds::Error> {
    let mut schema = closed(crds::schema(kind)?);
    if let Some(object) = schema.as_object_mut() {
        object.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
        object.insert("required".into(), json!(["apiVersion", "kind", "metadata", "spec"]));
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".into(), json!({"const": format!("{GROUP}/{VERSION}")}));
        properties.insert("kind".into(), json!({"const": kind.name()}));
        // Everybody's, and the same for all kinds: left to the API server.
        properties.insert("metadata".into(), json!({"type": "object"}));
    }
    let family = GROUP.split('.').next().unwrap_or_default();
    Ok((format!("{}-{family}-{VERSION}.json", kind.name().to_lowercase()), schema))
}

/// A schema of Kubernetes as plain JSON Schema that allows no other fields than those it names.
fn closed(schema: Value) -> Value {
    let Value::Object(fields) = schema else { return schema };
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let either = fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let mut plain = Map::new();
    for (key, value) in fields {
        match (key.as_str(), value) {
            (key, _) if key.starts_with("x-kubernetes-") => {}
            // A default is a value, and `properties` is no schema itself, though its values are.
            ("default" | "enum" | "required", value) => drop(plain.insert(key, value)),
            ("properties", Value::Object(properties)) => {
                let properties: Map<_, _> = properties.into_iter().map(|(k, v)| (k, closed(v))).collect();
                plain.insert(key, properties.into());
            }
            (_, value) => drop(plain.insert(key, closed(value))),
        }
    }
    if either {
        plain.insert("type".into(), json!(["integer", "string"]));
    }
    let object = plain.get("type").is_some_and(|kind| kind == "object");
    if object && !open && !plain.contains_key("additionalProperties") {
        plain.insert("additionalProperties".into(), false.into());
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crd_says_becomes_plain_json_schema() {
        let check = |given: Value, expected: Value| assert_eq!(closed(given), expected);
        check(
            json!({"type": "object", "properties": {"type": {"type": "string", "maxLength": 3}}}),
            json!({"type": "object", "properties": {"type": {"type": "string", "maxLength": 3}}, "additionalProperties": false}),
        );
        check(
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object"}),
        );
        check(
            json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true, "pattern": "^1$"}}),
            json!({"type": "object", "additionalProperties": {"type": ["integer", "string"], "pattern": "^1$"}}),
        );
        check(
            json!({"type": "array", "items": {"type": "object", "default": {"type": "object"}}, "x-kubernetes-list-type": "set"}),
            json!({"type": "array", "items": {"type": "object", "default": {"type": "object"}, "additionalProperties": false}}),
        );
    }
}
