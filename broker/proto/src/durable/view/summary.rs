//! A view in words, for comparing what two readers know.

use std::collections::BTreeMap;

use super::{Message, View};
use crate::{durable::record::Phase, message::MessageId};

impl View {
    /// One line for each fact about the sessions that live, sorted: equal for all readers of one log, whatever compaction
    /// left to each. Offsets are left out, and queues are in order by the process run that wrote the messages.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (client, head) in self.heads() {
            let session = &head.session;
            if session.phase == Phase::Ended {
                continue;
            }
            lines.push(format!(
                "{client}: {:?} by {:?} generation {} sid {:?} boot {} expires {} user {} will {:?}",
                session.phase,
                head.nonce,
                session.generation,
                session.sid,
                session.boot,
                session.expires_at,
                session.user,
                session.will,
            ));
            let Some((_, state)) = self.session(session.sid) else {
                lines.push(format!("{client}: its session is missing"));
                continue;
            };
            for (filter, subscription) in state.subscriptions() {
                lines.push(format!("{client}: filter {filter} {subscription:?}"));
            }
            for (packet_id, generation, inbound) in state.inbound() {
                lines.push(format!("{client}: inbound {packet_id} {generation} {inbound:?}"));
            }
            let mut by_boot: BTreeMap<u64, Vec<(MessageId, Option<u16>)>> = BTreeMap::new();
            for entry in state.in_order() {
                let waits = (entry.mid, entry.received);
                // By which of several records it is met depends on the reader.
                match self.message(entry.mid).is_some_and(Message::is_repeated) {
                    true => lines.push(format!("{client}: repeated in its queue: {waits:?}")),
                    false => by_boot.entry(entry.writing.boot).or_default().push(waits),
                }
            }
            for (boot, queue) in by_boot {
                lines.push(format!("{client}: queue of {boot}: {queue:?}"));
            }
        }
        lines.sort();
        lines
    }
}
