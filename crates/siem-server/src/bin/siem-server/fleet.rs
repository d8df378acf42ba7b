//! `siem-server fleet`.

use std::{path::PathBuf, time::SystemTime};

use clap::Args;
use serde::Serialize;
use siem_protocol::agent_event::UpdateState;
use siem_server::{
    Clock as _, SystemClock,
    fleet::{FleetProblem, FleetRow, FleetTotals, StatsQuery, UpdateFigures},
    store::read_stats,
};

use crate::{
    Data,
    config::{ConfigSource, Problems},
    failure::Failure,
    fleet_http::{self, Endpoint},
    output::{self, Narrowing},
};

/// Maximum length of a name in the table, in characters.
const LONGEST_NAME: usize = 36;

/// Steps for a narrow terminal: who it is, since when, and the problems are left.
const NARROWING: [Narrowing; 13] = [
    Narrowing::Drop("UPDATE"),
    Narrowing::Drop("REVISION"),
    Narrowing::Drop("VERSION"),
    Narrowing::Drop("STATE"),
    Narrowing::Shorten("MACHINE", 12),
    Narrowing::Shorten("HOST", 12),
    Narrowing::Shorten("USER", 12),
    Narrowing::Drop("DEVICE"),
    Narrowing::Drop("ENTRIES"),
    Narrowing::Shorten("PROBLEMS", 16),
    Narrowing::Drop("WAITING"),
    Narrowing::Drop("HOST"),
    Narrowing::Shorten("USER", 6),
];

/// List machines, users and devices: who is quiet, who is behind, who has gaps
///
/// Reads the data directory, also while the receiver runs, or asks a running receiver with `--url`.
#[derive(Args)]
pub(crate) struct Fleet {
    /// Configuration file of the receiver, for its data directory and `[fleet]` [default:
    /// /etc/siem-server/config.toml if it exists]
    #[arg(long, env = "SIEM_SERVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory of the receiver, in place of `store.directory`
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// URL of a running receiver to ask, such as `http://127.0.0.1:8080`
    #[arg(long, conflicts_with = "data")]
    url: Option<Endpoint>,
    /// File with a token of scope `read` in its first line [default: CLAUDE_SIEM_TOKEN]
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// Only rows with this problem: `quiet`, `behind`, `gap`, or another one of docs/receiver.md
    #[arg(long)]
    problem: Option<FleetProblem>,
    /// Only rows of the machine with this id
    #[arg(long, value_name = "ID")]
    machine: Option<String>,
    /// Only rows of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Rows, with the totals of all rows and of the requested ones.
#[derive(Serialize)]
struct Report {
    totals: FleetTotals,
    matching: FleetTotals,
    rows: Vec<FleetRow>,
}

impl Fleet {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let now = SystemClock.now();
        let report = match &self.url {
            Some(url) => self.ask(url)?,
            None => self.read(now)?,
        };
        if self.json {
            return output::json(&report);
        }
        let rows: Vec<_> = report.rows.iter().map(|row| cells(row, now)).collect();
        let head = [
            "MACHINE", "USER", "HOST", "DEVICE", "STATE", "SEEN", "ENTRIES", "WAITING", "REVISION",
            "VERSION", "UPDATE", "PROBLEMS",
        ];
        output::table_in_terminal(head, &rows, &NARROWING)?;
        output::line(&summary(&report))
    }

    fn query(&self, now: SystemTime) -> StatsQuery {
        let (machine, user) = (self.machine.clone(), self.user.clone());
        StatsQuery { machine, user, problem: self.problem, ..StatsQuery::all(now) }
    }

    fn read(&self, now: SystemTime) -> Result<Report, Failure> {
        let source = ConfigSource::of(self.config.clone(), self.data.clone());
        let settings = source.load().map_err(|found| Failure::failed(Problems(found)))?.settings;
        let data = Data { directory: settings.store.directory };
        let registry = data.open()?;
        let query = StatsQuery { thresholds: settings.fleet.thresholds(), ..self.query(now) };
        let stats = read_stats(&data.directory, &query, Some(&registry));
        let stats = stats.map_err(Failure::failed)?;
        Ok(Report { totals: stats.totals, matching: stats.matching, rows: stats.rows })
    }

    /// Reads all pages. The totals are those of the last one.
    fn ask(&self, url: &Endpoint) -> Result<Report, Failure> {
        let token = fleet_http::token(self.token_file.as_deref())?;
        let conditions = [
            ("machine", self.machine.as_deref()),
            ("user", self.user.as_deref()),
            ("problem", self.problem.map(FleetProblem::as_str)),
        ];
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            let mut page = url.stats(&token, &conditions, cursor.as_deref())?;
            rows.append(&mut page.rows);
            let (totals, matching) = (page.totals, page.matching);
            match page.next {
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => return Ok(Report { totals, matching, rows }),
            }
        }
    }
}

fn cells(row: &FleetRow, now: SystemTime) -> [String; 12] {
    let waiting = row
        .heartbeat
        .as_ref()
        .map(|beat| output::size(beat.backlog_bytes.saturating_add(beat.unread_bytes)));
    let revision = row.heartbeat.as_ref().and_then(|beat| beat.revision.clone());
    let problems: Vec<_> = row.problems.iter().map(|problem| problem.as_str()).collect();
    let problems = if row.replaced { [vec!["(replaced)"], problems].concat() } else { problems };
    [
        output::shortened(&row.machine, LONGEST_NAME),
        output::shortened(&row.user, LONGEST_NAME),
        output::shortened(&row.host, LONGEST_NAME),
        row.device.clone().unwrap_or_default(),
        row.device_state.map(|state| state.to_string()).unwrap_or_default(),
        age(&row.last_seen, now),
        row.entries.to_string(),
        waiting.unwrap_or_default(),
        output::shortened(&revision.unwrap_or_default(), LONGEST_NAME),
        output::shortened(&row.agent_version, LONGEST_NAME),
        row.heartbeat
            .as_ref()
            .and_then(|beat| beat.update.as_ref())
            .map(update)
            .unwrap_or_default(),
        problems.join(" "),
    ]
}

/// Formats the state of an update: `rolled_back 0.3.0`.
fn update(update: &UpdateFigures) -> String {
    let state = update.state.map(UpdateState::as_str).unwrap_or_default();
    let version = update.version.as_deref().unwrap_or_default();
    output::shortened(format!("{state} {version}").trim(), LONGEST_NAME)
}

/// Formats how long ago a time was, by its largest unit.
fn age(time: &str, now: SystemTime) -> String {
    let Ok(time) = humantime::parse_rfc3339(time) else { return String::new() };
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn summary(report: &Report) -> String {
    let Report { totals, matching, .. } = report;
    let counted = |count: u64, one: &str, many: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    };
    let rows = match matching.rows == totals.rows {
        true => counted(totals.rows, "row", "rows"),
        false => format!("{} of {}", matching.rows, counted(totals.rows, "row", "rows")),
    };
    let machines = counted(matching.machines, "machine", "machines");
    let mut text = format!("{rows}, {machines}, {} without problems", matching.healthy);
    for (problem, count) in &matching.problems {
        text.push_str(&format!(", {count} {problem}"));
    }
    let versions: Vec<_> = matching
        .versions
        .iter()
        .map(|(version, count)| format!("{count} with {version}"))
        .collect();
    if versions.len() > 1 {
        text.push_str(&format!("; {}", output::plain(&versions.join(", "))));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let ages = [0, 59, 60, 3599, 3600, 172_799, 172_800].map(|seconds| {
            age("1970-01-01T00:00:00.000Z", UNIX_EPOCH + Duration::from_secs(seconds))
        });
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
        assert_eq!(age("2999-01-01T00:00:00.000Z", UNIX_EPOCH), "0s");
        assert_eq!(age("", UNIX_EPOCH), "");
    }

    #[test]
    fn summary_counts_rows_and_problems() {
        let totals = FleetTotals { rows: 3, machines: 2, ..FleetTotals::default() };
        let problems = [(FleetProblem::Gap, 1)].into();
        let matching = FleetTotals { rows: 1, machines: 1, problems, ..FleetTotals::default() };
        let report = Report { totals, matching, rows: Vec::new() };
        assert_eq!(summary(&report), "1 of 3 rows, 1 machine, 0 without problems, 1 gap");

        let versions = [("0.2.0".to_owned(), 2), ("0.3.0".to_owned(), 1)].into();
        let matching = FleetTotals { rows: 3, machines: 2, versions, ..FleetTotals::default() };
        let report = Report { matching, ..report };
        let expected = "3 rows, 2 machines, 0 without problems; 2 with 0.2.0, 1 with 0.3.0";
        assert_eq!(summary(&report), expected);
    }
}
