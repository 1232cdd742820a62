//! Records of the log over HTTP.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use mqtt_broker_api::{
    admin::{Appended, NewRecord, RecordView, Text},
    topics::MQ2MQTT,
};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Serving;
use crate::{
    bridge::stored::timestamp,
    log::{LogError, Offset, Outcome, ReadLimit, Record, StoredRecord, Topic, append_and_wait},
    node::Node,
};

const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::ZERO };
const FOLLOW_WAIT: Duration = Duration::from_secs(5);
const AHEAD_WAIT: Duration = Duration::from_millis(200);
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pieces of an answer that may wait for a slow reader.
const PIECES: usize = 4;

#[derive(Deserialize)]
pub(super) struct Range {
    from: Option<Offset>,
    #[serde(default)]
    follow: bool,
}

/// Somebody listening to one answer.
type Listener = mpsc::Sender<Result<Bytes, LogError>>;

pub(super) async fn read(
    Serving(node): Serving,
    Path(name): Path<String>,
    Query(Range { from, follow }): Query<Range>,
) -> Response {
    let Some(topic) = node.log.topic(&name) else {
        let why = format!("topic {name:?} is not in the log: register it as a ParentTopic\n");
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    let (send, receive) = mpsc::channel(PIECES);
    let partitions = 0..topic.partitions();
    if follow {
        for partition in partitions {
            let (node, topic, send) = (node.clone(), topic.clone(), send.clone());
            tokio::spawn(async move { stream(&node, &topic, partition, from, true, &send).await });
        }
    } else {
        tokio::spawn(async move {
            for partition in partitions {
                stream(&node, &topic, partition, from, false, &send).await;
            }
        });
    }
    let body = Body::from_stream(futures_util::stream::unfold(receive, async |mut receive| {
        let piece = receive.recv().await?;
        Some((piece, receive))
    }));
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Sends one partition's records until its end; with `follow` until nobody listens.
async fn stream(
    node: &Node,
    topic: &Topic,
    partition: u32,
    from: Option<Offset>,
    follow: bool,
    listener: &Listener,
) {
    let mut position = from.unwrap_or(0);
    let limit = ReadLimit { wait: if follow { FOLLOW_WAIT } else { Duration::ZERO }, ..READ };
    while !listener.is_closed() {
        let batch = match node.log.read(topic, partition, position, limit).await {
            // Asked for the oldest, or for what is gone: begin at what there is.
            Err(LogError::Lost { start }) => {
                position = start;
                continue;
            }
            // Asked for what is yet to come.
            Err(LogError::Ahead { .. }) if follow => {
                tokio::time::sleep(AHEAD_WAIT).await;
                continue;
            }
            Err(LogError::Ahead { .. }) => return,
            Err(error) => {
                // The answer breaks off; who asked can't be told why any more.
                tracing::warn!("reading records of topic {}: {error}", topic.name());
                return drop(listener.send(Err(error)).await);
            }
            Ok(batch) => batch,
        };
        if batch.next == position && !follow {
            return;
        }
        position = batch.next;
        let piece: Vec<u8> = batch.records.iter().flat_map(|stored| line(topic, partition, stored)).collect();
        if !piece.is_empty() && listener.send(Ok(piece.into())).await.is_err() {
            return;
        }
    }
}

fn line(topic: &Topic, partition: u32, stored: &StoredRecord) -> Vec<u8> {
    let record = &stored.record;
    let view = RecordView {
        topic: topic.name().to_owned(),
        partition,
        offset: stored.offset,
        timestamp: record.created,
        key: record.key.as_deref().map(text),
        value: record.value.as_deref().map(text),
        headers: record
            .headers
            .iter()
            .map(|(k, v)| (String::from_utf8_lossy(k).into_owned(), text(v)))
            .collect(),
    };
    let mut line = serde_json::to_vec(&view).unwrap_or_default();
    line.push(b'\n');
    line
}

pub(super) async fn append(
    Serving(node): Serving,
    Path(name): Path<String>,
    Json(new): Json<NewRecord>,
) -> Response {
    if name != MQ2MQTT {
        let why = format!("records are appended to {MQ2MQTT} only; devices publish to the others\n");
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let (Ok(key), Ok(value)) = (new.key.map(bytes).transpose(), new.value.map(bytes).transpose()) else {
        return (StatusCode::BAD_REQUEST, "key or value is not base64\n").into_response();
    };
    let topic = &node.bridge.topics().mq2mqtt;
    let partition = match &key {
        Some(key) => mqtt_proto::murmur2::partition(key, topic.partitions()),
        None => {
            u32::try_from(node.next_message_id().counter % u64::from(topic.partitions().max(1))).unwrap_or(0)
        }
    };
    let record = Record {
        key,
        value,
        headers: new.headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        created: timestamp(node.wall()),
    };
    let appended = append_and_wait(&*node.log, topic, partition, record);
    match tokio::time::timeout(APPEND_TIMEOUT, appended).await {
        Ok(Outcome::Durable(offset)) => Json(Appended { topic: name, partition, offset }).into_response(),
        Ok(_) | Err(_) => {
            let why = format!("the record was not durable within {} s\n", APPEND_TIMEOUT.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

fn text(bytes: &[u8]) -> Text {
    match std::str::from_utf8(bytes) {
        Ok(text) => Text::Utf8(text.to_owned()),
        Err(_) => Text::Base64 { base64: BASE64_STANDARD.encode(bytes) },
    }
}

fn bytes(text: Text) -> Result<Bytes, base64::DecodeError> {
    match text {
        Text::Utf8(text) => Ok(text.into()),
        Text::Base64 { base64 } => BASE64_STANDARD.decode(base64).map(Bytes::from),
    }
}
