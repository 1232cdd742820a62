//! What a session costs in memory whose device is away and for which nothing waits: counted where memory is allotted, so that
//! neither the machine nor others on it matter.

use std::{alloc::System, sync::Arc};

use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Key, Phase, Session, Subscription, Value},
        view::View,
    },
    message::MessageId,
    topic::Filter,
    trie::Trie,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Where hash tables are fullest before they grow. So the bound holds for every number of sessions times 2 at most for what of it
/// is in such tables.
const SESSIONS: u64 = 14_000;

fn session(sid: MessageId) -> Session {
    Session {
        generation: 1_700_000_000_000,
        sequence: 1,
        won: true,
        phase: Phase::Offline,
        sid,
        boot: sid.boot,
        since: 1_700_000_000_000,
        expires_at: 1_700_000_000_000,
        expiry: 7200,
        sent_below: 0,
        node: "0".into(),
        user: "fleet".into(),
        peer: "10.11.12.13:50000".into(),
        protocol: 4,
        will: None,
    }
}

#[test]
fn a_session_with_three_subscriptions_takes_less_than_a_kilobyte() {
    let region = Region::new(ALLOCATOR);
    let (mut view, mut changes) = (View::default(), Vec::new());
    // As the router has it: a mailbox and options.
    let mut routes: Trie<u64, (Arc<u8>, u32, [u8; 4])> = Trie::new();
    let mailbox = Arc::new(0);
    for number in 1..=SESSIONS {
        let sid = MessageId { boot: 7, counter: number };
        let client = format!("meter-{number:06}");
        let key = Key::Session { nonce: sid, client: (&*client).into() };
        let value = Value::Session(Box::new(session(sid)));
        view.apply(4 * number, 0, 200, key, Some(value), &mut changes);
        for filter in ["command", "config/#", "firmware/+"] {
            let filter = format!("fleet/{client}/{filter}");
            let subscription = Subscription {
                sequence: 1,
                on: true,
                qos: QoS::AtLeastOnce,
                no_local: false,
                retain_as_published: false,
                id: None,
            };
            let parsed = Filter::parse(&filter).unwrap();
            routes.insert(&parsed, number, (mailbox.clone(), 0, [1, 0, 0, 1]));
            let key = Key::Filter { sid, generation: 1_700_000_000_000, filter: filter.into() };
            view.apply(4 * number + 1, 0, 100, key, Some(Value::Filter(subscription)), &mut changes);
        }
        changes.clear();
    }
    drop((changes, mailbox));
    let change = region.change();
    let bytes = (change.bytes_allocated - change.bytes_deallocated) as u64 / SESSIONS;
    println!("{bytes} bytes a session");
    assert_eq!((view.live() as u64, routes.len() as u64), (SESSIONS, 3 * SESSIONS));
    assert!(bytes < 800, "{bytes} bytes a session");
}
