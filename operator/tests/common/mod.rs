//! Manifests to build from, and the way from them to objects.

// Each test takes what it needs of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs;

use mqtt_broker_api::config::TlsSecrets;
use mqtt_operator::instance::build::{Built, Options, build};
use mqtt_operator_api::{
    manifests,
    render::{Problem, Rendered, hash, render},
    validate::Validator,
};

pub const MINIMAL: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttInstance
metadata: {name: meters, namespace: plant, uid: 6d1c0f0e-0000-4000-8000-000000000001}
spec:
  replicas: 1
  kafka: {bootstrapServers: [\"kafka-0.kafka:9092\"], replicationFactor: 1}
";

pub const FULL: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttInstance
metadata: {name: meters, namespace: plant, uid: 6d1c0f0e-0000-4000-8000-000000000001}
spec:
  replicas: 3
  limits: {connections: 5000, publishRate: 700, deliveryRate: 800, subscriptions: 900, packetSize: 1Mi,
           clientIdLength: 64, keepAlive: 20m, characters: Strict, connectRate: 50, connectionsPerAddress: 5, memory: 1Gi}
  session: {expiry: 30m, offlineMessages: 7, onlineMessages: 70, sharing: Sticky, responseInformation: \"replies/${clientId}\"}
  kafka:
    bootstrapServers: [\"kafka-0.kafka:9093\", \"[2001:db8::1]:9094\", \"kafka-1.kafka:9093\"]
    replicationFactor: 3
    rack: zone-a
    tls:
      caSecretRef: {name: kafka, key: ca.pem}
      certificateSecretRef: {name: kafka}
    sasl: {mechanism: SCRAM-SHA-512, username: mqtt, passwordSecretRef: {name: kafka, key: password}}
  auth: {anonymousUser: guest}
  groups: [GID-home, GID-plant]
  expiresAt: \"2036-01-31T12:00:00Z\"
  listeners:
    mqtt: {port: 2883}
    mqtts:
      port: 443
      secretRef: {name: meters-tls}
      clientCaSecretRef: {name: devices, key: ca.crt}
      userFromCertificate: true
    ws: {port: 8083}
    wss: {port: 444}
    peers: {port: 7884, secretRef: {name: peers}}
    origins: [\"https://app.example\", \"http://localhost:3000\"]
    proxyProtocol: [mqtts, wss]
    serverReference: mqtt.example:443
    admin: {port: 9091}
  service: {type: NodePort, annotations: {example.com/team: \"plant: A\"}}
  pod:
    image: registry.example:5000/mqtt-broker@sha256:0123
    imagePullSecrets: [{name: registry}]
    resources: {requests: {cpu: 2, memory: 1.5Gi}, limits: {memory: 2Gi}}
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [mqtt]}]}]
    tolerations: [{key: dedicated, operator: Equal, value: mqtt, effect: NoSchedule}]
    priorityClassName: high
    labels: {team: plant}
    annotations: {example.com/note: \"true\"}
    logLevel: debug
  monitoring: {serviceMonitor: true, labels: {release: prometheus}, namespace: monitoring}
---
apiVersion: v1
kind: Secret
metadata: {name: kafka, namespace: plant}
stringData:
  ca.pem: \"-----BEGIN CERTIFICATE-----\\ns3cret-kafka-ca\\n\"
  tls.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-kafka-certificate\\n\"
  tls.key: \"-----BEGIN PRIVATE KEY-----\\ns3cret-kafka-key\\n\"
  password: s3cret-kafka-password
---
apiVersion: v1
kind: Secret
metadata: {name: meters-tls, namespace: plant}
stringData:
  tls.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-certificate\\n\"
  tls.key: \"-----BEGIN PRIVATE KEY-----\\ns3cret-key\\n\"
---
apiVersion: v1
kind: Secret
metadata: {name: peers, namespace: plant}
stringData:
  tls.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-peers-certificate\\n\"
  tls.key: \"-----BEGIN PRIVATE KEY-----\\ns3cret-peers-key\\n\"
  ca.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-peers-ca\\n\"
---
apiVersion: v1
kind: Secret
metadata: {name: devices, namespace: plant}
stringData: {ca.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-devices\\n\"}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttUser
metadata: {name: guest, namespace: plant}
spec: {instanceRef: {name: meters}}
";

/// A user with a password and one right.
pub fn user(name: &str) -> String {
    format!(
        "---
apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttUser
metadata: {{name: {name}, namespace: plant}}
spec: {{instanceRef: {{name: meters}}, passwordSecretRef: {{name: {name}, key: password}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: {name}, namespace: plant}}
stringData: {{password: s3cret-of-{name}}}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: TopicGrant
metadata: {{name: {name}, namespace: plant}}
spec: {{instanceRef: {{name: meters}}, userRef: {{name: {name}}}, rules: [{{action: pub, filter: readings/{name}}}]}}
"
    )
}

/// A parent topic.
pub fn parent(name: &str) -> String {
    format!(
        "---
apiVersion: mqtt.dms.dev/v1alpha1
kind: ParentTopic
metadata: {{name: {name}, namespace: plant}}
spec: {{instanceRef: {{name: meters}}}}
"
    )
}

pub fn options() -> Options {
    Options { image: "mqtt-broker:1".into(), ..Options::default() }
}

/// Builds from the documents of one file. Salts are all the same, and so is what brokers show each other where the instance
/// names nothing, so that the outcome is.
pub fn built(manifests: &str, options: &Options) -> (Rendered, Result<Built, Vec<Problem>>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    let read = manifests::read(folder.path(), &Validator::new().unwrap()).unwrap();
    let objects = read.good().unwrap();
    let mut rendered = render(&objects, 1, |password| Some(hash(*b"salt-of-16-bytes", password.value)));
    if objects.instance.spec.listeners.peers.secret_ref.is_none() {
        rendered.peers_secrets = Some(TlsSecrets {
            certificate: "s3cret-issued-certificate".into(),
            key: "s3cret-issued-key".into(),
            client_ca: Some("s3cret-issued-ca".into()),
        });
    }
    let built = build(&objects.instance, &rendered, options);
    (rendered, built)
}

/// Builds from what must be in order.
pub fn good(manifests: &str, options: &Options) -> (Rendered, Built) {
    let (rendered, built) = built(manifests, options);
    assert_eq!(rendered.problems, []);
    (rendered, built.unwrap())
}
