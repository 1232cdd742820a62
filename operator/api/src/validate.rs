//! What one object proves wrong about itself: its schema and the rules in it, applied to plain JSON just as the
//! API server applies them, so that a manifest refused there is refused on one machine, too.
//!
//! Unknown fields, which the API server drops in silence, are problems here.

use std::collections::BTreeMap;

use kube::core::cel;
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::{Kind, crds, duration, quantity, refs, rules, workload};

/// One thing that is wrong: where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Such as `spec.rules[1].filter`; empty: the object as a whole.
    pub field: String,
    pub message: String,
}

/// Holds the compiled schemas; make one, use it for many objects.
pub struct Validator {
    kinds: BTreeMap<Kind, (Value, cel::CompiledSchema)>,
    secret: Value,
    patterns: BTreeMap<String, Regex>,
    cel: cel::Validator,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Crd(#[from] crds::Error),
    #[error("a schema holds the pattern {pattern:?}, which is none: {source}")]
    Pattern { pattern: String, source: regex::Error },
}

impl Validator {
    pub fn new() -> Result<Self, Error> {
        let secret = with_metadata(json!({"properties": {
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
            "stringData": {"type": "object", "additionalProperties": {"type": "string"}},
            "type": {"type": "string"},
            "immutable": {"type": "boolean"},
        }}));
        let mut kinds = BTreeMap::new();
        let mut patterns = BTreeMap::new();
        compile_patterns(&secret, &mut patterns)?;
        for kind in Kind::ALL {
            let schema = with_metadata(crds::schema(kind)?);
            compile_patterns(&schema, &mut patterns)?;
            let rules = cel::compile_schema(&schema);
            kinds.insert(kind, (schema, rules));
        }
        Ok(Self { kinds, secret, patterns, cel: cel::Validator::new() })
    }

    /// All that is wrong with an object of one of our kinds (with its `apiVersion`, `kind` and `metadata`), as it
    /// would be created, or put in the place of `old`.
    pub fn check(&self, kind: Kind, object: &Value, old: Option<&Value>) -> Vec<Invalid> {
        let Some((schema, rules)) = self.kinds.get(&kind) else { return Vec::new() };
        let mut found = Vec::new();
        self.walk(schema, object, "", &mut found);
        // Rules may rely on what the schema promises, so they run only where it is kept.
        if found.is_empty()
            && let Err(broken) = self.cel.validate_compiled(rules, object, old)
        {
            let invalid = |e: cel::ValidationError| Invalid {
                field: e.field_path.trim_start_matches('.').to_owned(),
                message: e.message,
            };
            found.extend(broken.into_iter().map(invalid));
        }
        found
    }

    /// The same for a core `v1` Secret.
    pub fn check_secret(&self, object: &Value) -> Vec<Invalid> {
        let mut found = Vec::new();
        self.walk(&self.secret, object, "", &mut found);
        found
    }

    fn walk(&self, schema: &Value, value: &Value, path: &str, found: &mut Vec<Invalid>) {
        let mut report = |message: String| found.push(Invalid { field: path.to_owned(), message });
        let anything = schema.get("type").is_none() || value.is_object();
        if flag(schema, "x-kubernetes-preserve-unknown-fields") && anything {
            return;
        }
        if value.is_null() {
            return report("has no value; give it one, or remove the field".into());
        }
        let wanted = match schema.get("type").and_then(Value::as_str) {
            _ if flag(schema, "x-kubernetes-int-or-string") => {
                if !value.is_string() && !value.is_u64() && !value.is_i64() {
                    return report(format!("must be a whole number or text, not {}", a_kind_of(value)));
                }
                value.as_str().map_or("integer", |_| "string")
            }
            Some(wanted) => wanted,
            None => "object",
        };
        match (wanted, value) {
            ("object", Value::Object(map)) => self.walk_object(schema, map, path, found),
            ("array", Value::Array(items)) => self.walk_array(schema, items, path, found),
            ("string", Value::String(text)) => self.check_text(schema, text).into_iter().for_each(report),
            ("integer", Value::Number(number)) if !number.is_f64() => {
                check_number(schema, number.as_i64()).into_iter().for_each(report);
            }
            ("boolean", Value::Bool(_)) => {}
            ("string", Value::Number(_) | Value::Bool(_)) => {
                // Without the value: it may be a password.
                report(format!("must be text, not {}; put it in quotes", a_kind_of(value)));
            }
            _ => {
                let wanted = match wanted {
                    "object" => "a map of fields",
                    "array" => "a list",
                    "string" => "text",
                    "integer" => "a whole number",
                    _ => "true or false",
                };
                report(format!("must be {wanted}, not {}", a_kind_of(value)));
            }
        }
    }

    fn walk_object(&self, schema: &Value, map: &Map<String, Value>, path: &str, found: &mut Vec<Invalid>) {
        let no_properties = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&no_properties);
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if let Some(name) = required.as_str()
                && !map.contains_key(name)
            {
                found.push(Invalid { field: join(path, name), message: "is missing; add it".into() });
            }
        }
        if let Some(most) = bound(schema, "maxProperties").filter(|most| map.len() as u64 > *most) {
            let message = format!("has {} entries, and may have {most}; remove some", map.len());
            found.push(Invalid { field: path.to_owned(), message });
        }
        for (name, value) in map {
            let field = join(path, name);
            if let Some(property) = properties.get(name).or_else(|| schema.get("additionalProperties")) {
                self.walk(property, value, &field, found);
            } else {
                let known: Vec<_> = properties.keys().map(String::as_str).collect();
                let message = format!("is not known; remove or rename it (known here: {})", known.join(", "));
                found.push(Invalid { field, message });
            }
        }
    }

    fn walk_array(&self, schema: &Value, items: &[Value], path: &str, found: &mut Vec<Invalid>) {
        let len = items.len() as u64;
        let mut report = |message| found.push(Invalid { field: path.to_owned(), message });
        if let Some(least) = bound(schema, "minItems").filter(|least| len < *least) {
            report(format!("has {len} entries, and needs {least} at least; add some"));
        }
        if let Some(most) = bound(schema, "maxItems").filter(|most| len > *most) {
            report(format!("has {len} entries, and may have {most}; spread them over several objects"));
        }
        let set = schema.get("x-kubernetes-list-type").is_some_and(|list_type| list_type == "set");
        for (i, item) in items.iter().enumerate() {
            let field = format!("{path}[{i}]");
            if set && items.iter().take(i).any(|earlier| earlier == item) {
                let message = format!("{item} stands here twice; remove one");
                found.push(Invalid { field: field.clone(), message });
            }
            if let Some(schema) = schema.get("items") {
                self.walk(schema, item, &field, found);
            }
        }
    }

    fn check_text(&self, schema: &Value, text: &str) -> Option<String> {
        let len = text.chars().count() as u64;
        if let Some(known) = schema.get("enum").and_then(Value::as_array)
            && !known.iter().any(|value| value == text)
        {
            let known: Vec<_> = known.iter().filter_map(Value::as_str).collect();
            return Some(format!("{text:?} is not one of {}; write one of them", known.join(", ")));
        }
        if bound(schema, "minLength").is_some_and(|least| len < least) {
            return Some("is empty; give it a value, or remove the field".into());
        }
        if let Some(most) = bound(schema, "maxLength").filter(|most| len > *most) {
            return Some(format!("has {len} characters, and may have {most}; shorten it"));
        }
        let pattern = schema.get("pattern").and_then(Value::as_str)?;
        let met = self.patterns.get(pattern).is_some_and(|regex| regex.is_match(text));
        (!met).then(|| in_words(pattern, text))
    }
}

fn check_number(schema: &Value, number: Option<i64>) -> Option<String> {
    let least = schema.get("minimum").and_then(Value::as_i64);
    let most = schema.get("maximum").and_then(Value::as_i64);
    let Some(number) = number else { return Some("is too large a number; lower it".into()) };
    if let Some(least) = least.filter(|least| number < *least) {
        return Some(format!("is {number}, and must be {least} at least; raise it"));
    }
    let most = most.filter(|most| number > *most)?;
    Some(format!("is {number}, and must be {most} at most; lower it"))
}

/// What a pattern of ours asks for, as a person would say it.
fn in_words(pattern: &str, text: &str) -> String {
    match pattern {
        refs::NAME => format!(
            "{text:?} is not a name; use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
        ),
        refs::NAMESPACE => format!(
            "{text:?} is not a namespace; use lower-case letters, digits and '-', beginning and ending with a letter or digit"
        ),
        duration::PATTERN => duration::NotADuration(text.into()).to_string(),
        workload::AMOUNT => format!(
            "{text:?} is not an amount; write a number, alone or with one of m Ki Mi Gi Ti k M G T, such as 250m or 1.5Gi"
        ),
        rules::TIME => format!("{text:?} is not a point in time; write it as 2027-01-31T12:00:00Z"),
        quantity::PATTERN => quantity::NotAQuantity(text.into()).to_string(),
        _ => format!("{text:?} has characters it may not have; write it so that it matches {pattern}"),
    }
}

/// A CRD's schema says nothing of these fields; they are the same for all objects.
fn with_metadata(mut schema: Value) -> Value {
    let text_map = json!({"type": "object", "additionalProperties": {"type": "string"}});
    // What a server adds to objects, so that those read from one are valid manifests, too.
    let any = json!({"x-kubernetes-preserve-unknown-fields": true});
    let mut metadata = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 253, "pattern": refs::NAME},
            "namespace": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": refs::NAMESPACE},
            "labels": text_map,
            "annotations": text_map,
                    },
    });
    for added in [
        "creationTimestamp",
        "uid",
        "resourceVersion",
        "generation",
        "generateName",
        "selfLink",
        "managedFields",
        "finalizers",
        "ownerReferences",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        if let Some(properties) = metadata.pointer_mut("/properties").and_then(Value::as_object_mut) {
            properties.insert(added.into(), any.clone());
        }
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".into(), json!({"type": "string"}));
        properties.insert("kind".into(), json!({"type": "string"}));
        properties.insert("metadata".into(), metadata);
    }
    match schema.get_mut("required").and_then(Value::as_array_mut) {
        Some(required) => required.push("metadata".into()),
        None => {
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("required".into(), json!(["metadata"]));
            }
        }
    }
    schema
}

fn compile_patterns(schema: &Value, into: &mut BTreeMap<String, Regex>) -> Result<(), Error> {
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        let regex =
            Regex::new(pattern).map_err(|source| Error::Pattern { pattern: pattern.to_owned(), source })?;
        into.insert(pattern.to_owned(), regex);
    }
    let parts = match schema {
        Value::Object(map) => map.values().collect::<Vec<_>>(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    parts.into_iter().try_for_each(|part| compile_patterns(part, into))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn bound(schema: &Value, name: &str) -> Option<u64> {
    schema.get(name).and_then(Value::as_u64)
}

fn a_kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map of fields",
    }
}
