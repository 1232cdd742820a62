//! Why something was not written: whose turn it is then.

use std::time::Duration;

use crate::status::{Turn, Verdict};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This process leads no longer, and is about to end.
    #[error("this operator leads no longer")]
    Lost,
    /// It comes right by itself, or with another try.
    #[error("{what}: {why}")]
    Later { what: String, why: String },
    /// A person has to do something.
    #[error("{what}: {why}")]
    Theirs { reason: &'static str, what: String, why: String },
}

impl Error {
    /// What the API server said.
    pub fn of(what: &str, error: &kube::Error) -> Self {
        let what = what.to_owned();
        let kube::Error::Api(status) = error else { return Self::Later { what, why: error.to_string() } };
        let why = status.message.clone();
        match status.code {
            401 | 403 => Self::Theirs { reason: "Forbidden", what, why },
            400 | 404 | 405 | 422 => Self::Theirs { reason: "Refused", what, why },
            _ => Self::Later { what, why },
        }
    }

    pub fn timeout(what: &str, after: Duration) -> Self {
        Self::Later { what: what.into(), why: format!("no answer in {} s", after.as_secs()) }
    }

    /// How the object that it was done for fares.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Lost | Self::Later { .. } => Verdict::new(Turn::Ours, "Retrying", self.to_string()),
            Self::Theirs { reason, .. } => Verdict::new(Turn::Theirs, reason, self.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_the_api_server_says_tells_whose_turn_it_is() {
        for (code, turn, reason) in [
            (400, Turn::Theirs, "Refused"),
            (403, Turn::Theirs, "Forbidden"),
            (404, Turn::Theirs, "Refused"),
            (409, Turn::Ours, "Retrying"),
            (422, Turn::Theirs, "Refused"),
            (429, Turn::Ours, "Retrying"),
            (500, Turn::Ours, "Retrying"),
            (503, Turn::Ours, "Retrying"),
        ] {
            let status = Status::failure("quota is used up", "Because").with_code(code).boxed();
            let error = Error::of("apply Service plant/meters-mqtt", &kube::Error::Api(status));
            let expected = Verdict::new(turn, reason, "apply Service plant/meters-mqtt: quota is used up");
            assert_eq!(error.verdict(), expected, "{code}");
        }
    }
}
