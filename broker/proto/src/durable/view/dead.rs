//! What is dead, and may be deleted: nothing that any reader may still see changes by it.
//!
//! Each call names some keys. The caller deletes them, waits until it has read that back, and asks again: for some may go
//! only once others are gone.

use super::{Mutation, View, progress::Told, queue::Copy};
use crate::{
    durable::record::{Key, Phase, Progress},
    message::{MessageId, Millis},
};

/// How long what a late record could still refer to is kept, in seconds: longer than a record may come late.
pub(super) const KEPT: u32 = 15 * 60;

impl View {
    /// Up to `most` keys that may be deleted now. `names`: whether any partition's R or S names this message.
    pub fn dead(&self, now: Millis, most: usize, names: impl Fn(MessageId) -> bool) -> Vec<Key> {
        let now = u32::try_from(now / 1000).unwrap_or(u32::MAX);
        let mut dead = Vec::new();
        self.dead_claims(now, most, &mut dead);
        self.dead_of_sessions(now, most, &mut dead);
        self.dead_messages(most, &mut dead);
        self.dead_progress(now, most, &names, &mut dead);
        dead.extend(self.runs.replaced().map(|boot| Key::Tick { boot }));
        let over = self.barriers.iter().filter(|boot| self.runs.is_over(**boot));
        dead.extend(over.map(|boot| Key::Barrier { boot: *boot }));
        let is_over = |boot| self.runs.is_over(boot);
        self.announced.dead(now, is_over, most.saturating_sub(dead.len()), &mut dead);
        dead.extend(self.runs.downs_of_unknown().map(|boot| Key::Down { boot }));
        dead.truncate(most);
        dead
    }

    /// Void claims first, then what is below the head, then a head that ended long ago.
    fn dead_claims(&self, now: u32, most: usize, dead: &mut Vec<Key>) {
        for client in self.clients.iter() {
            if dead.len() >= most {
                return;
            }
            let any_void = client.others().iter().any(|other| other.is_void);
            let Some(head) = &client.head else { continue };
            // An unconfirmed claim must not be the only word against a void one.
            let since = u32::try_from(head.session.since / 1000).unwrap_or(u32::MAX);
            let is_old = head.session.phase == Phase::Ended && now.saturating_sub(since) >= KEPT;
            let head_first = self.has(Mutation::HeadFirst);
            if is_old && (client.others().is_empty() || head_first) {
                dead.push(Key::Session { nonce: head.nonce, client: (&*client.name).into() });
            }
            let others = client.others().iter().filter(|other| other.is_void == any_void);
            let others = others.filter(|other| !other.is_void || head.session.won);
            dead.extend(
                others.map(|other| Key::Session { nonce: other.nonce, client: (&*client.name).into() }),
            );
        }
    }

    fn dead_of_sessions(&self, now: u32, most: usize, dead: &mut Vec<Key>) {
        for session in self.sessions.iter() {
            if dead.len() >= most {
                return;
            }
            let lives = session.client.is_some();
            let lower = |filter: &str, generation| {
                session.filters.highest(filter).is_some_and(|highest| highest.generation > generation)
            };
            let any_lower = session.filters.iter().any(|r| lower(r.filter, r.generation));
            dead.extend(
                session
                    .filters
                    .iter()
                    .filter(|r| {
                        let is_lower = lower(r.filter, r.generation);
                        // The one that says off must outlive those that it overrides.
                        let long_off =
                            !any_lower && !r.subscription.on && now.saturating_sub(r.created) >= KEPT;
                        !lives || is_lower || long_off
                    })
                    .map(|r| Key::Filter {
                        sid: session.sid,
                        generation: r.generation,
                        filter: r.filter.into(),
                    }),
            );
            let of_lower = |r: &&super::InboundRecord| {
                let overridden =
                    |o: &super::InboundRecord| o.packet_id == r.packet_id && o.generation > r.generation;
                !lives || session.inbound.iter().any(overridden)
            };
            dead.extend(session.inbound.iter().filter(of_lower).map(|r| Key::Inbound {
                sid: session.sid,
                generation: r.generation,
                packet_id: r.packet_id,
            }));
        }
    }

    /// A message once it waits for nobody, and nobody is to have it in the place of who was chosen for it.
    fn dead_messages(&self, most: usize, dead: &mut Vec<Key>) {
        for (&mid, message) in &self.messages {
            if dead.len() >= most {
                return;
            }
            let is_done = |sid| matches!(self.progress.of(mid, sid), Some(Progress::Done(_)));
            let waits = |copy: &Copy| {
                let counts = |sid: &MessageId| copy.moves || self.session(*sid).is_some();
                copy.recipients.iter().any(|sid| counts(sid) && !is_done(*sid))
            };
            // All copies, or none: what is left of them must not wait for anybody again.
            if !message.copies.iter().any(waits) {
                let copies = message.copies.iter();
                dead.extend(copies.map(|c| Key::Message { mid, boot: c.boot, chunk: c.chunk }));
            }
        }
    }

    /// What says how far anybody was, once the message is gone. A late repeat of it must find what was done, and so must one
    /// that its publisher may still ask for.
    fn dead_progress(&self, now: u32, most: usize, names: &impl Fn(MessageId) -> bool, dead: &mut Vec<Key>) {
        let is_old = |told: &Told| now.saturating_sub(told.created) >= KEPT;
        let old = self.progress.iter().filter(|(_, _, told)| is_old(told));
        let gone = old.filter(|(mid, ..)| !self.messages.contains_key(mid) && !names(*mid));
        let gone = gone.map(|(mid, sid, told)| Key::Progress { mid, sid, boot: told.boot });
        dead.extend(gone.take(most.saturating_sub(dead.len())));
    }
}
