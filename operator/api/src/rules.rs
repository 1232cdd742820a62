//! Rules of validation that several fields share.

use kube::core::Rule;

/// What an update may not change.
pub(crate) fn immutable(field: &str) -> Rule {
    Rule::new("self == oldSelf")
        .message(format!("{field} is immutable; make another object instead").as_str())
}

/// Holds where every placeholder is known; what is said if not.
pub(crate) const KNOWN_PLACEHOLDERS: (&str, &str) = (
    "!self.contains('${') || self.matches('^([$]*[$][{](clientId|username)[}]|[^$]|[$]+[^${])*[$]*$')",
    "has an unknown placeholder; only ${clientId} and ${username} are known",
);

/// The placeholders of what is told to each connection in its own words.
pub(crate) fn placeholders() -> Rule {
    Rule::new(KNOWN_PLACEHOLDERS.0).message(KNOWN_PLACEHOLDERS.1)
}

/// A point in time as RFC 3339 writes it, such as 2027-01-31T12:00:00Z.
pub(crate) const TIME: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$";

/// Bounds of a Quantity, both included.
pub(crate) fn bytes_between(least: &str, most: &str) -> Rule {
    let of_self = "quantity(string(self))";
    Rule::new(format!(
        "{of_self}.compareTo(quantity('{least}')) >= 0 && {of_self}.compareTo(quantity('{most}')) <= 0"
    ))
    .message(format!("must lie between {least} and {most}").as_str())
}

/// Bounds of a Duration, both included.
pub(crate) fn time_between(least: &str, most: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(format!("must lie between {least} and {most}").as_str())
}
