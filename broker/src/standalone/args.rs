//! The flags of `mqtt-broker standalone`, and which store they ask for.

use std::{net::Ipv6Addr, path::PathBuf};

use super::manifests::Store;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("store").required(true).args(["data", "kafka"]))]
pub(crate) struct Args {
    /// Folder with the manifests (MqttInstance, ParentTopic, MqttUser, TopicGrant, Secret), watched for changes.
    #[arg(long)]
    pub(super) manifests: PathBuf,
    /// Folder for the stored messages; made when missing.
    #[arg(long)]
    pub(super) data: Option<PathBuf>,
    /// Store messages in Kafka, in place of --data: HOST:PORT of some of its brokers, with commas between them. TLS,
    /// login and copies are those of the manifest's spec.kafka; these addresses override its bootstrapServers.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = host_and_port)]
    pub(super) kafka: Vec<String>,
    /// The name of this node, if others serve devices from the same Kafka; each has one of its own, and keeps it.
    #[arg(long, value_name = "NAME", requires = "kafka", value_parser = node_name)]
    pub(super) node: Option<String>,
    /// Where this node takes what others pass on to it by links, HOST:PORT; without it all goes through Kafka. Without --peers-tls
    /// it is a loopback address, and so are those of the others.
    #[arg(long, value_name = "HOST:PORT", requires = "node", value_parser = host_and_port_or_none)]
    pub(super) peers: Option<String>,
    /// Where another node does, once for each.
    #[arg(long, value_name = "NAME=HOST:PORT", requires = "peers", value_parser = named_address)]
    pub(super) peer: Vec<(String, String)>,
    /// Folder with the certificate that this node shows to others (tls.crt, tls.key) and the CA that theirs come from (ca.crt).
    #[arg(long, value_name = "FOLDER", requires = "peers")]
    pub(super) peers_tls: Option<PathBuf>,
    /// Where devices connect, HOST:PORT; port 0 picks one. Overrides the manifest.
    #[arg(long)]
    pub(super) mqtt: Option<String>,
    /// The same over TLS, if the manifest has that listener. Overrides the manifest.
    #[arg(long)]
    pub(super) mqtts: Option<String>,
    /// The same over WebSocket, if the manifest has that listener. Overrides the manifest.
    #[arg(long)]
    pub(super) ws: Option<String>,
    /// The same over WebSocket and TLS, if the manifest has that listener. Overrides the manifest.
    #[arg(long)]
    pub(super) wss: Option<String>,
    /// Where the admin endpoint listens, HOST:PORT.
    #[arg(long)]
    pub(super) admin: Option<String>,
}

impl Args {
    pub(super) fn store(&self) -> Store {
        if self.kafka.is_empty() { Store::Embedded } else { Store::Kafka(self.kafka.clone()) }
    }
}

/// Names go into every record that says who holds a client: they are short.
pub(crate) fn node_name(text: &str) -> Result<String, &'static str> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let wrong = "write 1 to 63 letters, digits, '.', '_' or '-'";
    if is_name && (1..=63).contains(&text.len()) { Ok(text.to_owned()) } else { Err(wrong) }
}

/// A node's name, and where it is.
fn named_address(text: &str) -> Result<(String, String), &'static str> {
    let (name, address) =
        text.split_once('=').ok_or("write it as NAME=HOST:PORT, such as b=10.0.0.2:7883")?;
    Ok((node_name(name)?, host_and_port(address)?))
}

/// An address to listen on; port 0 picks one.
fn host_and_port_or_none(text: &str) -> Result<String, &'static str> {
    match text.strip_suffix(":0") {
        Some(host) => host_and_port(&format!("{host}:1")).map(|_| text.to_owned()),
        None => host_and_port(text),
    }
}

/// Holds an address to what spec.kafka.bootstrapServers may hold, and its port to what a port may be.
fn host_and_port(text: &str) -> Result<String, &'static str> {
    let wrong = "write it as HOST:PORT, such as kafka-0.kafka:9092 or [::1]:9092";
    let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
    let name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let good_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name(host),
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let good_port = digits && port.parse::<u16>().is_ok_and(|port| port > 0);
    if good_host && good_port { Ok(text.to_owned()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Standalone {
        #[command(flatten)]
        args: Args,
    }

    /// Parses flags beside `--manifests`, and compares the store, or the beginning of the error.
    fn check(flags: &[&str], expected: Result<Store, &str>) {
        let line = ["standalone", "--manifests", "m"].iter().chain(flags);
        match (Standalone::try_parse_from(line), expected) {
            (Ok(Standalone { args }), Ok(store)) => assert_eq!(args.store(), store, "{flags:?}"),
            (Err(error), Err(start)) => {
                let text = error.to_string();
                assert!(text.starts_with(start), "{flags:?}: {text}");
            }
            (parsed, expected) => panic!("{flags:?}: {parsed:?}, not {expected:?}"),
        }
    }

    #[test]
    fn the_store_is_kafka_or_a_folder_and_never_both() {
        let kafka =
            |servers: &[&str]| Store::Kafka(servers.iter().map(|&server| server.to_owned()).collect());
        check(&["--data", "d"], Ok(Store::Embedded));
        check(&["--kafka", "k:9092"], Ok(kafka(&["k:9092"])));
        check(
            &["--kafka", "kafka-0.kafka:9092,10.0.0.1:1,[::1]:65535,a_b:9092"],
            Ok(kafka(&["kafka-0.kafka:9092", "10.0.0.1:1", "[::1]:65535", "a_b:9092"])),
        );
        check(&["--kafka", "a:1", "--kafka", "b:2"], Ok(kafka(&["a:1", "b:2"])));
        check(
            &["--kafka", "k:9092", "--data", "d"],
            Err("error: the argument '--kafka <HOST:PORT>' cannot be used with '--data <DATA>'"),
        );
        check(
            &[],
            Err(
                "error: the following required arguments were not provided:\n  <--data <DATA>|--kafka <HOST:PORT>>\n",
            ),
        );
    }

    #[test]
    fn an_address_that_is_none_is_named_in_one_line() {
        for bad in [
            "",
            "kafka",
            "kafka:",
            ":9092",
            "kafka:0",
            "kafka:65536",
            "kafka:+1",
            "kafka:port",
            "a b:9092",
            "user@kafka:9092",
            "PLAINTEXT://kafka:9092",
            "::1:9092",
            "[::1]",
            "[::1:9092",
            "[]:9092",
            "[kafka]:9092",
            "größe:9092",
        ] {
            let why = "write it as HOST:PORT, such as kafka-0.kafka:9092 or [::1]:9092";
            let value = format!("good:9092,{bad}");
            let expected = format!("error: invalid value '{bad}' for '--kafka <HOST:PORT>': {why}\n");
            check(&["--kafka", &value], Err(&expected));
        }
    }
}
