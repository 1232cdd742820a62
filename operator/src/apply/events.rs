//! Events: what `kubectl describe` shows of what happened to an object. One recorder for all, so that repeats are counted.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{PATIENCE, Subject, Writer};
use crate::status::{Turn, Verdict};

/// The longest note that the API server takes.
const NOTE_BYTES: usize = 1024;

pub(super) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(super) fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: super::MANAGER.into(), instance: Some(identity.into()) };
        Self { recorder: Recorder::new(client, reporter) }
    }
}

impl Writer {
    /// Tells what has become of an object. It is told once, or not at all: the status is what counts.
    pub async fn tell(&self, subject: &Subject<'_>, verdict: &Verdict) {
        let Some(left) = self.fence.left() else { return };
        let kind = super::resource(subject.object.kind);
        let reference = ObjectReference {
            api_version: Some(kind.api_version),
            kind: Some(kind.kind),
            name: Some(subject.object.name.clone()),
            namespace: Some(subject.object.namespace.clone()),
            uid: Some(subject.uid.into()),
            ..ObjectReference::default()
        };
        let mut note = verdict.message.clone();
        note.truncate(note.floor_char_boundary(NOTE_BYTES));
        let event = Event {
            type_: if verdict.turn == Turn::Theirs { EventType::Warning } else { EventType::Normal },
            reason: verdict.reason.clone(),
            note: (!note.is_empty()).then_some(note),
            action: "Reconcile".into(),
            secondary: None,
        };
        let published = self.events.recorder.publish(&event, &reference);
        match tokio::time::timeout(left.min(PATIENCE), published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("an event of {} can't be written: {error}", subject.object),
            Err(_) => tracing::warn!("an event of {} can't be written: no answer", subject.object),
        }
    }
}
