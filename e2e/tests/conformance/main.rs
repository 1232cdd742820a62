//! What the specifications demand of a server, statement by statement, and where each is shown.
//!
//! `e2e/conformance/mqtt-3.1.1.txt` and `mqtt-5.0.txt` list the numbered statements, `mqtt-3.1.txt` what MQTT 3.1 has otherwise. A case is a dialogue of
//! `e2e/conformance/dialogues` (its name has hyphens), played here against a broker's process, or a test function anywhere
//! in the workspace (its name has underscores).

mod dialogue;
mod notation;
mod statements;

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{Broker, Manifests, clients::root};
use serde_json::json;

use crate::{dialogue::Script, statements::Statement};

#[test]
fn every_statement_that_binds_a_server_has_its_case() -> Result<()> {
    let tests = statements::tests_of_the_workspace()?;
    let dialogues: BTreeSet<String> = scripts()?.into_iter().map(|script| script.name).collect();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for (specification, count) in [("mqtt-3.1", 17), ("mqtt-3.1.1", 141), ("mqtt-5.0", 251)] {
        let statements = statements::read(specification)?;
        ensure!(statements.len() == count, "{specification} lists {} statements", statements.len());
        for Statement { id, cases, .. } in statements {
            for case in cases {
                if !tests.contains(&case) && !dialogues.contains(&case) {
                    wrong.push(format!("{specification} {id}: there is no case {case}"));
                }
                used.insert(case);
            }
        }
    }
    wrong.extend(dialogues.difference(&used).map(|name| format!("no statement names the dialogue {name}")));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_broker_keeps_to_every_dialogue() -> Result<()> {
    let manifests = Manifests::new()
        .instance(json!({
            "auth": {"anonymousUser": "guest"}, "session": {"responseInformation": "r/${clientId}/${username}"},
        }))
        .user_without_password("guest")
        .grant("guest-all", "guest", &[("pubsub", "#")])
        .user("fleet", "fleet-secret")
        .grant("fleet-own", "fleet", &[("pubsub", "own/#")]);
    let broker = Broker::start(&manifests)?;
    let mut failed = Vec::new();
    for script in scripts()? {
        for level in &script.levels {
            if let Err(error) = script.play(broker.mqtt, *level) {
                failed.push(format!("{} at level {level}: {error:#}", script.name));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// All dialogues, in the order of their files.
fn scripts() -> Result<Vec<Script>> {
    let folder = root().join("e2e/conformance/dialogues");
    let mut files: Vec<_> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    let mut scripts = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        scripts.extend(dialogue::parse(&text).with_context(|| file.display().to_string())?);
    }
    let names: BTreeSet<&str> = scripts.iter().map(|script| script.name.as_str()).collect();
    ensure!(names.len() == scripts.len(), "two dialogues have one name");
    Ok(scripts)
}
