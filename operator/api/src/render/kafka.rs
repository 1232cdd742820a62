//! The Kafka cluster of an instance as brokers get it: a part of the config, and the secrets beside it.
//!
//! Promises: what a Secret holds appears in no problem; a text that can't serve is told here, with the field that
//! names it, rather than found by a connection that fails later.

use mqtt_broker_api::config::{self, KafkaSecrets};

use super::{ObjectName, Problem, Secrets, secret_value};
use crate::{
    instance::{Kafka, SaslMechanism},
    refs::SecretKeyRef,
};

/// The config as the instance asks for it, and those of its secrets that are in order.
pub(super) fn kafka(
    instance: &ObjectName,
    spec: &Kafka,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> (config::Kafka, KafkaSecrets) {
    let mut lookup = Lookup { instance, secrets, problems };
    let tls = spec.tls.as_ref();
    let ca = tls.and_then(|tls| tls.ca_secret_ref.as_ref());
    let pair = tls.and_then(|tls| tls.certificate_secret_ref.as_ref());
    // The keys of a Secret of the type kubernetes.io/tls.
    let of_pair = |key: &str| pair.map(|pair| SecretKeyRef { name: pair.name.clone(), key: key.into() });
    let (certificate, key) = (of_pair("tls.crt"), of_pair("tls.key"));
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

struct Lookup<'a> {
    instance: &'a ObjectName,
    secrets: &'a Secrets,
    problems: &'a mut Vec<Problem>,
}

impl Lookup<'_> {
    /// The text that the reference in `field` names; none without a reference, or with a problem.
    fn text(&mut self, field: &str, named: Option<&SecretKeyRef>, wanted: Text) -> Option<String> {
        let named = named?;
        let namespace = &self.instance.namespace;
        let found = secret_value(self.secrets, namespace, named, wanted.name()).and_then(|bytes| {
            wanted.read(bytes).map_err(|wrong| {
                ("key", format!("the value of {:?} in Secret {namespace}/{} {wrong}", named.key, named.name))
            })
        });
        match found {
            Ok(text) => Some(text),
            Err((part, message)) => {
                // A SecretRef has no key of its own to point at.
                let part = if field.ends_with("certificateSecretRef") { "name" } else { part };
                let field = format!("{field}.{part}");
                // Both halves of a pair miss the same Secret.
                let problem = Problem { object: self.instance.clone(), field, message };
                if self.problems.last() != Some(&problem) {
                    self.problems.push(problem);
                }
                None
            }
        }
    }
}

/// What a Secret's value is to be.
#[derive(Clone, Copy)]
enum Text {
    Certificate,
    Key,
    Password,
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "a certificate in PEM",
            Self::Key => "a private key in PEM",
            Self::Password => "the password",
        }
    }

    /// The text, or what is wrong and what to do.
    fn read(self, bytes: &[u8]) -> Result<String, &'static str> {
        // Kafka's clients take texts that end at a zero byte.
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or("is no text; put UTF-8 there")?;
        let begins_with = |wanted: fn(&str) -> bool| {
            text.lines()
                .filter_map(|line| line.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
                .any(wanted)
        };
        let encrypted = || {
            begins_with(|label| label == "ENCRYPTED PRIVATE KEY")
                || text.lines().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
        };
        match self {
            Self::Certificate if !begins_with(|label| label == "CERTIFICATE") => {
                Err("has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there")
            }
            Self::Key if encrypted() => {
                Err("is an encrypted private key; put the key there without a password")
            }
            Self::Key if !begins_with(|label| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY")) => {
                Err("has no line -----BEGIN PRIVATE KEY-----; put a private key in PEM there")
            }
            Self::Certificate | Self::Key | Self::Password => Ok(text.to_owned()),
        }
    }
}
