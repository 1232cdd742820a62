//! Durations as Kubernetes writes them (`2h`, `1h30m`, `500ms`): parsed once, written back unchanged.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub(crate) const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$";

/// A span of time, never negative. Keeps the text it was made from, so that an object read and written back is
/// the same object; equality is that of the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    text: String,
    value: std::time::Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write numbers with units, such as 2h, 1h30m or 500ms")]
pub struct NotADuration(pub(crate) String);

impl Duration {
    /// `{n}h`
    pub(crate) fn hours(n: u32) -> Self {
        Self { text: format!("{n}h"), value: std::time::Duration::from_hours(u64::from(n)) }
    }

    pub fn get(&self) -> std::time::Duration {
        self.value
    }

    /// Whole seconds, rounded up.
    pub fn seconds(&self) -> u64 {
        self.value.as_secs().saturating_add(u64::from(self.value.subsec_nanos() > 0))
    }
}

impl FromStr for Duration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let nanos = parse_nanos(text).ok_or_else(|| NotADuration(text.into()))?;
        Ok(Self { text: text.into(), value: std::time::Duration::from_nanos(nanos) })
    }
}

impl TryFrom<String> for Duration {
    type Error = NotADuration;

    fn try_from(text: String) -> Result<Self, NotADuration> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.text
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 64,
            "pattern": PATTERN,
        })
    }
}

/// The sum of all `NUMBER UNIT` pairs; none where there is anything else, or more than Go's 292 years.
fn parse_nanos(mut text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let mut total = 0_u64;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let (number, rest) = text.split_at_checked(text.find(|c: char| c != '.' && !c.is_ascii_digit())?)?;
        let (unit, rest) =
            rest.split_at_checked(rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len()))?;
        let (_, nanos) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(crate::quantity::scale(number, nanos)?)?;
        text = rest;
    }
    (total <= i64::MAX as u64).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("2h", Some(7_200_000_000_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("168h0m0s", Some(604_800_000_000_000)),
            ("500ms", Some(500_000_000)),
            ("7us", Some(7_000)),
            ("7µs", Some(7_000)),
            ("0s", Some(0)),
            ("", None),
            ("2", None),
            ("h", None),
            ("2d", None),
            ("2h 3m", None),
            ("-2h", None),
            ("1.h", None),
            (".5h", None),
            ("1.2.3h", None),
            ("99999999999h", None),
            ("2562048h", None),
        ] {
            let read = text.parse::<Duration>().ok().map(|d| d.get().as_nanos());
            assert_eq!(read, nanos, "{text:?}");
        }
    }

    #[test]
    fn a_duration_is_written_back_as_it_was_read() {
        let read: Duration = serde_json::from_str("\"1h30m\"").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"1h30m\"");
    }

    #[test]
    fn parts_of_a_second_count_as_a_whole_one() {
        for (text, seconds) in [("0s", 0), ("1ms", 1), ("1s", 1), ("1500ms", 2)] {
            assert_eq!(text.parse::<Duration>().unwrap().seconds(), seconds, "{text}");
        }
    }
}
