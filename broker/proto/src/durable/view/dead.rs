//! What is dead, and may be deleted: nothing that any reader may still see changes by it.
//!
//! Each call names some keys. The caller deletes them, waits until it has read that back, and asks again: for some may go
//! only once others are gone.

use super::{Message, View};
use crate::{
    durable::record::{Key, Phase, Progress},
    message::{MessageId, Millis},
};

/// How long what a late record could still refer to is kept, in seconds: longer than a record may come late.
const KEPT: u32 = 15 * 60;

impl View {
    /// Up to `most` keys that may be deleted now. `names`: whether any partition's R or S names this message.
    pub fn dead(&self, now: Millis, most: usize, names: impl Fn(MessageId) -> bool) -> Vec<Key> {
        let now = u32::try_from(now / 1000).unwrap_or(u32::MAX);
        let mut dead = Vec::new();
        self.dead_claims(now, most, &mut dead);
        self.dead_of_sessions(now, most, &mut dead);
        for (mid, message) in &self.messages {
            if dead.len() >= most {
                break;
            }
            self.dead_of_message(*mid, message, now, &names, &mut dead);
        }
        dead.extend(
            self.ticks
                .iter()
                .map(|(boot, _)| *boot)
                .filter(|boot| self.is_replaced(*boot))
                .map(|boot| Key::Tick { boot }),
        );
        let over = self.barriers.iter().filter(|boot| self.is_over(**boot));
        dead.extend(over.map(|boot| Key::Barrier { boot: *boot }));
        // As long as anything tells of the process run it must be told that it is down.
        let forgotten = |boot: &&Boot| !self.ticks.iter().any(|(ticked, _)| ticked == *boot);
        dead.extend(self.down.iter().filter(forgotten).map(|boot| Key::Down { boot: *boot }));
        dead.truncate(most);
        dead
    }

    /// Void claims first, then what is below the head, then a head that ended long ago.
    fn dead_claims(&self, now: u32, most: usize, dead: &mut Vec<Key>) {
        for (name, client) in &self.clients {
            if dead.len() >= most {
                return;
            }
            let any_void = client.others.iter().any(|other| other.is_void);
            let Some(head) = &client.head else { continue };
            // An unconfirmed claim must not be the only word against a void one.
            let others = client.others.iter().filter(|other| other.is_void == any_void);
            let others = others.filter(|other| !other.is_void || head.session.won);
            dead.extend(others.map(|other| Key::Session { nonce: other.nonce, client: (&**name).into() }));
            let since = u32::try_from(head.session.since / 1000).unwrap_or(u32::MAX);
            if client.others.is_empty()
                && head.session.phase == Phase::Ended
                && now.saturating_sub(since) >= KEPT
            {
                dead.push(Key::Session { nonce: head.nonce, client: (&**name).into() });
            }
        }
    }

    fn dead_of_sessions(&self, now: u32, most: usize, dead: &mut Vec<Key>) {
        for (sid, session) in &self.sessions {
            if dead.len() >= most {
                return;
            }
            let lives = session.client.is_some();
            let lower = |filter: &str, generation| {
                session.filters.iter().any(|r| r.generation > generation && *r.filter == *filter)
            };
            let any_lower = session.filters.iter().any(|r| lower(&r.filter, r.generation));
            dead.extend(
                session
                    .filters
                    .iter()
                    .filter(|r| {
                        let is_lower = lower(&r.filter, r.generation);
                        // The one that says off must outlive those that it overrides.
                        let long_off =
                            !any_lower && !r.subscription.on && now.saturating_sub(r.created) >= KEPT;
                        !lives || is_lower || long_off
                    })
                    .map(|r| Key::Filter { sid: *sid, generation: r.generation, filter: r.filter.clone() }),
            );
            let of_lower = |r: &&super::InboundRecord| {
                let overridden =
                    |o: &super::InboundRecord| o.packet_id == r.packet_id && o.generation > r.generation;
                !lives || session.inbound.iter().any(overridden)
            };
            dead.extend(session.inbound.iter().filter(of_lower).map(|r| Key::Inbound {
                sid: *sid,
                generation: r.generation,
                packet_id: r.packet_id,
            }));
        }
    }

    /// The message once it waits for nobody; then what says how far anybody was.
    fn dead_of_message(
        &self,
        mid: MessageId,
        message: &Message,
        now: u32,
        names: &impl Fn(MessageId) -> bool,
        dead: &mut Vec<Key>,
    ) {
        let lives = |sid: &MessageId| self.session(*sid).is_some();
        let waits =
            |sid: &MessageId| lives(sid) && !matches!(message.progress_of(*sid), Some(Progress::Done(_)));
        let may_return =
            |copy: &super::queue::Copy| copy.once && (now.saturating_sub(copy.created) < KEPT || names(mid));
        let finished = |copy: &&super::queue::Copy| !copy.recipients.iter().any(waits) && !may_return(copy);
        // All copies, or none: what is left of them must not wait for anybody again.
        if message.copies.iter().all(|copy| finished(&copy)) {
            dead.extend(message.copies.iter().map(|c| Key::Message { mid, boot: c.boot, chunk: c.chunk }));
        }
        if message.copies.is_empty() && !names(mid) {
            // A late repeat of the message must find what was done.
            let old = message.progress.iter().filter(|told| now.saturating_sub(told.created) >= KEPT);
            dead.extend(old.map(|told| Key::Progress { mid, sid: told.sid, boot: told.boot }));
        }
    }
}
