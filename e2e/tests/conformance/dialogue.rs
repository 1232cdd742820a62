//! Dialogues: who sends what, what must come back, and when it must be over.
//!
//! `# NAME LEVELS` begins one; a line is one step of one client, a capital letter:
//! `A > BYTES` it sends, connecting first if need be · `A < BYTES` the next packet must be so · `A connects` with a clean
//! session and is let in · `A closed` the broker closes · `A lives` a ping is answered, and nothing came before ·
//! `A drops` it closes without a word. `3:`, `4:` or `5:` before a step is for that level alone. Every dialogue has client IDs
//! of its own through `@`, which stands for its name and level.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::PATIENCE;

use crate::notation::{self, Names};

pub(crate) struct Script {
    pub(crate) name: String,
    pub(crate) levels: Vec<u8>,
    steps: Vec<(usize, String)>,
}

pub(crate) fn parse(text: &str) -> Result<Vec<Script>> {
    let mut scripts: Vec<Script> = Vec::new();
    for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if let Some(title) = line.strip_prefix("# ") {
            let mut words = title.split_whitespace();
            let name = words.next().context("no name")?.to_owned();
            let levels: Vec<u8> = words.map(|word| Ok(word.parse()?)).collect::<Result<_>>()?;
            ensure!(name.contains('-') && !levels.is_empty(), "line {at}: a name with hyphens, and levels");
            scripts.push(Script { name, levels, steps: Vec::new() });
        } else if !line.is_empty() && !line.starts_with("//") {
            let script = scripts.last_mut().with_context(|| format!("line {at} is in no dialogue"))?;
            script.steps.push((at, line.to_owned()));
        }
    }
    Ok(scripts)
}

#[derive(Default)]
struct Client {
    stream: Option<TcpStream>,
    unread: Vec<u8>,
}

impl Script {
    pub(crate) fn play(&self, broker: SocketAddr, level: u8) -> Result<()> {
        let own = format!("{}-{level}", self.name);
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        let mut names = Names::new();
        for (at, line) in &self.steps {
            let (wanted, line) = match line.split_once(':') {
                Some((one @ ("3" | "4" | "5"), line)) => (one.parse()?, line),
                _ => (level, line.as_str()),
            };
            if wanted == level {
                let line = line.trim().replace('@', &own);
                let step = step(&line, level, broker, &mut clients, &mut names);
                step.with_context(|| format!("line {at}: {line}"))?;
            }
        }
        Ok(())
    }
}

fn step(
    line: &str,
    level: u8,
    broker: SocketAddr,
    clients: &mut BTreeMap<String, Client>,
    names: &mut Names,
) -> Result<()> {
    let (who, what) = line.split_once(' ').context("a client and what it does")?;
    let client = clients.entry(who.to_owned()).or_default();
    match what.split_once(' ').unwrap_or((what, "")) {
        (">", text) => client.send(broker, &notation::bytes(&notation::parse(text, level)?, names)?),
        ("<", text) => client.expect(&notation::parse(text, level)?, names),
        ("connects", "") => {
            let id = format!("{who}-{}", clients_own_number());
            let name = if level == 3 { "MQIsdp" } else { "MQTT" };
            let connect = format!("10 [ '{name}' {level:02x} 02 0000 {{}} '{id}' ]");
            client.send(broker, &notation::bytes(&notation::parse(&connect, level)?, names)?)?;
            client.expect(&notation::parse("20 [ 00 00 { .. } ]", level)?, names)
        }
        ("closed", "") => match client.read()? {
            None => Ok(()),
            Some(packet) => bail!("came {packet:02x?}"),
        },
        ("lives", "") => {
            client.send(broker, &[0xC0, 0])?;
            client.expect(&notation::parse("d0 00", level)?, names)
        }
        ("drops", "") => {
            let stream = client.stream.take().context("it is not connected")?;
            stream.shutdown(Shutdown::Both)?;
            client.unread.clear();
            Ok(())
        }
        _ => bail!("not a step"),
    }
}

/// So that no two connections without a client ID of their own meet.
fn clients_own_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Client {
    fn send(&mut self, broker: SocketAddr, bytes: &[u8]) -> Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(&broker, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                none.insert(stream)
            }
        };
        stream.write_all(bytes).context("sending")
    }

    fn expect(&mut self, items: &[notation::Item], names: &mut Names) -> Result<()> {
        match self.read()? {
            None => bail!("it was closed"),
            Some(packet) => {
                ensure!(notation::matches(items, &packet, names), "came {packet:02x?}");
                Ok(())
            }
        }
    }

    /// The next packet; none: the broker has closed, and the next step connects anew.
    fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let stream = self.stream.as_mut().context("it is not connected")?;
        loop {
            let behind = self.unread.get(1..).and_then(notation::split_block).map(|(_, behind)| behind.len());
            if let Some(behind) = behind {
                let length = self.unread.len() - behind;
                return Ok(Some(self.unread.drain(..length).collect()));
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.unread.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error).context("waiting for a packet"),
            }
        }
        ensure!(self.unread.is_empty(), "it was closed within a packet: {:02x?}", self.unread);
        self.stream = None;
        Ok(None)
    }
}
