//! QoS 1 from one device to another whose session is in the log.

use tokio::time::{Instant, sleep};

use super::*;
use crate::log::sim::Weather;

const PUBLISHER: u8 = b'p';
const SUBSCRIBER: u8 = b's';
/// PUBLISH at QoS 1, and the same that may have come before.
const FIRST: u8 = 0x32;
const AGAIN: u8 = 0x3a;

/// One that keeps its session, in MQTT 3.1.1.
struct Device {
    stream: DuplexStream,
    served: JoinHandle<()>,
}

impl Device {
    /// A client named by one letter comes, and may find its session.
    async fn comes(rig: &Rig, client: u8, present: bool) -> Device {
        let (stream, served) = dial(&rig.node);
        let mut device = Device { stream, served };
        device.sends(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 0, 0, 0, 0, 1, client]).await;
        device.hears(&[0x20, 2, present.into(), 0]).await;
        device
    }

    async fn sends(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn hears(&mut self, bytes: &[u8]) {
        assert_eq!(read(&mut self.stream, bytes.len()).await, bytes);
    }

    async fn publishes(&mut self, number: u8) {
        self.sends(&[FIRST, 6, 0, 1, b't', 0, number, number]).await;
    }

    /// PUBACK.
    async fn is_answered(&mut self, number: u8) {
        self.hears(&[0x40, 2, 0, number]).await;
    }

    /// A message: how, under which packet identifier, which.
    async fn gets(&mut self) -> (u8, [u8; 2], u8) {
        let bytes = read(&mut self.stream, 8).await;
        assert_eq!(bytes[1..5], [6, 0, 1, b't']);
        (bytes[0], [bytes[5], bytes[6]], bytes[7])
    }

    async fn acknowledges(&mut self, id: [u8; 2]) {
        self.sends(&[0x40, 2, id[0], id[1]]).await;
    }

    /// There is nothing for it.
    async fn gets_nothing(&mut self) {
        self.sends(&[0xc0, 0]).await;
        self.hears(&[0xd0, 0]).await;
    }

    async fn goes(self) {
        drop(self.stream);
        self.served.await.unwrap();
    }
}

/// Who publishes, and who gets it.
async fn pair() -> (Rig, Device, Device) {
    let rig = Rig::new().await;
    let mut subscriber = Device::comes(&rig, SUBSCRIBER, false).await;
    subscriber.sends(&[0x82, 6, 0, 1, 0, 1, b't', 1]).await;
    subscriber.hears(&[0x90, 3, 0, 1, 1]).await;
    let publisher = Device::comes(&rig, PUBLISHER, false).await;
    (rig, publisher, subscriber)
}

#[tokio::test(start_paused = true)]
async fn what_a_device_acknowledges_at_once_needs_no_log() {
    let (rig, mut publisher, mut subscriber) = pair().await;
    rig.log.set_away(true);
    for number in 1..20 {
        publisher.publishes(number).await;
        let (how, id, what) = subscriber.gets().await;
        assert_eq!((how, what), (FIRST, number));
        subscriber.acknowledges(id).await;
        publisher.is_answered(number).await;
    }
    rig.log.set_away(false);
    subscriber.goes().await;
    Device::comes(&rig, SUBSCRIBER, true).await.gets_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn what_it_does_not_acknowledge_waits_for_it_in_the_log() {
    for (stays, latency) in [(true, 0..4), (false, 0..4), (true, 300..301), (false, 300..301)] {
        let (rig, mut publisher, mut subscriber) = pair().await;
        rig.log.set_weather(Weather { latency, ..Weather::default() });
        let began = Instant::now();
        publisher.publishes(1).await;
        publisher.publishes(2).await;
        let (first, second) = (subscriber.gets().await, subscriber.gets().await);
        assert_eq!((first.0, first.2, second.0, second.2), (FIRST, 1, FIRST, 2));
        if stays {
            publisher.is_answered(1).await;
            assert!(began.elapsed() >= Duration::from_millis(5));
        }
        subscriber.goes().await;
        if !stays {
            publisher.is_answered(1).await;
        }
        publisher.is_answered(2).await;
        let mut subscriber = Device::comes(&rig, SUBSCRIBER, true).await;
        assert_eq!(subscriber.gets().await, (AGAIN, first.1, 1));
        assert_eq!(subscriber.gets().await, (AGAIN, second.1, 2));
        subscriber.acknowledges(first.1).await;
        subscriber.acknowledges(second.1).await;
        subscriber.gets_nothing().await;
        subscriber.goes().await;
        Device::comes(&rig, SUBSCRIBER, true).await.gets_nothing().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_it_acknowledges_while_that_is_being_written_does_not_wait_for_it() {
    let (rig, mut publisher, mut subscriber) = pair().await;
    rig.log.set_weather(Weather { latency: 300..301, ..Weather::default() });
    publisher.publishes(1).await;
    let (_, id, _) = subscriber.gets().await;
    sleep(Duration::from_millis(20)).await;
    subscriber.acknowledges(id).await;
    publisher.is_answered(1).await;
    subscriber.gets_nothing().await;
    subscriber.goes().await;
    Device::comes(&rig, SUBSCRIBER, true).await.gets_nothing().await;
    let waits = rig.node.sessions.summaries().concat();
    assert!(!waits.iter().any(|line| line.contains(": queue of")), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_through_the_log_stands_there_behind_what_was_sent_before() {
    let (rig, mut publisher, mut subscriber) = pair().await;
    publisher.publishes(1).await;
    let first = subscriber.gets().await;
    // QoS 2 for a subscription at QoS 1.
    publisher.sends(&[0x34, 6, 0, 1, b't', 0, 2, 2]).await;
    let second = subscriber.gets().await;
    publisher.is_answered(1).await;
    publisher.hears(&[0x50, 2, 0, 2]).await;
    publisher.publishes(3).await;
    let third = subscriber.gets().await;
    assert_eq!((first.2, second.2, third.2), (1, 2, 3));
    subscriber.goes().await;
    publisher.is_answered(3).await;
    let mut subscriber = Device::comes(&rig, SUBSCRIBER, true).await;
    for (_, id, number) in [first, second, third] {
        assert_eq!(subscriber.gets().await, (AGAIN, id, number));
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_begins_anew_elsewhere_leaves_nobody_waiting() {
    let (rig, mut publisher, mut subscriber) = pair().await;
    publisher.publishes(1).await;
    subscriber.gets().await;
    let (mut again, _served) = dial(&rig.node);
    again.write_all(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, SUBSCRIBER]).await.unwrap();
    assert_eq!(read(&mut again, 4).await, [0x20, 2, 0, 0]);
    publisher.is_answered(1).await;
}
