//! The files that `run` reads, and what is wrong with one: a line of file, line, field and what to do.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mqtt_broker_api::{
    acl::AclDocument,
    node::{self, NodeConfig},
    shards::{self, AclShard},
    yaml::{self, Document},
};

use crate::peers::settings::NODE;

/// The config file, with the lines that its fields stand in.
pub(super) struct File {
    path: PathBuf,
    hash: String,
    document: Document,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<File, String> {
        let text = read_text(path)?;
        let at_line = |line: Option<u64>| line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let documents = yaml::documents(&text).map_err(|error| {
            let (line, message) = (at_line(error.line), error.message);
            format!("{}: {line}is no YAML: {message}; mend it from there", path.display())
        })?;
        let count = documents.len();
        match <[Document; 1]>::try_from(documents) {
            Ok([document]) => Ok(File { path: path.to_owned(), hash: node::hash(&text), document }),
            Err(_) => Err(format!("{}: has {count} documents; write one", path.display())),
        }
    }

    /// By which the admin endpoint says that it is in force.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    pub(super) fn node_config(&self) -> Result<NodeConfig, String> {
        serde_path_to_error::deserialize(&self.document.value)
            .map_err(|error| self.problem(&field(error.path()), &format!("{}; mend it", error.inner())))
    }

    /// What each field says by itself, but not beside the others.
    pub(super) fn contradictions(&self, config: &NodeConfig) -> Vec<String> {
        let NodeConfig { instance, shared, acl, tls, peers, data, .. } = config;
        let mut found = Vec::new();
        if acl.is_empty() {
            found.push(("acl", "is empty; name the folder that the shards of the ACL document are in"));
        }
        match (instance.listeners.use_tls(), tls) {
            (true, None) => {
                found.push((
                    "tls",
                    "is missing; name the certificate for instance.listeners.mqtts and wss, or remove those",
                ));
            }
            (false, Some(_)) => {
                found.push(("tls", "has no listener; set instance.listeners.mqtts or wss, or remove this"));
            }
            (true, Some(_)) | (false, None) => {}
        }
        match (&instance.kafka, data) {
            (None, None) => {
                found.push(("data", "is missing; name a folder to store in, or set instance.kafka"))
            }
            (Some(_), Some(_)) => {
                found.push(("data", "stands beside instance.kafka; remove one of the two"));
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if *shared && instance.kafka.is_none() {
            found.push((
                "shared",
                "is true, and there is no Kafka to share; set instance.kafka, or remove this",
            ));
        }
        if peers.is_some() && !shared {
            found.push(("peers", "is for nodes that share a Kafka; set shared, or remove this"));
        }
        if peers.as_ref().is_some_and(|peers| !peers.address.contains(NODE)) {
            found.push(("peers.address", "is the same for all nodes; write ${node} where their names stand"));
        }
        found.into_iter().map(|(field, message)| self.problem(field, message)).collect()
    }

    /// One line about a field; an empty one is the whole.
    pub(super) fn problem(&self, field: &str, message: &str) -> String {
        let mut line = format!("{}: ", self.path.display());
        if let Some(number) = self.document.line(field) {
            line.push_str(&format!("line {number}: "));
        }
        if !field.is_empty() {
            line.push_str(&format!("{field}: "));
        }
        line + message
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path)
        .map_err(|error| format!("{}: can't be read: {error}; put readable UTF-8 there", path.display()))
}

/// The document that the shards at these paths make, or one line why there is none.
pub(super) fn read_acl(paths: &[PathBuf]) -> Result<AclDocument, String> {
    let mut shards = Vec::new();
    for path in paths {
        for file in shard_files(path)? {
            shards.push(read_shard(&file)?);
        }
    }
    shards::join(shards).map_err(|error| {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        format!("{} in {}", error, paths.join(", "))
    })
}

fn shard_files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: io::Error| format!("{}: can't be read: {error}", path.display());
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(vec![path.to_owned()]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(unreadable)?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if file.extension().is_some_and(|extension| extension == "json") && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_shard(file: &Path) -> Result<AclShard, String> {
    let text = read_text(file)?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let read = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| (field(error.path()), error.into_inner()))
        .and_then(|shard| json.end().map_err(|error| (String::new(), error)).map(|()| shard));
    read.map_err(|(field, error)| {
        let line = error.line();
        // What stands in the place of a password's hash may be a password.
        let message =
            if field.contains("passwords") { "is no password hash".into() } else { error.to_string() };
        let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
        format!("{}: line {line}: {place}{message}", file.display())
    })
}

/// The path as problems show it; the whole is empty.
fn field(path: &serde_path_to_error::Path) -> String {
    let text = path.to_string();
    if text == "." { String::new() } else { text }
}
