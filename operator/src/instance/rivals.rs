//! Two instances on one Kafka: their topics have the same names, so the older one has it. Pure.

use std::net::IpAddr;

use mqtt_operator_api::{
    Kind,
    instance::MqttInstance,
    render::{ObjectName, Problem, name_of},
};

/// What is wrong where an older instance has the same Kafka: that with the same id where both are known, else one of which
/// both name a server. `cluster` tells the id.
pub fn conflict<'a>(
    instance: &MqttInstance,
    others: impl IntoIterator<Item = &'a MqttInstance>,
    cluster: impl Fn(&MqttInstance) -> Option<String>,
) -> Option<Problem> {
    let name = name_of(Kind::MqttInstance, instance);
    let own = cluster(instance);
    let shared = |other: &MqttInstance| match (&own, cluster(other)) {
        (Some(own), Some(theirs)) => {
            (*own == theirs).then(|| format!("Kafka cluster {own}, where these servers lead,"))
        }
        (None, _) | (_, None) => common(instance, other).map(str::to_owned),
    };
    let older = others.into_iter().filter(|other| is_older(other, instance));
    let mut rivals: Vec<_> = older.filter_map(|other| Some((age(other), shared(other)?))).collect();
    rivals.sort();
    let ((_, rival), shared) = rivals.into_iter().next()?;
    let message = format!(
        "{shared} is the Kafka of {rival}, which came first, and two instances on one Kafka would share their topics; give this one a Kafka of its own, or remove one of the two"
    );
    Some(Problem { object: name, field: "spec.kafka.bootstrapServers".into(), message })
}

/// Whether one comes before another.
pub fn is_older(one: &MqttInstance, other: &MqttInstance) -> bool {
    age(one) < age(other)
}

/// The oldest first; of two equally old ones the first by name.
fn age(instance: &MqttInstance) -> (Option<i64>, ObjectName) {
    let created = instance.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    (created, name_of(Kind::MqttInstance, instance))
}

/// A server that both name.
fn common<'a>(one: &'a MqttInstance, other: &MqttInstance) -> Option<&'a str> {
    let same_namespace = one.metadata.namespace == other.metadata.namespace;
    let servers =
        |instance: &'_ MqttInstance| instance.spec.kafka.clone().map(|kafka| kafka.bootstrap_servers);
    let theirs = servers(other)?;
    let ours = &one.spec.kafka.as_ref()?.bootstrap_servers;
    let same = |server: &&String| {
        (same_namespace || means_the_same_everywhere(server))
            && theirs.iter().any(|their| their.eq_ignore_ascii_case(server))
    };
    ours.iter().find(same).map(String::as_str)
}

/// A short name such as `kafka-0.kafka` is another host in another namespace.
fn means_the_same_everywhere(server: &str) -> bool {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok() || host.matches('.').count() >= 2
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(name: &str, namespace: &str, created: u32, servers: &[&str]) -> MqttInstance {
        let kafka = if servers.is_empty() { Value::Null } else { json!({"bootstrapServers": servers}) };
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
            "spec": {"kafka": kafka},
        }))
        .unwrap()
    }

    #[test]
    fn of_two_instances_on_one_kafka_the_older_has_it() {
        let check = |what: &str, one: &MqttInstance, other: &MqttInstance, rival: Option<&str>| {
            let found = conflict(one, [other], |_| None);
            let named =
                found.as_ref().map(|problem| problem.message.split_once(" is the Kafka of ").unwrap().1);
            assert_eq!(named.map(|rest| rest.split(',').next().unwrap()), rival, "{what}: {found:?}");
        };
        let a = instance("a", "plant", 5, &["kafka-0.kafka:9092", "kafka-1.kafka:9092"]);
        let older = |servers: &[&str]| instance("b", "plant", 1, servers);
        check("one server of several", &a, &older(&["KAFKA-1.kafka:9092"]), Some("MqttInstance plant/b"));
        check("another port", &a, &older(&["kafka-1.kafka:9093"]), None);
        check("no Kafka", &a, &older(&[]), None);
        check("a younger one", &older(&["kafka-0.kafka:9092"]), &a, None);
        check("itself", &a, &a, None);
        let same_age = instance("b", "plant", 5, &["kafka-0.kafka:9092"]);
        check("the first by name has it", &a, &same_age, None);
        check("the second by name has not", &same_age, &a, Some("MqttInstance plant/a"));
        let elsewhere = |server: &str| instance("b", "city", 1, &[server]);
        check("a short name elsewhere", &a, &elsewhere("kafka-0.kafka:9092"), None);
        for server in ["kafka-0.kafka.ops.svc:9092", "10.1.2.3:9092", "[2001:db8::1]:9092"] {
            let a = instance("a", "plant", 5, &[server]);
            check(server, &a, &elsewhere(server), Some("MqttInstance city/b"));
        }
    }

    #[test]
    fn where_both_clusters_are_known_their_ids_decide() {
        let younger = instance("a", "plant", 5, &["kafka:9092"]);
        let older = |server: &str| instance("b", "plant", 1, &[server]);
        let check = |what: &str, other: &MqttInstance, ids: [Option<&str>; 2], begins: Option<&str>| {
            let id = |of: &MqttInstance| ids[usize::from(of.metadata.name != younger.metadata.name)];
            let found = conflict(&younger, [other], |of| id(of).map(str::to_owned));
            let message = found.map(|problem| problem.message).unwrap_or_default();
            match begins {
                Some(begins) => assert!(message.starts_with(begins), "{what}: {message}"),
                None => assert_eq!(message, "", "{what}"),
            }
        };
        let (same, another) = (older("kafka:9092"), older("kafka-alias:9092"));
        let by_id = "Kafka cluster x, where these servers lead, is the Kafka of MqttInstance plant/b, which came first";
        check("one cluster by two names", &another, [Some("x"), Some("x")], Some(by_id));
        check("two clusters by one name", &same, [Some("x"), Some("y")], None);
        for known in [[Some("x"), None], [None, Some("x")], [None, None]] {
            check("not both are known", &same, known, Some("kafka:9092 is the Kafka of"));
            check("nor is any name the same", &another, known, None);
        }
    }
}
