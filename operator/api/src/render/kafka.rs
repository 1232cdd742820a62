//! The Kafka cluster of an instance as brokers get it: a part of the config, and the secrets beside it.

use mqtt_broker_api::config::{self, KafkaSecrets};

use super::{
    ObjectName, Problem, Secrets,
    secret_text::{Lookup, TLS_CERTIFICATE, TLS_KEY, Text, key_of},
};
use crate::instance::{Kafka, SaslMechanism};

/// The config as the instance asks for it, and those of its secrets that are in order.
pub(super) fn kafka(
    instance: &ObjectName,
    spec: &Kafka,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> (config::Kafka, KafkaSecrets) {
    let mut lookup = Lookup::new(instance, secrets, problems);
    let tls = spec.tls.as_ref();
    let ca = tls.and_then(|tls| tls.ca_secret_ref.as_ref());
    let pair = tls.and_then(|tls| tls.certificate_secret_ref.as_ref());
    let of_pair = |key: &str| pair.map(|pair| key_of(pair, key));
    let (certificate, key) = (of_pair(TLS_CERTIFICATE), of_pair(TLS_KEY));
    let password = spec.sasl.as_ref().map(|sasl| &sasl.password_secret_ref);

    let pair_field = "spec.kafka.tls.certificateSecretRef";
    let kafka_secrets = KafkaSecrets {
        ca: lookup.text("spec.kafka.tls.caSecretRef", ca, Text::Certificate),
        certificate: lookup.text(pair_field, certificate.as_ref(), Text::Certificate),
        key: lookup.text(pair_field, key.as_ref(), Text::Key),
        password: lookup.text("spec.kafka.sasl.passwordSecretRef", password, Text::Password),
    };
    let config = config::Kafka {
        bootstrap_servers: spec.bootstrap_servers.clone(),
        replication_factor: spec.replication_factor,
        rack: spec.rack.clone(),
        tls: tls.map(|_| config::KafkaTls { ca: ca.is_some(), certificate: pair.is_some() }),
        sasl: spec.sasl.as_ref().map(|sasl| config::KafkaSasl {
            mechanism: match sasl.mechanism {
                SaslMechanism::Plain => config::SaslMechanism::Plain,
                SaslMechanism::ScramSha256 => config::SaslMechanism::ScramSha256,
                SaslMechanism::ScramSha512 => config::SaslMechanism::ScramSha512,
            },
            username: sasl.username.clone(),
        }),
    };
    (config, kafka_secrets)
}
