//! Devices on rumqttc, all on one thread of their own that ends with their [`Crew`].

use std::{sync::Arc, thread, time::Duration};

use anyhow::Result;
use rumqttc::{Event, EventLoop};
use tokio::{sync::Notify, task::JoinSet, time::sleep};

use super::book::Book;

/// Before another attempt to connect.
const BACKOFF: Duration = Duration::from_millis(100);

pub(crate) struct Crew {
    end: Arc<Notify>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Crew {
    /// `begin` starts the devices.
    pub(crate) fn start(name: &str, begin: impl FnOnce(&mut JoinSet<()>) + Send + 'static) -> Result<Self> {
        let end = Arc::new(Notify::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ended = end.clone();
        let run = async move {
            let mut tasks = JoinSet::new();
            begin(&mut tasks);
            ended.notified().await;
        };
        let thread = thread::Builder::new().name(name.into()).spawn(move || runtime.block_on(run))?;
        Ok(Self { end, thread: Some(thread) })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Polls a device's connection, again and again.
pub(crate) async fn live(name: &str, book: &Book, mut events: EventLoop, take: impl Fn(Event)) {
    loop {
        match events.poll().await {
            Ok(event) => take(event),
            Err(_) => {
                // What it did on the connection that is lost rumqttc would tell after the next CONNACK.
                std::mem::take(&mut events.state.events).into_iter().for_each(&take);
                book.is_offline(name);
                sleep(BACKOFF).await;
            }
        }
    }
}
