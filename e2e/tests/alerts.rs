//! The alerts and the dashboard that the chart brings: they are about figures that there are, fire when they should, and say what to
//! do.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::yaml::documents;
use mqtt_e2e::clients::root;
use serde_json::{Value, json};

const RUNBOOKS: &str = "https://git.example/mqtt/README.md";

/// The objects of a kind that the chart makes.
fn of_kind(kind: &str) -> Result<Value> {
    let helm = root().join(".tools/kubernetes/bin/helm");
    let values = [
        "prometheusRule.enabled=true".to_owned(),
        format!("prometheusRule.runbooks={RUNBOOKS}"),
        "dashboard.enabled=true".to_owned(),
    ];
    let mut command = Command::new(helm);
    command.args(["template", "mqtt-operator"]).arg(root().join("charts/mqtt-operator"));
    command.args(["--namespace", "ops", "--kube-version", "1.34.0"]);
    values.iter().for_each(|value| _ = command.args(["--set", value]));
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let read =
        documents(&text).map_err(|error| anyhow::anyhow!("line {:?}: {}", error.line, error.message))?;
    let mut found = read.into_iter().map(|document| document.value);
    found.find(|object| object.get("kind") == Some(&kind.into())).with_context(|| format!("no {kind}"))
}

fn alerts(rule: &Value) -> Result<&Vec<Value>> {
    rule.pointer("/spec/groups/0/rules").and_then(Value::as_array).context("no rules")
}

fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str> {
    value.pointer(path).and_then(Value::as_str).with_context(|| format!("no {path} in {value}"))
}

/// The names of our metrics in a text; those of a histogram's series are the histogram's.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("mqtt_"));
    let histogram = |word: &str| {
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end));
        base.filter(|base| base.ends_with("_seconds")).unwrap_or(word).to_owned()
    };
    ours.map(histogram).collect()
}

fn promtool(arguments: &[&str], folder: &std::path::Path) -> Result<()> {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output();
    let output = output.context("promtool comes with Debian's prometheus; `make tools` installs it")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn alerts_and_dashboard_are_about_figures_that_the_readme_knows() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let known = metrics(&readme);
    let (rule, dashboard) = (of_kind("PrometheusRule")?, of_kind("ConfigMap")?);
    let dashboard: Value = serde_json::from_str(text(&dashboard, "/data/mqtt.json")?)?;
    let panels = dashboard.pointer("/panels").and_then(Value::as_array).context("no panels")?;
    let shown = panels.iter().filter_map(|panel| panel.pointer("/targets")?.as_array()).flatten();
    let shown = shown.map(|target| text(target, "/expr")).collect::<Result<Vec<_>>>()?;
    let asked = alerts(&rule)?.iter().map(|alert| text(alert, "/expr")).collect::<Result<Vec<_>>>()?;
    ensure!(
        shown.len() >= 20 && asked.len() >= 8,
        "{} on the dashboard, {} alerts",
        shown.len(),
        asked.len()
    );
    for expression in shown.into_iter().chain(asked) {
        let unknown: Vec<_> = metrics(expression).difference(&known).cloned().collect();
        ensure!(unknown.is_empty(), "{unknown:?} of `{expression}` are not in README.md");
    }
    Ok(())
}

#[test]
fn each_alert_leads_to_what_is_to_be_done() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let (_, chapter) = readme.split_once("\n## When an alert fires\n").context("no such chapter")?;
    let (chapter, _) = chapter.split_once("\n## ").context("no end")?;
    let headings: BTreeSet<&str> = chapter.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let rule = of_kind("PrometheusRule")?;
    for alert in alerts(&rule)? {
        let name = text(alert, "/alert")?;
        ensure!(headings.contains(name), "README.md says nothing of {name}");
        let leads_to = format!("{RUNBOOKS}#{}", name.to_lowercase());
        ensure!(text(alert, "/annotations/runbook_url")? == leads_to, "{alert}");
    }
    ensure!(headings.len() == alerts(&rule)?.len(), "of {headings:?} there are some without an alert");
    Ok(())
}

/// Series with their values, when the alert is looked at, its name, and the labels and the summary that it has.
type Case<'a> = (Vec<(String, String)>, &'a str, &'a str, Option<(Value, &'a str)>);

/// Prometheus's own judgement of series that are made up, with a value a minute.
#[test]
fn alerts_fire_when_something_is_wrong_and_only_then() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rule = of_kind("PrometheusRule")?;
    fs::write(folder.path().join("rules.yaml"), rule.pointer("/spec").context("no spec")?.to_string())?;
    promtool(&["check", "rules", "rules.yaml"], folder.path())?;

    let acl = |pod: &str, values: &str| {
        (
            format!("mqtt_acl_generation{{namespace=\"plant\",service=\"meters-nodes\",pod=\"{pod}\"}}"),
            values.to_owned(),
        )
    };
    let of = |metric: &str, values: &str| {
        (format!("{metric}{{namespace=\"plant\",service=\"meters-nodes\",pod=\"a\"}}"), values.to_owned())
    };
    let leader =
        |values: &str| ("mqtt_operator_leader{namespace=\"ops\",pod=\"a\"}".to_owned(), values.to_owned());
    let slow = |bound: &str, values: &str| {
        let series = format!("mqtt_operator_propagation_seconds_bucket{{namespace=\"ops\",le=\"{bound}\"}}");
        (series, values.to_owned())
    };
    let failing = || {
        let series =
            "mqtt_operator_reconcile_seconds_count{namespace=\"ops\",kind=\"MqttUser\",result=\"failed\"}";
        (series.to_owned(), "0+5x40".to_owned())
    };
    let succeeded = |values: &str| {
        let series = "mqtt_operator_last_success_timestamp_seconds{namespace=\"ops\",kind=\"MqttUser\"}";
        (series.to_owned(), values.to_owned())
    };
    let never = || {
        Some((
            json!({"kind": "MqttUser"}),
            "no reconcile of MqttUser has ended well for ten minutes, and some have failed",
        ))
    };
    let plant = || json!({"namespace": "plant", "service": "meters-nodes"});
    let cases: Vec<Case<'_>> = vec![
        (vec![leader("1x20")], "15m", "MqttNoOperator", None),
        (
            vec![leader("0x20")],
            "15m",
            "MqttNoOperator",
            Some((json!({}), "no operator acts in namespace ops")),
        ),
        (vec![failing()], "20m", "MqttReconcilesFail", never()),
        (vec![failing(), succeeded("60x40")], "30m", "MqttReconcilesFail", never()),
        (vec![failing(), succeeded("0+60x40")], "30m", "MqttReconcilesFail", None),
        (vec![acl("a", "7x10"), acl("b", "7x10")], "8m", "MqttAclBehind", None),
        (
            vec![acl("a", "8x10"), acl("b", "7x10")],
            "8m",
            "MqttAclBehind",
            Some((plant(), "brokers of plant/meters-nodes have different users and grants in force")),
        ),
        (vec![slow("5", "0+60x30"), slow("+Inf", "0+60x30")], "25m", "MqttPropagationSlow", None),
        (
            vec![slow("5", "0x30"), slow("60", "0+60x30"), slow("+Inf", "0+60x30")],
            "25m",
            "MqttPropagationSlow",
            Some((json!({}), "changes of users and grants take 59.45s until every broker has them in force")),
        ),
        (
            vec![
                of("mqtt_connections", "80x30"),
                of("mqtt_connections_elsewhere", "15x30"),
                of("mqtt_connections_limit", "100x30"),
            ],
            "20m",
            "MqttConnectionsNearLimit",
            Some((plant(), "plant/meters-nodes has 95% of the connections it may have")),
        ),
        (
            vec![
                of("mqtt_connections", "60x30"),
                of("mqtt_connections_elsewhere", "15x30"),
                of("mqtt_connections_limit", "100x30"),
            ],
            "20m",
            "MqttConnectionsNearLimit",
            None,
        ),
        (
            vec![of("mqtt_log_away", "1x10")],
            "3m",
            "MqttLogAway",
            Some((plant(), "brokers of plant/meters-nodes do not reach Kafka")),
        ),
    ];
    let severities =
        alerts(&rule)?.iter().map(|alert| Ok((text(alert, "/alert")?, text(alert, "/labels/severity")?)));
    let severities = severities.collect::<Result<Vec<_>>>()?;
    let tests: Vec<Value> = cases
        .iter()
        .map(|(series, at, alert, expected)| {
            let series: Vec<_> = series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
            let severity = severities.iter().find(|(name, _)| name == alert).map(|(_, severity)| *severity);
            let expected: Vec<_> = expected
                .iter()
                .map(|(labels, summary)| {
                    let mut labels = labels.clone();
                    labels["severity"] = json!(severity);
                    let runbook = format!("{RUNBOOKS}#{}", alert.to_lowercase());
                    json!({"exp_labels": labels, "exp_annotations": {"summary": summary, "runbook_url": runbook}})
                })
                .collect();
            json!({"interval": "1m", "input_series": series, "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}]})
        })
        .collect();
    let file = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    fs::write(folder.path().join("tests.yaml"), file.to_string())?;
    promtool(&["test", "rules", "tests.yaml"], folder.path())
}
