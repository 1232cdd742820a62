//! Bytes as dialogues write them, to be sent or to be expected.
//!
//! `0a3f` bytes in hexadecimal · `"text"` its bytes, `\uXXXX` a character · `'text'` the same behind their length in two
//! bytes · either followed by `*N`, the text N times · `[…]` a block behind its length as a variable byte integer · `{…}` a
//! property block, which MQTT 5 alone has: nothing before · `3:`, `4:` or `5:` before an item, for one protocol level alone ·
//! `$x` two bytes that are the same wherever the name stands · and where bytes are expected, `??` any byte and `..`
//! any number of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Bytes(Vec<u8>),
    Block(Vec<Item>),
    Name(String),
    AnyByte,
    AnyBytes,
}

/// What the names stand for so far.
pub(crate) type Names = BTreeMap<String, [u8; 2]>;

pub(crate) fn parse(text: &str, level: u8) -> Result<Vec<Item>> {
    let mut rest = text.trim_start();
    let items = block(&mut rest, level, None)?;
    ensure!(rest.is_empty(), "left over: {rest}");
    Ok(items)
}

fn block(rest: &mut &str, level: u8, end: Option<char>) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    loop {
        let Some(first) = rest.chars().next() else {
            ensure!(end.is_none(), "a block does not end");
            return Ok(items);
        };
        if Some(first) == end {
            skip(rest, 1);
            return Ok(items);
        }
        let wanted = match rest.get(..2) {
            Some("3:") => 3,
            Some("4:") => 4,
            Some("5:") => 5,
            _ => level,
        };
        if matches!(rest.get(..2), Some("3:" | "4:" | "5:")) {
            skip(rest, 2);
        }
        let item = item(rest, level)?;
        items.extend(item.filter(|_| wanted == level));
    }
}

fn item(rest: &mut &str, level: u8) -> Result<Option<Item>> {
    Ok(match rest.chars().next().context("nothing behind a level")? {
        '[' => {
            skip(rest, 1);
            Some(Item::Block(block(rest, level, Some(']'))?))
        }
        '{' => {
            skip(rest, 1);
            let inner = block(rest, level, Some('}'))?;
            (level == 5).then_some(Item::Block(inner))
        }
        quote @ ('"' | '\'') => {
            let (text, behind) =
                rest.get(1..).and_then(|text| text.split_once(quote)).context("a text does not end")?;
            *rest = behind;
            let mut bytes = unescaped(text)?.into_bytes();
            if let Some(behind) = rest.strip_prefix('*') {
                *rest = behind;
                bytes = bytes.repeat(word(rest).parse().context("how often?")?);
            } else {
                skip(rest, 0);
            }
            if quote == '\'' {
                let length = u16::try_from(bytes.len())?;
                bytes.splice(0..0, length.to_be_bytes());
            }
            Some(Item::Bytes(bytes))
        }
        _ => Some(match word(rest) {
            "??" => Item::AnyByte,
            ".." => Item::AnyBytes,
            name if name.starts_with('$') => Item::Name(name.to_owned()),
            digits => Item::Bytes(hexadecimal(digits)?),
        }),
    })
}

/// `\uXXXX` is that character.
fn unescaped(text: &str) -> Result<String> {
    let mut parts = text.split("\\u");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, behind) = part.split_at_checked(4).context("four digits behind \\u")?;
        out.push(char::from_u32(u32::from_str_radix(digits, 16)?).context("no character")?);
        out.push_str(behind);
    }
    Ok(out)
}

fn skip(rest: &mut &str, bytes: usize) {
    *rest = rest.get(bytes..).unwrap_or_default().trim_start();
}

fn word<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find([' ', ']', '}']).unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    *rest = behind.trim_start();
    word
}

fn hexadecimal(digits: &str) -> Result<Vec<u8>> {
    ensure!(digits.len().is_multiple_of(2) && !digits.is_empty(), "not bytes: {digits:?}");
    let bytes = digits.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?));
    bytes.collect::<Result<_>>().with_context(|| format!("not bytes: {digits:?}"))
}

/// The bytes to send.
pub(crate) fn bytes(items: &[Item], names: &Names) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for item in items {
        match item {
            Item::Bytes(bytes) => out.extend(bytes),
            Item::Block(inner) => {
                let inner = bytes(inner, names)?;
                // A packet without its first byte is just such a block.
                out.extend(mqtt_e2e::wire::packet(0, &inner).into_iter().skip(1));
            }
            Item::Name(name) => {
                out.extend(names.get(name).with_context(|| format!("{name} is nothing yet"))?)
            }
            Item::AnyByte | Item::AnyBytes => bail!("what is sent must be said"),
        }
    }
    Ok(out)
}

/// Whether these are the bytes expected; new names stand for what they met then.
pub(crate) fn matches(items: &[Item], bytes: &[u8], names: &mut Names) -> bool {
    let Some((first, rest)) = items.split_first() else { return bytes.is_empty() };
    match first {
        Item::Bytes(expected) => {
            bytes.strip_prefix(expected.as_slice()).is_some_and(|bytes| matches(rest, bytes, names))
        }
        Item::Block(inner) => {
            let Some((body, behind)) = split_block(bytes) else { return false };
            matches(inner, body, names) && matches(rest, behind, names)
        }
        Item::Name(name) => {
            let Some((found, behind)) = bytes.split_first_chunk::<2>() else { return false };
            names.entry(name.clone()).or_insert(*found) == found && matches(rest, behind, names)
        }
        Item::AnyByte => bytes.split_first().is_some_and(|(_, bytes)| matches(rest, bytes, names)),
        Item::AnyBytes => {
            (0..=bytes.len()).any(|skipped| matches(rest, bytes.get(skipped..).unwrap_or_default(), names))
        }
    }
}

/// A block and what is behind it; none if its length does not fit.
pub(crate) fn split_block(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for at in 0..4 {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return bytes.get(at + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[test]
fn bytes_are_written_and_met_as_the_notation_says() {
    let sent =
        |text, level| bytes(&parse(text, level).unwrap(), &Names::from([("$x".into(), [1, 2])])).unwrap();
    assert_eq!(sent("30 [ 'a/b' $x { 0101 } \"hi\" ]", 5), b"\x30\x0c\0\x03a/b\x01\x02\x02\x01\x01hi");
    assert_eq!(sent("30 [ 'a/b' $x { 0101 } \"hi\" ]", 4), b"\x30\x09\0\x03a/b\x01\x02hi");
    assert_eq!(sent("4:05 5:87 'é'*2 \"-\"*3", 4), "\u{5}\0\u{4}éé---".as_bytes());
    let met = |text, given: &[u8]| matches(&parse(text, 5).unwrap(), given, &mut Names::new());
    assert!(met("40 [ $x ]", b"\x40\x02\0\x01") && met("40 [ $x .. ]", b"\x40\x03\0\x01\x10"));
    assert!(met("20 [ 00 ?? { .. 21 $y .. } ]", b"\x20\x06\0\x05\x03\x21\x01\x01"));
    assert!(!met("40 [ $x $x ]", b"\x40\x04\0\x01\0\x02") && !met("40 [ $x ]", b"\x40\x03\0\x01\0"));
}
