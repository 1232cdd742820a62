//! The CustomResourceDefinitions of the four kinds, as objects, and as the files made of them: `crds/`, its copy in the
//! chart, and JSON schemas.

use kube::CustomResourceExt as _;
use serde_json::{Map, Value};

use crate::{
    Kind, grant::TopicGrant, instance::MqttInstance, json_schema, parent_topic::ParentTopic, user::MqttUser,
};

/// The folders whose files are all generated, from the repository's root.
pub const FOLDERS: [&str; 3] = ["crds", "crds/schemas", "charts/mqtt-operator/files/crds"];

/// What stands at the head of each file in `crds/`.
const HEAD: &str = "# Generated from the types in operator/api by `make crds`; do not edit.\n";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CRD of {0} can't be written as JSON: {1}")]
    Json(Kind, serde_json::Error),
    #[error("the CRD of {0} can't be written as YAML: {1}")]
    Yaml(Kind, serde_saphyr::ser::Error),
}

/// The CRD of a kind, keys sorted: structural, without formats the API server doesn't know, and without fields
/// that may be null (an explicit null is an error, not a third way to leave something out).
pub fn crd(kind: Kind) -> Result<Value, Error> {
    let crd = match kind {
        Kind::MqttInstance => serde_json::to_value(MqttInstance::crd()),
        Kind::ParentTopic => serde_json::to_value(ParentTopic::crd()),
        Kind::MqttUser => serde_json::to_value(MqttUser::crd()),
        Kind::TopicGrant => serde_json::to_value(TopicGrant::crd()),
    };
    crd.map(tidy).map_err(|error| Error::Json(kind, error))
}

/// The schema that objects of a kind must meet.
pub fn schema(kind: Kind) -> Result<Value, Error> {
    let crd = crd(kind)?;
    Ok(crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or_default())
}

/// The path of each generated file from the repository's root, and its content.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    let [crds, schemas, chart] = FOLDERS;
    let mut files = Vec::new();
    for kind in Kind::ALL {
        let crd = crd(kind)?;
        let plural = crd.pointer("/spec/names/plural").and_then(Value::as_str).unwrap_or_default();
        let yaml = serde_saphyr::to_string(&crd).map_err(|error| Error::Yaml(kind, error))?;
        for folder in [crds, chart] {
            files.push((format!("{folder}/{plural}.yaml"), format!("{HEAD}{yaml}")));
        }
        let (name, schema) = json_schema::file(kind)?;
        let json = serde_json::to_string_pretty(&schema).map_err(|error| Error::Json(kind, error))?;
        files.push((format!("{schemas}/{name}"), format!("{json}\n")));
    }
    Ok(files)
}

/// Sorts keys, writes whole numbers as such, and drops from schemas what Kubernetes doesn't know (`uint32` and the
/// like) or ours don't want.
fn tidy(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().filter(|(key, value)| !dropped(key, value)).collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (_, value) in entries.iter_mut().filter(|(key, _)| key == "enum") {
                value.as_array_mut().into_iter().for_each(|values| values.retain(|value| !value.is_null()));
            }
            Value::Object(entries.into_iter().map(|(k, v)| (k, tidy(v))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(tidy).collect()),
        Value::Number(number) => match number.as_f64() {
            // Schemas hold their bounds as floats; ours are small whole numbers, which floats hold exactly.
            Some(float) if number.is_f64() && float.fract() == 0.0 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        other => other,
    }
}

fn dropped(key: &str, value: &Value) -> bool {
    match (key, value) {
        ("format", Value::String(format)) => format.starts_with("uint"),
        ("nullable", Value::Bool(_)) | ("title", Value::String(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_files_are_what_the_types_generate() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (path, content) in files().unwrap() {
            let found = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(found == content, "{path} is not what the types generate; run `make crds`");
        }
        for folder in FOLDERS {
            let entries = std::fs::read_dir(root.join(folder)).unwrap();
            let files = entries.filter(|entry| entry.as_ref().unwrap().path().is_file()).count();
            assert_eq!(files, Kind::ALL.len(), "files in {folder}");
        }
    }

    #[test]
    fn every_list_and_every_text_that_a_rule_reads_has_a_bound() {
        fn check(schema: &Value, path: &str) {
            if schema.get("type").is_some_and(|t| t == "array") {
                assert!(schema.get("maxItems").is_some(), "{path} has no maxItems");
            }
            let text = schema.get("type").is_some_and(|t| t == "string") && schema.get("enum").is_none();
            if text || schema.get("x-kubernetes-int-or-string").is_some() {
                assert!(schema.get("maxLength").is_some(), "{path} has no maxLength");
            }
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten()
            {
                check(property, &format!("{path}.{name}"));
            }
            if let Some(items) = schema.get("items") {
                check(items, &format!("{path}[]"));
            }
        }
        for kind in Kind::ALL {
            let schema = schema(kind).unwrap();
            check(schema.pointer("/properties/spec").unwrap(), &format!("{kind}.spec"));
        }
    }

    #[test]
    fn the_api_server_finds_only_formats_that_it_knows() {
        let yaml = files().unwrap().into_iter().filter(|(path, _)| path.ends_with(".yaml"));
        for (name, content) in yaml {
            let formats: Vec<_> = content.lines().filter_map(|l| l.trim().strip_prefix("format: ")).collect();
            assert!(formats.iter().all(|f| ["int64", "date-time"].contains(f)), "{name}: {formats:?}");
            assert!(!content.contains("additionalProperties: false"), "{name} is not structural");
        }
    }
}
