//! What a process run gets from its machine and that is never the same twice: the time of day, chance, and threads.
//!
//! A node asks here for all three, so that a test can run whole nodes again exactly as they ran before.

use std::time::Instant;

use mqtt_proto::message::Millis;

/// In the shipped broker there is nothing in it.
#[derive(Clone, Default)]
pub(crate) struct Outside {
    #[cfg(test)]
    pub(crate) simulated: Option<std::sync::Arc<dyn Simulated>>,
    #[cfg(test)]
    pub(crate) mistake: Option<Mistake>,
}

/// Mistakes that a test makes on purpose, to see that they are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// A publish is acknowledged before it is in the session log.
    AckBeforeQueued,
    /// A publish is acknowledged when the device was sent it, before that has it, or the log.
    AckWhenSent,
    /// PUBREL leaves before it is written down that the device has the message.
    PubrelBeforeProgress,
    /// A subscription is granted before the log has it.
    SubackBeforeFilter,
    /// A QoS 2 publish is routed before its note is durable.
    RouteBeforeNote,
    /// What waited for a device is passed over when it comes.
    ResumeWithoutQueue,
    /// A crash takes what is retained.
    ForgetRetained,
    /// All claims of a client have one key.
    SharedClaimKey,
    /// A publish is routed without a look at what other nodes have promised meanwhile.
    RouteOnOldView,
    /// A subscription is granted before those have read it who hold a lease.
    SubackBeforeRead,
    /// What a peer says that counts once this node has read so far counts before.
    LeaseBeforeRead,
    /// A subscription of a session in no log is granted before other nodes know of it.
    SubackBeforeAnnouncement,
    /// The newest messages go for want of room, not the oldest.
    DropNewest,
    /// What waits for a member of a shared subscription ends with its session.
    EndWithoutPassing,
    /// What comes by a link is taken though what went through the log before it is not there.
    LinkAheadOfLog,
    /// What a link has not brought when it breaks is not passed on through the log.
    ForgetUnconfirmed,
}

/// What stands in for the machine in a simulation.
#[cfg(test)]
pub(crate) trait Simulated: Send + Sync {
    fn wall(&self) -> Millis;
    fn random(&self) -> u64;
    fn spawn(&self, task: crate::log::BoxFuture<'static, ()>);
}

impl Outside {
    /// Milliseconds since the Unix epoch as the machine has it now; may jump.
    pub(crate) fn wall(&self) -> Millis {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.wall();
        }
        crate::node::wall()
    }

    /// Differs at every call and in every process.
    pub(crate) fn random(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.random();
        }
        RandomState::new().hash_one(Instant::now())
    }

    /// Never in the shipped broker.
    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        #[cfg(test)]
        return self.mistake == Some(mistake);
        #[cfg(not(test))]
        {
            let _ = mistake;
            false
        }
    }

    /// Runs a task of a node beside the others; it ends with the process at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.spawn(Box::pin(task));
        }
        tokio::spawn(task);
    }
}
