//! What a mailbox keeps, drops and says.

use super::*;

const CAPS: Caps = Caps { online: 4, offline: 2 };

/// Posts messages of these QoS, numbered from 1, to a mailbox in this state.
fn posted(presence: Presence, qos: &[u8], online_only: bool) -> (Arc<Mailbox>, Posted) {
    let mailbox = Arc::new(Mailbox::new(7));
    mailbox.inner.lock().presence = presence;
    let messages: Vec<Arc<Message>> = (1..)
        .zip(qos)
        .map(|(counter, &qos)| {
            let qos = QoS::try_from(qos).unwrap();
            let mut message = Message::new(MessageId { boot: 0, counter }, 9, "t", b"", qos, false);
            message.online_only = online_only;
            Arc::new(message)
        })
        .collect();
    let to = Recipient::plain(mailbox.clone(), QoS::ExactlyOnce);
    let posted = mailbox.post(&to, &messages, CAPS, &mut Vec::new());
    (mailbox, posted)
}

/// The numbers of the messages that may be taken with this window.
fn taken(mailbox: &Mailbox, window: usize) -> Vec<u64> {
    let mut deliveries = Vec::new();
    mailbox.take(window, 100, &mut deliveries);
    deliveries.iter().map(|delivery| delivery.message.id.counter).collect()
}

#[track_caller]
fn check(
    presence: Presence,
    qos: &[u8],
    online_only: bool,
    expected: &[u64],
    dropped: usize,
    congested: bool,
) {
    let (mailbox, posted) = posted(presence, qos, online_only);
    let absent = presence != Presence::Online;
    assert_eq!(posted, Posted { dropped, congested, absent }, "{presence:?} {qos:?}");
    assert_eq!(taken(&mailbox, 100), expected, "{presence:?} {qos:?}");
}

#[test]
fn of_a_device_that_is_away_a_mailbox_takes_hardly_any_memory() {
    let bytes = size_of::<Mailbox>();
    assert!(bytes <= 56, "{bytes}");
    let mailbox = Mailbox::new(7);
    mailbox.attach(0);
    mailbox.detach(&mut 0);
    assert!(mailbox.inner.lock().open.is_none());
}

#[test]
fn what_is_kept_depends_on_who_is_there() {
    use Presence::{Ended, Offline, Online};
    check(Online, &[0, 1, 2], false, &[1, 2, 3], 0, false);
    check(Offline, &[0, 1, 2], false, &[], 0, false);
    check(Online, &[1, 2], true, &[1, 2], 0, false);
    check(Ended, &[1, 2], false, &[], 0, false);
}

#[test]
fn over_the_online_bound_qos_0_goes_and_publishers_of_qos_1_are_asked_to_wait() {
    check(Presence::Online, &[0, 0, 0, 0, 0, 0], false, &[1, 2, 3, 4], 2, false);
    check(Presence::Online, &[1, 1, 1, 1, 1, 0], false, &[1, 2, 3, 4, 5], 1, true);
}

#[test]
fn a_device_that_stayed_without_room_loses_its_oldest_and_holds_nobody_up() {
    let (mailbox, _) = posted(Presence::Online, &[1, 1, 1, 1, 1], false);
    mailbox.inner.lock().open().over_since = Instant::now().checked_sub(PATIENCE);
    let to = Recipient::plain(mailbox.clone(), QoS::AtLeastOnce);
    let message = Message::new(MessageId { boot: 0, counter: 6 }, 9, "t", b"", QoS::AtLeastOnce, false);
    let posted = mailbox.post(&to, &[Arc::new(message)], CAPS, &mut Vec::new());
    assert_eq!(posted, Posted { dropped: 2, ..Posted::default() });
    assert_eq!(taken(&mailbox, 100), [3, 4, 5, 6]);
}

#[test]
fn a_full_window_holds_qos_1_back_in_order() {
    let (mailbox, _) = posted(Presence::Online, &[1, 0, 1, 0], false);
    assert_eq!(taken(&mailbox, 1), [1, 2]);
    assert_eq!(taken(&mailbox, 0), [0; 0]);
    assert_eq!(taken(&mailbox, 1), [3, 4]);
}

#[test]
fn of_a_session_in_the_log_only_qos_0_comes_beside_the_log() {
    let mailbox = Arc::new(Mailbox::new(7));
    mailbox.attach(0);
    let logged = Some(Logged { sid: MessageId { boot: 1, counter: 1 }, partition: 0 });
    let to = Recipient { logged, ..Recipient::plain(mailbox.clone(), QoS::ExactlyOnce) };
    let message =
        |counter, qos| Arc::new(Message::new(MessageId { boot: 0, counter }, 9, "t", b"", qos, false));
    mailbox.post(&to, &[message(1, QoS::AtLeastOnce), message(2, QoS::AtMostOnce)], CAPS, &mut Vec::new());
    let delivery = |counter| Delivery {
        message: message(counter, QoS::AtLeastOnce),
        qos: QoS::AtLeastOnce,
        retain: false,
        subscription_ids: None,
        share: None,
    };
    mailbox.post_logged(delivery(3), CAPS, &mut Vec::new());
    mailbox.prepend(vec![delivery(4)]);
    assert_eq!(taken(&mailbox, 1), [4, 2]);
    assert_eq!(mailbox.detach(&mut 0).unsent.map(|mid| mid.counter), Some(3));
    assert_eq!((mailbox.len(), mailbox.presence()), (0, Presence::Offline));
}

#[test]
fn what_waits_for_a_member_in_no_log_is_left_to_others_when_it_goes() {
    let mailbox = Arc::new(Mailbox::new(7));
    mailbox.go_online();
    let share = Some("$share/a/t".into());
    let to = Recipient { share, ..Recipient::plain(mailbox.clone(), QoS::AtLeastOnce) };
    let message = Message::new(MessageId { boot: 0, counter: 1 }, 9, "t", b"", QoS::AtLeastOnce, false);
    mailbox.post(&to, &[Arc::new(message)], CAPS, &mut Vec::new());
    assert_eq!(mailbox.detach(&mut 0).unsent, None);
    assert_eq!(mailbox.end().len(), 1);
}

#[test]
fn publishers_wait_for_a_session_in_the_log_a_while_then_its_oldest_go() {
    let mailbox = Arc::new(Mailbox::new(7));
    mailbox.attach(0);
    let post = |counter| {
        let id = MessageId { boot: 0, counter };
        let message = Arc::new(Message::new(id, 9, "t", b"", QoS::AtLeastOnce, false));
        let (qos, retain) = (QoS::AtLeastOnce, false);
        let delivery = Delivery { message, qos, retain, subscription_ids: None, share: None };
        let gone = mailbox.post_logged(delivery, CAPS, &mut Vec::new());
        gone.into_iter().map(|mid| mid.counter).collect::<Vec<_>>()
    };
    assert!((1..=5).all(|counter| post(counter).is_empty()));
    assert!(mailbox.is_congested(CAPS));
    mailbox.inner.lock().open().over_since = Instant::now().checked_sub(PATIENCE);
    assert!(!mailbox.is_congested(CAPS));
    assert_eq!(post(6), [1, 2]);
}

#[test]
fn a_mailbox_that_nobody_uses_is_small() {
    // The footprint of a session is counted in `broker/proto/tests/footprint.rs`, with a stand-in of this size.
    assert_eq!(size_of::<Mailbox>(), size_of::<[u64; 7]>());
}
