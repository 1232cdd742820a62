//! The MQTT 3.1.1 packets a load generator needs, written for speed and apart from the broker's codec.
//!
//! Encoders append to a buffer. [`split`] cuts one packet off what was read and borrows from it; no input
//! makes it panic.

/// A packet a broker sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// Whether there was a session, and the return code.
    ConnAck {
        present: bool,
        code: u8,
    },
    SubAck {
        granted: &'a [u8],
    },
    Publish {
        qos: u8,
        id: u16,
        payload: &'a [u8],
    },
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    PingResp,
}

impl Packet<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::ConnAck { .. } => "CONNACK",
            Self::SubAck { .. } => "SUBACK",
            Self::Publish { .. } => "PUBLISH",
            Self::PubAck(_) => "PUBACK",
            Self::PubRec(_) => "PUBREC",
            Self::PubRel(_) => "PUBREL",
            Self::PubComp(_) => "PUBCOMP",
            Self::PingResp => "PINGRESP",
        }
    }
}

/// What is wrong with the bytes a broker sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a remaining length of more than four bytes")]
    Length,
    #[error("a packet with first byte {0:#04x}, which no broker may send")]
    Head(u8),
    #[error("a {0} packet of the wrong shape")]
    Shape(&'static str),
    #[error("a packet larger than the generator's buffer")]
    TooLarge,
}

/// Cuts the first packet off `input`; `None` when it is not whole yet.
///
/// # Errors
/// Bytes that break MQTT 3.1.1 sections 2 and 3.
pub(super) fn split(input: &[u8]) -> Result<Option<(Packet<'_>, &[u8])>, WireError> {
    let Some((&head, after)) = input.split_first() else { return Ok(None) };
    let Some((length, after)) = remaining_length(after)? else { return Ok(None) };
    let Some((body, rest)) = after.split_at_checked(length) else { return Ok(None) };
    Ok(Some((packet(head, body)?, rest)))
}

/// How a client introduces itself.
pub(super) struct Connect<'a> {
    pub(super) client_id: &'a str,
    pub(super) login: Option<(&'a str, &'a str)>,
    /// Seconds; a run ends before it passes, so no PINGREQ is ever due.
    pub(super) keep_alive: u16,
    /// Without a session that outlives the connection.
    pub(super) clean: bool,
}

/// CONNECT (3.1).
pub(super) fn connect(out: &mut Vec<u8>, c: &Connect<'_>) {
    let clean = if c.clean { 0x02 } else { 0 };
    const USER_AND_PASSWORD: u8 = 0xC0;
    let login = c.login.map_or(0, |(user, password)| 4 + user.len() + password.len());
    out.push(0x10);
    push_length(out, 10 + 2 + c.client_id.len() + login);
    push_string(out, b"MQTT");
    out.push(4);
    out.push(if c.login.is_some() { clean | USER_AND_PASSWORD } else { clean });
    out.extend_from_slice(&c.keep_alive.to_be_bytes());
    push_string(out, c.client_id.as_bytes());
    if let Some((user, password)) = c.login {
        push_string(out, user.as_bytes());
        push_string(out, password.as_bytes());
    }
}

/// SUBSCRIBE to one filter with packet identifier 1 (3.8).
pub(super) fn subscribe(out: &mut Vec<u8>, filter: &str, qos: u8) {
    out.push(0x82);
    push_length(out, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&1_u16.to_be_bytes());
    push_string(out, filter.as_bytes());
    out.push(qos);
}

pub(super) fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xE0, 0]);
}

/// A packet that is only a packet identifier (3.4 to 3.7), by its first byte.
#[derive(Clone, Copy)]
pub(super) enum Ack {
    Received = 0x50,
    Release = 0x62,
    Complete = 0x70,
    /// PUBACK, all there is at QoS 1.
    Taken = 0x40,
}

pub(super) fn ack(out: &mut Vec<u8>, kind: Ack, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[kind as u8, 2, high, low]);
}

/// A publisher's PUBLISH up to the payload, which is the same for each message but for the identifier (3.3).
pub(super) struct PublishHead {
    head: Vec<u8>,
    qos: u8,
}

impl PublishHead {
    pub(super) fn new(topic: &str, qos: u8, payload: usize) -> Self {
        let id = if qos > 0 { 2 } else { 0 };
        let mut head = vec![0x30 | (qos << 1)];
        push_length(&mut head, 2 + topic.len() + id + payload);
        push_string(&mut head, topic.as_bytes());
        Self { head, qos }
    }

    /// Appends the head; the caller appends the payload. `id` is left out at QoS 0.
    pub(super) fn push(&self, out: &mut Vec<u8>, id: u16) {
        out.extend_from_slice(&self.head);
        if self.qos > 0 {
            out.extend_from_slice(&id.to_be_bytes());
        }
    }
}

fn packet(head: u8, body: &[u8]) -> Result<Packet<'_>, WireError> {
    match head {
        0x30..=0x3F => publish(head, body),
        0x40 => identifier(body, "PUBACK").map(Packet::PubAck),
        0x50 => identifier(body, "PUBREC").map(Packet::PubRec),
        0x62 => identifier(body, "PUBREL").map(Packet::PubRel),
        0x70 => identifier(body, "PUBCOMP").map(Packet::PubComp),
        0x20 => match body {
            [present @ (0 | 1), code] => Ok(Packet::ConnAck { present: *present == 1, code: *code }),
            _ => Err(WireError::Shape("CONNACK")),
        },
        0x90 => match body {
            [0, 1, granted @ ..] if !granted.is_empty() => Ok(Packet::SubAck { granted }),
            _ => Err(WireError::Shape("SUBACK")),
        },
        0xD0 if body.is_empty() => Ok(Packet::PingResp),
        _ => Err(WireError::Head(head)),
    }
}

fn publish(head: u8, body: &[u8]) -> Result<Packet<'_>, WireError> {
    const SHAPE: WireError = WireError::Shape("PUBLISH");
    let qos = (head >> 1) & 0b11;
    if qos == 3 {
        return Err(SHAPE);
    }
    let (length, body) = body.split_first_chunk().ok_or(SHAPE)?;
    let (topic, body) = body.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(SHAPE)?;
    if topic.is_empty() {
        return Err(SHAPE);
    }
    if qos == 0 {
        return Ok(Packet::Publish { qos, id: 0, payload: body });
    }
    let (id, payload) = body.split_first_chunk().ok_or(SHAPE)?;
    match u16::from_be_bytes(*id) {
        0 => Err(SHAPE),
        id => Ok(Packet::Publish { qos, id, payload }),
    }
}

fn identifier(body: &[u8], packet: &'static str) -> Result<u16, WireError> {
    match <[u8; 2]>::try_from(body).map(u16::from_be_bytes) {
        Ok(id) if id != 0 => Ok(id),
        _ => Err(WireError::Shape(packet)),
    }
}

/// The remaining length (2.2.3) and what follows it.
fn remaining_length(input: &[u8]) -> Result<Option<(usize, &[u8])>, WireError> {
    let mut length = 0;
    for (at, &byte) in input.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(input.get(at + 1..).map(|rest| (length, rest)));
        }
    }
    if input.len() < 4 { Ok(None) } else { Err(WireError::Length) }
}

fn push_length(out: &mut Vec<u8>, mut length: usize) {
    while length > 0x7F {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Callers keep strings below 64 KiB: [`super::Plan`] bounds every one of them.
fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_a_broker_sends_are_read_as_the_standard_writes_them() {
        let check = |bytes: &[u8], want: Packet<'_>| {
            let (packet, rest) = split(bytes).unwrap().unwrap();
            assert_eq!(packet, want);
            assert!(rest.is_empty(), "{bytes:?} is one packet");
            for cut in 0..bytes.len() {
                assert_eq!(
                    split(&bytes[..cut]),
                    Ok(None),
                    "the first {cut} bytes of {bytes:?} are not whole"
                );
            }
        };
        check(&[0x20, 2, 0, 5], Packet::ConnAck { present: false, code: 5 });
        check(&[0x20, 2, 1, 0], Packet::ConnAck { present: true, code: 0 });
        check(&[0x90, 3, 0, 1, 2], Packet::SubAck { granted: &[2] });
        check(&[0x30, 5, 0, 1, b't', 7, 8], Packet::Publish { qos: 0, id: 0, payload: &[7, 8] });
        check(&[0x3A, 6, 0, 1, b't', 1, 2, 9], Packet::Publish { qos: 1, id: 258, payload: &[9] });
        check(&[0x34, 5, 0, 1, b't', 0, 3], Packet::Publish { qos: 2, id: 3, payload: &[] });
        check(&[0x40, 2, 0, 9], Packet::PubAck(9));
        check(&[0x50, 2, 0, 9], Packet::PubRec(9));
        check(&[0x62, 2, 0, 9], Packet::PubRel(9));
        check(&[0x70, 2, 255, 255], Packet::PubComp(65535));
        check(&[0xD0, 0], Packet::PingResp);
    }

    #[test]
    fn bytes_that_break_the_standard_are_refused() {
        let check = |bytes: &[u8], want: WireError| assert_eq!(split(bytes), Err(want), "{bytes:?}");
        check(&[0x30, 0x80, 0x80, 0x80, 0x80], WireError::Length);
        check(&[0x36, 3, 0, 1, b't'], WireError::Shape("PUBLISH"));
        check(&[0x30, 2, 0, 0], WireError::Shape("PUBLISH"));
        check(&[0x30, 3, 0, 9, b't'], WireError::Shape("PUBLISH"));
        check(&[0x32, 5, 0, 1, b't', 0, 0], WireError::Shape("PUBLISH"));
        check(&[0x40, 2, 0, 0], WireError::Shape("PUBACK"));
        check(&[0x40, 3, 0, 1, 0], WireError::Shape("PUBACK"));
        check(&[0x60, 2, 0, 1], WireError::Head(0x60));
        check(&[0x90, 2, 0, 1], WireError::Shape("SUBACK"));
        check(&[0x20, 2, 2, 0], WireError::Shape("CONNACK"));
        check(&[0xE0, 0], WireError::Head(0xE0));
    }

    #[test]
    fn packets_are_written_as_the_standard_lays_them_out() {
        let check = |write: &dyn Fn(&mut Vec<u8>), want: &[u8]| {
            let mut out = Vec::new();
            write(&mut out);
            assert_eq!(out, want);
        };
        check(
            &|out| connect(out, &Connect { client_id: "ab", login: None, keep_alive: 258, clean: true }),
            b"\x10\x0e\x00\x04MQTT\x04\x02\x01\x02\x00\x02ab",
        );
        check(
            &|out| {
                connect(
                    out,
                    &Connect { client_id: "a", login: Some(("u", "pw")), keep_alive: 0, clean: true },
                )
            },
            b"\x10\x14\x00\x04MQTT\x04\xc2\x00\x00\x00\x01a\x00\x01u\x00\x02pw",
        );
        check(&|out| subscribe(out, "a/+", 2), b"\x82\x08\x00\x01\x00\x03a/+\x02");
        check(&|out| ack(out, Ack::Release, 258), b"\x62\x02\x01\x02");
        check(&|out| PublishHead::new("t", 0, 2).push(out, 7), b"\x30\x05\x00\x01t");
        check(&|out| PublishHead::new("t", 2, 300).push(out, 7), b"\x34\xb1\x02\x00\x01t\x00\x07");
    }

    #[test]
    fn a_long_publish_comes_back_from_the_bytes_it_was_written_to() {
        for size in [0, 122, 123, 16_378, 16_379, 100_000] {
            let mut out = Vec::new();
            PublishHead::new("t", 1, size).push(&mut out, 9);
            out.resize(out.len() + size, 0x55);
            out.extend_from_slice(&[0xD0, 0]);
            let (packet, rest) = split(&out).unwrap().unwrap();
            assert_eq!(packet, Packet::Publish { qos: 1, id: 9, payload: &vec![0x55; size] });
            assert_eq!(rest, [0xD0, 0]);
        }
    }
}
