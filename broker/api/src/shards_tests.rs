//! Documents cut and joined, and parts that make none.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::acl::{Action, PasswordHash};

use super::*;

fn user(name: &str, rules: usize) -> AclUser {
    AclUser {
        username: name.into(),
        passwords: vec![PasswordHash::SaltedSha256 { salt: "00ff".into(), digest: "aa".repeat(32) }],
        client_ids: vec!["meter-*".into()],
        rules: (0..rules)
            .map(|number| Rule {
                action: Action::PubSub,
                filter: format!("größe/\"{name}\"/\u{1}/{number}/#"),
            })
            .collect(),
    }
}

fn document(users: Vec<AclUser>) -> AclDocument {
    AclDocument { generation: 7, anonymous_user: Some("guest".into()), users }
}

/// Cuts, checks the sizes and the count, and joins the parts again, backwards and through their JSON.
fn check(what: &str, document: &AclDocument, limit: usize, count: usize) {
    let shards = split(document, limit).unwrap();
    assert_eq!(shards.len(), count, "{what}");
    let texts: Vec<String> = shards.iter().map(|shard| serde_json::to_string(shard).unwrap()).collect();
    assert!(texts.iter().all(|text| text.len() <= limit), "{what}: {:?}", texts.iter().map(String::len));
    let read = texts.iter().rev().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(join(read).as_ref(), Ok(document), "{what}");
}

#[test]
fn what_was_cut_is_put_together_again() {
    check("nobody", &document(vec![]), 400, 1);
    check("nobody, and no anonymous user", &AclDocument::default(), 400, 1);
    check("one part", &document(vec![user("a", 3), user("b", 0), user("c", 1)]), SHARD_BYTES, 1);
    check("users in several parts", &document((0..9).map(|n| user(&format!("u{n}"), 0)).collect()), 600, 5);
    check("one user's rules in several parts", &document(vec![user("a", 30)]), 600, 5);
    let mixed = (0..7).map(|n| user(&format!("u{n}"), n * 5)).collect();
    check("users and rules", &document(mixed), 700, 16);
    let large = document((0..20_000).map(|n| user(&format!("device-{n}"), 2)).collect());
    check("a large site", &large, SHARD_BYTES, 7);
}

#[test]
fn a_document_is_cut_at_any_limit_or_the_user_in_the_way_is_named() {
    let whole = document(vec![user("a", 4), user("b", 0), user("c", 9)]);
    let mut cuts = 0;
    for limit in 0..2000 {
        match split(&whole, limit) {
            Ok(shards) => {
                cuts += 1;
                assert!(
                    shards.iter().all(|shard| serde_json::to_vec(shard).unwrap().len() <= limit),
                    "{limit}"
                );
                assert_eq!(join(shards).as_ref(), Ok(&whole), "{limit}");
            }
            Err(error) => {
                assert_eq!(cuts, 0, "what fits into less fits into {limit}: {error}");
                assert_eq!(error.limit, limit);
                assert!(["a", "b", "c"].contains(&&*error.username), "{error:?}");
            }
        }
    }
    assert!(cuts > 1000, "{cuts}");
}

#[test]
fn parts_that_are_not_all_of_one_document_make_none() {
    let new = document((0..9).map(|n| user(&format!("u{n}"), 1)).collect());
    let old = AclDocument { generation: 6, ..new.clone() };
    let new = split(&new, 1000).unwrap();
    let old = split(&old, 1000).unwrap();
    let [zero, one, two] = new.as_slice() else { panic!("{} parts", new.len()) };
    let tampered = |change: fn(&mut AclShard)| {
        let mut one = one.clone();
        change(&mut one);
        vec![zero.clone(), one, two.clone()]
    };
    let of = 3;
    let generation = 7;
    let cases = [
        ("none", vec![], JoinError::None),
        (
            "the last missing",
            vec![zero.clone(), one.clone()],
            JoinError::Missing { generation, index: 2, of },
        ),
        (
            "the first missing",
            vec![two.clone(), one.clone()],
            JoinError::Missing { generation, index: 0, of },
        ),
        (
            "one twice",
            vec![zero.clone(), one.clone(), one.clone(), two.clone()],
            JoinError::Twice { generation, index: 1, of },
        ),
        ("two generations", vec![zero.clone(), old[1].clone(), two.clone()], JoinError::Mixed(6, 7)),
        (
            "a complete one and a leftover",
            [new.clone(), vec![old[2].clone()]].concat(),
            JoinError::Mixed(6, 7),
        ),
        ("another hash", tampered(|one| one.hash = "00".into()), JoinError::Mixed(7, 7)),
        ("another count", tampered(|one| one.shard.of = 4), JoinError::Mixed(7, 7)),
        ("another anonymous user", tampered(|one| one.anonymous_user = None), JoinError::Mixed(7, 7)),
        (
            "a number too large",
            tampered(|one| one.shard.index = 3),
            JoinError::Missing { generation, index: 1, of },
        ),
        (
            "one too many",
            [new.clone(), vec![AclShard { shard: Place { index: 3, of }, ..two.clone() }]].concat(),
            JoinError::Beyond { generation, index: 3, of },
        ),
    ];
    for (what, shards, expected) in cases {
        assert_eq!(join(shards), Err(expected), "{what}");
    }
    let changes: [fn(&mut AclShard); 5] = [
        |one| one.users[0].rules[0].filter = "#".into(),
        |one| one.users[0].rules[0].action = Action::Pub,
        |one| one.users[0].passwords.clear(),
        |one| one.users.reverse(),
        |one| drop(one.users.pop()),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let joined = join(tampered(change));
        let refused =
            matches!(&joined, Err(JoinError::Hash { generation: 7, wanted, .. }) if *wanted == zero.hash);
        assert!(refused, "change {number}: {joined:?}");
    }
}

#[test]
fn the_hash_is_that_of_the_canonical_text() {
    let document: AclDocument = serde_json::from_str(
        r#"{"generation": 1, "users": [{"username": "a", "rules": [], "clientIds": []}], "anonymousUser": null}"#,
    )
    .unwrap();
    let canonical = r#"{"generation":1,"users":[{"username":"a"}]}"#;
    assert_eq!(serde_json::to_string(&document).unwrap(), canonical);
    // printf %s '{"generation":1,"users":[{"username":"a"}]}' | sha256sum
    assert_eq!(hash(&document), "0cde201d1ea2f670e5efa6017bcee46781bd1d35b30af0f8f6aea9c91b3bfe94");
}
