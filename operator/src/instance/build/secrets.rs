//! The Secrets of an instance: the ACL document in shards (it holds password hashes), what Kafka asks for, what the TLS
//! listener shows.
//!
//! The last two are copies of what the instance names: pods mount the same names for ever, and get only what was found
//! to be in order.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use mqtt_broker_api::{
    acl::AclDocument,
    config::{InstanceConfig, KafkaSecrets, TlsSecrets},
    node::{KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD},
    shards,
};
use mqtt_operator_api::render::Problem;

use super::{ACL_SHARDS, config::has_kafka_secrets, names::Frame};

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
    kept: &mut Vec<String>,
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
    let found: Option<Vec<_>> = wanted
        .into_iter()
        .filter(|(wanted, ..)| *wanted)
        .map(|(_, name, text)| Some((name, text.as_ref()?.clone().into_bytes())))
        .collect();
    or_keep(found.map(|entries| secret(frame, frame.kafka(), entries)), frame.kafka(), kept)
}

/// What the TLS listener shows; one that misses something is kept as it is.
pub(super) fn tls(
    frame: &Frame<'_>,
    config: &InstanceConfig,
    secrets: Option<&TlsSecrets>,
    kept: &mut Vec<String>,
) -> Option<Secret> {
    config.listeners.mqtts.as_ref()?;
    let found = secrets.map(|TlsSecrets { certificate, key, client_ca }| {
        let pair = [(TLS_CERTIFICATE, certificate), (TLS_KEY, key)];
        let ca = client_ca.iter().map(|ca| (TLS_CLIENT_CA, ca));
        let entries = pair.into_iter().chain(ca).map(|(name, text)| (name, text.clone().into_bytes()));
        secret(frame, frame.tls(), entries)
    });
    or_keep(found, frame.tls(), kept)
}

fn or_keep(found: Option<Secret>, name: String, kept: &mut Vec<String>) -> Option<Secret> {
    if found.is_none() {
        kept.push(name);
    }
    found
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
