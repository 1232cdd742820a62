//! What is said on an object, as conditions. Pure: the time is an argument.
//!
//! Promises: `Ready`, `Reconciling` and `Stalled` are always all there and never contradict each other, as kstatus
//! wants it; `lastTransitionTime` moves with a condition's status alone, so that what is unchanged is equal, and need
//! not be written. `Enforced` stands beside them: it is what brokers say, and names no generation but the one that an object
//! came in force with, so that neither later ones nor restarts of brokers change it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use mqtt_operator_api::{
    Kind,
    render::Problem,
    status::{ENFORCED, READY, RECONCILING, STALLED},
};

/// The longest message that the API server takes.
const MESSAGE_BYTES: usize = 32 * 1024;
/// The reason of `Enforced` where it holds.
const IN_FORCE: &str = "InForce";
/// What the message of `Enforced` begins with where the number of a generation follows.
const GENERATION: &str = "generation ";

/// How an object fares. Reasons are in CamelCase; messages are a line that says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub turn: Turn,
    pub reason: String,
    pub message: String,
    /// None: as it was told before.
    pub enforced: Option<Enforced>,
}

/// Whether every broker has in force what an object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    pub everywhere: bool,
    pub reason: String,
    pub message: String,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nobody's: the object is in force.
    Nobody,
    /// The operator's, the brokers', Kafka's or the cluster's: it comes right by itself.
    Ours,
    /// A person's: nothing changes until somebody changes something.
    Theirs,
}

impl Verdict {
    pub fn new(turn: Turn, reason: &str, message: impl Into<String>) -> Self {
        Self { turn, reason: reason.into(), message: message.into(), enforced: None }
    }

    pub fn ready(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Turn::Nobody, reason, message)
    }

    pub fn reconciling(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Turn::Ours, reason, message)
    }

    pub fn stalled(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Turn::Theirs, reason, message)
    }

    /// The same, and whether brokers have in force what the object says.
    pub fn with(self, enforced: Enforced) -> Self {
        Self { enforced: Some(enforced), ..self }
    }

    /// The same, and what the object says is in force at no broker, for the same reason.
    pub fn not_enforced(self) -> Self {
        let enforced = Enforced::no(&self.reason, self.message.clone());
        self.with(enforced)
    }

    /// What is wrong with one object; none if nothing is.
    pub fn of_problems<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let first = problems.next()?;
        let told = |problem: &Problem| {
            let field = if problem.field.is_empty() { "" } else { ": " };
            format!("{}{field}{}", problem.field, problem.message)
        };
        let message = problems.map(told).fold(told(first), |all, more| format!("{all}. {more}"));
        Some(Self::stalled(reason(first), message))
    }
}

impl Enforced {
    pub fn everywhere(message: impl Into<String>) -> Self {
        Self { everywhere: true, reason: IN_FORCE.into(), message: message.into() }
    }

    /// Every broker has this generation of the users and grants in force, or a later one.
    pub fn since(generation: u64) -> Self {
        Self::everywhere(format!("{GENERATION}{generation}"))
    }

    pub fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { everywhere: false, reason: reason.into(), message: message.into() }
    }
}

/// The conditions that say so, at their place in time.
pub fn conditions(
    before: &[Condition],
    verdict: &Verdict,
    observed: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let Verdict { turn, reason, message, enforced } = verdict;
    let condition = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let same = before.iter().find(|old| old.type_ == type_ && old.status == status);
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.get(..message.floor_char_boundary(MESSAGE_BYTES)).unwrap_or_default().into(),
            observed_generation: observed,
            last_transition_time: same.map_or(now, |old| &old.last_transition_time).clone(),
        }
    };
    let wrong = |type_: &str, status: bool| {
        if status { condition(type_, true, reason, message) } else { condition(type_, false, "AsWanted", "") }
    };
    let enforced = match enforced {
        Some(Enforced { everywhere, reason, message }) => {
            Some(condition(ENFORCED, *everywhere, reason, message))
        }
        None => before.iter().find(|old| old.type_ == ENFORCED).cloned(),
    };
    let three = [
        condition(READY, *turn == Turn::Nobody, reason, message),
        wrong(RECONCILING, *turn == Turn::Ours),
        wrong(STALLED, *turn == Turn::Theirs),
    ];
    three.into_iter().chain(enforced).collect()
}

/// Whether conditions say `Ready` of this generation of the object.
pub fn is_ready(conditions: &[Condition], generation: Option<i64>) -> bool {
    let ready = |condition: &Condition| {
        condition.type_ == READY && condition.status == "True" && condition.observed_generation == generation
    };
    conditions.iter().any(ready)
}

/// Since which generation of the users and grants this generation of the object is in force everywhere, as conditions say.
pub fn enforced_since(conditions: &[Condition], generation: Option<i64>) -> Option<u64> {
    let enforced = |condition: &&Condition| {
        condition.type_ == ENFORCED
            && condition.status == "True"
            && condition.observed_generation == generation
    };
    conditions.iter().find(enforced)?.message.strip_prefix(GENERATION)?.parse().ok()
}

/// A problem's reason: what sort of field it lies in says it.
fn reason(problem: &Problem) -> &'static str {
    let field = problem.field.as_str();
    match problem.object.kind {
        Kind::ParentTopic if field == "spec.topic" => "Conflict",
        Kind::MqttUser if field == "spec.username" => "Conflict",
        Kind::MqttInstance if field == "spec.kafka.bootstrapServers" => "Conflict",
        Kind::MqttUser if field == "spec.passwordSecretRef" => "NoPassword",
        Kind::TopicGrant if field.starts_with("spec.userRef") => "UserNotInForce",
        Kind::MqttInstance if field == "spec.auth.anonymousUser" => "UserNotInForce",
        Kind::TopicGrant if field.starts_with("spec.rules") => "NotAllowed",
        _ if field == "spec.instanceRef.namespace" => "NotAllowed",
        _ if field.starts_with("spec.instanceRef") => "InstanceNotFound",
        _ if field.contains("ecretRef") && field.ends_with(".name") => "SecretNotFound",
        _ if field.contains("ecretRef") => "SecretUnusable",
        _ => "Invalid",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use mqtt_operator_api::render::ObjectName;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn line(conditions: &[Condition]) -> String {
        let one = |c: &Condition| {
            let since = c.last_transition_time.0.as_second();
            format!("{}={} {} {:?} since {since}", c.type_, c.status, c.reason, c.message)
        };
        conditions.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn each_verdict_is_told_in_three_conditions_whose_times_move_with_their_status() {
        let mut conditions = Vec::new();
        for (second, verdict, expected) in [
            (
                1,
                Verdict::reconciling("Starting", "waits"),
                "Ready=False Starting \"waits\" since 1; Reconciling=True Starting \"waits\" since 1; Stalled=False AsWanted \"\" since 1",
            ),
            (
                2,
                Verdict::reconciling("Starting", "waits for the last"),
                "Ready=False Starting \"waits for the last\" since 1; Reconciling=True Starting \"waits for the last\" since 1; Stalled=False AsWanted \"\" since 1",
            ),
            (
                3,
                Verdict::ready("InForce", "serves"),
                "Ready=True InForce \"serves\" since 3; Reconciling=False AsWanted \"\" since 3; Stalled=False AsWanted \"\" since 1",
            ),
            (
                4,
                Verdict::stalled("Conflict", "rename it"),
                "Ready=False Conflict \"rename it\" since 4; Reconciling=False AsWanted \"\" since 3; Stalled=True Conflict \"rename it\" since 4",
            ),
        ] {
            conditions = super::conditions(&conditions, &verdict, Some(7), &at(second));
            assert_eq!(line(&conditions), expected);
            assert!(conditions.iter().all(|c| c.observed_generation == Some(7)));
            assert_eq!(super::conditions(&conditions, &verdict, Some(7), &at(99)), conditions, "again");
        }
    }

    #[test]
    fn what_brokers_have_in_force_is_told_beside_whose_turn_it_is_and_as_before_where_nothing_new_is_known() {
        let mut conditions = Vec::new();
        for (second, generation, verdict, expected, since) in [
            (1, 1, Verdict::reconciling("InstanceNotReady", "waits"), None, None),
            (
                2,
                1,
                Verdict::reconciling("Loading", "waits")
                    .with(Enforced::no("Loading", "generation 7 is on its way")),
                Some("Enforced=False Loading \"generation 7 is on its way\" since 2"),
                None,
            ),
            (
                3,
                1,
                Verdict::ready("InForce", "").with(Enforced::since(7)),
                Some("Enforced=True InForce \"generation 7\" since 3"),
                Some(7),
            ),
            (
                4,
                1,
                Verdict::reconciling("InstanceNotReady", "waits"),
                Some("Enforced=True InForce \"generation 7\" since 3"),
                Some(7),
            ),
            (
                5,
                2,
                Verdict::reconciling("InstanceNotReady", "waits"),
                Some("Enforced=True InForce \"generation 7\" since 3"),
                None,
            ),
            (
                6,
                2,
                Verdict::stalled("UserNotInForce", "create it").not_enforced(),
                Some("Enforced=False UserNotInForce \"create it\" since 6"),
                None,
            ),
        ] {
            conditions = super::conditions(&conditions, &verdict, Some(generation), &at(second));
            assert_eq!(conditions.get(3..).map(line).filter(|line| !line.is_empty()).as_deref(), expected);
            assert_eq!(enforced_since(&conditions, Some(generation)), since, "at {second}");
        }
    }

    #[test]
    fn a_message_too_long_for_the_api_server_is_cut_between_characters() {
        let verdict = Verdict::stalled("Invalid", "ä".repeat(MESSAGE_BYTES));
        let conditions = conditions(&[], &verdict, None, &at(0));
        assert_eq!(conditions[0].message, "ä".repeat(MESSAGE_BYTES / 2));
    }

    #[test]
    fn every_problem_has_a_reason() {
        for (kind, field, expected) in [
            (Kind::ParentTopic, "spec.topic", "Conflict"),
            (Kind::ParentTopic, "spec.instanceRef", "InstanceNotFound"),
            (Kind::TopicGrant, "spec.instanceRef.namespace", "NotAllowed"),
            (Kind::TopicGrant, "spec.rules[1].filter", "NotAllowed"),
            (Kind::MqttUser, "spec.username", "Conflict"),
            (Kind::MqttUser, "spec.passwordSecretRef", "NoPassword"),
            (Kind::MqttUser, "spec.passwordSecretRef.name", "SecretNotFound"),
            (Kind::MqttUser, "spec.previousPasswordSecretRef.key", "SecretUnusable"),
            (Kind::TopicGrant, "spec.userRef.name", "UserNotInForce"),
            (Kind::MqttInstance, "spec.kafka.tls.caSecretRef.name", "SecretNotFound"),
            (Kind::MqttInstance, "spec.listeners.mqtts.secretRef.name", "SecretNotFound"),
            (Kind::MqttInstance, "spec.listeners.mqtts.secretRef", "SecretUnusable"),
            (Kind::MqttInstance, "spec.listeners.peers.secretRef", "SecretUnusable"),
            (Kind::MqttInstance, "spec.auth.anonymousUser", "UserNotInForce"),
            (Kind::MqttInstance, "spec.kafka", "Invalid"),
            (Kind::MqttInstance, "spec.kafka.bootstrapServers", "Conflict"),
        ] {
            let object = ObjectName { kind, namespace: "plant".into(), name: "a".into() };
            let problem = Problem { object, field: field.into(), message: "is wrong; mend it".into() };
            let verdict = Verdict::of_problems([&problem]).unwrap();
            assert_eq!((verdict.turn, verdict.reason.as_str()), (Turn::Theirs, expected), "{kind} {field}");
            assert_eq!(verdict.message, format!("{field}: is wrong; mend it"));
            let two = Verdict::of_problems([&problem, &problem]).unwrap();
            assert_eq!(two.message, format!("{field}: is wrong; mend it. {field}: is wrong; mend it"));
        }
        assert_eq!(Verdict::of_problems([]), None);
    }
}
