//! MQTT over TLS 1.2 and 1.3: what the broker shows to devices, and the handshake before a connection.
//!
//! Promises: new secrets count for new connections and close none; secrets that can't serve are told before they are
//! in force; a client that does not finish its handshake holds nobody up, and not for long.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mqtt_broker_api::config::TlsSecrets;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring::{Ticketer, default_provider},
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};

use crate::{connection, limits::notice, node::Node};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the protocol is called in ALPN; a client need not name one.
const ALPN: &[u8] = b"mqtt";

/// What new connections are met with; replaced while others live.
pub(crate) type Terms = ArcSwap<ServerConfig>;

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
            Part::ClientCa => "the CA of devices",
        })
    }
}

/// Makes terms of secrets; the same secrets keep their terms, and with them the tickets that clients resume with.
#[derive(Default)]
pub(crate) struct Compiler {
    last: Option<(TlsSecrets, Arc<ServerConfig>)>,
}

impl Compiler {
    pub(crate) fn compile(&mut self, secrets: TlsSecrets) -> Result<Arc<ServerConfig>, Unusable> {
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

fn compile(secrets: &TlsSecrets) -> Result<ServerConfig, Unusable> {
    let chain = certificates(&secrets.certificate, Part::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(secrets.key.as_bytes())
        .map_err(|error| Unusable { part: Part::Key, why: pem_error(&error) })?;
    let provider = Arc::new(default_provider());
    let verifier: Arc<dyn ClientCertVerifier> = match &secrets.client_ca {
        None => Arc::new(NoClientAuth),
        Some(ca) => {
            let unusable = |why: String| Unusable { part: Part::ClientCa, why };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca, Part::ClientCa)? {
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| unusable(error.to_string()))?
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])
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
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Clients keep what they resume with: the broker remembers nothing of them.
    config.ticketer =
        Ticketer::new().map_err(|error| Unusable { part: Part::Key, why: error.to_string() })?;
    Ok(config)
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

/// Accepts connections until `shutdown` says true. Each gets a task of its own, its handshake included.
pub(crate) async fn listen(
    node: Arc<Node>,
    listener: TcpListener,
    terms: Arc<Terms>,
    shutdown: watch::Receiver<bool>,
) {
    let serve = |stream, peer| drop(tokio::spawn(serve(node.clone(), stream, peer, terms.load_full())));
    super::accept(listener, shutdown, serve).await;
}

async fn serve(node: Arc<Node>, stream: TcpStream, peer: SocketAddr, terms: Arc<ServerConfig>) {
    // Boxed: an idle connection's task should hold no room for a handshake.
    let handshake = Box::pin(timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(terms).accept(stream)));
    let why = match handshake.await {
        Ok(Ok(stream)) => return connection::serve(node, Box::new(stream), peer).await,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not finished within {} s", HANDSHAKE_TIMEOUT.as_secs()),
    };
    node.counters.tls_handshakes_failed.add(1);
    notice!(node, tls_handshake, %peer, "TLS handshake failed: {why}");
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
    fn a_certificate_s_chain_is_kept() {
        let ca_key = KeyPair::generate().unwrap();
        let ca = CertificateParams::new(vec![]).unwrap().self_signed(&ca_key).unwrap();
        let good = pair();
        let chain = TlsSecrets { certificate: format!("{}{}", good.certificate, ca.pem()), ..good };
        check("two certificates", &chain, Ok(()));
    }
}
