//! A device's trace over HTTP, in pages: each reads a bounded stretch of the partition that the device's events are in.

use std::{collections::HashSet, time::Duration};

use axum::{
    Json,
    extract::{Path, Query},
    http::StatusCode,
};
use mqtt_broker_api::trace::{TraceEvent, TracePage};
use mqtt_proto::murmur2;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::Serving;
use crate::{
    log::{CLOCK_SKEW, LogError, Offset, ReadLimit},
    node::Node,
};

/// Events of a page, and their bytes, more or less: what one read gives is not torn apart.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;
const READ: ReadLimit = ReadLimit { records: 2000, bytes: 1 << 20, wait: Duration::ZERO };
/// A page ends after this time, wherever it has come to.
const PAGE_TIME: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Deserialize)]
pub(super) struct Range {
    /// Milliseconds since the Unix epoch; absent: from the oldest event on.
    from: Option<i64>,
    /// The first millisecond that is not asked for; absent: up to the latest event.
    to: Option<i64>,
    /// [`TracePage::next`] of the page before.
    next: Option<Offset>,
}

pub(super) async fn read(
    Serving(node): Serving,
    Path(client_id): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<TracePage>, (StatusCode, String)> {
    let topic = node.bridge.topics().trace.name();
    let no = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("reading {topic}: {why}; try again\n"));
    match timeout(TIMEOUT, page(&node, &client_id, range)).await {
        Ok(Ok(page)) => Ok(Json(page)),
        Ok(Err(error)) => Err(no(error.to_string())),
        Err(_) => Err(no(format!("the log gave no answer within {} s", TIMEOUT.as_secs()))),
    }
}

async fn page(node: &Node, client_id: &str, range: Range) -> Result<TracePage, LogError> {
    let topic = &node.bridge.topics().trace;
    let partition = murmur2::partition(client_id.as_bytes(), topic.partitions());
    let until = Instant::now() + PAGE_TIME;
    let (from, to) = (range.from.unwrap_or(0), range.to.unwrap_or(i64::MAX));
    // What was made before `to` may stand behind what was made a little later.
    let last = to.saturating_add(i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX));
    let mut page = TracePage::default();
    let mut position = match range.next {
        Some(next) => next,
        None => node.log.offset_at(topic, partition, from).await?,
    };
    let mut seen = HashSet::new();
    let mut bytes = 0;
    loop {
        let batch = match node.log.read(topic, partition, position, READ).await {
            // What was there went by retention.
            Err(LogError::Lost { start }) => {
                position = start;
                continue;
            }
            // The topic was made anew.
            Err(LogError::Ahead { .. }) => return Ok(page),
            batch => batch?,
        };
        if batch.next == position {
            return Ok(page);
        }
        position = batch.next;
        for record in batch.records.into_iter().map(|stored| stored.record) {
            if record.created >= last {
                return Ok(page);
            }
            let is_asked_for =
                (from..to).contains(&record.created) && record.key.as_deref() == Some(client_id.as_bytes());
            if !is_asked_for {
                continue;
            }
            let value = record.value.as_deref().unwrap_or_default();
            bytes += value.len();
            match serde_json::from_slice::<TraceEvent<'static>>(value) {
                // A record may repeat after a failure.
                Ok(event) if seen.insert(event.id.to_string()) => page.events.push(event),
                Ok(_) => {}
                Err(_) => page.unreadable += 1,
            }
        }
        if page.events.len() >= PAGE || bytes >= PAGE_BYTES || Instant::now() > until {
            page.next = Some(position);
            return Ok(page);
        }
    }
}
