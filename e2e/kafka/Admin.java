// What a test asks of a Kafka cluster, besides records: one JSON command a line on standard input, one JSON answer
// a line on standard output, {"ok": ...} or {"error": "..."}. It ends when its standard input ends.
//
//     java -cp 'JARS/*' Admin.java BOOTSTRAP

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.StreamSupport;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ElectionNotNeededException;

public class Admin {
    static final ObjectMapper JSON = new ObjectMapper();
    final org.apache.kafka.clients.admin.Admin kafka;

    Admin(String bootstrap) {
        kafka = org.apache.kafka.clients.admin.Admin.create(Map.of(
            "bootstrap.servers", bootstrap, "request.timeout.ms", 3000, "default.api.timeout.ms", 8000,
            "reconnect.backoff.ms", 50, "reconnect.backoff.max.ms", 200, "metadata.max.age.ms", 1000));
    }

    public static void main(String[] arguments) throws Exception {
        Admin admin = new Admin(arguments[0]);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            Map<String, Object> answer = new TreeMap<>();
            try {
                answer.put("ok", admin.run(JSON.readTree(line)));
            } catch (ExecutionException error) {
                answer.put("error", error.getCause().toString());
            } catch (Exception error) {
                answer.put("error", error.toString());
            }
            System.out.write((JSON.writeValueAsString(answer) + "\n").getBytes(StandardCharsets.UTF_8));
            System.out.flush();
        }
        System.exit(0);
    }

    Object run(JsonNode command) throws Exception {
        String topic = command.path("topic").asText();
        switch (command.path("do").asText()) {
            case "nodes":
                return kafka.describeCluster().nodes().get().stream().map(Node::id).sorted().collect(Collectors.toList());
            case "topics":
                return topics();
            case "create":
                NewTopic wanted = new NewTopic(
                    topic, command.path("partitions").asInt(), (short) command.path("replicas").asInt());
                kafka.createTopics(List.of(wanted.configs(texts(command.path("settings"))))).all().get();
                return true;
            case "delete":
                kafka.deleteTopics(list(command.path("topics"))).all().get();
                return true;
            case "partitions":
                kafka.createPartitions(Map.of(topic, NewPartitions.increaseTo(command.path("count").asInt()))).all().get();
                return true;
            case "set":
                set(topic, texts(command.path("settings")));
                return true;
            case "lead":
                lead(new TopicPartition(topic, command.path("partition").asInt()), command.path("node").asInt());
                return true;
            case "password":
                kafka.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(
                    command.path("user").asText(),
                    new ScramCredentialInfo(ScramMechanism.fromMechanismName(command.path("mechanism").asText()), 4096),
                    command.path("password").asText()))).all().get();
                return true;
            default:
                throw new IllegalArgumentException("no such command: " + command);
        }
    }

    /** Topics by name, Kafka's internal ones left out: partitions with their state and end, and all settings in force. */
    Map<String, Object> topics() throws Exception {
        Set<String> names = kafka.listTopics().names().get();
        Map<ConfigResource, Config> settings = kafka.describeConfigs(names.stream()
            .map(name -> new ConfigResource(ConfigResource.Type.TOPIC, name)).collect(Collectors.toList())).all().get();
        Map<String, TopicDescription> topics = kafka.describeTopics(names).allTopicNames().get();
        Map<String, Object> answer = new TreeMap<>();
        for (TopicDescription topic : topics.values()) {
            Map<String, String> ofTopic = new TreeMap<>();
            settings.get(new ConfigResource(ConfigResource.Type.TOPIC, topic.name())).entries()
                .forEach(entry -> ofTopic.put(entry.name(), entry.value()));
            List<Object> partitions = new ArrayList<>();
            for (TopicPartitionInfo partition : topic.partitions()) {
                Map<String, Object> one = new TreeMap<>();
                boolean led = partition.leader() != null && !partition.leader().isEmpty();
                one.put("leader", led ? partition.leader().id() : null);
                one.put("replicas", ids(partition.replicas()));
                one.put("inSync", ids(partition.isr()));
                partitions.add(one);
            }
            answer.put(topic.name(), Map.of("partitions", partitions, "settings", ofTopic));
        }
        return answer;
    }

    void set(String topic, Map<String, String> settings) throws Exception {
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        List<AlterConfigOp> changes = new ArrayList<>();
        settings.forEach((name, value) -> changes.add(new AlterConfigOp(
            new ConfigEntry(name, value), value == null ? AlterConfigOp.OpType.DELETE : AlterConfigOp.OpType.SET)));
        kafka.incrementalAlterConfigs(Map.of(resource, changes)).all().get();
    }

    /** Makes a replica the preferred one, then has it elected. */
    void lead(TopicPartition partition, int node) throws Exception {
        TopicPartitionInfo now = kafka.describeTopics(List.of(partition.topic())).allTopicNames().get()
            .get(partition.topic()).partitions().get(partition.partition());
        List<Integer> order = new ArrayList<>(ids(now.replicas()));
        if (!order.remove((Integer) node)) {
            throw new IllegalArgumentException("node " + node + " has no replica of " + partition);
        }
        order.add(0, node);
        kafka.alterPartitionReassignments(Map.of(partition, Optional.of(new NewPartitionReassignment(order)))).all().get();
        while (!kafka.listPartitionReassignments(Set.of(partition)).reassignments().get().isEmpty()) {
            TimeUnit.MILLISECONDS.sleep(20);
        }
        try {
            kafka.electLeaders(ElectionType.PREFERRED, Set.of(partition)).all().get();
        } catch (ExecutionException error) {
            if (!(error.getCause() instanceof ElectionNotNeededException)) {
                throw error;
            }
        }
    }

    static List<Integer> ids(List<Node> nodes) {
        return nodes.stream().map(Node::id).collect(Collectors.toList());
    }

    static List<String> list(JsonNode array) {
        return StreamSupport.stream(array.spliterator(), false).map(JsonNode::asText).collect(Collectors.toList());
    }

    static Map<String, String> texts(JsonNode object) {
        Map<String, String> texts = new TreeMap<>();
        object.properties().forEach(
            field -> texts.put(field.getKey(), field.getValue().isNull() ? null : field.getValue().asText()));
        return texts;
    }
}
