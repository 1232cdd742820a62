//! What goes from the log by its topic's settings: owns retention and keep-latest compaction.
//!
//! *Retention* raises a partition's start, which is all that readers see of it; the sweeper then drops the
//! tables that lie wholly below. *Keep-latest* notes at each append which record it supersedes, and when that
//! one may go, in the `due` keyspace; each step removes some of what is due. Both happen on the store's thread
//! in bounded steps between batches; what takes long is the sweeper's, a thread beside it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fjall::{AbstractTree, Keyspace, OwnedWriteBatch, PersistMode};

use super::{
    EmbeddedOptions, PartitionId, Shared, TopicState,
    db::{Cause, Db, StoredBounds, bounds_key, bounds_value, guarded, offset_of},
    record::{self, Stamp},
    store::Store,
};
use crate::log::{Cleanup, Offset};

/// What one step removes at most, so that appends wait a few ms at most. After larger batches it is more:
/// cleaning keeps pace with the appends.
const STEP: usize = 500;
/// Keys beyond the database's own limit: their records are kept, whatever comes later.
const LONGEST_KEY: usize = 65_000;
/// Smaller partitions are not worth rewriting.
const REWRITE_FROM: u64 = 16 << 20;

/// How far the cleanup has come; starts anew with each opening of the database.
#[derive(Default)]
pub(super) struct Progress {
    /// All of `due` before this is gone.
    done: Vec<u8>,
    /// The first record of a partition with retention.
    first: HashMap<PartitionId, (Offset, Stamp)>,
    removed: HashMap<PartitionId, usize>,
    /// Records of the last batch.
    pub(super) pace: usize,
}

/// Work for the sweeper.
pub(super) enum Sweep {
    /// Drop the tables below the partition's start.
    Drop(PartitionId, StoredBounds),
    /// Rewrite the tables without what was removed.
    Rewrite(PartitionId),
}

/// Adds to a batch what an append to a keep-latest topic supersedes.
pub(super) struct Supersede<'a> {
    db: &'a Db,
    /// Offsets of keys earlier in the same batch.
    here: HashMap<Vec<u8>, Offset>,
    overwritten_due: i64,
    marker_due: i64,
}

impl<'a> Supersede<'a> {
    pub(super) fn new(db: &'a Db, options: &EmbeddedOptions, now: i64) -> Self {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let overwritten_due = now.saturating_add(millis(options.compaction_lag));
        let marker_due = overwritten_due.saturating_add(millis(options.delete_retention));
        Supersede { db, here: HashMap::new(), overwritten_due, marker_due }
    }

    pub(super) fn add(
        &mut self,
        batch: &mut OwnedWriteBatch,
        id: PartitionId,
        key: &[u8],
        deletes: bool,
        offset: Offset,
    ) -> Result<(), Cause> {
        if key.len() > LONGEST_KEY {
            return Ok(());
        }
        let latest = latest_key(id, key);
        let former = match self.here.get(&latest) {
            Some(former) => Some(*former),
            None => guarded(|| self.db.latest.get(&latest))?.and_then(|value| offset_of(&value)),
        };
        if let Some(former) = former {
            batch.insert(&self.db.due, due_key(self.overwritten_due, id, former), []);
        }
        if deletes {
            batch.insert(&self.db.due, due_key(self.marker_due, id, offset), key);
        }
        batch.insert(&self.db.latest, latest.as_slice(), offset.to_be_bytes());
        self.here.insert(latest, offset);
        Ok(())
    }
}

impl Store {
    /// One step of everything that is done from time to time. Returns when the next is due.
    pub(super) fn upkeep(&mut self) -> Instant {
        let more = self.db().and_then(|db| {
            db.check()?;
            self.flush_old(&db)?;
            self.retain(&db)?;
            self.compact(&db)
        });
        match more {
            Ok(true) => return Instant::now(),
            Ok(false) => {}
            Err(cause) => {
                self.recover(cause);
            }
        }
        Instant::now() + self.shared.options.cleanup_interval
    }

    /// Removes what is due; true when there is more.
    fn compact(&mut self, db: &Db) -> Result<bool, Cause> {
        let now = self.now().to_be_bytes();
        let mut batch = db.database.batch();
        let mut touched = HashSet::new();
        let mut steps = 0;
        // A record can bring two: what it overwrites, and itself when it is a delete marker.
        let most = STEP.max(self.cleaner.pace * 2);
        // The keys are taken out first: nothing below may fail halfway within the guard.
        let from = self.cleaner.done.as_slice();
        let items = guarded(|| {
            db.due
                .range(from..now.as_slice())
                .take(most)
                .map(fjall::Guard::into_inner)
                .collect::<Result<Vec<_>, _>>()
        })?;
        let mut done = self.cleaner.done.clone();
        for (due, key) in items {
            steps += 1;
            done.clear();
            done.extend_from_slice(&due);
            batch.remove(&db.due, due.clone());
            let Some((id, offset)) = parse_due(&due) else { continue };
            // Of a topic made by a later start of this store only, never of an unknown one.
            let Ok(records) = db.records(id) else { continue };
            batch.remove(records, offset.to_be_bytes());
            let marker = latest_key(id, &key);
            if !key.is_empty()
                && guarded(|| db.latest.get(&marker))?.is_some_and(|v| offset_of(&v) == Some(offset))
            {
                batch.remove(&db.latest, marker);
            }
            touched.insert(id);
            *self.cleaner.removed.entry(id).or_default() += 1;
        }
        // The last record may be among them, and offsets must not be given twice.
        for id in &touched {
            let end = self.tails.get(id).map_or(0, |tail| tail.next);
            batch.insert(&db.meta, bounds_key(*id), bounds_value(StoredBounds { start: 0, end }));
        }
        guarded(|| batch.commit())?;
        self.cleaner.done = done;
        for id in touched {
            let removed = self.cleaner.removed.get(&id).copied().unwrap_or_default();
            let records = db.records(id)?;
            // Of `approximate_len` the dead count twice, with what removed them: so rewriting once a third of
            // all records is dead costs no more than the appends did.
            let worth_it =
                removed >= records.tree.approximate_len() / 4 && records.disk_space() >= REWRITE_FROM;
            if worth_it && self.sweeper.try_send(Sweep::Rewrite(id)).is_ok() {
                self.cleaner.removed.remove(&id);
            }
        }
        Ok(steps == most)
    }

    /// Raises the start of each partition that holds more, or older, than it should.
    fn retain(&mut self, db: &Db) -> Result<(), Cause> {
        let now = self.now();
        let topics: Vec<Arc<TopicState>> = self.shared.topics.read().by_id.values().cloned().collect();
        let mut raised = Vec::new();
        for topic in &topics {
            let Cleanup::Retention { age, bytes } = topic.cleanup else { continue };
            let oldest =
                age.map_or(i64::MIN, |age| now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(now)));
            for (partition, state) in (0..).zip(&topic.partitions) {
                let id = PartitionId { topic: topic.handle.id(), partition };
                let start = state.start.load(Ordering::Acquire);
                let Some(tail) = self.tails.get(&id).copied() else { continue };
                let least = tail.bytes.saturating_sub(bytes.unwrap_or(u64::MAX));
                let goes = |stamp: Stamp| stamp.written < oldest || stamp.before < least;
                let records = db.records(id)?;
                let first = match self.cleaner.first.get(&id) {
                    Some(first) => Some(*first),
                    None => first_from(records, start)?,
                };
                let Some(first) = first else { continue };
                self.cleaner.first.insert(id, first);
                if !goes(first.1) {
                    continue;
                }
                self.cleaner.first.remove(&id);
                let start = first_kept(records, first.0, tail.next, goes)?;
                raised.push((id, state, StoredBounds { start, end: tail.next }));
            }
        }
        if raised.is_empty() {
            return Ok(());
        }
        // Synced before tables go: a start that fell back would hide the loss from readers.
        let mut batch = db.database.batch().durability(Some(PersistMode::SyncData));
        for (id, _, bounds) in &raised {
            batch.insert(&db.meta, bounds_key(*id), bounds_value(*bounds));
        }
        guarded(|| batch.commit())?;
        for (id, state, bounds) in raised {
            state.start.store(bounds.start, Ordering::Release);
            // When the sweeper has too much to do, the next rise of the start asks it again.
            let _ = self.sweeper.try_send(Sweep::Drop(id, bounds));
        }
        Ok(())
    }
}

/// Starts the thread that does what takes long. It ends with the returned channel.
pub(super) fn start_sweeper(shared: Arc<Shared>) -> std::io::Result<(SyncSender<Sweep>, JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(1_000);
    let sweep = move || run_sweeper(&shared, &receiver);
    let thread = std::thread::Builder::new().name("log-sweeper".to_owned()).spawn(sweep)?;
    Ok((sender, thread))
}

fn run_sweeper(shared: &Shared, work: &Receiver<Sweep>) {
    while let Ok(first) = work.recv() {
        // One pass for all that waits; of several drops in a partition the last is enough.
        let mut drops = HashMap::new();
        let mut rewrites = HashSet::new();
        for sweep in std::iter::once(first).chain(work.try_iter()) {
            match sweep {
                Sweep::Drop(id, bounds) => drop(drops.insert(id, bounds)),
                Sweep::Rewrite(id) => drop(rewrites.insert(id)),
            }
        }
        // While the log is being opened again there is nothing to sweep; the next opening starts anew.
        let Some(db) = shared.db() else { continue };
        if let Err(cause) = sweep(&db, &drops, &rewrites) {
            // The store notices by itself that the database failed.
            tracing::warn!("old records in {} could not be swept: {}", shared.dir.display(), cause.0);
        }
    }
}

fn sweep(
    db: &Db,
    drops: &HashMap<PartitionId, StoredBounds>,
    rewrites: &HashSet<PartitionId>,
) -> Result<(), Cause> {
    for (id, bounds) in drops {
        let records = db.records(*id)?;
        let emptied = bounds.start == bounds.end;
        if emptied {
            flush(db, records)?;
        }
        guarded(|| Ok(records.tree.drop_range(..bounds.start.to_be_bytes())?))?;
        if emptied {
            // The database tells by what a keyspace holds which journals it needs: one that holds nothing
            // keeps them for ever.
            guarded(|| records.remove(bounds.end.saturating_sub(1).to_be_bytes()))?;
        }
    }
    for id in rewrites {
        let records = db.records(*id)?;
        flush(db, records)?;
        guarded(|| records.major_compact())?;
    }
    db.let_go()
}

/// Writes the partition's memory out as a table, and waits for it for a while.
fn flush(db: &Db, records: &Keyspace) -> Result<(), Cause> {
    guarded(|| records.rotate_memtable())?;
    let until = Instant::now() + Duration::from_secs(10);
    while records.sealed_memtable_count() > 0 && Instant::now() < until {
        db.check()?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The first record at or after `from`.
fn first_from(records: &Keyspace, from: Offset) -> Result<Option<(Offset, Stamp)>, Cause> {
    let first =
        guarded(|| records.range(from.to_be_bytes()..).next().map(fjall::Guard::into_inner).transpose())?;
    let Some((key, value)) = first else { return Ok(None) };
    let parsed = offset_of(&key).zip(record::parse_stamp(&value));
    parsed
        .map(Some)
        .ok_or_else(|| Cause(format!("the record after offset {from} in {} is damaged", records.name())))
}

/// The first offset between `low`, which goes, and `end` whose record does not go. Stamps rise with offsets.
fn first_kept(
    records: &Keyspace,
    mut low: Offset,
    mut end: Offset,
    goes: impl Fn(Stamp) -> bool,
) -> Result<Offset, Cause> {
    while end - low > 1 {
        let middle = low + (end - low) / 2;
        match first_from(records, middle)? {
            Some((offset, stamp)) if offset < end && goes(stamp) => low = offset,
            _ => end = middle,
        }
    }
    Ok(end)
}

fn latest_key(id: PartitionId, key: &[u8]) -> Vec<u8> {
    [&id.to_bytes(), key].concat()
}

fn due_key(time: i64, id: PartitionId, offset: Offset) -> Vec<u8> {
    [time.to_be_bytes(), id.to_bytes(), offset.to_be_bytes()].concat()
}

fn parse_due(key: &[u8]) -> Option<(PartitionId, Offset)> {
    let (_, rest) = key.split_first_chunk::<8>()?;
    let (topic, rest) = rest.split_first_chunk()?;
    let (partition, rest) = rest.split_first_chunk()?;
    let id = PartitionId { topic: u32::from_be_bytes(*topic), partition: u32::from_be_bytes(*partition) };
    Some((id, offset_of(rest)?))
}
