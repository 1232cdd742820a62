//! What the Helm chart makes of its values, read as objects; what it refuses; and that it carries what is elsewhere in
//! this repository: the CRDs, the version.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::yaml::documents;
use mqtt_e2e::clients::root;
use serde_json::{Map, Value, json};

const NAMESPACE: &str = "ops";
const KINDS: [&str; 4] = ["MqttInstance", "ParentTopic", "MqttUser", "TopicGrant"];

fn helm(arguments: &[&str], values: &Value) -> Result<Output> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), values.to_string())?;
    let binary = root().join(".tools/kubernetes/bin/helm");
    let mut command = Command::new(&binary);
    command.args(arguments).arg(root().join("charts/mqtt-operator")).arg("--values").arg(file.path());
    command.args(["--namespace", NAMESPACE, "--kube-version", "1.34.0"]).stdin(Stdio::null());
    // Nothing of this machine's own settings, no cluster.
    let home = tempfile::tempdir()?;
    command.env_clear().env("HOME", home.path());
    command.output().with_context(|| format!("{}; `make tools` builds it", binary.display()))
}

/// The objects of a release called `mqtt-operator`, its tests included.
fn rendered(values: &Value) -> Result<Vec<Value>> {
    let output = helm(&["template", "mqtt-operator"], values)?;
    ensure!(output.status.success(), "{values}: {}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout)?).with_context(|| format!("with {values}"))
}

fn objects(text: &str) -> Result<Vec<Value>> {
    let read =
        documents(text).map_err(|error| anyhow::anyhow!("line {:?}: {}", error.line, error.message))?;
    Ok(read.into_iter().map(|document| document.value).collect())
}

/// Values as people give them, each set another shape of the release.
fn shapes() -> Vec<Value> {
    vec![
        json!({}),
        json!({"watchNamespaces": ["plant", "city"]}),
        json!({
            "replicas": 2, "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}, "runbooks": "https://git.example/README.md"},
            "dashboard": {"enabled": true},
            "image": {"repository": "registry.example/mqtt-operator", "tag": "7", "pullPolicy": "Always"},
            "broker": {"image": {"repository": "registry.example/mqtt-broker", "digest": format!("sha256:{:064}", 1)}},
            "imagePullSecrets": [{"name": "registry"}], "crds": {"keep": false}, "log": {"format": "text", "level": "debug"},
            "serviceAccount": {"name": "runs-mqtt", "annotations": {"cloud.example/role": "mqtt"}},
            "commonLabels": {"team": "iot", "app.kubernetes.io/part-of": "plant", "app.kubernetes.io/name": "mine"},
            "commonAnnotations": {"owner": "iot"}, "podLabels": {"zone": "a"}, "podAnnotations": {"sidecar": "no"},
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "iot", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1}],
            "priorityClassName": "system-cluster-critical", "resources": {"limits": {"memory": "1Gi"}},
            "fullnameOverride": "mq",
        }),
        json!({"rbac": {"create": false}, "serviceAccount": {"create": false}, "crds": {"install": false}}),
    ]
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| at(object, "/kind") == kind).collect()
}

fn only<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let [found] = of_kind(objects, kind)[..] else { anyhow::bail!("not one {kind}") };
    Ok(found)
}

/// Whether all that one asks for is in the other.
fn selects(selector: &Value, labels: &Value) -> bool {
    let (Some(selector), Some(labels)) = (selector.as_object(), labels.as_object()) else { return false };
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[test]
fn helm_finds_nothing_to_complain_of() -> Result<()> {
    for values in shapes() {
        let output = helm(&["lint", "--strict"], &values)?;
        ensure!(output.status.success(), "{values}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

#[test]
fn every_object_has_its_own_name_and_says_whose_it_is() -> Result<()> {
    let whole_cluster = ["CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];
    for values in shapes() {
        let objects = rendered(&values)?;
        let mut names = BTreeSet::new();
        for object in &objects {
            let (kind, namespace) = (at(object, "/kind"), at(object, "/metadata/namespace"));
            ensure!(
                names.insert(format!("{kind} {namespace} {}", at(object, "/metadata/name"))),
                "{names:?}"
            );
            let alone = whole_cluster.iter().any(|name| kind == name);
            ensure!(namespace.is_null() == alone, "{kind} is in namespace {namespace}");
            let labels = at(object, "/metadata/labels");
            ensure!(at(labels, "/app.kubernetes.io~1instance") == "mqtt-operator", "{kind}: {labels}");
            let common = at(&values, "/commonLabels/team");
            ensure!(at(labels, "/team") == common, "{kind}: {labels}");
        }
    }
    Ok(())
}

#[test]
fn pods_meet_the_restricted_profile_and_write_nothing() -> Result<()> {
    for values in shapes() {
        let objects = rendered(&values)?;
        let deployment = only(&objects, "Deployment")?;
        for pod in [at(deployment, "/spec/template/spec"), at(only(&objects, "Pod")?, "/spec")] {
            for flag in ["hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"] {
                ensure!(pod.get(flag).is_none(), "{flag} in {pod}");
            }
            ensure!(at(pod, "/securityContext/runAsUser").as_u64() == Some(65532), "{pod}");
            ensure!(at(pod, "/containers").as_array().is_some_and(|all| all.len() == 1), "{pod}");
            let expected = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            });
            let found = at(pod, "/containers/0/securityContext");
            ensure!(*found == expected, "{found}");
        }
    }
    Ok(())
}

#[test]
fn selectors_find_the_operators_pods_and_no_others() -> Result<()> {
    for values in shapes() {
        let objects = rendered(&values)?;
        let deployment = only(&objects, "Deployment")?;
        let (selector, pods) =
            (at(deployment, "/spec/selector/matchLabels"), at(deployment, "/spec/template/metadata/labels"));
        ensure!(selects(selector, pods), "{selector} does not select {pods}");
        let check = at(only(&objects, "Pod")?, "/metadata/labels");
        ensure!(!selects(selector, check), "{selector} selects the test's pod, too: {check}");
        let account = at(deployment, "/spec/template/spec/serviceAccountName");
        for binding in ["RoleBinding", "ClusterRoleBinding"].map(|kind| of_kind(&objects, kind)).concat() {
            let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]);
            ensure!(*at(binding, "/subjects") == subjects, "{binding}");
        }
        if at(&values, "/serviceMonitor/enabled") == true {
            let (service, monitor) = (only(&objects, "Service")?, only(&objects, "ServiceMonitor")?);
            ensure!(selects(at(service, "/spec/selector"), pods), "{service}");
            let services = at(monitor, "/spec/selector/matchLabels");
            ensure!(selects(services, at(service, "/metadata/labels")), "{monitor}");
            let port = at(service, "/spec/ports/0/name");
            ensure!(at(monitor, "/spec/endpoints/0/port") == port, "{monitor}");
            ensure!(at(monitor, "/metadata/labels/release") == "prometheus", "{monitor}");
        }
    }
    Ok(())
}

/// `GROUP/RESOURCE` and its verbs.
fn permissions(role: &Value) -> Result<Vec<(String, BTreeSet<String>)>> {
    let texts = |value: &Value| -> Result<Vec<String>> {
        let list = value.as_array().context("no list")?;
        Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let mut found = Vec::new();
    for rule in at(role, "/rules").as_array().context("no rules")? {
        for group in texts(at(rule, "/apiGroups"))? {
            for resource in texts(at(rule, "/resources"))? {
                found.push((format!("{group}/{resource}"), texts(at(rule, "/verbs"))?.into_iter().collect()));
            }
        }
    }
    Ok(found)
}

#[test]
fn the_operator_may_do_what_it_must_and_no_more() -> Result<()> {
    let everywhere = rendered(&json!({}))?;
    let namespaced = rendered(&json!({"watchNamespaces": ["plant", "city"]}))?;
    let cluster_role = only(&everywhere, "ClusterRole")?;
    ensure!(of_kind(&namespaced, "ClusterRole").is_empty(), "a ClusterRole beside watchNamespaces");
    ensure!(
        of_kind(&namespaced, "ClusterRoleBinding").is_empty(),
        "a ClusterRoleBinding beside watchNamespaces"
    );
    for namespace in ["plant", "city"] {
        let here = |kind| -> Result<&Value> {
            let mut all = of_kind(&namespaced, kind).into_iter();
            all.find(|role| at(role, "/metadata/namespace") == namespace).context("no role")
        };
        let (role, binding) = (here("Role")?, here("RoleBinding")?);
        ensure!(at(role, "/rules") == at(cluster_role, "/rules"), "another role in {namespace}: {role}");
        ensure!(at(binding, "/roleRef/name") == at(role, "/metadata/name"), "{binding}");
    }
    let roles: Vec<&Value> = ["Role", "ClusterRole"]
        .iter()
        .flat_map(|kind| of_kind(&everywhere, kind).into_iter().chain(of_kind(&namespaced, kind)))
        .collect();
    for role in roles {
        for (resource, verbs) in permissions(role)? {
            let all = verbs.iter().cloned().collect::<Vec<_>>().join(" ");
            ensure!(!resource.contains('*') && !all.contains('*'), "{resource}: {all}");
            ensure!(!verbs.contains("deletecollection"), "{resource}: {all}");
            let ours = resource.starts_with("mqtt.dms.dev/");
            let writes = ["create", "update", "delete"].iter().any(|verb| verbs.contains(*verb));
            ensure!(!(ours && writes), "what people wrote is changed: {resource}: {all}");
            let limits: &[(&str, &[&str])] = &[
                ("/pods", &["list", "watch", "patch"]),
                ("events.k8s.io/events", &["create", "patch"]),
                ("mqtt.dms.dev/mqttinstances", &["get", "list", "watch"]),
                ("mqtt.dms.dev/mqttusers", &["list", "watch"]),
                ("mqtt.dms.dev/topicgrants", &["list", "watch"]),
                ("mqtt.dms.dev/parenttopics", &["get", "list", "watch", "patch"]),
            ];
            for (limited, allowed) in limits.iter().filter(|(limited, _)| *limited == resource) {
                let more = verbs.iter().find(|verb| !allowed.contains(&verb.as_str()));
                ensure!(more.is_none(), "{limited}: {all}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_crds_of_the_chart_are_those_of_the_repository() -> Result<()> {
    for values in shapes() {
        let rendered = rendered(&values)?;
        let found = of_kind(&rendered, "CustomResourceDefinition");
        if at(&values, "/crds/install") == false {
            ensure!(found.is_empty(), "CRDs are installed in spite of {values}");
            continue;
        }
        let mut expected = Vec::new();
        for entry in fs::read_dir(root().join("crds"))?.collect::<Result<Vec<_>, _>>()? {
            if entry.path().is_file() {
                expected.extend(objects(&fs::read_to_string(entry.path())?)?);
            }
        }
        ensure!(found.len() == KINDS.len() && expected.len() == KINDS.len(), "{} CRDs", found.len());
        for crd in found {
            let kept = at(crd, "/metadata/annotations/helm.sh~1resource-policy") == "keep";
            ensure!(kept == (at(&values, "/crds/keep") != false), "{}", at(crd, "/metadata"));
            let mut bare = crd.clone();
            let metadata = bare.pointer_mut("/metadata").and_then(Value::as_object_mut);
            metadata.context("no metadata")?.retain(|key, _| key == "name");
            ensure!(expected.contains(&bare), "{} differs from crds/", at(crd, "/metadata/name"));
        }
    }
    Ok(())
}

#[test]
fn the_chart_runs_this_version_unless_told_otherwise() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let check = |values: &Value, operator: &str, broker: &str| -> Result<()> {
        let objects = rendered(values)?;
        let container = at(only(&objects, "Deployment")?, "/spec/template/spec/containers/0");
        ensure!(at(container, "/image") == operator, "{container}");
        let flag = json!(format!("--broker-image={broker}"));
        ensure!(at(container, "/args").as_array().is_some_and(|all| all.contains(&flag)), "{container}");
        Ok(())
    };
    check(&json!({}), &format!("mqtt-operator:{version}"), &format!("mqtt-broker:{version}"))?;
    let digest = format!("sha256:{:064}", 1);
    check(
        &json!({"image": {"tag": "7"}, "broker": {"image": {"repository": "host:5000/b", "tag": "8", "digest": digest}}}),
        "mqtt-operator:7",
        &format!("host:5000/b@{digest}"),
    )
}

#[test]
fn values_that_mean_nothing_are_refused_and_named() -> Result<()> {
    let cases: &[(Value, &str)] = &[
        (json!({"watchNamespace": ["plant"]}), "watchNamespace"),
        (json!({"watchNamespaces": "plant"}), "/watchNamespaces"),
        (json!({"watchNamespaces": ["Plant"]}), "/watchNamespaces/0"),
        (json!({"watchNamespaces": ["plant", "plant"]}), "/watchNamespaces"),
        (json!({"replicas": -1}), "/replicas"),
        (json!({"replicas": "two"}), "/replicas"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "/image/pullPolicy"),
        (json!({"image": {"repository": ""}}), "/image/repository"),
        (json!({"image": {"digest": "sha256:1"}}), "/image/digest"),
        (json!({"broker": {"tag": "1"}}), "tag"),
        (json!({"crds": {"install": "yes"}}), "/crds/install"),
        (json!({"resync": "often"}), "/resync"),
        (json!({"log": {"format": "xml"}}), "/log/format"),
        (json!({"resources": {"limit": {}}}), "limit"),
        (json!({"tolerations": [{"effekt": "NoSchedule"}]}), "effekt"),
        (json!({"serviceMonitor": {"enabled": true, "interval": "30"}}), "/serviceMonitor/interval"),
        (json!({"commonLabels": {"team": 1}}), "/commonLabels/team"),
        (json!({"prometheusRule": {"runbooks": "README.md"}}), "/prometheusRule/runbooks"),
        (json!({"dashboard": {"enable": true}}), "enable"),
    ];
    for (values, named) in cases {
        let output = helm(&["template", "mqtt-operator"], values)?;
        ensure!(!output.status.success(), "{values} is taken");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(told.contains("don't meet the specifications") && told.contains(named), "{values}: {told}");
    }
    Ok(())
}

/// Every value has a default, and every default its place in the schema: neither can be forgotten.
#[test]
fn the_schema_knows_the_values_and_no_others() -> Result<()> {
    fn check(values: &Map<String, Value>, schema: &Value, path: &str) -> Result<()> {
        let known = at(schema, "/properties").as_object();
        let Some(known) = known else { return Ok(()) };
        ensure!(at(schema, "/additionalProperties") == false, "{path} is open");
        // Free-form where people write Kubernetes' own types, and what Helm adds by itself.
        for (name, schema) in known.iter().filter(|(name, _)| *name != "global") {
            let path = format!("{path}.{name}");
            if path == ".affinity" || path.starts_with(".resources") {
                continue;
            }
            let value = values.get(name).with_context(|| format!("{path} has no default"))?;
            if let Value::Object(values) = value {
                check(values, schema, &path)?;
            }
        }
        Ok(())
    }
    let chart = root().join("charts/mqtt-operator");
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let values = objects(&read(&chart.join("values.yaml"))?)?;
    let schema: Value = serde_json::from_str(&read(&chart.join("values.schema.json"))?)?;
    check(values.first().and_then(Value::as_object).context("no values")?, &schema, "")
}
