//! What must hold whatever the bytes are: one function a target. A panic is a finding.
//!
//! The fuzz targets call them with inputs of the fuzzer's, `tests/corpus.rs` of mqtt-proto with those kept in `corpus/`.

// Here a panic is what tells; and what is public is so for the targets.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, unreachable_pub)]

mod matching;
mod records;
mod session;

use bytes::BytesMut;
use mqtt_proto::codec::{Version, decode, split_frame};

pub use matching::{acl, trie};
pub use records::records;
pub use session::session;

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A version, then packets: each is refused, or written as bytes that are read as the same packet.
pub fn codec(data: &[u8]) {
    let Some((version, mut rest)) = data.split_first() else { return };
    let version = VERSIONS[usize::from(*version) % VERSIONS.len()];
    while let Ok(Some((frame, length))) = split_frame(rest, 1 << 20) {
        assert!(length > 0 && length <= rest.len());
        rest = &rest[length..];
        let mut again = BytesMut::new();
        let Ok(packet) = decode(frame, version) else { continue };
        packet.encode(version, &mut again);
        let (frame, length) = split_frame(&again, u32::MAX).expect("a frame").expect("a whole one");
        assert_eq!(length, again.len());
        assert_eq!(decode(frame, version).as_ref(), Ok(&packet));
    }
}

/// Takes bytes off the front, zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A line of text; what is not text is left out.
    fn line(&mut self) -> &'a str {
        let end = self.0.iter().position(|byte| *byte == b'\n').unwrap_or(self.0.len());
        let line = self.take(end);
        self.byte();
        str::from_utf8(line).unwrap_or_default()
    }
}
