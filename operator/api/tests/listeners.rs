//! What an instance may say of its listeners.

mod common;

use common::check;
use mqtt_operator_api::Kind;
use serde_json::json;

#[test]
fn listeners_have_ports_of_their_own_and_what_they_show() {
    check(
        Kind::MqttInstance,
        &json!({}),
        &[
            (json!({"listeners": {"mqtt": {"port": 2883}}}), None),
            (json!({"listeners": {"mqtt": {"port": 0}}}), Some("spec.listeners.mqtt.port: is 0")),
            (json!({"listeners": {"mqtt": {"port": 65536}}}), Some("spec.listeners.mqtt.port: is 65536")),
            (
                json!({"listeners": {"mqtt": {"port": 9090}}}),
                Some("spec.listeners: mqtt and admin need different ports"),
            ),
            (json!({"listeners": {"mqtts": {"secretRef": {"name": "meters-tls"}}}}), None),
            (
                json!({"listeners": {"mqtts": {"port": 8883, "secretRef": {"name": "meters-tls"},
                                               "clientCaSecretRef": {"name": "devices", "key": "ca.crt"}}}}),
                None,
            ),
            (
                json!({"listeners": {"mqtts": {"port": 8883}}}),
                Some("spec.listeners.mqtts.secretRef: is missing"),
            ),
            (
                json!({"listeners": {"mqtts": {"port": 0, "secretRef": {"name": "meters-tls"}}}}),
                Some("spec.listeners.mqtts.port: is 0"),
            ),
            (
                json!({"listeners": {"mqtts": {"port": 1883, "secretRef": {"name": "meters-tls"}}}}),
                Some("spec.listeners: mqtts needs a port of its own"),
            ),
            (
                json!({"listeners": {"admin": {"port": 8085}, "mqtts": {"secretRef": {"name": "meters-tls"}}}}),
                Some("spec.listeners: mqtts needs a port of its own"),
            ),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "a"}, "userFromCertificate": true}}}),
                Some("spec.listeners: mqtts.userFromCertificate needs mqtts.clientCaSecretRef"),
            ),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "a"}, "userFromCertificate": true,
                                               "clientCaSecretRef": {"name": "devices", "key": "ca.crt"}}}}),
                None,
            ),
            (json!({"listeners": {"proxyProtocol": ["mqtt", "mqtts", "ws", "wss"]}}), None),
            (json!({"listeners": {"proxyProtocol": ["admin"]}}), Some("spec.listeners.proxyProtocol[0]: ")),
            (json!({"listeners": {"ws": {}}}), None),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "a"}}, "ws": {"port": 80}, "wss": {},
                                     "origins": ["https://app.example", "http://localhost:3000"]}}),
                None,
            ),
            (
                json!({"listeners": {"wss": {}}}),
                Some("spec.listeners: wss shows the certificate of mqtts; add mqtts"),
            ),
            (
                json!({"listeners": {"ws": {"port": 1883}}}),
                Some("spec.listeners: ws needs a port of its own"),
            ),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "a"}}, "ws": {"port": 8085}}}),
                Some("spec.listeners: ws needs a port of its own"),
            ),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "a"}}, "ws": {}, "wss": {"port": 8083}}}),
                Some("spec.listeners: wss needs a port of its own"),
            ),
            (json!({"listeners": {"peers": {"secretRef": {"name": "peers"}}}}), None),
            (
                json!({"listeners": {"ws": {}, "peers": {"port": 8083}}}),
                Some("spec.listeners: peers needs a port of its own"),
            ),
            (json!({"listeners": {"peers": {}}}), None),
            (json!({"listeners": {"peers": {"port": 0}}}), Some("spec.listeners.peers.port: is 0")),
            (
                json!({"listeners": {"mqtt": {"port": 7883}}}),
                Some("spec.listeners: peers needs a port of its own"),
            ),
            (
                json!({"listeners": {"ws": {}, "origins": ["https://app.example/"]}}),
                Some("spec.listeners.origins[0]: \"https://app.example/\" "),
            ),
            (
                json!({"listeners": {"mqtts": {"secretRef": {"name": "meters-tls"},
                                               "clientCaSecretRef": {"name": "devices"}}}}),
                Some("spec.listeners.mqtts.clientCaSecretRef.key: is missing"),
            ),
        ],
    );
}
