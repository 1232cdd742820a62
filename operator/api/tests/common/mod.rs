//! Objects as the validator sees them.

// Each test takes what it needs of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

use mqtt_operator_api::{Kind, validate::Validator};
use serde_json::{Value, json};

/// The problems of `spec` (an object named `name` of the kind), as `FIELD: MESSAGE`, updated from `old` if given.
pub fn problems(kind: Kind, name: &str, spec: Value, old: Option<Value>) -> Vec<String> {
    let object = |spec| {
        json!({"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": kind.name(),
               "metadata": {"name": name, "namespace": "plant"}, "spec": spec})
    };
    let validator = Validator::new().unwrap();
    let found = validator.check(kind, &object(spec), old.map(object).as_ref());
    found.into_iter().map(|invalid| format!("{}: {}", invalid.field, invalid.message)).collect()
}

pub fn merged(base: Value, change: Value) -> Value {
    match (base, change) {
        (Value::Object(mut base), Value::Object(change)) => {
            for (key, value) in change {
                let old = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(old, value));
            }
            Value::Object(base)
        }
        (_, change) => change,
    }
}

/// Each case: what is added to the base, and the beginning of the only problem there is, or none.
pub fn check(kind: Kind, base: &Value, cases: &[(Value, Option<&str>)]) {
    for (change, expected) in cases {
        let found = problems(kind, "sample", merged(base.clone(), change.clone()), None);
        match expected {
            None => assert!(found.is_empty(), "{kind} with {change}: {found:#?}"),
            Some(start) => {
                assert!(
                    found.len() == 1 && found[0].starts_with(start),
                    "{kind} with {change}: {found:#?}, not {start:?}"
                );
            }
        }
    }
}
