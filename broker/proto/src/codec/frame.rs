//! Where one packet ends and the next begins, and the primitive fields packets are made of (MQTT 5
//! section 1.5, MQTT 3.1.1 sections 1.5 and 2.2).

use bytes::{BufMut, BytesMut};

use super::CodecError;

/// One whole packet: its first byte (type and flags) and what follows the remaining length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub first: u8,
    pub body: &'a [u8],
    /// The remaining length was longer than it needs to be, which only MQTT 5 forbids.
    pub(super) padded_length: bool,
}

impl<'a> Frame<'a> {
    /// A frame from parts that did not come from [`split_frame`].
    pub fn new(first: u8, body: &'a [u8]) -> Self {
        Frame { first, body, padded_length: false }
    }

    /// Whether it says how far its sender is with a message that it was sent: PUBACK, PUBREC, PUBCOMP. Such a one stands in no
    /// order with what its sender publishes.
    pub fn is_answer(&self) -> bool {
        matches!(self.first >> 4, kind::PUBACK | kind::PUBREC | kind::PUBCOMP)
    }
}

/// Splits one whole packet off the front of `input`: the frame and how many bytes it took, or `None` when
/// more bytes are needed.
///
/// Fails as soon as the header says that the whole packet, fixed header included, exceeds `max` bytes, and
/// when the remaining length is longer than four bytes.
pub fn split_frame(input: &[u8], max: u32) -> Result<Option<(Frame<'_>, usize)>, CodecError> {
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    let (length, width) = match scan_varint(rest) {
        Varint::Value { value, width } => (value, width),
        Varint::Incomplete => return Ok(None),
        Varint::TooLong => return Err(CodecError::RemainingLength),
    };
    let size = 1 + width as u32 + length;
    if size > max {
        return Err(CodecError::PacketTooLarge { size, max });
    }
    let Some((body, _)) = rest.get(width..).and_then(|rest| rest.split_at_checked(length as usize)) else {
        return Ok(None);
    };
    let padded_length = width != varint_len(length as usize);
    Ok(Some((Frame { first, body, padded_length }, size as usize)))
}

/// Packet types: the upper four bits of the first byte.
pub(super) mod kind {
    pub(in crate::codec) const CONNECT: u8 = 1;
    pub(in crate::codec) const CONNACK: u8 = 2;
    pub(in crate::codec) const PUBLISH: u8 = 3;
    pub(in crate::codec) const PUBACK: u8 = 4;
    pub(in crate::codec) const PUBREC: u8 = 5;
    pub(in crate::codec) const PUBREL: u8 = 6;
    pub(in crate::codec) const PUBCOMP: u8 = 7;
    pub(in crate::codec) const SUBSCRIBE: u8 = 8;
    pub(in crate::codec) const SUBACK: u8 = 9;
    pub(in crate::codec) const UNSUBSCRIBE: u8 = 10;
    pub(in crate::codec) const UNSUBACK: u8 = 11;
    pub(in crate::codec) const PINGREQ: u8 = 12;
    pub(in crate::codec) const PINGRESP: u8 = 13;
    pub(in crate::codec) const DISCONNECT: u8 = 14;
    pub(in crate::codec) const AUTH: u8 = 15;
}

/// Takes fields off the front of a packet's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Reader { rest: body }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub(super) fn remainder(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn finish(self) -> Result<(), CodecError> {
        if self.is_empty() { Ok(()) } else { Err(CodecError::TrailingBytes) }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A packet identifier, which is never 0.
    pub(super) fn packet_id(&mut self) -> Result<u16, CodecError> {
        match self.u16()? {
            0 => Err(CodecError::ZeroPacketId),
            id => Ok(id),
        }
    }

    /// A variable byte integer of MQTT 5, which must be as short as possible.
    pub(super) fn varint(&mut self) -> Result<u32, CodecError> {
        match scan_varint(self.rest) {
            Varint::Value { value, width } if width == varint_len(value as usize) => {
                self.take(width)?;
                Ok(value)
            }
            Varint::Incomplete => Err(CodecError::Truncated),
            Varint::Value { .. } | Varint::TooLong => Err(CodecError::VariableInteger),
        }
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], CodecError> {
        let len = self.u16()?;
        self.take(len.into())
    }

    pub(super) fn string(&mut self) -> Result<&'a str, CodecError> {
        self.text(|byte| byte == 0, |_| CodecError::NulInString)
    }

    /// The topic of a message: no wildcards; may still be empty.
    pub(super) fn topic(&mut self) -> Result<&'a str, CodecError> {
        self.text(
            |byte| matches!(byte, 0 | b'+' | b'#'),
            |text| match text.contains('\0') {
                true => CodecError::NulInTopic,
                false => CodecError::WildcardInTopic,
            },
        )
    }

    /// UTF-8 in which no byte is `forbidden`.
    #[inline]
    fn text(
        &mut self,
        forbidden: impl Fn(u8) -> bool,
        error: impl FnOnce(&str) -> CodecError,
    ) -> Result<&'a str, CodecError> {
        let bytes = self.binary()?;
        let text = std::str::from_utf8(bytes).map_err(|_| CodecError::InvalidUtf8)?;
        // Looks at every byte without leaving early, so that the compiler can compare many at once.
        let found = bytes.iter().fold(false, |found, &byte| found | forbidden(byte));
        if found { Err(error(text)) } else { Ok(text) }
    }

    pub(super) fn non_empty_topic(&mut self) -> Result<&'a str, CodecError> {
        match self.topic()? {
            "" => Err(CodecError::EmptyTopic),
            topic => Ok(topic),
        }
    }

    pub(super) fn filter(&mut self) -> Result<&'a str, CodecError> {
        match self.string()? {
            "" => Err(CodecError::EmptyFilter),
            filter => Ok(filter),
        }
    }
}

/// How many bytes `value` takes as a variable byte integer.
pub(super) fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Writes a variable byte integer. `value` is at most 268,435,455, the most the format can say.
pub(super) fn put_varint(out: &mut impl BufMut, value: usize) {
    let mut rest = value;
    for _ in 1..varint_len(value) {
        out.put_u8((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8((rest & 0x7F) as u8);
}

/// Writes what `body` writes, preceded by its length as a variable byte integer.
pub(super) fn put_with_length(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let prefix_at = out.len();
    out.put_u8(0);
    let start = out.len();
    body(out);
    let len = out.len() - start;
    let width = varint_len(len);
    if width > 1 {
        out.put_bytes(0, width - 1);
        out.copy_within(start..start + len, prefix_at + width);
    }
    if let Some(mut prefix) = out.get_mut(prefix_at..prefix_at + width) {
        put_varint(&mut prefix, len);
    }
}

/// Writes text with its length in two bytes, cut to what that can say.
pub(super) fn put_str(out: &mut impl BufMut, text: &str) {
    put_binary(out, cut(text).as_bytes());
}

/// Writes bytes with their length in two bytes, cut to what that can say.
pub(super) fn put_binary(out: &mut impl BufMut, bytes: &[u8]) {
    let bytes = bytes.get(..u16::MAX.into()).unwrap_or(bytes);
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// The longest start of `text` that fits in a field of 65,535 bytes; all of it for text that was decoded.
pub(super) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(u16::MAX.into())).unwrap_or(text)
}

enum Varint {
    Value { value: u32, width: usize },
    Incomplete,
    TooLong,
}

fn scan_varint(bytes: &[u8]) -> Varint {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Varint::Value { value, width: index + 1 };
        }
    }
    if bytes.len() < 4 { Varint::Incomplete } else { Varint::TooLong }
}
