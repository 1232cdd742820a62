//! The certificate for links between brokers through its life.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use mqtt_operator::instance::issuing::{Issued, Plan, carry_out, plan, wait};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConfig, ServerConnection,
    WantsVerifier,
    client::WebPkiServerVerifier,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
    time_provider::TimeProvider,
    version::TLS13,
};

const DOMAIN: &str = "meters-nodes.plant.svc";

type Data = BTreeMap<String, Vec<u8>>;

/// So many days and hours after it was made first.
fn at(days: i64, hours: i64) -> Timestamp {
    let first: Timestamp = "2026-11-30T08:00:00Z".parse().unwrap();
    Timestamp::from_second(first.as_second() + (days * 24 + hours) * 3600).unwrap()
}

/// What is in the Secret then.
fn data(issued: Issued) -> Data {
    let Issued { shown, next, .. } = issued;
    let mut data: Data =
        [("tls.crt", shown.certificate), ("tls.key", shown.key), ("ca.crt", shown.client_ca.unwrap())]
            .map(|(key, text)| (key.to_owned(), text.into_bytes()))
            .into();
    let mut secret = Secret::default();
    next.into_iter().for_each(|next| next.keep_in(&mut secret));
    data.extend(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)));
    data
}

/// The next state of the Secret.
fn then(found: Option<&Data>, at: Timestamp) -> Issued {
    carry_out(plan(found, DOMAIN, at), DOMAIN, at).unwrap()
}

/// What is in the Secret over its first year: made; the next one known; the next one shown; and that again.
fn life() -> [Data; 5] {
    let first = data(then(None, at(0, 0)));
    let second = data(then(Some(&first), at(243, 8)));
    let third = data(then(Some(&second), at(243, 9)));
    let fourth = data(then(Some(&third), at(490, 0)));
    let fifth = data(then(Some(&fourth), at(491, 0)));
    [first, second, third, fourth, fifth]
}

#[test]
fn it_is_kept_while_it_can_serve_and_made_anew_in_time() {
    let [first, second, third, ..] = life();
    let other = data(then(None, at(0, 0)));
    let with = |data: &Data, key: &str, value: Option<&[u8]>| {
        let mut data = data.clone();
        match value {
            Some(value) => data.insert(key.into(), value.into()),
            None => data.remove(key),
        };
        Some(data)
    };
    let of = |data: &Data, key: &str| data.get(key).unwrap().clone();
    let mut foreign = first.clone();
    foreign.extend(self_made());
    let check = |what: &str, found: Option<Data>, at: Timestamp, expected: &str| {
        let done = match plan(found.as_ref(), DOMAIN, at) {
            Plan::Have(issued) => {
                let until = issued.until;
                let is_new = Some(data(issued)) != found;
                format!("{} until {until}", if is_new { "changed" } else { "kept" })
            }
            Plan::Prepare(shown) => {
                assert_eq!(shown.key.as_bytes(), of(found.as_ref().unwrap(), "tls.key"), "{what}");
                "prepared".into()
            }
            Plan::Make => "made".into(),
        };
        assert_eq!(done, expected, "{what}");
    };
    let old = "kept until 2027-07-31T15:40:00Z";
    check("nothing there", None, at(0, 0), "made");
    check("an empty Secret", Some(Data::new()), at(0, 0), "made");
    check("just made", Some(first.clone()), at(0, 0), old);
    check("for a broker whose clock is behind", Some(first.clone()), at(0, -1), old);
    check("in its time", Some(first.clone()), at(243, 7), old);
    check(
        "with more beside it",
        with(&first, "more", Some(b"x")),
        at(0, 0),
        "changed until 2027-07-31T15:40:00Z",
    );
    check("two thirds of its time are over", Some(first.clone()), at(243, 8), "prepared");
    check("its time is nearly over", Some(first.clone()), at(364, 23), "prepared");
    check("its time is over", Some(first.clone()), at(365, 1), "made");
    check("it does not count yet", Some(first.clone()), at(0, -2), "made");
    check(
        "the next one is known to some",
        Some(second.clone()),
        at(243, 8),
        "kept until 2027-07-31T17:00:00Z",
    );
    check(
        "the next one is known to all",
        Some(second.clone()),
        at(243, 9),
        "changed until 2028-03-30T23:40:00Z",
    );
    check("the next one is shown", Some(third.clone()), at(243, 9), "kept until 2028-03-30T23:40:00Z");
    check("the next one is damaged", with(&second, "next.key", Some(b"x")), at(243, 8), "prepared");
    check(
        "the next one's key is another's",
        with(&second, "next.key", Some(&of(&second, "tls.key"))),
        at(243, 8),
        "prepared",
    );
    check(
        "only the next one is good",
        with(&second, "tls.key", None),
        at(243, 8),
        "changed until 2028-03-30T23:40:00Z",
    );
    check(
        "the next one is all there is after a year",
        Some(second.clone()),
        at(400, 0),
        "changed until 2028-03-30T23:40:00Z",
    );
    for key in ["tls.crt", "tls.key", "ca.crt"] {
        check(&format!("no {key}"), with(&first, key, None), at(0, 0), "made");
        check(&format!("{key} is no PEM"), with(&first, key, Some(b"x")), at(0, 0), "made");
        check(&format!("{key} is no text"), with(&first, key, Some(&[0xff])), at(0, 0), "made");
        check(&format!("{key} is another's"), with(&first, key, Some(&of(&other, key))), at(0, 0), "made");
        let half = of(&first, key);
        check(&format!("half of {key}"), with(&first, key, half.get(..100)), at(0, 0), "made");
    }
    let and_half = [of(&first, "ca.crt"), of(&other, "ca.crt")[..100].to_vec()].concat();
    check("half a CA beside the CA", with(&first, "ca.crt", Some(&and_half)), at(0, 0), "made");
    check("of a CA that was not made here", Some(foreign), at(0, 0), "made");
    for domain in ["meters-nodes.other.svc", "gauges-nodes.plant.svc"] {
        assert_eq!(plan(Some(&first), domain, at(0, 0)), Plan::Make, "for {domain}");
    }
}

/// A pair for the same names of a CA that a person has made.
fn self_made() -> Data {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let brokers = CertificateParams::new(vec![format!("*.{DOMAIN}")]).unwrap().signed_by(&key, &ca).unwrap();
    [("tls.crt", brokers.pem()), ("tls.key", key.serialize_pem()), ("ca.crt", ca.pem())]
        .map(|(key, text)| (key.to_owned(), text.into_bytes()))
        .into()
}

/// The same time for all.
#[derive(Debug)]
struct Clock(Timestamp);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.as_second().try_into().ok()?)))
    }
}

/// Whether the broker that has the one can call the broker that has the other, as brokers do it.
fn links(caller: &Data, called: &Data, at: Timestamp) -> Result<(), rustls::Error> {
    let chain = |data: &Data| vec![CertificateDer::from_pem_slice(&data["tls.crt"]).unwrap()];
    let key = |data: &Data| PrivateKeyDer::from_pem_slice(&data["tls.key"]).unwrap();
    let roots = |data: &Data| {
        let mut roots = RootCertStore::empty();
        CertificateDer::pem_slice_iter(&data["ca.crt"]).for_each(|ca| roots.add(ca.unwrap()).unwrap());
        Arc::new(roots)
    };
    let provider = Arc::new(default_provider());
    let clock = Arc::new(Clock(at));
    let client = ClientConfig::builder_with_details(provider.clone(), clock.clone());
    let client: ConfigBuilder<_, WantsVerifier> = client.with_protocol_versions(&[&TLS13])?;
    let servers =
        WebPkiServerVerifier::builder_with_provider(roots(caller), provider.clone()).build().unwrap();
    let client = client.with_webpki_verifier(servers).with_client_auth_cert(chain(caller), key(caller))?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(called), provider.clone()).build().unwrap();
    let server = ServerConfig::builder_with_details(provider, clock).with_protocol_versions(&[&TLS13])?;
    let server = server.with_client_cert_verifier(clients).with_single_cert(chain(called), key(called))?;
    let name = ServerName::try_from(format!("meters-broker-0.{DOMAIN}")).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut io::Cursor::new(wire)).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut io::Cursor::new(wire)).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn brokers_take_each_others_while_only_some_have_the_next() {
    let [first, second, third, fourth, fifth] = &life();
    for (what, before, after, at, expected) in [
        ("made", first, first, at(0, 0), true),
        ("the next one becomes known", first, second, at(243, 8), true),
        ("the next one is shown", second, third, at(243, 9), true),
        ("the one after it becomes known", third, fourth, at(490, 0), true),
        ("the one after it is shown", fourth, fifth, at(491, 0), true),
        ("one that was not told in time", first, third, at(243, 9), false),
        ("one that has slept for a year", second, fifth, at(491, 0), false),
        ("one whose time is over", first, first, at(366, 0), false),
    ] {
        let (there, back) = (links(before, after, at), links(after, before, at));
        assert_eq!((there.is_ok(), back.is_ok()), (expected, expected), "{what}: {there:?}, {back:?}");
    }
}

#[test]
fn it_is_looked_at_when_it_is_due() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    for (what, until, expected) in [
        ("none was made", None, hours(10)),
        ("long after all is looked at anyway", Some(at(200, 0)), hours(10)),
        ("soon", Some(at(100, 4)), hours(4)),
        ("now", Some(at(100, 0)), hours(0)),
        ("while nobody acted", Some(at(99, 0)), hours(0)),
    ] {
        assert_eq!(wait(hours(10), until, at(100, 0)), expected, "{what}");
    }
}
