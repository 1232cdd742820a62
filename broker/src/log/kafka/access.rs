//! How a Kafka cluster is reached: owns the settings that every client of it shares, credentials included.
//!
//! Credentials stand in librdkafka's settings and nowhere else; neither `Debug` nor an error shows them.

use std::time::Duration;

use mqtt_broker_api::config::{Kafka, KafkaSecrets, SaslMechanism};
use rdkafka::{ClientConfig, error::KafkaError};

/// Why a client could not be started, without the value of a setting: it may be a secret.
pub(super) fn without_value(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, setting, _) => format!("{setting} can't be set"),
        error => error.to_string(),
    }
}

/// Where, as whom, and with what proof.
#[derive(Clone, PartialEq)]
pub(crate) struct Access {
    config: Kafka,
    secrets: KafkaSecrets,
    /// Shown in Kafka's own logs and metrics.
    client_id: String,
    /// Requests on their way to one node.
    in_flight: u8,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({}, {})", self.servers(), self.client_id)
    }
}

impl Access {
    pub(crate) fn new(config: Kafka, secrets: KafkaSecrets, client_id: &str) -> Access {
        Access { config, secrets, client_id: client_id.to_owned(), in_flight: 5 }
    }

    #[cfg(test)]
    pub(super) fn one_request_at_a_time(self) -> Access {
        Access { in_flight: 1, ..self }
    }

    pub(crate) fn servers(&self) -> String {
        self.config.bootstrap_servers.join(",")
    }

    pub(super) fn copies(&self) -> u16 {
        self.config.replication_factor
    }

    /// Whether reads may go to a follower.
    pub(super) fn reads_nearby(&self) -> bool {
        self.config.rack.is_some()
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        let protocol = match (&self.config.tls, &self.config.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client
            .set("bootstrap.servers", self.servers())
            .set("client.id", &self.client_id)
            .set("security.protocol", protocol)
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // A leader that moved while nothing was sent is found in seconds.
            .set("topic.metadata.refresh.interval.ms", "10000")
            // A deleted topic comes back with the settings it must have, or not at all.
            .set("allow.auto.create.topics", "false")
            .set("log.connection.close", "false");
        if self.config.tls.is_some() {
            match &self.secrets.ca {
                Some(ca) => client.set("ssl.ca.pem", ca),
                None => client.set("ssl.ca.location", "probe"),
            };
            if let (Some(certificate), Some(key)) = (&self.secrets.certificate, &self.secrets.key) {
                client.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key);
            }
        }
        if let Some(sasl) = &self.config.sasl {
            let mechanism = match sasl.mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client
                .set("sasl.mechanism", mechanism)
                .set("sasl.username", &sasl.username)
                .set("sasl.password", self.secrets.password.as_deref().unwrap_or_default());
        }
        client
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut producer = self.client();
        producer
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            .set("max.in.flight.requests.per.connection", self.in_flight.to_string())
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
            .set("batch.size", "1000000")
            // Batches form by themselves while requests are on their way.
            .set("linger.ms", "0")
            .set("statistics.interval.ms", "1000");
        producer
    }

    /// `patience`: how long Kafka may keep a request open that it has nothing for.
    pub(super) fn consumer(&self, patience: Duration) -> ClientConfig {
        let mut consumer = self.client();
        consumer
            // Never joined; librdkafka wants one to assign partitions by hand.
            .set("group.id", &self.client_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", patience.as_millis().to_string())
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "8192");
        if let Some(rack) = &self.config.rack {
            consumer.set("client.rack", rack);
        }
        consumer
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaConfRes;

    use super::*;

    #[test]
    fn an_error_names_the_setting_and_not_its_value() {
        let invalid = RDKafkaConfRes::RD_KAFKA_CONF_INVALID;
        let error = KafkaError::ClientConfig(invalid, "no".into(), "sasl.password".into(), "secret".into());
        assert_eq!(without_value(&error), "sasl.password can't be set");
    }
}
