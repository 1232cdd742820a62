//! Where a broker under test keeps what must last, and one table of stories for every such store.
//!
//! Stories on Kafka take turns: a test binary shares one cluster of one node, started when the first needs it, and
//! the broker's own topics have one name for all.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow, bail};
use parking_lot::Mutex;

use crate::kafka::{Kafka, KafkaOptions, Listener, Version};

#[derive(Clone)]
pub enum Store {
    /// A new, empty folder for each broker.
    Embedded,
    /// A cluster, reached through one of its listeners; all topics are deleted before each broker that starts there.
    Kafka(Arc<Kafka>, Listener),
}

impl Store {
    /// A cluster, without encryption or login.
    pub fn kafka(kafka: &Arc<Kafka>) -> Self {
        Self::Kafka(Arc::clone(kafka), Listener::Plaintext)
    }

    /// The cluster, for what a story does there beside the broker.
    pub fn cluster(&self) -> Result<&Arc<Kafka>> {
        match self {
            Self::Kafka(kafka, _) => Ok(kafka),
            Self::Embedded => bail!("the embedded store has no cluster"),
        }
    }
}

/// Makes of each story, `fn(&Store) -> Result<()>`, a test on every store: `embedded::STORY` and `kafka::STORY`.
#[macro_export]
macro_rules! on_every_store {
    ($($story:ident),+ $(,)?) => {
        mod embedded {
            $(#[test]
            fn $story() -> anyhow::Result<()> {
                super::$story(&$crate::Store::Embedded)
            })+
        }
        mod kafka {
            $(#[test]
            fn $story() -> anyhow::Result<()> {
                $crate::on_kafka(super::$story)
            })+
        }
    };
}

/// Plays a story on this process's Kafka, when no other one is.
pub fn on_kafka(story: impl FnOnce(&Store) -> Result<()>) -> Result<()> {
    static KAFKA: OnceLock<Result<Arc<Kafka>, String>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let start = || {
        let version = Version::from_env()?;
        Kafka::start(KafkaOptions { version, sasl_ssl: true, ..KafkaOptions::default() }).map(Arc::new)
    };
    let kafka = KAFKA
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))?;
    let _log = LogEnd(kafka);
    story(&Store::kafka(kafka))
}

/// Shows the end of Kafka's log when the story is over; the test runner keeps it to itself if that went well.
struct LogEnd<'a>(&'a Kafka);

impl Drop for LogEnd<'_> {
    fn drop(&mut self) {
        eprintln!("Kafka's log ends so:\n{}", self.0.log_end());
    }
}
