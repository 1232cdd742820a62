//! Certificates for one cluster: an authority, its servers' and a client's, as PEM files.

use std::{fs, path::PathBuf};

use anyhow::Result;

use super::{Pem, home::Home};
use crate::tls::Authority;

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
        let authority = Authority::new("Kafka tests")?;
        let server = authority.issue("kafka")?;
        let client = authority.issue("mqtt-broker")?;
        Ok(Self {
            ca: home.write("ca.pem", &authority.pem())?,
            server: home.write("server.pem", &[server.key, server.certificate].concat())?,
            client: (home.write("client.pem", &client.certificate)?, home.write("client.key", &client.key)?),
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
