//! The record that a message under a registered parent becomes.
//!
//! Value: `{"clientId":…,"topic":…,"payload":…,"ts":ms}`; a payload that is not UTF-8 stands as base64 with
//! `"encoding":"base64"` beside it. Headers: `mqttTopic`, `qoslevel`, `clientId`, `messageId`.

use std::{io::Write, ops::Range};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use mqtt_proto::message::{Message, MessageId, Millis};

use crate::log::Record;

pub(crate) const MESSAGE_ID: &[u8] = b"messageId";

pub(crate) fn record(client_id: &str, message: &Message, key: Option<Bytes>, now: Millis) -> Record {
    let (topic, payload) = (message.topic(), message.payload());
    // Value and headers lie in one buffer, with room for base64.
    let size = 160 + 2 * (client_id.len() + topic.len()) + payload.len().div_ceil(3) * 4;
    let mut buffer = Vec::with_capacity(size);
    buffer.extend_from_slice(b"{\"clientId\":");
    push_text(&mut buffer, client_id);
    buffer.extend_from_slice(b",\"topic\":");
    push_text(&mut buffer, topic);
    buffer.extend_from_slice(b",\"payload\":");
    match std::str::from_utf8(payload) {
        Ok(text) => push_text(&mut buffer, text),
        Err(_) => {
            buffer.push(b'"');
            push_base64(&mut buffer, payload);
            buffer.extend_from_slice(b"\",\"encoding\":\"base64\"");
        }
    }
    buffer.extend_from_slice(b",\"ts\":");
    let _ = write!(buffer, "{now}}}");
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

/// As a JSON string. Writing to memory can't fail, nor can a string as JSON.
fn push_text(buffer: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(buffer, text);
}

fn push_base64(buffer: &mut Vec<u8>, bytes: &[u8]) {
    let start = buffer.len();
    buffer.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let room = buffer.get_mut(start..).unwrap_or_default();
    let written = BASE64_STANDARD.encode_slice(bytes, room).unwrap_or_default();
    buffer.truncate(start + written);
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

#[cfg(test)]
mod tests {
    use mqtt_proto::codec::QoS;

    use super::*;

    #[test]
    fn a_payload_stands_as_text_or_else_as_base64_in_json_that_any_reader_takes() {
        for (client_id, topic, payload, text, encoding) in [
            ("meter-1", "readings/1", &b"21.5"[..], "21.5", None),
            ("m\"e\\t", "r/\u{1}\u{e9}", "a\"\n\u{7f}".as_bytes(), "a\"\n\u{7f}", None),
            ("m", "r", b"", "", None),
            ("m", "r", b"\xff", "/w==", Some("base64")),
            ("m", "r", b"\xff\x00\x01\x02", "/wABAg==", Some("base64")),
        ] {
            let message =
                Message::new(MessageId { boot: 1, counter: 2 }, 0, topic, payload, QoS::AtLeastOnce, false);
            let record = record(client_id, &message, None, 1_700_000_000_000);
            let value: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
            let mut expected = serde_json::json!({
                "clientId": client_id, "topic": topic, "payload": text, "ts": 1_700_000_000_000_u64,
            });
            if let Some(encoding) = encoding {
                expected["encoding"] = encoding.into();
            }
            assert_eq!(value, expected);
        }
    }
}
