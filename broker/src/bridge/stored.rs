//! The record that a message under a registered parent becomes.
//!
//! Value: `{"clientId":…,"topic":…,"payload":…,"ts":ms}`; a payload that is not UTF-8 stands as base64 with
//! `"encoding":"base64"` beside it. Headers: `mqttTopic`, `qoslevel`, `clientId`, `messageId`.

use std::ops::Range;

use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use bytes::Bytes;
use mqtt_proto::message::{Message, MessageId, Millis};
use serde::{Serialize, Serializer};

use crate::log::Record;

pub(crate) const MESSAGE_ID: &[u8] = b"messageId";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Value<'a> {
    client_id: &'a str,
    topic: &'a str,
    payload: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    ts: Millis,
}

enum Payload<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Payload::Text(text) => serializer.serialize_str(text),
            Payload::Binary(bytes) => serializer.collect_str(&Base64Display::new(bytes, &BASE64_STANDARD)),
        }
    }
}

pub(crate) fn record(client_id: &str, message: &Message, key: Option<Bytes>, now: Millis) -> Record {
    let (topic, payload) = (message.topic(), message.payload());
    let (payload, encoding) = match std::str::from_utf8(payload) {
        Ok(text) => (Payload::Text(text), None),
        Err(_) => (Payload::Binary(payload), Some("base64")),
    };
    let value = Value { client_id, topic, payload, encoding, ts: now };
    // Value and headers lie in one buffer, with room for base64.
    let size = 160 + 2 * (client_id.len() + topic.len()) + message.payload().len().div_ceil(3) * 4;
    let mut buffer = Vec::with_capacity(size);
    // Writing to memory can't fail, nor can strings and numbers as JSON.
    let _ = serde_json::to_writer(&mut buffer, &value);
    let value = 0..buffer.len();
    let topic = push(&mut buffer, topic.as_bytes());
    let client_id = push(&mut buffer, client_id.as_bytes());
    let id = push(&mut buffer, message_id(message.id).as_bytes());
    let buffer = Bytes::from(buffer);
    let header = |name: &'static [u8], value| (Bytes::from_static(name), buffer.slice(value));
    Record {
        key,
        value: Some(buffer.slice(value)),
        headers: vec![
            header(b"mqttTopic", topic),
            (Bytes::from_static(b"qoslevel"), Bytes::from_static(qos_digit(message))),
            header(b"clientId", client_id),
            header(MESSAGE_ID, id),
        ],
        created: timestamp(now),
    }
}

fn push(buffer: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    let start = buffer.len();
    buffer.extend_from_slice(bytes);
    start..buffer.len()
}

/// How a message ID stands in a record: boot and counter in hexadecimal.
pub(crate) fn message_id(id: MessageId) -> String {
    format!("{:016x}-{:x}", id.boot, id.counter)
}

pub(crate) fn timestamp(now: Millis) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX)
}

fn qos_digit(message: &Message) -> &'static [u8] {
    match message.qos as u8 {
        0 => b"0",
        1 => b"1",
        _ => b"2",
    }
}
