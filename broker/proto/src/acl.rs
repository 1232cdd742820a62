//! The decision what a connection may publish and subscribe to. What no rule allows is refused.
//!
//! A [`RuleTemplate`] is one rule of a user as written; [`Grants`] are a user's rules for one connection.

use std::sync::Arc;

use crate::{
    template::{Part, Template, TemplateError},
    topic::{Filter, TopicError, is_internal},
    trie::Trie,
};

/// Why a rule can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("allows neither publishing nor subscribing: name at least one")]
    NoAction,
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Filter(#[from] TopicError),
}

/// A rule whose filter may hold `${clientId}` and `${username}`, also as a part of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTemplate {
    publish: bool,
    subscribe: bool,
    filter: Template,
}

impl RuleTemplate {
    pub fn parse(publish: bool, subscribe: bool, filter: &str) -> Result<RuleTemplate, RuleError> {
        if !publish && !subscribe {
            return Err(RuleError::NoAction);
        }
        let template = RuleTemplate { publish, subscribe, filter: Template::parse(filter)? };
        // Any plain value shows whether the rest is a filter.
        Filter::parse(&template.filter.fill("x", "x"))?;
        Ok(template)
    }

    /// Whether the rule means something else for another connection of the user.
    pub fn has_placeholder(&self) -> bool {
        self.filter.has_placeholder()
    }

    /// The connection's own filter; none if its values make the rule unusable.
    fn resolve(&self, client_id: &str, username: &str) -> Option<Filter> {
        let usable = |part: &Part| match part {
            Part::Text(_) => true,
            Part::ClientId => is_plain(client_id),
            Part::Username => is_plain(username),
        };
        if !self.filter.parts.iter().all(usable) {
            return None;
        }
        let filter = Filter::parse(&self.filter.fill(client_id, username)).ok()?;
        // Else a client could call itself `$SYS`: such a level must be written out in the rule.
        let first_is_text = match self.filter.parts.as_slice() {
            [Part::Text(_)] => true,
            [Part::Text(text), ..] => text.contains('/'),
            _ => false,
        };
        (first_is_text || !is_internal(filter.as_str())).then_some(filter)
    }
}

/// Whether a value is safe in a placeholder's stead: it can neither widen the filter nor change its levels.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && !value.contains(['+', '#', '/'])
}

/// A user's rules for one connection. Rules without placeholder are the same for all connections of a user:
/// they are resolved once, and each connection has them in common with the others.
#[derive(Debug, Default)]
pub struct Grants {
    publish: PublishRules,
    subscribe: Vec<Filter>,
    common: Option<Arc<Grants>>,
}

#[derive(Debug)]
enum PublishRules {
    Few(Vec<Filter>),
    Many(Trie<(), ()>),
}

/// Up to here asking each rule is as quick as a trie.
const FEW: usize = 8;

impl Grants {
    /// Puts the connection's values for the placeholders. A rule with a placeholder whose value is empty or
    /// contains `+`, `#` or `/` is left out; so is one that only thereby begins with `$`.
    pub fn resolve(rules: &[RuleTemplate], client_id: &str, username: &str) -> Grants {
        let (mut publish, mut subscribe) = (Vec::new(), Vec::new());
        for rule in rules {
            let Some(filter) = rule.resolve(client_id, username) else { continue };
            if rule.publish {
                publish.push(filter.clone());
            }
            if rule.subscribe {
                subscribe.push(filter);
            }
        }
        let publish = if publish.len() <= FEW {
            PublishRules::Few(publish)
        } else {
            let mut trie = Trie::new();
            for filter in &publish {
                trie.insert(filter, (), ());
            }
            PublishRules::Many(trie)
        };
        Grants { publish, subscribe, common: None }
    }

    /// With what is granted to all connections of the user.
    pub fn with(self, common: Arc<Grants>) -> Grants {
        Grants { common: Some(common), ..self }
    }

    /// Whether a rule matches the topic name. Topics that begin with `$` are never published to by clients.
    pub fn may_publish(&self, topic: &str) -> bool {
        if is_internal(topic) {
            return false;
        }
        let own = match &self.publish {
            PublishRules::Few(filters) => filters.iter().any(|filter| filter.matches(topic)),
            PublishRules::Many(trie) => {
                let mut allowed = false;
                trie.matches(topic, |(), ()| allowed = true);
                allowed
            }
        };
        own || self.common.as_ref().is_some_and(|common| common.may_publish(topic))
    }

    /// Whether one rule covers the whole filter. A shared subscription is judged by its filter.
    pub fn may_subscribe(&self, requested: &Filter) -> bool {
        self.subscribe.iter().any(|filter| filter.covers(requested))
            || self.common.as_ref().is_some_and(|common| common.may_subscribe(requested))
    }
}

impl Default for PublishRules {
    fn default() -> Self {
        PublishRules::Few(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUB: (bool, bool) = (true, false);
    const SUB: (bool, bool) = (false, true);
    const PUBSUB: (bool, bool) = (true, true);

    fn grants(rules: &[((bool, bool), &str)], client_id: &str, username: &str) -> Grants {
        let parse =
            |&((publish, subscribe), filter): &_| RuleTemplate::parse(publish, subscribe, filter).unwrap();
        Grants::resolve(&rules.iter().map(parse).collect::<Vec<_>>(), client_id, username)
    }

    #[track_caller]
    fn check_subscribe(grants: &Grants, allowed: &[&str], refused: &[&str]) {
        for (filters, expected) in [(allowed, true), (refused, false)] {
            for text in filters {
                assert_eq!(grants.may_subscribe(&Filter::parse(text).unwrap()), expected, "subscribe {text}");
            }
        }
    }

    #[track_caller]
    fn check_publish(grants: &Grants, allowed: &[&str], refused: &[&str]) {
        for (topics, expected) in [(allowed, true), (refused, false)] {
            for topic in topics {
                assert_eq!(grants.may_publish(topic), expected, "publish {topic}");
            }
        }
    }

    #[test]
    fn without_a_grant_all_is_refused() {
        for none in [Grants::default(), grants(&[], "c", "u")] {
            check_subscribe(&none, &[], &["a", "#", "$SYS/#"]);
            check_publish(&none, &[], &["a", "$SYS/x"]);
        }
    }

    #[test]
    fn a_grant_allows_its_action_only() {
        let g = grants(&[(PUB, "p/+"), (SUB, "s/+"), (PUBSUB, "b/#")], "c", "u");
        check_publish(&g, &["p/x", "b", "b/x/y"], &["p", "p/x/y", "s/x"]);
        check_subscribe(&g, &["s/x", "s/+", "b/#", "b/+/x"], &["p/x", "s/x/y"]);
    }

    #[test]
    fn a_grant_that_covers_only_part_of_a_filter_refuses_it() {
        let g = grants(&[(SUB, "a/+"), (SUB, "a/+/#"), (SUB, "a")], "c", "u");
        // Three rules together would cover `a/#`; one rule must.
        check_subscribe(&g, &["a", "a/b", "a/+", "a/b/#"], &["a/#", "#", "+/b", "+"]);
    }

    #[test]
    fn the_grant_of_everything_stops_at_internal_topics() {
        let g = grants(&[(PUBSUB, "#")], "c", "u");
        check_subscribe(&g, &["#", "a/#", "/", "+/+"], &["$SYS/#", "$SYS", "$x/y", "$SYS/+"]);
        check_publish(&g, &["a", "/"], &["$SYS/x", "$x"]);
    }

    #[test]
    fn internal_topics_can_be_granted_by_name_to_subscribers_only() {
        let g = grants(&[(PUBSUB, "$SYS/broker/#")], "c", "u");
        check_subscribe(&g, &["$SYS/broker/load", "$SYS/broker/#"], &["$SYS/#", "#"]);
        check_publish(&g, &[], &["$SYS/broker/load"]);
    }

    #[test]
    fn placeholders_stand_for_the_connections_own_values() {
        let rules =
            [(PUB, "r/${clientId}/#"), (SUB, "c/dev-${clientId}"), (SUB, "u/${username}/${clientId}/+")];
        let g = grants(&rules, "m1", "fleet");
        check_publish(&g, &["r/m1", "r/m1/x"], &["r/m2/x", "r/${clientId}/x", "r"]);
        check_subscribe(
            &g,
            &["c/dev-m1", "u/fleet/m1/+"],
            &["c/dev-m2", "c/+", "u/m1/fleet/x", "u/fleet/+/x"],
        );
    }

    #[test]
    fn a_value_that_could_widen_a_filter_makes_its_rules_unusable() {
        let rules = [(PUBSUB, "r/${clientId}"), (PUBSUB, "n/${username}"), (PUBSUB, "plain")];
        for (client_id, username, by_id, by_name) in [
            ("m1", "fleet", true, true),
            ("#", "fleet", false, true),
            ("+", "fleet", false, true),
            ("a/b", "fleet", false, true),
            ("a+", "fleet", false, true),
            ("m1", "x#", true, false),
            ("m1", "", true, false),
            ("", "fleet", false, true),
            ("a\0", "fleet", false, true),
            ("$SYS", "fleet", true, true),
            ("${username}", "fleet", true, true),
        ] {
            let g = grants(&rules, client_id, username);
            assert_eq!(g.may_publish(&format!("r/{client_id}")), by_id, "{client_id:?}");
            assert_eq!(g.may_publish(&format!("n/{username}")), by_name, "{username:?}");
            check_publish(&g, &["plain"], &["r/other", "n/other", "r/", "n/"]);
            check_subscribe(&g, &["plain"], &["r/#", "r/+", "#", "n/#", "n/+"]);
        }
    }

    #[test]
    fn a_client_cannot_reach_internal_topics_by_its_name() {
        for (rule, client_id, reached) in [
            ("${clientId}/#", "$SYS", "$SYS/#"),
            ("${clientId}YS/#", "$S", "$SYS/#"),
            ("$${clientId}/#", "SYS", "$SYS/#"),
            ("${clientId}/g/a", "$share", "$share"),
        ] {
            check_subscribe(&grants(&[(SUB, rule)], client_id, "u"), &[], &[reached]);
        }
        check_subscribe(
            &grants(&[(SUB, "$SYS/${clientId}")], "m1", "u"),
            &["$SYS/m1"],
            &["$SYS/m2", "$SYS/+"],
        );
    }

    #[test]
    fn many_rules_decide_as_each_alone_would() {
        let tails = ["+", "#", "x", "${clientId}"];
        let mut filters: Vec<String> =
            (0..40).zip(tails.iter().cycle()).map(|(n, t)| format!("t{n}/{t}")).collect();
        filters.push("+/y".to_owned());
        let rules: Vec<_> = filters.iter().map(|filter| (PUB, filter.as_str())).collect();
        let together = grants(&rules, "m1", "u");
        let parse = |(_, filter): &(_, &str)| RuleTemplate::parse(true, false, filter).unwrap();
        let (own, plain): (Vec<_>, Vec<_>) = rules.iter().map(parse).partition(RuleTemplate::has_placeholder);
        let shared = Arc::new(Grants::resolve(&plain, "", "u"));
        let shared = Grants::resolve(&own, "m1", "u").with(shared);
        for n in 0..41 {
            for tail in ["", "/x", "/y", "/m1", "/x/y", "/"] {
                let topic = format!("t{n}{tail}");
                let alone = rules.iter().any(|rule| grants(&[*rule], "m1", "u").may_publish(&topic));
                assert_eq!(together.may_publish(&topic), alone, "{topic}");
                assert_eq!(shared.may_publish(&topic), alone, "{topic}");
            }
        }
        check_publish(&together, &["other/y"], &["$SYS/y"]);
    }

    #[test]
    fn a_wrong_rule_says_what_is_wrong() {
        for (action, filter, expected) in [
            ((false, false), "a", "allows neither publishing nor subscribing: name at least one"),
            (
                PUB,
                "a/${clientID}",
                "names the unknown placeholder `${clientID}`: use `${clientId}` or `${username}`",
            ),
            (PUB, "a/${}", "names the unknown placeholder `${}`: use `${clientId}` or `${username}`"),
            (PUB, "a/${clientId", "has `${` without `}`: close the placeholder"),
            (PUB, "", "is empty: name at least one character"),
            (SUB, "${clientId}#", &TopicError::MisplacedWildcard.to_string()),
            (SUB, "+${username}/a", &TopicError::MisplacedWildcard.to_string()),
            (SUB, "$share/g/a", &TopicError::UnexpectedShare.to_string()),
        ] {
            let error = RuleTemplate::parse(action.0, action.1, filter).unwrap_err();
            assert_eq!(error.to_string(), expected, "{filter}");
        }
    }

    #[test]
    fn rules_know_whether_they_depend_on_the_connection() {
        for (filter, expected) in [("a/$b", false), ("a/${clientId}", true), ("${username}", true)] {
            assert_eq!(
                RuleTemplate::parse(true, true, filter).unwrap().has_placeholder(),
                expected,
                "{filter}"
            );
        }
    }
}
