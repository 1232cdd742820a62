//! The admin endpoint: health, counters, and records for people and scripts.
//!
//! | path | answers |
//! |---|---|
//! | `GET /healthz` | 200 while the process runs |
//! | `GET /readyz` | 200, or 503 and one line why not |
//! | `GET /v1/acl` | generation and hash of the ACL document in force, and its number of users |
//! | `GET /v1/config` | hash of the config file in force; 404 where there is none |
//! | `GET /v1/counters` | a JSON object of counters and gauges |
//! | `GET /metrics` | the same and more for Prometheus, see [`metrics`] |
//! | `GET /v1/topics/TOPIC/records?from=OFFSET&follow=BOOL` | JSON records, one a line |
//! | `GET /v1/trace/CLIENT_ID?from=MS&to=MS&next=OFFSET` | a page of what happened to a device |
//! | `POST /v1/topics/mq2mqtt/records` | appends one record, answers its partition and offset |
//!
//! Before the node serves, all but `/healthz` answer 503 and one line why.

pub(crate) mod client;
mod metrics;
mod records;
mod trace;
pub(crate) mod trace_client;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    routing::get,
};
use mqtt_broker_api::admin::{AclView, ConfigView};
use serde_json::{Map, Value};
use tokio::net::TcpListener;

use crate::{log::Health, node::Node};

/// The largest request body.
const BODY_LIMIT: usize = 4 << 20;

/// How far the process has come.
pub(crate) enum Stage {
    /// What it waits for, in one line.
    Starting(String),
    Serving(Arc<Node>),
}

/// Serves until its task is aborted.
pub(crate) async fn serve(stage: Arc<ArcSwap<Stage>>, listener: TcpListener) {
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/v1/acl", get(acl))
        .route("/v1/config", get(config))
        .route("/v1/counters", get(counters))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/topics/{topic}/records", get(records::read).post(records::append))
        .route("/v1/trace/{client_id}", get(trace::read))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(stage);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!("the admin endpoint stopped: {error}");
    }
}

/// The node, for requests that need it.
struct Serving(Arc<Node>);

impl FromRequestParts<Arc<ArcSwap<Stage>>> for Serving {
    type Rejection = (StatusCode, String);

    async fn from_request_parts(
        _: &mut Parts,
        stage: &Arc<ArcSwap<Stage>>,
    ) -> Result<Serving, (StatusCode, String)> {
        match &**stage.load() {
            Stage::Serving(node) => Ok(Serving(node.clone())),
            Stage::Starting(why) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("starting: {why}\n"))),
        }
    }
}

async fn ready(Serving(node): Serving) -> (StatusCode, String) {
    if node.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match &*node.log.health().borrow() {
        Health::Working => (StatusCode::OK, "ready\n".to_owned()),
        // Another node could do no better, and what needs no store goes on.
        Health::Away(why) => (StatusCode::OK, format!("ready, but {why}\n")),
        Health::Failing(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn acl(Serving(node): Serving) -> Json<AclView> {
    Json(node.settings().acl.clone())
}

async fn config(Serving(node): Serving) -> Result<Json<ConfigView>, (StatusCode, &'static str)> {
    let hash = node.config_hash.load_full().ok_or((StatusCode::NOT_FOUND, "no config file steers this\n"))?;
    Ok(Json(ConfigView { hash: hash.to_string() }))
}

async fn counters(Serving(node): Serving) -> Json<Value> {
    let mut all: Map<String, Value> =
        node.counters.all().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    all.extend(node.log.figures().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))));
    for (name, traffic) in [("received", &node.counters.received), ("sent", &node.counters.sent)] {
        let messages: u64 = traffic.messages().iter().sum();
        all.insert(format!("messages_{name}"), Value::from(messages));
    }
    let away = *node.log.health().borrow() != Health::Working;
    all.insert("log_away".to_owned(), Value::from(u64::from(away)));
    all.insert("presence_drops".to_owned(), Value::from(node.bridge.presence_drops.get()));
    all.insert("trace_drops".to_owned(), Value::from(node.bridge.trace_drops.get()));
    all.insert("password_hashes".to_owned(), Value::from(node.logins.hashes()));
    let (resident, bound) = node.admission.memory.figures();
    all.insert("memory_resident_bytes".to_owned(), Value::from(resident));
    all.insert("memory_bound_bytes".to_owned(), Value::from(bound));
    all.insert("connections".to_owned(), Value::from(node.connections.count()));
    all.insert("subscriptions".to_owned(), Value::from(node.router.subscriptions()));
    let figures = node.relay.iter().flat_map(|relay| relay.figures());
    all.extend(figures.map(|(name, value)| (name.to_owned(), Value::from(value))));
    all.insert("publishes_by_lease".to_owned(), Value::from(node.sessions.routed_at_once()));
    all.insert("sessions_logged".to_owned(), Value::from(node.sessions.live()));
    Json(Value::Object(all))
}
