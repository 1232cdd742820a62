//! Which pods are to be told that what they mount has changed, and when again: a kubelet that is told before it knows of
//! the change looks in vain. Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// A pod that was nudged so long ago and has not loaded what is new is nudged again; then it is left alone for twice as
/// long each time, up to [`DOUBLINGS`] times: it may be that it can't load it.
const AGAIN: Duration = Duration::from_secs(3);
const DOUBLINGS: u32 = 5;

/// What is remembered of the pods of one instance.
#[derive(Debug, Default)]
pub struct Nudging {
    /// Names the content of all that pods mount.
    mounted: String,
    /// Since when it is so.
    since: Option<Instant>,
    /// When a pod was nudged last.
    last: Option<Instant>,
    /// How often pods were nudged again for this content.
    repeats: u32,
}

/// One pod that is to stay.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub pod: &'a str,
    /// The mark that it was nudged with last.
    pub nudged: Option<&'a str>,
    /// Its broker says that it has not loaded what is new.
    pub behind: bool,
}

/// Pods to be nudged, and the mark that they get.
#[derive(Debug, PartialEq, Eq)]
pub struct Due<'a> {
    pub pods: Vec<&'a str>,
    pub mark: String,
}

impl Nudging {
    /// `mounted` names the content of all that pods mount by now.
    pub fn due<'a>(&mut self, mounted: &str, seen: &[Seen<'a>], now: Instant) -> Due<'a> {
        if self.mounted != mounted {
            (self.mounted, self.since, self.repeats) = (mounted.to_owned(), Some(now), 0);
        }
        let patience = AGAIN * 2_u32.saturating_pow(self.repeats.min(DOUBLINGS));
        let late = self.last.is_some_and(|last| now.saturating_duration_since(last) > patience);
        if late && seen.iter().any(|seen| seen.behind) {
            self.repeats = self.repeats.saturating_add(1);
        }
        let repeats = self.repeats;
        let mark = if repeats == 0 { mounted.to_owned() } else { format!("{mounted}-{repeats}") };
        let due = |seen: &&Seen<'_>| {
            let never = seen.nudged.is_none_or(|nudged| !nudged.starts_with(mounted));
            never || (repeats > 0 && seen.behind && seen.nudged != Some(&mark))
        };
        let pods = seen.iter().filter(due).map(|seen| seen.pod).collect();
        Due { pods, mark }
    }

    /// A pod was nudged.
    pub fn nudged(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// Since when pods have been to mount this content.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_nudged_once_for_each_content_and_again_while_it_is_behind() {
        let (mut nudging, start) = (Nudging::default(), Instant::now());
        let mut check =
            |second: u64, mounted: &str, nudged: Option<&str>, behind: bool, mark: Option<&str>| {
                let now = start + Duration::from_secs(second);
                let due = nudging.due(mounted, &[Seen { pod: "a", nudged, behind }], now);
                let expected: &[&str] = if mark.is_some() { &["a"] } else { &[] };
                assert_eq!(due.pods, expected, "at {second}: {due:?}");
                if let Some(mark) = mark {
                    assert_eq!(due.mark, mark, "at {second}");
                    nudging.nudged(now);
                }
            };
        check(0, "x", None, false, Some("x"));
        check(1, "x", Some("x"), true, None);
        check(5, "x", Some("x"), false, None);
        check(6, "x", Some("x"), true, Some("x-1"));
        check(7, "x", Some("x-1"), true, None);
        check(11, "x", Some("x-1"), true, None);
        check(13, "x", Some("x-1"), true, Some("x-2"));
        check(14, "x", Some("x-2"), false, None);
        check(25, "x", Some("x-2"), true, None);
        check(26, "x", Some("x-2"), true, Some("x-3"));
        check(27, "y", Some("x-3"), true, Some("y"));
        check(28, "y", None, false, Some("y"));
    }

    #[test]
    fn after_a_start_of_the_operator_what_was_nudged_for_the_same_content_is_left_alone() {
        let (mut nudging, now) = (Nudging::default(), Instant::now());
        let seen = |pod, nudged| Seen { pod, nudged: Some(nudged), behind: false };
        let due = nudging.due("x", &[seen("a", "x"), seen("b", "x-3"), seen("c", "w")], now);
        assert_eq!(due.pods, ["c"]);
        assert_eq!(nudging.since(), Some(now));
    }
}
