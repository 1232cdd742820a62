//! What happens to a device at the broker, as its trace tells it: values of the topic [`TOPIC`], and pages of them.

use std::{borrow::Cow, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Where the events are, keyed by client ID, each client's in the partition that Kafka's Java client chooses for it.
pub const TOPIC: &str = crate::topics::DEVICE_TRACE;

/// One event. A record repeated after a failure has the same `id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceEvent<'a> {
    pub client_id: Cow<'a, str>,
    /// Milliseconds since the Unix epoch.
    pub ts: u64,
    /// The process run of the broker that saw it, `-`, and a number of its own, both in hexadecimal.
    pub id: Cow<'a, str>,
    #[serde(flatten)]
    pub what: Traced<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Traced<'a> {
    /// A device was let in.
    Connect {
        address: SocketAddr,
        /// The user that it acts as.
        user: Cow<'a, str>,
        /// The version of MQTT: `3.1`, `3.1.1` or `5.0`.
        protocol: Cow<'a, str>,
        clean_start: bool,
        session_present: bool,
        /// Seconds that its session outlives the connection.
        session_expiry: u32,
        /// Seconds; 0: none.
        keep_alive: u16,
    },
    /// It goes on with a stored session.
    Resumed {
        subscriptions: usize,
        /// Messages that have waited for it.
        queued: usize,
    },
    /// What its SUBSCRIBE was answered.
    Subscribed {
        filters: Vec<TracedFilter<'a>>,
        /// How many more filters it had, which are not listed.
        #[serde(default, skip_serializing_if = "is_zero")]
        more: usize,
    },
    /// Its connection ended.
    Disconnect {
        /// As MQTT 5 has it, whatever the device speaks; absent: neither side said goodbye.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<u8>,
        reason: Cow<'a, str>,
    },
    /// Its former session was dropped for a connection that comes from there.
    Discarded { address: SocketAddr, reason: Cow<'a, str> },
    /// Its live session was taken over by a connection that comes from there.
    Takeovered { address: SocketAddr },
}

/// A filter of a SUBSCRIBE: with a QoS, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TracedFilter<'a> {
    pub filter: Cow<'a, str>,
    /// What was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Cow<'a, str>>,
}

/// A part of an answer, in the order of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TracePage {
    pub events: Vec<TraceEvent<'static>>,
    /// The client's records that are no events known to this broker.
    #[serde(default)]
    pub unreadable: u64,
    /// Where the next part begins; absent: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(what: Traced<'static>, mut expected: Value) {
        let event =
            TraceEvent { client_id: "meter-1".into(), ts: 1_700_000_000_000, id: "1f-2".into(), what };
        let common = json!({"clientId": "meter-1", "ts": 1_700_000_000_000_u64, "id": "1f-2"});
        let fields = expected.as_object_mut().unwrap();
        fields.extend(common.as_object().unwrap().clone());
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), expected);
        assert_eq!(serde_json::from_str::<TraceEvent<'_>>(&json).unwrap(), event);
    }

    #[test]
    fn an_event_is_one_flat_object_and_comes_back_as_it_was() {
        let address: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        check(
            Traced::Connect {
                address,
                user: "fleet".into(),
                protocol: "3.1.1".into(),
                clean_start: false,
                session_present: true,
                session_expiry: 7200,
                keep_alive: 60,
            },
            json!({"event": "connect", "address": "192.0.2.1:5000", "user": "fleet", "protocol": "3.1.1",
                "cleanStart": false, "sessionPresent": true, "sessionExpiry": 7200, "keepAlive": 60}),
        );
        check(
            Traced::Resumed { subscriptions: 2, queued: 10 },
            json!({"event": "resumed", "subscriptions": 2, "queued": 10}),
        );
        check(
            Traced::Subscribed {
                filters: vec![
                    TracedFilter { filter: "a/#".into(), qos: Some(1), refused: None },
                    TracedFilter { filter: "b".into(), qos: None, refused: Some("not authorized".into()) },
                ],
                more: 0,
            },
            json!({"event": "subscribed",
                "filters": [{"filter": "a/#", "qos": 1}, {"filter": "b", "refused": "not authorized"}]}),
        );
        check(
            Traced::Disconnect { code: None, reason: "gone".into() },
            json!({"event": "disconnect", "reason": "gone"}),
        );
        check(
            Traced::Disconnect { code: Some(0x8e), reason: "taken over".into() },
            json!({"event": "disconnect", "code": 142, "reason": "taken over"}),
        );
        check(
            Traced::Discarded { address, reason: "clean start".into() },
            json!({"event": "discarded", "address": "192.0.2.1:5000", "reason": "clean start"}),
        );
        check(Traced::Takeovered { address }, json!({"event": "takeovered", "address": "192.0.2.1:5000"}));
    }
}
