//! What `mqtt-broker trace` asks of a running broker, and how it shows what happened to a device.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, bail};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use mqtt_broker_api::trace::{TraceEvent, TracePage, Traced, TracedFilter};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::{agent, expect_success};

/// For one page; longer than the broker takes to say that it can't answer.
const PATIENCE: Duration = Duration::from_secs(40);

/// What of the trace is shown: from the first to before the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    from: Timestamp,
    to: Timestamp,
}

impl Span {
    /// A day, or from one time to another; left out: today, until now, or since the beginning of that day. All in UTC.
    pub(crate) fn new(
        day: Option<Date>,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        now: Timestamp,
    ) -> anyhow::Result<Span> {
        let day_of = |time: Timestamp| time.to_zoned(TimeZone::UTC).date();
        let begin = |day: Date| anyhow::Ok(day.to_zoned(TimeZone::UTC)?.timestamp());
        let span = match (day, from, to) {
            (Some(day), ..) => Span { from: begin(day)?, to: begin(day.checked_add(1.day())?)? },
            (None, from, to) => {
                let to = match to {
                    Some(to) => to,
                    // Clocks differ: what a node has just written is shown, too.
                    None => now.checked_add(1.hour())?,
                };
                let from = match from {
                    Some(from) => from,
                    None => begin(day_of(to.min(now)))?,
                };
                Span { from, to }
            }
        };
        if span.from >= span.to {
            bail!("there is no time from {} to {}: put the earlier one at --from", span.from, span.to);
        }
        Ok(span)
    }
}

/// Prints the events, one a line: for people, or as JSON.
pub(crate) fn read(admin: &str, client_id: &str, span: Span, json: bool) -> anyhow::Result<()> {
    let url = format!("http://{admin}/v1/trace/{}", utf8_percent_encode(client_id, NON_ALPHANUMERIC));
    let mut out = io::stdout().lock();
    let mut next = None;
    let mut unreadable = 0;
    loop {
        let mut request = agent()
            .get(&url)
            .config()
            .timeout_global(Some(PATIENCE))
            .build()
            .query("from", span.from.as_millisecond().to_string())
            .query("to", span.to.as_millisecond().to_string());
        if let Some(next) = next {
            request = request.query("next", u64::to_string(&next));
        }
        let mut response = expect_success(admin, request.call())?;
        let page: TracePage = response.body_mut().read_json().context("the broker's answer can't be read")?;
        for event in &page.events {
            let line = if json { serde_json::to_string(event)? } else { line(event) };
            match writeln!(out, "{line}") {
                // Whoever read it has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                outcome => outcome?,
            }
        }
        unreadable += page.unreadable;
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    if unreadable > 0 {
        eprintln!("{unreadable} records are no events that this broker knows");
    }
    Ok(())
}

/// Time, event, and what else there is to tell. Whatever a device may have chosen is shown without control characters.
fn line(event: &TraceEvent<'_>) -> String {
    let time = i64::try_from(event.ts).ok().and_then(|ts| Timestamp::from_millisecond(ts).ok());
    let time = time.map_or_else(|| event.ts.to_string(), |time| format!("{time:.3}"));
    let (name, details) = words(&event.what);
    format!("{time}  {name:<10}  {details}")
}

fn words(what: &Traced<'_>) -> (&'static str, String) {
    match what {
        Traced::Connect {
            address,
            user,
            protocol,
            clean_start,
            session_present,
            session_expiry,
            keep_alive,
        } => {
            let session = match (clean_start, session_present) {
                (true, _) => "clean session",
                (false, true) => "its session was there",
                (false, false) => "no session was there",
            };
            let kept = match *session_expiry {
                0 => "not kept".to_owned(),
                u32::MAX => "kept for ever".to_owned(),
                seconds => format!("kept {seconds} s"),
            };
            let (user, protocol) = (user.escape_debug(), protocol.escape_debug());
            (
                "connect",
                format!(
                    "from {address} as {user}, MQTT {protocol}, {session}, {kept}, keep alive {keep_alive} s"
                ),
            )
        }
        Traced::Resumed { subscriptions, queued } => {
            ("resumed", format!("{subscriptions} subscriptions, {queued} messages waiting"))
        }
        Traced::Subscribed { filters, more } => {
            let mut filters: Vec<String> = filters.iter().map(filter_in_words).collect();
            if *more > 0 {
                filters.push(format!("and {more} more"));
            }
            ("subscribed", filters.join(", "))
        }
        Traced::Disconnect { code: Some(code), reason } => {
            ("disconnect", format!("{} (0x{code:02x})", reason.escape_debug()))
        }
        Traced::Disconnect { code: None, reason } => ("disconnect", reason.escape_debug().to_string()),
        Traced::Discarded { address, reason } => {
            ("discarded", format!("{}, from {address}", reason.escape_debug()))
        }
        Traced::Takeovered { address } => ("takeovered", format!("by a connection from {address}")),
    }
}

fn filter_in_words(filter: &TracedFilter<'_>) -> String {
    let name = filter.filter.escape_debug();
    match (&filter.refused, filter.qos) {
        (Some(why), _) => format!("{name} refused: {}", why.escape_debug()),
        (None, Some(qos)) => format!("{name} QoS {qos}"),
        (None, None) => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_span(day: Option<&str>, from: Option<&str>, to: Option<&str>, expected: Option<(&str, &str)>) {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let span = Span::new(
            day.map(|day| day.parse().unwrap()),
            from.map(time),
            to.map(time),
            time("2026-11-22T10:00:00Z"),
        );
        let expected = expected.map(|(from, to)| Span { from: time(from), to: time(to) });
        assert_eq!(span.ok(), expected);
    }

    #[test]
    fn a_day_is_one_of_utc_and_what_is_left_out_is_today_until_now() {
        check_span(Some("2026-11-21"), None, None, Some(("2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z")));
        check_span(None, None, None, Some(("2026-11-22T00:00:00Z", "2026-11-22T11:00:00Z")));
        check_span(
            None,
            Some("2026-11-20T01:00:00+01:00"),
            None,
            Some(("2026-11-20T00:00:00Z", "2026-11-22T11:00:00Z")),
        );
        check_span(
            None,
            None,
            Some("2026-11-20T05:00:00Z"),
            Some(("2026-11-20T00:00:00Z", "2026-11-20T05:00:00Z")),
        );
        check_span(None, Some("2026-11-20T05:00:00Z"), Some("2026-11-20T04:00:00Z"), None);
    }

    #[test]
    fn a_line_has_time_event_and_details_and_no_control_characters() {
        let check = |what, expected: &str| {
            let event = TraceEvent { client_id: "m".into(), ts: 1_764_000_000_007, id: "1-1".into(), what };
            assert_eq!(line(&event), expected);
        };
        let filters = vec![
            TracedFilter { filter: "a/电表".into(), qos: Some(1), refused: None },
            TracedFilter { filter: "b\u{1b}[2J".into(), qos: None, refused: Some("not authorized".into()) },
        ];
        check(
            Traced::Subscribed { filters, more: 3 },
            "2025-11-24T16:00:00.007Z  subscribed  a/电表 QoS 1, b\\u{1b}[2J refused: not authorized, and 3 more",
        );
        check(
            Traced::Disconnect { code: Some(0x8e), reason: "taken over".into() },
            "2025-11-24T16:00:00.007Z  disconnect  taken over (0x8e)",
        );
    }
}
