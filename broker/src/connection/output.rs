//! From the mailbox to the socket: deliveries in order, as many as the client's window and the socket take.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use mqtt_proto::{
    codec::QoS,
    message::{MessageId, Millis},
    session::{DropReason, Finished, Sent},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{BACKLOG_LIMIT, Connection, Scratch, closing::Close, millis, publish::RECEIVED};
use crate::{counters::Tally, log::Outcome, outside::Mistake, session::log::DIRECT_PATIENCE};

/// Deliveries taken from the mailbox at once.
const TAKE: usize = 256;

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Encodes what waits, unless the socket is behind. True if more is left that could be sent at once.
    pub(super) fn fill(&mut self, scratch: &mut Scratch) -> bool {
        if !self.backlog.is_empty() {
            // The socket decides: once it has taken the backlog, this is asked again.
            return true;
        }
        let before = scratch.out.len();
        if self.session.must_resend() {
            let unfinished = self.session.resend(self.now, &mut scratch.out);
            let dropped = self.session.take_dropped();
            self.node.counters.expired_drops.add(dropped.expired);
            self.node.counters.oversize_drops.add(dropped.too_large);
            self.note_finished();
            for (packet_id, mid) in self.session.take_given_up() {
                self.note_received(packet_id, mid);
            }
            if unfinished {
                // Nothing more came: only acknowledgements make room.
                return scratch.out.len() > before;
            }
        }
        self.pauses.delivery_rate_until = self.pauses.delivery_rate_until.filter(|until| self.now < *until);
        if self.pauses.delivery_rate_until.is_some() {
            return scratch.out.len() > before;
        }
        let mut sent = Tally::default();
        let mut more = true;
        while more && scratch.out.len() < BACKLOG_LIMIT && self.pauses.delivery_rate_until.is_none() {
            let before = sent.messages();
            more = self.mailbox.take(self.session.window(), TAKE, &mut scratch.deliveries);
            if scratch.deliveries.is_empty() {
                break;
            }
            let mut dropped = false;
            for delivery in scratch.deliveries.drain(..) {
                match self.session.deliver(&delivery, self.now, &mut scratch.out) {
                    Sent::Now => sent.count(delivery.qos, delivery.message.payload().len()),
                    Sent::Dropped(reason) => {
                        dropped = true;
                        if let Some(holding) =
                            self.holding.as_ref().filter(|_| delivery.qos > QoS::AtMostOnce)
                        {
                            let (mid, now) = (delivery.message.id, self.node.wall());
                            let to = holding.logged();
                            self.node.sessions.finish(&self.mailbox, to, mid, reason.into(), now);
                        }
                        match reason {
                            DropReason::Expired => self.node.counters.expired_drops.add(1),
                            DropReason::TooLarge => self.node.counters.oversize_drops.add(1),
                        }
                    }
                    // Never more is taken than the window allows.
                    Sent::WindowFull => self.node.counters.queue_full_drops.add(1),
                }
            }
            self.pay_for_deliveries(sent.messages() - before);
            // They took no place in the window that was counted for them.
            more |= dropped;
        }
        if sent.messages() > 0 {
            self.node.counters.sent.add(&sent);
            self.mailbox.offer_room(self.settings.caps());
        }
        more
    }

    /// Counts deliveries against the instance's rate; over it, sending waits.
    fn pay_for_deliveries(&mut self, sent: u64) {
        let Some(rate) = self.settings.limits().delivery_rate else { return };
        let rate = self.node.share_of(rate);
        if let Some(wait) = self.node.delivery_rate.spend(sent, rate, self.node.nanos()) {
            self.pauses.delivery_rate_until = Some(self.now + millis(wait).max(1));
            self.node.counters.delivery_rate_pauses.add(1);
        }
    }

    /// Says in the log which messages the device needs no more.
    pub(super) fn note_finished(&mut self) {
        let Some(holding) = &self.holding else { return };
        for Finished { mid, why } in self.session.take_finished() {
            self.node.sessions.finish(&self.mailbox, holding.logged(), mid, why, self.node.wall());
        }
    }

    /// Writes to the log what the device was sent before it was there and has not acknowledged soon. `first`: since when the
    /// oldest of that waits.
    pub(super) fn write_overdue(&self, first: Option<Millis>) {
        let Some(sent) = self.now.checked_sub(millis(DIRECT_PATIENCE)) else { return };
        if let Some(holding) = self.holding.as_ref().filter(|_| first.is_some_and(|first| first <= sent)) {
            self.node.sessions.write_overdue(holding.partition, &self.mailbox, sent, self.node.wall());
        }
    }

    /// Says in the log that the device has taken a QoS 2 message; its PUBREL follows once that is durable.
    pub(super) fn note_received(&mut self, packet_id: u16, mid: MessageId) {
        let Some(holding) = self.holding.clone() else { return };
        if self.receiving.insert(packet_id, mid) == Some(mid) {
            // It is being written.
            return;
        }
        let done = self.completion(RECEIVED | u64::from(packet_id));
        if self.node.outside.makes(Mistake::PubrelBeforeProgress) {
            done.sink.appended(done.token, Outcome::Durable(0));
            return;
        }
        self.node.sessions.received(&holding, mid, packet_id, self.node.wall(), done);
    }

    /// That is durable.
    pub(super) fn release_received(&mut self, packet_id: u16, scratch: &mut Scratch) {
        if let Some(mid) = self.receiving.remove(&packet_id) {
            self.session.received(packet_id, mid, &mut scratch.out);
        }
    }

    /// Writes what is encoded; what the socket does not take is kept. True if the socket is behind.
    pub(super) fn write(&mut self, out: &mut BytesMut, context: &mut Context<'_>) -> Result<bool, Close> {
        while !self.backlog.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.backlog) {
                Poll::Ready(Ok(0)) => return Err(Close::Gone),
                Poll::Ready(Ok(written)) => {
                    self.backlog.advance(written);
                    self.session.excuse_silence(self.now);
                }
                Poll::Ready(Err(error)) => return Err(Close::Socket(error)),
                Poll::Pending => {
                    self.backlog.extend_from_slice(out);
                    out.clear();
                    return Ok(true);
                }
            }
        }
        self.backlog = BytesMut::new();
        let mut start = 0;
        while let Some(rest) = out.get(start..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Err(Close::Gone),
                Poll::Ready(Ok(written)) => start += written,
                Poll::Ready(Err(error)) => return Err(Close::Socket(error)),
                Poll::Pending => {
                    self.backlog.extend_from_slice(rest);
                    out.clear();
                    return Ok(true);
                }
            }
        }
        out.clear();
        // TLS holds what the socket did not take; TCP does not.
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Ok(())) => Ok(false),
            Poll::Ready(Err(error)) => Err(Close::Socket(error)),
            Poll::Pending => Ok(true),
        }
    }
}
