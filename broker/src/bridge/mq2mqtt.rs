//! Messages from the cloud: records on `mq2mqtt` become publishes to devices.
//!
//! One task reads each partition from its last position and writes the new position after the messages before it
//! have been left for their sessions: a crash repeats some, it never skips one. A record that names no
//! publishable message goes to `mq2mqtt-rejected`, with the reason in a header.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mqtt_proto::{
    codec::QoS,
    message::{Message, MessageId},
    topic::check_topic,
};
use tokio::{sync::oneshot, time::Instant};

use super::stored::timestamp;
use crate::{
    limits::{Trouble, notice},
    log::{LogError, Offset, Outcome, ReadLimit, Record, StoredRecord, append_and_wait},
    node::{Delivered, Node},
    session::mailbox::{Mailbox, PATIENCE},
};

const REJECT_REASON: Bytes = Bytes::from_static(b"reason");
const POSITION_EVERY: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(1);
const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::from_secs(5) };

/// What a record asks for.
#[derive(Debug, PartialEq, Eq)]
struct Command<'a> {
    topic: &'a str,
    qos: QoS,
    /// Only to who is online.
    online_only: bool,
    payload: &'a [u8],
}

/// Why a record is no command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Reject {
    #[error("header mqttTopic is missing")]
    NoTopic,
    #[error("header {0} is not UTF-8")]
    NotText(&'static str),
    #[error("header mqttTopic: {0}")]
    BadTopic(mqtt_proto::topic::TopicError),
    #[error("header mqttTopic: names that begin with $ are the broker's own")]
    ReservedTopic,
    #[error("header qoslevel is not 0, 1 or 2")]
    BadQoS,
    #[error("header cleanSession is neither true nor false")]
    BadCleanSession,
    #[error("the record has no value")]
    NoValue,
    #[error("the message is larger than the instance's packet size")]
    TooLarge,
}

/// Reads one partition until the task is aborted.
pub(crate) async fn run(node: Arc<Node>, partition: u32) {
    let mut trouble = Trouble::default();
    let duty = format!("{}/{partition}", super::MQ2MQTT);
    loop {
        if !node.sessions.has_duty(&duty) {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if let Err(error) = read_on(&node, partition, &duty).await {
            let line = error.to_string();
            if trouble.is_due(&line) {
                tracing::warn!(partition, "mq2mqtt: {line}; trying again every {} s", RETRY.as_secs());
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns when another node does it.
async fn read_on(node: &Arc<Node>, partition: u32, duty: &str) -> Result<(), LogError> {
    let topics = node.bridge.topics();
    let mut position = last_position(node, partition).await?;
    let mut written = (position, Instant::now());
    loop {
        let batch = match node.log.read(&topics.mq2mqtt, partition, position, READ).await {
            Err(LogError::Lost { start }) => {
                tracing::warn!(
                    partition,
                    position,
                    start,
                    "mq2mqtt: records went by retention before they were read"
                );
                position = start;
                continue;
            }
            Err(LogError::Ahead { end }) => {
                let start = node.log.bounds(&topics.mq2mqtt, partition).await?.start;
                tracing::warn!(
                    partition,
                    position,
                    end,
                    "mq2mqtt: the partition is shorter than what was read of it: reading it from its start"
                );
                position = start;
                written = (start, Instant::now());
                continue;
            }
            batch => batch?,
        };
        let mut outcomes = Vec::new();
        for stored in &batch.records {
            outcomes.extend(handle(node, partition, stored).await);
        }
        for outcome in outcomes {
            if !matches!(outcome.await, Ok(Outcome::Durable(_))) {
                // They are read again, and some may come twice.
                return Err(LogError::Store("a message was not queued for who is offline".to_owned()));
            }
        }
        position = batch.next;
        if position > written.0 && (batch.records.is_empty() || written.1.elapsed() > POSITION_EVERY) {
            write_position(node, partition, position).await?;
            written = (position, Instant::now());
        }
        if !node.sessions.has_duty(duty) {
            return Ok(());
        }
    }
}

/// Returns what must be durable before the record is done with.
async fn handle(node: &Arc<Node>, partition: u32, stored: &StoredRecord) -> Vec<oneshot::Receiver<Outcome>> {
    let largest = node.settings().limits().packet_size as usize;
    match parse(&stored.record, largest) {
        Ok(command) => {
            let id = name(partition, stored);
            let mut message = Message::new(id, 0, command.topic, command.payload, command.qos, false);
            message.online_only = command.online_only;
            node.sessions.freshen().await;
            let how = if command.qos == QoS::ExactlyOnce { Delivered::Once } else { Delivered::Maybe };
            let (congested, outcomes) = node.deliver(super::MQ2MQTT, &Arc::new(message), how);
            wait_for_room(node, congested).await;
            return outcomes;
        }
        Err(reject) => {
            node.counters.bridge_rejects.add(1);
            notice!(node, bridge, offset = stored.offset, "mq2mqtt: record rejected: {reject}");
            put_aside(node, &stored.record, &reject).await;
        }
    }
    Vec::new()
}

/// A record's message has one name, whichever node delivers it, and however often: what sessions did with it is found under that.
/// The time is in it for a topic that was made anew.
fn name(partition: u32, stored: &StoredRecord) -> MessageId {
    let created = stored.record.created.cast_unsigned();
    MessageId { boot: (created << 16) ^ u64::from(partition), counter: stored.offset }
}

async fn wait_for_room(node: &Node, congested: Vec<Arc<Mailbox>>) {
    let caps = node.settings().caps();
    for mailbox in congested {
        let room = std::future::poll_fn(|context| match mailbox.has_room(caps, context) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        if tokio::time::timeout(PATIENCE, room).await.is_err() {
            node.counters.queue_full_drops.add(mailbox.drop_surplus(caps) as u64);
        }
    }
}

/// The rejected record with its reason; the partition goes on only once that is durable. A record that the log refuses as it is
/// (larger than the topic takes) is put aside without what makes it so.
async fn put_aside(node: &Node, record: &Record, reject: &Reject) {
    let topic = &node.bridge.topics().rejected;
    let mut rejected = record.clone();
    rejected.headers.push((REJECT_REASON, reject.to_string().into()));
    loop {
        rejected.created = timestamp(node.wall());
        match append_and_wait(&*node.log, topic, 0, rejected.clone()).await {
            Outcome::Durable(_) => return,
            Outcome::Refused
                if rejected.value.is_some() || rejected.key.is_some() || rejected.headers.len() > 1 =>
            {
                let reason = format!("{reject}; too large to be kept here as it was");
                rejected.headers = vec![(REJECT_REASON, reason.into())];
                rejected.value = None;
                rejected.key = None;
            }
            Outcome::Refused | Outcome::Broken => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn last_position(node: &Node, partition: u32) -> Result<Offset, LogError> {
    let topic = &node.bridge.topics().positions;
    let key = position_key(partition);
    let mut from = node.log.bounds(topic, 0).await?.start;
    let mut position = 0;
    loop {
        let batch = node.log.read(topic, 0, from, ReadLimit { wait: Duration::ZERO, ..READ }).await?;
        if batch.next == from {
            return Ok(position);
        }
        for stored in batch.records {
            if stored.record.key.as_ref() == Some(&key) {
                let value = stored.record.value.unwrap_or_default();
                position = value.as_ref().try_into().map(u64::from_be_bytes).unwrap_or(position);
            }
        }
        from = batch.next;
    }
}

async fn write_position(node: &Node, partition: u32, position: Offset) -> Result<(), LogError> {
    let record = Record {
        key: Some(position_key(partition)),
        value: Some(Bytes::copy_from_slice(&position.to_be_bytes())),
        headers: Vec::new(),
        created: timestamp(node.wall()),
    };
    match append_and_wait(&*node.log, &node.bridge.topics().positions, 0, record).await {
        Outcome::Durable(_) => Ok(()),
        Outcome::Refused | Outcome::Broken => Err(LogError::Store("the position was not written".to_owned())),
    }
}

fn position_key(partition: u32) -> Bytes {
    format!("{}/{partition}", super::MQ2MQTT).into()
}

fn parse(record: &Record, largest: usize) -> Result<Command<'_>, Reject> {
    let header = |name: &'static str| {
        let found = record.headers.iter().rev().find(|(key, _)| key == name.as_bytes());
        found.map(|(_, value)| std::str::from_utf8(value).map_err(|_| Reject::NotText(name))).transpose()
    };
    let topic = header("mqttTopic")?.ok_or(Reject::NoTopic)?;
    check_topic(topic).map_err(Reject::BadTopic)?;
    if topic.starts_with('$') {
        return Err(Reject::ReservedTopic);
    }
    let qos = match header("qoslevel")?.map(str::trim) {
        None | Some("1") => QoS::AtLeastOnce,
        Some("0") => QoS::AtMostOnce,
        Some("2") => QoS::ExactlyOnce,
        Some(_) => return Err(Reject::BadQoS),
    };
    let online_only = match header("cleanSession")?.map(str::trim) {
        None => false,
        Some(text) if text.eq_ignore_ascii_case("false") => false,
        Some(text) if text.eq_ignore_ascii_case("true") => true,
        Some(_) => return Err(Reject::BadCleanSession),
    };
    let payload = record.value.as_deref().ok_or(Reject::NoValue)?;
    // Fixed header, topic length and packet identifier take at most 9 bytes besides.
    if topic.len() + payload.len() + 9 > largest {
        return Err(Reject::TooLarge);
    }
    Ok(Command { topic, qos, online_only, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &[u8])], value: Option<&[u8]>, expected: Result<(&str, u8, bool), Reject>) {
        let headers =
            headers.iter().map(|(k, v)| (Bytes::copy_from_slice(k.as_bytes()), Bytes::copy_from_slice(v)));
        let record = Record {
            key: None,
            value: value.map(Bytes::copy_from_slice),
            headers: headers.collect(),
            created: 0,
        };
        let parsed = parse(&record, 64).map(|c| (c.topic, c.qos as u8, c.online_only));
        assert_eq!(parsed, expected, "{record:?}");
    }

    #[test]
    fn headers_say_where_and_how_and_anything_else_is_rejected() {
        let value = Some(&b"on"[..]);
        check(&[("mqttTopic", b"/a/b")], value, Ok(("/a/b", 1, false)));
        check(
            &[("mqttTopic", b"a"), ("qoslevel", b"0"), ("cleanSession", b"true")],
            value,
            Ok(("a", 0, true)),
        );
        check(
            &[("mqttTopic", b"a"), ("qoslevel", b"2"), ("cleanSession", b"False")],
            value,
            Ok(("a", 2, false)),
        );
        check(&[], value, Err(Reject::NoTopic));
        check(&[("mqttTopic", b"\xff")], value, Err(Reject::NotText("mqttTopic")));
        check(&[("mqttTopic", b"a/+")], value, Err(Reject::BadTopic(check_topic("a/+").unwrap_err())));
        check(&[("mqttTopic", b"$SYS/x")], value, Err(Reject::ReservedTopic));
        check(&[("mqttTopic", b"a"), ("qoslevel", b"3")], value, Err(Reject::BadQoS));
        check(&[("mqttTopic", b"a"), ("cleanSession", b"maybe")], value, Err(Reject::BadCleanSession));
        check(&[("mqttTopic", b"a")], None, Err(Reject::NoValue));
        check(&[("mqttTopic", b"a")], Some(&[0; 64]), Err(Reject::TooLarge));
    }
}
