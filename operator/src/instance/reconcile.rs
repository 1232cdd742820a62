//! The way of one instance through all of it, and what is remembered of it between two times.

use std::{
    collections::{BTreeSet, HashMap},
    mem::take,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Resource, ResourceExt as _};
use mqtt_broker_api::{acl::AclDocument, shards};
use mqtt_operator_api::{
    Kind,
    instance::MqttInstance,
    render::{ObjectName, Objects, Problem, Rendered, name_of, render},
    status::Status,
};
use parking_lot::Mutex;
use serde_json::Map;
use tokio::time::Instant;

use super::{
    build::{self, build},
    certificates,
    clusters::Clusters,
    fetch::{self, Members},
    in_force::{self, Progress},
    issuing::{self, Issued, Pair},
    members::{self, Rendering},
    nodes::{Asker, Broker},
    nudging::{Due, Nudging, Seen},
    objects::{self, Applied},
    rivals,
    saying::{Written, told_before},
};
use crate::{
    apply::{Error, Owner, Writer},
    health::Health,
    invalid,
    kept::{self, Keeper, Live},
    parent_topic::{Access, Wanted, Wants},
    queue::Done,
    status::{Verdict, enforced_since},
    user::{
        self, Generated, Makes,
        hasher::{A_RENDERING, HashKey, Hasher},
    },
    watch::{World, picked, secrets::SecretName},
};

/// How soon brokers are asked again whether they have loaded what is new.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How soon passwords that were left for another rendering are hashed.
const RENDER_AGAIN: Duration = Duration::from_millis(100);
/// How soon a broker that is not ready is asked why, or one that has not loaded in good time what is new.
const ASK_WHY: Duration = Duration::from_secs(3);
/// Kubelets mount what has changed within a minute and a half; brokers that can't be asked are believed after that.
const BELIEVED: Duration = Duration::from_secs(100);

/// What all instances share.
pub struct Instances {
    pub world: Arc<World>,
    pub writer: Arc<Writer>,
    pub wants: Arc<Wants>,
    pub clusters: Arc<Clusters>,
    pub keeper: Arc<Keeper>,
    pub options: build::Options,
    pub key: Arc<HashKey>,
    pub resync: Duration,
    pub asker: Asker,
    pub health: Arc<Health>,
    pub memories: Memories,
}

/// By instance.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<ObjectName, Arc<tokio::sync::Mutex<Memory>>>>);

/// What is remembered of one instance. A new instance of the same name has another UID, and another memory.
#[derive(Default)]
struct Memory {
    uid: String,
    /// What was rendered last.
    before: Option<Arc<AclDocument>>,
    progress: Progress,
    /// When everything was last looked at, whatever was remembered of it.
    resynced: Option<Instant>,
    /// Since when no broker has been ready.
    unready: Option<Instant>,
    nudging: Nudging,
    /// When the certificate that brokers show each other is to change, if it was made here.
    issued_until: Option<Timestamp>,
}

impl Instances {
    /// Brings one instance in line, and says how it and all that names it fare.
    pub async fn reconcile(&self, name: &ObjectName) -> Result<Done, Error> {
        let found = self.world.instances.get(&name.namespace, &name.name);
        match found.as_ref().map(|found| &found.0) {
            Some(Ok(instance)) if instance.metadata.deletion_timestamp.is_none() => {
                Box::pin(self.reconcile_one(name, instance)).await
            }
            Some(Err(invalid)) => {
                invalid::say(&self.writer, name, invalid).await?;
                self.members_wait(name).await
            }
            _ => {
                self.memories.0.lock().remove(name);
                self.wants.release(name);
                self.clusters.release(name);
                self.world.secrets.release(name);
                let of = |object: &ObjectName| members::no_instance(object, name);
                match self.say_all(&Members::of(&self.world, name), of).await? {
                    Done::Settled => self.keeper.gone(name).await,
                    unsaid => Ok(unsaid),
                }
            }
        }
    }

    async fn reconcile_one(&self, name: &ObjectName, instance: &MqttInstance) -> Result<Done, Error> {
        let memory = self.memories.0.lock().entry(name.clone()).or_default().clone();
        let mut memory = memory.lock().await;
        let uid = instance.uid().unwrap_or_default();
        if memory.uid != uid {
            *memory = Memory { uid: uid.clone(), ..Memory::default() };
        }
        let (policy, retain_for) = (instance.spec.deletion_policy, instance.spec.retain_for.get());
        self.keeper.policy(name, &uid, policy, retain_for).await?;
        if instance.spec.paused {
            // Whatever happens meanwhile is looked at afterwards.
            memory.resynced = None;
            return self.pause(name, instance).await;
        }
        let thorough = memory.resynced.is_none_or(|at| at.elapsed() >= self.resync);
        if thorough {
            self.doubt(name);
            memory.resynced = Some(Instant::now());
        }
        let owner = Owner { object: name.clone(), uid };
        if let Some(problem) = self.conflict(instance) {
            return self.give_way(name, instance, &problem).await;
        }

        let mut objects = Members::of(&self.world, name).with(instance.clone());
        let (mut rendered, generated, next) = match self.render(&owner, &mut objects, &mut memory).await {
            Ok(rendered) => rendered,
            Err(error) => {
                self.say_instance(instance, &error.verdict(), told_before(instance)).await?;
                return Err(error);
            }
        };
        let built = build(instance, &rendered, &self.options);
        let mut built = built.map_err(|problems| rendered.problems.extend(problems)).ok();
        if let (Some(next), Some(secret)) = (next, built.as_mut().and_then(|built| built.peers.as_mut())) {
            next.keep_in(secret);
        }
        // None: not all is there that it takes.
        let access = rendered.config.kafka.clone().filter(|_| built.is_some());
        let access = access.map(|kafka| Arc::new(Access { kafka, secrets: rendered.kafka_secrets.clone() }));
        if let Some(access) = &access {
            self.clusters.ask(name, access);
            if self.is_new(name, instance) {
                self.clusters.wait(name).await;
                if let Some(problem) = self.conflict(instance) {
                    return self.give_way(name, instance, &problem).await;
                }
            }
        }
        if let Err(error) = self.keep(name, &objects, &rendered, access.as_deref()).await {
            self.say_instance(instance, &error.verdict(), told_before(instance)).await?;
            return Err(error);
        }
        // Before brokers are told: who makes a topic is who says that it was not there before.
        self.want_topics(name, &objects, &rendered, access.as_ref());
        let parents: BTreeSet<_> =
            rendered.config.parents.iter().map(|parent| parent.topic.clone()).collect();
        self.wants.loading(name, parents.clone());
        let applied = match &built {
            Some(built) => {
                Some(objects::apply(&self.writer, &self.world, &owner, instance, built, thorough).await?)
            }
            None => None,
        };
        let held = applied.as_ref().is_some_and(|applied| applied.held);
        // While pods are held back, it is another config that they have.
        let config = built.as_ref().map(|built| built.config_hash.as_str()).filter(|_| !held);
        let (brokers, not_nudged) = self.brokers(name, instance, &mut memory, applied.as_ref(), config).await;
        let mut running = brokers.iter().filter(|broker| !broker.ending);
        let believed = memory.nudging.since().is_some_and(|since| since.elapsed() > BELIEVED);
        let has = |broker: &Broker| match &broker.config {
            Some(said) => config == Some(&said.hash),
            None => broker.ready && believed,
        };
        if config.is_some() && running.all(has) {
            self.wants.loaded(name, parents);
        }
        let hash = shards::hash(&rendered.acl);
        let all_loaded = memory.progress.loaded(&brokers, rendered.acl.generation, &hash);
        if !all_loaded
            && believed
            && brokers.iter().any(|broker| broker.ready)
            && brokers.iter().all(|broker| broker.acl.is_none())
        {
            memory.progress.assume_loaded(rendered.acl.generation);
        }
        for took in memory.progress.arrived(Instant::now()) {
            self.health.metrics.propagated(took);
        }
        let failed = applied.as_ref().and_then(|applied| applied.failed.clone()).or(not_nudged);
        let enforced = in_force::counted(&brokers, rendered.acl.generation, &hash);
        let written = Written { failed: failed.as_ref(), held, enforced };
        let unready = memory.unready.map_or(Duration::ZERO, |since| since.elapsed());
        let ready = self.say_of_instance(instance, &rendered, &written, &brokers, unready).await?;
        let rendering = Rendering {
            problems: Rendering::by_object(&rendered.problems),
            pending: &rendered.pending,
            failed: &generated.failed,
            progress: &memory.progress,
            applied: applied.is_some(),
            runs: !held || !brokers.is_empty(),
        };
        let all_is_said = self.say_members(name, &objects, &rendering).await?;
        if let Some(failed) = failed.or(generated.failed.into_values().next()) {
            return Err(failed);
        }
        let generation = Some(rendered.acl.generation);
        let behind = |broker: &Broker| !broker.ending && broker.is_behind(generation, config);
        let waits = applied.is_some() && !brokers.is_empty() && (!all_loaded || brokers.iter().any(behind));
        Ok(Done::Again(match () {
            () if !all_is_said => Duration::ZERO,
            () if !rendered.pending.is_empty() => RENDER_AGAIN,
            () if waits && !believed => ASK_AGAIN,
            () if waits => ASK_WHY,
            () if !ready => ASK_WHY,
            () => self.until_resync(instance, &memory),
        }))
    }

    /// Remembers what would be left in Kafka, and the passwords that were generated, before anything of it is made.
    async fn keep(
        &self,
        name: &ObjectName,
        objects: &Objects,
        rendered: &Rendered,
        access: Option<&Access>,
    ) -> Result<(), Error> {
        let spec = &objects.instance.spec;
        self.keeper
            .keep(Live {
                instance: name,
                uid: objects.instance.metadata.uid.as_deref().unwrap_or_default(),
                deletion_policy: spec.deletion_policy,
                retain_for: spec.retain_for.get(),
                access,
                topics: kept::topics(objects, rendered),
                retained: kept::retained(objects),
                passwords: kept::passwords(objects),
            })
            .await
    }

    /// Another instance has the Kafka that this one names.
    fn conflict(&self, instance: &MqttInstance) -> Option<Problem> {
        let all = picked(&self.world.instances, |_| true);
        rivals::conflict(instance, &all, |instance| self.clusters.of(instance))
    }

    /// Whether nothing runs so far that would get in an older instance's way.
    fn is_new(&self, name: &ObjectName, instance: &MqttInstance) -> bool {
        let broker = build::broker_name(instance, &self.options);
        self.world.stateful_sets.get(&name.namespace, &broker).is_none()
            && !picked(&self.world.instances, |other| rivals::is_older(other, instance)).is_empty()
    }

    async fn give_way(
        &self,
        name: &ObjectName,
        instance: &MqttInstance,
        problem: &Problem,
    ) -> Result<Done, Error> {
        let verdict = Verdict::of_problems([problem]).unwrap_or_else(|| members::waits_for(name));
        self.say_instance(instance, &verdict, Map::new()).await?;
        self.members_wait(name).await
    }

    /// Renders the documents; the ACL's generation rises with every change. Tells, too, what brokers are to show each other next.
    async fn render(
        &self,
        owner: &Owner,
        objects: &mut Objects,
        memory: &mut Memory,
    ) -> Result<(Rendered, Generated, Option<Pair>), Error> {
        let name = &owner.object;
        let mut wanted: BTreeSet<SecretName> = fetch::secrets_of(objects);
        let of_peers = (name.namespace.clone(), build::peers_secret_name(&objects.instance, &self.options));
        let names_none = objects.instance.spec.listeners.peers.secret_ref.is_none();
        wanted.extend(names_none.then(|| of_peers.clone()));
        let mut found = self.world.secrets.fetch(name, &wanted).await?;
        let kept = self.keeper.is_there(name, &owner.uid);
        let makes = Makes { writer: &self.writer, secrets: &self.world.secrets, kept: kept.as_ref() };
        let generated = user::generate(makes, objects, &mut found).await;
        if generated.failed.values().any(|error| *error == Error::Lost) {
            return Err(Error::Lost);
        }
        let issued = if names_none {
            let domain = build::nodes_domain(&objects.instance, &self.options);
            let (secrets, there) = (&self.world.secrets, found.get(&of_peers));
            Some(issuing::issue(secrets, owner, &of_peers, there, &domain, Timestamp::now()).await?)
        } else {
            None
        };
        objects.secrets = found.into_iter().map(|(name, value)| (name, value.data.clone())).collect();
        let before = match &memory.before {
            Some(before) => before.clone(),
            None => Arc::new(self.applied_before(name, &objects.instance).await?),
        };
        let (key, last) = (self.key.clone(), before.clone());
        // Lent: there may be thousands.
        let lent = Objects {
            instance: objects.instance.clone(),
            topics: take(&mut objects.topics),
            users: take(&mut objects.users),
            grants: take(&mut objects.grants),
            secrets: take(&mut objects.secrets),
            generated: objects.generated.take(),
        };
        let rendering = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::new(&key, &last, A_RENDERING);
            (render(&lent, last.generation, |password| hasher.hash(password)), lent)
        });
        let stopping =
            |_| Error::Later { what: format!("render {name}"), why: "the operator is stopping".into() };
        let (mut rendered, given_back) = rendering.await.map_err(stopping)?;
        *objects = given_back;
        certificates::check(&objects.instance, &mut rendered, Timestamp::now());
        memory.issued_until = issued.as_ref().map(|issued| issued.until);
        let mut next = None;
        if let Some(Issued { shown, next: made, .. }) = issued {
            (rendered.peers_secrets, next) = (Some(shown), made);
        }
        if rendered.acl != *before || before.generation == 0 {
            rendered.acl.generation = before.generation.saturating_add(1);
            let seen = self.health.queue.seen(name).unwrap_or_else(Instant::now);
            memory.progress.begun(rendered.acl.generation, seen);
        }
        rendered.problems.extend(generated.problems.iter().cloned());
        let wrong = Problem::objects(&rendered.problems);
        // After a start: what was enforced is so as it was, as far as the operator that said so could tell.
        let said = memory.before.is_none().then(|| enforced_objects(objects, before.generation));
        let enforced = |object: &ObjectName| said.as_ref().and_then(|said| said.get(object).copied());
        memory.progress.rendered(&rendered.acl, &objects.users, &objects.grants, &wrong, enforced);
        memory.before = Some(Arc::new(rendered.acl.clone()));
        // Another rendering helps only those whose password is there.
        rendered.pending.retain(|user| !wrong.contains(user) && !generated.failed.contains_key(user));
        Ok((rendered, generated, next))
    }

    async fn applied_before(&self, name: &ObjectName, instance: &MqttInstance) -> Result<AclDocument, Error> {
        let names =
            (0..build::ACL_SHARDS).map(|shard| build::acl_secret_name(instance, &self.options, shard));
        fetch::applied(&self.world, &name.namespace, names).await
    }

    /// Nudges pods that are to mount something new, and asks all of them. `config` is the hash of what they are to have in
    /// force. Tells, too, what kept a pod from being nudged.
    async fn brokers(
        &self,
        name: &ObjectName,
        instance: &MqttInstance,
        memory: &mut Memory,
        applied: Option<&Applied>,
        config: Option<&str>,
    ) -> (Vec<Broker>, Option<Error>) {
        let pods = self.pods(name, instance);
        let brokers = self.asker.ask(&pods, instance.spec.listeners.admin.port).await;
        if brokers.iter().any(|broker| broker.ready && !broker.ending) {
            memory.unready = None;
        } else {
            memory.unready.get_or_insert_with(Instant::now);
        }
        let Some(Applied { mounted, .. }) = applied else { return (brokers, None) };
        let generation = memory.before.as_ref().map(|before| before.generation);
        let seen = pods.iter().zip(&brokers).filter(|(_, broker)| !broker.ending);
        let seen = seen.map(|(pod, broker)| Seen {
            pod: &broker.pod,
            nudged: Writer::nudged(pod),
            behind: broker.is_behind(generation, config),
        });
        let mut failed = None;
        let now = Instant::now();
        let Due { pods, mark } = memory.nudging.due(mounted, &seen.collect::<Vec<_>>(), now);
        for pod in pods {
            match self.writer.nudge(&name.namespace, pod, &mark).await {
                Ok(()) => memory.nudging.nudged(now),
                Err(error) => failed = Some(error),
            }
        }
        (brokers, failed)
    }

    fn pods(&self, name: &ObjectName, instance: &MqttInstance) -> Vec<Arc<Pod>> {
        let broker = build::broker_name(instance, &self.options);
        let stateful_set = self.world.stateful_sets.get(&name.namespace, &broker);
        let uid = stateful_set.and_then(|stateful_set| stateful_set.uid()).unwrap_or_default();
        self.world.pods_of(&name.namespace, &uid)
    }

    /// Tells the topics' loop what Kafka shall have.
    fn want_topics(
        &self,
        name: &ObjectName,
        objects: &Objects,
        rendered: &Rendered,
        access: Option<&Arc<Access>>,
    ) {
        let Some(access) = access else { return self.wants.clear(name) };
        let wrong = Problem::objects(&rendered.problems);
        let wanted = objects.topics.iter().filter_map(|topic| {
            let object = name_of(Kind::ParentTopic, topic);
            let parent = rendered.config.parents.iter().find(|parent| parent.topic == topic.topic())?;
            (!wrong.contains(&object)).then(|| {
                let wanted = Wanted {
                    generation: topic.metadata.generation,
                    parent: parent.clone(),
                    packet_size: rendered.config.limits.packet_size,
                    access: access.clone(),
                };
                (object, wanted)
            })
        });
        self.wants.set(name, access, wanted.collect());
    }

    /// What is remembered of what was written is looked at before it counts again.
    fn doubt(&self, name: &ObjectName) {
        self.writer
            .ledger
            .doubt(|item| item.namespace == name.namespace && item.name.starts_with(&name.name));
        let members = Members::of(&self.world, name);
        let mut all: BTreeSet<_> = [name.clone()].into();
        all.extend(members.users.iter().map(|user| name_of(Kind::MqttUser, user)));
        all.extend(members.grants.iter().map(|grant| name_of(Kind::TopicGrant, grant)));
        self.writer.forget_status(|object| all.contains(object));
    }

    /// Resyncs are spread by chance, so that not all instances have theirs at once. A certificate may be due before, or the
    /// instance's end.
    fn until_resync(&self, instance: &MqttInstance, memory: &Memory) -> Duration {
        let since = memory.resynced.map_or(Duration::ZERO, |at| at.elapsed());
        let resync = self.resync.saturating_sub(since).mul_f64(1.0 + 0.1 * fastrand::f64());
        let (end, now) = (instance.spec.expires_at.as_ref().map(|at| at.0), Timestamp::now());
        issuing::wait(issuing::wait(resync, memory.issued_until, now), end, now)
    }
}

/// Users and grants whose status says that they are in force as they are, and since which generation. One that is later than
/// the document that was applied last is of another count.
fn enforced_objects(objects: &Objects, applied: u64) -> HashMap<ObjectName, u64> {
    fn one<K: Resource>(kind: Kind, object: &K, status: Option<&Status>) -> Option<(ObjectName, u64)> {
        let since = enforced_since(&status?.conditions, object.meta().generation)?;
        Some((name_of(kind, object), since))
    }
    let users = objects.users.iter().map(|user| one(Kind::MqttUser, user, user.status.as_ref()));
    let grants = objects.grants.iter().map(|grant| one(Kind::TopicGrant, grant, grant.status.as_ref()));
    users.chain(grants).flatten().filter(|(_, since)| *since <= applied).collect()
}
