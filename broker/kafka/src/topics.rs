//! Topics in Kafka: made with all their settings, or found and held to them.
//!
//! What the manifests name (partitions, retention, size of a record) is brought in line, and nothing else of the
//! topic is touched. What carries the promise (copies, in-sync replicas, compaction, timestamps) is verified and
//! never changed silently: a topic that does not keep it is refused, in one line that says how to mend it.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use crate::{
    admin::{Admin, Error, Fault, Look, Partition},
    plan::{self, Existing, SMALLEST_RECORD_BYTES, pairs},
    settings::TopicSettings,
};

/// How long until all of Kafka knows of a change.
const NEWS: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a topic turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub partitions: u32,
    /// Bytes; Kafka takes nothing larger.
    pub max_record: u32,
    pub min_in_sync: u32,
    /// It was not there before.
    pub made: bool,
}

/// Makes the topic, or verifies an existing one and brings what the manifests name in line.
pub async fn ensure(admin: &Admin, name: &str, settings: TopicSettings, copies: u16) -> Result<Found, Error> {
    check_name(name)?;
    let wanted = plan::wanted(settings, u32::from(copies));
    let until = Instant::now() + NEWS;
    let mut made = None;
    let configs = loop {
        if let Some(configs) = admin.describe(name).await? {
            break configs;
        }
        if made.is_none() {
            made = Some(admin.make(name, settings.partitions, copies, &wanted).await?);
        }
        if Instant::now() > until {
            return Err(Error::passing(format!("Kafka: topic {name} was made and is not there yet")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let configs = configs.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
    let mut existing = Existing { settings: configs.collect(), ..Existing::default() };
    let new = if made == Some(true) { 0..settings.partitions } else { 0..0 };
    (existing.partitions, existing.copies) = layout(admin, name, new, until).await?;
    let plan = plan::plan(&existing, &wanted, settings.partitions, u32::from(copies));
    if !plan.wrong.is_empty() {
        return Err(Error::new(Fault::Unfit, plan.complaint(name)));
    }
    if let Some(partitions) = plan.grow_to {
        admin.grow(name, partitions).await?;
        (existing.partitions, _) = layout(admin, name, existing.partitions..partitions, until).await?;
    }
    if !plan.alter.is_empty() {
        tracing::info!("Kafka: topic {name}: setting {}", pairs(&plan.alter));
        admin.alter(name, &plan.alter).await?;
        existing.settings.extend(plan.alter);
    }
    let number = |name: &str| existing.settings.get(name).and_then(|value| value.parse().ok());
    Ok(Found {
        partitions: existing.partitions,
        max_record: number("max.message.bytes").unwrap_or(settings.record_bytes.max(SMALLEST_RECORD_BYTES)),
        min_in_sync: number("min.insync.replicas").unwrap_or(1),
        made: made == Some(true),
    })
}

/// What Kafka allows as a topic's name.
fn check_name(name: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&name.len()) && name.chars().all(allowed) && name != "." && name != ".." {
        return Ok(());
    }
    let line =
        format!("Kafka has no topic names such as {name:?}: use 1 to 249 letters, digits, '.', '_' and '-'");
    Err(Error::new(Fault::Refused, line))
}

/// Partitions and copies, once each of the new partitions is there and has a leader.
async fn layout(admin: &Admin, name: &str, new: Range<u32>, until: Instant) -> Result<(u32, u32), Error> {
    loop {
        let Look { error, partitions, .. } = admin.look(name).await?;
        if let Some(error) = error.filter(|error| error.fault == Fault::Forbidden) {
            return Err(error);
        }
        let is_new = |partition: &&Partition| u32::try_from(partition.id).is_ok_and(|id| new.contains(&id));
        let ready = partitions.iter().filter(is_new).filter(|partition| partition.led).count();
        let copies = partitions.iter().map(|partition| partition.copies).min();
        if let Some(copies) = copies.filter(|_| ready == new.len()) {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            return Ok((count(partitions.len()), count(copies)));
        }
        if Instant::now() > until {
            return Err(Error::passing(match partitions.len() {
                0 => {
                    format!("Kafka has settings of topic {name} and no partitions: was it deleted just now?")
                }
                _ => format!("Kafka: topic {name}: {ready} of {} new partitions have a leader", new.len()),
            }));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_does_not_have_are_refused_before_it_is_asked() {
        let long = "a".repeat(250);
        for (name, good) in [
            ("readings", true),
            ("a.b_c-D9", true),
            ("", false),
            (".", false),
            ("..", false),
            ("ä", false),
            ("a/b", false),
            (&*long, false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
    }
}
