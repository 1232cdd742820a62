//! Whether brokers have what a user or a grant says in force: which generation of the ACL document it came with, which
//! one every broker has loaded, and how long that took. Pure: the time is an argument.
//!
//! Promises: what was in force stays so whatever comes after it, restarts of brokers and of the operator included; an object
//! that is in no document is not in force, and comes in force again with another generation.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use mqtt_broker_api::acl::AclDocument;
use mqtt_operator_api::{
    Kind,
    grant::TopicGrant,
    render::{ObjectName, name_of},
    user::MqttUser,
};
use tokio::time::Instant;

use super::nodes::Broker;
use crate::{digest::digest, status::Enforced};

/// What is remembered of one instance.
#[derive(Debug, Default)]
pub struct Progress {
    /// By object: a digest of what it says, and the first generation that says it.
    since: HashMap<ObjectName, (u64, u64)>,
    /// Every broker has had this one in force, or a later one.
    loaded: u64,
    /// The same, or brokers that can't be asked have had the time to load it.
    believed: u64,
    /// Generations that brokers are still to load, and when what is new in each was seen.
    under_way: Vec<(u64, Instant)>,
}

impl Progress {
    /// Takes in a document that was rendered from these objects, but for those that are `wrong`. `enforced` tells of objects
    /// that were not seen before since which generation their status says that they are in force as they are.
    pub fn rendered(
        &mut self,
        document: &AclDocument,
        users: &[MqttUser],
        grants: &[TopicGrant],
        wrong: &BTreeSet<&ObjectName>,
        enforced: impl Fn(&ObjectName) -> Option<u64>,
    ) {
        let by_name: HashMap<&str, _> =
            document.users.iter().map(|user| (user.username.as_str(), user)).collect();
        let said_by_user = |user: &MqttUser| {
            let entry = by_name.get(user.username().as_str()).map(|user| (&user.passwords, &user.client_ids));
            digest(&format!("{entry:?} {:?}", user.metadata.uid))
        };
        let all: HashMap<_, _> = users.iter().map(|user| (name_of(Kind::MqttUser, user), user)).collect();
        let users = users.iter().map(|user| (name_of(Kind::MqttUser, user), said_by_user(user)));
        let said_by_grant = |name: &ObjectName, grant: &TopicGrant| {
            let (kind, namespace) = (Kind::MqttUser, name.namespace.clone());
            let user = ObjectName { kind, namespace, name: grant.spec.user_ref.name.clone() };
            let user = all.get(&user).map(|user| (user.username(), &user.metadata.uid));
            digest(&format!("{:?} {user:?} {:?}", grant.spec, grant.metadata.uid))
        };
        let grants = grants.iter().map(|grant| (name_of(Kind::TopicGrant, grant), grant));
        let grants = grants.map(|(name, grant)| {
            let said = said_by_grant(&name, grant);
            (name, said)
        });
        let before = std::mem::take(&mut self.since);
        for (object, said) in users.chain(grants).filter(|(object, _)| !wrong.contains(object)) {
            let since = match before.get(&object) {
                Some((old, since)) if *old == said => *since,
                None => enforced(&object).inspect(|since| self.had(*since)).unwrap_or(document.generation),
                Some(_) => document.generation,
            };
            self.since.insert(object, (said, since));
        }
    }

    /// Every broker has had this generation in force.
    fn had(&mut self, generation: u64) {
        self.loaded = self.loaded.max(generation);
        self.believed = self.believed.max(generation);
    }

    /// What is new in this generation was seen at this time.
    pub fn begun(&mut self, generation: u64, seen: Instant) {
        self.under_way.push((generation, seen));
    }

    /// Takes in what brokers have loaded; those that let nobody in do not count, as they load what is there before they
    /// do. True if all have this document.
    pub fn loaded(&mut self, brokers: &[Broker], generation: u64, hash: &str) -> bool {
        let serving: Vec<_> = serving(brokers).collect();
        let of = |broker: &&Broker| {
            let acl = broker.acl.as_ref()?;
            (acl.generation < generation || has(broker, generation, hash)).then_some(acl.generation)
        };
        let least = serving.iter().map(of).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min());
        self.had(least.unwrap_or(0));
        if serving.is_empty() {
            // Nobody is there to be reached: how long a pod takes to start is another question.
            self.under_way.clear();
        }
        least == Some(generation)
    }

    /// How long it took from seeing what is new to having it in force everywhere, of each generation that has arrived since
    /// the last time.
    pub fn arrived(&mut self, now: Instant) -> Vec<Duration> {
        let loaded = self.loaded;
        let arrived = self.under_way.extract_if(.., |(generation, _)| *generation <= loaded);
        arrived.map(|(_, seen)| now.saturating_duration_since(seen)).collect()
    }

    /// Brokers that can't be asked have had the time to load this.
    pub fn assume_loaded(&mut self, generation: u64) {
        self.believed = self.believed.max(generation);
    }

    /// Whether all brokers have in force what the object says, as far as one can tell.
    pub fn in_force(&self, object: &ObjectName) -> bool {
        self.since.get(object).is_some_and(|(_, since)| *since <= self.believed)
    }

    /// Whether all brokers have said that they have in force what the object says.
    pub fn enforced(&self, object: &ObjectName, instance: &ObjectName) -> Enforced {
        let loading =
            |what: &str| Enforced::no("Loading", format!("{what} on its way to the brokers of {instance}"));
        match self.since.get(object) {
            Some((_, since)) if *since <= self.loaded => Enforced::since(*since),
            Some((_, since)) if *since <= self.believed => {
                let message = format!(
                    "brokers of {instance} had the time to load generation {since}, and can't be asked whether they have; does a NetworkPolicy keep the operator from their admin port?"
                );
                Enforced::no("BrokersSilent", message)
            }
            Some((_, since)) => loading(&format!("generation {since} is")),
            None => loading("it is"),
        }
    }
}

/// How many of the brokers that serve have this document in force, and which have not.
pub fn counted(brokers: &[Broker], generation: u64, hash: &str) -> Enforced {
    let all = serving(brokers).count();
    let late = serving(brokers).filter(|broker| !has(broker, generation, hash));
    let late: Vec<_> = late
        .map(|Broker { pod, acl, .. }| match acl {
            Some(acl) if acl.generation == generation => format!("{pod} has another document of that number"),
            Some(acl) => format!("{pod} is at {}", acl.generation),
            None => format!("{pod} does not answer"),
        })
        .collect();
    let count = format!("{}/{all} pods at {generation}", all.saturating_sub(late.len()));
    match (all, late.as_slice()) {
        (0, _) => Enforced::no("NoBroker", "no pod serves"),
        (_, []) => Enforced::everywhere(count),
        (_, late) => Enforced::no("Loading", format!("{count}; {}", late.join(", "))),
    }
}

fn serving(brokers: &[Broker]) -> impl Iterator<Item = &Broker> {
    brokers.iter().filter(|broker| broker.ready && !broker.ending)
}

fn has(broker: &Broker, generation: u64, hash: &str) -> bool {
    broker.acl.as_ref().is_some_and(|acl| acl.generation == generation && acl.hash == hash)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use mqtt_broker_api::{acl::AclUser, admin::AclView};
    use serde_json::json;

    use super::*;

    fn user(name: &str) -> MqttUser {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "plant"}, "spec": {"instanceRef": {"name": "meters"}}})).unwrap()
    }

    fn grant(name: &str, filter: &str) -> TopicGrant {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "plant"},
            "spec": {"instanceRef": {"name": "meters"}, "userRef": {"name": "a"}, "rules": [{"action": "pub", "filter": filter}]},
        }))
        .unwrap()
    }

    fn instance() -> ObjectName {
        ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: "meters".into() }
    }

    fn document(generation: u64) -> AclDocument {
        let user = |name: &str| AclUser {
            username: name.into(),
            passwords: vec![],
            client_ids: vec![],
            rules: vec![],
        };
        AclDocument { generation, anonymous_user: None, users: vec![user("a"), user("b")] }
    }

    fn broker(generation: Option<u64>, ready: bool) -> Broker {
        let acl = generation.map(|generation| AclView { generation, hash: "h".into(), users: 2 });
        Broker { pod: "p".into(), ready, ending: false, trouble: None, said: None, acl, config: None }
    }

    /// Whether `a` and the grant `g` are in force, and since when it is told so.
    fn found(progress: &Progress) -> [(bool, String); 2] {
        let objects = [name_of(Kind::MqttUser, &user("a")), name_of(Kind::TopicGrant, &grant("g", "x"))];
        objects.map(|object| (progress.in_force(&object), progress.enforced(&object, &instance()).message))
    }

    fn since(generation: u64) -> (bool, String) {
        (true, format!("generation {generation}"))
    }

    fn loading(generation: u64) -> (bool, String) {
        let message =
            format!("generation {generation} is on its way to the brokers of MqttInstance plant/meters");
        (false, message)
    }

    #[test]
    fn what_an_object_says_is_in_force_once_every_serving_broker_has_loaded_a_document_with_it() {
        let mut progress = Progress::default();
        let render = |progress: &mut Progress, generation, filter: &str| {
            let wrong = BTreeSet::new();
            progress.rendered(&document(generation), &[user("a")], &[grant("g", filter)], &wrong, |_| None);
        };
        render(&mut progress, 1, "x");
        assert_eq!(found(&progress), [loading(1), loading(1)], "nothing is loaded");
        assert!(!progress.loaded(&[broker(Some(1), true), broker(None, true)], 1, "h"), "one did not answer");
        assert!(!progress.loaded(&[broker(Some(7), true)], 1, "h"), "of an earlier count");
        assert!(!progress.loaded(&[broker(Some(1), false)], 1, "h"), "none serves");
        assert_eq!(found(&progress), [loading(1), loading(1)]);
        assert!(progress.loaded(&[broker(Some(1), true), broker(None, false)], 1, "h"), "one serves");
        assert_eq!(found(&progress), [since(1), since(1)]);
        render(&mut progress, 2, "y");
        assert_eq!(found(&progress), [since(1), loading(2)], "the grant alone is new");
        render(&mut progress, 3, "y");
        assert!(
            !progress.loaded(&[broker(Some(3), true)], 3, "another"),
            "another document of that generation"
        );
        assert_eq!(found(&progress), [since(1), loading(2)]);
        assert!(!progress.loaded(&[broker(Some(3), true), broker(Some(2), true)], 3, "h"), "one is late");
        assert_eq!(found(&progress), [since(1), since(2)], "not as far as this grant goes");
        assert!(!progress.loaded(&[broker(None, true)], 3, "h"), "a restart");
        assert_eq!(
            found(&progress),
            [since(1), since(2)],
            "what was in force is so after a restart of a broker"
        );
    }

    #[test]
    fn what_is_in_no_document_is_not_in_force_and_comes_back_with_another_generation() {
        let mut progress = Progress::default();
        let (a, g) = (user("a"), grant("g", "x"));
        let render = |progress: &mut Progress, generation, users: &[MqttUser], wrong: &[&ObjectName]| {
            let wrong = wrong.iter().copied().collect();
            progress.rendered(&document(generation), users, from_ref(&g), &wrong, |_| None);
            progress.loaded(&[broker(Some(1), true)], generation, "h");
            found(progress)[1].clone()
        };
        let name = name_of(Kind::TopicGrant, &g);
        assert_eq!(render(&mut progress, 1, from_ref(&a), &[]), since(1));
        let gone = "it is on its way to the brokers of MqttInstance plant/meters";
        assert_eq!(render(&mut progress, 2, from_ref(&a), &[&name]), (false, gone.into()), "it is wrong");
        assert_eq!(render(&mut progress, 3, from_ref(&a), &[]), loading(3), "it came right");
        let mut other = a;
        other.spec.username = Some("b".into());
        assert_eq!(render(&mut progress, 4, &[other], &[]), loading(4), "its user has another name by now");
    }

    #[test]
    fn after_a_start_of_the_operator_a_status_counts_for_what_is_not_remembered() {
        let mut progress = Progress::default();
        let (a, b) = (name_of(Kind::MqttUser, &user("a")), name_of(Kind::MqttUser, &user("b")));
        let enforced = |object: &ObjectName| (*object == a).then_some(5);
        progress.rendered(&document(7), &[user("a"), user("b")], &[], &BTreeSet::new(), enforced);
        assert_eq!(progress.enforced(&a, &instance()), Enforced::since(5));
        assert!(progress.in_force(&a) && !progress.in_force(&b));
    }

    #[test]
    fn brokers_that_can_t_be_asked_are_believed_but_prove_nothing() {
        let mut progress = Progress::default();
        progress.rendered(&document(1), &[user("a")], &[grant("g", "x")], &BTreeSet::new(), |_| None);
        progress.assume_loaded(1);
        for (in_force, message) in found(&progress) {
            assert!(in_force && message.contains("can't be asked whether they have"), "{message}");
        }
    }

    #[test]
    fn the_time_of_each_change_is_told_once_it_is_in_force_everywhere() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let at = |second: u64| start + Duration::from_secs(second);
        let mut check = |second: u64, brokers: &[Broker], expected: &[u64]| {
            progress.loaded(brokers, 3, "h");
            let found: Vec<_> = progress.arrived(at(second)).iter().map(Duration::as_secs).collect();
            assert_eq!(found, expected, "at {second}");
            if second < 4 {
                progress.begun(second, at(second));
            }
        };
        check(1, &[], &[]);
        check(2, &[], &[]);
        check(3, &[broker(Some(1), true), broker(Some(1), true)], &[]);
        check(5, &[broker(Some(2), true), broker(Some(3), true)], &[3]);
        check(7, &[broker(Some(3), true), broker(Some(3), true)], &[4]);
        check(8, &[broker(Some(3), true), broker(Some(3), true)], &[]);
    }

    #[test]
    fn who_lags_is_named() {
        let named = |pod: &str, generation| Broker { pod: pod.into(), ..broker(generation, true) };
        let check = |brokers: &[Broker], hash: &str, everywhere: bool, message: &str| {
            let found = counted(brokers, 412, hash);
            assert_eq!((found.everywhere, found.message.as_str()), (everywhere, message));
        };
        check(&[], "h", false, "no pod serves");
        check(&[broker(Some(412), false)], "h", false, "no pod serves");
        let all = [named("a", Some(412)), named("b", Some(412)), broker(None, false)];
        check(&all, "h", true, "2/2 pods at 412");
        let late = [named("a", Some(412)), named("b", Some(411)), named("c", None)];
        check(&late, "h", false, "1/3 pods at 412; b is at 411, c does not answer");
        check(&all[..1], "g", false, "0/1 pods at 412; a has another document of that number");
    }
}
