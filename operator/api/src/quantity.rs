//! Amounts of bytes as Kubernetes writes them (`128Ki`, `10G`, `131072`): parsed once, written back unchanged.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub(crate) const PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$";

/// A number of whole bytes, never negative. Keeps what it was made from (a string or a plain number), so that an
/// object read and written back is the same object; equality is that of the text.
///
/// Of what Kubernetes takes as a Quantity, signs, exponents (`1e3`) and thousandths (`1500m`) are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Quantity {
    written: Written,
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount of bytes: write a number, alone or with one of Ki Mi Gi Ti k M G T")]
pub struct NotAQuantity(pub(crate) String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl Quantity {
    /// `{n}Ki`
    pub(crate) fn kibi(n: u32) -> Self {
        Self { written: Written::Text(format!("{n}Ki")), bytes: u64::from(n) << 10 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl FromStr for Quantity {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let bytes = parse_bytes(text).ok_or_else(|| NotAQuantity(text.into()))?;
        Ok(Self { written: Written::Text(text.into()), bytes })
    }
}

impl TryFrom<Written> for Quantity {
    type Error = NotAQuantity;

    fn try_from(written: Written) -> Result<Self, NotAQuantity> {
        match written {
            Written::Number(bytes) => Ok(Self { written, bytes }),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Quantity> for Written {
    fn from(quantity: Quantity) -> Self {
        quantity.written
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.written {
            Written::Number(bytes) => bytes.fmt(f),
            Written::Text(text) => f.write_str(text),
        }
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": PATTERN,
        })
    }
}

/// `NUMBER` × `unit`, rounded up to a whole; `NUMBER` is digits, with at most one point between digits.
pub(crate) fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // More than 18 decimals can't change a 64-bit amount by more than the last unit.
    let fraction = fraction.get(..fraction.len().min(18))?;
    let tens = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let exact = u128::from(whole.parse::<u64>().ok()?)
        .checked_mul(tens)?
        .checked_add(u128::from(fraction.parse::<u64>().ok()?))?
        .checked_mul(u128::from(unit))?;
    u64::try_from(exact.div_ceil(tens)).ok()
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) =
        text.split_at_checked(text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len()))?;
    let unit = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        _ => return None,
    };
    scale(number, unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (json, bytes) in [
            ("\"128Ki\"", Some(131_072)),
            ("131072", Some(131_072)),
            ("\"131072\"", Some(131_072)),
            ("\"10Gi\"", Some(10 << 30)),
            ("\"10G\"", Some(10_000_000_000)),
            ("\"1.5Ki\"", Some(1_536)),
            ("\"0.1Ki\"", Some(103)),
            ("\"1k\"", Some(1_000)),
            ("0", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("\"\"", None),
            ("\"Ki\"", None),
            ("\"1.Ki\"", None),
            ("\"128 Ki\"", None),
            ("\"128KB\"", None),
            ("\"100m\"", None),
            ("\"16Ei\"", None),
            ("\"99999999999999999999\"", None),
            ("true", None),
        ] {
            let read = serde_json::from_str::<Quantity>(json).ok();
            assert_eq!(read.as_ref().map(Quantity::bytes), bytes, "{json}");
            if let Some(read) = read {
                assert_eq!(serde_json::to_string(&read).unwrap(), json, "written back");
            }
        }
    }
}
