//! Who a node is to others of its cluster: one certificate for both ends of a link, and the CA that all of theirs come from. Only
//! TLS 1.3 is spoken.

use std::{fmt, sync::Arc};

use mqtt_broker_api::config::TlsSecrets;
use tokio_rustls::rustls::{ClientConfig, ServerConfig, crypto::ring::default_provider, version::TLS13};

use crate::listener::tls::{self, Part, Unusable};

/// What is spoken over it, in ALPN.
const ALPN: &[u8] = b"h2";

/// See the module.
pub(crate) struct Identity {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// Makes identities of secrets; the same secrets keep theirs.
#[derive(Default)]
pub(crate) struct Compiler {
    last: Option<(TlsSecrets, Arc<Identity>)>,
}

impl Compiler {
    /// `client_ca` must be there.
    pub(crate) fn compile(&mut self, secrets: TlsSecrets) -> Result<Arc<Identity>, Unusable> {
        if let Some((last, identity)) = &self.last
            && *last == secrets
        {
            return Ok(identity.clone());
        }
        let identity = Arc::new(compile(&secrets)?);
        self.last = Some((secrets, identity.clone()));
        Ok(identity)
    }
}

fn compile(secrets: &TlsSecrets) -> Result<Identity, Unusable> {
    let missing = || Unusable { part: Part::ClientCa, why: "there is none".into() };
    let roots = tls::roots(secrets.client_ca.as_deref().ok_or_else(missing)?)?;
    let (chain, key) = tls::pair(secrets)?;
    let server = tls::server_config(secrets, &[&TLS13], ALPN)?;
    let unusable = |error: tokio_rustls::rustls::Error| Unusable { part: Part::Key, why: error.to_string() };
    let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(unusable)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Identity { server: Arc::new(server), client: Arc::new(client) })
}
