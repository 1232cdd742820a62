//! The Secrets of an instance: the ACL document in shards (it holds password hashes), what Kafka asks for, what the TLS
//! listener shows, what brokers show each other.
//!
//! The last three are copies of what the instance names, but for what brokers show each other where it names nothing: pods
//! mount the same names for ever, and get only what was found to be in order.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use mqtt_broker_api::{
    acl::AclDocument,
    config::{InstanceConfig, KafkaSecrets, TlsSecrets},
    node::{KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD, PEERS_CA, PEERS_CERTIFICATE, PEERS_KEY},
    shards,
};
use mqtt_operator_api::render::Problem;

use super::{ACL_SHARDS, Kept, config::has_kafka_secrets, names::Frame};

pub(super) const TLS_CERTIFICATE: &str = "tls.crt";
pub(super) const TLS_KEY: &str = "tls.key";
pub(super) const TLS_CLIENT_CA: &str = "ca.crt";

/// One Secret a shard.
pub(super) fn acl(frame: &Frame<'_>, document: &AclDocument) -> Result<Vec<Secret>, Problem> {
    let limit = frame.options.shard_bytes;
    let whole = |message: String| frame.problem("", message);
    let shards = shards::split(document, limit).map_err(|error| whole(error.to_string()))?;
    if shards.len() > ACL_SHARDS {
        let (users, count) = (document.users.len(), shards.len());
        return Err(whole(format!(
            "the {users} users and their grants fill {count} Secrets, and {ACL_SHARDS} at most can be mounted; grant more by ${{clientId}} and wildcards, or spread the users over several instances"
        )));
    }
    shards
        .iter()
        .enumerate()
        .map(|(index, shard)| {
            let json = serde_json::to_vec(shard)
                .map_err(|error| whole(format!("its ACL can't be written as JSON: {error}")))?;
            Ok(secret(frame, frame.acl(index), [(acl_key(index).as_str(), json)]))
        })
        .collect()
}

/// The file of a shard.
fn acl_key(index: usize) -> String {
    format!("{index:02}.json")
}

/// What Kafka asks for; one that misses something is kept as it is.
pub(super) fn kafka(
    frame: &Frame<'_>,
    config: &InstanceConfig,
    secrets: &KafkaSecrets,
    kept: &mut Vec<Kept>,
) -> Option<Secret> {
    let kafka = config.kafka.as_ref().filter(|kafka| has_kafka_secrets(Some(kafka)))?;
    let KafkaSecrets { ca, certificate, key, password } = secrets;
    let (with_ca, with_pair) = kafka.tls.map_or((false, false), |tls| (tls.ca, tls.certificate));
    let wanted = [
        (with_ca, KAFKA_CA, ca),
        (with_pair, KAFKA_CERTIFICATE, certificate),
        (with_pair, KAFKA_KEY, key),
        (kafka.sasl.is_some(), KAFKA_PASSWORD, password),
    ];
    let wanted = wanted.into_iter().filter(|(wanted, ..)| *wanted);
    whole_or_keep(frame, frame.kafka(), wanted.map(|(_, key, text)| (key, text.as_ref())), kept)
}

/// What the TLS listener shows; one that misses something is kept as it is.
pub(super) fn tls(
    frame: &Frame<'_>,
    config: &InstanceConfig,
    secrets: Option<&TlsSecrets>,
    kept: &mut Vec<Kept>,
) -> Option<Secret> {
    config.listeners.mqtts.as_ref()?;
    let with_ca =
        frame.spec().listeners.mqtts.as_ref().is_some_and(|mqtts| mqtts.client_ca_secret_ref.is_some());
    let wanted = [
        (true, TLS_CERTIFICATE, secrets.map(|secrets| &secrets.certificate)),
        (true, TLS_KEY, secrets.map(|secrets| &secrets.key)),
        (with_ca, TLS_CLIENT_CA, secrets.and_then(|secrets| secrets.client_ca.as_ref())),
    ];
    let wanted = wanted.into_iter().filter(|(wanted, ..)| *wanted);
    whole_or_keep(frame, frame.tls(), wanted.map(|(_, key, text)| (key, text)), kept)
}

/// What brokers show each other; one that misses something is kept as it is.
pub(super) fn peers(frame: &Frame<'_>, secrets: Option<&TlsSecrets>, kept: &mut Vec<Kept>) -> Option<Secret> {
    let wanted = [
        (PEERS_CERTIFICATE, secrets.map(|secrets| &secrets.certificate)),
        (PEERS_KEY, secrets.map(|secrets| &secrets.key)),
        (PEERS_CA, secrets.and_then(|secrets| secrets.client_ca.as_ref())),
    ];
    whole_or_keep(frame, frame.peers(), wanted.into_iter(), kept)
}

fn whole_or_keep<'a>(
    frame: &Frame<'_>,
    name: String,
    wanted: impl Iterator<Item = (&'static str, Option<&'a String>)> + Clone,
    kept: &mut Vec<Kept>,
) -> Option<Secret> {
    let found: Option<Vec<_>> =
        wanted.clone().map(|(key, text)| Some((key, text?.clone().into_bytes()))).collect();
    if let Some(found) = found {
        return Some(secret(frame, name, found));
    }
    kept.push(Kept { name, keys: wanted.map(|(key, _)| key).collect() });
    None
}

fn secret<'a>(
    frame: &Frame<'_>,
    name: String,
    entries: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
) -> Secret {
    let data: BTreeMap<_, _> =
        entries.into_iter().map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).collect();
    Secret { metadata: frame.meta(name), data: Some(data), ..Secret::default() }
}
