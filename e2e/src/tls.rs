//! TLS as devices use it: authorities and certificates made on the spot, and connections that see what they are met
//! with.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    PATIENCE,
    wire::{Dialogue, Login, Packet, Transport},
};

/// Makes certificates, and has its own as a file for clients that want one.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Which TLS a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    V12,
    V13,
}

/// How a client uses TLS.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub version: TlsVersion,
    ca: PathBuf,
    /// Certificate and key.
    pair: Option<(PathBuf, PathBuf)>,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = named(name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("ca.crt"), issuer.pem())?;
        Ok(Self { issuer, folder })
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for 127.0.0.1, of a server or a client.
    pub fn issue(&self, name: &str) -> Result<Pair> {
        self.issue_for(name, &[])
    }

    /// The same, valid until so many days from now.
    pub fn issue_until(&self, name: &str, days: i64) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = named(name)?;
        let now = SystemTime::now();
        let distance = Duration::from_secs(days.unsigned_abs() * 24 * 3600);
        let end = if days < 0 { now - distance } else { now + distance };
        params.not_after = end.into();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The same for further hosts: names or addresses.
    pub fn issue_for(&self, name: &str, hosts: &[String]) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = named(name)?;
        params.subject_alt_names.extend(CertificateParams::new(hosts)?.subject_alt_names);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The file of its certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A client that trusts this authority.
    pub fn client(&self, version: TlsVersion) -> ClientTls {
        ClientTls { version, ca: self.ca(), pair: None }
    }

    /// The same with a certificate of its own, kept among this authority's files.
    pub fn client_with(&self, version: TlsVersion, name: &str, pair: &Pair) -> Result<ClientTls> {
        let file = |suffix: &str, text: &str| -> Result<PathBuf> {
            let path = self.folder.path().join(format!("{name}.{suffix}"));
            fs::write(&path, text)?;
            Ok(path)
        };
        let pair = Some((file("crt", &pair.certificate)?, file("key", &pair.key)?));
        Ok(ClientTls { pair, ..self.client(version) })
    }
}

impl Pair {
    /// What a server with it shows.
    pub fn der(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)
    }
}

impl ClientTls {
    /// As the drivers of real clients read it.
    pub(crate) fn to_json(&self) -> Value {
        let version = match self.version {
            TlsVersion::V12 => "1.2",
            TlsVersion::V13 => "1.3",
        };
        let (certificate, key) = self.pair.clone().unzip();
        json!({"version": version, "ca": self.ca, "certificate": certificate, "key": key})
    }

    fn config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let version = match self.version {
            TlsVersion::V12 => &TLS12,
            TlsVersion::V13 => &TLS13,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots);
        let mut config = match &self.pair {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate)?],
                PrivateKeyDer::from_pem_file(key)?,
            )?,
        };
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        Ok(config)
    }
}

/// A TLS connection after its handshake.
#[derive(Debug)]
pub struct Tls(StreamOwned<ClientConnection, TcpStream>);

impl Tls {
    /// Connects; an alert of the broker is an error.
    pub fn connect(broker: SocketAddr, client: &ClientTls) -> Result<Self> {
        Self::connect_to(broker, broker.ip().into(), client)
    }

    /// The same to a broker that is known by a name.
    pub fn connect_by_name(broker: SocketAddr, name: &str, client: &ClientTls) -> Result<Self> {
        Self::connect_to(broker, ServerName::try_from(name.to_owned())?, client)
    }

    fn connect_to(broker: SocketAddr, name: ServerName<'static>, client: &ClientTls) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&broker, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Self::over_as(socket, client, name)
    }

    /// The same on a connection that is there.
    pub fn over(socket: TcpStream, client: &ClientTls) -> Result<Self> {
        let name = socket.peer_addr()?.ip().into();
        Self::over_as(socket, client, name)
    }

    fn over_as(socket: TcpStream, client: &ClientTls, name: ServerName<'static>) -> Result<Self> {
        let session = ClientConnection::new(Arc::new(client.config()?), name)?;
        let mut stream = StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("the TLS handshake")?;
        }
        Ok(Self(stream))
    }

    /// The certificate that the broker showed.
    pub fn seen(&self) -> Option<CertificateDer<'static>> {
        self.0.conn.peer_certificates()?.first().map(|certificate| certificate.clone().into_owned())
    }

    /// This end of it.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.sock.local_addr()?)
    }

    pub fn version(&self) -> Option<TlsVersion> {
        match self.0.conn.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Some(TlsVersion::V12),
            ProtocolVersion::TLSv1_3 => Some(TlsVersion::V13),
            _ => None,
        }
    }

    /// What was agreed on in ALPN.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.0.conn.alpn_protocol()
    }

    /// Goes on with MQTT: a connection that was accepted.
    pub fn login(self, login: &Login) -> Result<Dialogue> {
        let mut dialogue = Dialogue::over(Box::new(self), login.version);
        dialogue.send(&login.packet())?;
        match dialogue.read()? {
            Packet::ConnAck { code: 0, .. } => Ok(dialogue),
            other => anyhow::bail!("{} was not accepted: {other:?}", login.client_id),
        }
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Transport for Tls {
    fn wait_at_most(&self, limit: Duration) -> std::io::Result<()> {
        self.0.sock.set_read_timeout(Some(limit))
    }
}

fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
