//! What is said of an instance, and of all that names it, once it is known how they fare.

use std::{collections::HashMap, time::Duration};

use futures_util::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, core::ObjectMeta};
use mqtt_operator_api::{
    Kind,
    grant::TopicGrant,
    instance::MqttInstance,
    parent_topic::ParentTopic,
    render::{ObjectName, Objects, Rendered, name_of},
    status::Status,
    user::MqttUser,
};
use serde_json::{Map, Value, json};

use super::{
    build,
    fetch::Members,
    members::{self, Rendering},
    nodes::Broker,
    reconcile::Instances,
    verdict::{self, Facts},
};
use crate::{
    apply::{Error, Subject},
    batch::for_a_while,
    queue::Done,
    status::{Enforced, Verdict, is_ready},
};

/// Statuses that are written at a time.
const AT_A_TIME: usize = 16;
/// For how long in one reconcile: what else has changed meanwhile, such as a grant that is taken back, need not wait longer.
const A_RECONCILE: Duration = Duration::from_secs(1);

/// What became of the objects of one instance.
pub(super) struct Written<'a> {
    pub(super) failed: Option<&'a Error>,
    /// Pods wait for a Secret.
    pub(super) held: bool,
    /// Which brokers have users and grants in force.
    pub(super) enforced: Enforced,
}

impl Instances {
    pub(super) async fn say_of_instance(
        &self,
        instance: &MqttInstance,
        rendered: &Rendered,
        written: &Written<'_>,
        brokers: &[Broker],
        unready: Duration,
    ) -> Result<bool, Error> {
        let name = name_of(Kind::MqttInstance, instance);
        let problems: Vec<_> = rendered.problems.iter().filter(|problem| problem.object == name).collect();
        let stateful_set =
            self.world.stateful_sets.get(&name.namespace, &build::broker_name(instance, &self.options));
        let service =
            self.world.services.get(&name.namespace, &build::client_service_name(instance, &self.options));
        let facts = Facts {
            instance,
            problems: &problems,
            failed: written.failed,
            held: written.held,
            stateful_set: stateful_set.as_deref(),
            brokers,
            service: service.as_deref(),
            unready,
            now: Timestamp::now(),
        };
        let mut more = Map::new();
        more.insert("endpoints".into(), json!(verdict::endpoints(instance, service.as_deref())));
        more.insert("aclGeneration".into(), json!(rendered.acl.generation));
        let rows: Vec<_> = brokers.iter().map(Broker::row).collect();
        if !rows.is_empty() {
            more.insert("nodes".into(), json!(rows));
        }
        let verdict = verdict::verdict(&facts).with(written.enforced.clone());
        self.say_instance(instance, &verdict, more).await
    }

    pub(super) async fn say_instance(
        &self,
        instance: &MqttInstance,
        verdict: &Verdict,
        more: Map<String, Value>,
    ) -> Result<bool, Error> {
        let (name, seen) = (name_of(Kind::MqttInstance, instance), json!(instance.status));
        let conditions = self.writer.say(&subject(&name, instance.meta(), &seen), verdict, more).await?;
        Ok(is_ready(&conditions, instance.metadata.generation))
    }

    /// True once all is said; else there is more to say, and time to look at what has changed.
    pub(super) async fn say_members(
        &self,
        name: &ObjectName,
        objects: &Objects,
        rendering: &Rendering<'_>,
    ) -> Result<bool, Error> {
        let anonymous = objects.instance.spec.auth.anonymous_user.as_ref();
        let users: HashMap<_, _> =
            objects.users.iter().map(|user| (name_of(Kind::MqttUser, user), user)).collect();
        let verdict = |object: &ObjectName| match object.kind {
            Kind::ParentTopic => {
                let wrong = rendering.wrong(object);
                // The topics' loop speaks of those that are in force.
                wrong.or_else(|| (!rendering.applied).then(|| members::waits_for(name)))
            }
            Kind::MqttUser => {
                let is_anonymous = anonymous == Some(&object.name) && object.namespace == name.namespace;
                let good = users.get(object).map(|user| members::good_user(user, is_anonymous));
                Some(rendering.verdict(object, name, good.unwrap_or_default()))
            }
            Kind::MqttInstance | Kind::TopicGrant => {
                Some(rendering.verdict(object, name, "every broker has it in force".into()))
            }
        };
        self.say_each(&objects.topics, &objects.users, &objects.grants, verdict).await
    }

    /// The instance is not in force, and so is nothing that names it.
    pub(super) async fn members_wait(&self, name: &ObjectName) -> Result<Done, Error> {
        self.wants.clear(name);
        self.say_all(&Members::of(&self.world, name), |_| members::waits_for(name)).await
    }

    /// Nothing of the instance is changed: what names it and is not in force waits until that is over.
    pub(super) async fn pause(&self, name: &ObjectName, instance: &MqttInstance) -> Result<Done, Error> {
        self.wants.clear(name);
        self.say_instance(instance, &verdict::paused(), told_before(instance)).await?;
        let Members { mut topics, mut users, mut grants } = Members::of(&self.world, name);
        topics.retain(|topic| waits(topic.meta(), topic.status.as_ref()));
        users.retain(|user| waits(user.meta(), user.status.as_ref()));
        grants.retain(|grant| waits(grant.meta(), grant.status.as_ref()));
        self.say_all(&Members { topics, users, grants }, |_| members::waits_for(name)).await
    }

    pub(super) async fn say_all(
        &self,
        members: &Members,
        verdict: impl Fn(&ObjectName) -> Verdict,
    ) -> Result<Done, Error> {
        let Members { topics, users, grants } = members;
        let all = self.say_each(topics, users, grants, |object| Some(verdict(object))).await?;
        Ok(if all { Done::Settled } else { Done::Again(Duration::ZERO) })
    }

    async fn say_member(&self, member: &Member<'_>, verdict: &Verdict) -> Result<(), Error> {
        let Member { object, metadata, status } = member;
        let seen = json!(status);
        self.writer.say(&subject(object, metadata, &seen), verdict, Map::new()).await.map(drop)
    }

    fn is_news(&self, member: &Member<'_>, verdict: &Verdict) -> bool {
        let Member { object, metadata, status } = member;
        self.writer.has_news(object, metadata, *status, verdict)
    }

    async fn say_each(
        &self,
        topics: &[ParentTopic],
        users: &[MqttUser],
        grants: &[TopicGrant],
        verdict: impl Fn(&ObjectName) -> Option<Verdict>,
    ) -> Result<bool, Error> {
        let topics = topics.iter().map(|topic| Member::of(Kind::ParentTopic, topic, topic.status.as_ref()));
        let users = users.iter().map(|user| Member::of(Kind::MqttUser, user, user.status.as_ref()));
        let grants = grants.iter().map(|grant| Member::of(Kind::TopicGrant, grant, grant.status.as_ref()));
        let members = topics.chain(users).chain(grants);
        let told = members.filter_map(|member| verdict(&member.object).map(|verdict| (member, verdict)));
        let told: Vec<_> = told.filter(|(member, verdict)| self.is_news(member, verdict)).collect();
        let all = told.len();
        let say = told.iter().map(|(member, verdict)| self.say_member(member, verdict).boxed());
        let said = for_a_while(Box::new(say), AT_A_TIME, A_RECONCILE).await;
        let whole = said.len() == all;
        said.into_iter().collect::<Result<(), Error>>().map(|()| whole)
    }
}

/// What names an instance, and what its status says.
struct Member<'a> {
    object: ObjectName,
    metadata: &'a ObjectMeta,
    status: Option<&'a Status>,
}

impl<'a> Member<'a> {
    fn of<K: Resource>(kind: Kind, object: &'a K, status: Option<&'a Status>) -> Self {
        Self { object: name_of(kind, object), metadata: object.meta(), status }
    }
}

/// Whether an object is not in force as it is.
fn waits(metadata: &ObjectMeta, status: Option<&Status>) -> bool {
    !status.is_some_and(|status| is_ready(&status.conditions, metadata.generation))
}

/// What a status says besides its conditions: it is as true as it was.
pub(super) fn told_before(instance: &MqttInstance) -> Map<String, Value> {
    let Value::Object(mut told) = json!(instance.status) else { return Map::new() };
    told.retain(|field, _| field != "conditions" && field != "observedGeneration");
    told
}

fn subject<'a>(object: &'a ObjectName, metadata: &'a ObjectMeta, seen: &'a Value) -> Subject<'a> {
    let uid = metadata.uid.as_deref().unwrap_or_default();
    Subject { object, uid, generation: metadata.generation, seen }
}
