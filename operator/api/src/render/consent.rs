//! Whether those who own a parent topic let a namespace be granted something below it.
//!
//! Promises: what `spec.grantsFrom` of a ParentTopic in force leaves out is granted in no way, by wildcards and placeholders
//! neither; namespaces of the ParentTopic and of the instance are never left out.

use super::{ObjectName, Problem};
use crate::{grant::TopicGrant, parent_topic::ParentTopic, refs, user::MqttUser};

const CLIENT_ID: &str = "${clientId}";
const USERNAME: &str = "${username}";

/// What keeps a grant to this user from being in force, if its namespace is left out where one of its rules leads.
pub(super) fn refusal<'a>(
    name: &ObjectName,
    grant: &TopicGrant,
    user: &MqttUser,
    instance: &ObjectName,
    mut topics: impl Iterator<Item = (&'a str, &'a ObjectName, &'a ParentTopic)>,
) -> Option<Problem> {
    if name.namespace == instance.namespace {
        return None;
    }
    topics.find_map(|(topic, parent, object)| {
        let from = object.spec.grants_from.as_ref()?;
        if parent.namespace == name.namespace || refs::include(&from.namespaces, &name.namespace) {
            return None;
        }
        let at = grant.spec.rules.iter().position(|rule| reaches(&rule.filter, topic, user))?;
        let message = format!(
            "reaches below the parent topic {topic:?}, and {parent} grants nothing there to namespace {}; have it named in spec.grantsFrom.namespaces of that one, or narrow the filter",
            name.namespace
        );
        Some(Problem { object: name.clone(), field: format!("spec.rules[{at}].filter"), message })
    })
}

/// Whether a connection of the user may come to a topic below the parent by this filter: of its levels the first that is not
/// empty may be the parent's name.
fn reaches(filter: &str, parent: &str, user: &MqttUser) -> bool {
    let username = user.username();
    if filter.contains(USERNAME) && username.contains(['+', '#', '/']) {
        // It matches nothing then.
        return false;
    }
    let filter = filter.replace(USERNAME, &username);
    let first = filter.split('/').find(|level| !level.is_empty()).unwrap_or_default();
    match first.split_once(CLIENT_ID) {
        None => ["+", "#", parent].contains(&first),
        // Twice in one level: whatever stands between.
        Some((before, after)) if after.contains(CLIENT_ID) => {
            let last = after.rsplit(CLIENT_ID).next().unwrap_or_default();
            parent.starts_with(before) && parent.ends_with(last)
        }
        Some((before, after)) => {
            let id = parent.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            let ids = &user.spec.client_ids;
            id.is_some_and(|id| ids.is_empty() || ids.iter().any(|pattern| may_be(pattern, id)))
        }
    }
}

/// Whether a pattern of client IDs may match this one: between its first `*` and its last anything counts as matched.
fn may_be(pattern: &str, id: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == id };
    let after = after.rsplit('*').next().unwrap_or_default();
    id.strip_prefix(before).is_some_and(|rest| rest.ends_with(after))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Kind;

    fn user(username: &str, client_ids: &[&str]) -> MqttUser {
        let spec = json!({"instanceRef": {"name": "meters"}, "username": username, "clientIds": client_ids});
        serde_json::from_value(json!({"metadata": {"name": "u", "namespace": "city"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_filter_reaches_a_parent_topic_by_its_name_by_wildcards_and_by_what_devices_may_call_themselves() {
        let (anyone, meters) = (user("city", &[]), user("city", &["meter-*", "x*y*z"]));
        for (filter, user, reached) in [
            ("alarms", &anyone, true),
            ("alarms/#", &anyone, true),
            ("/alarms/a", &anyone, true),
            ("//alarms", &anyone, true),
            ("#", &anyone, true),
            ("+/a", &anyone, true),
            ("/+", &anyone, true),
            ("alarms2/#", &anyone, false),
            ("readings/alarms", &anyone, false),
            ("/", &anyone, false),
            ("$SYS/#", &anyone, false),
            ("${clientId}/#", &anyone, true),
            ("al${clientId}s/#", &anyone, true),
            ("${clientId}x", &anyone, false),
            ("a${clientId}-${clientId}s", &anyone, true),
            ("b${clientId}-${clientId}s", &anyone, false),
            ("${clientId}/#", &meters, false),
            ("${clientId}/#", &user("city", &["alarms"]), true),
            ("${clientId}/#", &user("city", &["a*m*s"]), true),
            ("${clientId}/#", &user("city", &["alarms*s"]), false),
            ("${username}/#", &anyone, false),
            ("${username}/#", &user("alarms", &[]), true),
            ("${username}/#", &user("+", &[]), false),
            ("al${username}s/#", &user("arm", &[]), true),
        ] {
            assert_eq!(reaches(filter, "alarms", user), reached, "{filter} of {user:?}");
        }
    }

    #[test]
    fn a_namespace_that_is_left_out_is_granted_nothing_below_and_told_what_to_do() {
        let named = |kind, namespace: &str, name: &str| ObjectName {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        };
        let check = |grant_of: &str,
                     grants_from: serde_json::Value,
                     filters: &[&str],
                     expected: Option<(&str, &str)>| {
            let mut spec = json!({"instanceRef": {"name": "meters", "namespace": "plant"}});
            if !grants_from.is_null() {
                spec["grantsFrom"] = grants_from.clone();
            }
            let topic: ParentTopic = serde_json::from_value(
                json!({"metadata": {"name": "alarms", "namespace": "police"}, "spec": spec}),
            )
            .unwrap();
            let rules: Vec<_> =
                filters.iter().map(|filter| json!({"action": "sub", "filter": filter})).collect();
            let spec = json!({"instanceRef": {"name": "meters", "namespace": "plant"}, "userRef": {"name": "u"}, "rules": rules});
            let grant: TopicGrant = serde_json::from_value(
                json!({"metadata": {"name": "g", "namespace": grant_of}, "spec": spec}),
            )
            .unwrap();
            let (name, instance) =
                (named(Kind::TopicGrant, grant_of, "g"), named(Kind::MqttInstance, "plant", "meters"));
            let parent = named(Kind::ParentTopic, "police", "alarms");
            let topics = [("alarms", &parent, &topic)].into_iter();
            let found = refusal(&name, &grant, &user("u", &[]), &instance, topics);
            let told = found.as_ref().map(|problem| (problem.field.as_str(), problem.message.as_str()));
            assert_eq!(told, expected, "{grant_of} {grants_from} {filters:?}");
        };
        let refused = "reaches below the parent topic \"alarms\", and ParentTopic police/alarms grants nothing there to namespace city; have it named in spec.grantsFrom.namespaces of that one, or narrow the filter";
        let all = ["x", "#"];
        check("city", json!(null), &all, None);
        check("city", json!({}), &all, Some(("spec.rules[1].filter", refused)));
        check(
            "city",
            json!({"namespaces": ["harbour", "cit"]}),
            &all[1..],
            Some(("spec.rules[0].filter", refused)),
        );
        check("city", json!({}), &all[..1], None);
        check("city", json!({"namespaces": ["city"]}), &all, None);
        check("city", json!({"namespaces": ["*"]}), &all, None);
        check("police", json!({}), &all, None);
        check("plant", json!({}), &all, None);
    }
}
