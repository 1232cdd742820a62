//! Statuses: written when they change, and told as an event when they change for the worse or back.
//!
//! What was written last is remembered until the watch has told it or until [`Writer::forget_status`], for a watch may lag behind;
//! else `lastTransitionTime` would move twice for one change.

use std::collections::HashMap;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    api::{Patch, PatchParams},
    core::ObjectMeta,
};
use mqtt_operator_api::{
    Kind,
    render::ObjectName,
    status::{READY, STALLED, Status},
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{Error, MANAGER, Writer};
use crate::{
    digest::digest,
    status::{Turn, Verdict, conditions},
};

/// The object that a status is written on.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub object: &'a ObjectName,
    pub uid: &'a str,
    pub generation: Option<i64>,
    /// The status that it was seen to have; null: none.
    pub seen: &'a Value,
}

#[derive(Default)]
pub(super) struct Statuses {
    /// By object: its UID, and the status that was written last and not seen since.
    written: Mutex<HashMap<ObjectName, (String, Value)>>,
    /// By object: digests of what was found to be no news.
    settled: Mutex<HashMap<ObjectName, u64>>,
}

/// A status that is to be, and what it takes the place of.
struct News {
    before: Value,
    old: Vec<Condition>,
    now: Vec<Condition>,
    status: Value,
}

impl Statuses {
    /// What was written last, as long as the watch has not told it: then what is seen is all there is to know.
    fn not_seen_yet(&self, object: &ObjectName, uid: &str, seen: &Value) -> Option<Value> {
        let mut statuses = self.written.lock();
        let (of, written) = statuses.get(object)?;
        if of == uid && written != seen {
            return Some(written.clone());
        }
        statuses.remove(object);
        None
    }
}

impl Writer {
    /// Says how an object fares, and what else there is to say. Answers the conditions.
    pub async fn say(
        &self,
        subject: &Subject<'_>,
        verdict: &Verdict,
        more: Map<String, Value>,
    ) -> Result<Vec<Condition>, Error> {
        let Subject { object, uid, .. } = subject;
        let News { before, old, now, status } = self.news(subject, verdict, more);
        if status == before {
            return Ok(now);
        }
        // A merge, not server-side apply: definitions that are older than the operator drop what they do not know.
        let gone = before.as_object().into_iter().flatten().filter(|(field, _)| status.get(*field).is_none());
        let gone: Map<String, Value> = gone.map(|(field, _)| (field.clone(), Value::Null)).collect();
        let all =
            status.as_object().into_iter().flatten().map(|(field, value)| (field.clone(), value.clone()));
        let patch = json!({"status": all.chain(gone).collect::<Map<_, _>>()});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let api = self.ours(object);
        let patch = Patch::Merge(&patch);
        let what = format!("write the status of {object}");
        let patched = async { api.patch_status(&object.name, &params, &patch).await.map(drop) };
        self.write(&what, super::absent_is_fine(patched)).await?;
        self.statuses.written.lock().insert((*object).clone(), ((*uid).to_owned(), status));
        if worth_telling(object.kind, &old, verdict) {
            tracing::info!("{object}: {}: {}", verdict.reason, verdict.message);
            self.tell(subject, verdict).await;
        }
        Ok(now)
    }

    /// Whether that would be anything new to who has this status. The same question about the same object is answered without another
    /// look.
    pub fn has_news(
        &self,
        object: &ObjectName,
        metadata: &ObjectMeta,
        status: Option<&Status>,
        verdict: &Verdict,
    ) -> bool {
        let asked = digest(&(&metadata.uid, &metadata.resource_version, format!("{verdict:?}")));
        if self.statuses.settled.lock().get(object) == Some(&asked) {
            return false;
        }
        let (uid, seen) = (metadata.uid.as_deref().unwrap_or_default(), json!(status));
        let subject = Subject { object, uid, generation: metadata.generation, seen: &seen };
        let News { before, status, .. } = self.news(&subject, verdict, Map::new());
        let is_new = status != before;
        let mut settled = self.statuses.settled.lock();
        if is_new {
            settled.remove(object);
        } else {
            settled.insert(object.clone(), asked);
        }
        is_new
    }

    fn news(&self, subject: &Subject<'_>, verdict: &Verdict, more: Map<String, Value>) -> News {
        let Subject { object, uid, generation, seen } = subject;
        let written = self.statuses.not_seen_yet(object, uid, seen);
        let before = written.unwrap_or_else(|| (*seen).clone());
        let old = conditions_in(&before);
        let now = conditions(&old, verdict, *generation, &Time(now()));
        let mut status = more;
        status.insert("observedGeneration".into(), json!(generation));
        status.insert("conditions".into(), json!(now));
        News { before, old, now, status: Value::Object(status) }
    }

    /// The object is gone.
    pub fn gone(&self, object: &ObjectName) {
        self.statuses.written.lock().remove(object);
        self.statuses.settled.lock().remove(object);
    }

    /// What others have made of statuses counts again.
    pub fn forget_status(&self, which: impl Fn(&ObjectName) -> bool) {
        self.statuses.written.lock().retain(|object, _| !which(object));
        self.statuses.settled.lock().retain(|object, _| !which(object));
    }
}

/// Conditions come and go with whole seconds: what is read back is equal to what was written.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn conditions_in(status: &Value) -> Vec<Condition> {
    let conditions = status.get("conditions").cloned().unwrap_or_default();
    serde_json::from_value(conditions).unwrap_or_default()
}

/// Whatever needs a person, and that it no longer does; of an instance also that it serves, or does no longer.
fn worth_telling(kind: Kind, old: &[Condition], verdict: &Verdict) -> bool {
    let find = |type_: &str| old.iter().find(|condition| condition.type_ == type_);
    let stalled = find(STALLED).filter(|condition| condition.status == "True");
    let ready = find(READY).is_some_and(|condition| condition.status == "True");
    match verdict.turn {
        Turn::Theirs => {
            stalled.is_none_or(|old| (&old.reason, &old.message) != (&verdict.reason, &verdict.message))
        }
        Turn::Nobody => stalled.is_some() || (kind == Kind::MqttInstance && !ready),
        Turn::Ours => kind == Kind::MqttInstance && ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_when_a_person_is_needed_and_when_no_longer() {
        let at = Time(Timestamp::UNIX_EPOCH);
        let of = |verdict: &Verdict| conditions(&[], verdict, None, &at);
        let (ready, ours, theirs) = (
            Verdict::ready("InForce", "all is well"),
            Verdict::reconciling("Loading", "wait"),
            Verdict::stalled("SecretNotFound", "create it"),
        );
        let other = Verdict::stalled("SecretNotFound", "create another");
        for (kind, old, new, told) in [
            (Kind::MqttUser, None, &ours, false),
            (Kind::MqttUser, Some(&ours), &ready, false),
            (Kind::MqttUser, Some(&ready), &ours, false),
            (Kind::MqttUser, Some(&ready), &theirs, true),
            (Kind::MqttUser, Some(&theirs), &theirs, false),
            (Kind::MqttUser, Some(&theirs), &other, true),
            (Kind::MqttUser, Some(&theirs), &ready, true),
            (Kind::MqttInstance, None, &ours, false),
            (Kind::MqttInstance, Some(&ours), &ready, true),
            (Kind::MqttInstance, Some(&ready), &ours, true),
            (Kind::MqttInstance, Some(&ready), &ready, false),
        ] {
            let old = old.map(of).unwrap_or_default();
            assert_eq!(worth_telling(kind, &old, new), told, "{kind}: {old:?}, then {new:?}");
        }
    }
}
