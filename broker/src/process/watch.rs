//! Watches the files that documents come from, and puts changes in force.
//!
//! They are looked at rather than listened to: that sees every way a file can change, the switched symbolic links of
//! a mounted ConfigMap included, and costs a few system calls.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mqtt_broker_api::config::Listeners;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{Documents, Source, store::Store};
use crate::{listener::tls::Current, node::Node, peers, settings::Settings};

const TRY_AGAIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A change of several files is awaited until two looks in a row see the same, but not longer than this many looks.
const MOST_LOOKS: u32 = 4;

/// What tells one state of some files from another: each one's name, inode, size and times.
pub(crate) type Fingerprint = Vec<(PathBuf, u64, u64, i64, i64, i64, i64)>;

/// What changes are put in force on.
pub(super) struct Steered {
    pub(super) node: Arc<Node>,
    pub(super) store: Store,
    /// Of the listeners that speak TLS.
    pub(super) terms: Option<Arc<Current>>,
    /// Where the sockets are: they stay.
    pub(super) listeners: Listeners,
    /// Of the links to other nodes, if there are to be any.
    pub(super) peers: Option<Arc<peers::Current>>,
}

/// Finds changes of a source.
pub(super) struct Watcher<S> {
    /// Loads block, so they have a thread of their own.
    source: Arc<Mutex<S>>,
    /// What was there at the last load.
    seen: Fingerprint,
}

impl<S: Source> Watcher<S> {
    /// `seen`: what was there before the source was loaded.
    pub(super) fn new(source: S, seen: Fingerprint) -> Self {
        Watcher { source: Arc::new(Mutex::new(source)), seen }
    }

    /// Waits for a change, and loads what is there then.
    pub(super) async fn change(&mut self) -> Result<Documents, Vec<String>> {
        let mut last_look = Fingerprint::new();
        let mut looks = 0;
        let current = loop {
            sleep(LOOK_EVERY).await;
            let current = fingerprint(&self.source.lock().watched());
            if current == self.seen {
                looks = 0;
                continue;
            }
            looks += 1;
            if current == last_look || looks >= MOST_LOOKS {
                break current;
            }
            last_look = current;
        };
        let source = self.source.clone();
        let loaded = tokio::task::spawn_blocking(move || source.lock().load()).await;
        // A file that was being written is read again: its fingerprint differs then.
        self.seen = current;
        loaded
            .unwrap_or_else(|error| Err(vec![format!("the loading broke off: {error}; restart the broker")]))
    }

    /// The next look finds a change.
    fn forget(&mut self) {
        self.seen = Fingerprint::new();
    }
}

/// Runs until its task is aborted. Documents that can't be used leave the last good state in force.
pub(super) async fn run<S: Source>(mut watcher: Watcher<S>, steered: Steered) {
    loop {
        match watcher.change().await {
            Ok(documents) => {
                if !apply::<S>(&steered, documents).await {
                    // The log could not take it on: the same documents may do later.
                    watcher.forget();
                    sleep(TRY_AGAIN).await;
                }
            }
            Err(problems) => report::<S>(problems),
        }
    }
}

/// True unless the settings could not be put in force.
async fn apply<S: Source>(steered: &Steered, documents: Documents) -> bool {
    let Steered { node, store, terms, listeners, peers } = steered;
    for warning in &documents.warnings {
        tracing::warn!("{warning}");
    }
    if !documents.config.listeners.are_where(listeners) {
        tracing::warn!("the listeners stay where they are until the broker is started again");
    }
    store.follow(&documents);
    if documents.config.kafka.is_some() && documents.node.is_some() != node.sessions.shared {
        tracing::info!("whether other nodes serve from the same Kafka has changed");
        node.sessions.end_here();
    }
    match (peers, documents.peers) {
        (Some(current), Some(new)) => {
            let new = Arc::new(new);
            let former = current.swap(new.clone());
            if former.listen != new.listen {
                tracing::warn!("the listener for peers stays where it is until the broker is started again");
            }
        }
        (None, None) => {}
        _ if node.sessions.shared => {
            tracing::info!("whether there are links to other nodes has changed");
            node.sessions.end_here();
        }
        _ => {}
    }
    if let (Some(terms), Some(new)) = (terms, documents.tls) {
        let old = terms.swap(new.clone());
        if !Arc::ptr_eq(&old, &new) {
            tracing::info!("new connections over TLS are met with the new certificate");
        }
    }
    // There was one at the start, and a good one stays until there is another.
    let Some(acl) = documents.acl else { return true };
    match Settings::compile(documents.config, &acl, &*node.log).await {
        Ok(settings) => {
            node.apply(settings).await;
            node.config_hash.store(documents.config_hash.map(Arc::new));
            tracing::info!("{} applied", S::NAME);
            true
        }
        Err(problems) => {
            report::<S>(problems.lines);
            false
        }
    }
}

pub(super) fn report<S: Source>(problems: Vec<String>) {
    for problem in problems {
        tracing::error!("{} not applied, the last good state stays: {problem}", S::NAME);
    }
}

/// Of files, and of what is in folders. Taken before they are loaded, it lets the first look find what has changed
/// since. What is not there counts for nothing.
pub(crate) fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let of = |path: PathBuf, meta: Metadata| {
        let (ino, size) = (meta.ino(), meta.size());
        (path, ino, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
    };
    let mut found = Fingerprint::new();
    for path in paths {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
                found.extend(entries.filter_map(|path| fs::metadata(&path).ok().map(|meta| of(path, meta))));
            }
            Ok(meta) => found.push(of(path.clone(), meta)),
            Err(_) => {}
        }
    }
    found.sort();
    found
}
