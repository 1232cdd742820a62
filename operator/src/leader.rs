//! Which of several operators acts: the holder of a Lease, fenced by its resourceVersion.
//!
//! Promises: two never act at once. Clocks of two machines are never compared: a Lease that was seen unchanged for its
//! whole duration is taken over, and the API server takes one of two such updates. Whoever could not renew in time has a
//! [`Fence`] that lets no write through, a process that was halted and wakes included, and its process is to end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep, timeout};

/// How long a Lease is good for after it was renewed.
const DURATION: Duration = Duration::from_secs(15);
/// The holder counts its Lease as gone so much earlier.
const MARGIN: Duration = Duration::from_secs(3);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often a Lease of somebody else is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one answer is waited for.
const ANSWER: Duration = Duration::from_secs(5);

/// Until when this process may write. All zero until it leads.
#[derive(Debug, Default)]
pub struct Fence {
    /// Nanoseconds of [`uptime`].
    until: AtomicU64,
}

impl Fence {
    /// How long writes may still take; none once they may not.
    pub fn left(&self) -> Option<Duration> {
        let until = Duration::from_nanos(self.until.load(Ordering::Acquire));
        until.checked_sub(uptime()).filter(|left| !left.is_zero())
    }

    /// The Lease was renewed by a request that left at `sent`.
    fn renewed(&self, sent: Duration) {
        let until = sent.saturating_add(DURATION).saturating_sub(MARGIN);
        self.until.store(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Release);
    }
}

/// Since the machine started. Goes on while the process is halted, and while the machine sleeps.
fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Why this process no longer leads, or can't.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{holder} holds Lease {lease} now; this operator ends, and starts again as one that waits")]
    Taken { lease: String, holder: String },
    #[error("Lease {lease} could not be renewed in time ({why}); this operator ends, and starts again")]
    TooLate { lease: String, why: String },
}

/// One candidate for a Lease.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    /// `NAMESPACE/NAME`.
    path: String,
    /// Who this is: the name of its pod.
    identity: String,
}

impl Candidate {
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.into(),
            path: format!("{namespace}/{name}"),
            identity: identity.into(),
        }
    }

    /// Waits until this process leads, however long that takes; tells `waits` that another one does.
    pub async fn acquire(&self, fence: &Fence, waits: impl Fn()) -> Lease {
        let mut seen: Option<(Lease, Instant)> = None;
        let mut told = String::new();
        loop {
            let said = match self.look(&mut seen).await {
                Ok(Free::Yes(lease)) => {
                    let sent = uptime();
                    match self.write(*lease).await {
                        Ok(lease) => {
                            fence.renewed(sent);
                            tracing::info!("{} holds Lease {}", self.identity, self.path);
                            return lease;
                        }
                        Err(why) => why,
                    }
                }
                Ok(Free::No(holder)) => {
                    waits();
                    format!("waits for Lease {}, which {holder} holds", self.path)
                }
                Err(why) => why,
            };
            if said != told {
                tracing::info!("{said}");
                told = said;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Renews until that fails; ends with why.
    pub async fn keep(&self, mut lease: Lease, fence: &Fence) -> Error {
        let mut why = String::from("no answer");
        loop {
            sleep(RENEW_EVERY).await;
            let (sent, Some(left)) = (uptime(), fence.left()) else {
                fence.end();
                return Error::TooLate { lease: self.path.clone(), why };
            };
            match timeout(left, self.write(lease.clone())).await {
                Ok(Ok(renewed)) => {
                    fence.renewed(sent);
                    lease = renewed;
                }
                Ok(Err(failed)) => {
                    tracing::warn!("{failed}");
                    why = failed;
                    // Somebody has changed it, or this process's own update was not seen to succeed.
                    match self.get().await {
                        Ok(Some(found)) if holder(&found) == self.identity => lease = found,
                        Ok(Some(found)) => {
                            fence.end();
                            return Error::Taken { lease: self.path.clone(), holder: holder(&found).into() };
                        }
                        Ok(None) => lease.metadata.resource_version = None,
                        Err(_) => {}
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// Gives it back, so that the next one need not wait. Nothing may be written any more.
    pub async fn release(&self, fence: &Fence) {
        fence.end();
        let Ok(Some(mut lease)) = self.get().await else { return };
        if holder(&lease) != self.identity {
            return;
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let params = PostParams::default();
        let replaced = self.leases.replace(&self.name, &params, &lease);
        if let Ok(Ok(_)) = timeout(ANSWER, replaced).await {
            tracing::info!("{} gave Lease {} back", self.identity, self.path);
        }
    }

    async fn look(&self, seen: &mut Option<(Lease, Instant)>) -> Result<Free, String> {
        let Some(found) = self.get().await? else { return Ok(Free::Yes(Box::new(self.new_lease()))) };
        if holder(&found).is_empty() || holder(&found) == self.identity {
            return Ok(Free::Yes(Box::new(found)));
        }
        let same = |(before, _): &&(Lease, Instant)| {
            before.metadata.resource_version == found.metadata.resource_version
        };
        let since = seen.as_ref().filter(same).map_or_else(Instant::now, |(_, since)| *since);
        let holder = holder(&found).to_owned();
        *seen = Some((found.clone(), since));
        let whole = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let whole =
            whole.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs);
        Ok(if since.elapsed() > whole { Free::Yes(Box::new(found)) } else { Free::No(holder) })
    }

    fn new_lease(&self) -> Lease {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        Lease { metadata, spec: None }
    }

    /// Takes or renews a Lease as it was seen: the API server refuses it if it has changed since.
    async fn write(&self, mut lease: Lease) -> Result<Lease, String> {
        let before = lease.spec.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let same = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if same { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        let answer = async {
            match lease.metadata.resource_version {
                Some(_) => self.leases.replace(&self.name, &params, &lease).await,
                None => self.leases.create(&params, &lease).await,
            }
        };
        match timeout(ANSWER, answer).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(format!("Lease {} can't be written: {error}", self.path)),
            Err(_) => Err(format!("Lease {} can't be written: no answer", self.path)),
        }
    }

    async fn get(&self) -> Result<Option<Lease>, String> {
        match timeout(ANSWER, self.leases.get_opt(&self.name)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(format!("Lease {} can't be read: {error}", self.path)),
            Err(_) => Err(format!("Lease {} can't be read: no answer", self.path)),
        }
    }
}

/// Whether a Lease may be taken.
enum Free {
    Yes(Box<Lease>),
    No(String),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_written_before_the_lease_is_held_after_it_ran_out_and_once_it_is_given_back() {
        let fence = Fence::default();
        assert_eq!(fence.left(), None, "before");
        fence.renewed(uptime());
        let left = fence.left().unwrap();
        assert!(left <= DURATION - MARGIN && !left.is_zero(), "{left:?}");
        // As if the process had been halted since it sent the request.
        fence.renewed(uptime().saturating_sub(DURATION - MARGIN));
        assert_eq!(fence.left(), None, "a holder that wakes too late");
        fence.renewed(uptime());
        fence.end();
        assert_eq!(fence.left(), None, "given back");
    }
}
