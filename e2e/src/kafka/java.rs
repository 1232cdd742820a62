//! Java programs in processes of their own: Kafka's own classes, and the programs in `e2e/kafka`, which talk in lines.
//!
//! A [`Program`] reads lines on standard input and writes JSON lines on standard output. It ends with its value, or
//! by itself when the test process is gone, since its standard input then ends.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Version;
use crate::clients::root;

/// Lines of a program's standard error that a failure shows.
const TOLD: usize = 20;

/// `java` with the jars of a release, a small heap, and what makes short runs start quickly.
pub(super) fn java(version: Version, heap: &str) -> Result<Command> {
    let jars = root().join(format!(".tools/kafka-{}", version.number()));
    ensure!(jars.is_dir(), "no Kafka in {}: run `make tools`", jars.display());
    let settings = root().join("e2e/kafka");
    let mut command = Command::new("java");
    command
        .arg(format!("-Xmx{heap}"))
        .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-Dlog4j2.configurationFile={}", settings.join("log4j2.properties").display()))
        .arg(format!("-Dlog4j.configuration=file:{}", settings.join("log4j.properties").display()))
        .arg("-cp")
        .arg(jars.join("*"));
    Ok(command)
}

/// One of the programs in `e2e/kafka`, running.
pub struct Program {
    name: &'static str,
    process: Child,
    input: ChildStdin,
    lines: Receiver<Line>,
    errors: VecDeque<String>,
}

enum Line {
    Out(String),
    Err(String),
}

impl Program {
    /// Starts `e2e/kafka/NAME.java` as a user would; the clients in it are the newest release's.
    pub fn start(name: &'static str, arguments: &[&str]) -> Result<Self> {
        let mut process = java(Version::Current, "128m")?
            .arg(root().join(format!("e2e/kafka/{name}.java")))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting java: a JDK of 17 or later is needed")?;
        let input = process.stdin.take().context("no standard input")?;
        let output = process.stdout.take().context("no standard output")?;
        let errors = process.stderr.take().context("no standard error")?;
        let (sender, lines) = channel();
        let told = sender.clone();
        thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(Line::Out(line)))
        });
        thread::spawn(move || {
            BufReader::new(errors)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| told.send(Line::Err(line)))
        });
        Ok(Self { name, process, input, lines, errors: VecDeque::new() })
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &Value) -> Result<()> {
        writeln!(self.input, "{line}")
            .with_context(|| format!("{} has ended; it said:\n{}", self.name, self.said()))
    }

    /// The next line it prints.
    pub fn next<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        match self.next_within(limit)? {
            Some(line) => Ok(line),
            None => bail!("{} printed nothing in {limit:?}; it said:\n{}", self.name, self.said()),
        }
    }

    /// The next line it prints, or nothing if none comes in time.
    pub fn next_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<Option<T>> {
        loop {
            match self.lines.recv_timeout(limit) {
                Ok(Line::Out(line)) => {
                    return serde_json::from_str(&line)
                        .map(Some)
                        .with_context(|| format!("a line of {}: {line}", self.name));
                }
                Ok(Line::Err(line)) => {
                    self.errors.push_back(line);
                    self.errors.drain(..self.errors.len().saturating_sub(TOLD));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} has ended; it said:\n{}", self.name, self.said())
                }
            }
        }
    }

    fn said(&self) -> String {
        self.errors.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
