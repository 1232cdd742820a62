//! Records come back as they were written; other bytes are refused, whatever they are.

use super::record::*;
use crate::{codec::QoS, message::MessageId, test_random::Random};

struct Pool {
    texts: Vec<String>,
    bytes: Vec<Vec<u8>>,
}

fn number(random: &mut Random) -> u64 {
    let bits = random.below(64);
    (random.below(usize::MAX) as u64) >> bits
}

fn id(random: &mut Random) -> MessageId {
    MessageId { boot: number(random), counter: number(random) }
}

fn text(random: &mut Random) -> String {
    ["", "a", "é/+/#", "client-1", "\0"][random.below(5)].repeat(1 + random.below(3))
}

fn flag(random: &mut Random) -> bool {
    random.below(2) == 1
}

fn qos(random: &mut Random) -> QoS {
    QoS::try_from(random.below(3) as u8).unwrap()
}

fn option<T>(random: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    flag(random).then(|| make(random))
}

fn content<'a>(random: &mut Random, pool: &'a Pool) -> Content<'a> {
    Content {
        qos: qos(random),
        retain: flag(random),
        expires_at: option(random, number),
        forwarded: &pool.bytes[random.below(pool.bytes.len())],
        topic: &pool.texts[random.below(pool.texts.len())],
        payload: &pool.bytes[random.below(pool.bytes.len())],
    }
}

fn session(random: &mut Random) -> Session {
    Session {
        generation: number(random),
        sequence: number(random),
        won: flag(random),
        phase: [Phase::Online, Phase::Offline, Phase::Ended][random.below(3)],
        sid: id(random),
        boot: number(random),
        since: number(random),
        expires_at: number(random),
        expiry: number(random) as u32,
        sent_below: number(random),
        node: Name::new(text(random).into()),
        user: Name::new(text(random).into()),
        peer: text(random).into(),
        protocol: number(random) as u8,
        will: option(random, |random| {
            Box::new(Will {
                mid: option(random, id),
                delay: number(random) as u32,
                due_at: option(random, number),
                topic: text(random).into(),
                payload: text(random).into_bytes().into(),
                qos: qos(random),
                retain: flag(random),
                expiry: option(random, |random| number(random) as u32),
                forwarded: text(random).into_bytes().into(),
            })
        }),
    }
}

fn recipient(random: &mut Random) -> Recipient {
    let ids: Box<[u32]> = (0..random.below(3)).map(|_| number(random) as u32).collect();
    let subscription_ids = (!ids.is_empty()).then_some(ids);
    let (retain, maybe_sent) = (flag(random), flag(random));
    Recipient { sid: id(random), qos: qos(random), retain, maybe_sent, subscription_ids }
}

fn record<'a>(random: &mut Random, pool: &'a Pool) -> (Key, Value<'a>) {
    let whys = [Why::Acknowledged, Why::Dropped, Why::Expired, Why::TooLarge, Why::Moved];
    match random.below(13) {
        0 => (
            Key::Identity,
            Value::Identity(Identity {
                log: u128::from(number(random)) << 70,
                partitions: number(random) as u32,
                format: number(random) as u8,
            }),
        ),
        1 => (
            Key::Session { nonce: id(random), client: text(random).into() },
            Value::Session(Box::new(session(random))),
        ),
        2 => (
            Key::Filter { sid: id(random), generation: number(random), filter: text(random).into() },
            Value::Filter(Subscription {
                sequence: number(random),
                on: flag(random),
                qos: qos(random),
                no_local: flag(random),
                retain_as_published: flag(random),
                id: option(random, |random| number(random) as u32),
            }),
        ),
        3 => (
            Key::Message { mid: id(random), boot: number(random), chunk: number(random) },
            Value::Message(QueuedMessage {
                once: flag(random),
                group: option(random, |random| pool.texts[random.below(pool.texts.len())].as_str()),
                recipients: (0..random.below(4)).map(|_| recipient(random)).collect(),
                content: content(random, pool),
            }),
        ),
        4 => (
            Key::Progress { mid: id(random), sid: id(random), boot: number(random) },
            Value::Progress(match flag(random) {
                true => Progress::Received(number(random) as u16),
                false => Progress::Done(whys[random.below(whys.len())]),
            }),
        ),
        5 => (
            Key::Inbound { sid: id(random), generation: number(random), packet_id: number(random) as u16 },
            Value::Inbound(Inbound {
                mid: id(random),
                digest: number(random),
                at: number(random),
                parent: text(random).into(),
                partition: number(random) as u32,
                from: number(random),
            }),
        ),
        6 => (
            Key::Tick { boot: number(random) },
            Value::Tick { node: "n", run: number(random), shared: flag(random) },
        ),
        7 => (Key::Barrier { boot: number(random) }, Value::Barrier(number(random))),
        8 => (
            Key::Announced { boot: number(random), filter: text(random).into() },
            Value::Announced(Announced { sequence: number(random), on: flag(random) }),
        ),
        9 => (Key::Down { boot: number(random) }, Value::Down),
        10 => (
            Key::Alive { boot: number(random) },
            Value::Alive(Alive {
                node: "n",
                at: number(random),
                connections: number(random),
                subscriptions: number(random),
            }),
        ),
        11 => (
            Key::Passed { boot: number(random), sequence: number(random) },
            Value::Passed(Passed {
                mid: id(random),
                to: (0..random.below(4)).map(|_| number(random)).collect(),
                group: option(random, |random| pool.texts[random.below(pool.texts.len())].as_str()),
                content: content(random, pool),
            }),
        ),
        _ => (
            Key::Retained { mid: id(random), topic: text(random).into() },
            Value::Retained(content(random, pool)),
        ),
    }
}

fn generated(seed: u64, mut check: impl FnMut(&mut Random, Vec<u8>, Vec<u8>, (Key, Value<'_>))) {
    let mut random = Random::new(seed);
    let pool = Pool {
        texts: (0..8).map(|_| text(&mut random)).collect(),
        bytes: (0..8).map(|_| (0..random.below(40)).map(|_| random.below(256) as u8).collect()).collect(),
    };
    for _ in 0..2_000 {
        let (key, value) = record(&mut random, &pool);
        let (key_bytes, value_bytes) = (key.encode(), value.encode());
        check(&mut random, key_bytes, value_bytes, (key, value));
    }
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    generated(1, |_, key_bytes, value_bytes, (key, value)| {
        assert_eq!(parse(&key_bytes, Some(&value_bytes)), Ok((key.clone(), Some(value))));
        assert_eq!(parse(&key_bytes, None), Ok((key, None)));
    });
}

#[test]
fn damaged_bytes_are_refused_or_are_another_record_and_never_more_than_they_say() {
    let mut refused = 0;
    generated(2, |random, key, value, _| {
        for _ in 0..20 {
            let (mut key, mut value) = (key.clone(), value.clone());
            let damaged = if flag(random) { &mut key } else { &mut value };
            match random.below(3) {
                0 => damaged.truncate(random.below(damaged.len())),
                1 => {
                    let at = random.below(damaged.len());
                    damaged[at] ^= 1 << random.below(8);
                }
                _ => damaged.push(random.below(256) as u8),
            }
            match parse(&key, Some(&value)) {
                Err(_) => refused += 1,
                // One form a record: what is read is what is written.
                Ok((parsed, content)) => {
                    assert_eq!(parsed.encode(), key);
                    assert_eq!(content.map(|content| content.encode()), Some(value));
                }
            }
        }
    });
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn another_version_and_another_kind_are_named_not_skipped() {
    assert_eq!(Key::parse(b""), Err(RecordError::NoKey));
    assert_eq!(Key::parse(b"Z\x01"), Err(RecordError::Kind(b'Z')));
    assert_eq!(Key::parse(b"T\x0200000000"), Err(RecordError::Version { kind: 'T', version: 2 }));
    assert_eq!(Key::parse(b"T"), Err(RecordError::Damaged('T')));
    let key = Key::Tick { boot: 1 }.encode();
    assert_eq!(parse(&key, Some(b"\x02")), Err(RecordError::Version { kind: 'T', version: 2 }));
    assert_eq!(parse(&key, Some(b"\x01?")), Err(RecordError::Damaged('T')));
}
