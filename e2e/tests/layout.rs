//! The house's own rules, held by a test: who may import whom, and what every source file looks like.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::clients::root;

/// A crate, what of ours it may import, and what may stand nowhere in its tree.
struct Edges {
    name: &'static str,
    may_import: &'static [&'static str],
    never: &'static [&'static str],
}

/// No sockets, no timers, no runtime.
const RUNTIMES: &[&str] = &["tokio", "mio", "async-std", "smol", "socket2"];

const CRATES: &[Edges] = &[
    Edges { name: "mqtt-proto", may_import: &[], never: RUNTIMES },
    Edges { name: "mqtt-broker-api", may_import: &["mqtt-proto"], never: RUNTIMES },
    Edges {
        name: "mqtt-kafka",
        may_import: &["mqtt-broker-api"],
        never: &["kube-client", "kube-runtime", "openssl"],
    },
    Edges {
        name: "mqtt-operator-api",
        may_import: &["mqtt-broker-api"],
        never: &["kube-client", "kube-runtime", "tokio", "hyper"],
    },
    Edges {
        name: "mqtt-operator",
        may_import: &["mqtt-proto", "mqtt-broker-api", "mqtt-kafka", "mqtt-operator-api"],
        never: &["mqtt-broker", "openssl"],
    },
    Edges {
        name: "mqtt-broker",
        may_import: &["mqtt-proto", "mqtt-broker-api", "mqtt-kafka", "mqtt-operator-api"],
        never: &["kube-client", "kube-runtime", "openssl"],
    },
    Edges { name: "mqtt-e2e", may_import: &["mqtt-broker-api", "mqtt-operator-api"], never: &["openssl"] },
];

#[test]
fn crates_import_only_what_the_layout_allows() -> Result<()> {
    let members: BTreeSet<String> = own_crates()?;
    let listed: BTreeSet<String> = CRATES.iter().map(|edges| edges.name.to_owned()).collect();
    ensure!(members == listed, "the workspace has {members:?}, this table {listed:?}");
    for edges in CRATES {
        let direct = tree(edges.name, &["--depth", "1"])?;
        let ours: Vec<&String> = direct.iter().filter(|name| members.contains(*name)).collect();
        let wrong: Vec<_> = ours.iter().filter(|name| !edges.may_import.contains(&name.as_str())).collect();
        ensure!(wrong.is_empty(), "{} imports {wrong:?}", edges.name);
        let whole = tree(edges.name, &[])?;
        let wrong: Vec<_> = edges.never.iter().filter(|name| whole.contains(**name)).collect();
        ensure!(wrong.is_empty(), "the tree of {} has {wrong:?}", edges.name);
    }
    Ok(())
}

#[test]
fn the_protocol_crate_takes_time_as_an_argument_and_opens_no_socket() -> Result<()> {
    let banned = ["Instant::now", "SystemTime", "std::net", "std::thread", "std::fs", "std::env"];
    let files = sources(&root().join("broker/proto/src"))?;
    ensure!(!files.is_empty());
    for file in files {
        let text = fs::read_to_string(&file)?;
        for word in banned {
            ensure!(!text.contains(word), "{} uses {word}", file.display());
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_is_in_the_files_alone_that_call_librdkafka_and_the_allocator_themselves() -> Result<()> {
    let mut found = Vec::new();
    for file in ["broker", "operator", "e2e/src"].iter().flat_map(|folder| sources(&root().join(folder))) {
        for file in file {
            if fs::read_to_string(&file)?.contains("unsafe_code") {
                found.push(file.strip_prefix(root())?.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    let expected = ["broker/kafka/src/alter.rs", "broker/kafka/src/bulk.rs", "broker/src/allocator.rs"];
    ensure!(found == expected, "unsafe code is allowed in {found:?}");
    Ok(())
}

#[test]
fn only_standalone_knows_the_resource_types() -> Result<()> {
    for file in sources(&root().join("broker/src"))? {
        let text = fs::read_to_string(&file)?;
        let here = file.strip_prefix(root())?.to_string_lossy().into_owned();
        let allowed = here.starts_with("broker/src/standalone");
        ensure!(allowed || !text.contains("mqtt_operator_api"), "{here} uses mqtt_operator_api");
    }
    Ok(())
}

#[test]
fn every_source_file_says_what_it_owns_and_is_not_two_things() -> Result<()> {
    let mut files = Vec::new();
    for folder in ["broker", "operator", "e2e"] {
        files.extend(sources(&root().join(folder))?);
    }
    ensure!(files.len() > 20, "only {} files found", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let here = file.strip_prefix(root())?.display().to_string();
        if !text.starts_with("//! ") {
            wrong.push(format!("{here} does not begin with //!"));
        }
        let lines = text.lines().count();
        if lines > 600 {
            wrong.push(format!("{here} has {lines} lines, over 600"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The workspace's crates by name.
fn own_crates() -> Result<BTreeSet<String>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages =
        metadata.get("packages").and_then(|packages| packages.as_array()).context("no packages")?;
    Ok(packages
        .iter()
        .filter_map(|package| package.get("name").and_then(|name| name.as_str()))
        .map(str::to_owned)
        .collect())
}

/// What a crate as built by itself depends on, tests aside.
fn tree(name: &str, more: &[&str]) -> Result<BTreeSet<String>> {
    let mut arguments = vec!["tree", "-p", name, "-e", "normal,build", "--prefix", "none", "-f", "{p}"];
    arguments.extend(more);
    let text = cargo(&arguments)?;
    let names = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
    Ok(names.filter(|other| other != name).collect())
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO")).args(arguments).arg("--locked").current_dir(root()).output()?;
    ensure!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// All `.rs` files below a folder.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "target" && name != "node_modules" {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}
