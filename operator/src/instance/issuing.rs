//! The certificate that brokers show each other over links, where the instance names none: made, kept, and made anew in
//! time. [`plan`] is pure; the time is an argument.
//!
//! Promises: one that can serve is kept as it is; who has the Secret can make no other, for the key of the CA that signed it
//! was thrown away at once; at a renewal brokers are told of the CA of the next certificate some time before they show
//! that, so that those whose volumes are not yet up to date and those whose are take each other's all the time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use mqtt_broker_api::{
    config::TlsSecrets,
    node::{PEERS_CA, PEERS_CERTIFICATE, PEERS_KEY},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::certificates;
use crate::{
    apply::{Error, Owner},
    watch::secrets::{SecretName, Secrets, Value},
};

/// How long a certificate counts, in seconds: a year.
const COUNTS: i64 = 365 * 24 * 3600;
/// So long before it was made it counts already, for brokers whose clocks are behind.
const CLOCKS_DIFFER: i64 = 3600;
/// So long brokers are told of the CA of a certificate before they show it: kubelets take two minutes at most.
const TOLD_BEFORE: i64 = 3600;
/// The common name of the CAs. A certificate of any other was not made here.
const CA: &str = "mqtt-operator, for links between brokers";
/// Where in the Secret the certificate lies that is shown next, and its key.
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

/// What is in the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// What brokers show, and the CAs that they trust.
    pub shown: TlsSecrets,
    /// What they show once all know its CA.
    pub next: Option<Pair>,
    /// When something of it is to change.
    pub until: Timestamp,
}

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    certificate: String,
    key: String,
}

/// What is to become of the Secret.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is this, or is to be.
    Have(Issued),
    /// This stays, and what is shown next is to be made.
    Prepare(TlsSecrets),
    /// There is nothing that can serve; all is to be made.
    Make,
}

/// What brokers of an instance whose host names end with `domain` show each other. `found` is what the Secret is known to
/// hold; a watch may lag behind, so nothing is made before the API server was asked.
pub async fn issue(
    secrets: &Secrets,
    owner: &Owner,
    name: &SecretName,
    found: Option<&Arc<Value>>,
    domain: &str,
    now: Timestamp,
) -> Result<Issued, Error> {
    // What is there and not the instance's own is not used, and the writer does not touch it.
    let plan_for = |found: Option<&Arc<Value>>| {
        let own = found.filter(|found| found.owner.as_ref() == Some(&owner.uid));
        plan(own.map(|own| &own.data), domain, now)
    };
    if let Plan::Have(issued) = plan_for(found) {
        return Ok(issued);
    }
    let plan = plan_for(secrets.read_now(name).await?.as_ref());
    let is_made = !matches!(plan, Plan::Have(_));
    let issued = carry_out(plan, domain, now).map_err(|error| Error::Later {
        what: format!("make the certificate of {}", owner.object),
        why: error.to_string(),
    })?;
    if is_made {
        tracing::debug!(
            "{}: made a certificate for links between brokers; the next step is due at {}",
            owner.object,
            issued.until
        );
    }
    Ok(issued)
}

/// `found` is what the instance's Secret holds.
pub fn plan(found: Option<&BTreeMap<String, Vec<u8>>>, domain: &str, now: Timestamp) -> Plan {
    let text = |key: &str| String::from_utf8(found?.get(key)?.clone()).ok();
    let pair = |certificate, key| Some(Pair { certificate: text(certificate)?, key: text(key)? });
    let Some(cas) = text(PEERS_CA).filter(|cas| certificates::roots(cas).is_ok()) else { return Plan::Make };
    let good = |pair: Pair| Good::of(pair, &cas, domain, now);
    let shown = pair(PEERS_CERTIFICATE, PEERS_KEY).and_then(good);
    let next = pair(NEXT_CERTIFICATE, NEXT_KEY).and_then(good);
    match (shown, next) {
        (Some(shown), _) if now < shown.old_at() => {
            let until = shown.old_at();
            Plan::Have(Issued { shown: shown.pair.with(cas), next: None, until })
        }
        (Some(shown), Some(next)) if now < next.known_at() => {
            let (until, next) = (next.known_at(), Some(next.pair));
            Plan::Have(Issued { shown: shown.pair.with(cas), next, until })
        }
        (_, Some(next)) => {
            let until = next.old_at();
            Plan::Have(Issued { shown: next.pair.with(cas), next: None, until })
        }
        (Some(shown), None) => Plan::Prepare(shown.pair.with(shown.ca)),
        (None, None) => Plan::Make,
    }
}

/// Makes what is to be made.
pub fn carry_out(plan: Plan, domain: &str, now: Timestamp) -> Result<Issued, rcgen::Error> {
    match plan {
        Plan::Have(issued) => Ok(issued),
        Plan::Make => {
            let (pair, ca) = make(domain, now)?;
            let until = old_at(now.as_second() - CLOCKS_DIFFER, now.as_second() + COUNTS);
            Ok(Issued { shown: pair.with(ca), next: None, until })
        }
        Plan::Prepare(mut shown) => {
            let (pair, ca) = make(domain, now)?;
            shown.client_ca.get_or_insert_default().push_str(&ca);
            Ok(Issued { shown, next: Some(pair), until: at(now.as_second() + TOLD_BEFORE) })
        }
    }
}

/// How long nothing is to be done, of `most`.
pub fn wait(most: Duration, until: Option<Timestamp>, now: Timestamp) -> Duration {
    let due = until.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
    due.map_or(most, |due| most.min(due))
}

impl Pair {
    fn with(self, cas: String) -> TlsSecrets {
        TlsSecrets { certificate: self.certificate, key: self.key, client_ca: Some(cas) }
    }

    /// Puts it into the Secret, for later.
    pub fn keep_in(self, secret: &mut Secret) {
        let entries = [(NEXT_CERTIFICATE, self.certificate), (NEXT_KEY, self.key)];
        let entries = entries.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        secret.data.get_or_insert_default().extend(entries);
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair")
    }
}

/// A pair that can serve now.
struct Good {
    pair: Pair,
    /// The CA that signed it, in PEM.
    ca: String,
    /// When it counts, in seconds.
    from: i64,
    until: i64,
}

impl Good {
    /// The pair, if brokers with these CAs take it from each other, and it was made here.
    fn of(pair: Pair, cas: &str, domain: &str, now: Timestamp) -> Option<Self> {
        certificates::pair(&pair.certificate, &pair.key, now, certificates::Peer::Brokers).ok()?;
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).ok()?;
        let (_, read) = X509Certificate::from_der(&der).ok()?;
        if read.issuer().iter_common_name().all(|name| name.as_str() != Ok(CA)) {
            return None;
        }
        let each = cas.split_inclusive("-----END CERTIFICATE-----\n");
        let ca = each.into_iter().find(|ca| is_taken(&der, ca, domain, now).is_some())?.to_owned();
        let (from, until) = (read.validity().not_before.timestamp(), read.validity().not_after.timestamp());
        Some(Self { pair, ca, from, until })
    }

    fn old_at(&self) -> Timestamp {
        old_at(self.from, self.until)
    }

    /// When all brokers know its CA.
    fn known_at(&self) -> Timestamp {
        at(self.from + CLOCKS_DIFFER + TOLD_BEFORE)
    }
}

/// Two thirds of its time are over then.
fn old_at(from: i64, until: i64) -> Timestamp {
    at(from + (until - from) / 3 * 2)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

/// Whether a broker that trusts this CA takes the certificate, from whom it calls and from who calls it.
fn is_taken(certificate: &CertificateDer<'_>, ca: &str, domain: &str, now: Timestamp) -> Option<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).ok()?).ok()?;
    let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().try_into().ok()?));
    let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().ok()?;
    let any = ServerName::try_from(format!("any.{domain}")).ok()?;
    server.verify_server_cert(certificate, &[], &any, &[], now).ok()?;
    let client = WebPkiClientVerifier::builder_with_provider(roots, provider).build().ok()?;
    client.verify_client_cert(certificate, &[], now).ok()?;
    Some(())
}

/// A pair, and the CA that signed it and never signs again.
fn make(domain: &str, now: Timestamp) -> Result<(Pair, String), rcgen::Error> {
    let second = |second: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(second.unsigned_abs());
    let params = |names: Vec<String>, called: &str| {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, called);
        params.not_before = second(now.as_second() - CLOCKS_DIFFER);
        params.not_after = second(now.as_second() + COUNTS);
        Ok::<_, rcgen::Error>(params)
    };
    let mut ca = params(vec![], CA)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let mut brokers = params(vec![format!("*.{domain}")], "brokers")?;
    brokers.use_authority_key_identifier_extension = true;
    brokers.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    brokers.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = brokers.signed_by(&key, &ca)?;
    Ok((Pair { certificate: certificate.pem(), key: key.serialize_pem() }, ca.pem()))
}
