//! The database beneath the store: owns its files, their layout, and what must happen before they are trusted.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `meta` | `format` | the layout's version |
//! | | `topic/NAME` | id and settings as JSON |
//! | | `bounds/` topic, partition | start and least end offset |
//! | `records-T-P` | offset | the record |
//! | `latest` | topic, partition, record key | its latest offset, in topics that keep that |
//! | `due` | time, topic, partition, offset | what to do with that record then |
//!
//! Numbers are big endian, so that keys sort by them. A partition has a keyspace of its own so that what
//! retention takes away goes as whole tables. All keyspaces share one journal: one sync covers them all.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use fjall::{
    AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode,
    compaction::Leveled,
};
use serde::{Deserialize, Serialize};

use super::PartitionId;
use crate::log::{Cleanup, LogError, Offset, TopicSettings};

const FORMAT: u32 = 1;
/// The least the database takes. Its journals are cut at about this size, too.
const JOURNAL_BYTES: u64 = 64 << 20;
const CACHE_BYTES: u64 = 2 << 20;
/// How much of what retention took away may stay on disk in a partition, at most.
const TABLE_BYTES: u64 = 16 << 20;
const PROBE_BYTES: usize = 1 << 20;

/// What went wrong below, in words for one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause(pub(super) String);

/// The data directory, held for this process alone.
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// An open database; a clone is the same one.
#[derive(Clone)]
pub(super) struct Db {
    pub(super) database: Database,
    pub(super) meta: Keyspace,
    pub(super) latest: Keyspace,
    pub(super) due: Keyspace,
    records: HashMap<PartitionId, Keyspace>,
}

/// A topic as `meta` names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TopicEntry {
    pub(super) id: u32,
    pub(super) partitions: u32,
    pub(super) cleanup: CleanupEntry,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CleanupEntry {
    Retention { age_ms: Option<u64>, bytes: Option<u64> },
    KeepLatest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredBounds {
    pub(super) start: Offset,
    pub(super) end: Offset,
}

impl DataDir {
    /// Makes the directory when there is none.
    pub(super) fn lock(path: &Path) -> Result<DataDir, LogError> {
        let fail = |e: &dyn std::fmt::Display| {
            LogError::Store(format!("data directory {} cannot be used: {e}", path.display()))
        };
        std::fs::create_dir_all(path).map_err(|e| fail(&e))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|e| fail(&e))?;
        match lock.try_lock() {
            Ok(()) => Ok(DataDir { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(LogError::Store(format!(
                "data directory {} is in use by another process; stop that one or choose another directory",
                path.display()
            ))),
            Err(TryLockError::Error(e)) => Err(fail(&e)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Whether something can be written there now.
    pub(super) fn probe(&self) -> Result<(), Cause> {
        let path = self.path.join("probe");
        let result = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![1; PROBE_BYTES])?;
            file.sync_all()
        });
        // What could not be removed is overwritten by the next probe.
        let _ = std::fs::remove_file(&path);
        result.map_err(Cause::from)
    }

    /// Copies the journals of a closed database, and syncs the copies.
    ///
    /// After a failed sync the kernel takes pages for written that are not. What is read from such a journal
    /// may be gone after a power cut, and syncing it again says nothing. A copy is written anew.
    pub(super) fn rewrite_journals(&self) -> Result<(), Cause> {
        let store = self.store();
        for entry in std::fs::read_dir(&store)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                let copy = path.with_extension("copy");
                let result = copy_journal(&path, &copy).and_then(|()| std::fs::rename(&copy, &path));
                if let Err(e) = result {
                    let _ = std::fs::remove_file(&copy);
                    return Err(e.into());
                }
            }
        }
        File::open(&store)?.sync_all()?;
        Ok(())
    }
}

impl Db {
    pub(super) fn open(dir: &DataDir) -> Result<Db, LogError> {
        let store = dir.store();
        let fail = |cause: Cause| {
            LogError::Store(format!("the log in {} cannot be opened: {}", store.display(), cause.0))
        };
        make_once(dir).map_err(fail)?;
        let mut db = Db::open_keyspaces(&store).map_err(fail)?;
        db.check_format().map_err(fail)?;
        for (_, topic) in db.topics()? {
            db.open_partitions(topic.id, topic.partitions).map_err(fail)?;
        }
        Ok(db)
    }

    fn open_keyspaces(store: &Path) -> Result<Db, Cause> {
        guarded(|| {
            let database = Database::builder(store)
                .cache_size(CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES)
                .max_cached_files(Some(256))
                .journal_compression(CompressionType::None)
                .worker_threads(2)
                .open()?;
            let [meta, latest, due] =
                ["meta", "latest", "due"].map(|name| database.keyspace(name, keyspace_options));
            Ok(Db { meta: meta?, latest: latest?, due: due?, records: HashMap::new(), database })
        })
    }

    fn check_format(&self) -> Result<(), Cause> {
        let format = guarded(|| self.meta.get("format"))?;
        match format.as_ref().and_then(|format| Some(u32::from_be_bytes(format.as_ref().try_into().ok()?))) {
            Some(FORMAT) => Ok(()),
            Some(other) => Err(Cause(format!(
                "it has format {other}, this version reads {FORMAT}; start the version that wrote it, or choose \
                 an empty directory"
            ))),
            None => Err(Cause("its format is missing; restore the data directory".to_owned())),
        }
    }

    /// Makes or opens the partitions' keyspaces.
    pub(super) fn open_partitions(&mut self, topic: u32, partitions: u32) -> Result<(), Cause> {
        for partition in 0..partitions {
            let id = PartitionId { topic, partition };
            let name = format!("records-{topic}-{partition}");
            let keyspace = guarded(|| self.database.keyspace(&name, keyspace_options))?;
            self.records.insert(id, keyspace);
        }
        Ok(())
    }

    /// All topics by name.
    pub(super) fn topics(&self) -> Result<Vec<(String, TopicEntry)>, LogError> {
        let entries = guarded(|| {
            self.meta.prefix("topic/").map(fjall::Guard::into_inner).collect::<Result<Vec<_>, _>>()
        });
        let entries = entries
            .map_err(|cause| LogError::Store(format!("the log's topics cannot be read: {}", cause.0)))?;
        let parse = |(key, value): (fjall::UserKey, fjall::UserValue)| {
            let name = std::str::from_utf8(key.get("topic/".len()..)?).ok()?;
            Some((name.to_owned(), serde_json::from_slice(&value).ok()?))
        };
        let broken =
            || LogError::Store("the log's list of topics is damaged; restore the data directory".to_owned());
        entries.into_iter().map(|entry| parse(entry).ok_or_else(broken)).collect()
    }

    pub(super) fn save_topic(&self, name: &str, topic: &TopicEntry) -> Result<(), Cause> {
        let value = serde_json::to_vec(topic).map_err(|e| Cause(e.to_string()))?;
        guarded(|| {
            self.meta.insert(format!("topic/{name}"), value)?;
            self.database.persist(PersistMode::SyncAll)
        })
    }

    pub(super) fn records(&self, id: PartitionId) -> Result<&Keyspace, Cause> {
        self.records.get(&id).ok_or_else(|| Cause(format!("partition {id:?} is not open")))
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Keyspace)> {
        self.records.iter().map(|(id, keyspace)| (*id, keyspace))
    }

    pub(super) fn keyspaces(&self) -> impl Iterator<Item = &Keyspace> {
        [&self.meta, &self.latest, &self.due].into_iter().chain(self.records.values())
    }

    pub(super) fn bounds(&self, id: PartitionId) -> Result<StoredBounds, Cause> {
        let Some(value) = guarded(|| self.meta.get(bounds_key(id)))? else {
            return Ok(StoredBounds::default());
        };
        let parse = || {
            let (start, end) = value.split_first_chunk()?;
            Some(StoredBounds {
                start: u64::from_be_bytes(*start),
                end: u64::from_be_bytes(end.try_into().ok()?),
            })
        };
        parse().ok_or_else(|| Cause(format!("the bounds of {id:?} are damaged")))
    }

    /// An error when anything below has failed before, in the background, too.
    pub(super) fn check(&self) -> Result<(), Cause> {
        guarded(|| self.database.persist(PersistMode::Buffer))
    }

    /// Whether flushing and compacting keep up, so that more may be handed to them.
    pub(super) fn keeps_up(&self) -> bool {
        const MOST_RUNS: usize = 12;
        self.database.outstanding_flushes() == 0
            && self.keyspaces().all(|k| k.sealed_memtable_count() == 0 && k.tree.l0_run_count() < MOST_RUNS)
    }

    /// Hands what is in memory to the background for writing as tables, after which journals can go.
    pub(super) fn flush(&self) -> Result<(), Cause> {
        guarded(|| {
            for keyspace in self.keyspaces() {
                keyspace.rotate_memtable()?;
            }
            Ok(())
        })
    }

    /// Bytes in memory that are not written out yet.
    pub(super) fn memory(&self) -> u64 {
        self.database.write_buffer_size()
    }

    /// Frees memory that was written out, and deletes files that are of no use any more: the versions of the database
    /// that still name them go whenever some memory is handed over.
    pub(super) fn let_go(&self) -> Result<(), Cause> {
        guarded(|| {
            self.meta.insert("swept", [])?;
            self.meta.rotate_memtable().map(drop)
        })
    }
}

pub(super) fn bounds_key(id: PartitionId) -> Vec<u8> {
    [b"bounds/".as_slice(), &id.to_bytes()].concat()
}

pub(super) fn bounds_value(bounds: StoredBounds) -> Vec<u8> {
    [bounds.start.to_be_bytes(), bounds.end.to_be_bytes()].concat()
}

pub(super) fn offset_of(key: &[u8]) -> Option<Offset> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// Runs a call into the database, whose panics (it does not expect its own locks to be poisoned) are failures
/// like any other.
pub(super) fn guarded<T>(call: impl FnOnce() -> fjall::Result<T>) -> Result<T, Cause> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Cause::from),
        Err(_) => Err(Cause("the database panicked".to_owned())),
    }
}

/// Makes the database when there is none. It is made beside its place and moved there when it is whole: it
/// would stumble over the remains of an interrupted making.
fn make_once(dir: &DataDir) -> Result<(), Cause> {
    let (store, new) = (dir.store(), dir.path().join("store.new"));
    if store.try_exists()? {
        return match store.join("version").try_exists()? {
            true => Ok(()),
            false => Err(Cause("its version file is missing; restore the data directory".to_owned())),
        };
    }
    if new.try_exists()? {
        std::fs::remove_dir_all(&new)?;
    }
    let db = Db::open_keyspaces(&new)?;
    guarded(|| {
        db.meta.insert("format", FORMAT.to_be_bytes())?;
        db.database.persist(PersistMode::SyncAll)?;
        drop(db);
        Ok(())
    })?;
    std::fs::rename(&new, &store)?;
    Ok(File::open(dir.path())?.sync_all()?)
}

/// Journals are long files of which the end is still blank: that is not copied.
fn copy_journal(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = std::fs::read(from)?;
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let mut file = File::create(to)?;
    file.write_all(bytes.get(..used).unwrap_or_default())?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

fn keyspace_options() -> KeyspaceCreateOptions {
    // The store itself says when memory is written out (`Db::flush`), so this size is never reached.
    KeyspaceCreateOptions::default()
        .max_memtable_size(1 << 30)
        .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
}

impl From<TopicSettings> for CleanupEntry {
    fn from(settings: TopicSettings) -> Self {
        match settings.cleanup {
            Cleanup::KeepLatest => CleanupEntry::KeepLatest,
            Cleanup::Retention { age, bytes } => CleanupEntry::Retention {
                age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                bytes,
            },
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Cause(error.to_string())
    }
}

impl From<fjall::Error> for Cause {
    fn from(error: fjall::Error) -> Self {
        Cause(match error {
            fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => e.to_string(),
            fjall::Error::Poisoned => "a write in the background failed".to_owned(),
            fjall::Error::Locked => "it is still being closed".to_owned(),
            other => format!("{other:?}"),
        })
    }
}
