//! Frames of WebSocket (RFC 6455) as a server reads and writes them. No socket, no clock.
//!
//! Promises: nothing is kept of a message but where its frame stands, for MQTT takes the payloads as one stream (MQTT 5
//! section 6), so a message may be of any length; a control frame's payload (125 bytes at most) is all that is ever
//! held; whatever bytes come, the outcome is payload, control frames or a fault.

use std::fmt;

/// Bytes of the longest header of a client's frame: two, the length in eight, the mask.
const LONGEST_HEAD: usize = 14;
/// Payload of a control frame, at most (section 5.5).
const LONGEST_CONTROL: usize = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// What a client did against the protocol; the connection is closed with its code (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("a reserved bit of a WebSocket frame is set")]
    ReservedBit,
    #[error("a WebSocket frame is of no known kind")]
    Opcode,
    #[error("a client's WebSocket frame is not masked")]
    Unmasked,
    #[error("the length of a WebSocket frame is not written in its shortest form")]
    Length,
    #[error("a WebSocket control frame is fragmented or too long")]
    Control,
    #[error("WebSocket fragments are out of order")]
    Fragment,
    #[error("a WebSocket message is text; MQTT is binary")]
    Text,
}

impl Fault {
    pub(super) fn code(self) -> u16 {
        match self {
            Fault::Text => 1003,
            _ => 1002,
        }
    }
}

/// A control frame that arrived.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Control {
    Ping(Vec<u8>),
    /// With the code, if it had one.
    Close(Option<u16>),
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Control::Ping(payload) => write!(f, "Ping({} bytes)", payload.len()),
            Control::Close(code) => write!(f, "Close({code:?})"),
        }
    }
}

/// Reads a client's frames.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    head: [u8; LONGEST_HEAD],
    /// Bytes of the head that are there.
    have: usize,
    /// The frame whose payload comes now.
    frame: Option<Frame>,
    /// A message has begun whose last frame has not come.
    fragmented: bool,
    /// Of a control frame that has not come whole.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: u8,
    left: u64,
    mask: [u8; 4],
    /// Which byte of the mask is next.
    at: usize,
}

/// What some bytes held.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Bytes of payload, now at the front.
    pub(super) payload: usize,
    /// The last control frame that asks for an answer; after a close nothing is read.
    pub(super) control: Option<Control>,
}

impl Decoder {
    /// Takes what has come, and moves the payload in it to the front, unmasked.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, Fault> {
        let (mut read, mut written) = (0, 0);
        let mut control = None;
        loop {
            let frame = match self.frame {
                Some(frame) => frame,
                None => match self.head(bytes, &mut read)? {
                    Some(frame) => frame,
                    None => return Ok(Decoded { payload: written, control }),
                },
            };
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len() - read);
            let payload = bytes.get_mut(read..read + here).unwrap_or_default();
            unmask(payload, frame.mask, frame.at);
            if is_control(frame.opcode) {
                self.control.extend_from_slice(payload);
            } else {
                bytes.copy_within(read..read + here, written);
                written += here;
            }
            read += here;
            let left = frame.left - here as u64;
            if left > 0 {
                self.frame = Some(Frame { left, at: (frame.at + here) % 4, ..frame });
                return Ok(Decoded { payload: written, control });
            }
            self.frame = None;
            let payload =
                if is_control(frame.opcode) { std::mem::take(&mut self.control) } else { Vec::new() };
            match frame.opcode {
                // The most recent of several is enough (section 5.5.3).
                PING => control = Some(Control::Ping(payload)),
                CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    return Ok(Decoded { payload: written, control: Some(Control::Close(code)) });
                }
                _ => {}
            }
        }
    }

    /// The next frame's head, once it is whole.
    fn head(&mut self, bytes: &[u8], read: &mut usize) -> Result<Option<Frame>, Fault> {
        loop {
            if let Some(frame) = self.parse()? {
                self.have = 0;
                return Ok(Some(frame));
            }
            let (Some(byte), Some(place)) = (bytes.get(*read), self.head.get_mut(self.have)) else {
                return Ok(None);
            };
            *place = *byte;
            self.have += 1;
            *read += 1;
        }
    }

    /// Each fault is found as soon as its byte is there.
    fn parse(&mut self) -> Result<Option<Frame>, Fault> {
        let Some((first, rest)) = self.head.get(..self.have).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Fault::ReservedBit);
        }
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        match opcode {
            TEXT => return Err(Fault::Text),
            CONTINUATION if !self.fragmented => return Err(Fault::Fragment),
            BINARY if self.fragmented => return Err(Fault::Fragment),
            CLOSE | PING | PONG if !last => return Err(Fault::Control),
            CONTINUATION | BINARY | CLOSE | PING | PONG => {}
            _ => return Err(Fault::Opcode),
        }
        let Some((second, rest)) = rest.split_first() else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(Fault::Unmasked);
        }
        let (left, mask) = match second & 0x7f {
            126 => {
                let Some((length, mask)) = rest.split_first_chunk::<2>() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), mask)
            }
            127 => {
                let Some((length, mask)) = rest.split_first_chunk::<8>() else { return Ok(None) };
                (u64::from_be_bytes(*length), mask)
            }
            length => (u64::from(length), rest),
        };
        let shortest = match left {
            0..126 => second & 0x7f < 126,
            126..0x1_0000 => second & 0x7f == 126,
            // The highest bit must be 0 (section 5.2).
            _ => left >> 63 == 0,
        };
        if !shortest {
            return Err(Fault::Length);
        }
        if is_control(opcode) && left > LONGEST_CONTROL as u64 {
            return Err(Fault::Control);
        }
        let Some(mask) = mask.first_chunk::<4>() else { return Ok(None) };
        if !is_control(opcode) {
            self.fragmented = !last;
        }
        Ok(Some(Frame { opcode, left, mask: *mask, at: 0 }))
    }
}

fn is_control(opcode: u8) -> bool {
    opcode & 0x8 != 0
}

fn unmask(payload: &mut [u8], mask: [u8; 4], at: usize) {
    let mut mask = mask;
    mask.rotate_left(at % 4);
    // Whole masks first: the compiler makes wide instructions of it.
    let (chunks, rest) = payload.as_chunks_mut::<4>();
    for chunk in chunks {
        *chunk = (u32::from_ne_bytes(*chunk) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// The head of a server's frame: binary, unfragmented.
#[derive(Debug, Default)]
pub(super) struct Head {
    bytes: [u8; 10],
    start: usize,
    end: usize,
}

impl Head {
    pub(super) fn binary(length: usize) -> Head {
        let mut bytes = vec![0x80 | BINARY];
        push_length(length, &mut bytes);
        let mut head = Head { end: bytes.len(), ..Head::default() };
        for (place, byte) in head.bytes.iter_mut().zip(bytes) {
            *place = byte;
        }
        head
    }

    /// What is not written.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Notes what was written; returns what of it was not the head's.
    pub(super) fn advance(&mut self, written: usize) -> usize {
        let own = written.min(self.end - self.start);
        self.start += own;
        written - own
    }
}

fn push_length(length: usize, into: &mut Vec<u8>) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..126), _) => into.push(length),
        (_, Ok(length)) => {
            into.push(126);
            into.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            into.push(127);
            into.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// The answer to a ping.
pub(super) fn pong(payload: &[u8]) -> Vec<u8> {
    control(PONG, payload)
}

/// A close frame; without a code where the client's had none.
pub(super) fn close(code: Option<u16>) -> Vec<u8> {
    control(CLOSE, code.map(u16::to_be_bytes).as_ref().map_or(&[], |code| code.as_slice()))
}

fn control(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    push_length(payload.len(), &mut frame);
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x11, 0x92, 0x73, 0xf4];

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        push_length(payload.len(), &mut frame);
        frame[1] |= 0x80;
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Decodes in pieces of this size; returns the payload and the control frames.
    fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<Control>), Fault> {
        let mut decoder = Decoder::default();
        let (mut payload, mut controls) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            let mut piece = piece.to_vec();
            let decoded = decoder.decode(&mut piece)?;
            payload.extend_from_slice(&piece[..decoded.payload]);
            let closed = matches!(decoded.control, Some(Control::Close(_)));
            controls.extend(decoded.control);
            if closed {
                break;
            }
        }
        Ok((payload, controls))
    }

    fn check(what: &str, frames: &[Vec<u8>], expected: Result<(&[u8], &[Control]), Fault>) {
        let bytes = frames.concat();
        for piece in [1, 2, 3, 5, 7] {
            let found = decode(&bytes, piece);
            let found =
                found.as_ref().map(|(payload, controls)| (&**payload, &**controls)).map_err(|fault| *fault);
            assert_eq!(found, expected, "{what}, in pieces of {piece}");
        }
        let whole = decode(&bytes, bytes.len()).map(|(payload, _)| payload);
        assert_eq!(whole, expected.map(|(payload, _)| payload.to_vec()), "{what}, whole");
    }

    #[test]
    fn payloads_are_one_stream_whatever_frames_they_come_in() {
        let long = vec![b'x'; 70_000];
        check("one", &[frame(0x82, b"abc")], Ok((b"abc", &[])));
        check("an empty one", &[frame(0x82, b""), frame(0x82, b"a")], Ok((b"a", &[])));
        check("two", &[frame(0x82, b"ab"), frame(0x82, b"c")], Ok((b"abc", &[])));
        check("125, 126 and 65536 bytes", &[frame(0x82, &long)], Ok((&long, &[])));
        check("16 bits of length", &[frame(0x82, &long[..126])], Ok((&long[..126], &[])));
        check(
            "fragments, with a ping between",
            &[frame(0x02, b"a"), frame(0x00, b""), frame(0x89, b"?"), frame(0x80, b"b"), frame(0x82, b"c")],
            Ok((b"abc", &[Control::Ping(b"?".to_vec())])),
        );
        check("a pong nobody asked for", &[frame(0x8a, b"x"), frame(0x82, b"a")], Ok((b"a", &[])));
        check(
            "a close, and nothing behind it in its read",
            &[frame(0x82, b"a"), frame(0x88, &1001u16.to_be_bytes())],
            Ok((b"a", &[Control::Close(Some(1001))])),
        );
        check("a close without a code", &[frame(0x88, b"")], Ok((b"", &[Control::Close(None)])));
    }

    #[test]
    fn what_the_protocol_forbids_is_a_fault() {
        let plain = |second: &[u8]| [&[0x82][..], second, &MASK].concat();
        let cases: [(&str, Vec<Vec<u8>>, Fault); 14] = [
            ("text", vec![frame(0x81, b"a")], Fault::Text),
            ("a reserved bit", vec![frame(0xc2, b"a")], Fault::ReservedBit),
            ("a reserved kind", vec![frame(0x83, b"a")], Fault::Opcode),
            ("a reserved control frame", vec![frame(0x8b, b"a")], Fault::Opcode),
            ("no mask", vec![vec![0x82, 1, b'a']], Fault::Unmasked),
            ("5 in 16 bits", vec![plain(&[0xfe, 0, 5])], Fault::Length),
            ("5 in 64 bits", vec![plain(&[0xff, 0, 0, 0, 0, 0, 0, 0, 5])], Fault::Length),
            ("64 bits with the highest", vec![plain(&[0xff, 0x80, 0, 0, 0, 0, 0, 0, 0])], Fault::Length),
            ("a fragmented ping", vec![frame(0x09, b"a")], Fault::Control),
            ("a long ping", vec![frame(0x89, &[0; 126])], Fault::Control),
            ("a continuation of nothing", vec![frame(0x80, b"a")], Fault::Fragment),
            (
                "a continuation of what has ended",
                vec![frame(0x02, b"a"), frame(0x80, b"a"), frame(0x80, b"a")],
                Fault::Fragment,
            ),
            ("a message within a message", vec![frame(0x02, b"a"), frame(0x82, b"a")], Fault::Fragment),
            ("text within a message", vec![frame(0x02, b"a"), frame(0x81, b"a")], Fault::Text),
        ];
        for (what, frames, fault) in cases {
            check(what, &frames, Err(fault));
        }
    }

    #[test]
    fn any_bytes_have_an_outcome_and_the_same_in_any_pieces() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(..)).collect();
            for byte in &mut bytes {
                // Most as they are in good frames, so that more than the head is reached.
                if random.u8(..) < 160 {
                    *byte = *random.choice(&[0x82, 0x02, 0x00, 0x80, 0x89, 0x88, 0x81, 0xfe]).unwrap();
                }
            }
            let [one, other] =
                [1, 1 + random.usize(0..9)].map(|piece| decode(&bytes, piece).map(|(payload, _)| payload));
            assert_eq!(one, other, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (length, head) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_535, vec![0x82, 126, 255, 255]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut written = Head::binary(length);
            assert_eq!(written.rest(), head, "{length}");
            assert_eq!(written.advance(1), 0);
            assert_eq!(written.rest(), &head[1..], "{length}");
            assert_eq!(written.advance(head.len() + 1), 2, "{length}");
        }
        assert_eq!(pong(b"?"), [0x8a, 1, b'?']);
        assert_eq!(close(Some(1000)), [0x88, 2, 3, 0xe8]);
        assert_eq!(close(None), [0x88, 0]);
    }
}
