//! `ai-agent audit tail`: shows docker commands from the audit log, and follows it.

mod parents;
mod show;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, Write as _},
    mem,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    time::Duration,
};

use ai_agent_auditd::{
    self as audit, MAX_LINE_BYTES, call_filter::CallFilter, facts::Facts, follower::AuditFollower,
};
use clap::Args;

use crate::{
    cli::failure::Failure,
    config::{self, ConfigInputs},
    event::Event,
    platform::{Clock as _, Environment, Paths, SystemClock, Timestamp, secure_file},
    stages::{
        LogOptions, follow_log,
        source::{Chunk, GenerationId, Intake, Piece, Progress, Waker},
    },
    tail::FileKey,
};
use parents::Parents;
use show::Form;

/// File in the state directory with the position where the command stopped.
const CHECKPOINT: &str = "audit-tail.json";
/// Interval at which the position is stored while nothing is shown.
const STORE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which the log is read, with or without notifications.
const READ_INTERVAL: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Options of `audit tail`.
#[derive(Args)]
pub(super) struct Options {
    /// Show every docker command instead of stop, rm, kill, restart and pause only
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Name of the containers, as typed in the command; `*` matches any part. The log does not resolve
    /// ids. May be given several times
    #[arg(long = "name", value_name = "GLOB", default_values = audit::NAMES)]
    names: Vec<String>,
    /// Print one JSON object per command
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print the lines of the log, as ausearch does
    #[arg(long)]
    raw: bool,
    /// Start at a time instead of the stored position, which stays unchanged: `today`, `yesterday`,
    /// `2h` for two hours ago, `2026-11-22`, `"2026-11-22 10:00:00"`
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Log file of auditd
    #[arg(long, value_name = "FILE", default_value = audit::LOG)]
    log: PathBuf,
}

impl Options {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let offset = local_offset();
        let now = SystemClock.now();
        let given = self.since.as_deref();
        let given = given.map(|since| parse_since(since, now, offset)).transpose()?;
        let wanted = if self.all {
            CallFilter::every_call()
        } else {
            let (programs, verbs) = (audit::PROGRAMS.map(Into::into), audit::VERBS.map(Into::into));
            CallFilter::new(audit::KEY, programs, verbs, &self.names)
                .map_err(|error| Failure::usage(format!("--name {error}")))?
        };
        let log = std::path::absolute(&self.log).map_err(Failure::usage)?;
        let path = match given {
            Some(_) => None,
            None => Some(state_dir(explicit)?.join(CHECKPOINT)),
        };
        let rows = path.as_deref().map(read).transpose()?.flatten();
        let since = match (given, &rows) {
            (Some(since), _) => since,
            (None, None) => parse_since("today", now, offset)?,
            (None, Some(_)) => Timestamp(0),
        };
        let form = match (self.json, self.raw) {
            (true, _) => Form::Json,
            (_, true) => Form::Raw,
            _ => Form::Line,
        };
        let parents = RefCell::new(Parents::default());
        if rows.is_some() {
            // Parents may have started before the stored position.
            let mut past = follower(&log, true, DAY, Arc::new(|| ()));
            let mut learn = |facts: &Facts| {
                parents.borrow_mut().learn(facts);
                false
            };
            while past.read(&mut Screen::new(form, offset, &parents), &mut learn) == Progress::More
            {
            }
        }
        let mut screen = Screen::new(form, offset, &parents);
        screen.rows = rows.unwrap_or_default();
        let mut wants = |facts: &Facts| {
            parents.borrow_mut().learn(facts);
            facts.at >= since && wanted.matches(facts)
        };
        follow(&log, screen, &mut wants, path.as_deref())
    }
}

/// Shows matching commands until the reader closes the output. Stores the position in the file at
/// `path`.
fn follow(
    log: &Path,
    mut screen: Screen<'_>,
    wants: &mut dyn FnMut(&Facts) -> bool,
    path: Option<&Path>,
) -> Result<(), Failure> {
    let (sender, woken) = mpsc::sync_channel(1);
    // A full channel has already woken the reader.
    let waker: Waker = Arc::new(move || {
        sender.try_send(()).ok();
    });
    let mut follower = follower(log, false, 30 * READ_INTERVAL, waker);
    follower.restore(&mut screen.rows.clone().into_iter()).map_err(Failure::failed)?;
    let (mut stored, mut is_first) = (Duration::ZERO, true);
    loop {
        let progress = follower.read(&mut screen, wants);
        follower.sealed();
        follower.committed();
        match screen.failed.take() {
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Some(error) => return Err(Failure::failed(error)),
            None => {}
        }
        let now = SystemClock.uptime();
        if let Some(path) = path
            && (mem::take(&mut screen.has_shown) || now >= stored + STORE_INTERVAL)
        {
            write(path, &screen.rows)?;
            stored = now;
        }
        if let Progress::Idle { next } = progress {
            let error = follower.error().filter(|_| is_first);
            if let Some(error) = error {
                return Err(Failure::failed(error.to_string()));
            }
            is_first = false;
            woken.recv_timeout(next.min(READ_INTERVAL)).ok();
        }
    }
}

fn follower(path: &Path, is_once: bool, poll_interval: Duration, waker: Waker) -> AuditFollower {
    let options = LogOptions { max_line_bytes: MAX_LINE_BYTES, is_once, poll_interval };
    let files = follow_log(path, options, Arc::new(SystemClock), waker, None);
    AuditFollower::new(files, path.to_owned(), is_once, Arc::new(SystemClock))
}

type Rows = BTreeMap<GenerationId, Vec<u8>>;

/// Shows events, and keeps the rows with the position in the log.
struct Screen<'a> {
    form: Form,
    offset: i64,
    parents: &'a RefCell<Parents>,
    rows: Rows,
    has_shown: bool,
    failed: Option<io::Error>,
}

impl<'a> Screen<'a> {
    fn new(form: Form, offset: i64, parents: &'a RefCell<Parents>) -> Self {
        Self { form, offset, parents, rows: Rows::new(), has_shown: false, failed: None }
    }

    fn show(&mut self, lines: &[u8]) -> io::Result<()> {
        let facts = Facts::of(lines.split(|byte| *byte == b'\n'));
        let parents = self.parents.borrow().of(&facts);
        let text = match self.form {
            Form::Line => show::line(&facts, &parents, self.offset),
            Form::Json => show::json(&facts, &parents),
            Form::Raw => show::raw(lines),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

impl Intake for Screen<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        for piece in chunk.pieces {
            if let Piece::Lines { lines, .. } = piece
                && self.failed.is_none()
            {
                self.failed = self.show(lines).err();
                self.has_shown = true;
            }
        }
        let generation = chunk.origin.generation.clone();
        match chunk.checkpoint {
            Some(row) => self.rows.insert(generation, row.to_vec()),
            None => self.rows.remove(&generation),
        };
    }

    fn store_row(&mut self, _name: &str, _row: &[u8], _events: Vec<Event>) {}

    fn report(&mut self, _event: Event) {}

    fn forget(&mut self, _file: FileKey) {}

    fn has_room(&self) -> bool {
        self.failed.is_none()
    }

    fn saw(&self, _files: u64) {}

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.rows.get(generation).cloned()
    }
}

/// Returns the state directory of the agent.
fn state_dir(explicit: Option<&Path>) -> Result<PathBuf, Failure> {
    let environment = Environment::from_process();
    let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
    let inputs = ConfigInputs { paths: &paths, environment: &environment, explicit, managed: None };
    let loaded = config::load(&inputs).map_err(Failure::usage)?;
    Ok(loaded.settings.agent.state_dir)
}

/// Maximum size of the file with the stored position.
const MAX_POSITION: u64 = 1 << 20;

/// Reads the stored position; `None` if there is none.
fn read(path: &Path) -> Result<Option<Rows>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "cannot read the position in `{}`: {error}; delete the file to start with today's events",
            path.display()
        ))
    };
    match secure_file::read_bytes(path, MAX_POSITION) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&error)),
        Ok(bytes) => {
            let rows: BTreeMap<GenerationId, String> =
                serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
            Ok(Some(rows.into_iter().map(|(id, row)| (id, row.into_bytes())).collect()))
        }
    }
}

fn write(path: &Path, rows: &Rows) -> Result<(), Failure> {
    let rows: BTreeMap<_, _> =
        rows.iter().map(|(id, row)| (id, String::from_utf8_lossy(row))).collect();
    let bytes = serde_json::to_vec(&rows).expect("rows serialise to JSON");
    let folder = path.parent().map_or(Ok(()), secure_file::create_dir);
    folder.and_then(|()| secure_file::replace(path, &bytes)).map_err(|error| {
        Failure::failed(format!("cannot store the position in `{}`: {error}", path.display()))
    })
}

/// Seconds by which local time is ahead of UTC; 0 if unknown.
fn local_offset() -> i64 {
    let output = Command::new("/bin/date").arg("+%z").output().map(|output| output.stdout);
    let output = String::from_utf8(output.unwrap_or_default()).unwrap_or_default();
    offset(output.trim()).unwrap_or(0)
}

/// Parses an offset such as `+0130` into seconds.
fn offset(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let number: i64 = digits.parse().ok().filter(|_| digits.len() == 4)?;
    Some(sign * (number / 100 * 3600 + number % 100 * 60))
}

/// Parses the time of `--since`; local time is `offset` seconds ahead of UTC.
fn parse_since(text: &str, now: Timestamp, offset: i64) -> Result<Timestamp, Failure> {
    let local = now.0.saturating_add_signed(offset * 1000);
    let day = DAY.as_secs() * 1000;
    let midnight = local - local % day;
    let local = match text {
        "today" => midnight,
        "yesterday" => midnight.saturating_sub(day),
        text => {
            if let Ok(ago) = humantime::parse_duration(text) {
                let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                return Ok(Timestamp(now.0.saturating_sub(ago)));
            }
            let whole = if text.len() == 10 { format!("{text} 00:00:00") } else { text.to_owned() };
            let time = humantime::parse_rfc3339_weak(&whole).map_err(|_| {
                Failure::usage(format!(
                    "cannot parse `--since {text}`: expected `today`, `yesterday`, `2h`, \
                     `2026-11-22` or \"2026-11-22 10:00:00\""
                ))
            })?;
            let time = Timestamp::from(time);
            if whole.ends_with('Z') {
                return Ok(time);
            }
            time.0
        }
    };
    Ok(Timestamp(local.saturating_add_signed(-offset * 1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_accepts_relative_and_absolute_times() {
        // 2026-11-21T20:00:00.120Z, which is the next day where local time is five hours ahead.
        let now = Timestamp(1_795_291_200_120);
        let table = [
            ("today", 0, "2026-11-21T00:00:00.000Z"),
            ("today", 5 * 3600, "2026-11-21T19:00:00.000Z"),
            ("yesterday", -3600, "2026-11-20T01:00:00.000Z"),
            ("2h", 3600, "2026-11-21T18:00:00.120Z"),
            ("2026-11-20", 3600, "2026-11-19T23:00:00.000Z"),
            ("2026-11-20 10:00:00", 0, "2026-11-20T10:00:00.000Z"),
            ("2026-11-20T10:00:00Z", 3600, "2026-11-20T10:00:00.000Z"),
        ];
        for (text, offset, expected) in table {
            assert_eq!(parse_since(text, now, offset).unwrap().to_string(), expected, "{text}");
        }
        assert!(parse_since("noon", now, 0).is_err());
    }

    #[test]
    fn offsets_from_utc_are_parsed() {
        let table = [("+0000", Some(0)), ("+0530", Some(19_800)), ("-0100", Some(-3600))];
        for (text, expected) in table {
            assert_eq!(offset(text), expected, "{text}");
        }
        assert_eq!([offset(""), offset("UTC"), offset("+5")], [None; 3]);
    }
}
