//! The settings of the clients that write and read, beside those that every client shares.

use std::time::Duration;

use mqtt_kafka::Access;
use rdkafka::ClientConfig;

/// Requests on their way to one node. librdkafka's mock, which the tests run on, takes records in whatever sequence they
/// come, which Kafka does not.
const IN_FLIGHT: &str = if cfg!(test) { "1" } else { "5" };

/// Of the records in one request to a partition.
pub(super) const BATCH_BYTES: usize = 1_000_000;

pub(super) fn producer(access: &Access) -> ClientConfig {
    let mut producer = access.client();
    producer
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("max.in.flight.requests.per.connection", IN_FLIGHT)
        .set("message.timeout.ms", "0")
        // A topic that is not known for so long is gone.
        .set("topic.metadata.propagation.max.ms", "5000")
        // A leader that froze is given up, and what it was sent is sent again, recognised by its number.
        .set("request.timeout.ms", "10000")
        .set("retry.backoff.ms", "50")
        .set("retry.backoff.max.ms", "500")
        // What waits is bounded before it gets here, and each record by what its topic takes.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        .set("message.max.bytes", "1000000000")
        .set("batch.size", BATCH_BYTES.to_string())
        // Batches form by themselves while requests are on their way.
        .set("linger.ms", "0")
        .set("statistics.interval.ms", "1000");
    producer
}

/// `patience`: how long Kafka may keep a request open that it has nothing for.
pub(super) fn consumer(access: &Access, patience: Duration) -> ClientConfig {
    let mut consumer = access.client();
    consumer
        // Never joined; librdkafka wants one to assign partitions by hand.
        .set("group.id", access.client_id())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", patience.as_millis().to_string())
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "50")
        .set("queued.max.messages.kbytes", "8192");
    if let Some(rack) = access.rack() {
        consumer.set("client.rack", rack);
    }
    consumer
}
