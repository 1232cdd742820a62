//! Records of the session log: read as they were written, or refused, and a view of any of them stands.

use mqtt_proto::durable::{
    record::{Key, parse},
    view::View,
};

use super::Input;

/// Records, each a byte of flags, the lengths of key and value, and both.
pub fn records(data: &[u8]) {
    let mut input = Input(data);
    let mut view = View::default();
    let mut changes = Vec::new();
    let mut offset = 0;
    while !input.is_empty() {
        let has_value = input.byte() & 1 == 1;
        let (key_length, value_length) = (usize::from(input.byte()), usize::from(input.byte()));
        let key = input.take(key_length);
        let value = if has_value { Some(input.take(value_length)) } else { None };
        offset += 1;
        let Ok((parsed, content)) = parse(key, value) else { continue };
        assert_eq!(parsed.encode(), key);
        assert_eq!(content.as_ref().map(|content| content.encode()).as_deref(), value);
        assert_eq!(Key::parse(key), Ok(parsed.clone()));
        view.apply(offset, 1000 * offset, key.len(), parsed, content, &mut changes);
    }
    for (client, head) in view.heads() {
        assert_eq!(view.head(client).map(|head| head.nonce), Some(head.nonce));
    }
}
