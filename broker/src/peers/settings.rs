//! Where the nodes of a cluster find each other, and how they know that it is they.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;

use super::tls::Identity;

/// What stands for the name of a node in [`Addresses::Pattern`].
pub(crate) const NODE: &str = "${node}";

/// What links are made with; replaced while others stand.
pub(crate) type Current = ArcSwap<Settings>;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where this node listens for others, HOST:PORT; port 0 picks one.
    pub(crate) listen: String,
    pub(crate) addresses: Addresses,
    /// Absent: plain text, between loopback addresses alone.
    pub(crate) identity: Option<Arc<Identity>>,
}

/// Where other nodes listen, HOST:PORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// The same for all, but for their names.
    Pattern(String),
    Named(BTreeMap<String, String>),
}

impl Addresses {
    pub(crate) fn of(&self, node: &str) -> Option<String> {
        match self {
            Addresses::Pattern(pattern) => Some(pattern.replace(NODE, node)),
            Addresses::Named(addresses) => addresses.get(node).cloned(),
        }
    }
}

impl Settings {
    /// Whether anything may be said to, or heard from, this address.
    pub(crate) fn allow(&self, address: SocketAddr) -> bool {
        self.identity.is_some() || address.ip().to_canonical().is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_the_node_that_is_named() {
        let check = |addresses: &Addresses, node: &str, expected: Option<&str>| {
            assert_eq!(addresses.of(node).as_deref(), expected, "{addresses:?} {node}");
        };
        let pattern = Addresses::Pattern("${node}.meters-nodes.plant-a.svc:7883".into());
        check(&pattern, "meters-0", Some("meters-0.meters-nodes.plant-a.svc:7883"));
        let named = Addresses::Named([("b".to_owned(), "127.0.0.1:7884".to_owned())].into());
        check(&named, "b", Some("127.0.0.1:7884"));
        check(&named, "c", None);
    }

    #[test]
    fn plain_text_goes_to_loopback_addresses_alone() {
        let settings =
            Settings { listen: String::new(), addresses: Addresses::Named(BTreeMap::new()), identity: None };
        let check = |address: &str, expected: bool| {
            assert_eq!(settings.allow(address.parse().unwrap()), expected, "{address}");
        };
        check("127.0.0.1:1", true);
        check("127.9.9.9:1", true);
        check("[::1]:1", true);
        check("[::ffff:127.0.0.1]:1", true);
        check("0.0.0.0:1", false);
        check("10.0.0.1:1", false);
        check("[::]:1", false);
    }
}
