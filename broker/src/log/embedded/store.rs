//! The store's one thread: owns the database, gives offsets, and tells each append its outcome.
//!
//! Whatever waits is written as one atomic batch with one sync; meanwhile the next batch gathers. So the rate
//! of syncs adapts to the disk by itself, and a lone append waits for no one.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::SyncSender},
    thread::JoinHandle,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use fjall::PersistMode;
use tokio::sync::watch;

use super::{
    Partition, PartitionId, Shared, TopicState,
    cleanup::{self, Sweep},
    db::{Cause, CleanupEntry, DataDir, Db, TopicEntry, guarded, offset_of},
    queue::{Ensure, Entry},
    record::{self, Stamp},
};
use crate::{
    allocator,
    log::{Cleanup, LogError, Offset, Outcome, Topic, TopicSettings},
};

/// More partitions than any topic needs; each costs a folder and a few files.
const MOST_PARTITIONS: u32 = 1_000;
/// Kafka's bound, so that what works here works there.
const LONGEST_NAME: usize = 249;

pub(super) struct Store {
    pub(super) dir: DataDir,
    pub(super) shared: Arc<Shared>,
    /// The same as in `shared`; `None` only while it is opened again.
    pub(super) db: Option<Arc<Db>>,
    pub(super) tails: HashMap<PartitionId, Tail>,
    pub(super) sweeper: SyncSender<Sweep>,
    pub(super) cleaner: cleanup::Progress,
    /// Bytes written since memory was last handed over for flushing, and when that was.
    unflushed: u64,
    flushed: Instant,
    /// Until old versions are let go, the database keeps in memory what it has written out, too.
    lets_go: bool,
    /// The latest time a record was stamped with: stamps never go back.
    clock: i64,
}

/// Where a partition's next record goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    pub(super) next: Offset,
    /// `Stamp::before` of the next record.
    pub(super) bytes: u64,
}

/// Opens the database in `dir` and runs the store on it until the queue is closed; `ended` becomes true then.
pub(super) fn start(
    dir: DataDir,
    shared: Arc<Shared>,
    ended: watch::Sender<bool>,
) -> Result<JoinHandle<()>, LogError> {
    let (mut store, sweeper) = Store::open(dir, shared)?;
    let run = move || {
        store.run();
        drop(store);
        // The sweeper ends with its channel; its panic was logged where it happened.
        let _ = sweeper.join();
        ended.send_replace(true);
    };
    std::thread::Builder::new().name("log-store".to_owned()).spawn(run).map_err(spawn_error)
}

fn spawn_error(error: std::io::Error) -> LogError {
    LogError::Store(format!("no thread could be started for the log: {error}"))
}

impl Store {
    /// Also starts the sweeper, which ends when the store is dropped.
    pub(super) fn open(dir: DataDir, shared: Arc<Shared>) -> Result<(Store, JoinHandle<()>), LogError> {
        let db = Db::open(&dir)?;
        let (sweeper, thread) = cleanup::start_sweeper(shared.clone()).map_err(spawn_error)?;
        let mut store = Store {
            dir,
            shared,
            db: None,
            tails: HashMap::new(),
            sweeper,
            cleaner: cleanup::Progress::default(),
            unflushed: 0,
            flushed: Instant::now(),
            lets_go: false,
            clock: 0,
        };
        store.adopt(db)?;
        Ok((store, thread))
    }

    fn run(&mut self) {
        let mut batch = Vec::new();
        let mut upkeep = Instant::now();
        loop {
            let (ensures, finished) = self.shared.queue.take(&mut batch, upkeep);
            for ensure in ensures {
                self.ensure(ensure);
            }
            self.settle(&mut batch);
            if Instant::now() >= upkeep {
                upkeep = self.upkeep();
                allocator::tidy();
            }
            if finished && batch.is_empty() {
                break;
            }
        }
        self.close_db();
    }

    /// Writes the batch, however long it takes, and tells its outcomes. Empties it.
    fn settle(&mut self, batch: &mut Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        let mut bytes = 0;
        let mut written = true;
        while let Err(cause) = self.write(batch) {
            if !self.recover(cause) {
                written = false;
                break;
            }
        }
        if written {
            self.publish(batch);
        }
        let records = batch.len();
        self.cleaner.pace = records;
        for entry in batch.drain(..) {
            bytes += entry.size();
            entry.tell(match (&entry.encoded, entry.offset) {
                (None, _) => Outcome::Refused,
                (Some(_), Some(offset)) if written => Outcome::Durable(offset),
                // Closed during an outage: what was once tried may be found by the next start.
                (Some(_), Some(_)) => Outcome::Broken,
                (Some(_), None) => Outcome::Refused,
            });
        }
        self.shared.queue.room.free(bytes, records);
        self.unflushed += bytes as u64;
        self.keep_memory_small();
    }

    /// One atomic batch, synced. What a former try brought into the log is left alone.
    pub(super) fn write(&mut self, entries: &mut [Entry]) -> Result<(), Cause> {
        let db = self.db()?;
        let written = self.now();
        let options = &self.shared.options;
        let mut batch = db.database.batch().durability(Some(PersistMode::SyncData));
        let mut compaction = cleanup::Supersede::new(&db, options, written);
        for entry in entries {
            let Some(tail) = self.tails.get_mut(&entry.partition) else {
                entry.encoded = None;
                continue;
            };
            let Some(encoded) = &mut entry.encoded else { continue };
            if entry.offset.is_some_and(|offset| offset < tail.next) {
                continue;
            }
            let offset = tail.next;
            record::stamp(encoded, Stamp { written, before: tail.bytes });
            batch.insert(db.records(entry.partition)?, offset.to_be_bytes(), encoded.as_slice());
            if let Some(key) = &entry.key {
                compaction.add(&mut batch, entry.partition, key, entry.deletes, offset)?;
            }
            entry.offset = Some(offset);
            *tail = Tail { next: offset + 1, bytes: tail.bytes + encoded.len() as u64 };
        }
        guarded(|| batch.commit())
    }

    pub(super) fn publish(&self, entries: &[Entry]) {
        let mut ends: HashMap<PartitionId, Offset> = HashMap::new();
        for entry in entries {
            if let Some(offset) = entry.offset {
                ends.insert(entry.partition, offset + 1);
            }
        }
        let topics = self.shared.topics.read();
        for (id, end) in ends {
            let topic = topics.by_id.get(&id.topic);
            if let Some(partition) = topic.and_then(|topic| topic.partitions.get(id.partition as usize)) {
                partition.end.send_replace(end);
            }
        }
    }

    /// Hands memory over to the background in rounds, and waits when that falls far behind: the database
    /// itself would wait for ever for workers that died of a full disk.
    fn keep_memory_small(&mut self) {
        let round = self.shared.options.flush_bytes;
        while self.unflushed >= round {
            let Ok(db) = self.db() else { return };
            let result = if db.keeps_up() {
                self.flush(&db)
            } else if self.unflushed < round.saturating_mul(4) {
                return;
            } else {
                std::thread::sleep(std::time::Duration::from_millis(5));
                db.check()
            };
            drop(db);
            if let Err(cause) = result
                && !self.recover(cause)
            {
                return;
            }
        }
    }

    /// Writes out what has been in memory for long: otherwise what a busy minute left there, or the journal at the start,
    /// would stay for as long as little is appended.
    pub(super) fn flush_old(&mut self, db: &Db) -> Result<(), Cause> {
        let options = &self.shared.options;
        let (is_old, is_worth_it) =
            (self.flushed.elapsed() >= options.flush_age, db.memory() >= options.flush_least);
        if !db.keeps_up() {
            return Ok(());
        }
        if is_old && is_worth_it {
            return self.flush(db);
        }
        if std::mem::take(&mut self.lets_go) { db.let_go() } else { Ok(()) }
    }

    fn flush(&mut self, db: &Db) -> Result<(), Cause> {
        (self.unflushed, self.flushed, self.lets_go) = (0, Instant::now(), true);
        db.flush()
    }

    fn ensure(&mut self, ensure: Ensure) {
        let made = self.make_topic(&ensure.name, ensure.settings);
        let (answer, failed) = match made {
            Ok(topic) => (Ok(topic), None),
            Err(Ensuring::Asked(error)) => (Err(error), None),
            Err(Ensuring::Failed(cause)) => {
                let text = format!("topic {:?} cannot be made: {}", ensure.name, cause.0);
                (Err(LogError::Store(text)), Some(cause))
            }
        };
        // Who asked may have given up waiting.
        let _ = ensure.reply.send(answer);
        if let Some(cause) = failed {
            self.recover(cause);
        }
    }

    pub(super) fn make_topic(&mut self, name: &str, settings: TopicSettings) -> Result<Topic, Ensuring> {
        let refuse = |text: &str| Err(Ensuring::Asked(LogError::Settings(format!("topic {name:?} {text}"))));
        if name.is_empty() || name.len() > LONGEST_NAME {
            return refuse("needs a name of 1 to 249 bytes");
        }
        if settings.partitions == 0 || settings.partitions > MOST_PARTITIONS {
            return refuse("needs between 1 and 1000 partitions");
        }
        let old = self.shared.topics.read().by_name.get(name).cloned();
        let kind = |cleanup| matches!(cleanup, Cleanup::KeepLatest);
        if old.as_ref().is_some_and(|old| kind(old.cleanup) != kind(settings.cleanup)) {
            return refuse("exists with the other kind of cleanup, which cannot change; use another name");
        }
        let (id, had) = match &old {
            Some(old) => (old.handle.id(), old.partitions.len() as u32),
            None => (self.shared.topics.read().by_id.keys().max().map_or(0, |id| id + 1), 0),
        };
        let partitions = settings.partitions.max(had);
        if let Some(old) = &old
            && had == partitions
            && old.cleanup == settings.cleanup
        {
            return Ok(old.handle.clone());
        }
        let mut db = Db::clone(&*self.db()?);
        db.open_partitions(id, partitions)?;
        db.save_topic(name, &TopicEntry { id, partitions, cleanup: settings.into() })?;
        for partition in had..partitions {
            let id = PartitionId { topic: id, partition };
            let tail = load_tail(&db, id)?;
            self.tails.insert(id, tail);
        }
        self.set_db(db);
        Ok(self.register(name, TopicEntry { id, partitions, cleanup: settings.into() })?)
    }

    /// Makes a topic known to everybody, or changes what is known of it. Its tails are there.
    fn register(&self, name: &str, entry: TopicEntry) -> Result<Topic, Cause> {
        let mut topics = self.shared.topics.write();
        let old = topics.by_name.get(name).cloned();
        let handle = match &old {
            Some(old) => old.handle.clone(),
            None => Topic::new(name, entry.id, entry.partitions),
        };
        let mut partitions = old.map_or_else(Vec::new, |old| old.partitions.clone());
        for partition in partitions.len() as u32..entry.partitions {
            let id = PartitionId { topic: entry.id, partition };
            let start = self.db()?.bounds(id)?.start;
            let end = self.tails.get(&id).map_or(start, |tail| tail.next);
            partitions.push(Arc::new(Partition { start: start.into(), end: watch::Sender::new(end) }));
        }
        let state =
            Arc::new(TopicState { handle: handle.clone(), cleanup: entry.cleanup.into(), partitions });
        topics.by_name.insert(name.to_owned(), state.clone());
        topics.by_id.insert(entry.id, state);
        handle.grow(entry.partitions);
        Ok(handle)
    }

    /// Takes a database that was just opened: reads where its partitions end, and shows it to readers.
    /// Refuses one that lacks what was told durable.
    pub(super) fn adopt(&mut self, db: Db) -> Result<(), LogError> {
        let entries = db.topics()?;
        let fail =
            |cause: Cause| LogError::Store(format!("the log in {}: {}", self.dir.path().display(), cause.0));
        let mut tails = HashMap::new();
        for (id, _) in db.partitions() {
            tails.insert(id, load_tail(&db, id).map_err(fail)?);
        }
        for (id, topic) in &self.shared.topics.read().by_id {
            for (partition, known) in (0..).zip(&topic.partitions) {
                let (name, end) = (topic.handle.name(), *known.end.borrow());
                let next = tails.get(&PartitionId { topic: *id, partition }).map_or(0, |tail| tail.next);
                if next < end {
                    return Err(fail(Cause(format!(
                        "partition {partition} of topic {name:?} ends at offset {next}, but {end} was confirmed; \
                         restore the data directory and start again"
                    ))));
                }
            }
        }
        self.unflushed = db.memory();
        self.tails = tails;
        self.cleaner = cleanup::Progress::default();
        self.set_db(db);
        for (name, entry) in entries {
            self.register(&name, entry).map_err(|cause| LogError::Store(cause.0))?;
        }
        Ok(())
    }

    fn set_db(&mut self, db: Db) {
        let db = Arc::new(db);
        self.db = Some(db.clone());
        *self.shared.db.write() = Some(db);
    }

    /// Closes the database once nobody reads any more.
    pub(super) fn close_db(&mut self) {
        self.shared.db.write().take();
        let Some(mut db) = self.db.take() else { return };
        // Reads are short, and no new one begins. A sweep ends in seconds.
        for _ in 0..10_000 {
            match Arc::try_unwrap(db) {
                Ok(last) => {
                    let _ = guarded(move || {
                        drop(last);
                        Ok(())
                    });
                    return;
                }
                Err(still) => db = still,
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub(super) fn db(&self) -> Result<Arc<Db>, Cause> {
        self.db.clone().ok_or_else(|| Cause("the log is not open".to_owned()))
    }

    /// Milliseconds since the Unix epoch; never goes back while this process runs.
    pub(super) fn now(&mut self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.clock = self.clock.max(i64::try_from(now).unwrap_or(i64::MAX));
        self.clock
    }
}

pub(super) enum Ensuring {
    /// What was asked for cannot be.
    Asked(LogError),
    Failed(Cause),
}

impl From<Cause> for Ensuring {
    fn from(cause: Cause) -> Self {
        Ensuring::Failed(cause)
    }
}

fn load_tail(db: &Db, id: PartitionId) -> Result<Tail, Cause> {
    let least = db.bounds(id)?.end;
    let last =
        guarded(|| db.records(id).ok().and_then(|k| k.last_key_value()).map(|g| g.into_inner()).transpose())?;
    let Some((key, value)) = last else { return Ok(Tail { next: least, ..Tail::default() }) };
    let (Some(offset), Some(stamp)) = (offset_of(&key), record::parse_stamp(&value)) else {
        return Err(Cause(format!("the last record of {id:?} is damaged; restore the data directory")));
    };
    let bytes = stamp.before.saturating_add(value.len() as u64);
    Ok(Tail { next: least.max(offset.saturating_add(1)), bytes })
}

impl From<CleanupEntry> for Cleanup {
    fn from(entry: CleanupEntry) -> Self {
        match entry {
            CleanupEntry::KeepLatest => Cleanup::KeepLatest,
            CleanupEntry::Retention { age_ms, bytes } => {
                Cleanup::Retention { age: age_ms.map(std::time::Duration::from_millis), bytes }
            }
        }
    }
}
