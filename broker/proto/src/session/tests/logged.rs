//! A session whose messages are in a log: what any process does alike with them, and what it waits for.

use std::collections::HashMap;

use super::*;
use crate::{codec::QoS, durable::record::Why};

fn logged(state: SessionState) -> Session {
    Session::new(Terms { logged: true, ..terms(Version::V5) }, state, 0)
}

fn message(counter: u64, qos: QoS) -> Delivery {
    let id = MessageId { boot: 7, counter };
    let payload = counter.to_string();
    let message = Arc::new(Message::new(id, 0, "t", payload.as_bytes(), qos, false));
    Delivery { message, qos, retain: false, subscription_ids: None, share: None }
}

/// What was sent: `publish ID PAYLOAD [dup]`, `pubrel ID`.
fn sent(out: &mut BytesMut) -> Vec<String> {
    let bytes = out.split();
    let mut lines = Vec::new();
    let mut rest = &bytes[..];
    while let Some((frame, length)) = split_frame(rest, u32::MAX).expect("whole packets") {
        lines.push(match decode(frame, Version::V5).expect("good packets") {
            Packet::Publish(publish) => {
                let payload = String::from_utf8_lossy(publish.payload).into_owned();
                format!("publish {} {payload}{}", publish.packet_id, if publish.dup { " dup" } else { "" })
            }
            Packet::PubRel(ack) => format!("pubrel {}", ack.packet_id),
            other => panic!("{other:?}"),
        });
        rest = &rest[length..];
    }
    lines
}

fn hear(session: &mut Session, kind: fn(Ack<'static>) -> Packet<'static>, packet_id: u16) -> bool {
    let ack = Ack { packet_id, reason: Reason::Success, properties: Default::default() };
    let effect = session.receive(kind(ack), 0, &mut BytesMut::new());
    matches!(effect, Ok(Effect::Received { .. }))
}

fn packet_id(counter: u64) -> u16 {
    let mut out = BytesMut::new();
    let mut session = logged(SessionState::default());
    session.deliver(&message(counter, QoS::ExactlyOnce), 0, &mut out);
    let line = sent(&mut out).remove(0);
    line.split(' ').nth(1).and_then(|id| id.parse().ok()).expect("a packet identifier")
}

#[test]
fn pubrel_waits_until_it_is_written_down_and_what_is_finished_is_told() {
    let (mut session, mut out) = (logged(SessionState::default()), BytesMut::new());
    let id = packet_id(1);
    session.deliver(&message(1, QoS::ExactlyOnce), 0, &mut out);
    assert_eq!(sent(&mut out), [format!("publish {id} 1")]);
    assert!(hear(&mut session, Packet::PubRec, id));
    assert!(sent(&mut out).is_empty(), "nothing is written down yet");
    let mid = MessageId { boot: 7, counter: 1 };
    session.received(id, MessageId { boot: 7, counter: 2 }, &mut out);
    assert!(sent(&mut out).is_empty(), "another message");
    session.received(id, mid, &mut out);
    assert_eq!(sent(&mut out), [format!("pubrel {id}")]);
    assert!(session.take_finished().is_empty());
    hear(&mut session, Packet::PubComp, id);
    assert_eq!(session.take_finished(), [Finished { mid, why: Why::Acknowledged }]);
}

#[test]
fn another_process_goes_on_under_the_same_identifiers() {
    let taken = MessageId { boot: 7, counter: 1 };
    let state = SessionState::restore(
        [(packet_id(1), taken)],
        vec![message(2, QoS::ExactlyOnce), message(3, QoS::AtLeastOnce)],
    );
    let (mut session, mut out) = (logged(state), BytesMut::new());
    assert!(!session.resend(0, &mut out));
    session.deliver(&message(4, QoS::ExactlyOnce), 0, &mut out);
    let expected = [
        format!("pubrel {}", packet_id(1)),
        format!("publish {} 2 dup", packet_id(2)),
        format!("publish {} 3 dup", packet_id(3)),
        format!("publish {} 4", packet_id(4)),
    ];
    assert_eq!(sent(&mut out), expected);
    hear(&mut session, Packet::PubComp, packet_id(1));
    hear(&mut session, Packet::PubAck, packet_id(3));
    let finished: Vec<u64> = session.take_finished().iter().map(|finished| finished.mid.counter).collect();
    assert_eq!(finished, [1, 3]);
}

#[test]
fn an_identifier_in_use_makes_qos_2_wait_and_qos_1_take_another() {
    let mut known = HashMap::new();
    let twins = (1..).find_map(|counter| {
        let id = packet_id(counter);
        known.insert(id, counter).map(|former| (former, counter, id))
    });
    let (one, other, id) = twins.expect("65,535 identifiers");
    let (mut session, mut out) = (logged(SessionState::default()), BytesMut::new());
    session.deliver(&message(one, QoS::ExactlyOnce), 0, &mut out);
    session.deliver(&message(other, QoS::AtLeastOnce), 0, &mut out);
    assert_eq!(sent(&mut out), [format!("publish {id} {one}"), format!("publish {} {other}", id + 1)]);
    let behind = other + 1;
    session.deliver(&message(other, QoS::ExactlyOnce), 0, &mut out);
    session.deliver(&message(behind, QoS::ExactlyOnce), 0, &mut out);
    assert!(session.must_resend() && session.resend(0, &mut out));
    assert!(sent(&mut out).is_empty(), "it waits for the other, and what is behind it does");
    hear(&mut session, Packet::PubRec, id);
    session.received(id, MessageId { boot: 7, counter: one }, &mut out);
    hear(&mut session, Packet::PubComp, id);
    sent(&mut out);
    assert!(!session.resend(0, &mut out));
    let expected = [format!("publish {id} {other}"), format!("publish {} {behind}", packet_id(behind))];
    assert_eq!(sent(&mut out), expected);
}

#[test]
fn what_is_given_up_of_qos_2_is_released_once_that_is_written_down() {
    let sent_before = [message(1, QoS::ExactlyOnce), message(2, QoS::AtLeastOnce)];
    let terms = Terms { logged: true, maximum_packet_size: 5, ..terms(Version::V5) };
    let mut session = Session::new(terms, SessionState::restore([], sent_before.to_vec()), 0);
    let mut out = BytesMut::new();
    assert!(!session.resend(0, &mut out));
    assert!(sent(&mut out).is_empty(), "nothing is written down yet");
    let (one, other) = (MessageId { boot: 7, counter: 1 }, MessageId { boot: 7, counter: 2 });
    assert_eq!(session.take_finished(), [Finished { mid: other, why: Why::TooLarge }]);
    let id = packet_id(1);
    assert_eq!(session.take_given_up(), [(id, one)]);
    session.received(id, one, &mut out);
    assert_eq!(sent(&mut out), [format!("pubrel {id}")]);
    hear(&mut session, Packet::PubComp, id);
    assert_eq!(session.take_finished(), [Finished { mid: one, why: Why::Acknowledged }]);
}
