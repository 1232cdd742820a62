//! The header that a proxy puts before a connection to say whom it comes from: PROXY protocol, versions 1 and 2, as
//! HAProxy's `proxy-protocol.txt` describes them.
//!
//! Promises: no byte behind the header is read; whatever bytes come, the outcome is an address, none, or why not.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 1, at most (section 2.1).
const LONGEST_LINE: usize = 107;
/// Bytes behind the first 16 of a header of version 2, at most. Addresses need 36; what else proxies tell is not read.
const LONGEST_BLOCK: usize = 2048;

/// Why a connection has no header that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoHeader {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error(
        "there is no PROXY header; let the proxy send one, or take this listener out of spec.listeners.proxyProtocol"
    )]
    None,
    #[error("its PROXY header can't be read")]
    Unreadable,
    #[error("its PROXY header is too long")]
    TooLong,
    #[error("its PROXY header tells of something else than TCP")]
    NoTcp,
}

/// How far a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many more bytes belong to it for certain.
    Needs(usize),
    /// It is whole. None: the proxy speaks for itself, or does not know.
    Whole(Option<SocketAddr>),
}

/// Reads the header, and gives the address of whom the proxy speaks for. Its time is bounded by the caller.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header = Vec::new();
    loop {
        match step(&header)? {
            Step::Whole(address) => return Ok(address),
            Step::Needs(more) => {
                let have = header.len();
                header.resize(have + more, 0);
                let rest = header.get_mut(have..).unwrap_or_default();
                // What can't become a header is told by its first bytes, however few come.
                let read = if have < SIGNATURE.len() {
                    stream.read(rest).await?
                } else {
                    stream.read_exact(rest).await?
                };
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                header.truncate(have + read);
            }
        }
    }
}

fn step(header: &[u8]) -> Result<Step, Malformed> {
    let start = header.get(..SIGNATURE.len()).unwrap_or(header);
    if SIGNATURE.starts_with(start) {
        return if start.len() < SIGNATURE.len() {
            Ok(Step::Needs(SIGNATURE.len() - start.len()))
        } else {
            binary(header)
        };
    }
    let word = b"PROXY ";
    if word.starts_with(start) || start.starts_with(word) {
        return line(header);
    }
    Err(Malformed::None)
}

/// Version 2.
fn binary(header: &[u8]) -> Result<Step, Malformed> {
    let Some((head, block)) = header.split_first_chunk::<16>() else {
        return Ok(Step::Needs(16 - header.len()));
    };
    let [.., version_and_command, family, high, low] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_BLOCK {
        return Err(Malformed::TooLong);
    }
    if block.len() < length {
        return Ok(Step::Needs(length - block.len()));
    }
    match (version_and_command, family) {
        // LOCAL: the proxy itself, such as its probes.
        (0x20, _) | (0x21, 0x00) => Ok(Step::Whole(None)),
        (0x21, 0x11) => {
            let (address, rest) = block.split_first_chunk::<4>().ok_or(Malformed::Unreadable)?;
            port(IpAddr::V4(Ipv4Addr::from(*address)), rest.get(4..))
        }
        (0x21, 0x21) => {
            let (address, rest) = block.split_first_chunk::<16>().ok_or(Malformed::Unreadable)?;
            port(IpAddr::V6(Ipv6Addr::from(*address)), rest.get(16..))
        }
        (0x21, 0x12 | 0x22 | 0x31 | 0x32) => Err(Malformed::NoTcp),
        _ => Err(Malformed::Unreadable),
    }
}

/// The ports stand behind both addresses.
fn port(address: IpAddr, ports: Option<&[u8]>) -> Result<Step, Malformed> {
    let ports = ports.and_then(<[u8]>::first_chunk::<4>).ok_or(Malformed::Unreadable)?;
    Ok(Step::Whole(Some(SocketAddr::new(address, u16::from_be_bytes([ports[0], ports[1]])))))
}

/// Version 1.
fn line(header: &[u8]) -> Result<Step, Malformed> {
    if header.len() > LONGEST_LINE {
        return Err(Malformed::TooLong);
    }
    let Some(line) = header.strip_suffix(b"\r\n") else {
        // The line ends with these two, so two are there unless the first has come.
        return Ok(Step::Needs(if header.ends_with(b"\r") { 1 } else { 2 }));
    };
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Unreadable)?;
    let words: Vec<&str> = line.split(' ').collect();
    let address = match *words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(Step::Whole(None)),
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            let addresses = from.parse::<Ipv4Addr>().and_then(|from| to.parse::<Ipv4Addr>().map(|_| from));
            addresses.ok().map(IpAddr::V4).zip(ports(from_port, to_port))
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            let addresses = from.parse::<Ipv6Addr>().and_then(|from| to.parse::<Ipv6Addr>().map(|_| from));
            addresses.ok().map(IpAddr::V6).zip(ports(from_port, to_port))
        }
        _ => None,
    };
    let (address, port) = address.ok_or(Malformed::Unreadable)?;
    Ok(Step::Whole(Some(SocketAddr::new(address, port))))
}

fn ports(from: &str, to: &str) -> Option<u16> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(from) && digits(to) && to.parse::<u16>().is_ok()).then(|| from.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    /// Reads the header from a stream that goes on behind it, and finds what is left there untouched.
    async fn read_from(bytes: &[u8]) -> Result<(Option<SocketAddr>, Vec<u8>), NoHeader> {
        let mut stream = bytes;
        let address = read(&mut stream).await?;
        Ok((address, stream.to_vec()))
    }

    async fn check(what: &str, header: &[u8], expected: Result<Option<&str>, Malformed>) {
        let expected = expected.map(|address| address.map(|address| address.parse::<SocketAddr>().unwrap()));
        match (read_from(&[header, b"\x10\x0c"].concat()).await, expected) {
            (Ok((found, rest)), Ok(expected)) => {
                assert_eq!((found, &*rest), (expected, &b"\x10\x0c"[..]), "{what}");
                for divide in 0..header.len() {
                    let cut = read_from(&header[..divide]).await;
                    assert!(matches!(cut, Err(NoHeader::Socket(_))), "{what}, cut at {divide}: {cut:?}");
                }
            }
            (Err(NoHeader::Malformed(found)), Err(expected)) => assert_eq!(found, expected, "{what}"),
            (found, expected) => panic!("{what}: {found:?}, not {expected:?}"),
        }
    }

    #[tokio::test]
    async fn both_versions_name_the_device_and_no_byte_behind_them_is_touched() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x07, 0x5b];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        six[15] = 9;
        six[32..34].copy_from_slice(&[0xff, 0xff]);
        check("v1", b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883\r\n", Ok(Some("192.0.2.7:4660"))).await;
        check("v1, 6", b"PROXY TCP6 2001:db8::9 ::1 65535 1883\r\n", Ok(Some("[2001:db8::9]:65535"))).await;
        check("v1, nothing known", b"PROXY UNKNOWN\r\n", Ok(None)).await;
        check("v1, something unknown", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(None)).await;
        check("v2", &v2(0x21, 0x11, &four), Ok(Some("192.0.2.7:4660"))).await;
        check("v2, 6", &v2(0x21, 0x21, &six), Ok(Some("[2001:db8::9]:65535"))).await;
        let with_more = [&four[..], &[0x20, 0, 3, 1, 2, 3]].concat();
        check("v2 and more", &v2(0x21, 0x11, &with_more), Ok(Some("192.0.2.7:4660"))).await;
        check("v2, the proxy itself", &v2(0x20, 0x11, &four), Ok(None)).await;
        check("v2, nothing known", &v2(0x21, 0, b""), Ok(None)).await;
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_by_its_first_bytes_and_a_bad_one_by_its_fault() {
        check("MQTT", b"\x10\x0c\0\x04MQTT", Err(Malformed::None)).await;
        check("TLS", b"\x16\x03\x01", Err(Malformed::None)).await;
        check("a request", b"GET / HTTP/1.1\r\n", Err(Malformed::None)).await;
        check("nearly the signature", b"\r\n\r\n\0\r\nQUIX\n", Err(Malformed::None)).await;
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 100]].concat();
        check("a line without an end", &long, Err(Malformed::TooLong)).await;
        for bad in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883 \r\n",
            "PROXY TCP4 192.0.2.700 10.0.0.1 4660 1883\r\n",
            "PROXY TCP4 ::1 ::1 4660 1883\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 4660 1883\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 1883\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 1883\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 1 1883\r\n",
        ] {
            check(bad, bad.as_bytes(), Err(Malformed::Unreadable)).await;
        }
        check("bytes in a line", b"PROXY TCP4 \xff\xff\r\n", Err(Malformed::Unreadable)).await;
        check("v2, a short address", &v2(0x21, 0x11, &[1, 2, 3]), Err(Malformed::Unreadable)).await;
        check("v2, no ports", &v2(0x21, 0x11, &[0; 11]), Err(Malformed::Unreadable)).await;
        check("v2, another version", &v2(0x11, 0x11, &[0; 12]), Err(Malformed::Unreadable)).await;
        check("v2, another command", &v2(0x22, 0x11, &[0; 12]), Err(Malformed::Unreadable)).await;
        check("v2, UDP", &v2(0x21, 0x12, &[0; 12]), Err(Malformed::NoTcp)).await;
        check("v2, a path", &v2(0x21, 0x31, &[0; 216]), Err(Malformed::NoTcp)).await;
        check("v2, too long", &v2(0x21, 0x11, &[0; LONGEST_BLOCK + 1]), Err(Malformed::TooLong)).await;
    }

    #[tokio::test]
    async fn any_bytes_have_an_outcome_and_never_more_is_read_than_a_header_may_have() {
        let mut random = fastrand::Rng::with_seed(7);
        let good = [&b"PROXY TCP6 2001:db8::9 ::1 65535 1883\r\n"[..], &v2(0x21, 0x21, &[7; 36])];
        for _ in 0..20_000 {
            let mut bytes = random.choice(good).unwrap().to_vec();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.extend([b'x'; 4 * LONGEST_BLOCK]);
            let mut stream = &bytes[..];
            let _ = read(&mut stream).await;
            assert!(bytes.len() - stream.len() <= 16 + LONGEST_BLOCK, "{bytes:?}");
        }
    }
}
