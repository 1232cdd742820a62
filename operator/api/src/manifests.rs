//! A folder of manifests: read, and held to the rules of a cluster.
//!
//! Promises: what would be refused on a cluster is refused here, with one line a problem that says where and what to do;
//! all problems of all files are told at once (but what objects mean to each other only when each can be read by
//! itself). Passwords never appear in a problem.

use std::{
    collections::BTreeMap,
    fmt, fs,
    hash::{BuildHasher as _, RandomState},
    path::{Path, PathBuf},
};

use base64::Engine as _;
use mqtt_broker_api::{
    acl::PasswordHash,
    yaml::{self, Document},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    DEFAULT_NAMESPACE, GROUP, Kind, VERSION,
    grant::TopicGrant,
    instance::MqttInstance,
    parent_topic::ParentTopic,
    refs::SecretKeyRef,
    render::{ObjectName, Objects, Password, Problem, Secrets, hash},
    user::MqttUser,
    validate::{Invalid, Validator},
};

/// What a folder holds, if each object could be read, and what is wrong with it so far.
pub struct Manifests {
    pub objects: Objects,
    origins: BTreeMap<Named, Origin>,
    problems: Vec<ManifestProblem>,
}

/// Reads every `*.yaml` and `*.yml` file of the folder (not hidden ones, not those in folders inside). Blocks on the
/// file system.
pub fn read(dir: &Path, validator: &Validator) -> Result<Manifests, Vec<ManifestProblem>> {
    let mut set = Set::default();
    for file in files(dir).map_err(|problem| vec![problem])? {
        match documents(&file) {
            Ok(documents) => {
                for (i, document) in documents.into_iter().enumerate() {
                    set.add(validator, Origin { file: file.clone(), number: i + 1, document });
                }
            }
            Err(problem) => {
                set.problems.push(problem);
                set.unreadable = true;
            }
        }
    }
    if set.instances.is_empty() && !set.unreadable {
        set.problems.push(ManifestProblem {
            file: dir.to_owned(),
            document: None,
            line: None,
            field: String::new(),
            message: "there is no MqttInstance in any *.yaml file here; add one".into(),
        });
    }
    let Set { instances, topics, users, grants, secrets, origins, problems, unreadable } = set;
    match (instances.into_iter().next(), unreadable) {
        (Some(instance), false) => {
            let objects = Objects { instance, topics, users, grants, secrets, generated: None };
            Ok(Manifests { objects, origins, problems })
        }
        _ => Err(problems),
    }
}

impl Manifests {
    /// Adds what is wrong with an object in the light of others.
    pub fn report(&mut self, Problem { object, field, message }: Problem) {
        if let Some(origin) = self.origins.get(&Named::Ours(object)) {
            self.problems.push(origin.problem(&field, message));
        }
    }

    /// All that is wrong, or the objects.
    pub fn good(self) -> Result<Objects, Vec<ManifestProblem>> {
        if self.problems.is_empty() { Ok(self.objects) } else { Err(self.problems) }
    }
}

/// Makes salts for passwords: unguessable, and the same for the same Secret's key while this lives, so that equal
/// manifests give equal documents.
#[derive(Default)]
pub struct Salts([RandomState; 2]);

impl Salts {
    /// The fast hash: for documents that stay where they are made.
    pub fn hash(&self, password: &Password<'_>) -> PasswordHash {
        hash(self.salt(password.namespace, password.secret), password.value)
    }

    pub fn salt(&self, namespace: &str, secret: &SecretKeyRef) -> [u8; 16] {
        let Self([low, high]) = self;
        let of = |state: &RandomState| u128::from(state.hash_one((namespace, &secret.name, &secret.key)));
        (of(high) << 64 | of(low)).to_be_bytes()
    }
}

/// One thing that is wrong, as one line: file, document, line, field, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestProblem {
    file: PathBuf,
    /// The document's number in the file (from 1, empty ones left out), and what it is as far as it is known.
    document: Option<(usize, String)>,
    line: Option<u64>,
    field: String,
    message: String,
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let Some((number, what)) = &self.document {
            write!(f, "document {number}")?;
            if !what.is_empty() {
                write!(f, " ({what})")?;
            }
            f.write_str(if self.line.is_some() { ", " } else { ": " })?;
        }
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// The files to read, in the order of their names. Those of a mounted ConfigMap are links, and are followed.
fn files(dir: &Path) -> Result<Vec<PathBuf>, ManifestProblem> {
    let unreadable = |error: std::io::Error| ManifestProblem {
        file: dir.to_owned(),
        document: None,
        line: None,
        field: String::new(),
        message: format!("this folder can't be read: {error}; name a folder of manifests"),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// All objects of a folder, and what is wrong with each by itself.
#[derive(Default)]
struct Set {
    instances: Vec<MqttInstance>,
    topics: Vec<ParentTopic>,
    users: Vec<MqttUser>,
    grants: Vec<TopicGrant>,
    secrets: Secrets,
    origins: BTreeMap<Named, Origin>,
    problems: Vec<ManifestProblem>,
    /// Whether some object is missing in the set because it can't be read, so that others may miss it.
    unreadable: bool,
}

/// An object's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Ours(ObjectName),
    /// Namespace and name.
    Secret(String, String),
}

/// Where an object stands.
struct Origin {
    file: PathBuf,
    number: usize,
    document: Document,
}

impl Origin {
    fn problem(&self, field: &str, message: String) -> ManifestProblem {
        let text = |pointer: &str| self.document.value.pointer(pointer).and_then(Value::as_str);
        let what: Vec<_> = [text("/kind"), text("/metadata/name")].into_iter().flatten().collect();
        ManifestProblem {
            file: self.file.clone(),
            document: Some((self.number, what.join(" "))),
            line: self.document.line(field),
            field: field.to_owned(),
            message,
        }
    }
}

impl Set {
    fn add(&mut self, validator: &Validator, origin: Origin) {
        let value = &origin.document.value;
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let ours = Kind::from_name(kind).filter(|_| api_version == format!("{GROUP}/{VERSION}"));
        let found = match ours {
            Some(kind) => validator.check(kind, value, None),
            None if (api_version, kind) == ("v1", "Secret") => validator.check_secret(value),
            None => vec![unknown(api_version, kind)],
        };
        let invalid = !found.is_empty();
        for Invalid { field, message } in found {
            self.problems.push(origin.problem(&field, message));
        }

        let read = match ours {
            Some(Kind::MqttInstance) => push(value, &mut self.instances),
            Some(Kind::ParentTopic) => push(value, &mut self.topics),
            Some(Kind::MqttUser) => push(value, &mut self.users),
            Some(Kind::TopicGrant) => push(value, &mut self.grants),
            None => {
                if !invalid {
                    self.add_secret(&origin);
                }
                Ok(())
            }
        };
        // What broke a rule can mostly still be read, so that others find what they name.
        if let Err(message) = read {
            self.unreadable = true;
            if !invalid {
                self.problems.push(origin.problem("", message));
            }
        }
        self.unreadable |= invalid && ours.is_none();
        self.register(ours, origin);
    }

    /// Sees to it that each name stands for one object, and that there is one instance.
    fn register(&mut self, kind: Option<Kind>, origin: Origin) {
        let text = |pointer: &str| origin.document.value.pointer(pointer).and_then(Value::as_str);
        let Some(name) = text("/metadata/name").map(str::to_owned) else { return };
        let namespace = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE).to_owned();
        let named = match kind {
            Some(kind) => Named::Ours(ObjectName { kind, namespace, name }),
            None => Named::Secret(namespace, name),
        };
        let other = match &named {
            Named::Ours(ObjectName { kind: Kind::MqttInstance, .. }) => {
                self.origins.iter().find_map(|(other, origin)| match other {
                    Named::Ours(other) if other.kind == Kind::MqttInstance => Some(origin),
                    _ => None,
                })
            }
            _ => self.origins.get(&named),
        };
        let Some(other) = other else {
            self.origins.insert(named, origin);
            return;
        };
        let place = format!("{}, document {}", other.file.display(), other.number);
        let message = match kind {
            Some(Kind::MqttInstance) => {
                format!(
                    "a broker serves one MqttInstance, and there is one in {place}; remove one of the two"
                )
            }
            _ => format!("an object of this kind and name is in {place}, too; remove one of the two"),
        };
        self.problems.push(origin.problem("metadata.name", message));
    }

    /// `data` is base64, `stringData` is text and wins, as on a cluster.
    fn add_secret(&mut self, origin: &Origin) {
        let value = &origin.document.value;
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let entries = |field: &str| value.get(field).and_then(Value::as_object).into_iter().flatten();
        let mut values = BTreeMap::new();
        for (key, encoded) in entries("data") {
            let encoded: String = encoded.as_str().unwrap_or_default().split(['\r', '\n']).collect();
            match base64::engine::general_purpose::STANDARD.decode(encoded) {
                Ok(bytes) => {
                    values.insert(key.clone(), bytes);
                }
                Err(_) => {
                    let message = "is no base64; encode it, or move it to stringData".to_owned();
                    self.problems.push(origin.problem(&format!("data.{key}"), message));
                    self.unreadable = true;
                }
            }
        }
        for (key, plain) in entries("stringData") {
            values.insert(key.clone(), plain.as_str().unwrap_or_default().as_bytes().to_vec());
        }
        let namespace = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE).to_owned();
        let name = text("/metadata/name").unwrap_or_default().to_owned();
        self.secrets.insert((namespace, name), values);
    }
}

fn documents(file: &Path) -> Result<Vec<Document>, ManifestProblem> {
    let problem = |line, message| ManifestProblem {
        file: file.to_owned(),
        document: None,
        line,
        field: String::new(),
        message,
    };
    let text = fs::read_to_string(file).map_err(|error| {
        problem(None, format!("can't be read: {error}; make it a readable UTF-8 file, or remove it"))
    })?;
    yaml::documents(&text)
        .map_err(|error| problem(error.line, format!("is no YAML: {}; mend it from there", error.message)))
}

fn push<T: DeserializeOwned>(value: &Value, into: &mut Vec<T>) -> Result<(), String> {
    into.push(T::deserialize(value).map_err(|error| format!("can't be read: {error}; mend it"))?);
    Ok(())
}

fn unknown(api_version: &str, kind: &str) -> Invalid {
    let ours: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let message = format!(
        "{kind:?} of apiVersion {api_version:?} is not known here; write {} of {GROUP}/{VERSION}, or Secret of v1, or remove the document",
        ours.join(", ")
    );
    Invalid { field: "kind".into(), message }
}
