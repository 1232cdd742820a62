//! What is remembered of one instance beyond its end, and what follows from it. Pure: the time is an argument, in seconds since the
//! Unix epoch.
//!
//! Promises: what is kept is what the instance had when it was seen last; a password whose user or Secret was deleted while the
//! instance lived does not come back; nothing is swept before its time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mqtt_broker_api::{
    config::{Kafka, KafkaSecrets},
    topics,
};
use mqtt_operator_api::{Kind, parent_topic::DeletionPolicy, render::ObjectName};
use serde::{Deserialize, Serialize};

use crate::parent_topic::Access;

/// Users may be deleted a while before their instance, in one go.
const IN_ONE_GO: i64 = 600;

/// As JSON, what the instance's Secret in the operator's namespace holds. No `Debug`: it has passwords.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub namespace: String,
    pub name: String,
    /// Of the instance that there is, or was last.
    pub uid: String,
    #[serde(default)]
    reached: Option<Reached>,
    deletion_policy: DeletionPolicy,
    retain_seconds: u64,
    /// Since when there is no such instance.
    #[serde(default)]
    pub gone_since: Option<i64>,
    /// What is the instance's own is swept, and only topics are left that go with ParentTopics which are still there.
    #[serde(default)]
    pub own_is_swept: bool,
    /// Topics in Kafka that go when their ParentTopic has gone.
    #[serde(default)]
    pub topics: BTreeMap<String, Topic>,
    /// Those that the operator made, by user.
    #[serde(default)]
    passwords: BTreeMap<Named, Password>,
}

/// How Kafka is reached, secrets included.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Reached {
    kafka: Kafka,
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    password: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// The ParentTopic.
    pub object: Named,
    pub uid: String,
    /// Of an instance that was before: it may be taken back until then.
    #[serde(default)]
    pub until: Option<i64>,
}

/// A user's Secret.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Password {
    pub uid: String,
    pub username: String,
    pub data: BTreeMap<String, String>,
    /// Since when there is no such user, though the instance lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<i64>,
    /// Of an instance that was before: it may be taken back until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<i64>,
}

/// NAMESPACE/NAME of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Named(String);

impl Named {
    pub fn new(object: &ObjectName) -> Self {
        Self(format!("{}/{}", object.namespace, object.name))
    }

    pub fn of(&self, kind: Kind) -> ObjectName {
        let (namespace, name) = self.0.split_once('/').unwrap_or_default();
        ObjectName { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// What an instance has now.
pub struct Live<'a> {
    pub instance: &'a ObjectName,
    pub uid: &'a str,
    pub deletion_policy: DeletionPolicy,
    pub retain_for: Duration,
    /// None: not all is there that it takes.
    pub access: Option<&'a Access>,
    pub topics: BTreeMap<String, Topic>,
    /// ParentTopics that are there and whose topics stay.
    pub retained: BTreeSet<Named>,
    pub passwords: BTreeMap<Named, Password>,
}

impl Topic {
    pub fn of(object: &ObjectName, uid: &str) -> Self {
        Self { object: Named::new(object), uid: uid.into(), until: None }
    }
}

impl Password {
    pub fn new(uid: &str, username: String, data: BTreeMap<String, String>) -> Self {
        Self { uid: uid.into(), username, data, dropped: None, until: None }
    }
}

impl Record {
    pub fn instance(&self) -> ObjectName {
        ObjectName { kind: Kind::MqttInstance, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// What is to be remembered from now on.
    pub fn updated(before: Option<Self>, live: Live<'_>, now: i64) -> Self {
        let Live { instance, uid, deletion_policy, retain_for, access, mut topics, retained, mut passwords } =
            live;
        let mut reached = access.map(Reached::of);
        if let Some(mut before) = before {
            let servers = |reached: &Option<Reached>| Some(reached.as_ref()?.kafka.bootstrap_servers.clone());
            if before.uid != uid && reached.is_some() && servers(&reached) != servers(&before.reached) {
                // On another Kafka a topic of that name is another one.
                before.topics.clear();
            }
            before.is_there_as(uid, now);
            reached = reached.or(before.reached);
            for (topic, of) in before.topics {
                if !retained.contains(&of.object) {
                    topics.entry(topic).or_insert(of);
                }
            }
            for (user, mut password) in before.passwords {
                let keeps = match password.until {
                    Some(until) => now < until,
                    None => now - *password.dropped.get_or_insert(now) < IN_ONE_GO,
                };
                if keeps {
                    passwords.entry(user).or_insert(password);
                }
            }
        }
        Self {
            namespace: instance.namespace.clone(),
            name: instance.name.clone(),
            uid: uid.into(),
            reached,
            deletion_policy,
            retain_seconds: retain_for.as_secs(),
            gone_since: None,
            own_is_swept: false,
            topics,
            passwords,
        }
    }

    /// There is an instance with this UID. What one before it had may be taken back.
    pub fn is_there_as(&mut self, uid: &str, now: i64) {
        if self.uid != uid {
            self.went(self.gone_since.unwrap_or(now));
            let until = Some(self.end(self.gone_since.unwrap_or(now)));
            self.topics.values_mut().for_each(|topic| topic.until = topic.until.or(until));
            for password in self.passwords.values_mut() {
                (password.until, password.dropped) = (password.until.or(until), None);
            }
            self.uid = uid.into();
        }
        (self.gone_since, self.own_is_swept) = (None, false);
    }

    /// There is no such instance any more. Whose user went long before is forgotten.
    pub fn went(&mut self, now: i64) {
        self.gone_since = self.gone_since.or(Some(now));
        self.passwords.retain(|_, password| {
            password.until.is_some() || password.dropped.is_none_or(|dropped| now - dropped < IN_ONE_GO)
        });
    }

    /// What is to become of it. True if that is something else than before.
    pub fn set_policy(&mut self, deletion_policy: DeletionPolicy, retain_for: Duration) -> bool {
        let before = (self.deletion_policy, self.retain_seconds);
        (self.deletion_policy, self.retain_seconds) = (deletion_policy, retain_for.as_secs());
        before != (self.deletion_policy, self.retain_seconds)
    }

    /// The instance said at last that what it leaves is to be kept. True if that was something else.
    pub fn stays(&mut self) -> bool {
        std::mem::replace(&mut self.deletion_policy, DeletionPolicy::Retain) != DeletionPolicy::Retain
    }

    /// The topic that goes with a ParentTopic.
    pub fn topic_of(&self, object: &Named) -> Option<(&String, &Topic)> {
        self.topics.iter().find(|(_, topic)| topic.object == *object)
    }

    /// How many passwords are remembered.
    pub fn passwords(&self) -> usize {
        self.passwords.len()
    }

    /// The same without passwords.
    pub fn without_passwords(&self) -> Self {
        Self { passwords: BTreeMap::new(), ..self.clone() }
    }

    /// The Secret that a user had under an instance that was before, of the same names.
    pub fn taken_back(
        &self,
        user: &ObjectName,
        uid: &str,
        username: &str,
        now: i64,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let kept = self.passwords.get(&Named::new(user))?;
        let is_theirs =
            kept.uid != uid && kept.username == username && kept.until.is_some_and(|until| now < until);
        let data = kept.data.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        is_theirs.then(|| data.collect())
    }

    /// When all that is left of an instance that is gone is to be swept.
    pub fn due(&self) -> Option<i64> {
        self.gone_since.map(|since| self.end(since))
    }

    fn end(&self, since: i64) -> i64 {
        match self.deletion_policy {
            DeletionPolicy::Delete => since,
            DeletionPolicy::Retain => since.saturating_add_unsigned(self.retain_seconds),
        }
    }

    /// What is to be swept still: what brokers keep for themselves, and what goes with its ParentTopic.
    pub fn swept(&self) -> BTreeSet<String> {
        let own = topics::ALL.iter().filter(|_| !self.own_is_swept).map(|&topic| topic.to_owned());
        self.topics.keys().cloned().chain(own).collect()
    }

    /// Whether another one is on the same Kafka, as far as the names of servers tell.
    pub fn shares_kafka(&self, other: &Self) -> bool {
        let servers = |record: &Self| {
            record
                .reached
                .iter()
                .flat_map(|reached| reached.kafka.bootstrap_servers.clone())
                .collect::<BTreeSet<_>>()
        };
        !servers(self).is_disjoint(&servers(other))
    }

    pub fn access(&self) -> Option<Access> {
        let Reached { kafka, ca, certificate, key, password } = self.reached.clone()?;
        Some(Access { kafka, secrets: KafkaSecrets { ca, certificate, key, password } })
    }
}

impl Reached {
    fn of(access: &Access) -> Self {
        let Access { kafka, secrets } = access;
        let KafkaSecrets { ca, certificate, key, password } = secrets.clone();
        Self { kafka: kafka.clone(), ca, certificate, key, password }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETAINED: i64 = 15 * 86_400;

    fn object(kind: Kind, name: &str) -> ObjectName {
        ObjectName { kind, namespace: "plant".into(), name: name.into() }
    }

    fn access() -> Access {
        let bootstrap_servers = vec!["kafka:9092".into()];
        let kafka = Kafka { bootstrap_servers, replication_factor: 1, rack: None, tls: None, sasl: None };
        let secrets = KafkaSecrets { password: Some("s3cret".into()), ..KafkaSecrets::default() };
        Access { kafka, secrets }
    }

    fn password(uid: &str, value: &str) -> Password {
        Password::new(uid, "fleet".into(), [("password".to_owned(), value.to_owned())].into())
    }

    /// An instance `uid` with the user `fleet`, if it is there, and the topic `alarms`, if its object is there.
    fn seen(before: Option<Record>, uid: &str, user: Option<&str>, topic: bool, now: i64) -> Record {
        let live = Live {
            instance: &object(Kind::MqttInstance, "meters"),
            uid,
            deletion_policy: DeletionPolicy::Retain,
            retain_for: Duration::from_secs(RETAINED as u64),
            access: Some(&access()),
            topics: topic
                .then(|| ("alarms".to_owned(), Topic::of(&object(Kind::ParentTopic, "alarms"), "t")))
                .into_iter()
                .collect(),
            retained: BTreeSet::new(),
            passwords: user
                .map(|uid| (Named::new(&object(Kind::MqttUser, "fleet")), password(uid, "first")))
                .into_iter()
                .collect(),
        };
        Record::updated(before, live, now)
    }

    fn back(record: &Record, uid: &str, now: i64) -> bool {
        record.taken_back(&object(Kind::MqttUser, "fleet"), uid, "fleet", now).is_some()
    }

    #[test]
    fn what_an_instance_had_is_taken_back_by_the_next_one_of_its_name_in_time_alone() {
        let first = seen(None, "one", Some("u1"), true, 0);
        assert!(!back(&first, "u2", 5), "the instance lives: whoever deletes a user wants another password");
        let mut gone = first.clone();
        gone.gone_since = Some(100);
        assert_eq!(gone.due(), Some(100 + RETAINED));
        let mut again = gone.clone();
        again.is_there_as("two", 200);
        assert!(
            back(&again, "u2", 200)
                && back(&again, "u2", 99 + RETAINED)
                && !back(&again, "u2", 100 + RETAINED)
        );
        assert!(!back(&again, "u1", 200), "it is the same user: its Secret was deleted");
        assert!(again.taken_back(&object(Kind::MqttUser, "fleet"), "u2", "other", 200).is_none());
        // The instance comes first, its users and topics later.
        let early = seen(Some(again), "two", None, false, 300);
        assert!(back(&early, "u2", 5_000), "it waits for its user");
        assert_eq!(early.topics["alarms"].until, Some(100 + RETAINED), "and the topic for its object");
        let whole = seen(Some(early), "two", Some("u2"), true, 6_000);
        assert_eq!((whole.topics["alarms"].until, back(&whole, "u3", 6_001)), (None, false));
        assert_eq!(whole.due(), None);
    }

    #[test]
    fn a_topic_that_is_to_stay_from_now_on_is_forgotten_and_one_on_another_kafka_is_another_one() {
        let (instance, access) = (object(Kind::MqttInstance, "meters"), access());
        let again = |uid: &'static str, retained: &[&str], server: &str| {
            let mut access = access.clone();
            access.kafka.bootstrap_servers = vec![server.to_owned()];
            let retained = retained.iter().map(|name| Named::new(&object(Kind::ParentTopic, name))).collect();
            let (deletion_policy, retain_for) = (DeletionPolicy::Retain, Duration::from_secs(60));
            let (topics, passwords) = (BTreeMap::new(), BTreeMap::new());
            let live = Live {
                instance: &instance,
                uid,
                deletion_policy,
                retain_for,
                access: Some(&access),
                topics,
                retained,
                passwords,
            };
            Record::updated(Some(seen(None, "one", None, true, 0)), live, 10).topics.len()
        };
        assert_eq!(again("one", &[], "kafka:9092"), 1, "its object has gone: it is to go, too");
        assert_eq!(again("one", &["alarms"], "kafka:9092"), 0, "somebody has thought better of it");
        assert_eq!(again("one", &[], "kafka:9093"), 1, "another server of the same Kafka");
        assert_eq!(again("two", &[], "kafka:9092"), 1);
        assert_eq!(again("two", &[], "other:9092"), 0);
    }

    #[test]
    fn users_that_go_a_while_before_their_instance_are_kept_with_it_and_others_are_forgotten() {
        let with = || Some(seen(None, "one", Some("u1"), false, 0));
        let early = seen(with(), "one", None, false, 100);
        let mut gone = seen(Some(early), "one", None, false, 100 + IN_ONE_GO - 1);
        gone.went(100 + IN_ONE_GO - 1);
        gone.is_there_as("two", 2_000);
        assert!(back(&gone, "u2", 2_000), "they went in one go");
        let long = seen(Some(seen(with(), "one", None, false, 100)), "one", None, false, 100 + IN_ONE_GO);
        assert!(long.passwords.is_empty());
        let mut unseen = seen(with(), "one", None, false, 100);
        unseen.is_there_as("two", 100 + IN_ONE_GO);
        assert!(unseen.passwords.is_empty(), "nobody looked at it meanwhile");
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_tells_how_kafka_is_reached() {
        let record = seen(None, "one", Some("u1"), true, 0);
        let read: Record = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(read == record && read.access() == Some(access()));
        assert_eq!(read.instance(), object(Kind::MqttInstance, "meters"));
        assert!(read.swept().contains("__mqtt-sessions") && read.swept().contains("alarms"));
        let mut at_once = record;
        (at_once.deletion_policy, at_once.gone_since) = (DeletionPolicy::Delete, Some(7));
        assert_eq!(at_once.due(), Some(7));
    }
}
