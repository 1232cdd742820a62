//! How what names an instance fares: its users and grants, and parent topics that can't be in force. Pure.
//!
//! | reason | whose turn | when |
//! |---|---|---|
//! | `InForce` | nobody's | every broker has it |
//! | `NotAllowed`, `Conflict`, `SecretNotFound`, `SecretUnusable`, `NoPassword`, `UserNotInForce`, `InstanceNotFound`, `Invalid` | a person's | see [`Verdict::of_problems`] |
//! | `InstanceNotReady` | ours | the instance itself is not in force, and says why |
//! | `PasswordPending` | ours | its password is still to be made or hashed |
//! | `Loading` | ours | it is on its way to the brokers |
//!
//! Whether it is enforced is told besides: see [`Progress`]. While the instance is not in force that stays as it was told.

use std::collections::{BTreeMap, BTreeSet};

use mqtt_operator_api::{
    render::{ObjectName, Problem},
    user::MqttUser,
};

use super::in_force::Progress;
use crate::{apply::Error, status::Verdict};

/// What members are judged by.
pub struct Rendering<'a> {
    pub problems: BTreeMap<&'a ObjectName, Vec<&'a Problem>>,
    pub pending: &'a BTreeSet<ObjectName>,
    /// What could not be written for an object.
    pub failed: &'a BTreeMap<ObjectName, Error>,
    pub progress: &'a Progress,
    /// What was rendered is applied.
    pub applied: bool,
    /// There are pods, or there will be.
    pub runs: bool,
}

impl<'a> Rendering<'a> {
    /// Problems by the object that they are of.
    pub fn by_object(
        problems: impl IntoIterator<Item = &'a Problem>,
    ) -> BTreeMap<&'a ObjectName, Vec<&'a Problem>> {
        let mut by_object: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for problem in problems {
            by_object.entry(&problem.object).or_default().push(problem);
        }
        by_object
    }

    /// What is wrong with an object.
    pub fn wrong(&self, object: &ObjectName) -> Option<Verdict> {
        let wrong = Verdict::of_problems(self.problems.get(object).into_iter().flatten().copied());
        wrong.map(Verdict::not_enforced)
    }

    /// How a user or a grant of the instance fares; `good` is said of one that is in force.
    pub fn verdict(&self, object: &ObjectName, instance: &ObjectName, good: String) -> Verdict {
        if let Some(wrong) = self.wrong(object) {
            return wrong;
        }
        if let Some(failed) = self.failed.get(object) {
            return failed.verdict().not_enforced();
        }
        if self.pending.contains(object) {
            return Verdict::reconciling("PasswordPending", "its password is being made or hashed")
                .not_enforced();
        }
        if !(self.applied && self.runs) {
            return waits_for(instance);
        }
        let enforced = self.progress.enforced(object, instance);
        if self.progress.in_force(object) {
            return Verdict::ready("InForce", good).with(enforced);
        }
        Verdict::reconciling("Loading", enforced.message.clone()).with(enforced)
    }
}

/// The instance itself is not in force.
pub fn waits_for(instance: &ObjectName) -> Verdict {
    Verdict::reconciling("InstanceNotReady", format!("{instance} is not in force; its status says why"))
}

/// There is no such instance.
pub fn no_instance(object: &ObjectName, instance: &ObjectName) -> Verdict {
    let message = format!("there is no {instance}; create it, or name another one");
    let problem = Problem { object: object.clone(), field: "spec.instanceRef.name".into(), message };
    Verdict::of_problems([&problem]).unwrap_or_else(|| waits_for(instance)).not_enforced()
}

/// What is said of a user that may log in.
pub fn good_user(user: &MqttUser, anonymous: bool) -> String {
    let username = user.username();
    match (&user.spec.password_secret_ref, anonymous) {
        (_, true) => format!("connections without credentials act as {username:?}"),
        (Some(_), false) => format!("devices may log in as {username:?}"),
        (None, false) => {
            let secret = user.generated_secret_name();
            format!("devices may log in as {username:?} with the password in Secret {secret}")
        }
    }
}
