//! What outlives an instance: its topics in Kafka and the passwords that were generated for its users. Owns the record of it, one
//! Secret an instance in the operator's namespace, and sweeps what has had its time.
//!
//! Promises: the record is there before anything that it tells of is made; nothing of an instance that is gone holds up the
//! deletion of anything, its namespace included; nothing in Kafka is deleted unless the API server says that the object it was
//! made for is gone and the record is there, its pods have ended, and no other instance that is known has that Kafka; a sweep that
//! fails is tried again until it is done.
//!
//! [`record`] has what follows from what, without any of the world.

pub mod record;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{Resource as _, ResourceExt as _, core::ObjectMeta};
use mqtt_operator_api::{
    Kind,
    parent_topic::{DeletionPolicy, ParentTopic},
    render::{ObjectName, Objects, Problem, Rendered, name_of},
    user::{MqttUser, USERNAME},
};
use parking_lot::Mutex;

pub use self::record::{Live, Record};
use self::record::{Named, Password, Topic};
use crate::{
    apply::{Error, Writer},
    digest,
    instance::clusters::Clusters,
    parent_topic::Clients,
    queue::{Done, Queue},
    watch::World,
};

/// The label of records, and the selector of all of them.
const KEPT: &str = "mqtt.dms.dev/kept";
const OURS: &str = "mqtt.dms.dev/kept=instance";
/// What people are told on a record: of which instance it is, and from when on it is swept.
const INSTANCE: &str = "mqtt.dms.dev/instance";
const SWEPT_AFTER: &str = "mqtt.dms.dev/swept-after";
/// The key of the Secret that holds it.
const KEY: &str = "record";
/// A Secret takes 1 MiB in all.
const MOST_BYTES: usize = 1_000_000;
/// How soon it is looked again whether what stands in the way has gone.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How soon it is asked again whose Kafka it is.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The longest that nothing is looked at, as clocks may be moved.
const LONGEST: Duration = Duration::from_secs(3600);

pub struct Keeper {
    pub world: Arc<World>,
    pub writer: Arc<Writer>,
    pub clusters: Arc<Clusters>,
    pub clients: Arc<Clients>,
    pub queue: Arc<Queue>,
    /// The operator's own, where records are.
    pub namespace: String,
    /// What the names of records begin with.
    pub prefix: String,
    /// Where it acts; empty: everywhere.
    pub watched: Vec<String>,
    pub records: Records,
}

/// By instance.
#[derive(Default)]
pub struct Records(Mutex<HashMap<ObjectName, Arc<Cell>>>);

/// One record: who writes it does so alone, and nobody who reads it waits for that.
#[derive(Default)]
struct Cell {
    writing: tokio::sync::Mutex<()>,
    record: Mutex<Option<Arc<Record>>>,
}

/// What became of the topics of an instance that is gone.
enum Swept {
    Done,
    /// What is its own, but not what goes with objects that are still there.
    Own,
    NotYet(Done),
}

impl Keeper {
    /// Reads all records, and has all looked at that may have to be swept.
    pub async fn load(&self) -> Result<(), Error> {
        for secret in self.writer.list_own(&self.namespace, OURS).await? {
            let name = secret.name_any();
            let held = secret.data.as_ref().and_then(|data| data.get(KEY));
            match held.map(|held| serde_json::from_slice::<Record>(&held.0)) {
                // That of another release is its own matter.
                Some(Ok(record)) if self.name(&record.instance()) != name => {}
                Some(Ok(record)) => {
                    self.queue.add(record.instance());
                    record
                        .topics
                        .values()
                        .for_each(|topic| self.queue.add(topic.object.of(Kind::ParentTopic)));
                    self.records.cell(&record.instance()).set(Some(record));
                }
                Some(Err(_)) | None => tracing::error!(
                    "Secret {}/{name} holds no record of what an instance has left: nothing of it is swept; look at its annotations, and delete it",
                    self.namespace
                ),
            }
        }
        Ok(())
    }

    /// There is an instance with this UID. What is remembered of it, and of those that were before.
    pub fn is_there(&self, instance: &ObjectName, uid: &str) -> Option<Record> {
        let mut record = Record::clone(&*self.records.get(instance)?);
        record.is_there_as(uid, now());
        Some(record)
    }

    /// Remembers what an instance has now.
    pub async fn keep(&self, live: Live<'_>) -> Result<(), Error> {
        let cell = self.records.cell(live.instance);
        let _alone = cell.writing.lock().await;
        let before = cell.get();
        let updated = Record::updated(before.as_deref().cloned(), live, now());
        if before.as_deref() != Some(&updated) {
            self.write(&updated).await?;
            cell.set(Some(updated));
        }
        Ok(())
    }

    /// What is to become of an instance when it goes: said whatever else keeps it from being reconciled.
    pub async fn policy(
        &self,
        instance: &ObjectName,
        uid: &str,
        policy: DeletionPolicy,
        retain_for: Duration,
    ) -> Result<(), Error> {
        self.change(instance, |record| record.uid == uid && record.set_policy(policy, retain_for)).await
    }

    /// There is no such instance as far as one sees: sweeps what it left once that has had its time.
    pub async fn gone(&self, instance: &ObjectName) -> Result<Done, Error> {
        let Some(record) = self.records.get(instance) else {
            self.records.remove(instance);
            self.world.was_to_stay(instance);
            return Ok(Done::Settled);
        };
        if !self.acts_in(&instance.namespace) {
            return Ok(Done::Settled);
        }
        if self.writer.is_there(instance).await? {
            return Ok(Done::Again(LOOK_AGAIN));
        }
        if self.world.was_to_stay(instance) {
            self.change(instance, Record::stays).await?;
        }
        if !self.writer.has_own(&self.namespace, &self.name(instance)).await? {
            tracing::info!(
                "{instance} is gone, and somebody has deleted the record of what it left: nothing is swept"
            );
            self.records.remove(instance);
            return Ok(Done::Settled);
        }
        if record.gone_since.is_none() {
            self.change(instance, |record| {
                record.went(now());
                true
            })
            .await?;
        }
        let Some(record) = self.records.get(instance) else { return Ok(Done::Settled) };
        if let Some(until) = record.due() {
            let left = until.saturating_sub(now());
            if let Ok(left @ 1..) = u64::try_from(left) {
                tracing::info!("{instance} is gone; what it left is kept until {}", time(until));
                return Ok(Done::Again(Duration::from_secs(left).min(LONGEST)));
            }
        }
        match self.sweep(instance, &record).await? {
            Swept::NotYet(done) => return Ok(done),
            Swept::Own => {
                let own_is_swept = |record: &mut Record| !std::mem::replace(&mut record.own_is_swept, true);
                self.change(instance, own_is_swept).await?;
            }
            Swept::Done => {
                self.writer.delete_own(&self.namespace, &self.name(instance)).await?;
                self.records.remove(instance);
            }
        }
        Ok(Done::Settled)
    }

    /// The topic that goes with a ParentTopic which is gone, if the instance that had it lives.
    pub fn topic_of(&self, object: &ObjectName) -> Option<(ObjectName, String, Topic)> {
        let object = Named::new(object);
        self.records.all().into_iter().filter(|record| record.gone_since.is_none()).find_map(|record| {
            let (name, topic) = record.topic_of(&object)?;
            Some((record.instance(), name.clone(), topic.clone()))
        })
    }

    /// The topic of a ParentTopic goes with it no longer: it is gone, or another's, or is to stay.
    pub async fn forget_topic(&self, object: &ObjectName) -> Result<(), Error> {
        let object = Named::new(object);
        for record in self.records.all().into_iter().filter(|record| record.topic_of(&object).is_some()) {
            self.change(&record.instance(), |record| {
                record.topics.retain(|_, topic| topic.object != object);
                true
            })
            .await?;
        }
        Ok(())
    }

    /// Writes a record that `changes` has changed, if it says so.
    async fn change(
        &self,
        instance: &ObjectName,
        changes: impl FnOnce(&mut Record) -> bool,
    ) -> Result<(), Error> {
        let cell = self.records.cell(instance);
        let _alone = cell.writing.lock().await;
        let Some(mut record) = cell.get().as_deref().cloned() else { return Ok(()) };
        if changes(&mut record) {
            self.write(&record).await?;
            cell.set(Some(record));
        }
        Ok(())
    }

    /// Deletes what is left in Kafka, unless another instance has it by now.
    async fn sweep(&self, instance: &ObjectName, record: &Record) -> Result<Swept, Error> {
        if self.world.has_pods(instance) {
            // They would make topics anew.
            return Ok(Swept::NotYet(Done::Again(LOOK_AGAIN)));
        }
        let Some(access) = record.access() else { return Ok(Swept::Done) };
        let failed = |error: mqtt_kafka::Error| {
            tracing::warn!("{instance} is gone, and what it left is still to be swept: {}", error.line);
            Ok(Swept::NotYet(Done::Failed))
        };
        let admin = match self.clients.get(instance, &access, |_| true) {
            Ok(admin) => admin,
            Err(error) => return failed(error),
        };
        let cluster = match admin.cluster_id().await {
            Ok(cluster) => cluster,
            Err(error) => return failed(error),
        };
        if let Some(rival) = self.who_has(&cluster, record) {
            let Ok(rival) = rival else {
                tracing::info!(
                    "{instance} is gone; before it is swept it is asked which Kafka the other instances have"
                );
                return Ok(Swept::NotYet(Done::Again(ASK_AGAIN)));
            };
            tracing::info!("{rival} has the Kafka that {instance} had: nothing of it is swept");
            return Ok(Swept::Done);
        }
        let mut stays = false;
        for topic in record.swept() {
            self.writer.leads()?;
            if self.writer.is_there(instance).await? {
                return Ok(Swept::NotYet(Done::Again(LOOK_AGAIN)));
            }
            // One whose ParentTopic is there goes with it.
            if let Some(of) = record.topics.get(&topic)
                && (self.world.has_topic(instance, &topic)
                    || self.writer.is_there(&of.object.of(Kind::ParentTopic)).await?)
            {
                stays = true;
            } else if let Err(error) = admin.delete(&topic).await {
                return failed(error);
            } else {
                self.writer.step(&format!("delete Kafka topic {topic}"));
            }
        }
        if stays {
            return Ok(Swept::Own);
        }
        tracing::info!("what {instance} left is swept");
        Ok(Swept::Done)
    }

    /// Another instance on a Kafka, be it one that is gone and has not had its time; an error: it is not known yet.
    fn who_has(&self, cluster: &str, swept: &Record) -> Option<Result<ObjectName, ()>> {
        let mut unknown = None;
        for other in self.world.instances.state() {
            let other = match &other.0 {
                Ok(other) if other.spec.kafka.is_none() => continue,
                Ok(other) => other,
                Err(_) => {
                    unknown = Some(Err(()));
                    continue;
                }
            };
            match self.clusters.of(other) {
                Some(id) if id != cluster => {}
                Some(_) => return Some(Ok(name_of(Kind::MqttInstance, other))),
                None => unknown = Some(Err(())),
            }
        }
        let waits = |other: &Arc<Record>| {
            other.instance() != swept.instance()
                && other.due().is_some_and(|due| due > now())
                && other.shares_kafka(swept)
        };
        let other = self.records.all().into_iter().find(waits);
        other.map(|other| Ok(other.instance())).or(unknown)
    }

    async fn write(&self, record: &Record) -> Result<(), Error> {
        let instance = record.instance();
        let unwritable = |error: serde_json::Error| Error::Later {
            what: format!("remember {instance}"),
            why: error.to_string(),
        };
        let mut json = serde_json::to_vec(record).map_err(unwritable)?;
        if json.len() > MOST_BYTES {
            let many = record.passwords();
            tracing::warn!("{instance}: {many} generated passwords are too many to be kept beyond its end");
            json = serde_json::to_vec(&record.without_passwords()).map_err(unwritable)?;
        }
        let mut annotations =
            BTreeMap::from([(INSTANCE.to_owned(), format!("{}/{}", instance.namespace, instance.name))]);
        annotations.extend(record.due().map(|due| (SWEPT_AFTER.to_owned(), time(due))));
        let labels = [
            ("app.kubernetes.io/managed-by", "mqtt-operator"),
            ("app.kubernetes.io/part-of", "mqtt"),
            (KEPT, "instance"),
        ];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name(&instance)),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            type_: Some("mqtt.dms.dev/kept".into()),
            data: Some([(KEY.to_owned(), ByteString(json))].into()),
            ..Secret::default()
        };
        self.writer.apply_secret(&self.namespace, &secret).await.map(drop)
    }

    fn acts_in(&self, namespace: &str) -> bool {
        self.watched.is_empty() || self.watched.iter().any(|watched| watched == namespace)
    }

    /// Names of namespaces and instances are too long to be put together.
    fn name(&self, instance: &ObjectName) -> String {
        let short = digest::short(&format!("{}/{}", instance.namespace, instance.name));
        format!("{}-kept-{short}", self.prefix)
    }
}

impl Records {
    fn cell(&self, instance: &ObjectName) -> Arc<Cell> {
        self.0.lock().entry(instance.clone()).or_default().clone()
    }

    fn get(&self, instance: &ObjectName) -> Option<Arc<Record>> {
        let cell = self.0.lock().get(instance).cloned()?;
        cell.get()
    }

    fn all(&self) -> Vec<Arc<Record>> {
        self.0.lock().values().filter_map(|cell| cell.get()).collect()
    }

    fn remove(&self, instance: &ObjectName) {
        self.0.lock().remove(instance);
    }
}

impl Cell {
    fn get(&self) -> Option<Arc<Record>> {
        self.record.lock().clone()
    }

    fn set(&self, record: Option<Record>) {
        *self.record.lock() = record.map(Arc::new);
    }
}

/// The topics in force that go with their ParentTopic.
pub fn topics(objects: &Objects, rendered: &Rendered) -> BTreeMap<String, Topic> {
    let wrong = Problem::objects(&rendered.problems);
    let goes = |topic: &&ParentTopic| {
        topic.spec.deletion_policy == DeletionPolicy::Delete
            && !wrong.contains(&name_of(Kind::ParentTopic, *topic))
    };
    let of = |topic: &ParentTopic| {
        let uid = topic.meta().uid.as_deref().unwrap_or_default();
        (topic.topic(), Topic::of(&name_of(Kind::ParentTopic, topic), uid))
    };
    objects.topics.iter().filter(goes).map(of).collect()
}

/// Those whose topic stays when they go.
pub fn retained(objects: &Objects) -> BTreeSet<Named> {
    let stays = |topic: &&ParentTopic| topic.spec.deletion_policy == DeletionPolicy::Retain;
    objects.topics.iter().filter(stays).map(|topic| Named::new(&name_of(Kind::ParentTopic, topic))).collect()
}

/// The passwords that were generated.
pub fn passwords(objects: &Objects) -> BTreeMap<Named, Password> {
    let of = |user: &MqttUser| {
        let object = name_of(Kind::MqttUser, user);
        let secret = objects.secrets.get(&(object.namespace.clone(), user.generated_secret_name()));
        let secret =
            secret.filter(|_| objects.generated.as_ref().is_some_and(|theirs| theirs.contains(&object)))?;
        let text = |(key, value): (&String, &Vec<u8>)| {
            let told = (key.clone(), String::from_utf8(value.clone()).ok()?);
            (key != USERNAME).then_some(told)
        };
        let uid = user.uid().unwrap_or_default();
        Some((
            Named::new(&object),
            Password::new(&uid, user.username(), secret.iter().filter_map(text).collect()),
        ))
    };
    objects.users.iter().filter_map(of).collect()
}

/// Seconds since the Unix epoch.
fn now() -> i64 {
    Timestamp::now().as_second()
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}
