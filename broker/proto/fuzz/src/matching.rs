//! Filters in a trie and grants out of rules: both must say what each filter says by itself.

use std::collections::BTreeMap;

use mqtt_proto::{
    acl::{Grants, RuleTemplate},
    topic::{Filter, is_internal},
    trie::Trie,
};

use super::Input;

/// Lines: `+FILTER` and `-FILTER` add and remove a subscription, anything else is a topic to be matched. The last
/// character before a space names the subscriber.
pub fn trie(data: &[u8]) {
    let mut input = Input(data);
    let mut trie: Trie<u8, u64> = Trie::new();
    let mut single: BTreeMap<(Filter, u8), u64> = BTreeMap::new();
    let mut count = 0;
    while !input.is_empty() {
        let line = input.line();
        count += 1;
        let (sign, rest) = line.split_at_checked(1).unwrap_or_default();
        let (rest, key) = match rest.as_bytes().split_last() {
            Some((last, _)) => (rest, last % 4),
            None => (rest, 0),
        };
        match (sign, Filter::parse(rest)) {
            ("+", Ok(filter)) => {
                assert_eq!(trie.insert(&filter, key, count), single.insert((filter, key), count));
            }
            ("-", Ok(filter)) => {
                let removed = trie.remove(&filter, &key).map(|(_, value)| value);
                assert_eq!(removed, single.remove(&(filter, key)));
            }
            _ => {
                let mut found = Vec::new();
                trie.matches(line, |key, value| found.push((*key, *value)));
                found.sort_unstable();
                let matching = single.iter().filter(|((filter, _), _)| filter.matches(line));
                let mut expected: Vec<_> = matching.map(|((_, key), value)| (*key, *value)).collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "{line:?}");
            }
        }
        assert_eq!(trie.len(), single.len());
    }
    for ((filter, key), value) in single {
        assert_eq!(trie.remove(&filter, &key), Some((key, value)));
    }
    assert!(trie.is_empty());
}

/// Lines: a client ID, a user name, then rules (`p`, `s` or `b` and a filter) and, each behind a `?`, what is asked for.
pub fn acl(data: &[u8]) {
    let mut input = Input(data);
    let (client_id, username) = (input.line(), input.line());
    let (mut rules, mut asked) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let line = input.line();
        match line.split_at_checked(1) {
            Some(("?", question)) => asked.push(question),
            Some((actions, filter)) => {
                rules.extend(RuleTemplate::parse(actions != "s", actions != "p", filter))
            }
            None => {}
        }
    }
    let grants = Grants::resolve(&rules, client_id, username);
    let alone: Vec<Grants> = rules.chunks(1).map(|rule| Grants::resolve(rule, client_id, username)).collect();
    for question in asked {
        let allowed = grants.may_publish(question);
        assert_eq!(allowed, alone.iter().any(|grants| grants.may_publish(question)), "{question:?}");
        assert!(!(allowed && is_internal(question)), "{question:?}");
        if let Ok(filter) = Filter::parse(question) {
            let allowed = grants.may_subscribe(&filter);
            assert_eq!(allowed, alone.iter().any(|grants| grants.may_subscribe(&filter)), "{question:?}");
        }
    }
}
