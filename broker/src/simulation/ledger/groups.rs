//! Shared subscriptions: which there are, who may be a member, and what a group was promised.
//!
//! A copy that came through a group is known by the subscription identifier that all ask for it with: a member may get the
//! message for itself, too. So all members speak MQTT 5.

use mqtt_proto::{codec::QoS, topic::Filter};

use super::{Incarnation, Ledger, NO_CAP, Rule, Sent, Subscription};

pub(in crate::simulation) struct Group {
    pub(in crate::simulation) name: &'static str,
    pub(in crate::simulation) filter: &'static str,
    /// The subscription identifier.
    pub(in crate::simulation) id: u32,
    pub(in crate::simulation) qos: &'static [QoS],
    /// Only sessions that are in the log are members.
    pub(in crate::simulation) is_logged: bool,
}

/// Of each kind one: what is promised to a group depends on who is in it.
pub(in crate::simulation) const GROUPS: [Group; 4] = [
    Group { name: "$share/a/t/#", filter: "t/#", id: 1, qos: &[QoS::AtLeastOnce], is_logged: false },
    Group { name: "$share/b/t/1", filter: "t/1", id: 2, qos: &[QoS::ExactlyOnce], is_logged: true },
    Group { name: "$share/b/+/2", filter: "+/2", id: 3, qos: &[QoS::ExactlyOnce], is_logged: false },
    Group {
        name: "$share/a/m/#",
        filter: "m/#",
        id: 4,
        qos: &[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce],
        is_logged: false,
    },
];

impl Group {
    pub(in crate::simulation) fn named(name: &str) -> Option<&'static Group> {
        GROUPS.iter().find(|group| group.name == name)
    }

    fn is_twos(&self) -> bool {
        self.qos.iter().all(|qos| *qos == QoS::ExactlyOnce)
    }
}

impl Incarnation {
    fn of_group(&self, id: u32) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().filter(move |of| of.group.is_some_and(|group| group.id == id))
    }
}

impl Ledger {
    /// A process run of a node serves: all who read on know that the one before is over.
    pub(in crate::simulation) fn serves(&mut self, node: usize, boot: u64) {
        self.event("node", node, "serves", boot);
        if let Some(before) = self.serving.insert(node, boot) {
            self.over.insert(before, self.now);
        }
    }

    /// What a session begins with: it may be the one before, of which its client thought that it had ended. Else that one
    /// is surely over.
    pub(super) fn memberships_before(&mut self, client: usize, inherits: bool) -> Vec<Subscription> {
        let now = self.now;
        let Some(before) = self.incarnations.iter_mut().rfind(|of| of.client == client) else {
            return Vec::new();
        };
        before.over = Some(now);
        if !inherits {
            return Vec::new();
        }
        let mut memberships: Vec<_> =
            before.subscriptions.iter().filter(|of| of.group.is_some()).cloned().collect();
        memberships.iter_mut().for_each(|of| _ = of.until.get_or_insert(now));
        memberships
    }

    /// A message has reached a session through a group. `qos` as delivered.
    pub(in crate::simulation) fn received_shared(
        &mut self,
        incarnation: usize,
        id: u32,
        number: u32,
        qos: QoS,
    ) {
        let Some(message) = self.messages.get(number as usize) else {
            return self.violate(Rule::Members, format!("message {number} was never sent"));
        };
        let Some(group) = GROUPS.iter().find(|group| group.id == id) else {
            return self.violate(Rule::Members, format!("message {number} comes through no group"));
        };
        let (since, published, maybe_twice) = (message.since, message.qos, message.maybe_twice);
        let again = message.again;
        // Nobody makes sure of what is known for a QoS 0 message.
        let is_left = |off: u64| published > QoS::AtMostOnce && off < since;
        let is_member = self.incarnations[incarnation].of_group(id).any(|of| !of.off.is_some_and(is_left));
        self.judged(Rule::Members, since);
        if !is_member {
            let what = format!("session {incarnation} gets message {number} of {}", group.name);
            self.violate(Rule::Members, what);
        }
        let got = self.shared.entry((id, number)).or_default();
        got.push((incarnation, self.now));
        if qos < QoS::ExactlyOnce || !group.is_twos() || maybe_twice {
            return;
        }
        let (_, before) = got.split_last().unwrap();
        let twice = before.iter().any(|(other, _)| *other == incarnation);
        let other = before.iter().find(|other| {
            let (of, this) = (&self.incarnations[other.0], &self.incarnations[incarnation]);
            // What came again is found where it was durable before, as long as who had it is there.
            let is_found = again.is_none_or(|again| other.1 < again && !of.ended);
            group.is_logged && of.client != this.client && is_found
        });
        let other = other.map(|(other, _)| *other);
        self.judged(Rule::SharedOnce, since);
        if twice {
            let what = format!("message {number} of {} reaches session {incarnation} twice", group.name);
            self.violate(Rule::SharedOnce, what);
        } else if let Some(other) = other {
            let what =
                format!("message {number} of {} reaches sessions {other} and {incarnation}", group.name);
            self.violate(Rule::SharedOnce, what);
        }
    }

    /// Nothing waits any more: what was acknowledged must have come to a member.
    pub(in crate::simulation) fn settle_shared(&mut self) {
        let (judged, missing) = self.due_to_groups();
        judged.into_iter().for_each(|since| self.judged(Rule::Shared, since));
        if let Some(missing) = missing {
            self.violate(Rule::Shared, missing);
        }
        self.settled_shared = self.messages.len();
    }

    /// When that was sent since all was at rest last which a member of each group must get, and what none has so far.
    pub(in crate::simulation) fn due_to_groups(&self) -> (Vec<u64>, Option<String>) {
        let (mut judged, mut missing) = (Vec::new(), None);
        // A queue may let go of anything where it is short.
        let groups = GROUPS.iter().filter(|_| self.cap == NO_CAP);
        for group in groups {
            let all = self.incarnations.iter().enumerate();
            let members: Vec<_> = all.filter(|(_, of)| of.of_group(group.id).next().is_some()).collect();
            let filter = Filter::parse(group.filter).unwrap();
            let from = self.settled_shared;
            for (number, message) in (from..).zip(&self.messages[from..]) {
                let due = message.acked.is_some() && message.qos > QoS::AtMostOnce;
                if !due || !filter.matches(&message.topic) {
                    continue;
                }
                let is_sure = |one: &Subscription| one.until.is_none() && one.since < message.since;
                let stays = |of: &Incarnation| !of.ended && of.of_group(group.id).any(is_sure);
                let Some((member, _)) = members.iter().find(|(_, of)| stays(of)) else { continue };
                if members.iter().any(|(_, of)| self.may_lose(of, group, message)) {
                    continue;
                }
                judged.push(message.since);
                if !self.shared.contains_key(&(group.id, u32::try_from(number).unwrap())) {
                    missing.get_or_insert_with(|| {
                        let name = group.name;
                        format!(
                            "no member of {name} got message {number}, acknowledged; session {member} is one"
                        )
                    });
                }
            }
        }
        (judged, missing)
    }

    /// Whether a message may be gone that this session was chosen for, or that was passed on to it.
    fn may_lose(&self, of: &Incarnation, group: &Group, message: &Sent) -> bool {
        // What is in no log does not outlive its node, and others may not know so far that either is gone.
        let died = self.over.get(&of.boot).is_some_and(|at| *at > message.since);
        if of.clean && died && of.over.is_none_or(|at| at > self.rested) {
            return true;
        }
        if of.over.is_some_and(|at| at < message.since) {
            return false;
        }
        of.of_group(group.id).filter(|one| one.off.is_none_or(|at| at > message.since)).any(|one| {
            // QoS 2 dies with the session.
            let dies = of.ended && message.qos.min(one.qos) == QoS::ExactlyOnce;
            one.qos == QoS::AtMostOnce || dies
        })
    }
}
