//! Logins: who comes in, what it costs, and who waits for whom.

use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use mqtt_broker_api::acl::{Argon2id, PasswordHash};

use super::*;
use crate::outside::Outside;

/// An Argon2id hash with hardly any memory.
fn slow(salt: &str, password: &str) -> PasswordHash {
    let params = argon2::Params::new(64, 1, 1, Some(32)).unwrap();
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut digest = [0; 32];
    argon2.hash_password_into(password.as_bytes(), salt.as_bytes(), &mut digest).unwrap();
    PasswordHash::Argon2id(Argon2id {
        memory_kib: 64,
        passes: 1,
        lanes: 1,
        salt: hex(salt.as_bytes()),
        digest: hex(&digest),
    })
}

fn fast(salt: &str, password: &str) -> PasswordHash {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    PasswordHash::SaltedSha256 { salt: hex(salt.as_bytes()), digest: hex(&digest) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn document(users: impl IntoIterator<Item = (String, Vec<PasswordHash>)>) -> AclDocument {
    let user = |(username, passwords)| AclUser {
        username,
        passwords,
        client_ids: vec!["meter-*".into()],
        rules: Vec::new(),
    };
    let users = users.into_iter().map(user).collect();
    AclDocument { generation: 1, anonymous_user: None, users }
}

fn one(name: &str, passwords: &[PasswordHash]) -> AclDocument {
    document([(name.to_owned(), passwords.to_vec())])
}

/// What a node holds of it.
struct Door {
    access: ArcSwap<Access>,
    logins: Logins,
}

impl Door {
    fn new(document: &AclDocument, cores: usize) -> Arc<Door> {
        let access = ArcSwap::from_pointee(Access::compile(document).unwrap());
        Arc::new(Door { access, logins: Logins::with_cores(Outside::default(), cores).unwrap() })
    }

    fn put(&self, document: &AclDocument) {
        let mut access = Access::compile(document).unwrap();
        access.inherit(&self.access.load());
        self.access.store(Arc::new(access));
    }

    async fn knock(&self, name: &str, password: &str) -> Result<(), LoginError> {
        self.enter(Some((name, password)), "meter-1").await
    }

    async fn enter(&self, given: Option<(&str, &str)>, client_id: &str) -> Result<(), LoginError> {
        let given = given.map(|(name, password)| (name, password.as_bytes()));
        self.logins.login(|| self.access.load_full(), given, client_id).await.map(|_| ())
    }
}

impl AsRef<Access> for Access {
    fn as_ref(&self) -> &Access {
        self
    }
}

#[tokio::test]
async fn a_password_decides_who_comes_in_however_it_is_kept() {
    use LoginError::{BadCredentials, ClientIdNotAllowed, NoCredentials};
    let document = document([
        ("fast".to_owned(), vec![fast("salt-of-fast", "s3cret")]),
        ("slow".to_owned(), vec![slow("salt-of-slow", "s3cret")]),
        ("two".to_owned(), vec![slow("salt-of-new", "new"), slow("salt-of-old", "old")]),
        ("mixed".to_owned(), vec![fast("salt-of-new", "new"), slow("salt-of-old", "old")]),
        ("none".to_owned(), vec![]),
    ]);
    let door = Door::new(&document, 1);
    let table = [
        (Some(("fast", "s3cret")), "meter-1", Ok(())),
        (Some(("fast", "S3cret")), "meter-1", Err(BadCredentials)),
        (Some(("slow", "wrong")), "meter-1", Err(BadCredentials)),
        (Some(("slow", "s3cret")), "meter-1", Ok(())),
        (Some(("slow", "wrong")), "meter-1", Err(BadCredentials)),
        (Some(("slow", "other")), "meter-1", Err(BadCredentials)),
        (Some(("slow", "")), "meter-1", Err(BadCredentials)),
        (Some(("slow", "s3cret")), "meter-1", Ok(())),
        (Some(("slow", "s3cret")), "pump-1", Err(ClientIdNotAllowed)),
        (Some(("slow", "wrong")), "pump-1", Err(BadCredentials)),
        (Some(("two", "old")), "meter-1", Ok(())),
        (Some(("two", "new")), "meter-1", Ok(())),
        (Some(("two", "s3cret")), "meter-1", Err(BadCredentials)),
        (Some(("mixed", "new")), "meter-1", Ok(())),
        (Some(("mixed", "old")), "meter-1", Ok(())),
        (Some(("mixed", "s3cret")), "meter-1", Err(BadCredentials)),
        (Some(("none", "")), "meter-1", Err(BadCredentials)),
        (Some(("nobody", "s3cret")), "meter-1", Err(BadCredentials)),
        (None, "meter-1", Err(NoCredentials)),
    ];
    // The second time it comes from what is known.
    for round in 1..=2 {
        for (given, client_id, expected) in table {
            assert_eq!(door.enter(given, client_id).await, expected, "{given:?} {client_id} round {round}");
        }
    }
    // slow: the wrong one before the right one, and that; two: both hashes for "old", one for "new"; mixed: one.
    assert_eq!(door.logins.hashes(), 2 + 3 + 1);
}

#[test]
fn hashes_are_those_of_the_reference_implementation() {
    for (memory_kib, lanes, digest) in [
        (256, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
        (256, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
        (65536, 1, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
    ] {
        let salt = hex(b"somesalt");
        let hash = Argon2id { memory_kib, passes: 2, lanes, salt, digest: digest.into() };
        let Ok(Password::Slow(slow)) = Password::compile(&PasswordHash::Argon2id(hash)) else { panic!() };
        assert_eq!(slow.compute(b"password", &[1; 32]), Ok(true), "{memory_kib} KiB, {lanes} lanes");
        assert_eq!(slow.compute(b"Password", &[2; 32]), Ok(false), "{memory_kib} KiB, {lanes} lanes");
    }
}

#[test]
fn a_hash_that_asks_for_too_much_is_refused_with_the_document() {
    let check = |change: fn(&mut Argon2id), expected: &str| {
        let PasswordHash::Argon2id(mut hash) = slow("somesalt", "s3cret") else { panic!() };
        change(&mut hash);
        let problems = Access::compile(&one("fleet", &[PasswordHash::Argon2id(hash)])).err();
        assert_eq!(problems, Some(vec![format!("user \"fleet\": a password hash {expected}")]));
    };
    check(|hash| hash.memory_kib = 4 << 20, "asks for 4194304 KiB of memory, and may for 65536 at most");
    check(|hash| hash.passes = 11, "asks for 11 passes, and may for 10 at most");
    check(|hash| hash.lanes = 5, "asks for 5 lanes, and may for 4 at most");
    check(|hash| hash.passes = 0, "can't be computed: time cost is too small");
    check(|hash| hash.memory_kib = 7, "can't be computed: memory cost is too small");
    check(|hash| hash.salt = "00zz".into(), "is not hexadecimal");
    let sizes = "8 to 64 and 16 to 64 are allowed";
    check(|hash| hash.salt = "00".into(), &format!("has a salt of 1 bytes and a digest of 32; {sizes}"));
    check(|hash| hash.digest = "00".into(), &format!("has a salt of 8 bytes and a digest of 1; {sizes}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_logins_costs_one_hash_a_password_and_the_next_none() {
    let passwords = [slow("salt-of-new", "new"), slow("salt-of-old", "old")];
    let door = Door::new(&one("fleet", &passwords), 4);
    for storm in 1..=2 {
        let tasks: Vec<_> = (0..1000)
            .map(|_| {
                let door = door.clone();
                tokio::spawn(async move { door.knock("fleet", "new").await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(()), "storm {storm}");
        }
        assert_eq!(door.logins.hashes(), 1, "storm {storm}");
    }
    // A device with a wrong password that comes again and again is known, too.
    for _ in 0..1000 {
        assert_eq!(door.knock("fleet", "older").await, Err(LoginError::BadCredentials));
    }
    assert_eq!(door.logins.hashes(), 2);
}

#[tokio::test]
async fn what_is_known_lives_as_long_as_the_hash() {
    let (new, old) = (slow("salt-of-new", "new"), slow("salt-of-old", "old"));
    let door = Door::new(&one("fleet", std::slice::from_ref(&old)), 1);
    let check = async |what: &str, password: &str, expected: Result<(), LoginError>, hashes: u64| {
        assert_eq!(door.knock("fleet", password).await, expected, "{what}");
        assert_eq!(door.logins.hashes(), hashes, "{what}");
    };
    let wrong = Err(LoginError::BadCredentials);
    check("the first login", "old", Ok(()), 1).await;
    door.put(&one("fleet", &[new.clone(), old.clone()]));
    check("the old password in a new document", "old", Ok(()), 1).await;
    check("the new password", "new", Ok(()), 2).await;
    door.put(&one("fleet", std::slice::from_ref(&new)));
    check("a removed password", "old", wrong, 2).await;
    check("the one that stays", "new", Ok(()), 2).await;
    door.put(&one("other", &[new.clone(), old.clone()]));
    check("a removed user", "new", wrong, 2).await;
    door.put(&one("fleet", &[slow("another salt", "new")]));
    check("the same password under another hash", "new", Ok(()), 3).await;
}

#[tokio::test]
async fn a_password_that_is_removed_while_it_is_checked_does_not_come_in() {
    let door = Door::new(&one("fleet", &[slow("salt-of-old", "old")]), 1);
    let waiting = tokio::spawn({
        let door = door.clone();
        async move { door.knock("fleet", "old").await }
    });
    // On one thread it runs until it waits for the hash, and goes on when this task waits.
    tokio::task::yield_now().await;
    door.put(&one("fleet", &[slow("salt-of-new", "new")]));
    assert_eq!(waiting.await.unwrap(), Err(LoginError::BadCredentials));
}

/// On one thread, so that the order of events does not hang on the machine's load: hashes are the clock.
#[tokio::test]
async fn who_tries_passwords_of_one_user_delays_others_by_a_hash_or_two() {
    let name = |number: usize| format!("user-{number}");
    let users = (0..100).map(|number| (name(number), vec![slow(&format!("salt-of-{number}"), "s3cret")]));
    let victim = ("victim".to_owned(), vec![slow("salt-of-victim", "s3cret")]);
    let door = Door::new(&document(users.chain([victim])), 1);
    let over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..100)
        .map(|attacker| {
            let (door, over) = (door.clone(), over.clone());
            tokio::spawn(async move {
                let mut refused = [0; 2];
                for guess in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    match door.knock("victim", &format!("{attacker}-{guess}")).await {
                        Err(LoginError::BadCredentials) => refused[0] += 1,
                        Err(LoginError::Busy) => refused[1] += 1,
                        other => panic!("{other:?}"),
                    }
                    tokio::task::yield_now().await;
                }
                refused
            })
        })
        .collect();
    while door.logins.hashes() < 20 {
        tokio::task::yield_now().await;
    }
    let mut meanwhile = Vec::new();
    for number in 0..100 {
        let before = door.logins.hashes();
        assert_eq!(door.knock(&name(number), "s3cret").await, Ok(()));
        meanwhile.push(door.logins.hashes() - before);
    }
    // One that had begun to wait, its own, and one that began before the answer arrived.
    assert!(meanwhile.iter().all(|hashes| *hashes <= 4), "{meanwhile:?}");
    over.store(true, Ordering::Relaxed);
    let mut refused = [0; 2];
    for task in flood {
        let [wrong, busy] = task.await.unwrap();
        refused = [refused[0] + wrong, refused[1] + busy];
    }
    assert!(refused.iter().all(|count| *count > 100), "wrong and busy: {refused:?}");

    // Once it is known what is right, a flood costs nothing, and keeps nobody of that user out.
    let known = {
        assert_eq!(door.knock("victim", "s3cret").await, Ok(()));
        door.logins.hashes()
    };
    for guess in 0..1000 {
        assert_eq!(door.knock("victim", &format!("later-{guess}")).await, Err(LoginError::BadCredentials));
    }
    assert_eq!(door.logins.hashes(), known);
}

#[tokio::test]
async fn a_queue_that_is_full_is_told_and_empties() {
    let name = |number: usize| format!("user-{number}");
    let hash = slow("one-salt", "s3cret");
    let users: Vec<_> = (0..600).map(|number| (name(number), vec![hash.clone()])).collect();
    let door = Door::new(&document(users), 1);
    let tasks: Vec<_> = (0..600)
        .map(|number| {
            let door = door.clone();
            tokio::spawn(async move { door.knock(&name(number), "s3cret").await })
        })
        .collect();
    let mut busy = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => {}
            Err(LoginError::Busy) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(busy, 600 - 256, "all came at once, and 256 may wait for a core");
    assert_eq!(door.knock("user-599", "s3cret").await, Ok(()), "later there is room again");
}
