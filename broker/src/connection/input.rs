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

use super::{BACKLOG_LIMIT, Connection, Scratch, closing::Close, millis};
use crate::{counters::Tally, limits::notice};

/// Bytes that may be read of a client whose publishes wait, to find its acknowledgements.
const READ_AHEAD: usize = 256 * 1024;

/// What is kept of a client's bytes that were not worked on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kept {
    /// No whole packet.
    #[default]
    Part,
    /// Packets, as a pause left them.
    Packets,
    /// Packets without acknowledgements: it was looked for those.
    Looked,
}

/// Publishes after which recipients and the rate are looked at.
const RUN: u64 = 128;

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Reads once, unless paused, and works on all whole packets. True if there was anything to do.
    pub(super) fn read(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<bool, Close> {
        let paused = self.paused(context);
        if paused && !self.may_read_ahead() {
            return Ok(false);
        }
        let mut input = std::mem::take(&mut scratch.read);
        let outcome = match paused {
            true => self.read_ahead(&mut input, scratch, context),
            false => self.read_into(&mut input, scratch, context),
        };
        scratch.read = input;
        outcome
    }

    /// Whether nothing but the number of its publishes keeps this client from being read.
    fn may_read_ahead(&self) -> bool {
        let waits = self.pauses.log.is_some() || self.pauses.rate_until.is_some();
        !self.leaves && !waits && self.backlog.len() < BACKLOG_LIMIT && self.unread.len() < READ_AHEAD
    }

    fn read_into(
        &mut self,
        input: &mut [u8],
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<bool, Close> {
        // What a pause kept back comes before what the socket has.
        let kept_back = std::mem::take(&mut self.kept) != Kept::Part && !self.unread.is_empty();
        let length = match kept_back {
            true => 0,
            false => match self.poll_socket(input, context)? {
                None => return Ok(false),
                Some(0) => return Err(Close::Gone),
                Some(length) => length,
            },
        };
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

    /// While so many publishes wait that no more may be taken in: looks among what follows them for acknowledgements. Recipients
    /// may have no room for want of those, this client itself or one that waits for it in turn.
    fn read_ahead(
        &mut self,
        input: &mut [u8],
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<bool, Close> {
        // After its end its last words are among what was read.
        let length = self.poll_socket(input, context)?.unwrap_or(0);
        if length == 0 && self.kept != Kept::Packets {
            return Ok(false);
        }
        let mut unread = std::mem::take(&mut self.unread);
        unread.extend_from_slice(input.get(..length).unwrap_or_default());
        let largest = self.settings.limits().packet_size;
        let mut kept = Vec::with_capacity(unread.len());
        let mut rest = unread.as_slice();
        while let Some((frame, length)) = codec::split_frame(rest, largest)? {
            let (packet, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            if frame.is_answer() {
                let packet = codec::decode(frame, self.session.version())?;
                let effect = self.session.receive(packet, self.now, &mut scratch.out)?;
                self.follow(effect, scratch)?;
            } else {
                kept.extend_from_slice(packet);
            }
            rest = others;
        }
        kept.extend_from_slice(rest);
        self.unread = kept;
        self.kept = Kept::Looked;
        Ok(true)
    }

    /// How many bytes came, 0 at the client's end; nothing if none has come so far.
    fn poll_socket(&mut self, input: &mut [u8], context: &mut Context<'_>) -> Result<Option<usize>, Close> {
        let mut buffer = ReadBuf::new(input);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Pending => Ok(None),
            Poll::Ready(Err(error)) => Err(Close::Socket(error)),
            Poll::Ready(Ok(())) => Ok(Some(buffer.filled().len())),
        }
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
                || scratch.out.len() > BACKLOG_LIMIT
            {
                self.kept = Kept::Packets;
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
