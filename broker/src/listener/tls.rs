//! MQTT over TLS 1.2 and 1.3: what the broker shows to devices, and the handshake before a connection.
//!
//! Promises: new secrets count for new connections and close none; secrets that can't serve are told before they are
//! in force; a client that does not finish its handshake holds nobody up, and not for long.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mqtt_broker_api::config::TlsSecrets;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::ring::{Ticketer, default_provider},
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{HANDSHAKE_TIMEOUT, not_finished};
use crate::{limits::notice, node::Node};

/// How often it is looked at how long the certificate lasts.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SECONDS_A_DAY: i64 = 24 * 3600;
/// A certificate that expires within so many days is spoken of.
const SOON_DAYS: i64 = 14;
/// What the protocol is called in ALPN; a client need not name one.
const ALPN: &[u8] = b"mqtt";

/// What new connections are met with; replaced while others live.
pub(crate) type Current = ArcSwap<Terms>;

/// What connections are met with.
#[derive(Debug)]
pub(crate) struct Terms {
    config: Arc<ServerConfig>,
    /// When the certificate expires, in seconds since the Unix epoch.
    expires_at: i64,
}

/// Why secrets can't serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} can't be used: {why}")]
pub(crate) struct Unusable {
    pub(crate) part: Part,
    pub(crate) why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Certificate,
    Key,
    ClientCa,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Certificate => "the certificate",
            Part::Key => "the private key",
            Part::ClientCa => "the CA",
        })
    }
}

/// Makes terms of secrets; the same secrets keep their terms, and with them the tickets that clients resume with.
#[derive(Default)]
pub(crate) struct Compiler {
    last: Option<(TlsSecrets, Arc<Terms>)>,
}

impl Compiler {
    pub(crate) fn compile(&mut self, secrets: TlsSecrets) -> Result<Arc<Terms>, Unusable> {
        if let Some((last, terms)) = &self.last
            && *last == secrets
        {
            return Ok(terms.clone());
        }
        let terms = Arc::new(compile(&secrets)?);
        self.last = Some((secrets, terms.clone()));
        Ok(terms)
    }
}

fn compile(secrets: &TlsSecrets) -> Result<Terms, Unusable> {
    let chain = certificates(&secrets.certificate, Part::Certificate)?;
    let expires_at = chain.first().and_then(|own| parsed(own, |own| own.validity().not_after.timestamp()));
    let mut config = server_config(secrets, &[&rustls::version::TLS12, &rustls::version::TLS13], ALPN)?;
    // Clients keep what they resume with: the broker remembers nothing of them.
    config.ticketer =
        Ticketer::new().map_err(|error| Unusable { part: Part::Key, why: error.to_string() })?;
    Ok(Terms { config: Arc::new(config), expires_at: expires_at.unwrap_or(i64::MAX) })
}

/// What a server shows, and asks for where there is a CA for that.
pub(crate) fn server_config(
    secrets: &TlsSecrets,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[u8],
) -> Result<ServerConfig, Unusable> {
    let (chain, key) = pair(secrets)?;
    let provider = Arc::new(default_provider());
    let verifier: Arc<dyn ClientCertVerifier> = match &secrets.client_ca {
        None => Arc::new(NoClientAuth),
        Some(ca) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider.clone())
            .build()
            .map_err(|error| Unusable { part: Part::ClientCa, why: error.to_string() })?,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Unusable { part: Part::Key, why: "it is not that of the certificate".into() }
            }
            rustls::Error::InvalidCertificate(error) => {
                Unusable { part: Part::Certificate, why: error.to_string() }
            }
            error => Unusable { part: Part::Key, why: error.to_string() },
        })?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// A certificate, with those between it and its CA, and its key.
pub(crate) fn pair(
    secrets: &TlsSecrets,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Unusable> {
    let chain = certificates(&secrets.certificate, Part::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(secrets.key.as_bytes())
        .map_err(|error| Unusable { part: Part::Key, why: pem_error(&error) })?;
    Ok((chain, key))
}

/// The CAs that certificates must come from.
pub(crate) fn roots(ca: &str) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca, Part::ClientCa)? {
        let added = roots.add(certificate);
        added.map_err(|error| Unusable { part: Part::ClientCa, why: error.to_string() })?;
    }
    Ok(roots)
}

fn certificates(text: &str, part: Part) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(found) if found.is_empty() => {
            Err(Unusable { part, why: "there is no certificate in PEM in it".into() })
        }
        Ok(found) => Ok(found),
        Err(error) => Err(Unusable { part, why: pem_error(&error) }),
    }
}

/// In words, for some of rustls's own tell bytes of the file.
fn pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "there is none in PEM in it, without a password".into(),
        pem::Error::MissingSectionEnd { .. } => "its end is missing".into(),
        pem::Error::Base64Decode(_) => "it is no base64".into(),
        _ => "it is no PEM".into(),
    }
}

/// Reads something in a certificate.
fn parsed<T>(certificate: &CertificateDer<'_>, get: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    Some(get(&X509Certificate::from_der(certificate).ok()?.1))
}

/// Whom the device's certificate names: the last common name of its subject.
pub(super) fn subject(stream: &TlsStream<TcpStream>) -> Option<Box<str>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let name = |own: &X509Certificate<'_>| {
        own.subject().iter_common_name().last().and_then(|name| name.as_str().ok()).map(Box::from)
    };
    parsed(certificate, name).flatten()
}

/// Says that the certificate expires soon, once a day and for each new one, until its task is aborted.
pub(crate) async fn watch_expiry(node: Arc<Node>, current: Arc<Current>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut told: Option<(Arc<Terms>, Instant)> = None;
    loop {
        ticks.tick().await;
        let terms = current.load_full();
        node.counters.tls_certificate_expires_at.set(u64::try_from(terms.expires_at).unwrap_or(0));
        let now = i64::try_from(node.wall() / 1000).unwrap_or(i64::MAX);
        let Some(line) = expiry_line(terms.expires_at, now) else { continue };
        let known = told.as_ref().is_some_and(|(of, at)| Arc::ptr_eq(of, &terms) && at.elapsed() < DAY);
        if !known {
            tracing::warn!("{line}");
            told = Some((terms, Instant::now()));
        }
    }
}

/// What there is to say of a certificate that expires then; both in seconds since the Unix epoch.
fn expiry_line(expires_at: i64, now: i64) -> Option<String> {
    let left = expires_at.saturating_sub(now);
    let days = left / SECONDS_A_DAY;
    match left {
        ..=0 => Some("the TLS certificate has expired: devices that check it stay away; replace it".into()),
        _ if days < SOON_DAYS => Some(format!("the TLS certificate expires in {days} days; replace it")),
        _ => None,
    }
}

/// Makes a TLS connection of a socket; none where that failed, which was told.
pub(super) async fn handshake(
    node: &Node,
    stream: TcpStream,
    peer: SocketAddr,
    terms: Arc<Terms>,
) -> Option<TlsStream<TcpStream>> {
    let greeted = async {
        // Whoever only looks whether somebody listens says nothing, and goes.
        if stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
            Some(TlsAcceptor::from(terms.config.clone()).accept(stream).await)
        } else {
            None
        }
    };
    let why = match timeout(HANDSHAKE_TIMEOUT, greeted).await {
        Ok(Some(Ok(stream))) => return Some(stream),
        Ok(Some(Err(error))) => error.to_string(),
        Ok(None) => {
            tracing::debug!(%peer, "gone before its TLS handshake");
            return None;
        }
        Err(_) => not_finished(),
    };
    node.counters.tls_handshakes_failed.add(1);
    notice!(node, tls_handshake, %peer, "TLS handshake failed: {why}");
    None
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, generate_simple_self_signed};

    use super::*;

    fn check(what: &str, secrets: &TlsSecrets, expected: Result<(), (Part, &str)>) {
        let outcome = Compiler::default().compile(secrets.clone()).map(drop);
        match (outcome, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err((part, why))) => {
                assert_eq!(found.part, part, "{what}: {found}");
                let line = found.to_string();
                assert!(line.contains(why) && !line.contains('\n'), "{what}: {line}");
            }
            (found, expected) => panic!("{what}: {found:?}, not {expected:?}"),
        }
    }

    fn pair() -> TlsSecrets {
        let made = generate_simple_self_signed(vec!["mqtt.example".into()]).unwrap();
        TlsSecrets {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            client_ca: Some(made.cert.pem()),
        }
    }

    #[test]
    fn secrets_that_can_t_serve_are_told_by_their_part() {
        let good = pair();
        check("good ones", &good, Ok(()));
        check("no CA", &TlsSecrets { client_ca: None, ..good.clone() }, Ok(()));
        let other = KeyPair::generate().unwrap().serialize_pem();
        let cases = [
            ("another key", TlsSecrets { key: other.clone(), ..good.clone() }, Part::Key, "not that of"),
            (
                "no key",
                TlsSecrets { key: good.certificate.clone(), ..good.clone() },
                Part::Key,
                "none in PEM",
            ),
            (
                "half a key",
                TlsSecrets { key: good.key[..60].into(), ..good.clone() },
                Part::Key,
                "its end is missing",
            ),
            (
                "no certificate",
                TlsSecrets { certificate: other, ..good.clone() },
                Part::Certificate,
                "no certificate",
            ),
            (
                "no base64",
                TlsSecrets { certificate: good.certificate.replace('M', "*"), ..good.clone() },
                Part::Certificate,
                "no base64",
            ),
            (
                "a certificate that is none",
                TlsSecrets {
                    certificate: "-----BEGIN CERTIFICATE-----\nTUlJQg==\n-----END CERTIFICATE-----\n".into(),
                    ..good.clone()
                },
                Part::Certificate,
                "can't be used",
            ),
            (
                "an empty CA",
                TlsSecrets { client_ca: Some(String::new()), ..good.clone() },
                Part::ClientCa,
                "no certificate",
            ),
        ];
        for (what, secrets, part, why) in cases {
            check(what, &secrets, Err((part, why)));
        }
    }

    #[test]
    fn the_same_secrets_keep_their_terms() {
        let mut compiler = Compiler::default();
        let (one, other) = (pair(), pair());
        let first = compiler.compile(one.clone()).unwrap();
        assert!(Arc::ptr_eq(&first, &compiler.compile(one.clone()).unwrap()));
        let broken = TlsSecrets { certificate: other.certificate.clone(), ..one.clone() };
        assert!(compiler.compile(broken).is_err());
        assert!(Arc::ptr_eq(&first, &compiler.compile(one).unwrap()), "a bad one takes nothing away");
        assert!(!Arc::ptr_eq(&first, &compiler.compile(other).unwrap()));
    }

    #[test]
    fn a_certificate_is_spoken_of_when_it_expires_soon() {
        let check = |left: i64, expected: Option<&str>| {
            let line = expiry_line(1_000_000_000 + left, 1_000_000_000);
            assert_eq!(
                line.as_deref().map(|line| line.split([':', ';']).next().unwrap()),
                expected,
                "{left}"
            );
        };
        check(14 * SECONDS_A_DAY, None);
        check(14 * SECONDS_A_DAY - 1, Some("the TLS certificate expires in 13 days"));
        check(1, Some("the TLS certificate expires in 0 days"));
        check(0, Some("the TLS certificate has expired"));
        check(i64::MIN, Some("the TLS certificate has expired"));
    }

    #[test]
    fn a_certificate_s_chain_is_kept() {
        let ca_key = KeyPair::generate().unwrap();
        let ca = CertificateParams::new(vec![]).unwrap().self_signed(&ca_key).unwrap();
        let good = pair();
        let chain = TlsSecrets { certificate: format!("{}{}", good.certificate, ca.pem()), ..good };
        check("two certificates", &chain, Ok(()));
    }
}
