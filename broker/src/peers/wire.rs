//! What goes over a link between two nodes: gRPC, one call a direction and pair, with these messages.
//!
//! ```proto
//! service Peers { rpc Pass(stream ToPeer) returns (stream FromPeer); }
//! ```
//!
//! Who passes on calls, and says [`Hello`] first; the answer is [`Welcome`], then batches go one way and [`Taken`] the other; and
//! [`Ask`] one way, [`Lease`] the other, [`ReadOn`] and [`HasRead`] back. Each
//! side names the lowest and the highest version that it speaks; the highest that both do is spoken. Fields that a side does
//! not know are passed over, so a new field needs a new version only if it must not be.

use std::sync::Arc;

use bytes::Bytes;
use mqtt_proto::{
    codec::QoS,
    durable::record::{Boot, Offset},
    message::{Message, MessageId, Millis},
    topic::check_topic,
};

/// The path of the call.
pub(crate) const PASS: &str = "/mqtt.dms.dev.v1.Peers/Pass";
/// The versions that this broker speaks.
pub(crate) const SPOKEN: Versions = Versions { lowest: 1, highest: 1 };
/// What a message takes on the wire besides topic, payload, properties and group, at most.
pub(crate) const OVERHEAD: usize = 128;

/// Who passes on, and to whom.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) lowest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) highest: u32,
    #[prost(fixed64, tag = "3")]
    pub(crate) from: Boot,
    /// Another process run must not take it for its own.
    #[prost(fixed64, tag = "4")]
    pub(crate) to: Boot,
    /// The name of the node, for people.
    #[prost(string, tag = "5")]
    pub(crate) node: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// This process run.
    #[prost(fixed64, tag = "2")]
    pub(crate) boot: Boot,
    /// The last number that it has taken of the caller's.
    #[prost(uint64, tag = "3")]
    pub(crate) taken: u64,
}

/// Messages in the order of their numbers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Batch {
    /// See [`super::outgoing::Batch`].
    #[prost(uint64, tag = "1")]
    pub(crate) after: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) seen: u64,
    #[prost(message, repeated, tag = "3")]
    pub(crate) messages: Vec<Passed>,
}

/// A message for sessions in no log, or with a group for one member of a shared subscription.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Passed {
    #[prost(uint64, tag = "1")]
    pub(crate) sequence: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) mid_boot: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) mid_counter: u64,
    #[prost(string, optional, tag = "4")]
    pub(crate) group: Option<String>,
    #[prost(uint32, tag = "5")]
    pub(crate) qos: u32,
    #[prost(bool, tag = "6")]
    pub(crate) retain: bool,
    /// Milliseconds since the Unix epoch.
    #[prost(uint64, optional, tag = "7")]
    pub(crate) expires_at: Option<u64>,
    #[prost(string, tag = "8")]
    pub(crate) topic: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub(crate) payload: Bytes,
    /// MQTT 5 properties as [`mqtt_proto::codec::MessageProperties::encode_forwarded`] gives them.
    #[prost(bytes = "bytes", tag = "10")]
    pub(crate) forwarded: Bytes,
}

/// All up to this number is in the queues of the sessions that get it, whichever way it came.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Taken {
    #[prost(uint64, tag = "1")]
    pub(crate) sequence: u64,
}

/// This process run reads back from the log what it writes there. Said each second as long as that is so,
/// to a peer that may not.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct InTouch {}

/// Asks for a lease (see [`super::lease`]).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Ask {
    /// Now, in milliseconds of the caller's steady clock.
    #[prost(uint64, tag = "1")]
    pub(crate) asked: Millis,
}

/// A lease, once the caller has read the session log as far as this.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Lease {
    /// As in [`Ask`].
    #[prost(uint64, tag = "1")]
    pub(crate) asked: Millis,
    /// Of each partition.
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) positions: Vec<Offset>,
}

/// Somebody waits until the caller has read the session log as far as this.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ReadOn {
    #[prost(uint64, tag = "1")]
    pub(crate) round: u64,
    /// Of each partition.
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) positions: Vec<Offset>,
}

/// It has.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct HasRead {
    #[prost(uint64, tag = "1")]
    pub(crate) round: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ToPeer {
    #[prost(oneof = "Call", tags = "1, 2, 3, 4")]
    pub(crate) call: Option<Call>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum Call {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Batch(Batch),
    #[prost(message, tag = "3")]
    Ask(Ask),
    #[prost(message, tag = "4")]
    HasRead(HasRead),
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct FromPeer {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5")]
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Taken(Taken),
    #[prost(message, tag = "3")]
    InTouch(InTouch),
    #[prost(message, tag = "4")]
    Lease(Lease),
    #[prost(message, tag = "5")]
    ReadOn(ReadOn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) lowest: u32,
    pub(crate) highest: u32,
}

/// There is no version that both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "one node speaks the versions {} to {} of links, the other {} to {}: go by way of a version between them",
    .0.lowest, .0.highest, .1.lowest, .1.highest
)]
pub(crate) struct NoCommonVersion(Versions, Versions);

impl Versions {
    /// The highest that both speak.
    pub(crate) fn agree(self, other: Versions) -> Result<u32, NoCommonVersion> {
        let highest = self.highest.min(other.highest);
        if highest < self.lowest.max(other.lowest) { Err(NoCommonVersion(self, other)) } else { Ok(highest) }
    }
}

impl Passed {
    pub(crate) fn new(sequence: u64, message: &Message, group: Option<&str>) -> Passed {
        Passed {
            sequence,
            mid_boot: message.id.boot,
            mid_counter: message.id.counter,
            group: group.map(str::to_owned),
            qos: message.qos as u32,
            retain: message.retain,
            expires_at: message.expires_at,
            topic: message.topic().to_owned(),
            payload: Bytes::copy_from_slice(message.payload()),
            forwarded: Bytes::copy_from_slice(message.forwarded()),
        }
    }

    /// The message, unless it is none that any broker would pass on.
    pub(crate) fn message(&self) -> Option<Arc<Message>> {
        let qos = QoS::try_from(u8::try_from(self.qos).ok()?).ok()?;
        check_topic(&self.topic).ok()?;
        let id = MessageId { boot: self.mid_boot, counter: self.mid_counter };
        let mut message = Message::new(id, 0, &self.topic, &self.payload, qos, self.retain).with_forwarded(
            self.forwarded.to_vec(),
            None,
            0,
        );
        message.expires_at = self.expires_at;
        Some(Arc::new(message))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_highest_version_that_both_speak_is_spoken() {
        let check = |ours: (u32, u32), theirs: (u32, u32), expected: Option<u32>| {
            let versions = |(lowest, highest)| Versions { lowest, highest };
            assert_eq!(versions(ours).agree(versions(theirs)).ok(), expected, "{ours:?} {theirs:?}");
            assert_eq!(versions(theirs).agree(versions(ours)).ok(), expected, "{theirs:?} {ours:?}");
        };
        check((1, 1), (1, 1), Some(1));
        check((1, 1), (1, 2), Some(1));
        check((1, 2), (2, 3), Some(2));
        check((1, 1), (2, 2), None);
        check((1, 1), (0, 0), None);
        let line = SPOKEN.agree(Versions { lowest: 7, highest: 9 }).unwrap_err().to_string();
        assert!(line.contains("1 to 1") && line.contains("7 to 9"), "{line}");
    }

    /// What a later version may say.
    #[derive(Clone, PartialEq, prost::Message)]
    struct LaterHello {
        #[prost(uint32, tag = "1")]
        lowest: u32,
        #[prost(uint32, tag = "2")]
        highest: u32,
        #[prost(fixed64, tag = "3")]
        from: Boot,
        #[prost(fixed64, tag = "4")]
        to: Boot,
        #[prost(string, tag = "5")]
        node: String,
        #[prost(string, repeated, tag = "6")]
        abilities: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct LaterBatch {
        #[prost(uint64, tag = "1")]
        after: u64,
        #[prost(message, repeated, tag = "3")]
        messages: Vec<Passed>,
        #[prost(bytes = "vec", tag = "9")]
        summary: Vec<u8>,
    }

    #[test]
    fn a_node_and_one_of_the_next_version_understand_each_other() {
        let hello = LaterHello {
            lowest: 1,
            highest: 2,
            from: 5,
            to: 6,
            node: "b".into(),
            abilities: vec!["leases".into(), "compression".into()],
        };
        let read = Hello::decode(&hello.encode_to_vec()[..]).unwrap();
        assert_eq!((read.from, read.to, read.node.as_str()), (5, 6, "b"));
        assert_eq!(SPOKEN.agree(Versions { lowest: read.lowest, highest: read.highest }), Ok(1));
        let old = LaterHello::decode(&read.encode_to_vec()[..]).unwrap();
        assert!(old.abilities.is_empty());
        let batch = LaterBatch { after: 3, messages: vec![Passed::default()], summary: vec![1; 9] };
        let read = Batch::decode(&batch.encode_to_vec()[..]).unwrap();
        assert_eq!((read.after, read.messages.len()), (3, 1));
        // A call that is not known is there, and says nothing.
        let unknown = [0x7a, 0x02, 0x08, 0x01];
        assert_eq!(ToPeer::decode(&unknown[..]).unwrap().call, None);
    }

    #[test]
    fn a_message_arrives_as_it_was_and_what_is_none_is_refused() {
        let id = MessageId { boot: u64::MAX, counter: 7 };
        let mut sent = Message::new(id, 9, "a/é", b"\0payload", QoS::ExactlyOnce, true).with_forwarded(
            vec![1, 1],
            None,
            0,
        );
        sent.expires_at = Some(12);
        let passed = Passed::new(4, &sent, Some("$share/g/a/#"));
        let passed = Passed::decode(&passed.encode_to_vec()[..]).unwrap();
        assert_eq!((passed.sequence, passed.group.as_deref()), (4, Some("$share/g/a/#")));
        let got = passed.message().unwrap();
        let parts = |message: &Message| {
            let (id, qos, retain, expires_at) = (message.id, message.qos, message.retain, message.expires_at);
            let (topic, payload) = (message.topic().to_owned(), message.payload().to_vec());
            (id, qos, retain, expires_at, topic, payload, message.forwarded().to_vec())
        };
        assert_eq!(parts(&got), parts(&sent));
        assert_eq!(got.publisher, 0, "sessions of other nodes have other numbers");
        for wrong in [
            Passed { qos: 3, ..passed.clone() },
            Passed { topic: String::new(), ..passed.clone() },
            Passed { topic: "a/#".into(), ..passed.clone() },
            Passed { topic: "a".repeat(70_000), ..passed },
        ] {
            assert!(wrong.message().is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_takes_more_on_the_wire_than_is_reckoned_with() {
        let id = MessageId { boot: u64::MAX, counter: u64::MAX };
        let mut message = Message::new(id, 0, "t", &[7; 1000], QoS::ExactlyOnce, true);
        message.expires_at = Some(u64::MAX);
        let passed = Passed::new(u64::MAX, &message, None);
        let batch = Batch { after: 0, seen: 0, messages: vec![passed] };
        assert!(batch.encoded_len() <= 1001 + OVERHEAD, "{}", batch.encoded_len());
    }
}
