//! How a record lies in the store: owns the encoding, and reads it back distrusting every length.
//!
//! `version u8 · written i64 · before u64 · created i64 · key · value · headers u32 · (name value)*`, big endian;
//! a field is its length + 1 as u32 (0: absent) and its bytes. `written` is when the store took it, in ms
//! since the Unix epoch; `before` counts the encoded bytes of the partition ahead of it, so that the
//! difference of two records is the size of what lies between them.

use bytes::Bytes;

use crate::log::Record;

const VERSION: u8 = 1;
const STAMP: usize = 17;
/// More than any caller has a use for, and well inside what the database takes.
const MAX_BYTES: usize = 1 << 30;

/// What the store itself adds to a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) written: i64,
    pub(super) before: u64,
}

/// The encoding, its stamp still blank. `None`: too large to be stored.
pub(super) fn encode(record: &Record) -> Option<Vec<u8>> {
    let fields = [record.key.as_ref(), record.value.as_ref()];
    let headers = record.headers.iter().flat_map(|(name, value)| [name, value]);
    let size: usize = fields.iter().flatten().map(|f| f.len()).sum::<usize>()
        + headers.map(|f| f.len() + 4).sum::<usize>()
        + STAMP
        + 20;
    if size > MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::with_capacity(size);
    bytes.push(VERSION);
    bytes.extend([0; STAMP - 1]);
    bytes.extend(record.created.to_be_bytes());
    for field in fields {
        put_field(&mut bytes, field);
    }
    bytes.extend(u32::try_from(record.headers.len()).ok()?.to_be_bytes());
    for (name, value) in &record.headers {
        put_field(&mut bytes, Some(name));
        put_field(&mut bytes, Some(value));
    }
    Some(bytes)
}

/// Fills in the stamp of what [`encode`] returned.
pub(super) fn stamp(encoded: &mut [u8], stamp: Stamp) {
    let bytes = [stamp.written.to_be_bytes(), stamp.before.to_be_bytes()].concat();
    if let Some(place) = encoded.get_mut(1..STAMP) {
        place.copy_from_slice(&bytes);
    }
}

/// `None`: not a record that this version wrote.
pub(super) fn parse(encoded: &[u8]) -> Option<Record> {
    parse_stamp(encoded)?;
    let mut rest = Bytes::copy_from_slice(encoded.get(STAMP..)?);
    let created = i64::from_be_bytes(take(&mut rest, 8)?.as_ref().try_into().ok()?);
    let key = take_field(&mut rest)?;
    let value = take_field(&mut rest)?;
    let count = take_u32(&mut rest)? as usize;
    // A header takes 8 bytes at least: a count beyond that is a lie that must not allocate.
    if count > rest.len() / 8 {
        return None;
    }
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        headers.push((take_field(&mut rest)??, take_field(&mut rest)??));
    }
    rest.is_empty().then_some(Record { key, value, headers, created })
}

pub(super) fn parse_stamp(encoded: &[u8]) -> Option<Stamp> {
    let (version, rest) = encoded.split_first()?;
    let (written, rest) = rest.split_first_chunk()?;
    let (before, _) = rest.split_first_chunk()?;
    (*version == VERSION)
        .then(|| Stamp { written: i64::from_be_bytes(*written), before: u64::from_be_bytes(*before) })
}

fn put_field(bytes: &mut Vec<u8>, field: Option<&Bytes>) {
    // Fits: the whole record is below `MAX_BYTES`.
    let length = field.map_or(0, |f| f.len() as u32 + 1);
    bytes.extend(length.to_be_bytes());
    bytes.extend_from_slice(field.map_or(&[], |f| f));
}

/// The outer `None`: broken; the inner one: absent.
#[allow(clippy::option_option)]
fn take_field(rest: &mut Bytes) -> Option<Option<Bytes>> {
    match take_u32(rest)?.checked_sub(1) {
        None => Some(None),
        Some(length) => take(rest, length as usize).map(Some),
    }
}

fn take_u32(rest: &mut Bytes) -> Option<u32> {
    Some(u32::from_be_bytes(take(rest, 4)?.as_ref().try_into().ok()?))
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn full() -> Record {
        Record {
            key: Some(Bytes::from_static(b"key")),
            value: Some(Bytes::from_static(b"\x00\xffvalue")),
            headers: vec![(Bytes::from_static(b"h"), Bytes::new()), (Bytes::new(), Bytes::from_static(b"v"))],
            created: -5,
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let bare = Record { key: None, value: None, headers: vec![], created: i64::MAX };
        let empty =
            Record { key: Some(Bytes::new()), value: Some(Bytes::new()), headers: vec![], created: 0 };
        for record in [full(), bare, empty] {
            let mut encoded = encode(&record).unwrap();
            let written = Stamp { written: 77, before: u64::MAX };
            stamp(&mut encoded, written);
            assert_eq!(parse(&encoded), Some(record));
            assert_eq!(parse_stamp(&encoded), Some(written));
        }
    }

    #[test]
    fn a_damaged_record_is_refused_and_never_panics() {
        let encoded = encode(&full()).unwrap();
        for length in 0..encoded.len() {
            assert_eq!(parse(&encoded[..length]), None, "cut to {length} bytes");
        }
        for index in 0..encoded.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = encoded.clone();
                damaged[index] = value;
                let _ = parse(&damaged);
            }
        }
        let longer = [encoded.as_slice(), &[0]].concat();
        assert_eq!(parse(&longer), None);
        let mut newer = encoded;
        newer[0] = 2;
        assert_eq!(parse(&newer), None);
    }
}
