//! The lists of statements, and the names of all tests.
//!
//! `ID | WHO | WHAT | CASES`, a line each: who is bound, `server`, `client` or `both`; what in a few words of our own;
//! and the cases that show it, by name, or `-` and why there is none, which a statement may have that binds clients alone,
//! or what this server does not offer.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::clients::root;

pub(crate) struct Statement {
    pub(crate) id: String,
    pub(crate) cases: Vec<String>,
}

pub(crate) fn read(specification: &str) -> Result<Vec<Statement>> {
    let path = root().join(format!("e2e/conformance/{specification}.txt"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut statements = Vec::new();
    let mut last = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("MQTT-")) {
        let statement = parse(line).with_context(|| format!("{specification}: {line}"))?;
        let order = order(&statement.id)?;
        ensure!(order > last, "{} stands out of order, or twice", statement.id);
        last = order;
        statements.push(statement);
    }
    Ok(statements)
}

fn parse(line: &str) -> Result<Statement> {
    let columns: Vec<&str> = line.split('|').map(str::trim).collect();
    let [id, who, what, cases] = columns.as_slice() else { anyhow::bail!("four columns") };
    ensure!(matches!(*who, "server" | "client" | "both"), "it binds server, client or both");
    ensure!(!what.is_empty(), "what does it say?");
    let cases: Vec<String> = match cases.strip_prefix('-') {
        Some(reason) => {
            ensure!(reason.len() > 3, "why is there no case?");
            let optional = reason.trim_start().starts_with("not offered:");
            ensure!(*who == "client" || optional, "it binds a server and has no case");
            Vec::new()
        }
        None => cases.split_whitespace().map(str::to_owned).collect(),
    };
    Ok(Statement { id: (*id).to_owned(), cases })
}

/// The numbers of `MQTT-3.1.2-10`, to compare.
fn order(id: &str) -> Result<Vec<u32>> {
    let numbers = id.strip_prefix("MQTT-").context("MQTT-x.y.z-n")?.split(['.', '-']);
    numbers.map(|number| Ok(number.parse()?)).collect()
}

/// Names of test functions: behind `#[test]`, or listed in `on_every_store!`.
pub(crate) fn tests_of_the_workspace() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for folder in ["broker", "e2e/src", "e2e/tests"] {
        for file in sources(&root().join(folder))? {
            let text = fs::read_to_string(&file)?;
            let mut is_test = false;
            let mut in_list = false;
            for line in text.lines().map(str::trim) {
                in_list = (in_list || line.contains("on_every_store! {")) && line != "}";
                if let (true, Some(name)) = (in_list, line.strip_suffix(',')) {
                    names.insert(name.to_owned());
                }
                let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if let (true, Some(rest)) = (is_test, function) {
                    names.extend(rest.split('(').next().map(str::to_owned));
                    is_test = false;
                }
                is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            }
        }
    }
    Ok(names)
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}
