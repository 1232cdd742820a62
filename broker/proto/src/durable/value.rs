//! The bytes of values; [`super::record`] has what they mean.

use super::{
    bytes::{Reader, Writer},
    record::{
        Alive, Announced, Content, Identity, Inbound, Key, MOST_NODES, MOST_RECIPIENTS,
        MOST_SUBSCRIPTION_IDS, Name, Passed, Phase, Progress, QueuedMessage, Recipient, Session,
        Subscription, Value, Why, Will,
    },
};
use crate::codec::QoS;

const VERSION: u8 = 1;

impl<'a> Value<'a> {
    /// Of a key's kind; all of the bytes must be used.
    pub(super) fn parse(key: &Key, mut from: Reader<'a>) -> Option<Value<'a>> {
        let from = &mut from;
        let value = match key {
            Key::Identity => Value::Identity(Identity {
                log: u128::from(from.u64()?) << 64 | u128::from(from.u64()?),
                partitions: from.u32()?,
                format: from.u8()?,
            }),
            Key::Session { .. } => Value::Session(Box::new(session(from)?)),
            Key::Filter { .. } => Value::Filter(subscription(from)?),
            Key::Message { .. } => Value::Message(message(from)?),
            Key::Progress { .. } => Value::Progress(progress(from)?),
            Key::Inbound { .. } => Value::Inbound(Inbound {
                mid: from.id()?,
                digest: from.u64()?,
                at: from.u64()?,
                parent: from.text()?.into(),
                partition: from.u32()?,
                from: from.u64()?,
            }),
            Key::Tick { .. } => Value::Tick { node: from.text()?, run: from.u64()?, shared: from.flag()? },
            Key::Barrier { .. } => Value::Barrier(from.u64()?),
            Key::Announced { .. } => Value::Announced(Announced { sequence: from.u64()?, on: from.flag()? }),
            Key::Down { .. } => Value::Down,
            Key::Alive { .. } => Value::Alive(Alive {
                node: from.text()?,
                at: from.u64()?,
                connections: from.u64()?,
                subscriptions: from.u64()?,
            }),
            Key::Passed { .. } => Value::Passed(passed(from)?),
            Key::Retained { .. } => Value::Retained(content(from)?),
        };
        from.end()?;
        Some(value)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(vec![VERSION]);
        match self {
            Value::Identity(identity) => {
                out.put(&identity.log.to_be_bytes());
                out.u32(identity.partitions);
                out.u8(identity.format);
            }
            Value::Session(session) => put_session(&mut out, session),
            Value::Filter(subscription) => {
                out.u64(subscription.sequence);
                out.u8(subscription.on.into());
                out.u8(subscription.qos as u8);
                out.u8(subscription.no_local.into());
                out.u8(subscription.retain_as_published.into());
                out.option(subscription.id, Writer::u32);
            }
            Value::Message(message) => put_message(&mut out, message),
            Value::Progress(Progress::Received(packet_id)) => {
                out.u8(1);
                out.u16(*packet_id);
            }
            Value::Progress(Progress::Done(why)) => {
                out.u8(2);
                out.u8(*why as u8);
            }
            Value::Inbound(inbound) => {
                out.id(inbound.mid);
                out.u64(inbound.digest);
                out.u64(inbound.at);
                out.text(&inbound.parent);
                out.u32(inbound.partition);
                out.u64(inbound.from);
            }
            Value::Tick { node, run, shared } => {
                out.text(node);
                out.u64(*run);
                out.u8((*shared).into());
            }
            Value::Barrier(number) => out.u64(*number),
            Value::Announced(Announced { sequence, on }) => {
                out.u64(*sequence);
                out.u8((*on).into());
            }
            Value::Down => {}
            Value::Alive(Alive { node, at, connections, subscriptions }) => {
                out.text(node);
                out.u64(*at);
                out.u64(*connections);
                out.u64(*subscriptions);
            }
            Value::Passed(Passed { mid, to, group, content }) => {
                out.id(*mid);
                let to = to.get(..MOST_NODES).unwrap_or(to);
                out.u16(u16::try_from(to.len()).unwrap_or(u16::MAX));
                to.iter().for_each(|boot| out.u64(*boot));
                out.option(*group, Writer::text);
                put_content(&mut out, content);
            }
            Value::Retained(content) => put_content(&mut out, content),
        }
        out.0
    }
}

fn passed<'a>(from: &mut Reader<'a>) -> Option<Passed<'a>> {
    let mid = from.id()?;
    let count = usize::from(from.u16()?);
    if count > MOST_NODES {
        return None;
    }
    let to = (0..count).map(|_| from.u64()).collect::<Option<Vec<_>>>()?;
    Some(Passed { mid, to, group: from.option(Reader::text)?, content: content(from)? })
}

fn qos(from: &mut Reader<'_>) -> Option<QoS> {
    QoS::try_from(from.u8()?).ok()
}

fn session(from: &mut Reader<'_>) -> Option<Session> {
    Some(Session {
        generation: from.u64()?,
        sequence: from.u64()?,
        won: from.flag()?,
        phase: match from.u8()? {
            0 => Phase::Online,
            1 => Phase::Offline,
            2 => Phase::Ended,
            _ => return None,
        },
        sid: from.id()?,
        boot: from.u64()?,
        since: from.u64()?,
        expires_at: from.u64()?,
        expiry: from.u32()?,
        sent_below: from.u64()?,
        node: Name::new(from.text()?.into()),
        user: Name::new(from.text()?.into()),
        peer: from.text()?.into(),
        protocol: from.u8()?,
        will: match from.u8()? {
            0 => None,
            1 => Some(Box::new(will(from)?)),
            2 => {
                let mid = from.id()?;
                Some(Box::new(Will { mid: Some(mid), ..will(from)? }))
            }
            _ => return None,
        },
    })
}

fn put_session(out: &mut Writer, session: &Session) {
    out.u64(session.generation);
    out.u64(session.sequence);
    out.u8(session.won.into());
    out.u8(session.phase as u8);
    out.id(session.sid);
    out.u64(session.boot);
    out.u64(session.since);
    out.u64(session.expires_at);
    out.u32(session.expiry);
    out.u64(session.sent_below);
    out.text(&session.node);
    out.text(&session.user);
    out.text(&session.peer);
    out.u8(session.protocol);
    let Some(will) = &session.will else { return out.u8(0) };
    match will.mid {
        None => out.u8(1),
        Some(mid) => {
            out.u8(2);
            out.id(mid);
        }
    }
    out.u32(will.delay);
    out.option(will.due_at, Writer::u64);
    out.text(&will.topic);
    out.bytes(&will.payload);
    out.u8(will.qos as u8);
    out.u8(will.retain.into());
    out.option(will.expiry, Writer::u32);
    out.bytes(&will.forwarded);
}

fn will(from: &mut Reader<'_>) -> Option<Will> {
    Some(Will {
        mid: None,
        delay: from.u32()?,
        due_at: from.option(Reader::u64)?,
        topic: from.text()?.into(),
        payload: from.bytes()?.into(),
        qos: qos(from)?,
        retain: from.flag()?,
        expiry: from.option(Reader::u32)?,
        forwarded: from.bytes()?.into(),
    })
}

fn subscription(from: &mut Reader<'_>) -> Option<Subscription> {
    Some(Subscription {
        sequence: from.u64()?,
        on: from.flag()?,
        qos: qos(from)?,
        no_local: from.flag()?,
        retain_as_published: from.flag()?,
        id: from.option(Reader::u32)?,
    })
}

/// Topic and payload stand last, one after the other, so that they can be shared as they lie.
fn content<'a>(from: &mut Reader<'a>) -> Option<Content<'a>> {
    Some(Content {
        qos: qos(from)?,
        retain: from.flag()?,
        expires_at: from.option(Reader::u64)?,
        forwarded: from.bytes()?,
        topic: from.text()?,
        payload: std::mem::take(&mut from.0),
    })
}

fn put_content(out: &mut Writer, content: &Content<'_>) {
    out.u8(content.qos as u8);
    out.u8(content.retain.into());
    out.option(content.expires_at, Writer::u64);
    out.bytes(content.forwarded);
    out.text(content.topic);
    out.put(content.payload);
}

fn message<'a>(from: &mut Reader<'a>) -> Option<QueuedMessage<'a>> {
    let once = from.flag()?;
    let group = from.option(Reader::text)?;
    let count = usize::try_from(from.u32()?).ok().filter(|count| *count <= MOST_RECIPIENTS)?;
    let recipients = (0..count).map(|_| recipient(from)).collect::<Option<_>>()?;
    Some(QueuedMessage { once, group, recipients, content: content(from)? })
}

fn put_message(out: &mut Writer, message: &QueuedMessage<'_>) {
    out.u8(message.once.into());
    out.option(message.group, Writer::text);
    let recipients = message.recipients.get(..MOST_RECIPIENTS).unwrap_or(&message.recipients);
    out.u32(u32::try_from(recipients.len()).unwrap_or(u32::MAX));
    for recipient in recipients {
        out.id(recipient.sid);
        out.u8(recipient.qos as u8);
        out.u8(u8::from(recipient.retain) | u8::from(recipient.maybe_sent) << 1);
        let ids = recipient.subscription_ids.as_deref().unwrap_or_default();
        let ids = ids.get(..MOST_SUBSCRIPTION_IDS).unwrap_or(ids);
        out.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
        ids.iter().for_each(|id| out.u32(*id));
    }
    put_content(out, &message.content);
}

fn recipient(from: &mut Reader<'_>) -> Option<Recipient> {
    let (sid, qos) = (from.id()?, qos(from)?);
    let (retain, maybe_sent) = match from.u8()? {
        flags @ 0..4 => (flags & 1 != 0, flags & 2 != 0),
        _ => return None,
    };
    let count = usize::from(from.u16()?);
    if count > MOST_SUBSCRIPTION_IDS {
        return None;
    }
    let ids = (0..count).map(|_| from.u32()).collect::<Option<Box<[u32]>>>()?;
    Some(Recipient { sid, qos, retain, maybe_sent, subscription_ids: (count > 0).then_some(ids) })
}

fn progress(from: &mut Reader<'_>) -> Option<Progress> {
    Some(match from.u8()? {
        1 => Progress::Received(from.u16()?),
        2 => Progress::Done(match from.u8()? {
            0 => Why::Acknowledged,
            1 => Why::Dropped,
            2 => Why::Expired,
            3 => Why::TooLarge,
            4 => Why::Moved,
            _ => return None,
        }),
        _ => return None,
    })
}
