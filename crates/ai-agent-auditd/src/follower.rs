//! Follows the log of auditd across rotations and turns its lines into events.
//!
//! The checkpoint of a log file moves with its lines, but an event may end long after its first line.
//! So the lines of open events are stored in the row of their file, as the member `unfinished`: after
//! a restart they are restored, and no line is read twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ai_agent_stage::{
    BadRow, Chunk, Clock, Event, FileKey, GenerationId, Intake, Origin, Piece, Progress, Source,
    Survey,
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    assembler::{AuditEvent, EventAssembler, SILENCE},
    facts::Facts,
    line::Line,
};

/// Member of a row that holds the lines of open events.
const UNFINISHED: &str = "unfinished";
/// Reasons of skipped lines: their event is not selected, or they belong to none.
const OTHER_EVENT: &str = "other_event";
const NO_AUDIT_LINE: &str = "no_audit_line";

/// Follows a log of auditd.
pub struct AuditFollower {
    /// Follows the files of the log and hands over their lines.
    files: Box<dyn Source>,
    log: LogState,
    path: PathBuf,
    is_once: bool,
}

/// State of the log as it has been read.
struct LogState {
    clock: Arc<dyn Clock>,
    assembler: EventAssembler<LinePosition>,
    /// The log and its rotated files.
    files: BTreeMap<GenerationId, LogFile>,
}

/// Position of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LinePosition {
    generation: GenerationId,
    offset: u64,
    size: u64,
}

/// A file of the log, with its last row.
struct LogFile {
    origin: Origin,
    row: Vec<u8>,
}

/// A line of an open event, as it is stored.
#[derive(Deserialize, Serialize)]
struct StoredLine {
    offset: u64,
    size: u64,
    line: String,
}

/// Reason why the log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogError {
    /// The log does not exist.
    Absent(PathBuf),
    /// The agent has no permission to read a file, or reading it failed.
    Unreadable(PathBuf, String),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(path) => write!(
                f,
                "there is no audit log at `{}`: install auditd and start it, or set the path that \
                 `log_file` in /etc/audit/auditd.conf names",
                path.display()
            ),
            Self::Unreadable(path, error) => write!(
                f,
                "cannot read the audit log `{}`: {error}; reading requires membership in the group \
                 that `log_group` in /etc/audit/auditd.conf names (`adm` on Debian and Ubuntu: `sudo \
                 usermod -aG adm USER`, then log in again) or an ACL: `sudo setfacl -R -m \
                 u:USER:rX -m d:u:USER:rX /var/log/audit`",
                path.display()
            ),
        }
    }
}

impl AuditFollower {
    /// Follows the log at `path`. `files` follows its files, rotated ones included, and hands over
    /// their lines.
    #[must_use]
    pub fn new(
        files: Box<dyn Source>,
        path: PathBuf,
        is_once: bool,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let log = LogState { clock, assembler: EventAssembler::default(), files: BTreeMap::new() };
        Self { files, log, path, is_once }
    }

    /// Directory of the log.
    #[must_use]
    pub fn roots(&self) -> Vec<PathBuf> {
        self.path.parent().map(Path::to_owned).into_iter().collect()
    }

    /// Takes over the state of the files from `old`.
    pub fn inherit(&mut self, old: Self) {
        self.files.inherit(old.files);
    }

    /// Starts from stored rows.
    ///
    /// # Errors
    /// [`BadRow`] if a row is not one of this follower.
    pub fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        let LogState { clock, assembler, files } = &mut self.log;
        (*assembler, *files) = (EventAssembler::default(), BTreeMap::new());
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let rows: Vec<_> = rows.map(|(generation, row)| (generation, split(row))).collect();
        for (generation, (row, stored)) in &rows {
            // The follower of the files reports a row that is malformed.
            let Some(name) = file_name(row) else { continue };
            for StoredLine { offset, size, line } in stored {
                let line = BASE64.decode(line.as_bytes()).unwrap_or_default();
                let position =
                    LinePosition { generation: generation.clone(), offset: *offset, size: *size };
                if let Some(parsed) = Line::parse(&line) {
                    assembler.adopt(position, &line, &parsed, clock.uptime());
                }
            }
            let origin = Origin::new(FileKey::fresh(), folder.join(name), generation.clone());
            files.insert(generation.clone(), LogFile { origin, row: row.clone() });
        }
        self.files.restore(&mut rows.into_iter().map(|(generation, (row, _))| (generation, row)))
    }

    /// Hands over the events that `selects` returns true for, until the intake has no room or
    /// everything has been read.
    pub fn read(
        &mut self,
        intake: &mut dyn Intake,
        selects: &mut dyn FnMut(&Facts) -> bool,
    ) -> Progress {
        let mut events = EventIntake { log: &mut self.log, intake, selects };
        let Progress::Idle { next } = self.files.read(&mut events) else { return Progress::More };
        let (now, wall) = (events.log.clock.uptime(), events.log.clock.now().0);
        let ended = if self.is_once {
            // There is no later read, so silence is measured from the time of the events.
            let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
            events.log.assembler.end_where(|it| it.id.millis.saturating_add(silence) <= wall)
        } else {
            events.log.assembler.silent(now)
        };
        let mut output = Output::default();
        events.finish(ended, &mut output);
        events.hand_over(output, None);
        let silent = self.log.assembler.next_silent().map(|at| at.saturating_sub(now));
        Progress::Idle { next: silent.map_or(next, |silent| silent.min(next)) }
    }

    /// Releases deleted files while the outbox is full.
    pub fn tend(&mut self) {
        self.files.tend();
    }

    /// Looks for changes of the log, after the machine has slept.
    pub fn resume(&mut self) {
        self.files.resume();
    }

    /// See [`Source::sealed`].
    pub fn sealed(&mut self) {
        self.files.sealed();
    }

    /// See [`Source::committed`].
    pub fn committed(&mut self) {
        self.files.committed();
    }

    /// Statistics about the files of the log.
    #[must_use]
    pub fn survey(&self) -> Survey {
        self.files.survey()
    }

    /// Reason why the log cannot be read, as of the last complete read.
    #[must_use]
    pub fn error(&self) -> Option<LogError> {
        let mut survey = self.files.survey();
        if let Some((path, error)) = survey.unreadable.pop_first() {
            return Some(LogError::Unreadable(path, error));
        }
        (survey.files == 0).then(|| LogError::Absent(self.path.clone()))
    }
}

/// Receives the lines of the log and hands over events.
struct EventIntake<'a> {
    log: &'a mut LogState,
    intake: &'a mut dyn Intake,
    selects: &'a mut dyn FnMut(&Facts) -> bool,
}

/// Output of each file.
type Output = BTreeMap<GenerationId, FileOutput>;

#[derive(Default)]
struct FileOutput {
    events: Vec<EventLines>,
    /// Number of skipped lines and their bytes, by reason.
    skipped: BTreeMap<&'static str, (u64, u64)>,
}

struct EventLines {
    offset: u64,
    lines: Vec<u8>,
    size: u64,
}

impl FileOutput {
    fn skip(&mut self, reason: &'static str, lines: u64, size: u64) {
        let (all, bytes) = self.skipped.entry(reason).or_default();
        *all += lines;
        *bytes = bytes.saturating_add(size);
    }

    fn pieces(&self) -> Vec<Piece<'_>> {
        let events = self.events.iter().map(|EventLines { offset, lines, size }| {
            let (offset, size) = (*offset, *size);
            Piece::Lines { offset, lines, size, facts: render_facts }
        });
        let skipped = self.skipped.iter();
        let skipped =
            skipped.map(|(&reason, &(lines, size))| Piece::Skipped { lines, size, reason });
        events.chain(skipped).collect()
    }
}

/// Renders the facts of an event, from its lines as the filters left them.
fn render_facts(lines: &[u8]) -> String {
    Facts::of(lines.split(|byte| *byte == b'\n')).to_json()
}

/// A chunk of a file of the log without its pieces.
struct ChunkState {
    origin: Origin,
    checkpoint: Option<Vec<u8>>,
    unread: u64,
    events: Vec<Event>,
}

impl Intake for EventIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        let generation = &chunk.origin.generation;
        let now = self.log.clock.uptime();
        let mut output = Output::default();
        for piece in chunk.pieces {
            match *piece {
                // `auditd` writes no NUL: such a line is not part of an event.
                Piece::Line { size, folded: Some(_), .. } => {
                    output.entry(generation.clone()).or_default().skip(NO_AUDIT_LINE, 1, size);
                }
                Piece::Line { offset, bytes, size, .. } => match Line::parse(bytes) {
                    Some(parsed) => {
                        let position =
                            LinePosition { generation: generation.clone(), offset, size };
                        let ended = self.log.assembler.push(position, bytes, &parsed, now);
                        self.finish(ended, &mut output);
                    }
                    None => {
                        output.entry(generation.clone()).or_default().skip(NO_AUDIT_LINE, 1, size)
                    }
                },
                Piece::Part { size, whole, .. } => {
                    let lines = u64::from(whole.is_some());
                    output.entry(generation.clone()).or_default().skip(NO_AUDIT_LINE, lines, size);
                }
                Piece::Lines { .. } | Piece::Skipped { .. } => {}
            }
        }
        if chunk.checkpoint.is_none() {
            // The row is deleted with the file, so the lines of its events can no longer be stored.
            let is_of_file =
                |(position, _): &(LinePosition, Vec<u8>)| position.generation == *generation;
            let ended = self.log.assembler.end_where(|event| event.lines.iter().any(is_of_file));
            self.finish(ended, &mut output);
        }
        let Chunk { origin, checkpoint, unread, events, .. } = chunk;
        let checkpoint = checkpoint.map(<[u8]>::to_vec);
        self.hand_over(
            output,
            Some(ChunkState { origin: origin.clone(), checkpoint, unread, events }),
        );
    }

    fn report(&mut self, event: Event) {
        self.intake.report(event);
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        self.intake.store_row(name, row, events);
    }

    fn forget(&mut self, file: FileKey) {
        self.intake.forget(file);
    }

    fn has_room(&self) -> bool {
        self.intake.has_room()
    }

    fn has_room_for_backfill(&self) -> bool {
        self.intake.has_room_for_backfill()
    }

    fn saw(&self, files: u64) {
        self.intake.saw(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.intake.checkpoint(generation)
    }
}

impl EventIntake<'_> {
    /// Adds events that have ended to the output, or skips their lines.
    fn finish(&mut self, ended: Vec<AuditEvent<LinePosition>>, output: &mut Output) {
        for event in ended {
            let lines = event.lines.iter().map(|(_, line)| line.as_slice());
            let is_selected = (self.selects)(&Facts::of(lines.clone()));
            for (position, _) in &event.lines {
                // The row of each file changes, since it contains the line.
                let output = output.entry(position.generation.clone()).or_default();
                if !is_selected {
                    output.skip(OTHER_EVENT, 1, position.size);
                }
            }
            if let Some((first, _)) = event.lines.first().filter(|_| is_selected) {
                let size = event.lines.iter().map(|(position, _)| position.size).sum();
                let lines = lines.collect::<Vec<_>>().join(&b'\n');
                let event = EventLines { offset: first.offset, lines, size };
                output.entry(first.generation.clone()).or_default().events.push(event);
            }
        }
    }

    /// Hands over the output and the row of each file that it affects, in one group: the lines of an
    /// event can be in several files.
    fn hand_over(&mut self, output: Output, state: Option<ChunkState>) {
        let mut generations: BTreeSet<GenerationId> = output.keys().cloned().collect();
        let mut about = None;
        if let Some(ChunkState { origin, checkpoint, unread, events }) = state {
            let generation = origin.generation.clone();
            generations.insert(generation.clone());
            about = Some((generation.clone(), unread, events, checkpoint.is_none()));
            let row = checkpoint.unwrap_or_default();
            self.log.files.insert(generation, LogFile { origin, row });
        }
        for generation in generations {
            let own = about.take_if(|(it, ..)| *it == generation);
            let (_, unread, events, is_deleted) =
                own.unwrap_or((generation.clone(), 0, vec![], false));
            let Some(LogFile { origin, row }) = self.log.files.get(&generation) else { continue };
            let row = with_unfinished(row, &generation, &self.log.assembler);
            let pieces = output.get(&generation).map(FileOutput::pieces).unwrap_or_default();
            let checkpoint = (!is_deleted).then_some(row.as_slice());
            let mut chunk = Chunk::new(origin, &pieces, checkpoint);
            (chunk.unread, chunk.events) = (unread, events);
            self.intake.take(chunk);
            if is_deleted {
                self.log.files.remove(&generation);
            }
        }
    }
}

/// Adds the lines of open events to the row of their file.
fn with_unfinished(
    row: &[u8],
    generation: &GenerationId,
    assembler: &EventAssembler<LinePosition>,
) -> Vec<u8> {
    let open = assembler.open().filter(|(position, _)| position.generation == *generation);
    let stored: Vec<StoredLine> = open
        .map(|(position, line)| StoredLine {
            offset: position.offset,
            size: position.size,
            line: BASE64.encode(line),
        })
        .collect();
    let mut row = row.to_vec();
    if !stored.is_empty() && row.pop_if(|last| *last == b'}').is_some() {
        row.extend_from_slice(format!(",\"{UNFINISHED}\":").as_bytes());
        serde_json::to_writer(&mut row, &stored).expect("lines are strings and numbers");
        row.push(b'}');
    }
    row
}

/// Splits a row into the row of the file and the lines of open events.
fn split(row: Vec<u8>) -> (Vec<u8>, Vec<StoredLine>) {
    let Ok(mut members) = serde_json::from_slice::<Map<String, Value>>(&row) else {
        return (row, Vec::new());
    };
    let Some(stored) = members.remove(UNFINISHED) else { return (row, Vec::new()) };
    let row = serde_json::to_vec(&members).expect("a row has only strings as keys");
    (row, serde_json::from_value(stored).unwrap_or_default())
}

/// Returns the file name in the row of a log file. Rows are JSON objects with the path as `path`, or as
/// `path_base64` if it is not UTF-8. All files of the log are in one directory.
fn file_name(row: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct RowPath {
        #[serde(default)]
        path: Option<String>,
        #[serde(default)]
        path_base64: Option<String>,
    }
    let RowPath { path, path_base64 } = serde_json::from_slice(row).ok()?;
    let decode = |text: String| BASE64.decode(text.as_bytes()).ok();
    let path = path.map(String::into_bytes).or_else(|| path_base64.and_then(decode))?;
    let name = path.rsplit(|byte| matches!(byte, b'/' | b'\\')).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}
