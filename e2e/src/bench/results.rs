//! Figures of all rounds, brought together: medians with their spread, ratios to the best peer, bars.

use serde::Serialize;

use super::brokers::Kind;
use super::scenes::{Bar, Metric, SCENES, Scene};
use crate::load::Report;

/// Everything measured; serialized, it is the benchmark's JSON file.
#[derive(Serialize)]
pub(super) struct Results {
    rounds: u32,
    seconds_a_run: f64,
    scenes: Vec<SceneResults>,
}

#[derive(Serialize)]
struct SceneResults {
    name: &'static str,
    on_kafka: bool,
    runs: Vec<Run>,
    bars: Vec<BarResult>,
    #[serde(skip)]
    wanted: &'static [Bar],
}

/// One run of one broker.
#[derive(Serialize)]
pub(super) struct Run {
    round: u32,
    broker: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl Run {
    pub(super) fn new(round: u32, broker: Kind, outcome: Result<Report, String>) -> Self {
        let (report, failure) = match outcome {
            Ok(report) => (Some(report), None),
            Err(failure) => (None, Some(failure)),
        };
        Self { round, broker, report, failure }
    }
}

/// A bar and where we stand; `figure` is a ratio for a bar set by the best peer. `bound` says which side is good.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct BarResult {
    metric: &'static str,
    unit: &'static str,
    figure: Option<f64>,
    best_peer: Option<Kind>,
    bound: &'static str,
    bar: f64,
    reached: bool,
}

/// Median and extremes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Results {
    pub(super) fn new(rounds: u32, seconds_a_run: f64) -> Self {
        Self { rounds, seconds_a_run, scenes: Vec::new() }
    }

    pub(super) fn add(&mut self, scene: &'static Scene, run: Run) {
        let at = self.scenes.iter().position(|s| s.name == scene.name).unwrap_or_else(|| {
            self.scenes.push(SceneResults {
                name: scene.name,
                on_kafka: scene.store.is_kafka(),
                runs: Vec::new(),
                bars: Vec::new(),
                wanted: scene.bars,
            });
            self.scenes.len() - 1
        });
        if let Some(results) = self.scenes.get_mut(at) {
            results.runs.push(run);
            results.bars = results.wanted.iter().filter_map(|bar| results.judge(bar)).collect();
        }
    }

    /// Every run was measured and kept MQTT's promises.
    pub(super) fn all_sound(&self) -> bool {
        self.scenes.iter().flat_map(|scene| &scene.runs).all(|run| run.failure.is_none())
    }

    /// The table, with what a reader needs to judge it.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "CPU time of the broker a message (median of {}, spread in brackets) · messages/s · p50 / p99 in ms; \
             {} s a run, 128-byte payloads, one core for the broker and one for the load. Ours runs with \
             authentication, grants and its log; the peers let everyone in and store nothing. × is ours against \
             the best peer; a scene without peers has a bar of its own.\n\n",
            match self.rounds {
                1 => "1 round".to_owned(),
                n => format!("{n} rounds"),
            },
            self.seconds_a_run,
        );
        if self.scenes.iter().any(|scene| scene.on_kafka) {
            text.push_str(
                "On Kafka: one node, which shares both cores with whatever runs there, so under a pace the load sleeps \
                 between messages; each run has new topics. `bare` is no broker but librdkafka alone (acks=all, \
                 idempotent, linger 0), in the place of ours: on the broker's core, with nobody on the load's. It sends \
                 the records that ours would store, made beforehand, as many at once as the publishers' windows allow; \
                 its CPU time is all of its process, its latency from a record's being due to its delivery report.\n\n",
            );
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| self.has(*kind)).collect();
        let names: Vec<String> = kinds.iter().map(Kind::to_string).collect();
        text.push_str(&format!("| scene | {} | ours against the bar |\n", names.join(" | ")));
        text.push_str(&format!("|---|{}---|\n", "---|".repeat(kinds.len())));
        for scene in &self.scenes {
            let cells: Vec<String> = kinds.iter().map(|kind| scene.cell(*kind)).collect();
            let bars: Vec<String> = scene.bars.iter().map(BarResult::cell).collect();
            text.push_str(&format!("| {} | {} | {} |\n", scene.name, cells.join(" | "), bars.join("; ")));
        }
        text
    }

    fn has(&self, kind: Kind) -> bool {
        self.scenes.iter().flat_map(|scene| &scene.runs).any(|run| run.broker == kind)
    }
}

impl SceneResults {
    /// What `kind` showed, or why it showed nothing.
    fn cell(&self, kind: Kind) -> String {
        let suits = SCENES.iter().any(|scene| scene.name == self.name && scene.suits(kind));
        let runs = || self.runs.iter().filter(|run| run.broker == kind);
        let failed: Vec<&String> = runs().filter_map(|run| run.failure.as_ref()).collect();
        let mut parts: Vec<String> = Vec::new();
        if let Some(memory) = self.spread(Metric::IdleKb, kind) {
            parts.push(memory.text(Metric::IdleKb));
            parts.extend(
                self.spread(Metric::AllMb, kind).map(|all| format!("{} in all", all.text(Metric::AllMb))),
            );
        } else if let Some(ready) = self.spread(Metric::Ready, kind) {
            parts.push(ready.text(Metric::Ready));
            for memory in [Metric::SessionKb, Metric::MadeKb] {
                parts.extend(self.spread(memory, kind).map(|spread| spread.text(memory)));
            }
        } else if let Some(cpu) = self.spread(Metric::Cpu, kind) {
            parts.push(cpu.text(Metric::Cpu));
            parts.extend(self.spread(Metric::PerSecond, kind).map(|s| thousands(s.median)));
            let latency = self.spread(Metric::P50, kind).zip(self.spread(Metric::P99, kind));
            parts
                .extend(latency.map(|(p50, p99)| format!("{} / {}", digits(p50.median), digits(p99.median))));
            parts.extend(
                self.spread(Metric::LogRecords, kind)
                    .map(|log| format!("{} to the log", log.text(Metric::LogRecords))),
            );
        }
        let reports = || runs().filter_map(|run| run.report.as_ref());
        if reports().any(|report| !report.kept_pace()) {
            parts.push("did not keep the pace".to_owned());
        }
        if reports().any(is_doubtful) {
            parts.push("latency doubtful: the load was late".to_owned());
        }
        match failed.first() {
            Some(why) => parts.push(format!("**{} failed**: {}", failed.len(), why.replace('|', "/"))),
            None if !suits && kind != Kind::Bare => parts.push("not compared".to_owned()),
            None => {}
        }
        if parts.is_empty() { "–".to_owned() } else { parts.join(" · ") }
    }

    fn judge(&self, bar: &Bar) -> Option<BarResult> {
        let Bar { of, limit } = bar;
        let ours = self.spread(*of, Kind::Ours)?.median;
        let (figure, best_peer) = if limit.needs_peer() {
            let peers = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Ours);
            let peers = peers.filter_map(|kind| Some((kind, self.spread(*of, kind)?.median)));
            let better = |(_, a): &(Kind, f64), (_, b): &(Kind, f64)| a.total_cmp(b);
            let best = if limit.is_least() { peers.max_by(better) } else { peers.min_by(better) };
            let (best, _) = best?;
            (self.ratio(*of, best), Some(best))
        } else {
            (Some(ours), None)
        };
        let good =
            |figure| if limit.is_least() { figure >= limit.figure() } else { figure <= limit.figure() };
        Some(BarResult {
            metric: of.name(),
            unit: if limit.needs_peer() { "×" } else { of.unit() },
            figure,
            best_peer,
            bound: if limit.is_least() { "≥" } else { "≤" },
            bar: limit.figure(),
            reached: figure.is_some_and(good),
        })
    }

    /// Ours against `peer` within each round, and the median of that: what slowed a round slowed both.
    fn ratio(&self, metric: Metric, peer: Kind) -> Option<f64> {
        let find = |round, kind| {
            let mut runs = self.runs.iter().filter(|run| run.round == round && run.broker == kind);
            runs.find_map(|run| metric.of(run.report.as_ref()?))
        };
        let rounds = self.runs.iter().filter(|run| run.broker == peer).map(|run| run.round);
        let ratios = rounds.filter_map(|round| {
            let peers = find(round, peer).filter(|figure| *figure > 0.0)?;
            Some(find(round, Kind::Ours)? / peers)
        });
        Spread::of(ratios.collect()).map(|spread| spread.median)
    }

    fn spread(&self, metric: Metric, kind: Kind) -> Option<Spread> {
        let runs = self.runs.iter().filter(|run| run.broker == kind);
        Spread::of(runs.filter_map(|run| metric.of(run.report.as_ref()?)).collect())
    }
}

impl BarResult {
    fn cell(&self) -> String {
        let Some(figure) = self.figure else { return format!("{}: no ratio", self.metric) };
        let mark = if self.reached { "✓" } else { "✗" };
        let bound = self.bound;
        match (self.best_peer, self.unit) {
            (Some(peer), _) => {
                format!("{} ×{figure:.2} of {peer} (bar {bound} {:.2}) {mark}", self.metric, self.bar)
            }
            (None, "/s") => format!("{}/s (bar {bound} {}) {mark}", thousands(figure), thousands(self.bar)),
            (None, unit) => {
                format!("{} {} {unit} (bar {bound} {}) {mark}", self.metric, digits(figure), self.bar)
            }
        }
    }
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let (low, high) = (figures.get((figures.len() - 1) / 2)?, figures.get(figures.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, least, most })
    }

    fn text(self, metric: Metric) -> String {
        let unit = metric.unit();
        format!("{} {unit} ({}–{})", digits(self.median), digits(self.least), digits(self.most))
    }
}

/// Whether much of the worst latencies is the generator's own, as happens when others use its core.
fn is_doubtful(report: &Report) -> bool {
    report
        .latency
        .zip(report.generator_late_p99_us)
        .is_some_and(|(latency, late)| late > latency.p99_us / 2.0)
}

/// One run in a line, for who watches.
pub(super) fn in_brief(outcome: &Result<Report, String>) -> String {
    match outcome {
        Err(why) => format!("failed: {why}"),
        Ok(report) => {
            let figures = [
                Metric::Cpu,
                Metric::PerSecond,
                Metric::P50,
                Metric::P99,
                Metric::IdleKb,
                Metric::LogRecords,
                Metric::Ready,
                Metric::SessionKb,
                Metric::MadeKb,
            ];
            let said = figures.iter().filter_map(|metric| {
                Some(format!("{} {} {}", metric.name(), digits(metric.of(report)?), metric.unit()))
            });
            said.collect::<Vec<_>>().join(" · ")
        }
    }
}

/// Three digits or so.
fn digits(figure: f64) -> String {
    match figure.abs() {
        f if f >= 100.0 => format!("{figure:.0}"),
        f if f >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

fn thousands(figure: f64) -> String {
    if figure >= 10_000.0 { format!("{:.0} k", figure / 1000.0) } else { format!("{figure:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Latency;

    fn report(cpu: f64) -> Report {
        Report {
            scene: "p2p".into(),
            qos: 0,
            connections: 100,
            payload: 128,
            seconds: 1.0,
            messages: 30_000,
            per_second: 30_000.0,
            broker_cpu_us_per_message: Some(cpu),
            ..Report::default()
        }
    }

    /// CPU of ours, mosquitto and rumqttd, round by round, in the first scene.
    fn results(rounds: &[[f64; 3]]) -> Results {
        let mut results = Results::new(rounds.len() as u32, 1.0);
        for (round, figures) in (1..).zip(rounds) {
            for (kind, cpu) in [Kind::Ours, Kind::Mosquitto, Kind::Rumqttd].into_iter().zip(figures) {
                results.add(&SCENES[0], Run::new(round, kind, Ok(report(*cpu))));
            }
        }
        results
    }

    #[test]
    fn the_ratio_is_taken_round_by_round_against_the_best_peer() {
        let check = |rounds: &[[f64; 3]], ratio: f64, best: Kind, reached: bool| {
            let bar = results(rounds).scenes[0].bars[0].clone();
            assert_eq!(
                (bar.figure, bar.best_peer, bar.reached),
                (Some(ratio), Some(best), reached),
                "{rounds:?}"
            );
        };
        check(&[[4.0, 8.0, 16.0]], 0.5, Kind::Mosquitto, true);
        check(&[[4.0, 8.0, 2.0]], 2.0, Kind::Rumqttd, false);
        // The second round ran on a machine ten times slower: the ratio does not show it.
        check(&[[4.0, 8.0, 16.0], [40.0, 80.0, 160.0], [4.0, 8.0, 16.0]], 0.5, Kind::Mosquitto, true);
    }

    #[test]
    fn a_bar_that_is_a_least_share_of_a_peers_rate_is_reached_above_it() {
        let scene = SCENES.iter().find(|scene| scene.name.contains("stored on Kafka")).unwrap();
        let check = |ours: f64, bare: f64, cell: &str| {
            let mut results = Results::new(1, 1.0);
            for (kind, per_second) in [(Kind::Ours, ours), (Kind::Bare, bare)] {
                results.add(scene, Run::new(1, kind, Ok(Report { per_second, ..report(4.0) })));
            }
            let table = results.markdown();
            assert!(table.contains(cell), "{cell}: {table}");
            assert!(table.contains("| scene | ours | bare |"), "{table}");
            assert!(table.contains("On Kafka: one node"), "{table}");
        };
        check(80_000.0, 100_000.0, "rate ×0.80 of bare (bar ≥ 0.70) ✓");
        check(60_000.0, 100_000.0, "rate ×0.60 of bare (bar ≥ 0.70) ✗");
    }

    #[test]
    fn a_failed_run_stands_in_the_table_with_its_reason() {
        let mut results = results(&[[4.0, 8.0, 16.0]]);
        assert!(results.all_sound());
        results.add(&SCENES[0], Run::new(2, Kind::Rumqttd, Err("3 messages lost at QoS 1".into())));
        assert!(!results.all_sound());
        let table = results.markdown();
        assert!(table.contains("**1 failed**: 3 messages lost at QoS 1"), "{table}");
        assert!(table.contains("| p2p QoS 0, 50 pairs, 30,000/s | 4.00 µs (4.00–4.00) · 30 k |"), "{table}");
        assert!(table.contains("CPU ×0.50 of mosquitto (bar ≤ 0.80) ✓"), "{table}");
    }

    #[test]
    fn latencies_that_are_mostly_the_generators_own_are_marked() {
        let check = |late: Option<f64>, p99_us: f64, marked: bool| {
            let latency = Some(Latency { p50_us: 50.0, p99_us, max_us: 1000.0 });
            let run = Report { latency, generator_late_p99_us: late, ..report(4.0) };
            let mut results = Results::new(1, 1.0);
            results.add(&SCENES[0], Run::new(1, Kind::Ours, Ok(run)));
            assert_eq!(results.markdown().contains("latency doubtful"), marked, "{late:?} of {p99_us}");
        };
        check(None, 100.0, false);
        check(Some(10.0), 100.0, false);
        check(Some(60.0), 100.0, true);
    }

    #[test]
    fn a_median_is_the_middle_or_between_the_two_middle_ones() {
        let check = |figures: &[f64], want: Option<f64>| {
            assert_eq!(Spread::of(figures.to_vec()).map(|spread| spread.median), want, "{figures:?}");
        };
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 9.0], Some(3.0));
    }
}
