//! What a session costs in memory whose device is away and for which nothing waits: counted where memory is allotted, so that
//! neither the machine nor others on it matter.

use std::{alloc::System, collections::HashMap, sync::Arc};

use foldhash::fast::FixedState;
use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Key, Name, Phase, Session, Subscription, Value},
        view::View,
    },
    message::MessageId,
    topic::Filter,
    trie::Trie,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Hash tables have just grown, and are emptiest.
const SESSIONS: u64 = 14_400;

/// As large as the broker's; a test there says so. The first number is its key.
type Mailbox = [u64; 7];

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
        node: Name::new("0".into()),
        user: Name::new("fleet".into()),
        peer: Box::default(),
        protocol: 4,
        will: None,
    }
}

#[test]
fn a_session_with_three_subscriptions_takes_less_than_a_kilobyte() {
    let region = Region::new(ALLOCATOR);
    let (mut view, mut changes) = (View::default(), Vec::new());
    // As the broker has them: for each subscription a mailbox and options.
    let mut routes: Trie<Arc<Mailbox>, (u32, [u8; 4])> = Trie::new();
    let mut mailboxes: HashMap<MessageId, Arc<Mailbox>, FixedState> = HashMap::default();
    for number in 1..=SESSIONS {
        let sid = MessageId { boot: 7, counter: number };
        let mailbox = Arc::new([number; 7]);
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
            routes.insert(&parsed, mailbox.clone(), (0, [1, 0, 0, 1]));
            let key = Key::Filter { sid, generation: 1_700_000_000_000, filter: filter.into() };
            view.apply(4 * number + 1, 0, 100, key, Some(Value::Filter(subscription)), &mut changes);
        }
        mailboxes.insert(sid, mailbox);
        changes.clear();
    }
    drop(changes);
    let change = region.change();
    let bytes = (change.bytes_allocated - change.bytes_deallocated) as u64 / SESSIONS;
    println!("{bytes} bytes a session");
    assert_eq!((view.live() as u64, routes.len() as u64), (SESSIONS, 3 * SESSIONS));
    assert!(bytes < 900, "{bytes} bytes a session");
}
