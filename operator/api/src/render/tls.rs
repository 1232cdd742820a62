//! What the TLS listener of an instance shows to devices, and what it asks of them; and the same among brokers.

use mqtt_broker_api::config::TlsSecrets;

use super::{
    ObjectName, Problem, Secrets,
    secret_text::{Lookup, TLS_CA, TLS_CERTIFICATE, TLS_KEY, Text, key_of},
};
use crate::{instance::TlsListener, refs::SecretRef};

/// The listener's secrets if all are in order.
pub(super) fn tls(
    instance: &ObjectName,
    spec: &TlsListener,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> Option<TlsSecrets> {
    let mut lookup = Lookup::new(instance, secrets, problems);
    let mut of_pair = |key, wanted| {
        lookup.text("spec.listeners.mqtts.secretRef", Some(&key_of(&spec.secret_ref, key)), wanted)
    };
    let certificate = of_pair(TLS_CERTIFICATE, Text::Certificate);
    let key = of_pair(TLS_KEY, Text::Key);
    let ca_ref = spec.client_ca_secret_ref.as_ref();
    let client_ca = lookup.text("spec.listeners.mqtts.clientCaSecretRef", ca_ref, Text::Certificate);
    // A CA that can't be read must not let everyone in.
    let complete = ca_ref.is_none() || client_ca.is_some();
    certificate.zip(key).filter(|_| complete).map(|(certificate, key)| TlsSecrets {
        certificate,
        key,
        client_ca,
    })
}

/// What brokers show each other if all is in order; with a CA.
pub(super) fn peers(
    instance: &ObjectName,
    named: &SecretRef,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> Option<TlsSecrets> {
    let mut lookup = Lookup::new(instance, secrets, problems);
    let mut of =
        |key, wanted| lookup.text("spec.listeners.peers.secretRef", Some(&key_of(named, key)), wanted);
    let certificate = of(TLS_CERTIFICATE, Text::Certificate);
    let key = of(TLS_KEY, Text::Key);
    let ca = of(TLS_CA, Text::Certificate);
    Some(TlsSecrets { certificate: certificate?, key: key?, client_ca: Some(ca?) })
}
