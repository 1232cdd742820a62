//! Topic names and topic filters as types that can't be wrong, and every question asked of one string alone.
//!
//! Sources: MQTT 5.0 sections 1.5.4 (strings), 4.7 (names, filters, wildcards) and 4.8.2 (shared
//! subscriptions). Beyond MQTT, nothing here has more than [`MAX_LEVELS`] levels.

use std::fmt;

/// Most bytes of a topic name or filter: what MQTT's two-byte length can say.
pub const MAX_BYTES: usize = 65_535;

/// Most levels of a topic name or filter, far beyond real use: it bounds the work and the depth of a walk.
pub const MAX_LEVELS: usize = 128;

/// Why a string is not a topic name, a filter, or the filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("is empty: name at least one character")]
    Empty,
    #[error("is longer than {MAX_BYTES} bytes: shorten it")]
    TooLong,
    #[error("has more than {MAX_LEVELS} levels: use fewer `/`")]
    TooManyLevels,
    #[error("contains the NUL character: remove it")]
    Nul,
    #[error("contains a wildcard (`+` or `#`), which only filters may: name one topic")]
    WildcardInTopic,
    #[error("uses a wildcard wrongly: `+` must stand alone in its level, `#` alone and in the last")]
    MisplacedWildcard,
    #[error("is a malformed shared subscription: write `$share/GROUP/FILTER`, no `+` or `#` in GROUP")]
    MalformedShare,
    #[error("begins with `$share/` where a plain filter is expected: leave out `$share/GROUP/`")]
    UnexpectedShare,
}

/// A topic name: 1 to [`MAX_BYTES`] bytes, without NUL or wildcard, at most [`MAX_LEVELS`] levels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Box<str>);

impl Topic {
    pub fn parse(topic: &str) -> Result<Topic, TopicError> {
        check_topic(topic)?;
        Ok(Topic(topic.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `topic` could be a [`Topic`], for those who need not keep it.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    let levels = check_text(topic)?;
    if topic.bytes().any(|b| b == b'+' || b == b'#') {
        return Err(TopicError::WildcardInTopic);
    }
    if levels > MAX_LEVELS { Err(TopicError::TooManyLevels) } else { Ok(()) }
}

/// A topic filter without `$share/GROUP/`: `+` alone in a level, `#` alone and last, at most [`MAX_LEVELS`]
/// levels (`#` is one).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(Box<str>);

impl Filter {
    pub fn parse(filter: &str) -> Result<Filter, TopicError> {
        let levels = check_text(filter)?;
        if filter.starts_with(SHARE) {
            return Err(TopicError::UnexpectedShare);
        }
        if levels > MAX_LEVELS {
            return Err(TopicError::TooManyLevels);
        }
        for (at, level) in filter.split('/').enumerate() {
            let ok = match level {
                "#" => at + 1 == levels,
                "+" => true,
                _ => !has_wildcard(level),
            };
            if !ok {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Filter(filter.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the filter matches a topic name (MQTT 4.7): `a/#` matches `a` too, and a filter that begins
    /// with a wildcard matches no topic that begins with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        if is_internal(topic) && has_wildcard(first_level(&self.0)) {
            return false;
        }
        levels_match(self.0.split('/'), topic.split('/'))
    }

    /// Whether this filter matches every topic that `requested` matches.
    pub fn covers(&self, requested: &Filter) -> bool {
        let (own_first, asked_first) = (first_level(&self.0), first_level(&requested.0));
        if asked_first.starts_with('$') && has_wildcard(own_first) {
            return false;
        }
        // `x/#` also matches `x`, which `x/+/#` does not; but no topic is above `#`, nor (being empty)
        // above `/#`, so for these two it is the same.
        let asked = match &*requested.0 {
            "#" => "+/#",
            "/#" => "/+/#",
            other => other,
        };
        let mut asked = asked.split('/');
        for own in self.0.split('/') {
            if own == "#" {
                return true;
            }
            match asked.next() {
                Some(level) if own == level || (own == "+" && level != "#") => {}
                _ => return false,
            }
        }
        asked.next().is_none()
    }
}

/// The group of a shared subscription: at least one character, no `/`, `+` or `#`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareName(Box<str>);

impl ShareName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What one entry of a SUBSCRIBE or UNSUBSCRIBE names: a filter, for oneself or shared with a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterRequest {
    pub share: Option<ShareName>,
    pub filter: Filter,
}

impl FilterRequest {
    /// Takes `a/+` or `$share/GROUP/a/+`.
    pub fn parse(requested: &str) -> Result<FilterRequest, TopicError> {
        // The length is that of the string on the wire, the group included.
        check_text(requested)?;
        let Some(shared) = requested.strip_prefix(SHARE) else {
            return Ok(FilterRequest { share: None, filter: Filter::parse(requested)? });
        };
        match shared.split_once('/') {
            Some((group, filter)) if !group.is_empty() && !has_wildcard(group) && !filter.is_empty() => {
                Ok(FilterRequest { share: Some(ShareName(group.into())), filter: Filter::parse(filter)? })
            }
            _ => Err(TopicError::MalformedShare),
        }
    }

    /// The name of a shared subscription, which all its members give it.
    pub fn shared(&self) -> Option<String> {
        self.share.as_ref().map(|_| self.to_string())
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// As it was requested: [`FilterRequest::parse`] takes it back.
impl fmt::Display for FilterRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.share {
            Some(ShareName(group)) => write!(f, "{SHARE}{group}/{}", self.filter),
            None => self.filter.fmt(f),
        }
    }
}

/// The first level that is not empty: `test3` of `/test3/x` and of `test3/x`; none in `/`.
pub fn parent_level(topic: &str) -> Option<&str> {
    topic.split('/').find(|level| !level.is_empty())
}

/// Whether a topic is the service's own (`$SYS/…`, any that begins with `$`): clients never publish to it,
/// and no filter that begins with a wildcard reaches it.
pub fn is_internal(topic: &str) -> bool {
    topic.starts_with('$')
}

/// Whether the setting `Strict` admits a client ID, topic or filter: `0-9 a-z A-Z - _ /`, `@` only in pairs
/// (`@@`), and with `allow_wildcards` also `+` and `#`. Of a shared subscription, ask about group and filter.
pub fn strict_characters(text: &str, allow_wildcards: bool) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let ok = match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'/' => true,
            b'+' | b'#' => allow_wildcards,
            b'@' => bytes.next() == Some(b'@'),
            _ => false,
        };
        if !ok {
            return false;
        }
    }
    true
}

/// Whether a client ID fits a pattern in which each `*` stands for any run of characters, none included.
pub fn client_id_matches(pattern: &str, id: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|prefix| id.strip_prefix(prefix)) else {
        return false;
    };
    let Some(suffix) = parts.next_back() else {
        return rest.is_empty();
    };
    let Some(middle) = rest.strip_suffix(suffix) else {
        return false;
    };
    rest = middle;
    // The earliest place for each part leaves most room for the next, so nothing is ever tried again.
    parts.all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

const SHARE: &str = "$share/";

/// Whether levels of a filter match levels of a topic, apart from the rule for `$`.
pub(crate) fn levels_match<'a>(
    filter: impl Iterator<Item = &'a str>,
    mut topic: impl Iterator<Item = &'a str>,
) -> bool {
    for own in filter {
        if own == "#" {
            return true;
        }
        match topic.next() {
            Some(level) if own == "+" || own == level => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// What names and filters share; the number of levels if all is well.
fn check_text(text: &str) -> Result<usize, TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(TopicError::TooLong);
    }
    if text.bytes().any(|byte| byte == 0) {
        return Err(TopicError::Nul);
    }
    Ok(1 + text.bytes().filter(|&byte| byte == b'/').count())
}

fn has_wildcard(text: &str) -> bool {
    text.bytes().any(|byte| byte == b'+' || byte == b'#')
}

fn first_level(text: &str) -> &str {
    text.split_once('/').map_or(text, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TopicError::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text).unwrap_or_else(|e| panic!("{text} {e}"))
    }

    #[test]
    fn topic_names_are_what_mqtt_allows_within_128_levels() {
        let deep = |levels: usize| "/".repeat(levels - 1);
        let long = |bytes: usize| "x".repeat(bytes);
        for (text, expected) in [
            ("a", Ok(())),
            ("/", Ok(())),
            ("a//b", Ok(())),
            (" ", Ok(())),
            ("$SYS/x", Ok(())),
            ("温度/室内", Ok(())),
            (&deep(128), Ok(())),
            (&deep(129), Err(TooManyLevels)),
            (&deep(65_535), Err(TooManyLevels)),
            (&long(65_535), Ok(())),
            (&long(65_536), Err(TooLong)),
            ("", Err(Empty)),
            ("a\0b", Err(Nul)),
            ("a/+", Err(WildcardInTopic)),
            ("a#", Err(WildcardInTopic)),
        ] {
            assert_eq!(check_topic(text), expected, "{text:.40}");
            assert_eq!(Topic::parse(text).map(|t| t.as_str() == text), expected.map(|()| true), "{text:.40}");
        }
    }

    #[test]
    fn wildcards_stand_alone_in_a_level_and_hash_only_in_the_last() {
        let deep = |levels: usize| format!("{}#", "+/".repeat(levels - 1));
        for (text, expected) in [
            ("a", Ok(())),
            ("#", Ok(())),
            ("+", Ok(())),
            ("/", Ok(())),
            ("+/+/#", Ok(())),
            ("/+", Ok(())),
            ("a//#", Ok(())),
            ("$SYS/#", Ok(())),
            ("$share", Ok(())),
            (&deep(128), Ok(())),
            (&deep(129), Err(TooManyLevels)),
            ("", Err(Empty)),
            ("\0", Err(Nul)),
            ("a#", Err(MisplacedWildcard)),
            ("a/#/b", Err(MisplacedWildcard)),
            ("#/", Err(MisplacedWildcard)),
            ("##", Err(MisplacedWildcard)),
            ("+a", Err(MisplacedWildcard)),
            ("a/b+/c", Err(MisplacedWildcard)),
            ("++", Err(MisplacedWildcard)),
            ("$share/g/a", Err(UnexpectedShare)),
        ] {
            assert_eq!(Filter::parse(text).map(|_| ()), expected, "{text:.40}");
        }
    }

    #[test]
    fn a_shared_subscription_names_a_group_and_a_filter() {
        for (text, expected) in [
            ("a/+", Ok((None, "a/+"))),
            ("$share/g/a/+", Ok((Some("g"), "a/+"))),
            ("$share/g//a", Ok((Some("g"), "/a"))),
            ("$share/g/$SYS/#", Ok((Some("g"), "$SYS/#"))),
            ("$shared/g/a", Ok((None, "$shared/g/a"))),
            ("$share//a", Err(MalformedShare)),
            ("$share/", Err(MalformedShare)),
            ("$share/g", Err(MalformedShare)),
            ("$share/g/", Err(MalformedShare)),
            ("$share/+/a", Err(MalformedShare)),
            ("$share/g#/a", Err(MalformedShare)),
            ("$share/g/a#", Err(MisplacedWildcard)),
            ("$share/g/$share/h/a", Err(UnexpectedShare)),
            ("", Err(Empty)),
        ] {
            let parsed = FilterRequest::parse(text);
            let seen = parsed.as_ref().map(|r| (r.share.as_ref().map(ShareName::as_str), r.filter.as_str()));
            assert_eq!(seen, expected.as_ref().copied(), "{text}");
            if let Ok(request) = &parsed {
                assert_eq!(request.to_string(), text);
            }
        }
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        for (text, matching, others) in [
            ("a/b", &["a/b"][..], &["a", "a/b/c", "a/B", "/a/b", "a/b/"][..]),
            ("a/+", &["a/b", "a/"], &["a", "a/b/c"]),
            ("a/#", &["a", "a/", "a/b", "a/b/c"], &["ab", "b/a", "/a"]),
            ("#", &["a", "/", "a/$b", "/$SYS"], &["$SYS", "$SYS/x", "$"]),
            ("+", &["a"], &["a/b", "/", "$SYS"]),
            ("+/+", &["a/b", "/", "/a"], &["a", "$SYS/x"]),
            ("/+", &["/a", "/", "/$SYS"], &["a"]),
            ("+/x/#", &["a/x", "a/x/y", "/x"], &["$SYS/x", "a/y"]),
            ("$SYS/#", &["$SYS", "$SYS/x"], &["SYS", "$SYSX"]),
            ("$SYS/+", &["$SYS/x"], &["$SYS/x/y"]),
        ] {
            for topic in matching {
                assert!(filter(text).matches(topic), "{text} should match {topic}");
            }
            for topic in others {
                assert!(!filter(text).matches(topic), "{text} should not match {topic}");
            }
        }
    }

    #[test]
    fn a_filter_covers_another_when_it_matches_all_its_topics() {
        for (own, covered, others) in [
            ("a/b", &["a/b"][..], &["a/+", "a/#", "a", "#", "+/b"][..]),
            ("a/+", &["a/+", "a/b", "a/"], &["a/#", "a", "a/b/c", "a/+/c", "+/+", "a/+/#"]),
            ("a/#", &["a", "a/b", "a/+", "a/#", "a/b/#", "a/+/c", "a//"], &["#", "+/#", "ab", "b", "+"]),
            ("#", &["#", "+", "+/#", "a/#", "/", "/+/#"], &["$SYS/#", "$SYS", "$x/+"]),
            ("+", &["+", "a"], &["#", "+/#", "+/+", "$SYS", "/", "a/#"]),
            ("+/#", &["#", "+", "+/#", "a/#", "a", "+/+/b"], &["$SYS/#", "$SYS"]),
            ("+/+/#", &["+/+", "a/b/#", "+/+/#", "/#"], &["#", "+/#", "a/#", "a"]),
            ("a/+/#", &["a/b", "a/+/#", "a/b/#"], &["a/#", "a"]),
            ("$SYS/#", &["$SYS/#", "$SYS", "$SYS/+/x"], &["#", "+/#", "$x/#"]),
        ] {
            for requested in covered {
                assert!(filter(own).covers(&filter(requested)), "{own} should cover {requested}");
            }
            for requested in others {
                assert!(!filter(own).covers(&filter(requested)), "{own} should not cover {requested}");
            }
        }
    }

    #[test]
    fn coverage_is_inclusion_of_the_matched_topics() {
        // Over every filter and topic of up to three levels; `z` stands for a level no filter names.
        let strings = |levels: &[&str]| {
            let mut all: Vec<String> = levels.iter().map(|level| level.to_string()).collect();
            for _ in 0..2 {
                let longer = all.iter().flat_map(|head| levels.iter().map(move |l| format!("{head}/{l}")));
                all = all.iter().cloned().chain(longer).collect();
            }
            all.sort();
            all.dedup();
            all
        };
        // Topics one level longer than the longest filter tell `x/#` from `x`.
        let mut topics = strings(&["", "a", "$b", "z"]);
        topics.extend(topics.clone().iter().map(|topic| format!("{topic}/z")));
        topics.retain(|topic| !topic.is_empty());
        let matched =
            |filter: &Filter| topics.iter().map(|topic| filter.matches(topic)).collect::<Vec<bool>>();
        let filters: Vec<(Filter, Vec<bool>)> = strings(&["", "a", "$b", "+", "#"])
            .iter()
            .filter_map(|text| Filter::parse(text).ok())
            .map(|filter| (filter.clone(), matched(&filter)))
            .collect();
        assert!(filters.len() > 80 && filters.iter().all(|(_, matched)| matched.contains(&true)));
        for (own, own_matched) in &filters {
            for (asked, asked_matched) in &filters {
                let included = asked_matched.iter().zip(own_matched).all(|(asked, own)| *own || !asked);
                assert_eq!(own.covers(asked), included, "{own} covers {asked}");
            }
        }
    }

    #[test]
    fn the_parent_is_the_first_level_that_is_not_empty() {
        for (topic, expected) in [
            ("test3/x", Some("test3")),
            ("/test3/x", Some("test3")),
            ("//test3", Some("test3")),
            ("test3", Some("test3")),
            ("/", None),
            ("//", None),
        ] {
            assert_eq!(parent_level(topic), expected, "{topic}");
        }
    }

    #[test]
    fn strict_admits_the_guides_characters_and_its_examples() {
        for (text, in_topics, in_filters) in [
            ("GID-home@@meter_01", true, true),
            ("/test3/x", true, true),
            ("a/+/#", false, true),
            ("a@b", false, false),
            ("a@@@", false, false),
            ("@@@@", true, true),
            ("a b", false, false),
            ("$SYS", false, false),
            ("é", false, false),
            ("a.b", false, false),
        ] {
            assert_eq!(strict_characters(text, false), in_topics, "{text}");
            assert_eq!(strict_characters(text, true), in_filters, "{text} as a filter");
        }
    }

    #[test]
    fn a_star_in_a_client_id_pattern_stands_for_any_run() {
        for (pattern, matching, others) in [
            ("meter-*", &["meter-", "meter-1", "meter-*"][..], &["meter", "xmeter-1"][..]),
            ("*", &["", "a"], &[]),
            ("**", &["", "a"], &[]),
            ("a", &["a"], &["", "aa", "b"]),
            ("", &[""], &["a"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ac", "abcx"]),
            ("*ab*ab*", &["abab", "xabyabz"], &["aba", "ab"]),
            ("é*", &["é", "éa"], &["e"]),
        ] {
            for id in matching {
                assert!(client_id_matches(pattern, id), "{pattern} should match {id}");
            }
            for id in others {
                assert!(!client_id_matches(pattern, id), "{pattern} should not match {id}");
            }
        }
        assert!(!client_id_matches(&"a*".repeat(5_000), &"a".repeat(4_999)), "many stars are no trap");
    }
}
