//! Whether brokers have what a user or a grant says in force: which generation of the ACL document it came with, and
//! which one every broker has loaded. Pure.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use mqtt_broker_api::acl::AclDocument;
use mqtt_operator_api::{
    Kind,
    grant::TopicGrant,
    render::{ObjectName, name_of},
    user::MqttUser,
};

use super::nodes::Broker;

/// What is remembered of one instance.
#[derive(Debug, Default)]
pub struct Progress {
    /// By object: a digest of what it says, and the first generation that says it.
    since: HashMap<ObjectName, (u64, u64)>,
    /// Every broker has had this one in force, or a later one.
    loaded: u64,
}

impl Progress {
    /// Takes in a document that was rendered from these objects. `was_ready` tells of objects that were not seen before
    /// whether their status says that they are in force as they are.
    pub fn rendered(
        &mut self,
        document: &AclDocument,
        users: &[MqttUser],
        grants: &[TopicGrant],
        was_ready: impl Fn(&ObjectName) -> bool,
    ) {
        let by_name: HashMap<&str, _> =
            document.users.iter().map(|user| (user.username.as_str(), user)).collect();
        let said_by_user = |user: &MqttUser| {
            let entry = by_name.get(user.username().as_str()).map(|user| (&user.passwords, &user.client_ids));
            digest(&format!("{entry:?} {:?}", user.metadata.uid))
        };
        let users = users.iter().map(|user| (name_of(Kind::MqttUser, user), said_by_user(user)));
        let said_by_grant =
            |grant: &TopicGrant| digest(&format!("{:?} {:?}", grant.spec, grant.metadata.uid));
        let grants = grants.iter().map(|grant| (name_of(Kind::TopicGrant, grant), said_by_grant(grant)));
        let before = std::mem::take(&mut self.since);
        for (object, said) in users.chain(grants) {
            let since = match before.get(&object) {
                Some((old, since)) if *old == said => *since,
                None if was_ready(&object) => 0,
                _ => document.generation,
            };
            self.since.insert(object, (said, since));
        }
    }

    /// Takes in what brokers have loaded; those that let nobody in do not count, as they load what is there before they
    /// do. True if all have this document.
    pub fn loaded(&mut self, brokers: &[Broker], generation: u64, hash: &str) -> bool {
        let serving: Vec<_> = brokers.iter().filter(|broker| broker.ready && !broker.ending).collect();
        let of = |broker: &&Broker| {
            let acl = broker.acl.as_ref()?;
            (acl.generation != generation || acl.hash == hash).then_some(acl.generation)
        };
        let least = serving.iter().map(of).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min());
        self.loaded = self.loaded.max(least.unwrap_or(0));
        least == Some(generation)
    }

    /// Brokers that can't be asked have had the time to load this.
    pub fn assume_loaded(&mut self, generation: u64) {
        self.loaded = self.loaded.max(generation);
    }

    /// Whether all brokers have in force what the object says.
    pub fn in_force(&self, object: &ObjectName) -> bool {
        self.since.get(object).is_some_and(|(_, since)| *since <= self.loaded)
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_an_object_says_is_in_force_once_every_serving_broker_has_loaded_a_document_with_it() {
        let mut progress = Progress::default();
        let (a, g) = (name_of(Kind::MqttUser, &user("a")), name_of(Kind::TopicGrant, &grant("g", "x")));
        let render = |progress: &mut Progress, generation, filter: &str| {
            progress.rendered(&document(generation), &[user("a")], &[grant("g", filter)], |_| false);
        };
        render(&mut progress, 1, "x");
        assert!(!progress.in_force(&a) && !progress.in_force(&g), "nothing is loaded");
        assert!(!progress.loaded(&[broker(Some(1), true), broker(None, true)], 1, "h"), "one did not answer");
        assert!(!progress.in_force(&a));
        assert!(!progress.loaded(&[broker(Some(1), false)], 1, "h"), "none serves");
        assert!(progress.loaded(&[broker(Some(1), true), broker(None, false)], 1, "h"), "one serves");
        assert!(progress.in_force(&a) && progress.in_force(&g));
        render(&mut progress, 2, "y");
        assert!(progress.in_force(&a) && !progress.in_force(&g), "the grant alone is new");
        assert!(
            !progress.loaded(&[broker(Some(2), true)], 2, "another"),
            "another document of that generation"
        );
        assert!(!progress.in_force(&g));
        assert!(progress.loaded(&[broker(Some(2), true)], 2, "h"));
        assert!(progress.in_force(&g));
        assert!(!progress.loaded(&[broker(None, true)], 2, "h"), "a restart");
        assert!(progress.in_force(&g), "what was in force is so after a restart of a broker");
    }

    #[test]
    fn after_a_start_of_the_operator_a_status_counts_for_what_is_not_remembered() {
        let mut progress = Progress::default();
        let (a, b) = (name_of(Kind::MqttUser, &user("a")), name_of(Kind::MqttUser, &user("b")));
        progress.rendered(&document(7), &[user("a"), user("b")], &[], |object| *object == a);
        assert!(progress.in_force(&a) && !progress.in_force(&b));
    }
}
