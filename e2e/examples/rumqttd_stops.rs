//! Does to rumqttd, the path of whose binary is the argument, what is said to stop it, each thing to a new process.
//!
//! Ends with 1 if it stands any of them: then what we say of it is no longer true.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};
use mqtt_e2e::{
    PATIENCE,
    rumqttd_stoppers::{CONNECTIONS, STOPPERS, Target},
    wait_until,
};
use tempfile::TempDir;

struct Rumqttd {
    child: Child,
    target: Target,
    _home: TempDir,
}

fn main() -> Result<ExitCode> {
    let binary = std::env::args().nth(1).context("usage: rumqttd_stops PATH-OF-RUMQTTD")?;
    let mut stands = 0;
    for (what, stopper) in STOPPERS {
        let rumqttd = Rumqttd::start(Path::new(&binary))?;
        match rumqttd.target.survives(stopper) {
            Err(error) => println!("stops it: {what}: {error:#}"),
            Ok(()) => {
                println!("it stands: {what}");
                stands += 1;
            }
        }
    }
    Ok(if stands == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Rumqttd {
    fn start(binary: &Path) -> Result<Self> {
        let home = TempDir::with_prefix("rumqttd-")?;
        let (v3, v5) = (free_address()?, free_address()?);
        let config = home.path().join("rumqttd.toml");
        fs::write(&config, configuration(v3, v5))?;
        let log = File::create(home.path().join("log"))?;
        let child = Command::new(binary)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let rumqttd = Self { child, target: Target { v3, v5, login: None }, _home: home };
        for address in [v3, v5] {
            wait_until("rumqttd", PATIENCE, || Ok(TcpStream::connect(address).ok()))?;
        }
        Ok(rumqttd)
    }
}

impl Drop for Rumqttd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

fn configuration(v3: SocketAddr, v5: SocketAddr) -> String {
    let listener = |table: &str, address: SocketAddr| {
        format!(
            "[{table}.1]\nname = \"{table}\"\nlisten = \"{address}\"\nnext_connection_delay_ms = 0\n\
             [{table}.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 262144\n\
             max_inflight_count = 100\ndynamic_filters = true\n"
        )
    };
    format!(
        "id = 0\n[router]\nid = 0\nmax_connections = {CONNECTIONS}\nmax_outgoing_packet_count = 200\n\
         max_segment_size = 104857600\nmax_segment_count = 10\n{}{}",
        listener("v4", v3),
        listener("v5", v5)
    )
}
