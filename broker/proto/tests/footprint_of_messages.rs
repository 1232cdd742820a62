//! What a QoS 2 message costs in memory that its receiver has taken and let go of: counted where memory is allotted.

use std::alloc::System;

use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Content, Key, Progress, QueuedMessage, Recipient, Value, Why},
        view::View,
    },
    message::MessageId,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Where hash tables are fullest before they grow: right behind that each message takes twice as much.
const MESSAGES: u64 = 28_000;

#[test]
fn a_finished_message_takes_little_and_one_that_is_forgotten_nothing() {
    let region = Region::new(ALLOCATOR);
    let (mut view, mut changes) = (View::default(), Vec::new());
    let id = |counter| MessageId { boot: 7, counter };
    let sid = id(0);
    let mut tell = |key, value| {
        view.apply(1, 0, 200, key, value, &mut changes);
        changes.clear();
    };
    let message = |counter| Key::Message { mid: id(counter), boot: 7, chunk: counter };
    let progress = |counter| Key::Progress { mid: id(counter), sid, boot: 7 };
    for counter in 1..=MESSAGES {
        let content = Content {
            qos: QoS::ExactlyOnce,
            retain: false,
            expires_at: None,
            forwarded: b"",
            topic: "a",
            payload: b"b",
        };
        let recipient = Recipient {
            sid,
            qos: QoS::ExactlyOnce,
            retain: false,
            maybe_sent: false,
            subscription_ids: None,
        };
        let queued = QueuedMessage { once: true, group: None, recipients: vec![recipient], content };
        tell(message(counter), Some(Value::Message(queued)));
        tell(progress(counter), Some(Value::Progress(Progress::Received(1))));
        tell(progress(counter), Some(Value::Progress(Progress::Done(Why::Acknowledged))));
    }
    let each = || {
        let change = region.change();
        (change.bytes_allocated as i64 - change.bytes_deallocated as i64) / MESSAGES as i64
    };
    let waiting = each();
    (1..=MESSAGES).for_each(|counter| tell(message(counter), None));
    let finished = each();
    (1..=MESSAGES).for_each(|counter| tell(progress(counter), None));
    println!("{waiting}, {finished} and {} bytes a message", each());
    assert!(finished < 72 && each() < 8, "{finished} bytes, then {}", each());
}
