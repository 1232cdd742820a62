//! What the operator tells of itself: `GET /healthz`, `/readyz` and `/metrics`.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200, or 503 once a reconcile has hung for [`HUNG`]: then only a restart helps |
//! | `/readyz` | 200 while it acts or waits for the Lease, 503 and why until it knows what there is |
//! | `/metrics` | figures, see [`Metrics`] |

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use mqtt_operator_api::render::ObjectName;
use parking_lot::Mutex;
use tokio::{net::TcpListener, time::Instant};

use crate::{
    metrics::{Gauges, Metrics},
    queue::Queue,
};

/// More than any reconcile takes: each of its waits has a bound.
const HUNG: Duration = Duration::from_secs(900);

/// How far the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Starting,
    /// Another process acts.
    Waiting,
    /// It leads, and lists what there is.
    Listing,
    Acting,
}

pub struct Health {
    stage: Mutex<Stage>,
    running: Mutex<HashMap<ObjectName, Instant>>,
    pub metrics: Metrics,
    pub queue: Arc<Queue>,
}

impl Health {
    pub fn new(queue: Arc<Queue>) -> Self {
        let (running, metrics) = (Mutex::default(), Metrics::default());
        Self { stage: Mutex::new(Stage::Starting), running, metrics, queue }
    }

    pub fn set(&self, stage: Stage) {
        *self.stage.lock() = stage;
    }

    pub fn begun(&self, object: &ObjectName) {
        self.running.lock().insert(object.clone(), Instant::now());
    }

    /// How long it took.
    pub fn ended(&self, object: &ObjectName) -> Duration {
        self.running.lock().remove(object).map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn hung(&self) -> Option<ObjectName> {
        let running = self.running.lock();
        running.iter().find(|(_, since)| since.elapsed() > HUNG).map(|(object, _)| object.clone())
    }
}

/// Serves until its task is aborted.
pub async fn serve(health: Arc<Health>, listener: TcpListener) {
    let routes = Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!("health and metrics are served no longer: {error}");
    }
}

async fn live(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match health.hung() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(object) => (StatusCode::SERVICE_UNAVAILABLE, format!("the reconcile of {object} hangs\n")),
    }
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    match *health.stage.lock() {
        Stage::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: asks for the Lease\n"),
        Stage::Listing => (StatusCode::SERVICE_UNAVAILABLE, "starting: lists what there is\n"),
        Stage::Waiting => (StatusCode::OK, "ready: another operator acts\n"),
        Stage::Acting => (StatusCode::OK, "ready\n"),
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> String {
    let (waiting, running) = health.queue.load();
    let leads = matches!(*health.stage.lock(), Stage::Listing | Stage::Acting);
    health.metrics.text(Gauges { leads, waiting, running, resident_bytes: resident_bytes() })
}

/// As Linux counts it (proc(5)).
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}
