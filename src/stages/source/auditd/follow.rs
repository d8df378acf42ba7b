//! Follows auditd's log, over its rotations, and makes events of its lines.
//!
//! The tail's checkpoint moves with the lines, and an event may end long after its first one. So the
//! lines of events that have not ended are kept in the checkpoint itself, in its row: after a
//! restart they are where they were, and none is read twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    audit::{
        facts::Facts,
        group::{Group, Groups, SILENCE},
        line::Line,
    },
    event::Event,
    platform::Clock,
    stages::source::{BadRow, Chunk, GenerationId, Intake, Origin, Piece, Progress, Waker},
    tail::{FileKey, Names, Tail, TailOptions, fresh_generation, row_path},
};

/// The member of a row that has the lines of events that have not ended.
const UNFINISHED: &str = "unfinished";
/// Why lines are left out: their event is not meant, or they are of none.
const OTHER_EVENT: &str = "other_event";
const NO_AUDIT_LINE: &str = "no_audit_line";
/// auditd's lines are shorter than 9 KiB.
const LONGEST_LINE: u64 = 1 << 20;

/// What to follow, and how.
pub(crate) struct FollowOptions {
    /// The log.
    pub(crate) path: PathBuf,
    /// Whether everything is read once.
    pub(crate) once: bool,
    /// The longest time between two looks at everything.
    pub(crate) poll_interval: Duration,
}

/// Follows a log of auditd.
pub(crate) struct Follower {
    pub(crate) tail: Tail,
    log: Log,
    path: PathBuf,
    once: bool,
}

/// What was read of the log.
struct Log {
    clock: Arc<dyn Clock>,
    groups: Groups<Place>,
    /// The log, and what it was renamed to.
    files: BTreeMap<GenerationId, File>,
}

/// Where a line stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    generation: GenerationId,
    offset: u64,
    size: u64,
}

/// A file as the tail handed it over last.
struct File {
    origin: Origin,
    row: Vec<u8>,
}

/// A line of an event that has not ended, as it is stored.
#[derive(Deserialize, Serialize)]
struct Kept {
    offset: u64,
    size: u64,
    line: String,
}

/// Why nothing can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no log.
    Absent(PathBuf),
    /// It is not for us to read.
    Unreadable(PathBuf, String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(path) => write!(
                f,
                "there is no audit log at `{}`: install auditd and start it, or name the file that \
                 `log_file` in /etc/audit/auditd.conf names",
                path.display()
            ),
            Self::Unreadable(path, error) => write!(
                f,
                "the audit log can't be read, `{}`: {error}; it takes membership in the group that \
                 `log_group` in /etc/audit/auditd.conf names (`adm` on Debian and Ubuntu: `sudo \
                 usermod -aG adm USER`, then log in again) or an ACL: `sudo setfacl -R -m \
                 u:USER:rX -m d:u:USER:rX /var/log/audit`",
                path.display()
            ),
        }
    }
}

impl Follower {
    /// Follows the log from its beginning, in what it was renamed to as far as that is there.
    pub(crate) fn new(options: FollowOptions, clock: Arc<dyn Clock>, waker: Waker) -> Self {
        let FollowOptions { path, once, poll_interval } = options;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let tail = TailOptions {
            roots: vec![folder],
            names: Names::Log(path.file_name().unwrap_or_default().to_owned()),
            max_record_bytes: LONGEST_LINE,
            poll_interval,
            watch: !once,
            ..TailOptions::default()
        };
        let tail = Tail::new(tail, Arc::clone(&clock), Box::new(fresh_generation), waker);
        let log = Log { clock, groups: Groups::default(), files: BTreeMap::new() };
        Self { tail, log, path, once }
    }

    /// Directory of the log.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        self.path.parent().map(Path::to_owned).into_iter().collect()
    }

    /// Begins from stored rows.
    pub(crate) fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        let Log { clock, groups, files } = &mut self.log;
        (*groups, *files) = (Groups::default(), BTreeMap::new());
        let rows: Vec<_> = rows.map(|(generation, row)| (generation, split(row))).collect();
        for (generation, (row, kept)) in &rows {
            // What is no row, the tail says.
            let Some(path) = row_path(row) else { continue };
            for Kept { offset, size, line } in kept {
                let line = BASE64.decode(line.as_bytes()).unwrap_or_default();
                let place = Place { generation: generation.clone(), offset: *offset, size: *size };
                if let Some(parsed) = Line::parse(&line) {
                    groups.adopt(place, &line, &parsed, clock.uptime());
                }
            }
            let origin = Origin::new(FileKey::fresh(), path, generation.clone());
            files.insert(generation.clone(), File { origin, row: row.clone() });
        }
        self.tail.restore(&mut rows.into_iter().map(|(generation, (row, _))| (generation, row)))
    }

    /// Hands over the events that `wants` takes, until the intake has no room or nothing is unread.
    pub(crate) fn read(
        &mut self,
        intake: &mut dyn Intake,
        wants: &mut dyn FnMut(&Facts) -> bool,
    ) -> Progress {
        let mut grouping = Grouping { log: &mut self.log, intake, wants };
        let Progress::Idle { next } = self.tail.read(&mut grouping) else { return Progress::More };
        let (now, wall) = (grouping.log.clock.uptime(), grouping.log.clock.now().0);
        let ended = if self.once {
            // Nobody comes back: what has ended is told by the clock that its time is from.
            let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
            grouping.log.groups.take(|group| group.id.millis.saturating_add(silence) <= wall)
        } else {
            grouping.log.groups.silent(now)
        };
        let mut made = Made::default();
        grouping.end(ended, &mut made);
        grouping.hand_over(made, None);
        let silent = self.log.groups.next_silent().map(|at| at.saturating_sub(now));
        Progress::Idle { next: silent.map_or(next, |silent| silent.min(next)) }
    }

    /// Why nothing can be read, once all was looked at.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        let survey = self.tail.survey();
        if let Some(unreadable) = survey.unreadable.first() {
            return Some(Trouble::Unreadable(unreadable.path.clone(), unreadable.error.clone()));
        }
        (survey.files == 0).then(|| Trouble::Absent(self.path.clone()))
    }
}

/// Takes the tail's lines, and hands on events.
struct Grouping<'a> {
    log: &'a mut Log,
    intake: &'a mut dyn Intake,
    wants: &'a mut dyn FnMut(&Facts) -> bool,
}

/// What became of the lines of each file.
type Made = BTreeMap<GenerationId, MadeOf>;

#[derive(Default)]
struct MadeOf {
    events: Vec<MadeEvent>,
    /// By reason, lines and bytes.
    left_out: BTreeMap<&'static str, (u64, u64)>,
}

struct MadeEvent {
    offset: u64,
    lines: Vec<u8>,
    size: u64,
}

impl MadeOf {
    fn leave_out(&mut self, reason: &'static str, lines: u64, size: u64) {
        let (all, bytes) = self.left_out.entry(reason).or_default();
        *all += lines;
        *bytes += size;
    }

    fn pieces(&self) -> Vec<Piece<'_>> {
        let events = self.events.iter().map(|MadeEvent { offset, lines, size }| {
            let (offset, size) = (*offset, *size);
            Piece::Lines { offset, lines, size, facts: render_facts }
        });
        let left_out = self.left_out.iter();
        let left_out =
            left_out.map(|(&reason, &(lines, size))| Piece::Skipped { lines, size, reason });
        events.chain(left_out).collect()
    }
}

/// Renders the facts of an event, from its lines as the filters left them.
fn render_facts(lines: &[u8]) -> String {
    Facts::of(lines.split(|byte| *byte == b'\n')).to_json()
}

/// The tail's chunk, without its pieces.
struct Rest {
    origin: Origin,
    checkpoint: Option<Vec<u8>>,
    unread: u64,
    events: Vec<Event>,
}

impl Intake for Grouping<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        let generation = &chunk.origin.generation;
        let now = self.log.clock.uptime();
        let mut made = Made::default();
        for piece in chunk.pieces {
            match *piece {
                Piece::Line { offset, bytes, size, .. } => match Line::parse(bytes) {
                    Some(parsed) => {
                        let place = Place { generation: generation.clone(), offset, size };
                        let ended = self.log.groups.push(place, bytes, &parsed, now);
                        self.end(ended, &mut made);
                    }
                    None => made.entry(generation.clone()).or_default().leave_out(
                        NO_AUDIT_LINE,
                        1,
                        size,
                    ),
                },
                Piece::Part { size, whole, .. } => {
                    let lines = u64::from(whole.is_some());
                    made.entry(generation.clone()).or_default().leave_out(
                        NO_AUDIT_LINE,
                        lines,
                        size,
                    );
                }
                Piece::Lines { .. } | Piece::Skipped { .. } => {}
            }
        }
        if chunk.checkpoint.is_none() {
            // Nothing keeps the lines of a file that is no more.
            let is_of_it = |(place, _): &(Place, Vec<u8>)| place.generation == *generation;
            let ended = self.log.groups.take(|group| group.lines.iter().any(is_of_it));
            self.end(ended, &mut made);
        }
        let Chunk { origin, checkpoint, unread, events, .. } = chunk;
        let checkpoint = checkpoint.map(<[u8]>::to_vec);
        self.hand_over(made, Some(Rest { origin: origin.clone(), checkpoint, unread, events }));
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

    fn saw(&self, files: u64) {
        self.intake.saw(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.intake.checkpoint(generation)
    }
}

impl Grouping<'_> {
    /// Says of events that have ended what becomes of their lines.
    fn end(&mut self, ended: Vec<Group<Place>>, made: &mut Made) {
        for group in ended {
            let lines = group.lines.iter().map(|(_, line)| line.as_slice());
            let is_wanted = (self.wants)(&Facts::of(lines.clone()));
            for (place, _) in &group.lines {
                // The row of each file changes, since it has kept the line.
                let made = made.entry(place.generation.clone()).or_default();
                if !is_wanted {
                    made.leave_out(OTHER_EVENT, 1, place.size);
                }
            }
            if let Some((first, _)) = group.lines.first().filter(|_| is_wanted) {
                let size = group.lines.iter().map(|(place, _)| place.size).sum();
                let lines = lines.collect::<Vec<_>>().join(&b'\n');
                let event = MadeEvent { offset: first.offset, lines, size };
                made.entry(first.generation.clone()).or_default().events.push(event);
            }
        }
    }

    /// Hands over what was made, and each file's row with the lines that it keeps: all in one group,
    /// whichever of the files a line stands in.
    fn hand_over(&mut self, made: Made, rest: Option<Rest>) {
        let mut generations: BTreeSet<GenerationId> = made.keys().cloned().collect();
        let mut about = None;
        if let Some(Rest { origin, checkpoint, unread, events }) = rest {
            let generation = origin.generation.clone();
            generations.insert(generation.clone());
            about = Some((generation.clone(), unread, events, checkpoint.is_none()));
            let row = checkpoint.unwrap_or_default();
            self.log.files.insert(generation, File { origin, row });
        }
        for generation in generations {
            let own = about.take_if(|(it, ..)| *it == generation);
            let (_, unread, events, is_gone) =
                own.unwrap_or((generation.clone(), 0, vec![], false));
            let Some(File { origin, row }) = self.log.files.get(&generation) else { continue };
            let row = with_unfinished(row, &generation, &self.log.groups);
            let pieces = made.get(&generation).map(MadeOf::pieces).unwrap_or_default();
            let checkpoint = (!is_gone).then_some(row.as_slice());
            self.intake.take(
                Chunk::new(origin, &pieces, checkpoint).with_unread(unread).with_events(events),
            );
            if is_gone {
                self.log.files.remove(&generation);
            }
        }
    }
}

/// The tail's row of a file, with the lines of it whose events have not ended.
fn with_unfinished(row: &[u8], generation: &GenerationId, groups: &Groups<Place>) -> Vec<u8> {
    let open = groups.open().filter(|(place, _)| place.generation == *generation);
    let kept: Vec<Kept> = open
        .map(|(place, line)| Kept {
            offset: place.offset,
            size: place.size,
            line: BASE64.encode(line),
        })
        .collect();
    let mut row = row.to_vec();
    if !kept.is_empty() && row.pop_if(|last| *last == b'}').is_some() {
        row.extend_from_slice(format!(",\"{UNFINISHED}\":").as_bytes());
        serde_json::to_writer(&mut row, &kept).expect("lines are strings and numbers");
        row.push(b'}');
    }
    row
}

/// The tail's row of a file, and the lines that were kept in it.
fn split(row: Vec<u8>) -> (Vec<u8>, Vec<Kept>) {
    let Ok(mut members) = serde_json::from_slice::<Map<String, Value>>(&row) else {
        return (row, Vec::new());
    };
    let Some(kept) = members.remove(UNFINISHED) else { return (row, Vec::new()) };
    let row = serde_json::to_vec(&members).expect("a row has only strings as keys");
    (row, serde_json::from_value(kept).unwrap_or_default())
}

#[cfg(test)]
mod tests;
