//! Which Kafka cluster each instance has: the id that the cluster gives itself tells, whatever names its servers go by.
//!
//! Promises: a cluster is asked once for each list of servers, and again only if it did not answer; instances that turn
//! out to have one cluster are put in the queue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mqtt_operator_api::{Kind, instance::MqttInstance, render::ObjectName, render::name_of};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use crate::{
    parent_topic::{Access, Clients},
    queue::Queue,
};

/// How long an answer is worth waiting for.
const SOON: Duration = Duration::from_secs(5);

/// Which servers were asked, and what they answered.
struct Asked {
    servers: Vec<String>,
    id: Option<String>,
}

pub struct Clusters {
    clients: Arc<Clients>,
    queue: Arc<Queue>,
    /// By instance.
    known: Mutex<HashMap<ObjectName, Asked>>,
    answered: Notify,
}

impl Clusters {
    pub fn new(clients: Arc<Clients>, queue: Arc<Queue>) -> Self {
        Self { clients, queue, known: Mutex::default(), answered: Notify::new() }
    }

    /// The id of the cluster that the instance names now, if its servers were asked and have answered.
    pub fn of(&self, instance: &MqttInstance) -> Option<String> {
        let servers = &instance.spec.kafka.as_ref()?.bootstrap_servers;
        let known = self.known.lock();
        let asked = known.get(&name_of(Kind::MqttInstance, instance))?;
        asked.id.clone().filter(|_| asked.servers == *servers)
    }

    /// Asks, unless these servers were asked already.
    pub fn ask(self: &Arc<Self>, instance: &ObjectName, access: &Arc<Access>) {
        let servers = access.kafka.bootstrap_servers.clone();
        {
            let mut known = self.known.lock();
            if known.get(instance).is_some_and(|asked| asked.servers == servers) {
                return;
            }
            known.insert(instance.clone(), Asked { servers: servers.clone(), id: None });
        }
        let (clusters, instance, access) = (self.clone(), instance.clone(), access.clone());
        tokio::spawn(async move {
            let id = match clusters.clients.get(&instance, &access, |_| true) {
                Ok(admin) => admin.cluster_id().await.ok(),
                Err(_) => None,
            };
            clusters.answer(&instance, &servers, id);
        });
    }

    /// Waits a moment for what was asked.
    pub async fn wait(&self, instance: &ObjectName) {
        let answered = async {
            loop {
                let changed = self.answered.notified();
                if self.known.lock().get(instance).is_none_or(|asked| asked.id.is_some()) {
                    return;
                }
                changed.await;
            }
        };
        // Else it is told when it answers.
        let _ = timeout(SOON, answered).await;
    }

    /// The instance is gone.
    pub fn release(&self, instance: &ObjectName) {
        self.known.lock().remove(instance);
    }

    fn answer(&self, instance: &ObjectName, servers: &[String], id: Option<String>) {
        let mut known = self.known.lock();
        // Meanwhile it may have named others.
        if known.get(instance).is_some_and(|asked| asked.servers == servers) {
            match &id {
                Some(_) => {
                    let asked = Asked { servers: servers.to_vec(), id: id.clone() };
                    known.insert(instance.clone(), asked);
                }
                None => {
                    known.remove(instance);
                }
            }
        }
        let same: Vec<_> = known.iter().filter(|(_, other)| id.is_some() && other.id == id).collect();
        if same.len() > 1 {
            same.into_iter().for_each(|(instance, _)| self.queue.add(instance.clone()));
        }
        drop(known);
        self.answered.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(name: &str, server: &str) -> MqttInstance {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "plant"}, "spec": {"kafka": {"bootstrapServers": [server]}},
        }))
        .unwrap()
    }

    fn named(name: &str) -> ObjectName {
        ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: name.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_the_servers_that_gave_it_and_rivals_are_looked_at_again() {
        let queue = Arc::new(Queue::default());
        let clusters = Clusters::new(Arc::default(), queue.clone());
        let asked = |name: &str, server: &str| {
            clusters.known.lock().insert(named(name), Asked { servers: vec![server.to_owned()], id: None });
        };
        let answer = |name: &str, server: &str, id: Option<&str>| {
            clusters.answer(&named(name), &[server.to_owned()], id.map(str::to_owned))
        };
        asked("a", "kafka:1");
        assert_eq!(clusters.of(&instance("a", "kafka:1")), None, "asked, and not answered");
        answer("a", "kafka:1", Some("x"));
        assert_eq!(clusters.of(&instance("a", "kafka:1")).as_deref(), Some("x"));
        assert_eq!(clusters.of(&instance("a", "kafka:2")), None, "it names others now");
        assert_eq!(queue.load(), (0, 0));
        asked("b", "other:1");
        answer("b", "other:2", Some("x"));
        assert_eq!(clusters.of(&instance("b", "other:1")), None, "a late answer of others");
        answer("b", "other:1", None);
        assert!(!clusters.known.lock().contains_key(&named("b")), "it is to be asked again");
        asked("b", "other:1");
        let b = named("b");
        let (waits, ()) = tokio::join!(clusters.wait(&b), async { answer("b", "other:1", Some("x")) });
        assert_eq!((waits, clusters.of(&instance("b", "other:1")).as_deref()), ((), Some("x")));
        let due = [queue.next().await, queue.next().await];
        assert!(due.contains(&named("a")) && due.contains(&named("b")), "{due:?}");
        asked("c", "silent:1");
        let start = tokio::time::Instant::now();
        clusters.wait(&named("c")).await;
        assert_eq!(start.elapsed(), SOON);
    }
}
