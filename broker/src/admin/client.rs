//! What `mqtt-broker records` asks of a running broker.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use mqtt_broker_api::admin::{Appended, NewRecord, Text};
use ureq::{Agent, Body, http::Response};

/// Where a payload comes from.
pub(crate) enum Payload {
    Text(String),
    File(PathBuf),
    Stdin,
}

/// Prints records, one a line, as they come.
pub(crate) fn read(admin: &str, topic: &str, from: Option<u64>, follow: bool) -> anyhow::Result<()> {
    let mut request = agent().get(url(admin, topic)).query("follow", follow.to_string());
    if let Some(from) = from {
        request = request.query("from", from.to_string());
    }
    let mut response = expect_success(admin, request.call())?;
    let mut lines = BufReader::new(response.body_mut().as_reader());
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("the answer ended early (the broker's log says why)")?
        > 0
    {
        match out.write_all(&line).and_then(|()| if follow { out.flush() } else { Ok(()) }) {
            // Whoever read it has enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            outcome => outcome?,
        }
        line.clear();
    }
    Ok(())
}

/// Appends one record and says where it stands.
pub(crate) fn append(
    admin: &str,
    topic: &str,
    headers: Vec<(String, String)>,
    key: Option<String>,
    payload: Payload,
) -> anyhow::Result<()> {
    let bytes = match payload {
        Payload::Text(text) => text.into_bytes(),
        Payload::File(path) => fs::read(&path).with_context(|| format!("can't read {}", path.display()))?,
        Payload::Stdin => {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).context("can't read standard input")?;
            bytes
        }
    };
    let value = match String::from_utf8(bytes) {
        Ok(text) => Text::Utf8(text),
        Err(error) => Text::Base64 { base64: BASE64_STANDARD.encode(error.as_bytes()) },
    };
    let record = NewRecord { key: key.map(Text::Utf8), value: Some(value), headers };
    let mut response = expect_success(admin, agent().post(url(admin, topic)).send_json(&record))?;
    let appended: Appended = response.body_mut().read_json().context("the broker's answer can't be read")?;
    println!("{}", serde_json::to_string(&appended)?);
    Ok(())
}

pub(super) fn agent() -> Agent {
    Agent::config_builder().http_status_as_error(false).build().into()
}

fn url(admin: &str, topic: &str) -> String {
    format!("http://{admin}/v1/topics/{topic}/records")
}

pub(super) fn expect_success(
    admin: &str,
    outcome: Result<Response<Body>, ureq::Error>,
) -> anyhow::Result<Response<Body>> {
    let mut response = outcome
        .with_context(|| format!("no broker answers at {admin}: give its admin address with --admin"))?;
    if !response.status().is_success() {
        bail!("{}", response.body_mut().read_to_string().unwrap_or_default().trim_end());
    }
    Ok(response)
}
