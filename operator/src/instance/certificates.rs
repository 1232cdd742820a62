//! Whether the certificates and keys that an instance names can serve, as far as only reading them tells. Pure: the time
//! is an argument.
//!
//! Promises: what can't serve is a problem of the instance, and goes nowhere, so that what was in force before stays; no
//! secret is in a problem.

use k8s_openapi::jiff::Timestamp;
use mqtt_broker_api::config::TlsSecrets;
use mqtt_operator_api::{
    Kind,
    instance::MqttInstance,
    render::{Problem, Rendered, TLS_CA, TLS_CERTIFICATE, TLS_KEY, name_of},
};
use rustls::{
    Error, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// Takes away what can't serve at this time, and says why.
pub fn check(instance: &MqttInstance, rendered: &mut Rendered, now: Timestamp) {
    let object = name_of(Kind::MqttInstance, instance);
    let Rendered { tls_secrets, peers_secrets, kafka_secrets, problems, .. } = rendered;
    let mut report = |field: &str, secret: &str, key: &str, wrong: Wrong| {
        let place = format!("{key:?} in Secret {}/{secret}", object.namespace);
        let message = wrong.told(&place);
        problems.push(Problem { object: object.clone(), field: field.into(), message });
    };
    let spec = &instance.spec;
    if let (Some(mqtts), Some(secrets)) = (&spec.listeners.mqtts, &*tls_secrets) {
        let TlsSecrets { certificate, key, client_ca } = secrets;
        let secret = &mqtts.secret_ref.name;
        let pair = pair(certificate, key, now, Peer::Devices)
            .map_err(|(of, wrong)| report("spec.listeners.mqtts.secretRef", secret, of, wrong));
        let ca =
            mqtts.client_ca_secret_ref.as_ref().zip(client_ca.as_deref()).map_or(Ok(()), |(named, ca)| {
                let field = "spec.listeners.mqtts.clientCaSecretRef.key";
                roots(ca).map_err(|wrong| report(field, &named.name, &named.key, wrong))
            });
        if pair.and(ca).is_err() {
            *tls_secrets = None;
        }
    }
    if let (Some(named), Some(secrets)) = (&spec.listeners.peers.secret_ref, &*peers_secrets) {
        let TlsSecrets { certificate, key, client_ca } = secrets;
        let pair = pair(certificate, key, now, Peer::Brokers);
        let ca = client_ca.as_deref().map_or(Ok(()), roots).map_err(|wrong| (TLS_CA, wrong));
        if let Err((of, wrong)) = pair.and(ca) {
            report("spec.listeners.peers.secretRef", &named.name, of, wrong);
            *peers_secrets = None;
        }
    }
    let Some(tls) = spec.kafka.as_ref().and_then(|kafka| kafka.tls.as_ref()) else { return };
    if let (Some(named), Some(ca)) = (&tls.ca_secret_ref, &kafka_secrets.ca)
        && let Err(wrong) = certificates(ca)
    {
        report("spec.kafka.tls.caSecretRef.key", &named.name, &named.key, wrong);
        kafka_secrets.ca = None;
    }
    if let (Some(named), Some(certificate), Some(key)) =
        (&tls.certificate_secret_ref, &kafka_secrets.certificate, &kafka_secrets.key)
        && let Err((of, wrong)) = pair(certificate, key, now, Peer::Kafka)
    {
        report("spec.kafka.tls.certificateSecretRef", &named.name, of, wrong);
        (kafka_secrets.certificate, kafka_secrets.key) = (None, None);
    }
}

/// Whom a certificate is shown to: that decides whose cryptography has to know its key.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Peer {
    Devices,
    Brokers,
    Kafka,
}

/// Why something can't serve.
#[derive(Debug)]
pub(super) enum Wrong {
    NoCertificate(String),
    NoKey(String),
    NotThatOfTheCertificate,
    Expired(Timestamp),
    NotYet(Timestamp),
}

impl Wrong {
    /// What is wrong with what is at a place, and what to do.
    fn told(&self, place: &str) -> String {
        match self {
            Self::NoCertificate(why) => {
                format!("{place} is no certificate ({why}); put certificates in PEM there")
            }
            Self::NoKey(why) => {
                format!("{place} is no private key that can be used ({why}); put another one there")
            }
            Self::NotThatOfTheCertificate => {
                format!(
                    "{place} is not the key of the certificate beside it, {TLS_CERTIFICATE:?}; put the two there that belong together"
                )
            }
            Self::Expired(at) => format!("the certificate in {place} has expired, at {at}; renew it"),
            Self::NotYet(at) => {
                format!("the certificate in {place} counts from {at} on; put one there that counts now")
            }
        }
    }
}

/// Whether the two can serve; else the key of the Secret that is to blame.
pub(super) fn pair(
    certificate: &str,
    key: &str,
    now: Timestamp,
    peer: Peer,
) -> Result<(), (&'static str, Wrong)> {
    let of_certificate = |wrong| (TLS_CERTIFICATE, wrong);
    let chain = certificates(certificate).map_err(of_certificate)?;
    let no_key = |why: String| (TLS_KEY, Wrong::NoKey(why));
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| no_key(in_words(&error)))?;
    let own = chain.first().cloned();
    match CertifiedKey::from_der(chain, key, &default_provider()) {
        Ok(_) => {}
        Err(Error::InconsistentKeys(_)) => return Err((TLS_KEY, Wrong::NotThatOfTheCertificate)),
        Err(Error::InvalidCertificate(error)) => {
            return Err(of_certificate(Wrong::NoCertificate(error.to_string())));
        }
        // Kafka's clients know more sorts of keys.
        Err(_) if peer == Peer::Kafka => {}
        Err(error) => return Err(no_key(error.to_string())),
    }
    own.map_or(Ok(()), |own| in_its_time(&own, now)).map_err(of_certificate)
}

fn in_its_time(certificate: &CertificateDer<'_>, now: Timestamp) -> Result<(), Wrong> {
    let (_, read) =
        X509Certificate::from_der(certificate).map_err(|error| Wrong::NoCertificate(error.to_string()))?;
    let at = |seconds: i64, otherwise| Timestamp::from_second(seconds).unwrap_or(otherwise);
    let validity = read.validity();
    let from = at(validity.not_before.timestamp(), Timestamp::MIN);
    let until = at(validity.not_after.timestamp(), Timestamp::MAX);
    match () {
        () if now > until => Err(Wrong::Expired(until)),
        () if now < from => Err(Wrong::NotYet(from)),
        () => Ok(()),
    }
}

/// Whether the certificates of devices, or of brokers, can be checked against these.
pub(super) fn roots(text: &str) -> Result<(), Wrong> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text)? {
        roots.add(certificate).map_err(|error| Wrong::NoCertificate(error.to_string()))?;
    }
    Ok(())
}

/// One at least.
fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = read.map_err(|error| Wrong::NoCertificate(in_words(&error)))?;
    for certificate in &found {
        X509Certificate::from_der(certificate)
            .map_err(|_| Wrong::NoCertificate("its DER is damaged".into()))?;
    }
    if found.is_empty() { Err(Wrong::NoCertificate("there is none in it".into())) } else { Ok(found) }
}

/// For some of rustls's own words tell bytes of the file.
fn in_words(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "there is none in it".into(),
        pem::Error::MissingSectionEnd { .. } => "its end is missing".into(),
        pem::Error::Base64Decode(_) => "it is no base64".into(),
        _ => "it is no PEM".into(),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use mqtt_broker_api::config::KafkaSecrets;
    use mqtt_operator_api::render::{Objects, render};
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, date_time_ymd};
    use serde_json::json;

    use super::*;
    use crate::status::{Turn, Verdict};

    /// A certificate of the year 2026 with a key of this sort, both in PEM.
    fn made(key: KeyPair) -> (String, String) {
        let mut params = CertificateParams::new(vec!["mqtt.example".into()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// An instance that names a pair and a CA for each side, and what it is rendered into.
    fn rendered(pair: &(String, String), ca: &str) -> (MqttInstance, Rendered) {
        let instance: MqttInstance = serde_json::from_value(json!({
            "metadata": {"name": "meters", "namespace": "plant"},
            "spec": {
                "listeners": {"mqtts": {"secretRef": {"name": "own"}, "clientCaSecretRef": {"name": "devices", "key": "ca"}},
                              "peers": {"secretRef": {"name": "peers"}}},
                "kafka": {"bootstrapServers": ["kafka:9093"],
                          "tls": {"caSecretRef": {"name": "kafka-ca", "key": "ca"}, "certificateSecretRef": {"name": "login"}}},
            },
        }))
        .unwrap();
        let secret = |name: &str, data: &[(&str, &str)]| {
            let data = data.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec()));
            (("plant".to_owned(), name.to_owned()), data.collect())
        };
        let (certificate, key) = (pair.0.as_str(), pair.1.as_str());
        let whole = [("tls.crt", certificate), ("tls.key", key)];
        let secrets = [
            secret("own", &whole),
            secret("login", &whole),
            secret("peers", &[whole[0], whole[1], ("ca.crt", ca)]),
            secret("devices", &[("ca", ca)]),
            secret("kafka-ca", &[("ca", ca)]),
        ];
        let objects = Objects {
            instance: instance.clone(),
            topics: vec![],
            users: vec![],
            grants: vec![],
            secrets: secrets.into(),
            generated: None,
        };
        let rendered = render(&objects, 1, |_| None);
        assert_eq!(rendered.problems, [], "what can be told without reading it");
        (instance, rendered)
    }

    /// Problems of either side, each once: where a line begins, and what is in it.
    type Expected<'a> = &'a [(&'a str, &'a str)];

    fn check_at(what: &str, pair: &(String, String), ca: &str, at: &str, expected: Expected<'_>) {
        let (instance, mut rendered) = rendered(pair, ca);
        check(&instance, &mut rendered, at.parse().unwrap());
        let lines: Vec<_> = rendered
            .problems
            .iter()
            .map(|problem| format!("{}: {}", problem.field, problem.message))
            .collect();
        assert_eq!(lines.len(), expected.len(), "{what}: {lines:#?}");
        for (line, (begins, has)) in lines.iter().zip(expected) {
            assert!(line.starts_with(begins) && line.contains(has), "{what}: {line}");
            assert!(!line.contains('\n') && !line.contains("BEGIN"), "{what}: {line}");
        }
        for problem in &rendered.problems {
            let verdict = Verdict::of_problems([problem]).unwrap();
            assert_eq!((verdict.turn, verdict.reason.as_str()), (Turn::Theirs, "SecretUnusable"), "{what}");
        }
        let of = |field: &str| expected.iter().any(|(begins, _)| begins.starts_with(field));
        let KafkaSecrets { ca, certificate, key, .. } = &rendered.kafka_secrets;
        assert_eq!(rendered.tls_secrets.is_none(), of("spec.listeners.mqtts"), "{what}");
        assert_eq!(rendered.peers_secrets.is_none(), of(BROKERS), "{what}");
        assert_eq!(ca.is_none(), of("spec.kafka.tls.caSecretRef"), "{what}");
        assert_eq!((certificate.is_none(), key.is_none()), (of(KAFKA), of(KAFKA)), "{what}");
    }

    const DEVICES: &str = "spec.listeners.mqtts.secretRef: ";
    const BROKERS: &str = "spec.listeners.peers.secretRef: ";
    const KAFKA: &str = "spec.kafka.tls.certificateSecretRef: ";

    #[test]
    fn what_can_not_serve_is_told_with_its_secret_and_goes_nowhere() {
        let good = made(KeyPair::generate().unwrap());
        let ca = good.0.clone();
        let check = |what: &str, pair: (&str, &str), expected: Expected<'_>| {
            let pair = (pair.0.to_owned(), pair.1.to_owned());
            check_at(what, &pair, &ca, "2026-06-01T00:00:00Z", expected);
        };
        check("all good", (&good.0, &good.1), &[]);
        let chain = [good.0.as_str(), &ca].concat();
        check("a chain", (&chain, &good.1), &[]);
        let other = KeyPair::generate().unwrap().serialize_pem();
        let not_that = "\"tls.key\" in Secret plant/own is not the key of the certificate beside it";
        let among_them = "\"tls.key\" in Secret plant/peers is not the key of the certificate beside it";
        let nor_that = "\"tls.key\" in Secret plant/login is not the key of the certificate beside it";
        check(
            "another's key",
            (&good.0, &other),
            &[(DEVICES, not_that), (BROKERS, among_them), (KAFKA, nor_that)],
        );
        let larger = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        check(
            "a key of another sort",
            (&good.0, &larger),
            &[(DEVICES, not_that), (BROKERS, among_them), (KAFKA, nor_that)],
        );
        let half = format!("{}-----END CERTIFICATE-----\n", &good.0[..100]);
        let broken = "\"tls.crt\" in Secret plant/own is no certificate (";
        check(
            "half a certificate",
            (&half, &good.1),
            &[
                (DEVICES, broken),
                (BROKERS, "\"tls.crt\" in Secret plant/peers"),
                (KAFKA, "\"tls.crt\" in Secret plant/login"),
            ],
        );
        let stars = good.1.replacen("MIG", "***", 1);
        let no_key = "\"tls.key\" in Secret plant/own is no private key that can be used (it is no base64)";
        check(
            "a damaged key",
            (&good.0, &stars),
            &[(DEVICES, no_key), (BROKERS, "no base64"), (KAFKA, "no base64")],
        );
        check(
            "an endless key",
            (&good.0, &good.1[..60]),
            &[(DEVICES, "end is missing"), (BROKERS, "end is missing"), (KAFKA, "end is missing")],
        );
    }

    #[test]
    fn a_certificate_counts_in_its_time() {
        let good = made(KeyPair::generate().unwrap());
        for (at, says) in [
            ("2025-12-31T23:59:59Z", Some("counts from 2026-01-01T00:00:00Z on")),
            ("2026-01-01T00:00:00Z", None),
            ("2027-01-01T00:00:00Z", None),
            ("2027-01-01T00:00:01Z", Some("has expired, at 2027-01-01T00:00:00Z; renew it")),
        ] {
            let expected = says.map(|says| [(DEVICES, says), (BROKERS, says), (KAFKA, says)]);
            check_at(at, &good, &good.0, at, expected.as_ref().map_or(&[], |expected| &expected[..]));
        }
    }

    #[test]
    fn a_ca_has_to_be_one() {
        let good = made(KeyPair::generate().unwrap());
        let none = "-----BEGIN CERTIFICATE-----\nTUlJQg==\n-----END CERTIFICATE-----\n";
        let expected = [
            (
                "spec.listeners.mqtts.clientCaSecretRef.key: ",
                "\"ca\" in Secret plant/devices is no certificate",
            ),
            (BROKERS, "\"ca.crt\" in Secret plant/peers is no certificate"),
            ("spec.kafka.tls.caSecretRef.key: ", "\"ca\" in Secret plant/kafka-ca is no certificate"),
        ];
        check_at("no CA", &good, none, "2026-06-01T00:00:00Z", &expected);
        check_at("an old CA may be among good ones", &good, &good.0, "2027-01-01T00:00:00Z", &[]);
    }

    #[test]
    fn kafka_may_know_sorts_of_keys_that_devices_are_not_shown() {
        let key = KeyPair::generate().unwrap();
        let (certificate, _) = made(KeyPair::generate().unwrap());
        // As if it were of a curve that few know: the last byte of the curve's identifier is another one.
        let (mut der, curve) = (key.serialize_der(), [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
        let place = der.windows(curve.len()).position(|part| part == curve).unwrap();
        der[place + curve.len() - 1] = 0x01;
        let pem =
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
        let wrong = "is no private key that can be used";
        let expected = [(DEVICES, wrong), (BROKERS, wrong)];
        check_at(
            "another curve",
            &(certificate.clone(), pem),
            &certificate,
            "2026-06-01T00:00:00Z",
            &expected,
        );
    }
}
