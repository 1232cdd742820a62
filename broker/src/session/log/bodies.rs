//! Finds the messages of a queue again: of those that wait for a device that is away only the place in the log is kept.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use mqtt_proto::{
    durable::{
        record::{Offset, Value},
        view::Entry,
    },
    message::{Message, MessageId},
};

use super::{SessionLog, replay, write};
use crate::log::{LogError, ReadLimit};

const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::ZERO };
/// How often what is not where it was is looked for elsewhere: a repeat of its record may have taken its place.
const ROUNDS: usize = 3;

impl SessionLog {
    /// The messages of these entries of one session's queue. What was finished meanwhile is left out.
    pub(crate) async fn bodies(
        &self,
        partition: u32,
        sid: MessageId,
        entries: &[(Offset, Entry)],
    ) -> Result<HashMap<MessageId, Arc<Message>>, LogError> {
        let mut found = HashMap::new();
        let mut wanted: BTreeMap<Offset, MessageId> =
            entries.iter().map(|(_, entry)| (entry.at, entry.mid)).collect();
        for _ in 0..ROUNDS {
            self.look_up(partition, &mut wanted, &mut found).await?;
            let missing: Vec<MessageId> = wanted.into_values().collect();
            if missing.is_empty() {
                return Ok(found);
            }
            let moved = self.with(partition, |state| {
                let session = state.view.remains(sid).map(|session| session.queue());
                let entries = session.into_iter().flat_map(|queue| queue.values());
                let missing = entries.filter(|entry| missing.contains(&entry.mid));
                missing.map(|entry| (entry.at, entry.mid)).collect()
            });
            wanted = moved.unwrap_or_default();
        }
        match wanted.first_key_value() {
            None => Ok(found),
            Some((offset, _)) => {
                let topic = self.topic.name();
                Err(LogError::Store(format!("topic {topic} has no message at offset {offset} any more")))
            }
        }
    }

    /// Takes out of `wanted` what is there.
    async fn look_up(
        &self,
        partition: u32,
        wanted: &mut BTreeMap<Offset, MessageId>,
        found: &mut HashMap<MessageId, Arc<Message>>,
    ) -> Result<(), LogError> {
        let mut from = wanted.first_key_value().map(|(offset, _)| *offset);
        while let Some(at) = from {
            let last = wanted.last_key_value().map_or(at, |(last, _)| *last);
            let records = usize::try_from(last - at).unwrap_or(usize::MAX).saturating_add(1);
            let limit = ReadLimit { records: records.min(READ.records), ..READ };
            let batch = self.log.read(&self.topic, partition, at, limit).await?;
            for stored in &batch.records {
                let Some(mid) = wanted.get(&stored.offset).copied() else { continue };
                if let (_, Some(Value::Message(queued))) = replay::parse(&self.topic, partition, stored)? {
                    found.insert(mid, Arc::new(write::message_of(mid, &queued.content)));
                    wanted.remove(&stored.offset);
                }
            }
            // On from the next that is wanted: what lies between need not be read.
            let next = batch.next.max(at + 1);
            from = wanted.range(next..).next().map(|(offset, _)| *offset);
        }
        Ok(())
    }
}
