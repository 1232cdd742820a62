//! What goes to a device beside the log, and what becomes of it there.

use std::task::Context;

use super::*;
use crate::{
    log::{AppendSink, Outcome},
    router::Logged,
};

const CAPS: Caps = Caps { online: 4, offline: 2 };
const SID: MessageId = MessageId { boot: 1, counter: 1 };

struct Nobody;

impl AppendSink for Nobody {
    fn appended(&self, _token: u64, _outcome: Outcome) {}
}

/// Of a session whose connection serves.
fn mailbox() -> Arc<Mailbox> {
    let mailbox = Arc::new(Mailbox::new(7));
    mailbox.follow(Logged { sid: SID, partition: 0 });
    mailbox.attach(0);
    mailbox.look(&Context::from_waker(Waker::noop()));
    mailbox
}

fn message(counter: u64) -> Arc<Message> {
    Arc::new(Message::new(MessageId { boot: 0, counter }, 9, "t", b"", QoS::AtLeastOnce, false))
}

fn post_as(mailbox: &Arc<Mailbox>, counter: u64, (read_back, now): (u64, Millis)) -> bool {
    let logged = Some(Logged { sid: SID, partition: 0 });
    let to = Recipient { logged, ..Recipient::plain(mailbox.clone(), QoS::AtLeastOnce) };
    let done = || Completion { sink: Arc::new(Nobody), token: 0 };
    mailbox.post_direct(&to, &message(counter), (read_back, now), CAPS, done, &mut Vec::new())
}

fn post(mailbox: &Arc<Mailbox>, counter: u64) -> bool {
    post_as(mailbox, counter, (0, counter))
}

fn logged(counter: u64) -> Delivery {
    let (message, qos) = (message(counter), QoS::AtLeastOnce);
    Delivery { message, qos, retain: false, subscription_ids: None, share: None }
}

fn send(mailbox: &Mailbox, window: usize) {
    mailbox.take(window, 100, &mut Vec::new());
}

/// Messages and the numbers that they are written under.
fn numbers(late: &[Late]) -> Vec<(u64, u64)> {
    late.iter().map(|one| (one.delivery.message.id.counter, one.number)).collect()
}

#[test]
fn a_message_goes_beside_the_log_if_its_device_is_served_and_nothing_of_the_log_is_ahead() {
    #[track_caller]
    fn check(read_back: u64, expected: bool, happens: impl FnOnce(&Arc<Mailbox>)) {
        let mailbox = mailbox();
        happens(&mailbox);
        assert_eq!(post_as(&mailbox, 9, (read_back, 0)), expected);
    }
    let other = Logged { sid: MessageId { boot: 1, counter: 2 }, partition: 0 };
    check(0, true, |_| {});
    check(2, false, |mailbox| mailbox.bar(3));
    check(3, true, |mailbox| mailbox.bar(3));
    check(3, false, |mailbox| [3, 4, 2].into_iter().for_each(|number| mailbox.bar(number)));
    check(u64::MAX - 1, false, |mailbox| mailbox.follow(other));
    check(0, false, |mailbox| drop(mailbox.detach(&mut 0)));
    // Nobody has looked since.
    check(0, false, |mailbox| mailbox.attach(0));
    check(0, true, |mailbox| (1..4).for_each(|counter| assert!(post(mailbox, counter))));
    check(0, false, |mailbox| (1..5).for_each(|counter| assert!(post(mailbox, counter))));
    check(0, false, |mailbox| {
        post(mailbox, 1);
        send(mailbox, 0);
    });
}

#[test]
fn what_is_not_acknowledged_is_written_in_its_order_the_late_ones_first() {
    let (mailbox, mut last) = (mailbox(), 10);
    (1..=4).for_each(|counter| assert!(post(&mailbox, counter)));
    assert!(matches!(mailbox.finish_direct(MessageId { boot: 0, counter: 2 }), Finished::Outstanding(_)));
    assert_eq!(mailbox.first_direct(), Some(1));
    assert!(mailbox.take_overdue(0, &mut last).is_empty());
    assert_eq!(numbers(&mailbox.take_overdue(3, &mut last)), [(1, 11), (3, 12)]);
    assert_eq!(mailbox.first_direct(), Some(4));
    assert_eq!(numbers(&mailbox.take_direct(&mut last)), [(4, 13)]);
    assert_eq!((mailbox.first_direct(), last), (None, 13));
}

#[test]
fn what_was_written_is_not_delivered_again_when_it_is_read_back() {
    let mailbox = mailbox();
    let id = |counter| MessageId { boot: 0, counter };
    (1..=3).for_each(|counter| assert!(post(&mailbox, counter)));
    mailbox.take_direct(&mut 10);
    assert!(matches!(mailbox.finish_direct(id(1)), Finished::Written(11)));
    // Not under another number, or another's; and what comes before and did not show never will.
    assert!(!mailbox.has_already(id(9), 10));
    assert!(mailbox.has_already(id(2), 12));
    assert!(!mailbox.has_already(id(2), 12));
    assert!(!mailbox.has_already(id(1), 11));
    assert!(matches!(mailbox.finish_direct(id(1)), Finished::Logged));
    assert!(matches!(mailbox.finish_direct(id(3)), Finished::Written(13)));
}

#[test]
fn a_device_that_was_late_is_sent_the_next_ones_through_the_log() {
    let mailbox = mailbox();
    let mut counter = 0;
    let mut skipped = |mailbox: &Arc<Mailbox>| {
        let before = counter;
        loop {
            counter += 1;
            if post(mailbox, counter) {
                send(mailbox, 100);
                return counter - before - 1;
            }
        }
    };
    for expected in [0, 1, 3, 7] {
        assert_eq!(skipped(&mailbox), expected);
        mailbox.take_overdue(Millis::MAX, &mut 0);
        // All of it is read back.
        mailbox.has_already(SID, u64::MAX);
    }
    assert_eq!(skipped(&mailbox), 15);
    let first = mailbox.take_direct(&mut 0).remove(0).delivery.message.id;
    assert!(matches!(mailbox.finish_direct(first), Finished::Written(_)));
    assert_eq!(skipped(&mailbox), 0);
    let next = mailbox.first_direct().unwrap();
    assert!(matches!(mailbox.finish_direct(MessageId { boot: 0, counter: next }), Finished::Outstanding(_)));
    assert_eq!(skipped(&mailbox), 0);
    mailbox.take_overdue(Millis::MAX, &mut 0);
    assert_eq!(skipped(&mailbox), 1);
}

#[test]
fn a_connection_that_goes_leaves_what_was_sent_and_what_was_not() {
    let mailbox = mailbox();
    assert!(post(&mailbox, 1));
    assert!(post(&mailbox, 2));
    send(&mailbox, 1);
    mailbox.post_logged(logged(3), CAPS, &mut Vec::new());
    let Left { unsent, late } = mailbox.detach(&mut 10);
    assert_eq!(unsent, Some(MessageId { boot: 0, counter: 3 }));
    assert_eq!(numbers(&late), [(1, 11), (2, 12)]);
    assert_eq!(late.iter().map(|one| one.maybe_sent).collect::<Vec<_>>(), [true, false]);
}
