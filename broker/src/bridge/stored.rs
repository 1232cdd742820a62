//! The record that a message under a registered parent becomes.
//!
//! Value: `{"clientId":…,"topic":…,"payload":…,"ts":ms}`; a payload that is not UTF-8 stands as base64 with
//! `"encoding":"base64"` beside it. Headers: `mqttTopic`, `qoslevel`, `clientId`, `messageId`.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use mqtt_proto::message::{Message, MessageId, Millis};
use serde::Serialize;

use crate::log::Record;

pub(crate) const MESSAGE_ID: &[u8] = b"messageId";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Value<'a> {
    client_id: &'a str,
    topic: &'a str,
    payload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    ts: Millis,
}

pub(crate) fn record(client_id: &str, message: &Message, key: Option<Bytes>, now: Millis) -> Record {
    let text = std::str::from_utf8(message.payload());
    let encoded = if text.is_err() { BASE64_STANDARD.encode(message.payload()) } else { String::new() };
    let value = Value {
        client_id,
        topic: message.topic(),
        payload: text.unwrap_or(&encoded),
        encoding: text.is_err().then_some("base64"),
        ts: now,
    };
    let mut json = Vec::with_capacity(96 + client_id.len() + message.topic().len() + message.payload().len());
    // Writing strings and numbers to memory can't fail.
    let _ = serde_json::to_writer(&mut json, &value);
    let header =
        |name: &'static [u8], value: &[u8]| (Bytes::from_static(name), Bytes::copy_from_slice(value));
    Record {
        key,
        value: Some(json.into()),
        headers: vec![
            header(b"mqttTopic", message.topic().as_bytes()),
            (Bytes::from_static(b"qoslevel"), Bytes::from_static(qos_digit(message))),
            header(b"clientId", client_id.as_bytes()),
            header(MESSAGE_ID, message_id(message.id).as_bytes()),
        ],
        created: timestamp(now),
    }
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
