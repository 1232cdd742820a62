//! The order of a queue, and what is in it, record by record.

use super::{tests::session_of, *};
use crate::{
    codec::QoS,
    durable::record::{Boot, Content, QueuedMessage, Recipient},
};

/// For these sessions.
fn message(qos: QoS, recipients: &[MessageId]) -> Value<'static> {
    let to = |sid: &MessageId| Recipient {
        sid: *sid,
        qos,
        retain: false,
        maybe_sent: false,
        subscription_ids: None,
    };
    let recipients = recipients.iter().map(to).collect();
    let content = Content { qos, retain: false, expires_at: None, forwarded: &[], topic: "t", payload: &[] };
    Value::Message(QueuedMessage { once: qos == QoS::ExactlyOnce, group: None, recipients, content })
}

#[test]
fn a_message_that_its_client_repeats_to_a_later_run_moves_no_other() {
    let session = MessageId { boot: 1, counter: 1 };
    let id = |boot, counter| MessageId { boot, counter };
    // Of one client, of another that came first and has to repeat, and of the first again.
    let (early, repeated, late) = (id(1, 11), id(1, 10), id(2, 1));
    let check = |records: &[(Offset, MessageId, Boot, u64)], expected: &[MessageId]| {
        let mut view = View::default();
        let claim = Box::new(session_of(session));
        let key = Key::Session { nonce: session, client: "c".into() };
        view.apply(0, 0, 100, key, Some(Value::Session(claim)), &mut Vec::new());
        for &(offset, mid, boot, chunk) in records {
            let key = Key::Message { mid, boot, chunk };
            let message = message(QoS::ExactlyOnce, &[session]);
            view.apply(offset, 0, 100, key, Some(message), &mut Vec::new());
        }
        let (_, state) = view.session(session).unwrap();
        let order: Vec<MessageId> = state.in_order().iter().map(|entry| entry.mid).collect();
        assert_eq!(order, expected, "{records:?}");
    };
    check(&[(1, early, 1, 1), (2, late, 2, 1), (3, repeated, 2, 2)], &[early, late, repeated]);
    check(&[(1, early, 1, 1), (2, repeated, 1, 2), (3, repeated, 2, 1)], &[early, repeated]);
    // The place of one that was written twice stays, too, when the second writer has more to say.
    let other = id(3, 1);
    check(
        &[(1, repeated, 2, 9), (2, early, 1, 1), (3, repeated, 0, 1), (4, other, 0, 2)],
        &[repeated, early, other],
    );
    // What a run wrote shows in another order where compaction took the first of several.
    check(&[(1, late, 2, 2), (2, early, 2, 1)], &[early, late]);
}

#[test]
fn a_message_that_two_nodes_write_waits_until_it_is_done_for_both() {
    let (session, mid) = (MessageId { boot: 1, counter: 1 }, MessageId { boot: 9, counter: 1 });
    let key = |boot| Key::Message { mid, boot, chunk: 1 };
    let written = || Some(message(QoS::AtLeastOnce, &[session]));
    let remains = Change::Remains { sid: session, mid };
    let finished = Change::Finished { sid: session, mid, why: Why::Acknowledged };
    let queued = |order| Change::Queued { sid: session, order };
    let check = |records: &[(Boot, bool)], expected: &[Change]| {
        let mut view = View::default();
        let claim = Some(Value::Session(Box::new(session_of(session))));
        view.apply(0, 0, 100, Key::Session { nonce: session, client: "c".into() }, claim, &mut Vec::new());
        let mut changes = Vec::new();
        for (offset, &(boot, is_written)) in (1..).zip(records) {
            view.apply(offset, 0, 100, key(boot), is_written.then(written).flatten(), &mut changes);
        }
        assert_eq!(changes, expected, "{records:?}");
    };
    check(&[(1, true), (1, false)], &[queued(1), finished.clone()]);
    check(&[(1, true), (2, true), (1, false)], &[queued(1), remains.clone()]);
    check(&[(1, true), (2, true), (1, false), (2, false)], &[queued(1), remains, finished.clone()]);
    check(&[(1, true), (1, false), (2, true)], &[queued(1), finished, queued(3)]);
}

#[test]
fn only_the_session_that_alone_gets_a_message_may_finish_it_by_deleting_it() {
    let [one, other] = [1, 2].map(|counter| MessageId { boot: 1, counter });
    let mid = MessageId { boot: 9, counter: 1 };
    let check = |recipients: &[MessageId], asks: MessageId, expected: Option<(Boot, u64)>| {
        let mut view = View::default();
        let key = Key::Message { mid, boot: 3, chunk: 4 };
        let message = message(QoS::AtLeastOnce, recipients);
        view.apply(0, 0, 100, key, Some(message), &mut Vec::new());
        assert_eq!(view.message(mid).and_then(|message| message.sole_copy(asks)), expected);
    };
    check(&[one], one, Some((3, 4)));
    check(&[one, other], one, None);
    // It was sent this one beside the log, under the same name.
    check(&[other], one, None);
}
