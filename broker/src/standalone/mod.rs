//! `mqtt-broker standalone`: one node, steered by a folder of manifests, with the embedded store or Kafka.

mod args;
pub(crate) mod manifests;

use std::{path::PathBuf, process::ExitCode};

pub(crate) use self::args::{Args, node_name};
use self::manifests::Manifests;
use crate::{
    peers::{self, Addresses},
    process::{self, Documents, Source},
    run::read_identity,
};

pub(crate) fn run(args: Args) -> ExitCode {
    match Manifests::new(&args.manifests, args.store()) {
        Ok(manifests) => process::run(Standalone { args, manifests, identities: Default::default() }),
        Err(error) => {
            eprintln!("mqtt-broker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The manifests, as the flags would have them.
struct Standalone {
    args: Args,
    manifests: Manifests,
    identities: peers::tls::Compiler,
}

impl Standalone {
    /// How other nodes are reached, if by links.
    fn peers(&mut self) -> Result<Option<peers::Settings>, Vec<String>> {
        let Args { peers: Some(listen), peer, peers_tls, .. } = &self.args else { return Ok(None) };
        let addresses = Addresses::Named(peer.iter().cloned().collect());
        let identity = peers_tls.as_ref().map(|folder| read_identity(&mut self.identities, folder));
        let identity = identity.transpose().map_err(|problem| vec![problem])?;
        Ok(Some(peers::Settings { listen: listen.clone(), addresses, identity }))
    }
}

impl Source for Standalone {
    const NAME: &'static str = "manifests";

    fn watched(&self) -> Vec<PathBuf> {
        [&self.args.manifests].into_iter().chain(&self.args.peers_tls).cloned().collect()
    }

    fn load(&mut self) -> Result<Documents, Vec<String>> {
        let loaded = self.manifests.load();
        let loaded =
            loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let manifests::Loaded { mut config, kafka_secrets, tls, acl, mut warnings } = loaded;
        let Args { data, node, mqtt, mqtts, ws, wss, admin, .. } = &self.args;
        let listeners = &mut config.listeners;
        for (flag, listener) in [(mqtt, &mut listeners.mqtt), (admin, &mut listeners.admin)] {
            if let Some(address) = flag {
                listener.clone_from(address);
            }
        }
        for (name, flag, listener) in [
            ("mqtts", mqtts, &mut listeners.mqtts),
            ("ws", ws, &mut listeners.ws),
            ("wss", wss, &mut listeners.wss),
        ] {
            match (flag, listener) {
                (Some(address), Some(listener)) => listener.clone_from(address),
                (Some(_), None) => warnings
                    .push(format!("--{name} is ignored: the MqttInstance has no spec.listeners.{name}")),
                (None, _) => {}
            }
        }
        let (acl, data, config_hash) = (Some(acl), data.clone(), None);
        let (node, peers) = (node.clone(), self.peers()?);
        Ok(Documents { config, config_hash, kafka_secrets, tls, acl, data, node, peers, warnings })
    }

    fn address_is_set(listener: &str) -> String {
        format!("with --{listener}")
    }
}
