//! The device trace: what happened to one device, told by the command line and the admin endpoint.

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::trace::{TraceEvent, TracePage, Traced};
use mqtt_e2e::{Broker, Dialogue, Login, Manifests, PATIENCE, Packet, Store, Version, wait_until, wire};

mqtt_e2e::on_every_store! {
    the_trace_of_a_device_tells_its_story_and_nobody_elses,
    the_trace_is_asked_for_by_time_and_outlives_the_broker,
}

fn manifests() -> Manifests {
    Manifests::new().user("fleet", "fleet-secret").grant(
        "fleet",
        "fleet",
        &[("sub", "commands/#"), ("pub", "#")],
    )
}

fn device(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

/// What `mqtt-broker trace` prints of all that is kept.
fn told(broker: &Broker, id: &str, flags: &[&str]) -> Result<String> {
    let arguments = [&["trace", id, "--from", "2020-01-01T00:00:00Z"], flags].concat();
    let output = broker.command(&arguments, "")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// The events, once there are so many.
fn events(broker: &Broker, id: &str, count: usize) -> Result<Vec<TraceEvent<'static>>> {
    wait_until(&format!("{count} events of {id}"), PATIENCE, || {
        let text = told(broker, id, &["--json"])?;
        let events: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str(line).context(line.to_owned()))
            .collect::<Result<_>>()?;
        ensure!(events.len() >= count, "so far:\n{text}");
        Ok(Some(events))
    })
}

fn name(event: &TraceEvent<'_>) -> &'static str {
    match event.what {
        Traced::Connect { .. } => "connect",
        Traced::Resumed { .. } => "resumed",
        Traced::Subscribed { .. } => "subscribed",
        Traced::Disconnect { .. } => "disconnect",
        Traced::Discarded { .. } => "discarded",
        Traced::Takeovered { .. } => "takeovered",
    }
}

fn goodbye(mut dialogue: Dialogue) -> Result<()> {
    dialogue.send(&wire::disconnect())?;
    ensure!(dialogue.read()? == Packet::Closed);
    Ok(())
}

/// Comes, subscribes, is taken over, is lost, comes back, says goodbye, and begins anew. Returns how many events that is.
fn live(broker: &Broker, version: Version, id: &str) -> Result<usize> {
    let login = device(version, id).persistent();
    let (mut first, _) = Dialogue::connect(broker.mqtt, &login)?;
    first.send(&wire::subscribe(version, 1, &[("commands/x", 1), ("secrets/x", 2)]))?;
    ensure!(matches!(first.read()?, Packet::SubAck { .. }));
    let (second, session_present) = Dialogue::connect(broker.mqtt, &login)?;
    ensure!(session_present, "{id} has lost its session");
    drop(first);
    drop(second);
    // So that the next does not take the lost one over.
    events(broker, id, 7)?;
    let (third, _) = Dialogue::connect(broker.mqtt, &login)?;
    goodbye(third)?;
    events(broker, id, 10)?;
    let (last, _) = Dialogue::connect(broker.mqtt, &device(version, id))?;
    goodbye(last)?;
    Ok(13)
}

fn the_trace_of_a_device_tells_its_story_and_nobody_elses(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for (version, protocol) in [(Version::V3, "3.1.1"), (Version::V5, "5.0")] {
        // In one partition or in two: nobody else's events are told.
        let others: Vec<String> = (0..4).map(|number| format!("other-{number}-{version:?}")).collect();
        for other in &others {
            goodbye(Dialogue::connect(broker.mqtt, &device(version, other))?.0)?;
        }
        let id = &format!("site/{version:?}?#%电表 7");
        let count = live(&broker, version, id)?;
        let events = events(&broker, id, count)?;
        let names: Vec<_> = events.iter().map(name).collect();
        let expected = [
            "connect",
            "subscribed",
            "disconnect",
            "takeovered",
            "connect",
            "resumed",
            "disconnect",
            "connect",
            "resumed",
            "disconnect",
            "discarded",
            "connect",
            "disconnect",
        ];
        ensure!(names == expected, "{names:?}");
        ensure!(events.iter().all(|event| event.client_id == *id && event.ts > 1_600_000_000_000));
        ensure!(events.is_sorted_by_key(|event| event.ts), "not in order: {events:#?}");
        check_details(&events, protocol)?;

        let text = told(&broker, id, &[])?;
        ensure!(text.lines().count() == count, "not a line an event:\n{text}");
        for part in ["connect     from 127.0.0.1:", " as fleet, ", "commands/x QoS 1", "secrets/x refused: "]
        {
            ensure!(text.contains(part), "no {part:?} in:\n{text}");
        }
        ensure!(!text.contains("fleet-secret") && !text.contains("other-"), "told too much:\n{text}");
        for other in &others {
            let events = self::events(&broker, other, 2)?;
            let names: Vec<_> = events.iter().map(name).collect();
            ensure!(names == ["connect", "disconnect"], "{other}: {names:?}");
        }
    }
    ensure!(told(&broker, "nobody", &[])?.is_empty(), "somebody who never came has a trace");
    Ok(())
}

fn check_details(events: &[TraceEvent<'_>], expected_protocol: &str) -> Result<()> {
    let connects: Vec<_> = events.iter().filter(|event| name(event) == "connect").collect();
    for (event, (clean, present)) in
        connects.iter().zip([(false, false), (false, true), (false, true), (true, false)])
    {
        let Traced::Connect { user, protocol, clean_start, session_present, keep_alive, .. } = &event.what
        else {
            continue;
        };
        ensure!(user == "fleet" && protocol == expected_protocol && *keep_alive == 60, "{event:?}");
        ensure!((*clean_start, *session_present) == (clean, present), "{event:?}");
    }
    let codes: Vec<Option<u8>> = events
        .iter()
        .filter_map(|event| match &event.what {
            Traced::Disconnect { code, .. } => Some(*code),
            _ => None,
        })
        .collect();
    ensure!(codes == [Some(0x8E), None, Some(0), Some(0)], "the disconnects have {codes:?}");
    let resumed = events.iter().find(|event| name(event) == "resumed").map(|event| &event.what);
    ensure!(resumed == Some(&Traced::Resumed { subscriptions: 1, queued: 0 }), "{resumed:?}");
    Ok(())
}

fn the_trace_is_asked_for_by_time_and_outlives_the_broker(store: &Store) -> Result<()> {
    let mut broker = Broker::start_on(store, &manifests())?;
    goodbye(Dialogue::connect(broker.mqtt, &device(Version::V5, "meter-1"))?.0)?;
    let before = events(&broker, "meter-1", 2)?;
    broker.kill9()?;
    broker.restart()?;
    goodbye(Dialogue::connect(broker.mqtt, &device(Version::V5, "meter-1"))?.0)?;
    let all = events(&broker, "meter-1", 4)?;
    ensure!(all.get(..2) == Some(&before[..]), "other events than before the restart: {all:#?}");
    let [_, left, came, _] = all.as_slice() else { anyhow::bail!("{all:#?}") };
    ensure!(left.ts < came.ts, "the restart took no time");
    let asked = |query: String| -> Result<Vec<TraceEvent<'static>>> {
        let (status, body) = broker.get(&format!("/v1/trace/meter-1?{query}"))?;
        ensure!(status == 200, "{query}: {status} {body}");
        let page: TracePage = serde_json::from_str(&body)?;
        ensure!(page.next.is_none() && page.unreadable == 0, "{query}: {body}");
        Ok(page.events)
    };
    let (first, second) = all.split_at(2);
    ensure!(asked(format!("from={}", came.ts))? == second);
    ensure!(asked(format!("to={}", came.ts))? == first);
    ensure!(asked(format!("from={}&to={}", left.ts + 1, came.ts))?.is_empty());
    ensure!(asked(format!("from={}", came.ts + 3_600_000))?.is_empty());
    ensure!(asked(String::new())? == all);
    let (status, body) = broker.get("/v1/trace/meter-1?from=yesterday")?;
    ensure!(status == 400, "{status} {body}");
    let output = broker.command(&["trace", "meter-1", "--day", "2020-02-29"], "")?;
    ensure!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    Ok(())
}
