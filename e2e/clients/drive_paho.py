"""Drives Eclipse Paho for Python by JSON lines; `clients.rs` describes them."""

import base64
import json
import ssl
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def say(event, **fields):
    # One write, so that lines of two threads never mix.
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Acks:
    """Pairs packet identifiers with the tags of the commands, whichever is known first."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tags = {}
        self.early = {}

    def sent(self, mid, tag):
        with self.lock:
            if mid not in self.early:
                self.tags[mid] = tag
                return
            reason = self.early.pop(mid)
        say("published", tag=tag, reason=reason)

    def acked(self, mid, reason):
        with self.lock:
            if mid not in self.tags:
                self.early[mid] = reason
                return
            tag = self.tags.pop(mid)
        say("published", tag=tag, reason=reason)


def connect(command):
    acks = Acks()
    version = command["version"]
    options = {} if version == 5 else {"clean_session": command["clean"]}
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=command["clientId"],
        protocol=version,
        reconnect_on_failure=command["reconnect"],
        transport="websockets" if command["webSocket"] else "tcp",
        **options,
    )
    client.reconnect_delay_set(0.05, 0.2)
    client.max_inflight_messages_set(100)
    if command.get("username") is not None:
        client.username_pw_set(command["username"], command.get("password"))
    if tls := command.get("tls"):
        context = ssl.create_default_context(cafile=tls["ca"])
        versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
        context.minimum_version = context.maximum_version = versions[tls["version"]]
        if tls["certificate"]:
            context.load_cert_chain(tls["certificate"], tls["key"])
        client.tls_set_context(context)
    if command.get("will"):
        will = command["will"]
        client.will_set(will["topic"], base64.b64decode(will["payload"]), will["qos"], will["retain"])

    def on_connect(_client, _data, flags, reason, _properties):
        if reason.value == 0:
            say("connected", sessionPresent=flags.session_present)
        else:
            say("refused", reason=reason.value)

    client.on_connect = on_connect
    client.on_disconnect = lambda _c, _d, _flags, reason, _p: say("closed", reason=reason.value)
    client.on_publish = lambda _c, _d, mid, reason, _p: acks.acked(mid, reason.value)
    client.on_subscribe = lambda _c, _d, _mid, reasons, _p: say("subscribed", reasons=[r.value for r in reasons])
    client.on_unsubscribe = lambda _c, _d, _mid, reasons, _p: say("unsubscribed", reasons=[r.value for r in reasons])
    client.on_message = lambda _c, _d, m: say(
        "message", topic=m.topic, payload=base64.b64encode(m.payload).decode(), qos=m.qos, retain=m.retain
    )

    arguments = {}
    if version == 5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = command["expiry"]
        first = mqtt.MQTT_CLEAN_START_FIRST_ONLY
        # A lost connection is taken up again with its session, as Paho does in v3.1.1 by itself.
        arguments = {"clean_start": first if command["clean"] else False, "properties": properties}
    client.connect_async(command["host"], command["port"], command["keepAlive"], **arguments)
    client.loop_start()
    return client, acks


def main():
    client = acks = None
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "connect":
                client, acks = connect(command)
            case "subscribe":
                client.subscribe(command["filter"], command["qos"])
            case "unsubscribe":
                client.unsubscribe(command["filter"])
            case "publish":
                payload = base64.b64decode(command["payload"])
                sent = client.publish(command["topic"], payload, command["qos"], command["retain"])
                acks.sent(sent.mid, command["tag"])
            case "disconnect":
                client.disconnect()


main()
