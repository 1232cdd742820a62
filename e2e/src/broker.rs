//! One `mqtt-broker standalone` (or `run`) process: started, asked, killed and restarted as a user would.
//!
//! Everything it says is kept in files, so nothing is lost when it dies; whatever way a story ends, the
//! process ends with it. A failing story prints the end of the broker's log.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use mqtt_broker_api::admin::{RecordView, Text};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, de::DeserializeOwned};
use tempfile::TempDir;

use crate::{
    PATIENCE, Store,
    kafka::{Kafka, Listener},
    load::procfs,
    manifests::Manifests,
    wait_until,
};

/// How long a start may take: it replays what was stored, and waits for a Kafka that is away.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running broker with its folders.
pub struct Broker {
    /// What it runs from its next start on.
    program: PathBuf,
    home: TempDir,
    data: Data,
    process: Child,
    pub mqtt: SocketAddr,
    /// Its TLS listener, if it has one.
    pub mqtts: Option<SocketAddr>,
    /// Its WebSocket listeners, if it has them.
    pub ws: Option<SocketAddr>,
    pub wss: Option<SocketAddr>,
    pub admin: SocketAddr,
    starts: u32,
    /// Flags of its own.
    flags: Vec<String>,
}

/// Where a broker says it serves.
struct Ready {
    mqtt: SocketAddr,
    admin: SocketAddr,
    mqtts: Option<SocketAddr>,
    ws: Option<SocketAddr>,
    wss: Option<SocketAddr>,
}

/// Where its data is.
enum Data {
    Folder(PathBuf),
    Kafka(Arc<Kafka>, Listener),
}

/// How a broker ended that refused to start.
pub struct Refusal {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Broker {
    /// Starts on free ports with a new, empty data folder, and returns when it serves.
    pub fn start(manifests: &Manifests) -> Result<Self> {
        Self::start_on(&Store::Embedded, manifests)
    }

    /// The same on a store, which is empty then.
    pub fn start_on(store: &Store, manifests: &Manifests) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let data = match store {
            Store::Embedded => Data::Folder(home.path().join("data")),
            Store::Kafka(kafka, listener) => {
                kafka.clear()?;
                Data::Kafka(Arc::clone(kafka), *listener)
            }
        };
        Self::start_in(home, data, manifests, &[])
    }

    /// One node of several on the same Kafka, whose topics stay, with further flags: of this program, such as [`before`]. Its
    /// addresses are settled at once: it may begin anew by itself.
    pub fn start_beside(
        program: &Path,
        store: &Store,
        manifests: &Manifests,
        node: &str,
        flags: &[String],
    ) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let Store::Kafka(kafka, listener) = store else { bail!("several brokers share a Kafka only") };
        let data = Data::Kafka(Arc::clone(kafka), *listener);
        data.fit(manifests)?.write_to(&home.path().join("manifests"))?;
        let flags = [&["--node".to_owned(), node.to_owned()], flags].concat();
        let [mqtt, admin] = [free_address()?, free_address()?].map(|address| address.to_string());
        let mut process = serve(program, home.path(), &data, &mqtt, &admin, &flags)?;
        let ready = wait_for_ready(home.path(), &mut process, 1)?;
        Ok(Self::new(program.to_owned(), home, data, process, &ready, flags))
    }

    /// A counter of `/v1/counters`.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let counters: serde_json::Value = serde_json::from_str(&self.get("/v1/counters")?.1)?;
        counters.get(name).and_then(serde_json::Value::as_u64).with_context(|| format!("no counter {name}"))
    }

    /// The same for manifests with `spec.listeners.mqtts`, that on a free port, too.
    pub fn start_with_tls(manifests: &Manifests) -> Result<Self> {
        Self::start_with(manifests, &["--mqtts", "127.0.0.1:0"])
    }

    /// The same with further flags.
    pub fn start_with(manifests: &Manifests, flags: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let data = Data::Folder(home.path().join("data"));
        Self::start_in(home, data, manifests, flags)
    }

    /// The same with MQTT at this address.
    pub fn start_at(mqtt: &str, manifests: &Manifests, flags: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let data = Data::Folder(home.path().join("data"));
        Self::start_listening(mqtt, home, data, manifests, flags)
    }

    /// Starts `run --config CONFIG`, and does not wait for the ready line: [`Self::ready`] does.
    pub fn run(home: TempDir, config: &Path) -> Result<Self> {
        let program = binary()?;
        let process = spawn(home.path(), Command::new(&program).arg("run").arg("--config").arg(config))?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let data = Data::Folder(home.path().join("data"));
        let ready = Ready { mqtt: nowhere, admin: nowhere, mqtts: None, ws: None, wss: None };
        Ok(Self::new(program, home, data, process, &ready, Vec::new()))
    }

    /// Waits for the ready line, and knows the addresses then.
    pub fn ready(&mut self) -> Result<()> {
        let ready = wait_for_ready(self.home.path(), &mut self.process, self.starts)?;
        self.serves_at(&ready);
        Ok(())
    }

    fn new(
        program: PathBuf,
        home: TempDir,
        data: Data,
        process: Child,
        ready: &Ready,
        flags: Vec<String>,
    ) -> Self {
        let Ready { mqtt, admin, mqtts, ws, wss } = *ready;
        Self { program, home, data, process, mqtt, mqtts, ws, wss, admin, starts: 1, flags }
    }

    fn serves_at(&mut self, ready: &Ready) {
        let Ready { mqtt, admin, mqtts, ws, wss } = *ready;
        (self.mqtt, self.admin, self.mqtts, self.ws, self.wss) = (mqtt, admin, mqtts, ws, wss);
    }

    /// The same with the data in a folder of the caller's.
    pub fn start_with_data(manifests: &Manifests, data: &Path) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, Data::Folder(data.to_owned()), manifests, &[])
    }

    /// Starts a broker that ought to refuse, and returns what it said.
    pub fn refusal(manifests: &Manifests) -> Result<Refusal> {
        let home = tempfile::tempdir()?;
        manifests.write_to(&home.path().join("manifests"))?;
        let data = Data::Folder(home.path().join("data"));
        let process = serve(&binary()?, home.path(), &data, "127.0.0.1:0", "127.0.0.1:0", &[])?;
        Self::refused(&home, process)
    }

    /// The same for `run --config CONFIG`.
    pub fn refusal_to_run(config: &Path) -> Result<Refusal> {
        let home = tempfile::tempdir()?;
        let process = spawn(home.path(), Command::new(binary()?).arg("run").arg("--config").arg(config))?;
        Self::refused(&home, process)
    }

    fn refused(home: &TempDir, mut process: Child) -> Result<Refusal> {
        let status = wait_for_exit(&mut process, START_LIMIT);
        if status.is_err() {
            process.kill()?;
            process.wait()?;
        }
        let stderr = fs::read_to_string(home.path().join("log"))?;
        let status =
            status.with_context(|| format!("it should have refused to start; its log:\n{stderr}"))?;
        let stdout = fs::read_to_string(home.path().join("stdout"))?;
        ensure!(stdout.is_empty(), "a broker that does not serve must print nothing on stdout: {stdout:?}");
        Ok(Refusal { code: status.code(), stderr })
    }

    fn start_in(home: TempDir, data: Data, manifests: &Manifests, flags: &[&str]) -> Result<Self> {
        Self::start_listening("127.0.0.1:0", home, data, manifests, flags)
    }

    fn start_listening(
        mqtt: &str,
        home: TempDir,
        data: Data,
        manifests: &Manifests,
        flags: &[&str],
    ) -> Result<Self> {
        data.fit(manifests)?.write_to(&home.path().join("manifests"))?;
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let program = binary()?;
        let mut process = serve(&program, home.path(), &data, mqtt, "127.0.0.1:0", &flags)?;
        let ready = wait_for_ready(home.path(), &mut process, 1)?;
        Ok(Self::new(program, home, data, process, &ready, flags))
    }

    /// Writes the manifests live, as the only ones.
    pub fn apply(&self, manifests: &Manifests) -> Result<()> {
        self.data.fit(manifests)?.write_to(&self.home.path().join("manifests"))
    }

    /// SIGKILL: no farewell, no flush.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// From the next start on it is this program.
    pub fn becomes(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Starts again after an end, on the same data and the same ports.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.try_wait()?.is_some(), "it still runs");
        let (mqtt, admin) = (self.mqtt.to_string(), self.admin.to_string());
        // It may have begun anew by itself meanwhile.
        self.starts = u32::try_from(ready_lines(self.home.path())?.len())?;
        self.process = serve(&self.program, self.home.path(), &self.data, &mqtt, &admin, &self.flags)?;
        let ready = wait_for_ready(self.home.path(), &mut self.process, self.starts + 1)?;
        // One that refused to start has not said that it is ready.
        self.starts += 1;
        let stayed = (ready.mqtt, ready.admin) == (self.mqtt, self.admin);
        ensure!(stayed, "it serves elsewhere than it was told");
        self.serves_at(&ready);
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).context("no process ID")?;
        kill_process(pid, Signal::TERM)?;
        wait_for_exit(&mut self.process, PATIENCE)
    }

    /// SIGSTOP and SIGCONT.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).context("no process ID")?;
        Ok(kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT })?)
    }

    /// CPU time it has used, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let after_name = stat.rsplit_once(')').context("no name in its stat")?.1;
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0u64)).sum();
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// Memory it has resident, in bytes.
    pub fn resident(&self) -> Result<u64> {
        Ok(procfs::resident_kb(&self.process.id().to_string())? * 1024)
    }

    /// Everything it has logged since its first start.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.path().join("log"))?)
    }

    /// The log's lines that hold all of `parts`.
    pub fn log_lines(&self, parts: &[&str]) -> Result<Vec<String>> {
        let log = self.log()?;
        Ok(log
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(str::to_owned)
            .collect())
    }

    /// Waits for a log line that holds all of `parts`, and returns the first.
    pub fn wait_for_log(&self, parts: &[&str]) -> Result<String> {
        let lines = wait_until(&format!("a log line with {parts:?}"), PATIENCE, || {
            let lines = self.log_lines(parts)?;
            Ok((!lines.is_empty()).then_some(lines))
        });
        lines
            .with_context(|| format!("the log's end:\n{}", self.log_end()))?
            .into_iter()
            .next()
            .context("no line")
    }

    /// What `mqtt-broker records read TOPIC` prints, all partitions.
    pub fn records(&self, topic: &str) -> Result<Vec<RecordView>> {
        let output = self.command(&["records", "read", topic], "")?;
        ensure!(
            output.status.success(),
            "reading {topic}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let lines = String::from_utf8(output.stdout)?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a record's line: {line}")))
            .collect()
    }

    /// Waits until the topic has `count` records or more, and returns all.
    pub fn wait_for_records(&self, topic: &str, count: usize) -> Result<Vec<RecordView>> {
        wait_until(&format!("{count} records in {topic}"), PATIENCE, || {
            let records = self.records(topic)?;
            Ok((records.len() >= count).then_some(records))
        })
    }

    /// Appends one record to `mq2mqtt`, the value from standard input.
    pub fn append_mq2mqtt(&self, headers: &[(&str, &str)], value: &str) -> Result<()> {
        let headers: Vec<String> = headers.iter().map(|(name, text)| format!("{name}={text}")).collect();
        let mut arguments = vec!["records", "append", "mq2mqtt"];
        for header in &headers {
            arguments.extend(["--header", header]);
        }
        let output = self.command(&arguments, value)?;
        ensure!(output.status.success(), "appending: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Runs `mqtt-broker ARGUMENTS --admin ADDR` with text on its standard input.
    pub fn command(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = self.spawn(arguments)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }

    /// Starts `mqtt-broker ARGUMENTS --admin ADDR`, all its standard streams piped.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(binary()?);
        command.args(arguments).args(["--admin", &self.admin.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// GET on the admin endpoint: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
        Ok((status, body.trim().to_owned()))
    }

    /// The manifests folder, for stories that edit it by hand.
    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    fn log_end(&self) -> String {
        log_end(self.home.path())
    }
}

impl Data {
    /// The manifests with this Kafka in their instance, in place of the one that they name.
    fn fit<'a>(&self, manifests: &'a Manifests) -> Result<Cow<'a, Manifests>> {
        match self {
            Self::Folder(_) => Ok(Cow::Borrowed(manifests)),
            Self::Kafka(kafka, listener) => {
                let servers = kafka.bootstrap_of(*listener);
                Ok(Cow::Owned(manifests.clone().on_kafka(&servers, kafka.copies())?))
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The test runner shows this only for a story that failed.
        eprintln!("the broker's log ends so:\n{}", self.log_end());
    }
}

/// A record's header as text; absent: none of that name, or not UTF-8.
pub fn header<'a>(record: &'a RecordView, name: &str) -> Option<&'a str> {
    record.headers.iter().find(|(other, _)| other == name).and_then(|(_, text)| match text {
        Text::Utf8(text) => Some(text.as_str()),
        Text::Base64 { .. } => None,
    })
}

/// A record's key as text.
pub fn key(record: &RecordView) -> Option<&str> {
    match &record.key {
        Some(Text::Utf8(text)) => Some(text),
        _ => None,
    }
}

/// The value of a record under a parent topic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stored {
    pub client_id: String,
    pub topic: String,
    pub payload: String,
    /// Milliseconds since the Unix epoch.
    pub ts: i64,
    pub encoding: Option<String>,
}

impl Stored {
    pub fn of(record: &RecordView) -> Result<Self> {
        value(record)
    }

    /// The payload as it was published.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self.encoding.as_deref() {
            None => Ok(self.payload.clone().into_bytes()),
            Some("base64") => Ok(STANDARD.decode(&self.payload)?),
            Some(other) => bail!("the encoding {other:?}"),
        }
    }
}

/// A record's value, as the JSON it is.
pub fn value<T: DeserializeOwned>(record: &RecordView) -> Result<T> {
    match &record.value {
        Some(Text::Utf8(text)) => serde_json::from_str(text).with_context(|| format!("the value {text}")),
        other => bail!("not a JSON value: {other:?}"),
    }
}

/// An address of this machine that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The broker under test: `MQTT_BROKER_BIN`, or what cargo built beside this test.
pub fn binary() -> Result<PathBuf> {
    std::env::var_os("MQTT_BROKER_BIN").map_or_else(|| built("mqtt-broker"), |path| Ok(path.into()))
}

/// The broker of the commit before, which `make before` built beside this test.
pub fn before() -> Result<PathBuf> {
    built("before/mqtt-broker").context("`make before` builds it")
}

/// A binary of this workspace that cargo built beside this test.
pub fn built(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} near {}: run `cargo build -p {name}`", this.display()))
}

fn serve(
    program: &Path,
    home: &Path,
    data: &Data,
    mqtt: &str,
    admin: &str,
    flags: &[String],
) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg("standalone").arg("--manifests").arg(home.join("manifests"));
    match data {
        Data::Folder(folder) => command.arg("--data").arg(folder),
        Data::Kafka(kafka, listener) => command.arg("--kafka").arg(kafka.bootstrap_of(*listener)),
    };
    spawn(home, command.args(["--mqtt", mqtt, "--admin", admin]).args(flags))
}

fn spawn(home: &Path, command: &mut Command) -> Result<Child> {
    let append = |name| File::options().create(true).append(true).open(home.join(name));
    let child = command.stdin(Stdio::null()).stdout(append("stdout")?).stderr(append("log")?).spawn()?;
    Ok(child)
}

/// What it has said on standard output, a line each start.
fn ready_lines(home: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(home.join("stdout"))?;
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    Ok(lines.map(|line| line.trim().to_owned()).collect())
}

/// Waits for the ready line of the `starts`th start, the only line each start prints.
fn wait_for_ready(home: &Path, process: &mut Child, starts: u32) -> Result<Ready> {
    let starts = usize::try_from(starts)?;
    let line = wait_until("the ready line", START_LIMIT, || {
        let lines = ready_lines(home)?;
        match lines.get(starts - 1) {
            Some(line) => Ok(Some(Ok((line.clone(), lines.len())))),
            None => Ok(process.try_wait()?.map(Err)),
        }
    });
    match line {
        Ok(Ok((line, count))) if count == starts => {
            parse_ready(&line).with_context(|| format!("the ready line {line:?}"))
        }
        Ok(Ok((line, _))) => bail!("more than the ready line on stdout after {line:?}"),
        Ok(Err(status)) => bail!("the broker ended at its start: {status}; its log:\n{}", log_end(home)),
        Err(error) => {
            process.kill()?;
            process.wait()?;
            Err(error.context(format!("the broker's log:\n{}", log_end(home))))
        }
    }
}

/// `ready mqtt=ADDR admin=ADDR`, and further listeners behind it.
fn parse_ready(line: &str) -> Result<Ready> {
    let rest = line.strip_prefix("ready mqtt=").context("not of the form `ready mqtt=ADDR admin=ADDR…`")?;
    let rest = format!("mqtt={rest}");
    let mut addresses = BTreeMap::new();
    for word in rest.split(' ') {
        let (name, address) = word.split_once('=').with_context(|| format!("{word} names no address"))?;
        addresses.insert(name.to_owned(), address.parse::<SocketAddr>()?);
    }
    let mut take = |name| addresses.remove(name);
    let (mqtt, admin) = (take("mqtt").context("no mqtt")?, take("admin").context("no admin")?);
    let ready = Ready { mqtt, admin, mqtts: take("mqtts"), ws: take("ws"), wss: take("wss") };
    // Who needs to know has said it.
    take("peers");
    ensure!(addresses.is_empty(), "unknown listeners: {addresses:?}");
    Ok(ready)
}

fn wait_for_exit(process: &mut Child, limit: Duration) -> Result<ExitStatus> {
    wait_until("the broker's end", limit, || Ok(process.try_wait()?))
}

fn log_end(home: &Path) -> String {
    let log = fs::read_to_string(home.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}
