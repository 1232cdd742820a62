//! From the socket to the session machine: reads, splits, parses.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use mqtt_proto::{
    codec::{self, Reason},
    session::Effect,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Scratch, closing::Close, millis};
use crate::{counters::Tally, limits::notice};

/// Publishes after which recipients and the rate are looked at.
const RUN: u64 = 128;

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Reads once, unless paused, and works on all whole packets. True if there was anything to do.
    pub(super) fn read(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<bool, Close> {
        if self.paused(context) {
            return Ok(false);
        }
        let mut input = std::mem::take(&mut scratch.read);
        let outcome = self.read_into(&mut input, scratch, context);
        scratch.read = input;
        outcome
    }

    fn read_into(
        &mut self,
        input: &mut [u8],
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<bool, Close> {
        // What a pause kept back comes before what the socket has.
        let kept_back = std::mem::take(&mut self.resume) && !self.unread.is_empty();
        let mut length = 0;
        if !kept_back {
            let mut buffer = ReadBuf::new(input);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(Close::Socket(error)),
                Poll::Ready(Ok(())) => length = buffer.filled().len(),
            }
            if length == 0 {
                return Err(Close::Gone);
            }
        }
        let arrived = input.get(..length).unwrap_or_default();
        let mut unread = std::mem::take(&mut self.unread);
        if unread.is_empty() {
            let used = self.work(arrived, scratch, context)?;
            self.unread = arrived.get(used..).unwrap_or_default().to_vec();
        } else {
            unread.extend_from_slice(arrived);
            let used = self.work(&unread, scratch, context)?;
            drop(unread.drain(..used));
            self.unread = if unread.is_empty() { Vec::new() } else { unread };
        }
        Ok(true)
    }

    /// Works on the whole packets in `input`, until a pause is asked for; returns the bytes used.
    fn work(
        &mut self,
        input: &[u8],
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<usize, Close> {
        let largest = self.settings.limits().packet_size;
        let mut used = 0;
        let mut publishes = Tally::default();
        loop {
            let rest = input.get(used..).unwrap_or_default();
            let Some((frame, length)) = codec::split_frame(rest, largest)? else { break };
            used += length;
            let mut named = None;
            let mut packet = codec::decode(frame, self.session.version())?;
            self.session.name_topic(&mut packet, &mut named)?;
            let effect = self.session.receive(packet, self.now, &mut scratch.out)?;
            if let Effect::Publish(publish, ..) = &effect {
                publishes.count(publish.qos, publish.payload.len());
            }
            self.follow(effect, scratch)?;
            if publishes.messages() == RUN {
                // So that neither a recipient nor the rate is overrun by what one read holds.
                scratch.fanout.flush(self.settings.caps(), &self.node.counters);
                self.pay(std::mem::take(&mut publishes));
            }
            if self.intake_full()
                || self.session.publish_window_full()
                || self.pauses.log.is_some()
                || self.pauses.rate_until.is_some()
                || scratch.out.len() > super::BACKLOG_LIMIT
            {
                self.resume = true;
                break;
            }
        }
        self.pay(publishes);
        if self.pauses.log.is_some() {
            context.waker().wake_by_ref();
        }
        Ok(used)
    }

    /// Counts publishes against the instance's rate; over it, reading waits.
    fn pay(&mut self, publishes: Tally) {
        let count = publishes.messages();
        if count == 0 {
            return;
        }
        self.node.counters.received.add(&publishes);
        let rate = self.node.share_of(self.settings.limits().publish_rate);
        if let Some(wait) = self.node.publish_rate.spend(count, rate, self.node.nanos()) {
            self.pauses.rate_until = Some(self.now + millis(wait).max(1));
            self.node.counters.publish_rate_pauses.add(1);
            notice!(
                self.node,
                publish_rate,
                rate,
                "publishers are read more slowly: this node's share of the instance's publish rate is used up"
            );
        }
    }

    fn follow(&mut self, effect: Effect<'_>, scratch: &mut Scratch) -> Result<(), Close> {
        match effect {
            Effect::None => Ok(()),
            // A delivery that was finished opens the window; deliveries follow reading anyway.
            Effect::Delivered => {
                self.note_finished();
                Ok(())
            }
            Effect::Received { packet_id, mid } => {
                self.note_received(packet_id, mid);
                Ok(())
            }
            Effect::Publish(publish, ticket) => self.publish(&publish, ticket, scratch),
            Effect::Release { packet_id, known } => {
                self.release(packet_id, known, scratch);
                Ok(())
            }
            Effect::Subscribe(subscribe) => {
                self.subscribe(&subscribe, scratch);
                Ok(())
            }
            Effect::Unsubscribe(unsubscribe) => {
                self.unsubscribe(&unsubscribe, scratch);
                Ok(())
            }
            Effect::Disconnect { discard_will, session_expiry } => {
                if let Some(asked) = session_expiry {
                    if self.expiry == 0 && asked > 0 {
                        // MQTT 5 section 3.14.2.2.2.
                        return Err(Close::Violation(
                            Reason::ProtocolError,
                            "session expiry set only at its end".into(),
                        ));
                    }
                    self.expiry = asked.min(self.settings.config.session.expiry_seconds);
                }
                Err(Close::Goodbye { discard_will })
            }
        }
    }
}

impl From<codec::CodecError> for Close {
    fn from(error: codec::CodecError) -> Close {
        Close::Violation(error.reason(), error.to_string().into())
    }
}
