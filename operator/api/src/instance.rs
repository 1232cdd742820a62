//! `MqttInstance`: one MQTT service, its size, its limits and how sessions are kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    duration::Duration,
    parent_topic::DeletionPolicy,
    quantity::Quantity,
    refs::{self, NAMESPACE_OR_ALL, SecretKeyRef, SecretRef},
    rules,
    status::InstanceStatus,
    workload::{Monitoring, Pod, Service},
};

/// What an instance shall be.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mqtt.dms.dev",
    version = "v1alpha1",
    kind = "MqttInstance",
    namespaced,
    status = "InstanceStatus",
    derive = "PartialEq",
    shortname = "mqtti",
    category = "mqtt",
    doc = "One MQTT service: devices speak MQTT to its brokers, applications read what they stored.",
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].message"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(format!("self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"))
        .message(format!("the name of an MqttInstance is part of host names: use up to {NAME_LENGTH} lower-case letters, digits and '-', a letter first").as_str())
)]
#[serde(rename_all = "camelCase")]
pub struct MqttInstanceSpec {
    /// How many broker nodes.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 99))]
    pub replicas: u32,
    /// Limits of the whole instance; those that count something are shared evenly among the live nodes.
    #[serde(default)]
    pub limits: Limits,
    /// How sessions are kept while their devices are away.
    #[serde(default)]
    pub session: Session,
    /// The Kafka cluster that keeps what is stored; a standalone broker has an embedded store unless it is started
    /// with --kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<Kafka>,
    /// Who may connect besides the MqttUsers with their passwords.
    #[serde(default)]
    pub auth: Auth,
    /// Registered groups: devices with the client ID GROUP@@device are counted under GROUP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9._-]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub groups: Vec<String>,
    /// Other namespaces whose ParentTopics, MqttUsers and TopicGrants may name this instance, `*` standing for all of
    /// them; empty: those of its own namespace alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE_OR_ALL)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_namespaces: Vec<String>,
    /// When the instance ends: from then on devices are refused, and those that are there are closed; all that is stored stays.
    /// Move it to let devices in again. Absent: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), regex(pattern = rules::TIME))]
    pub expires_at: Option<Time>,
    /// While it is true the operator changes nothing of what runs the instance, nor of its Kafka topics: brokers go on as they are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub paused: bool,
    /// What becomes of what is the instance's own in Kafka (sessions, retained messages, `mq2mqtt` and the like), of topics that go with
    /// their ParentTopic, and of generated passwords, when this object is deleted. Retain: they stay for `retainFor`, and an
    /// instance that is created under the same name takes them back. Delete: they go at once.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How long they stay.
    #[serde(default = "fifteen_days")]
    #[schemars(extend("x-kubernetes-validations" = [rules::time_between("1s", "876000h")]))]
    pub retain_for: Duration,
    /// Where brokers listen.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self.mqtt.port != self.admin.port")
        .message("mqtt and admin need different ports; change one"))]
    #[x_kube(validation = Rule::new("!has(self.mqtts) || !(self.mqtts.port in [self.mqtt.port, self.admin.port])")
        .message("mqtts needs a port of its own; change it"))]
    #[x_kube(validation = Rule::new("!has(self.ws) || !(self.ws.port in [self.mqtt.port, self.admin.port]) && !(has(self.mqtts) && self.ws.port == self.mqtts.port)")
        .message("ws needs a port of its own; change it"))]
    #[x_kube(validation = Rule::new("!has(self.wss) || !(self.wss.port in [self.mqtt.port, self.admin.port]) && !(has(self.mqtts) && self.wss.port == self.mqtts.port) && !(has(self.ws) && self.wss.port == self.ws.port)")
        .message("wss needs a port of its own; change it"))]
    #[x_kube(validation = Rule::new("!has(self.mqtts) || !has(self.mqtts.userFromCertificate) || !self.mqtts.userFromCertificate || has(self.mqtts.clientCaSecretRef)")
        .message("mqtts.userFromCertificate needs mqtts.clientCaSecretRef, by which certificates are checked; add it"))]
    #[x_kube(validation = Rule::new("!has(self.wss) || has(self.mqtts)")
        .message("wss shows the certificate of mqtts; add mqtts"))]
    #[x_kube(validation = Rule::new("!(self.peers.port in [self.mqtt.port, self.admin.port]) && !(has(self.mqtts) && self.peers.port == self.mqtts.port) && !(has(self.ws) && self.peers.port == self.ws.port) && !(has(self.wss) && self.peers.port == self.wss.port)")
        .message("peers needs a port of its own; change it"))]
    pub listeners: Listeners,
    /// The Service through which devices reach the brokers on a cluster.
    #[serde(default)]
    pub service: Service,
    /// What the pods on a cluster may be told besides.
    #[serde(default)]
    pub pod: Pod,
    /// Who watches the brokers on a cluster.
    #[serde(default)]
    pub monitoring: Monitoring,
}

impl MqttInstanceSpec {
    /// Whether objects of another namespace may belong to the instance.
    pub fn allows(&self, namespace: &str) -> bool {
        refs::include(&self.allowed_namespaces, namespace)
    }
}

/// The longest name of an instance: a StatefulSet's may have 52 characters, and the operator's ends with 7 of its own.
pub const NAME_LENGTH: usize = 45;

/// Limits of the whole instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Connections at a time.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub connections: u64,
    /// Published messages a second; over it sockets are read more slowly, nothing is dropped.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub publish_rate: u64,
    /// Delivered messages a second; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub delivery_rate: Option<u64>,
    /// Subscriptions at a time.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub subscriptions: u64,
    /// New connections a second; over it they are accepted more slowly. Twice as many may be on their way to CONNECT: then
    /// the oldest of those gives way.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connect_rate: u64,
    /// Connections of one address (of IPv6: of a network of 64 bits) at a time; absent: no limit. Devices behind one router
    /// share an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub connections_per_address: Option<u64>,
    /// Bytes that a broker's process may take; absent: four fifths of the pod's limit, or of the machine. From nine tenths
    /// of it on new connections are refused; beyond it those for whom most waits are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [rules::bytes_between("64Mi", "1Ti")]))]
    pub memory: Option<Quantity>,
    /// Bytes of a whole MQTT packet.
    #[schemars(extend("x-kubernetes-validations" = [rules::bytes_between("128", "256Mi")]))]
    pub packet_size: Quantity,
    /// Characters of a client ID.
    #[schemars(range(min = 1, max = 65535))]
    pub client_id_length: u32,
    /// The longest keep alive: MQTT 5 clients that ask for a longer one, or for none, are told this one. Others keep their own;
    /// so does everybody where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [rules::time_between("1s", "65535s")]))]
    pub keep_alive: Option<Duration>,
    /// Which characters client IDs and topics may have.
    pub characters: Characters,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            publish_rate: 20_000,
            delivery_rate: None,
            subscriptions: 100_000,
            connect_rate: 2000,
            connections_per_address: None,
            memory: None,
            packet_size: Quantity::kibi(128),
            client_id_length: 128,
            keep_alive: None,
            characters: Characters::Any,
        }
    }
}

/// Any: what MQTT allows. Strict: letters, digits, `-`, `_`, `/`, `@@`, and wildcards in filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Characters {
    Any,
    Strict,
}

/// How sessions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    /// How long a persistent session is kept after its device left; MQTT 5 clients may ask for less.
    #[schemars(extend("x-kubernetes-validations" = [rules::time_between("0s", "8760h")]))]
    pub expiry: Duration,
    /// Messages (QoS 1 and 2) kept for a device while it is away; the oldest goes first.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub offline_messages: u32,
    /// The same while it is connected but slow; publishers wait for room before anything goes.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub online_messages: u32,
    /// Which member of a shared subscription ($share/GROUP/FILTER) gets a message.
    pub sharing: Sharing,
    /// The response information of MQTT 5: what a client that asks for it is told, by custom the beginning of the topics that
    /// answers may come to, such as replies/${clientId}; ${clientId} and ${username} stand for its own. What it may do there its
    /// grants say. Absent: it is told nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^[^\x00-\x1f\x7f]+$"),
        extend("x-kubernetes-validations" = [rules::placeholders()])
    )]
    pub response_information: Option<String>,
}

/// RoundRobin: one after the other. HashClientId: the same for all that one client publishes. Sticky: the same as
/// before, until it goes. Members that are connected come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Sharing {
    RoundRobin,
    HashClientId,
    Sticky,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            expiry: Duration::hours(2),
            offline_messages: 10,
            online_messages: 1000,
            sharing: Sharing::RoundRobin,
            response_information: None,
        }
    }
}

/// The Kafka cluster behind an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kafka {
    /// HOST:PORT of some of its brokers. On a cluster brokers may connect to these ports alone: name one server at
    /// least for each port that Kafka's listeners advertise.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 300)))]
    #[x_kube(validation = Rule::new(r"self.all(s, s.matches('^(\\[[0-9a-fA-F:.]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$'))")
        .message("each server is HOST:PORT, such as kafka-0.kafka:9092"))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub bootstrap_servers: Vec<String>,
    /// Copies that Kafka keeps of each record.
    #[serde(default = "three_copies")]
    #[schemars(range(min = 1, max = 32))]
    pub replication_factor: u16,
    /// Where the brokers of this instance are, in the words of Kafka's broker.rack: reads go to a replica there, if
    /// Kafka has a replica.selector.class that allows it. Absent: reads go to leaders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = PRINTABLE))]
    pub rack: Option<String>,
    /// Encrypts connections to Kafka, and checks the certificates of its brokers, names included; absent: connections
    /// are not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<KafkaTls>,
    /// How to log in to Kafka; absent: no login (but see tls.certificateSecretRef).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
}

/// No control characters.
const PRINTABLE: &str = r"^[^\x00-\x1f\x7f]+$";

/// TLS between the instance and Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTls {
    /// The certificates (PEM) of the CAs that Kafka's certificates are checked against; absent: those that the
    /// system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// A Secret of the type kubernetes.io/tls: its tls.crt and tls.key (PEM, the key not encrypted) prove to Kafka who
    /// connects. Absent: no certificate is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<SecretRef>,
}

/// The login of the instance at Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// How the password is proven. PLAIN shows it to whoever reads the connection, so use it with tls alone.
    pub mechanism: SaslMechanism,
    /// The user at Kafka.
    #[schemars(length(min = 1, max = 255), regex(pattern = PRINTABLE))]
    pub username: String,
    /// Where the password is.
    pub password_secret_ref: SecretKeyRef,
}

/// PLAIN: the password is sent as it is. SCRAM-SHA-256, SCRAM-SHA-512: only a proof of it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// Who may connect besides users with a password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Auth {
    /// Connections without credentials act as this MqttUser (its name, in the instance's namespace), which may
    /// lack a password; absent: they are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::refs::NAME))]
    pub anonymous_user: Option<String>,
}

/// Where brokers listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Listeners {
    /// MQTT over TCP, on all addresses.
    pub mqtt: Listener,
    /// MQTT over TLS (1.2 and 1.3), on all addresses; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtts: Option<TlsListener>,
    /// MQTT over WebSocket, on all addresses, under any path; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ws: Option<WsListener>,
    /// The same over TLS, with the certificate of mqtts and what that asks of devices; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wss: Option<WssListener>,
    /// Links between the brokers of the instance on a cluster, by which they pass on to each other what is for clean
    /// sessions. While there is none between two of them, it goes through Kafka.
    pub peers: PeersListener,
    /// Web pages of these origins, such as https://app.example, may open WebSockets; empty: those of all. Devices name no
    /// origin and are let in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(length(max = 300), regex(pattern = r"^[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]{1,5})?$"))
    )]
    pub origins: Vec<String>,
    /// Listeners that proxies stand before which say by the PROXY protocol (version 1 or 2) whom they speak for. There a
    /// connection without its header is refused, so name one only if nobody else can reach it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub proxy_protocol: Vec<DeviceListener>,
    /// Where else devices find the service, as HOST or HOST:PORT (several with spaces between): MQTT 5 clients are told so
    /// when a broker that stops lets them go. Absent: they are told that it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^[A-Za-z0-9._:\[\]-]+( [A-Za-z0-9._:\[\]-]+)*$")
    )]
    pub server_reference: Option<String>,
    /// The admin endpoint; a standalone broker has it on 127.0.0.1 alone.
    pub admin: Listener,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            mqtt: Listener { port: 1883 },
            mqtts: None,
            ws: None,
            wss: None,
            peers: PeersListener::default(),
            origins: Vec::new(),
            proxy_protocol: Vec::new(),
            server_reference: None,
            admin: Listener { port: 9090 },
        }
    }
}

/// A listener that devices come to, by its name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DeviceListener {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
}

/// A TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// A TCP port with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsListener {
    #[serde(default = "mqtts_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// A Secret of the type kubernetes.io/tls: its tls.crt and tls.key (PEM, the key not encrypted) prove to devices who
    /// answers. A change is in force for new connections, and closes none.
    pub secret_ref: SecretRef,
    /// The certificates (PEM) of the CAs that devices' certificates must come from; absent: devices need none. Users
    /// and passwords are asked for all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_secret_ref: Option<SecretKeyRef>,
    /// The common name of the subject in a device's certificate is its user name, and the certificate takes the password's
    /// place. A device whose certificate has no common name logs in as others do.
    #[serde(default, skip_serializing_if = "is_false")]
    pub user_from_certificate: bool,
}

fn fifteen_days() -> Duration {
    Duration::hours(15 * 24)
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn mqtts_port() -> u16 {
    8085
}

/// A TCP port for WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WsListener {
    #[serde(default = "ws_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
}

fn ws_port() -> u16 {
    8083
}

/// A TCP port for WebSocket over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WssListener {
    #[serde(default = "wss_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
}

fn wss_port() -> u16 {
    8084
}

/// A TCP port for the brokers of the instance alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeersListener {
    #[schemars(range(min = 1))]
    pub port: u16,
    /// A Secret of the type kubernetes.io/tls, as cert-manager makes it: its tls.crt and tls.key (PEM, the key not encrypted)
    /// prove to a broker that another one calls or answers, and ca.crt is what their certificates are checked against. They
    /// are for the name *.INSTANCE-nodes.NAMESPACE.svc, as server and as client, and of a CA that gives nobody else any. A
    /// change is in force for new links. Absent: the operator makes them, and makes them anew in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

impl Default for PeersListener {
    fn default() -> Self {
        Self { port: 7883, secret_ref: None }
    }
}

fn three() -> u32 {
    3
}

fn three_copies() -> u16 {
    3
}
