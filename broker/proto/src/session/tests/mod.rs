//! The session against the specifications: dialogues word by word, and random ones against a model.
//!
//! A dialogue is a text. A line is a step, or begins with a mark:
//! - `>` the client sends a packet, `<` the broker does;
//! - `=` an effect, the answer of a call, or a violation.
//!
//! [`play`] writes down what the steps and the client's packets lead to, and [`check`] compares that with
//! what stands there. Client's packets: `publish ID qQOS PAYLOAD [dup] [alias=N|as=N]` (the ID is 0 for QoS 0; `as` an alias alone),
//! `puback ID [REASON]` and the other three, `subscribe ID FILTER`, `unsubscribe ID FILTER`, `pingreq`,
//! `disconnect [REASON [EXPIRY]]`, `connect`, `suback`, `auth`. Steps: see [`Stage::step`].

mod deliveries;
mod logged;
mod model;
mod publishes;

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use bytes::BytesMut;

use super::*;
use crate::{
    codec::{
        Auth, Connect, ConnectProperties, DisconnectProperties, RetainHandling, SubscribeFilter, decode,
        split_frame,
    },
    message::{Message, MessageId},
};

const WINDOW: u16 = 4;

/// Plays the steps and client's packets of `dialogue` and compares what comes of them.
#[track_caller]
fn check(dialogue: &str) {
    let lines: Vec<&str> = dialogue.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expected = lines.join("\n");
    let played = play(&lines);
    assert_eq!(played, expected, "\n--- played\n{played}\n--- expected\n{expected}\n");
}

fn play(lines: &[&str]) -> String {
    let mut stage = Stage::new();
    for line in lines.iter().filter(|line| !line.starts_with(['<', '='])) {
        writeln!(stage.transcript, "{line}").expect("text takes a line");
        match line.strip_prefix("> ") {
            Some(packet) => stage.hear(packet),
            None => stage.step(line),
        }
        stage.note_sent();
    }
    stage.transcript.trim_end().to_owned()
}

/// A session, its owner and the other end of its socket.
struct Stage {
    session: Option<Session>,
    terms: Terms,
    now: Millis,
    /// By payload: publishes whose outcome the owner has not told; kept after it has.
    tickets: HashMap<String, Ticket>,
    out: BytesMut,
    transcript: String,
}

fn terms(version: Version) -> Terms {
    Terms {
        version,
        keep_alive: 0,
        receive_maximum: 10,
        maximum_packet_size: u32::MAX,
        publish_window: WINDOW,
        told_receive_maximum: WINDOW,
        topic_alias_maximum: 0,
        wants_reasons: true,
        logged: false,
    }
}

impl Stage {
    fn new() -> Stage {
        let terms = terms(Version::V5);
        Stage {
            session: Some(Session::new(terms, SessionState::default(), 0)),
            terms,
            now: 0,
            tickets: HashMap::new(),
            out: BytesMut::new(),
            transcript: String::new(),
        }
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("a session is always there")
    }

    fn say(&mut self, text: impl std::fmt::Display) {
        writeln!(self.transcript, "= {text}").expect("text takes a line");
    }

    /// - `connect [v3] [window N] [packets N] [aliases N] [keepalive N]`: another connection of the same session;
    /// - `accept PAYLOAD`, `refuse PAYLOAD`: a publish's outcome; `released ID known|unknown`;
    /// - `subscribed ID REASON…`, `unsubscribed ID REASON…`;
    /// - `deliver qQOS PAYLOAD [expires SECONDS]`, `resend`;
    /// - `burn N`: that many QoS 1 messages come and go; `at MILLIS`: the time; `excuse`;
    /// - `window`, `deadline`, `owing`: what the session says of itself.
    fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let now = self.now;
        match words[..] {
            ["connect", ..] => self.connect(&words[1..]),
            ["accept", payload] => self.settle(payload, Reason::Success),
            ["refuse", payload] => self.settle(payload, Reason::NotAuthorized),
            ["released", id, known] => {
                let mut out = std::mem::take(&mut self.out);
                self.session().released(number(id), known == "known", &mut out);
                self.out = out;
            }
            ["subscribed" | "unsubscribed", id, ref reasons @ ..] => {
                let reasons: Vec<Reason> = reasons.iter().map(|code| reason(code)).collect();
                let mut out = std::mem::take(&mut self.out);
                match words[0] {
                    "subscribed" => self.session().subscribed(number(id), &reasons, &mut out),
                    _ => self.session().unsubscribed(number(id), &reasons, &mut out),
                }
                self.out = out;
            }
            ["excuse"] => self.session().excuse_silence(now),
            ["deliver", qos, payload, ..] => {
                let expiry = words.get(4).map(|seconds| number::<u32>(seconds));
                let sent = self.deliver(&delivery(qos, payload, expiry, now));
                if sent != Sent::Now {
                    self.say(format_args!("{sent:?}"));
                }
            }
            ["resend"] => {
                let mut out = std::mem::take(&mut self.out);
                let more = self.session().resend(now, &mut out);
                self.out = out;
                self.note_sent();
                if more {
                    self.say("more");
                }
                let dropped = self.session().take_dropped();
                if dropped != Dropped::default() {
                    self.say(format_args!(
                        "dropped {} expired, {} too large",
                        dropped.expired, dropped.too_large
                    ));
                }
            }
            ["burn", count] => self.burn(number(count)),
            ["at", millis] => self.now = number(millis),
            ["window"] => {
                let (window, inflight) = (self.session().window(), self.session().state.inflight());
                self.say(format_args!("{window}, {inflight} in flight"));
            }
            ["deadline"] => {
                let deadline = self.session().deadline();
                self.say(format_args!("{deadline:?}"));
            }
            ["owing"] => {
                let (owes, full) = (self.session().owes_acks(), self.session().publish_window_full());
                self.say(format_args!("{owes}, full {full}"));
            }
            _ => panic!("no such step: {line}"),
        }
    }

    fn connect(&mut self, options: &[&str]) {
        self.terms = terms(Version::V5);
        let mut options = options.iter();
        while let Some(option) = options.next() {
            let mut value = || options.next().expect("an option has a value");
            match *option {
                "v3" => self.terms.version = Version::V311,
                "window" => self.terms.receive_maximum = number(value()),
                "packets" => self.terms.maximum_packet_size = number(value()),
                "aliases" => self.terms.topic_alias_maximum = number(value()),
                "keepalive" => self.terms.keep_alive = number(value()),
                other => panic!("no such option: {other}"),
            }
        }
        let state = self.session.take().map(Session::into_state).unwrap_or_default();
        self.session = Some(Session::new(self.terms, state, self.now));
    }

    fn settle(&mut self, payload: &str, reason: Reason) {
        let ticket = self.tickets[payload];
        let mut out = std::mem::take(&mut self.out);
        self.session().published(ticket, reason, &mut out);
        self.out = out;
    }

    fn deliver(&mut self, delivery: &Delivery) -> Sent {
        let (mut out, now) = (std::mem::take(&mut self.out), self.now);
        let sent = self.session().deliver(delivery, now, &mut out);
        self.out = out;
        sent
    }

    fn burn(&mut self, count: usize) {
        let delivery = delivery("q1", "x", None, self.now);
        for _ in 0..count {
            assert_eq!(self.deliver(&delivery), Sent::Now);
            let out = std::mem::take(&mut self.out);
            let packets = read(&out, self.terms.version);
            let [Packet::Publish(publish)] = &packets[..] else { panic!("not one PUBLISH: {packets:?}") };
            let ack = Packet::PubAck(ack(publish.packet_id, Reason::Success));
            let effect = self.session().receive(ack, 0, &mut BytesMut::new());
            assert!(matches!(effect, Ok(Effect::Delivered)), "{effect:?}");
        }
    }

    /// The client's packet goes through the codec, as it would.
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let version = self.terms.version;
        let mut wire = BytesMut::new();
        packet(&words, version).encode(version, &mut wire);
        let mut named = None;
        let mut packet = read(&wire, version).pop().expect("one packet");
        let now = self.now;
        let mut out = std::mem::take(&mut self.out);
        let effect = match self.session().name_topic(&mut packet, &mut named) {
            Ok(()) => self.session().receive(packet, now, &mut out),
            Err(violation) => Err(violation),
        };
        if let Ok(Effect::Publish(publish, _)) = &effect {
            assert_eq!(publish.topic, "t");
        }
        let said = describe(effect, &mut self.tickets);
        self.out = out;
        self.note_sent();
        if let Some(said) = said {
            self.say(said);
        }
    }

    /// Writes down what the session has sent.
    fn note_sent(&mut self) {
        let out = std::mem::take(&mut self.out);
        for packet in read(&out, self.terms.version) {
            writeln!(self.transcript, "< {}", written(&packet)).expect("text takes a line");
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}

fn qos(text: &str) -> QoS {
    let digit: u8 = number(text.strip_prefix('q').expect("a QoS begins with q"));
    QoS::try_from(digit).expect("a QoS is 0, 1 or 2")
}

fn reason(text: &str) -> Reason {
    let code = u8::from_str_radix(text.strip_prefix("0x").expect("a reason begins with 0x"), 16);
    Reason::try_from(code.expect("a reason is hexadecimal")).expect("a reason exists")
}

fn ack(packet_id: u16, reason: Reason) -> Ack<'static> {
    Ack { packet_id, reason, properties: Default::default() }
}

fn delivery(quality: &str, payload: &str, expiry: Option<u32>, now: Millis) -> Delivery {
    let qos = qos(quality);
    let message = Message::new(MessageId { boot: 0, counter: 0 }, 0, "t", payload.as_bytes(), qos, false)
        .with_forwarded(Vec::new(), expiry, now);
    Delivery { message: Arc::new(message), qos, retain: false, subscription_ids: None, share: None }
}

fn read(bytes: &[u8], version: Version) -> Vec<Packet<'_>> {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (frame, length) = split_frame(rest, u32::MAX).expect("a frame").expect("a whole frame");
        packets.push(decode(frame, version).expect("a packet"));
        rest = &rest[length..];
    }
    packets
}

fn packet<'a>(words: &[&'a str], version: Version) -> Packet<'a> {
    let of =
        |words: &[&str]| ack(number(words[0]), words.get(1).map_or(Reason::Success, |code| reason(code)));
    match words {
        ["publish", id, quality, payload, flags @ ..] => {
            let mut publish = Publish {
                dup: flags.contains(&"dup"),
                qos: qos(quality),
                retain: false,
                topic: if flags.iter().any(|flag| flag.starts_with("as=")) { "" } else { "t" },
                packet_id: number(id),
                properties: Default::default(),
                payload: payload.as_bytes(),
            };
            publish.properties.topic_alias =
                flags.iter().find_map(|flag| flag.split_once('=')).map(|(_, alias)| number(alias));
            Packet::Publish(publish)
        }
        ["puback", rest @ ..] => Packet::PubAck(of(rest)),
        ["pubrec", rest @ ..] => Packet::PubRec(of(rest)),
        ["pubrel", rest @ ..] => Packet::PubRel(of(rest)),
        ["pubcomp", rest @ ..] => Packet::PubComp(of(rest)),
        ["subscribe", id, filter] => Packet::Subscribe(Subscribe {
            packet_id: number(id),
            subscription_id: None,
            filters: [SubscribeFilter {
                filter,
                qos: QoS::ExactlyOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::SendAlways,
            }]
            .into_iter()
            .collect(),
            user: Vec::new(),
        }),
        ["unsubscribe", id, filter] => Packet::Unsubscribe(Unsubscribe {
            packet_id: number(id),
            filters: [*filter].into_iter().collect(),
            user: Vec::new(),
        }),
        ["pingreq"] => Packet::PingReq,
        ["disconnect", rest @ ..] => Packet::Disconnect(Disconnect {
            reason: rest.first().map_or(Reason::Success, |code| reason(code)),
            properties: DisconnectProperties {
                session_expiry_interval: rest.get(1).map(|seconds| number(seconds)),
                ..Default::default()
            },
        }),
        ["connect"] => Packet::Connect(Connect {
            version,
            clean_start: true,
            keep_alive: 0,
            client_id: "c",
            will: None,
            username: None,
            password: None,
            properties: ConnectProperties::default(),
        }),
        ["suback"] => Packet::SubAck(SubAck {
            packet_id: 1,
            reasons: [Reason::Success].into_iter().collect(),
            properties: Default::default(),
        }),
        ["auth"] => Packet::Auth(Auth {
            reason: Reason::Success,
            method: None,
            data: None,
            reason_string: None,
            user: Vec::new(),
        }),
        other => panic!("no such packet: {other:?}"),
    }
}

/// A packet of the broker, as a dialogue writes it.
fn written(packet: &Packet<'_>) -> String {
    let ack = |name: &str, ack: &Ack<'_>| match ack.reason {
        Reason::Success => format!("{name} {}", ack.packet_id),
        reason => format!("{name} {} {:#04x}", ack.packet_id, reason.code()),
    };
    match packet {
        Packet::Publish(publish) => {
            let payload = String::from_utf8_lossy(publish.payload);
            let dup = if publish.dup { " dup" } else { "" };
            let expiry = publish.properties.message.expiry_interval;
            let expiry = expiry.map(|seconds| format!(" expires {seconds}")).unwrap_or_default();
            let alias = match (publish.properties.topic_alias, publish.topic) {
                (None, _) => String::new(),
                (Some(alias), "") => format!(" as={alias}"),
                (Some(alias), _) => format!(" alias={alias}"),
            };
            format!("publish {} q{} {payload}{dup}{expiry}{alias}", publish.packet_id, publish.qos as u8)
        }
        Packet::PubAck(inner) => ack("puback", inner),
        Packet::PubRec(inner) => ack("pubrec", inner),
        Packet::PubRel(inner) => ack("pubrel", inner),
        Packet::PubComp(inner) => ack("pubcomp", inner),
        Packet::SubAck(suback) => format!("suback {}{}", suback.packet_id, codes(&suback.reasons)),
        Packet::UnsubAck(unsuback) => format!("unsuback {}{}", unsuback.packet_id, codes(&unsuback.reasons)),
        Packet::PingResp => "pingresp".to_owned(),
        other => format!("{other:?}"),
    }
}

fn codes(reasons: &[Reason]) -> String {
    reasons.iter().map(|reason| format!(" {:#04x}", reason.code())).collect()
}

/// What the owner is asked to do, or why the connection ends; none for nothing.
fn describe(effect: Result<Effect<'_>, Violation>, tickets: &mut HashMap<String, Ticket>) -> Option<String> {
    Some(match effect {
        Ok(Effect::None) => return None,
        Ok(Effect::Publish(publish, ticket)) => {
            let payload = String::from_utf8_lossy(publish.payload).into_owned();
            let said = format!("publish {payload}");
            if let Some(ticket) = ticket {
                tickets.insert(payload, ticket);
            }
            said
        }
        Ok(Effect::Release { packet_id, known }) => {
            format!("release {packet_id} {}", if known { "known" } else { "unknown" })
        }
        Ok(Effect::Delivered) => "delivered".to_owned(),
        Ok(Effect::Received { packet_id, mid }) => format!("received {packet_id} {}", mid.counter),
        Ok(Effect::Disconnect { discard_will, session_expiry }) => {
            let will = if discard_will { "discarded" } else { "kept" };
            let expiry = session_expiry.map(|seconds| format!(", expires {seconds}")).unwrap_or_default();
            format!("goodbye, will {will}{expiry}")
        }
        Ok(Effect::Subscribe(subscribe)) => format!("subscribe {}", subscribe.filters[0].filter),
        Ok(Effect::Unsubscribe(unsubscribe)) => format!("unsubscribe {}", unsubscribe.filters[0]),
        Err(violation) => format!("violation {:#04x}: {}", violation.reason.code(), violation.what),
    })
}
