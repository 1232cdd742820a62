// A cloud application that reads what devices sent: follows topics as a member of a consumer group, from their
// beginning, and prints a JSON line for each record. "partitionOfKey" is where a Java producer would have put a record of
// that key. It ends when its standard input ends.
//
//     java -cp 'JARS/*' ParentConsumer.java CLIENT.properties GROUP TOPIC...

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.FileReader;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.utils.Utils;

public class ParentConsumer {
    public static void main(String[] arguments) throws Exception {
        Thread input = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {}
            } catch (java.io.IOException ended) {
                // As good as its end.
            }
            Runtime.getRuntime().halt(0);
        });
        input.setDaemon(true);
        input.start();

        Properties properties = new Properties();
        try (FileReader file = new FileReader(arguments[0], UTF_8)) {
            properties.load(file);
        }
        properties.put("group.id", arguments[1]);
        properties.put("auto.offset.reset", "earliest");
        ObjectMapper json = new ObjectMapper();
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(Arrays.asList(arguments).subList(2, arguments.length));
            while (true) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    Map<String, Object> line = line(record);
                    if (record.key() != null) {
                        int partitions = consumer.partitionsFor(record.topic()).size();
                        line.put("partitionOfKey", Utils.toPositive(Utils.murmur2(record.key())) % partitions);
                    }
                    System.out.write((json.writeValueAsString(line) + "\n").getBytes(UTF_8));
                }
                System.out.flush();
            }
        }
    }

    static Map<String, Object> line(ConsumerRecord<byte[], byte[]> record) {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("topic", record.topic());
        line.put("partition", record.partition());
        line.put("offset", record.offset());
        line.put("timestamp", record.timestamp());
        line.put("key", text(record.key()));
        line.put("value", text(record.value()));
        List<List<Object>> headers = new ArrayList<>();
        for (Header header : record.headers()) {
            headers.add(Arrays.asList(header.key(), text(header.value())));
        }
        line.put("headers", headers);
        return line;
    }

    /** Text, or {"base64": ...} of what is none. */
    static Object text(byte[] bytes) {
        if (bytes == null) {
            return null;
        }
        try {
            return UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
        } catch (CharacterCodingException binary) {
            return Map.of("base64", Base64.getEncoder().encodeToString(bytes));
        }
    }
}
