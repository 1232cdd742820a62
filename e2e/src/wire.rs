//! MQTT by hand: bytes out, packets in, for exact answers and for what no well-behaved client would send.
//!
//! Small encoders and a small decoder of its own, written from the standards and not from the broker's code.
//! Every read has a timeout, and a closed connection is an answer like any other.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{PATIENCE, tls::ClientTls};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1
    V31,
    /// MQTT 3.1.1
    V3,
    /// MQTT 5.0
    V5,
}

/// How a client introduces itself; the real clients use it, too.
#[derive(Clone, Debug)]
pub struct Login {
    pub version: Version,
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub clean: bool,
    /// Session Expiry Interval in seconds (v5).
    pub expiry: u32,
    /// Seconds.
    pub keep_alive: u16,
    pub will: Option<Will>,
    /// Real clients connect again by themselves.
    pub reconnect: bool,
    /// Real clients use TLS so; absent: they don't.
    pub tls: Option<ClientTls>,
    /// Real clients use WebSocket.
    pub websocket: bool,
}

#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
}

/// A packet from the broker, as far as stories look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    ConnAck {
        session_present: bool,
        code: u8,
    },
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        retain: bool,
        dup: bool,
        id: Option<u16>,
    },
    PubAck {
        id: u16,
        reason: u8,
    },
    PubRec {
        id: u16,
        reason: u8,
    },
    PubRel {
        id: u16,
        reason: u8,
    },
    PubComp {
        id: u16,
        reason: u8,
    },
    SubAck {
        id: u16,
        reasons: Vec<u8>,
    },
    UnsubAck {
        id: u16,
    },
    PingResp,
    Disconnect {
        reason: u8,
    },
    Other {
        first_byte: u8,
        body: Vec<u8>,
    },
    /// The broker closed the connection.
    Closed,
}

/// What a dialogue goes over.
pub trait Transport: Read + Write + Send {
    /// Reads fail after this time.
    fn wait_at_most(&self, limit: Duration) -> std::io::Result<()>;
}

impl Transport for Box<dyn Transport> {
    fn wait_at_most(&self, limit: Duration) -> std::io::Result<()> {
        (**self).wait_at_most(limit)
    }
}

impl Transport for TcpStream {
    fn wait_at_most(&self, limit: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// One connection to a broker.
pub struct Dialogue {
    stream: Box<dyn Transport>,
    version: Version,
    unread: Vec<u8>,
}

impl Version {
    /// The protocol level in CONNECT.
    pub fn level(self) -> u8 {
        match self {
            Version::V31 => 3,
            Version::V3 => 4,
            Version::V5 => 5,
        }
    }
}

impl Login {
    /// A clean session without credentials.
    pub fn new(version: Version, client_id: &str) -> Self {
        Self {
            version,
            client_id: client_id.to_owned(),
            username: None,
            password: None,
            clean: true,
            expiry: 0,
            keep_alive: 60,
            will: None,
            reconnect: false,
            tls: None,
            websocket: false,
        }
    }

    pub fn user(self, name: &str, password: &str) -> Self {
        Self { username: Some(name.to_owned()), password: Some(password.to_owned()), ..self }
    }

    /// A session that outlives the connection.
    pub fn persistent(self) -> Self {
        Self { clean: false, expiry: 3600, ..self }
    }

    pub fn will(self, topic: &str, payload: &[u8], qos: u8) -> Self {
        let will = Will { topic: topic.to_owned(), payload: payload.to_owned(), qos, retain: false };
        Self { will: Some(will), ..self }
    }

    pub fn over_tls(self, tls: &ClientTls) -> Self {
        Self { tls: Some(tls.clone()), ..self }
    }

    pub fn over_websocket(self) -> Self {
        Self { websocket: true, ..self }
    }

    pub fn reconnecting(self) -> Self {
        Self { reconnect: true, ..self }
    }

    /// The CONNECT packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut flags = if self.clean { 0x02 } else { 0 };
        let mut body = string(if self.version == Version::V31 { "MQIsdp" } else { "MQTT" });
        let mut payload = string(&self.client_id);
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
            if self.version == Version::V5 {
                payload.push(0);
            }
            payload.extend(string(&will.topic));
            payload.extend(binary(&will.payload));
        }
        if let Some(username) = &self.username {
            flags |= 0x80;
            payload.extend(string(username));
        }
        if let Some(password) = &self.password {
            flags |= 0x40;
            payload.extend(string(password));
        }
        body.extend([self.version.level(), flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            body.extend([5, 0x11]);
            body.extend(self.expiry.to_be_bytes());
        }
        body.extend(payload);
        packet(0x10, &body)
    }
}

impl Dialogue {
    /// A connection without a CONNECT.
    pub fn open(broker: SocketAddr, version: Version) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&broker, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::over(Box::new(stream), version))
    }

    /// A connection over something else, without a CONNECT.
    pub fn over(stream: Box<dyn Transport>, version: Version) -> Self {
        Self { stream, version, unread: Vec::new() }
    }

    /// A connection with a CONNECT sent; the answer is the caller's.
    pub fn greet(broker: SocketAddr, login: &Login) -> Result<Self> {
        let mut dialogue = Self::open(broker, login.version)?;
        dialogue.send(&login.packet())?;
        Ok(dialogue)
    }

    /// A connection that was accepted, and whether a session was there.
    pub fn connect(broker: SocketAddr, login: &Login) -> Result<(Self, bool)> {
        let mut dialogue = Self::greet(broker, login)?;
        match dialogue.read()? {
            Packet::ConnAck { session_present, code: 0 } => Ok((dialogue, session_present)),
            other => bail!("{} was not accepted: {other:?}", login.client_id),
        }
    }

    /// Sends bytes. A connection closed meanwhile is no error here: the next read tells it.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            Err(error) if is_closed(error.kind()) => Ok(()),
            other => other.context("writing to the broker"),
        }
    }

    /// Subscribes to one filter, and returns the SUBACK's code; messages on the way are dropped.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> Result<u8> {
        self.send(&subscribe(self.version, 1, &[(filter, qos)]))?;
        loop {
            match self.read()? {
                Packet::SubAck { id: 1, reasons } => {
                    return reasons.first().copied().context("an empty SUBACK");
                }
                Packet::Publish { .. } => {}
                other => bail!("subscribing to {filter}: {other:?}"),
            }
        }
    }

    /// Sends a PUBLISH; `id` for QoS 1 and 2.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8, id: u16) -> Result<()> {
        self.send(&publish(self.version, topic.as_bytes(), payload, qos, id, false))
    }

    /// The next packet, or [`Packet::Closed`].
    pub fn read(&mut self) -> Result<Packet> {
        loop {
            if let Some(packet) = self.take_packet()? {
                return Ok(packet);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Packet::Closed),
                Ok(count) => self.unread.extend(chunk.iter().take(count)),
                Err(error) if is_closed(error.kind()) => return Ok(Packet::Closed),
                Err(error) => return Err(error).context("waiting for a packet"),
            }
        }
    }

    /// The next packet, or nothing if none comes in time.
    pub fn read_within(&mut self, time: Duration) -> Result<Option<Packet>> {
        self.stream.wait_at_most(time)?;
        let next = self.read();
        self.stream.wait_at_most(PATIENCE)?;
        match next {
            Ok(packet) => Ok(Some(packet)),
            Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Pings and waits for the answer: everything sent before was handled, and the connection lives.
    /// Returns the packets that came before it.
    pub fn ping(&mut self) -> Result<Vec<Packet>> {
        self.send(&[0xC0, 0])?;
        let mut before = Vec::new();
        loop {
            match self.read()? {
                Packet::PingResp => return Ok(before),
                Packet::Closed => bail!("closed instead of a PINGRESP, after {before:?}"),
                other => before.push(other),
            }
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    fn take_packet(&mut self) -> Result<Option<Packet>> {
        let Some((packet, used)) = decode(self.version, &self.unread)? else { return Ok(None) };
        self.unread.drain(..used);
        Ok(Some(packet))
    }
}

/// The first packet of what was read, and its length in bytes; `None` while it isn't whole.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Option<(Packet, usize)>> {
    let Some((first_byte, header, body)) = split_packet(bytes)? else { return Ok(None) };
    let packet = parse(version, first_byte, body).with_context(|| format!("a packet {first_byte:#x}"))?;
    Ok(Some((packet, header + body.len())))
}

/// Any packet: its first byte and its body.
pub fn packet(first_byte: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first_byte];
    let mut left = body.len();
    loop {
        let low = u8::try_from(left % 128).unwrap_or_default();
        left /= 128;
        bytes.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

pub fn subscribe(version: Version, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for (filter, qos) in filters {
        body.extend(string(filter));
        body.push(*qos);
    }
    packet(0x82, &body)
}

pub fn unsubscribe(version: Version, id: u16, filter: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    body.extend(string(filter));
    packet(0xA2, &body)
}

/// The topic is bytes, so that it can be what no topic may be.
pub fn publish(version: Version, topic: &[u8], payload: &[u8], qos: u8, id: u16, dup: bool) -> Vec<u8> {
    let mut body = binary(topic);
    if qos > 0 {
        body.extend(id.to_be_bytes());
    }
    if version == Version::V5 {
        body.push(0);
    }
    body.extend(payload);
    packet(0x30 | qos << 1 | u8::from(dup) << 3, &body)
}

pub fn puback(id: u16) -> Vec<u8> {
    packet(0x40, &id.to_be_bytes())
}

pub fn pubrec(id: u16) -> Vec<u8> {
    packet(0x50, &id.to_be_bytes())
}

pub fn pubrel(id: u16) -> Vec<u8> {
    packet(0x62, &id.to_be_bytes())
}

pub fn pubcomp(id: u16) -> Vec<u8> {
    packet(0x70, &id.to_be_bytes())
}

pub fn disconnect() -> Vec<u8> {
    packet(0xE0, &[])
}

fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    let mut field = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    field.extend(bytes);
    field
}

/// First byte, length of the fixed header, body; `None` while it isn't whole.
fn split_packet(bytes: &[u8]) -> Result<Option<(u8, usize, &[u8])>> {
    let Some((first_byte, rest)) = bytes.split_first() else { return Ok(None) };
    let mut length = 0usize;
    for (at, byte) in rest.iter().enumerate() {
        ensure!(at < 4, "a remaining length of more than four bytes");
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            let header = at + 2;
            return Ok(bytes.get(header..header + length).map(|body| (*first_byte, header, body)));
        }
    }
    Ok(None)
}

fn parse(version: Version, first_byte: u8, body: &[u8]) -> Result<Packet> {
    let v5 = version == Version::V5;
    let mut fields = Fields { left: body };
    Ok(match first_byte >> 4 {
        2 => Packet::ConnAck { session_present: fields.byte()? == 1, code: fields.byte()? },
        3 => {
            let topic = fields.string()?;
            let qos = first_byte >> 1 & 3;
            let id = if qos > 0 { Some(fields.two_bytes()?) } else { None };
            if v5 {
                fields.skip_properties()?;
            }
            let (retain, dup) = (first_byte & 1 == 1, first_byte & 8 == 8);
            Packet::Publish { topic, payload: fields.left.to_vec(), qos, retain, dup, id }
        }
        4 => Packet::PubAck { id: fields.two_bytes()?, reason: fields.reason() },
        5 => Packet::PubRec { id: fields.two_bytes()?, reason: fields.reason() },
        6 => Packet::PubRel { id: fields.two_bytes()?, reason: fields.reason() },
        7 => Packet::PubComp { id: fields.two_bytes()?, reason: fields.reason() },
        9 => {
            let id = fields.two_bytes()?;
            if v5 {
                fields.skip_properties()?;
            }
            Packet::SubAck { id, reasons: fields.left.to_vec() }
        }
        11 => Packet::UnsubAck { id: fields.two_bytes()? },
        13 => Packet::PingResp,
        14 => Packet::Disconnect { reason: fields.reason() },
        _ => Packet::Other { first_byte, body: body.to_vec() },
    })
}

struct Fields<'a> {
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (field, left) = self.left.split_at_checked(count).context("it is too short")?;
        self.left = left;
        Ok(field)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1)?.first().copied().context("it is too short")
    }

    fn two_bytes(&mut self) -> Result<u16> {
        Ok(u16::from(self.byte()?) << 8 | u16::from(self.byte()?))
    }

    fn string(&mut self) -> Result<String> {
        let length = self.two_bytes()?;
        Ok(String::from_utf8(self.take(usize::from(length))?.to_vec())?)
    }

    /// Absent means success.
    fn reason(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn skip_properties(&mut self) -> Result<()> {
        let mut length = 0usize;
        for at in 0..4 {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                break;
            }
        }
        self.take(length)?;
        Ok(())
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | BrokenPipe | ConnectionAborted | UnexpectedEof)
}
