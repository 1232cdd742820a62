//! Certificates for one cluster: an authority, its servers' and a client's, as PEM files.

use std::{fs, path::PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::{Pem, home::Home};

pub(super) struct Tls {
    /// The authority's certificate.
    pub(super) ca: PathBuf,
    /// Certificate and key of every node, for 127.0.0.1 and localhost.
    pub(super) server: PathBuf,
    /// A client's certificate, and its key.
    pub(super) client: (PathBuf, PathBuf),
}

impl Tls {
    pub(super) fn make(home: &Home) -> Result<Self> {
        let mut params = named("Kafka tests", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |name, hosts: &[&str]| -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            let certificate = named(name, hosts)?.signed_by(&key, &authority)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (server, server_key) = issue("kafka", &["127.0.0.1", "localhost"])?;
        let (client, client_key) = issue("mqtt-broker", &[])?;
        Ok(Self {
            ca: home.write("ca.pem", &authority.pem())?,
            server: home.write("server.pem", &format!("{server_key}{server}"))?,
            client: (home.write("client.pem", &client)?, home.write("client.key", &client_key)?),
        })
    }

    pub(super) fn for_clients(&self) -> Result<Pem> {
        let (certificate, key) = &self.client;
        Ok(Pem {
            ca: fs::read_to_string(&self.ca)?,
            certificate: fs::read_to_string(certificate)?,
            key: fs::read_to_string(key)?,
        })
    }
}

fn named(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
