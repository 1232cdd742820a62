//! What the client publishes: acknowledgements owed to it, in order, and its unfinished QoS 2 packet identifiers.

use std::collections::{BTreeMap, VecDeque};

use crate::codec::{QoS, Reason};

/// Names a publish whose acknowledgement is owed. Rises within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// Publishes whose acknowledgement has not left, oldest first; the first has ticket `first_ticket`.
    owed: VecDeque<Waiting>,
    first_ticket: u64,
    /// Those of `owed` that are QoS 1.
    owed_pubacks: usize,
    /// QoS 2 packet identifiers between PUBLISH and PUBREL.
    unreleased: BTreeMap<u16, Progress>,
    /// How many messages may be unfinished before the client has surely broken its Receive Maximum.
    allowance: usize,
}

#[derive(Debug)]
struct Waiting {
    packet_id: u16,
    qos: QoS,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The owner has not told the outcome.
    Unknown,
    /// To be sent when all before it are.
    Due(Reason),
    /// Not to be sent any more.
    Withdrawn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Handed to the owner, no outcome yet.
    Pending,
    /// Taken; its PUBREC waits in `owed` for those before it.
    Due,
    /// Taken; its PUBREC was sent, maybe on a former connection.
    Answered,
}

/// An acknowledgement that may leave now.
pub(super) struct Owed {
    pub(super) packet_id: u16,
    pub(super) qos: QoS,
    pub(super) reason: Reason,
}

/// What a QoS 2 PUBLISH is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    New(Ticket),
    /// A repeat. Its PUBREC comes in its turn, nothing else (MQTT 4.3.3).
    Repeat,
}

/// What a PUBREL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    Known,
    Unknown,
    /// Of a message that has no outcome, so that the client can't have its PUBREC.
    TooEarly,
}

impl Inbound {
    /// Nothing is owed on a new connection: the client repeats what it has no answer for.
    ///
    /// `receive_maximum` is what the client was told. What it has left to release from before
    /// does not count against that, and each PUBCOMP it gets for those lets it send one more (MQTT 5 section 4.9).
    pub(super) fn reconnect(&mut self, receive_maximum: u16) {
        self.first_ticket += self.owed.len() as u64;
        self.owed.clear();
        self.owed_pubacks = 0;
        self.unreleased.retain(|_, progress| {
            let taken = *progress != Progress::Pending;
            *progress = Progress::Answered;
            taken
        });
        self.allowance = usize::from(receive_maximum) + self.unreleased.len();
    }

    pub(super) fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether one more message is more than the client may have unfinished. A repeat is none.
    pub(super) fn is_beyond_allowance(&self, packet_id: u16, qos: QoS) -> bool {
        self.owed_pubacks + self.unreleased.len() >= self.allowance
            && !(qos == QoS::ExactlyOnce && self.unreleased.contains_key(&packet_id))
    }

    /// A QoS 1 PUBLISH.
    pub(super) fn owe(&mut self, packet_id: u16) -> Ticket {
        self.owed_pubacks += 1;
        self.push(packet_id, QoS::AtLeastOnce, Answer::Unknown)
    }

    /// A QoS 2 PUBLISH.
    pub(super) fn begin(&mut self, packet_id: u16) -> Begin {
        match self.unreleased.get_mut(&packet_id) {
            Some(Progress::Pending | Progress::Due) => Begin::Repeat,
            Some(progress) => {
                // Behind the acknowledgements of what came before it (MQTT 4.6).
                *progress = Progress::Due;
                self.push(packet_id, QoS::ExactlyOnce, Answer::Due(Reason::Success));
                Begin::Repeat
            }
            None => {
                self.unreleased.insert(packet_id, Progress::Pending);
                Begin::New(self.push(packet_id, QoS::ExactlyOnce, Answer::Unknown))
            }
        }
    }

    /// The outcome of a publish. One of a former connection, or a second one, changes nothing.
    pub(super) fn settle(&mut self, ticket: Ticket, reason: Reason) {
        let Some(index) = ticket.0.checked_sub(self.first_ticket).and_then(|i| usize::try_from(i).ok())
        else {
            return;
        };
        let Some(waiting) = self.owed.get_mut(index).filter(|waiting| waiting.answer == Answer::Unknown)
        else {
            return;
        };
        waiting.answer = Answer::Due(reason);
        if waiting.qos == QoS::ExactlyOnce {
            if reason.is_failure() {
                // A refused message leaves nothing to release (MQTT 5 section 4.3.3).
                self.unreleased.remove(&waiting.packet_id);
            } else {
                self.unreleased.insert(waiting.packet_id, Progress::Due);
            }
        }
    }

    pub(super) fn next_due(&mut self) -> Option<Owed> {
        loop {
            let answer = self.owed.front()?.answer;
            if answer == Answer::Unknown {
                return None;
            }
            let Waiting { packet_id, qos, .. } = self.owed.pop_front()?;
            self.first_ticket += 1;
            let Answer::Due(reason) = answer else { continue };
            if qos == QoS::AtLeastOnce {
                self.owed_pubacks -= 1;
            } else if !reason.is_failure() {
                self.unreleased.insert(packet_id, Progress::Answered);
            }
            return Some(Owed { packet_id, qos, reason });
        }
    }

    /// PUBREL: frees the identifier.
    pub(super) fn release(&mut self, packet_id: u16) -> Release {
        match self.unreleased.get(&packet_id) {
            Some(Progress::Pending) => return Release::TooEarly,
            Some(Progress::Due) => self.withdraw(packet_id),
            Some(Progress::Answered) => {}
            None => {
                // Its PUBCOMP lets the client send one more, too.
                self.allowance += 1;
                return Release::Unknown;
            }
        }
        self.unreleased.remove(&packet_id);
        Release::Known
    }

    /// The client has released the identifier without waiting for the answer to its repeat, and may use it
    /// again: a PUBREC from before would then look like that of the next message.
    fn withdraw(&mut self, packet_id: u16) {
        let of_it =
            |waiting: &&mut Waiting| waiting.qos == QoS::ExactlyOnce && waiting.packet_id == packet_id;
        for waiting in self.owed.iter_mut().filter(of_it) {
            if matches!(waiting.answer, Answer::Due(reason) if !reason.is_failure()) {
                waiting.answer = Answer::Withdrawn;
            }
        }
    }

    fn push(&mut self, packet_id: u16, qos: QoS, answer: Answer) -> Ticket {
        let ticket = Ticket(self.first_ticket + self.owed.len() as u64);
        self.owed.push_back(Waiting { packet_id, qos, answer });
        ticket
    }
}
