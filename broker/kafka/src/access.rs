//! How a Kafka cluster is reached: owns the settings that every client of it shares, credentials included.
//!
//! Credentials stand in librdkafka's settings and nowhere else; neither `Debug` nor an error shows them.

use mqtt_broker_api::config::{Kafka, KafkaSecrets, SaslMechanism};
use rdkafka::{ClientConfig, error::KafkaError};

/// Why a client could not be started, without the value of a setting: it may be a secret.
pub fn without_value(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, setting, _) => format!("{setting} can't be set"),
        error => error.to_string(),
    }
}

/// Where, as whom, and with what proof.
#[derive(Clone, PartialEq)]
pub struct Access {
    config: Kafka,
    secrets: KafkaSecrets,
    client_id: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({}, {})", self.servers(), self.client_id)
    }
}

impl Access {
    /// `client_id` is shown in Kafka's own logs and metrics.
    pub fn new(config: Kafka, secrets: KafkaSecrets, client_id: &str) -> Access {
        Access { config, secrets, client_id: client_id.to_owned() }
    }

    /// `HOST:PORT`, with commas between.
    pub fn servers(&self) -> String {
        self.config.bootstrap_servers.join(",")
    }

    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Copies that Kafka shall keep of each record.
    pub fn copies(&self) -> u16 {
        self.config.replication_factor
    }

    /// Where the reader is, in the words of Kafka's `broker.rack`: reads may go to a follower there.
    pub fn rack(&self) -> Option<&str> {
        self.config.rack.as_deref()
    }

    /// What every client needs to get in.
    pub fn client(&self) -> ClientConfig {
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
