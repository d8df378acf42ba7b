//! Targets, and the measurements compared with them.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    Measured, hooks, receiver,
    runner::{ACTIVITY, AGENT, PLAIN, Runs},
};
use crate::dist::linux;

/// A line of the table.
#[derive(Serialize)]
pub(super) struct Row {
    measure: &'static str,
    target: Target,
    /// Value in the unit of the measure; `None` if it was not measured.
    measured: Option<f64>,
    /// Value of syslog-ng.
    peer: Option<f64>,
    outcome: Outcome,
}

/// Target of a measure.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Multiple of the value of syslog-ng in the same alternation.
    TimesSyslogNg(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Met,
    Missed,
    NotMeasured,
}

impl Row {
    fn new(
        measure: &'static str,
        target: Target,
        measured: Option<f64>,
        peer: Option<f64>,
    ) -> Self {
        let outcome = match (target, measured) {
            (Target::AtMost(most), Some(value)) => Some(value <= most),
            (Target::AtLeast(least), Some(value)) => Some(value >= least),
            (Target::TimesSyslogNg(most), Some(value)) => peer.map(|peer| value <= most * peer),
            (_, None) => None,
        };
        let outcome = match outcome {
            Some(true) => Outcome::Met,
            Some(false) => Outcome::Missed,
            None => Outcome::NotMeasured,
        };
        Self { measure, target, measured, peer, outcome }
    }
}

/// Tick of the system's clock for CPU time, in which idle time is counted.
const TICKS_PER_SECOND: f64 = 100.0;
/// Time for which the runner observes an idle agent.
const IDLE_SECONDS: f64 = 30.0;

/// All measures, in order.
pub(super) fn rows(measured: &Measured) -> Vec<Row> {
    use Target::{AtLeast, AtMost, TimesSyslogNg};

    let Measured { medium, start, small, large, many10k, many10k_live, many, .. } = measured;
    let [of_20000, of_256] = many;
    let ratio = |measure, most, runs: &Runs, agent, peer, figure| {
        let (value, peer) = (runs.median(agent, figure), runs.median(peer, figure));
        Row::new(measure, TimesSyslogNg(most), value, peer)
    };
    let absolute = |measure, most, value| Row::new(measure, AtMost(most), value, None);
    let syslog_ng = "syslog-ng";
    let most = |runs: &Runs, figure| {
        [AGENT, PLAIN].into_iter().filter_map(|peer| runs.most(peer, figure)).reduce(f64::max)
    };
    let (rss_medium, rss_large) = (most(medium, "peak_rss_mb"), most(large, "peak_rss_mb"));
    let idle = |runs: &Runs| runs.median(AGENT, "idle_cpu_pct");
    let ticks = |percent: f64| percent / 100.0 * IDLE_SECONDS * TICKS_PER_SECOND;
    let cpu = |peer| medium.median(peer, "cpu_s");
    let activity = cpu(ACTIVITY).zip(cpu(AGENT)).map(|(with, without)| with / without);
    let written = medium.median(AGENT, "write_mb").zip(throughput_base(medium));
    let rate = |mode| measured.receiver.median(mode, "megabytes_per_second");
    vec![
        ratio("catch-up, medium, none: wall s", 0.6, medium, PLAIN, syslog_ng, "wall_s"),
        ratio("catch-up, medium, none: CPU s/GB", 0.8, medium, PLAIN, syslog_ng, "cpu_s_gb"),
        ratio("catch-up, medium, zstd: wall s", 1.0, medium, AGENT, syslog_ng, "wall_s"),
        ratio("catch-up, medium, zstd: CPU s/GB", 1.2, medium, AGENT, syslog_ng, "cpu_s_gb"),
        absolute("catch-up, medium, `activity`: times CPU without", 1.25, activity),
        ratio("catch-up, medium, zstd: MB on the wire", 0.4, medium, AGENT, syslog_ng, "wire_mb"),
        absolute("peak RSS, medium: MB", 64.0, rss_medium),
        absolute("peak RSS, large: MB", 64.0, rss_large),
        absolute(
            "peak RSS, large: times medium",
            1.1,
            rss_large.zip(rss_medium).map(|(large, medium)| large / medium),
        ),
        absolute("idle, small: CPU ticks in 30 s", 1.0, idle(small).map(ticks)),
        absolute("idle, small: RSS MB", 16.0, small.median(AGENT, "idle_rss_mb")),
        ratio("10,000 files: catch-up CPU s", 0.3, many10k, AGENT, "syslog-ng-poll", "cpu_s"),
        absolute("10,000 files: idle CPU %", 0.1, idle(many10k_live)),
        absolute("10,000 files: idle RSS MB", 32.0, many10k_live.median(AGENT, "idle_rss_mb")),
        absolute("50,000 files, 20,000 open: lost", 0.0, of_20000.most(AGENT, "lost")),
        absolute("50,000 files, 20,000 open: idle CPU %", 0.3, idle(of_20000)),
        absolute("50,000 files, 256 open: lost", 0.0, of_256.most(AGENT, "lost")),
        absolute("50,000 files, 256 open: idle CPU %", 0.3, idle(of_256)),
        absolute("live, small: p50 ms", 10.0, small.median(AGENT, "live_p50_ms")),
        absolute("live, small: p99 ms", 30.0, small.median(AGENT, "live_p99_ms")),
        absolute("live, small: CPU ms/record", 1.0, small.median(AGENT, "live_cpu_ms_rec")),
        absolute("live, 10,000 files: p50 ms", 10.0, many10k_live.median(AGENT, "live_p50_ms")),
        absolute("live, 10,000 files: p99 ms", 30.0, many10k_live.median(AGENT, "live_p99_ms")),
        absolute(
            "live, 10,000 files: CPU ms/record",
            1.0,
            many10k_live.median(AGENT, "live_cpu_ms_rec"),
        ),
        absolute(
            "restart, 50,000 known files: s to a new record",
            1.0,
            measured.restart.as_ref().and_then(super::restart::Restart::most),
        ),
        absolute(
            "start to first record: ms",
            50.0,
            start.median(AGENT, "first_s").map(|s| s * 1e3),
        ),
        absolute(
            "binary, static, stripped: MiB",
            (linux::MAX_BYTES >> 20) as f64,
            measured.binary.map(|it| it as f64 / f64::from(1 << 20)),
        ),
        absolute("disk written per byte read, zstd", 0.8, written.map(|(disk, read)| disk / read)),
        Row::new("receiver, one core, none: MB/s", AtLeast(150.0), rate(receiver::PLAIN), None),
        Row::new("receiver, one core, zstd: MB/s", AtLeast(150.0), rate(receiver::ZSTD), None),
        absolute(
            "receiver, 2,000 agents: p99 ms",
            100.0,
            measured.receiver.median(receiver::FLEET, "p99_ms"),
        ),
        absolute("hook: p99 above `true`, ms", 3.0, measured.hooks.median(hooks::SMALL, "p99_ms")),
        absolute(
            "hook, 20 MB account file: p99 above `true`, ms",
            3.0,
            measured.hooks.median(hooks::LARGE, "p99_ms"),
        ),
        absolute("lost, repeated or broken, all runs", 0.0, Some(faults(measured))),
    ]
}

/// Megabytes of the tree, as the runner divides.
fn throughput_base(runs: &Runs) -> Option<f64> {
    Some(runs.median(AGENT, "cpu_s")? / runs.median(AGENT, "cpu_s_gb")? * 1e3)
}

/// Reports whether no record was lost, repeated or damaged.
pub(super) fn is_whole(measured: &Measured) -> bool {
    faults(measured) == 0.0
}

fn faults(measured: &Measured) -> f64 {
    let Measured { medium, start, small, large, many10k, many10k_live, many, .. } = measured;
    let [of_20000, of_256] = many;
    let runs = [medium, start, small, large, many10k, many10k_live, of_20000, of_256];
    let runs = runs.into_iter().chain([&measured.many100]).flat_map(|runs| &runs.0);
    let agent_runs = runs.filter(|run| {
        run.get("peer").is_some_and(|peer| [AGENT, ACTIVITY, PLAIN].iter().any(|ours| peer == ours))
    });
    let figure = |run: &serde_json::Map<_, serde_json::Value>, name: &str| {
        run.get(name).and_then(serde_json::Value::as_f64).unwrap_or_default()
    };
    let of_runs: f64 = agent_runs
        .map(|run| {
            let live = figure(run, "live_sent") - figure(run, "live_got");
            let of = ["lost", "dups", "extra", "broken"].map(|name| figure(run, name));
            live + of.iter().sum::<f64>()
        })
        .sum();
    let restart = measured.restart.as_ref();
    of_runs + restart.map_or(0.0, |restart| restart.lost + restart.dups + restart.extra)
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut table = "\
| measure | target | measured | syslog-ng | ratio | |
| --- | ---: | ---: | ---: | ---: | --- |
"
    .to_owned();
    for row in rows {
        let target = match row.target {
            Target::AtMost(most) => format!("≤ {most}"),
            Target::AtLeast(least) => format!("≥ {least}"),
            Target::TimesSyslogNg(most) => format!("≤ {most} ×"),
        };
        let ratio = row.measured.zip(row.peer).map(|(measured, peer)| measured / peer);
        let outcome = match row.outcome {
            Outcome::Met => "met",
            Outcome::Missed => "MISSED",
            Outcome::NotMeasured => "not measured",
        };
        let (measure, measured, peer) = (row.measure, number(row.measured), number(row.peer));
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        writeln!(table, "| {measure} | {target} | {measured} | {peer} | {ratio} | {outcome} |")
            .expect("a string takes every write");
    }
    table
}

/// Formats three significant digits.
fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value == value.trunc() => format!("{value}"),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(text: &str) -> Runs {
        Runs(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn ratio_needs_both_sides() {
        let outcome =
            |measured, peer| Row::new("", Target::TimesSyslogNg(0.6), measured, peer).outcome;
        assert_eq!(outcome(Some(3.0), Some(5.0)), Outcome::Met);
        assert_eq!(outcome(Some(3.1), Some(5.0)), Outcome::Missed);
        assert_eq!(outcome(Some(3.0), None), Outcome::NotMeasured);
        assert_eq!(outcome(None, Some(5.0)), Outcome::NotMeasured);
    }

    /// A live record that did not arrive is lost too, although the runner counts it elsewhere;
    /// losses of a peer do not count.
    #[test]
    fn losses_of_any_run_are_counted() {
        let small = runs(
            r#"[{"peer":"ai-agent","lost":0,"dups":2,"live_sent":100,"live_got":99},
                {"peer":"syslog-ng","lost":7}]"#,
        );
        let measured = Measured { small, ..Measured::default() };
        assert_eq!(faults(&measured), 3.0);
        assert!(!is_whole(&measured));
    }

    #[test]
    fn table_has_a_line_for_each_measure() {
        let medium = runs(
            r#"[{"peer":"ai-agent-plain","wall_s":3.1},{"peer":"syslog-ng","wall_s":4.8},
                {"peer":"ai-agent","write_mb":250,"cpu_s":2.5,"cpu_s_gb":5.0}]"#,
        );
        let table = table(&rows(&Measured { medium, ..Measured::default() }));
        assert!(
            table.contains(
                "| catch-up, medium, none: wall s | ≤ 0.6 × | 3.10 | 4.80 | 0.65 | MISSED |"
            ),
            "{table}"
        );
        assert!(table.contains("| disk written per byte read, zstd | ≤ 0.8 | 0.50 |"), "{table}");
        assert!(
            table.contains("| idle, small: RSS MB | ≤ 16 |  |  |  | not measured |"),
            "{table}"
        );
    }
}
