//! The admin endpoint: health, counters, and records for people and scripts.
//!
//! | path | answers |
//! |---|---|
//! | `GET /healthz` | 200 while the process runs |
//! | `GET /readyz` | 200, or 503 and one line why not |
//! | `GET /v1/counters` | a JSON object of counters and gauges |
//! | `GET /v1/topics/TOPIC/records?from=OFFSET&follow=BOOL` | JSON records, one a line |
//! | `POST /v1/topics/mq2mqtt/records` | appends one record, answers its partition and offset |

pub(crate) mod client;
mod records;

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Map, Value};
use tokio::net::TcpListener;

use crate::{log::Health, node::Node};

/// The largest request body.
const BODY_LIMIT: usize = 4 << 20;

/// Serves until its task is aborted.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/v1/counters", get(counters))
        .route("/v1/topics/{topic}/records", get(records::read).post(records::append))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(node);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!("the admin endpoint stopped: {error}");
    }
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    match &*node.log.health().borrow() {
        Health::Working => (StatusCode::OK, "ready\n".to_owned()),
        // Another node could do no better, and what needs no store goes on.
        Health::Away(why) => (StatusCode::OK, format!("ready, but {why}\n")),
        Health::Failing(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn counters(State(node): State<Arc<Node>>) -> Json<Value> {
    let mut all: Map<String, Value> =
        node.counters.all().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    all.extend(node.log.figures().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))));
    all.insert("presence_drops".to_owned(), Value::from(node.bridge.presence_drops.get()));
    all.insert("connections".to_owned(), Value::from(node.connections.count()));
    all.insert("subscriptions".to_owned(), Value::from(node.router.subscriptions()));
    Json(Value::Object(all))
}
