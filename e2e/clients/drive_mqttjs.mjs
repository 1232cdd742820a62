// Drives MQTT.js by JSON lines; `clients.rs` describes them.

import fs from "node:fs";
import readline from "node:readline";
import mqtt from "mqtt";

/** MQTT 3.1.1's CONNACK return codes in MQTT 5's numbers. */
const REASONS_OF_V4 = { 1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87 };

const say = (event, fields) => process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");

function connect(command) {
  const v5 = command.version === 5;
  const will = command.will && { ...command.will, payload: Buffer.from(command.will.payload, "base64") };
  const tls = command.tls;
  const file = (path) => (path ? fs.readFileSync(path) : undefined);
  const client = mqtt.connect({
    protocol: command.webSocket ? (tls ? "wss" : "ws") : tls ? "mqtts" : "mqtt",
    path: "/mqtt",
    ...(tls && {
      ca: file(tls.ca),
      cert: file(tls.certificate),
      key: file(tls.key),
      minVersion: `TLSv${tls.version}`,
      maxVersion: `TLSv${tls.version}`,
    }),
    host: command.host,
    port: command.port,
    protocolVersion: command.version,
    protocolId: command.version === 3 ? "MQIsdp" : "MQTT",
    clientId: command.clientId,
    username: command.username ?? undefined,
    password: command.password ?? undefined,
    clean: command.clean,
    keepalive: command.keepAlive,
    reconnectPeriod: command.reconnect ? 50 : 0,
    resubscribe: false,
    will: will ?? undefined,
    properties: v5 ? { sessionExpiryInterval: command.expiry } : undefined,
  });
  let reason = 0;
  client.on("connect", (connack) => say("connected", { sessionPresent: connack.sessionPresent }));
  client.on("error", (error) => {
    const code = v5 ? error.code : REASONS_OF_V4[error.code];
    if (typeof code === "number") say("refused", { reason: code });
  });
  client.on("disconnect", (packet) => (reason = packet.reasonCode ?? 0));
  client.on("close", () => say("closed", { reason }));
  client.on("message", (topic, payload, packet) =>
    say("message", { topic, payload: payload.toString("base64"), qos: packet.qos, retain: packet.retain }),
  );
  return client;
}

let client;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  switch (command.do) {
    case "connect":
      client = connect(command);
      break;
    case "subscribe":
      client.subscribe(command.filter, { qos: command.qos }, (error, granted, suback) =>
        say("subscribed", { reasons: suback?.granted ?? granted?.map((each) => each.qos) ?? [error?.code ?? 0x80] }),
      );
      break;
    case "unsubscribe":
      client.unsubscribe(command.filter, (_error, unsuback) => say("unsubscribed", { reasons: unsuback?.granted ?? [] }));
      break;
    case "publish": {
      const payload = Buffer.from(command.payload, "base64");
      client.publish(command.topic, payload, { qos: command.qos, retain: command.retain }, (error) =>
        say("published", { tag: command.tag, reason: error ? (error.code ?? 0x80) : 0 }),
      );
      break;
    }
    case "disconnect":
      client.end();
      break;
  }
}
process.exit(0);
