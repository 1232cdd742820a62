// A cloud application that sends messages to devices: each line of standard input, {"value": "...", "headers":
// {"mqttTopic": "...", "qoslevel": "1", "cleanSession": "false"}}, maybe with a "key", becomes a record of mq2mqtt.
// Where it stands is told once Kafka has acknowledged it, a line each: {"partition": 0, "offset": 7}.
//
//     java -cp 'JARS/*' CloudProducer.java CLIENT.properties

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.FileReader;
import java.util.Properties;
import java.util.Scanner;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

public class CloudProducer {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader file = new FileReader(arguments[0], UTF_8)) {
            properties.load(file);
        }
        ObjectMapper json = new ObjectMapper();
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer());
                Scanner lines = new Scanner(System.in, UTF_8)) {
            while (lines.hasNextLine()) {
                JsonNode message = json.readTree(lines.nextLine());
                ProducerRecord<String, String> record =
                    new ProducerRecord<>("mq2mqtt", message.path("key").asText(null), message.path("value").asText());
                message.path("headers").properties().forEach(
                    header -> record.headers().add(header.getKey(), header.getValue().asText().getBytes(UTF_8)));
                RecordMetadata stands = producer.send(record).get();
                System.out.printf("{\"partition\": %d, \"offset\": %d}%n", stands.partition(), stands.offset());
            }
        }
    }
}
