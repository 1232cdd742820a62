//! Watches the manifests' folder and puts changes in force.
//!
//! The folder is looked at rather than listened to: that sees every way a file can change, the switched symbolic
//! links of a mounted ConfigMap included, and costs a few system calls.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::interval;

use super::{
    manifests::{Loaded, Manifests},
    store::Store,
};
use crate::{node::Node, settings::Settings};

const TRY_AGAIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A change of several files is awaited until two looks in a row see the same, but not longer than this many looks.
const MOST_LOOKS: u32 = 4;

/// What tells one state of a folder from another: each file's name, inode, size and times.
pub(super) type Fingerprint = Vec<(PathBuf, u64, u64, i64, i64, i64, i64)>;

/// Runs until its task is aborted; `loaded` is the folder's state whose manifests are in force. Manifests that can't be used leave the last good state in force.
pub(super) async fn run(
    node: Arc<Node>,
    store: Store,
    folder: PathBuf,
    manifests: Manifests,
    loaded: Fingerprint,
) {
    let mut manifests = manifests;
    let mut seen = loaded;
    let mut ticks = interval(LOOK_EVERY);
    let mut last_look = Fingerprint::new();
    let mut looks = 0;
    loop {
        ticks.tick().await;
        let current = fingerprint(&folder);
        if current == seen {
            looks = 0;
            continue;
        }
        looks += 1;
        let still_changing = current != last_look;
        last_look.clone_from(&current);
        if still_changing && looks < MOST_LOOKS {
            continue;
        }
        looks = 0;
        let read = tokio::task::spawn_blocking(move || {
            let loaded = manifests.load();
            (manifests, loaded)
        });
        let loaded = match read.await {
            Ok((back, loaded)) => {
                manifests = back;
                loaded
            }
            Err(error) => {
                tracing::error!("manifests are no longer watched: {error}; restart the broker");
                return;
            }
        };
        // A file that was being written is read again: its fingerprint differs then.
        seen = current;
        match loaded {
            Ok(loaded) => {
                if !apply(&node, &store, loaded).await {
                    // The log could not take it on: the same manifests may do later.
                    seen = Fingerprint::new();
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
            Err(problems) => report(problems),
        }
    }
}

/// True unless the settings could not be put in force.
async fn apply(node: &Node, store: &Store, loaded: Loaded) -> bool {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    store.follow(&loaded);
    match Settings::compile(loaded.config, &loaded.acl, &*node.log).await {
        Ok(settings) => {
            node.apply(settings);
            tracing::info!("manifests applied");
            true
        }
        Err(problems) => {
            report(problems.lines);
            false
        }
    }
}

fn report(problems: Vec<impl std::fmt::Display>) {
    for problem in problems {
        tracing::error!("manifests not applied, the last good state stays: {problem}");
    }
}

/// Taken before the manifests are loaded, it lets the first look find what has changed since.
pub(super) fn fingerprint(folder: &Path) -> Fingerprint {
    let mut found: Fingerprint = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let meta = fs::metadata(&path).ok()?;
            Some((
                path,
                meta.ino(),
                meta.size(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            ))
        })
        .collect();
    found.sort();
    found
}
