//! YAML files as JSON values that remember the line each field stands in.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    pub value: Value,
    /// Lines (from 1) by field path, such as `spec.rules[1].filter`; the document's own stands under the empty path.
    lines: BTreeMap<String, u64>,
}

/// Why a file is no YAML; the line counts from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct NotYaml {
    pub line: Option<u64>,
    pub message: String,
}

impl Document {
    /// The line of a field, or of what lies nearest around it.
    pub fn line(&self, field: &str) -> Option<u64> {
        let mut path = field;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = match path.rfind(['.', '[']) {
                Some(end) => path.get(..end)?,
                None if path.is_empty() => return None,
                None => "",
            };
        }
    }
}

/// All documents of a file that hold something.
pub fn documents(text: &str) -> Result<Vec<Document>, NotYaml> {
    let options = serde_saphyr::options! {
        // One file may hold the objects of a large site: thousands of documents.
        budget: serde_saphyr::budget! {
            max_documents: 100_000,
            max_events: 10_000_000,
            max_nodes: 10_000_000,
        },
        with_snippet: false,
    };
    let nodes: Vec<Spanned<Node>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let text = error.without_snippet().to_string();
            // The place is told apart from the message, and snippets have no room in a line.
            let message =
                text.lines().next().and_then(|line| line.split(" at line ").next()).unwrap_or_default();
            NotYaml { line: error.location().map(|at| at.line()), message: message.to_owned() }
        })?;
    let document = |node: Spanned<Node>| {
        let mut lines = BTreeMap::from([(String::new(), node.referenced.line())]);
        Document { value: into_value(node.value, "", &mut lines), lines }
    };
    Ok(nodes.into_iter().map(document).collect())
}

/// Any YAML value. Keys carry their line, as a field is looked for where its name stands.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Node)>),
}

fn into_value(node: Node, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
    match node {
        Node::Scalar(value) => value,
        Node::List(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (i, item) in items.into_iter().enumerate() {
                let path = format!("{path}[{i}]");
                lines.insert(path.clone(), item.referenced.line());
                values.push(into_value(item.value, &path, lines));
            }
            Value::Array(values)
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, node) in entries {
                let path = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                lines.insert(path.clone(), key.referenced.line());
                let value = into_value(node, &path, lines);
                map.insert(key.value, value);
            }
            Value::Object(map)
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Node::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(Spanned<String>, Node)> = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        let mut keys: Vec<_> = entries.iter().map(|(key, _)| key.value.as_str()).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(A::Error::custom(format!("{:?} stands here twice", twice.first().unwrap_or(&""))));
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_field_knows_the_line_it_stands_in() {
        let text = "# head\n---\nkind: A\nspec:\n  rules:\n  - action: pub\n    filter: a\n  - {action: sub,\n     filter: b}\n---\n---\nkind: B\nmore: &x {y: 1}\nagain: *x\n";
        let documents = documents(text).unwrap();
        for (document, field, line) in [
            (0, "", 3),
            (0, "kind", 3),
            (0, "spec", 4),
            (0, "spec.rules", 5),
            (0, "spec.rules[0]", 6),
            (0, "spec.rules[0].filter", 7),
            (0, "spec.rules[1].action", 8),
            (0, "spec.rules[1].filter", 9),
            (0, "spec.userRef.name", 4),
            (0, "metadata.name", 3),
            (1, "kind", 12),
            (1, "again", 14),
        ] {
            assert_eq!(documents[document].line(field), Some(line), "document {document}: {field}");
        }
        assert_eq!(documents.len(), 2, "empty documents count for nothing");
        assert_eq!(documents[1].value, serde_json::json!({"kind": "B", "more": {"y": 1}, "again": {"y": 1}}));
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        for (text, line, part) in [
            ("a: 1\nb: [1, 2\nc: 3\n", Some(3), ""),
            ("a: 1\na: 2\n", Some(2), "uplicate"),
            ("a: 1\n\tb: 2\n", Some(1), "found a tab"),
            ("a: *nowhere\n", Some(1), "anchor"),
        ] {
            let found = documents(text).unwrap_err();
            assert_eq!(found.line, line, "{text:?}: {found:?}");
            assert!(found.message.contains(part), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        let text = "[1, -1, 1.5, true, false, ~, text, \"1\", 1883, 128Ki, 2h, \"\", 'true']";
        assert_eq!(
            documents(text).unwrap()[0].value,
            serde_json::json!([1, -1, 1.5, true, false, null, "text", "1", 1883, "128Ki", "2h", "", "true"])
        );
    }
}
