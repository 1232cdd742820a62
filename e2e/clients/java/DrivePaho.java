// Drives Eclipse Paho for Java, one library for each version of MQTT, by JSON lines; `clients.rs` describes them.

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Base64;
import java.util.function.Consumer;
import org.eclipse.paho.client.mqttv3.IMqttActionListener;
import org.eclipse.paho.client.mqttv3.IMqttDeliveryToken;
import org.eclipse.paho.client.mqttv3.IMqttToken;
import org.eclipse.paho.client.mqttv3.MqttAsyncClient;
import org.eclipse.paho.client.mqttv3.MqttCallback;
import org.eclipse.paho.client.mqttv3.MqttConnectOptions;
import org.eclipse.paho.client.mqttv3.MqttException;
import org.eclipse.paho.client.mqttv3.MqttMessage;
import org.eclipse.paho.client.mqttv3.persist.MemoryPersistence;
import org.eclipse.paho.mqttv5.client.MqttConnectionOptions;
import org.eclipse.paho.mqttv5.client.MqttDisconnectResponse;
import org.eclipse.paho.mqttv5.common.packet.MqttProperties;

class DrivePaho {
    /** What one library does for a command. */
    interface Library {
        void connect(JsonObject command) throws Exception;

        void subscribe(String filter, int qos) throws Exception;

        void unsubscribe(String filter) throws Exception;

        void publish(long tag, String topic, byte[] payload, int qos, boolean retain) throws Exception;

        void disconnect() throws Exception;
    }

    static synchronized void say(String event, Consumer<JsonObject> fields) {
        JsonObject line = new JsonObject();
        line.addProperty("event", event);
        fields.accept(line);
        System.out.println(line);
        System.out.flush();
    }

    static void sayReasons(String event, int[] reasons) {
        JsonArray array = new JsonArray();
        if (reasons != null) {
            for (int reason : reasons) array.add(reason);
        }
        say(event, line -> line.add("reasons", array));
    }

    static void sayReason(String event, int reason) {
        say(event, line -> line.addProperty("reason", reason));
    }

    static void sayPublished(long tag, int reason) {
        say("published", line -> {
            line.addProperty("tag", tag);
            line.addProperty("reason", reason);
        });
    }

    static void sayMessage(String topic, byte[] payload, int qos, boolean retain) {
        say("message", line -> {
            line.addProperty("topic", topic);
            line.addProperty("payload", Base64.getEncoder().encodeToString(payload));
            line.addProperty("qos", qos);
            line.addProperty("retain", retain);
        });
    }

    static String address(JsonObject command) {
        return "tcp://" + command.get("host").getAsString() + ":" + command.get("port").getAsInt();
    }

    static String text(JsonObject command, String name) {
        return command.has(name) && !command.get(name).isJsonNull() ? command.get(name).getAsString() : null;
    }

    static JsonObject will(JsonObject command) {
        return command.has("will") && command.get("will").isJsonObject() ? command.getAsJsonObject("will") : null;
    }

    static byte[] payload(JsonObject from) {
        return Base64.getDecoder().decode(from.get("payload").getAsString());
    }

    static class Version3 implements Library {
        /** CONNACK's return codes in MQTT 5's numbers. */
        static final int[] REASONS = {0, 0x84, 0x85, 0x88, 0x86, 0x87};

        MqttAsyncClient client;

        public void connect(JsonObject command) throws Exception {
            client = new MqttAsyncClient(address(command), command.get("clientId").getAsString(), new MemoryPersistence());
            client.setCallback(new MqttCallback() {
                public void connectionLost(Throwable cause) {
                    sayReason("closed", 0);
                }

                public void messageArrived(String topic, MqttMessage message) {
                    sayMessage(topic, message.getPayload(), message.getQos(), message.isRetained());
                }

                public void deliveryComplete(IMqttDeliveryToken token) {}
            });
            MqttConnectOptions options = new MqttConnectOptions();
            options.setMqttVersion(MqttConnectOptions.MQTT_VERSION_3_1_1);
            options.setCleanSession(command.get("clean").getAsBoolean());
            options.setKeepAliveInterval(command.get("keepAlive").getAsInt());
            options.setAutomaticReconnect(command.get("reconnect").getAsBoolean());
            options.setMaxInflight(100);
            if (text(command, "username") != null) options.setUserName(text(command, "username"));
            if (text(command, "password") != null) options.setPassword(text(command, "password").toCharArray());
            JsonObject will = will(command);
            if (will != null) {
                options.setWill(will.get("topic").getAsString(), payload(will), will.get("qos").getAsInt(),
                    will.get("retain").getAsBoolean());
            }
            try {
                IMqttToken token = client.connect(options);
                token.waitForCompletion();
                boolean present = token.getSessionPresent();
                say("connected", line -> line.addProperty("sessionPresent", present));
            } catch (MqttException refused) {
                int code = refused.getReasonCode();
                sayReason("refused", code < REASONS.length ? REASONS[code] : 0x80);
            }
        }

        public void subscribe(String filter, int qos) throws Exception {
            IMqttToken token = client.subscribe(filter, qos);
            try {
                token.waitForCompletion();
            } catch (MqttException refused) {
                // The codes say it.
            }
            sayReasons("subscribed", token.getGrantedQos());
        }

        public void unsubscribe(String filter) throws Exception {
            client.unsubscribe(filter).waitForCompletion();
            sayReasons("unsubscribed", null);
        }

        public void publish(long tag, String topic, byte[] payload, int qos, boolean retain) throws Exception {
            client.publish(topic, payload, qos, retain, null, new IMqttActionListener() {
                public void onSuccess(IMqttToken token) {
                    sayPublished(tag, 0);
                }

                public void onFailure(IMqttToken token, Throwable cause) {
                    sayPublished(tag, 0x80);
                }
            });
        }

        public void disconnect() throws Exception {
            client.disconnect().waitForCompletion();
            sayReason("closed", 0);
        }
    }

    static class Version5 implements Library {
        org.eclipse.paho.mqttv5.client.MqttAsyncClient client;

        public void connect(JsonObject command) throws Exception {
            client = new org.eclipse.paho.mqttv5.client.MqttAsyncClient(address(command),
                command.get("clientId").getAsString(), new org.eclipse.paho.mqttv5.client.persist.MemoryPersistence());
            client.setCallback(new org.eclipse.paho.mqttv5.client.MqttCallback() {
                public void disconnected(MqttDisconnectResponse response) {
                    sayReason("closed", response.getReturnCode());
                }

                public void mqttErrorOccurred(org.eclipse.paho.mqttv5.common.MqttException error) {}

                public void messageArrived(String topic, org.eclipse.paho.mqttv5.common.MqttMessage message) {
                    sayMessage(topic, message.getPayload(), message.getQos(), message.isRetained());
                }

                public void deliveryComplete(org.eclipse.paho.mqttv5.client.IMqttToken token) {}

                public void connectComplete(boolean again, String address) {}

                public void authPacketArrived(int reason, MqttProperties properties) {}
            });
            MqttConnectionOptions options = new MqttConnectionOptions();
            options.setCleanStart(command.get("clean").getAsBoolean());
            options.setSessionExpiryInterval(command.get("expiry").getAsLong());
            options.setKeepAliveInterval(command.get("keepAlive").getAsInt());
            options.setAutomaticReconnect(command.get("reconnect").getAsBoolean());
            if (text(command, "username") != null) options.setUserName(text(command, "username"));
            if (text(command, "password") != null) options.setPassword(text(command, "password").getBytes("UTF-8"));
            JsonObject will = will(command);
            if (will != null) {
                options.setWill(will.get("topic").getAsString(), new org.eclipse.paho.mqttv5.common.MqttMessage(
                    payload(will), will.get("qos").getAsInt(), will.get("retain").getAsBoolean(), new MqttProperties()));
            }
            try {
                org.eclipse.paho.mqttv5.client.IMqttToken token = client.connect(options);
                token.waitForCompletion();
                boolean present = token.getSessionPresent();
                say("connected", line -> line.addProperty("sessionPresent", present));
            } catch (org.eclipse.paho.mqttv5.common.MqttException refused) {
                sayReason("refused", refused.getReasonCode());
            }
        }

        public void subscribe(String filter, int qos) throws Exception {
            org.eclipse.paho.mqttv5.client.IMqttToken token = client.subscribe(filter, qos);
            try {
                token.waitForCompletion();
            } catch (org.eclipse.paho.mqttv5.common.MqttException refused) {
                // The codes say it.
            }
            sayReasons("subscribed", token.getReasonCodes());
        }

        public void unsubscribe(String filter) throws Exception {
            org.eclipse.paho.mqttv5.client.IMqttToken token = client.unsubscribe(filter);
            token.waitForCompletion();
            sayReasons("unsubscribed", token.getReasonCodes());
        }

        public void publish(long tag, String topic, byte[] payload, int qos, boolean retain) throws Exception {
            client.publish(topic, payload, qos, retain, null, new org.eclipse.paho.mqttv5.client.MqttActionListener() {
                public void onSuccess(org.eclipse.paho.mqttv5.client.IMqttToken token) {
                    int[] reasons = token.getReasonCodes();
                    int reason = reasons == null || reasons.length == 0 ? 0 : reasons[0];
                    sayPublished(tag, reason);
                }

                public void onFailure(org.eclipse.paho.mqttv5.client.IMqttToken token, Throwable cause) {
                    sayPublished(tag, 0x80);
                }
            });
        }

        public void disconnect() throws Exception {
            client.disconnect().waitForCompletion();
            sayReason("closed", 0);
        }
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        Library library = null;
        for (String line; (line = lines.readLine()) != null;) {
            JsonObject command = JsonParser.parseString(line).getAsJsonObject();
            switch (command.get("do").getAsString()) {
                case "connect" -> {
                    library = command.get("version").getAsInt() == 5 ? new Version5() : new Version3();
                    library.connect(command);
                }
                case "subscribe" -> library.subscribe(text(command, "filter"), command.get("qos").getAsInt());
                case "unsubscribe" -> library.unsubscribe(text(command, "filter"));
                case "publish" -> library.publish(command.get("tag").getAsLong(), text(command, "topic"),
                    payload(command), command.get("qos").getAsInt(), command.get("retain").getAsBoolean());
                case "disconnect" -> library.disconnect();
                default -> throw new IllegalArgumentException(line);
            }
        }
        System.exit(0);
    }
}
