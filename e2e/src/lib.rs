//! The end-to-end harness: starts the built broker as a user would, and drives it with real clients.
//!
//! It knows the broker only from outside: its command line, its manifests, its log lines and MQTT. Nothing
//! here uses the broker's own code, so a mistake there can't hide itself.

pub mod bench;
pub mod broker;
pub mod clients;
pub mod cluster;
pub mod fleet;
pub mod hostile;
pub mod kafka;
pub mod kubernetes;
pub mod load;
pub mod manifests;
pub mod passage;
pub mod rumqttd_stoppers;
pub mod store;
pub mod tls;
pub mod volume;
pub mod wait;
pub mod wire;
pub mod ws;

pub use broker::Broker;
pub use clients::{Client, Driver};
pub use cluster::Cluster;
pub use fleet::{Fleet, FleetOptions};
pub use manifests::Manifests;
pub use store::{Store, on_kafka};
pub use tls::{Authority, ClientTls, Tls, TlsVersion};
pub use volume::Volume;
pub use wait::{PATIENCE, wait_until};
pub use wire::{Dialogue, Login, Packet, Version};
pub use ws::Ws;
