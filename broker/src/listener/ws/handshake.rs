//! The HTTP request that begins a WebSocket (RFC 6455 section 4.2), and its answer. No socket, no clock.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest as _, Sha1};

/// Bytes of a request's head, at most.
pub(super) const LONGEST: usize = 8 * 1024;
const MOST_HEADERS: usize = 64;
/// What a server appends to the client's key (section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// [MQTT-6.0.0-3].
const SUBPROTOCOL: &str = "mqtt";

/// Why a request opens no WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(in crate::listener) struct Refusal {
    status: &'static str,
    why: &'static str,
}

const NO_HTTP: Refusal = Refusal { status: "400 Bad Request", why: "this is no request of HTTP/1.1" };
const NO_UPGRADE: Refusal = Refusal {
    status: "426 Upgrade Required",
    why: "MQTT over WebSocket is served here, and the request asks for no WebSocket of version 13",
};
const NO_KEY: Refusal =
    Refusal { status: "400 Bad Request", why: "the request has no Sec-WebSocket-Key of 16 bytes in base64" };
const NO_SUBPROTOCOL: Refusal = Refusal {
    status: "400 Bad Request",
    why: "the request must offer the subprotocol mqtt, in Sec-WebSocket-Protocol",
};
const FOREIGN_ORIGIN: Refusal = Refusal {
    status: "403 Forbidden",
    why: "pages of this origin may not open a WebSocket here: spec.listeners.origins does not name it",
};
pub(super) const TOO_LONG: Refusal =
    Refusal { status: "431 Request Header Fields Too Large", why: "the request's head is too long" };
pub(super) const HASTY: Refusal =
    Refusal { status: "400 Bad Request", why: "the client sent more before its request was answered" };

impl Refusal {
    /// The answer as it is sent.
    pub(super) fn response(&self) -> String {
        let Refusal { status, why } = self;
        let length = why.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: close\r\n\r\n{why}\n"
        )
    }
}

/// Where a request's head ends, if its end is there. What stands before `from` has been looked at before.
pub(super) fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    let at = bytes.get(from..)?.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(from + at + 4)
}

/// The answer that opens the WebSocket, to a whole head. `origins` are those whose pages may open one; none: all.
pub(super) fn answer(head: &[u8], origins: &[String]) -> Result<String, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LONG),
        _ => return Err(NO_HTTP),
    }
    if request.version != Some(1) || request.method != Some("GET") {
        return Err(NO_HTTP);
    }
    let headers = &*request.headers;
    let names = |name: &str, wanted: &str, exactly: bool| {
        values(headers, name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|given| if exactly { given == wanted } else { given.eq_ignore_ascii_case(wanted) })
    };
    if !names("upgrade", "websocket", false)
        || !names("connection", "upgrade", false)
        || !names("sec-websocket-version", "13", true)
    {
        return Err(NO_UPGRADE);
    }
    let mut keys = values(headers, "sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else { return Err(NO_KEY) };
    if STANDARD.decode(key).ok().is_none_or(|key| key.len() != 16) {
        return Err(NO_KEY);
    }
    if !names("sec-websocket-protocol", SUBPROTOCOL, true) {
        return Err(NO_SUBPROTOCOL);
    }
    // Only browsers name one.
    let foreign = |origin: &str| !origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
    if !origins.is_empty() && values(headers, "origin").any(foreign) {
        return Err(FOREIGN_ORIGIN);
    }
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    ))
}

/// The values of a header, in all the lines that it has; one that is no text counts as empty.
fn values<'a>(headers: &'a [httparse::Header<'_>], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request of section 1.3, as an MQTT client makes it.
    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://example.com\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn check(what: &str, request: &str, origins: &[&str], expected: Result<(), Refusal>) {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        assert_eq!(end(request.as_bytes(), 0), Some(request.len()), "{what}");
        let found = answer(request.as_bytes(), &origins).map(|answer| {
            assert!(answer.starts_with("HTTP/1.1 101 "), "{what}: {answer}");
            // The figure that section 1.3 gives for this key.
            assert!(
                answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
                "{what}: {answer}"
            );
            assert!(answer.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"), "{what}: {answer}");
        });
        assert_eq!(found, expected, "{what}");
    }

    #[test]
    fn a_request_is_answered_as_the_standard_says_or_with_what_is_wrong() {
        let with = |old: &str, new: &str| {
            assert!(GOOD.contains(old), "{old}");
            GOOD.replace(old, new)
        };
        check("a good one", GOOD, &[], Ok(()));
        check("another path", &with("/mqtt", "/a?b"), &[], Ok(()));
        check("other capitals", &with("Upgrade: websocket", "upgrade: WebSocket"), &[], Ok(()));
        check(
            "protocols in two lines",
            &with("mqttv3.1, mqtt", "chat\r\nSec-WebSocket-Protocol: mqtt"),
            &[],
            Ok(()),
        );
        check("a POST", &with("GET", "POST"), &[], Err(NO_HTTP));
        check("HTTP/1.0", &with("HTTP/1.1", "HTTP/1.0"), &[], Err(NO_HTTP));
        check("no HTTP", "hello\r\n\r\n", &[], Err(NO_HTTP));
        check("a page", &with("Upgrade: websocket\r\n", ""), &[], Err(NO_UPGRADE));
        check("another upgrade", &with("Upgrade: websocket", "Upgrade: h2c"), &[], Err(NO_UPGRADE));
        check("an old version", &with("Version: 13", "Version: 8"), &[], Err(NO_UPGRADE));
        check("no key", &with("Key: dGhlIHNhbXBsZSBub25jZQ==", "Key:"), &[], Err(NO_KEY));
        check("a short key", &with("Key: dGhlIHNhbXBsZSBub25jZQ==", "Key: dGhl"), &[], Err(NO_KEY));
        check("another protocol", &with("mqttv3.1, mqtt", "mqttv3.1"), &[], Err(NO_SUBPROTOCOL));
        check(
            "the protocol's name written otherwise",
            &with("mqttv3.1, mqtt", "MQTT"),
            &[],
            Err(NO_SUBPROTOCOL),
        );
        check("a known origin", GOOD, &["https://a.example", "http://example.com"], Ok(()));
        check("a foreign origin", GOOD, &["https://example.com"], Err(FOREIGN_ORIGIN));
        check("no origin", &with("Origin: http://example.com\r\n", ""), &["https://a.example"], Ok(()));
        let many = format!("X: y\r\n{}", "X: y\r\n".repeat(MOST_HEADERS));
        check("too many headers", &with("Host:", &format!("{many}Host:")), &[], Err(TOO_LONG));
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_divide_it() {
        for divide in 0..GOOD.len() {
            assert_eq!(end(&GOOD.as_bytes()[..divide], 0), None);
            assert_eq!(end(GOOD.as_bytes(), divide), Some(GOOD.len()), "looked at before: {divide}");
        }
    }

    #[test]
    fn any_bytes_are_answered() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = GOOD.as_bytes().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(0..=bytes.len()));
            if let Err(refusal) = answer(&bytes, &[]) {
                assert!(refusal.response().starts_with("HTTP/1.1 4"), "{refusal}");
            }
        }
    }
}
