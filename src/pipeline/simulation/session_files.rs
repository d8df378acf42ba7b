//! Session files that a script writes, truncates, moves and deletes, and the lines in them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use crate::platform::Timestamp;

/// Kind of a line, which determines its expected treatment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    Plain,
    /// Not JSON.
    NotJson,
    /// Too long to be received: it is sent in parts.
    Long,
    /// `ignore-types` drops it.
    Ignored,
    /// `sidechain` drops it, if enabled.
    Sidechain,
    /// `dedupe` drops it, unless it has forgotten the first one.
    Repeated,
    /// The receiver refuses it.
    Poison,
}

/// A line that was written with its newline.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Without its ending.
    pub(super) bytes: Vec<u8>,
    pub(super) kind: LineKind,
    /// True if it is still in a file.
    pub(super) is_there: bool,
    /// True if it was in a file when everything was read and stored.
    pub(super) is_safe: bool,
}

/// A file and the lines in it.
#[derive(Debug)]
struct Session {
    path: PathBuf,
    lines: Vec<usize>,
    /// An incomplete last line, and how many of its bytes are written.
    half: Option<(Line, usize)>,
    ending: &'static [u8],
    /// True if it was moved, truncated or rewritten since everything was read: after another such
    /// change the file could not be recognized.
    is_changed: bool,
}

/// All files below a root.
#[derive(Debug)]
pub(super) struct SessionFiles {
    root: PathBuf,
    sessions: Vec<Session>,
    pub(super) lines: Vec<Line>,
    /// Lines that were never completed.
    pub(super) halves: Vec<Vec<u8>>,
    names: u64,
    numbers: u64,
    /// Paths of deleted files.
    free: BTreeSet<PathBuf>,
}

/// Longest line that is received in memory whole.
pub(super) const MAX_LINE: usize = 2048;

impl SessionFiles {
    pub(super) fn below(root: PathBuf) -> Self {
        let (sessions, lines, halves) = (Vec::new(), Vec::new(), Vec::new());
        Self { root, sessions, lines, halves, names: 0, numbers: 0, free: BTreeSet::new() }
    }

    /// Changes a random file, and returns the change.
    pub(super) fn step(&mut self, random: &mut fastrand::Rng, now: Timestamp) -> &'static str {
        let count = self.sessions.len();
        if count == 0 || (count < 6 && random.u32(..6) == 0) {
            let is_again = !self.free.is_empty() && random.bool();
            self.begin(random, is_again);
            let last = self.sessions.len() - 1;
            self.append(last, random, now);
            return if is_again { "file created again under its name" } else { "file created" };
        }
        let at = random.usize(..count);
        let is_changed = self.sessions[at].is_changed;
        match random.u32(..100) {
            0..70 => {
                self.append(at, random, now);
                "lines appended"
            }
            70..76 if !is_changed => self.rename(at, random),
            76..84 if !is_changed => self.trim(at, random, now),
            84..90 if !is_changed => self.rewrite(at, random, now),
            90..95 => self.delete(at),
            _ => {
                self.stamp(at, now);
                "file touched"
            }
        }
    }

    /// Records that everything in the files was read and stored.
    pub(super) fn all_is_read(&mut self) {
        self.lines.iter_mut().filter(|line| line.is_there).for_each(|line| line.is_safe = true);
        self.sessions.iter_mut().for_each(|session| session.is_changed = false);
    }

    fn begin(&mut self, random: &mut fastrand::Rng, again: bool) {
        let path = match self.free.pop_first() {
            Some(path) if again => path,
            free => {
                self.free.extend(free);
                self.names += 1;
                let folder = ["-a", "-b", "-b/subagents"][random.usize(..3)];
                self.root.join(folder).join(format!("{}.jsonl", self.names))
            }
        };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let ending: &[u8] = if random.u32(..4) == 0 { b"\r\n" } else { b"\n" };
        let session = Session { path, lines: Vec::new(), half: None, ending, is_changed: true };
        self.sessions.push(session);
    }

    /// Makes a unique line.
    fn line(&mut self, at: usize, random: &mut fastrand::Rng) -> Line {
        self.numbers += 1;
        let number = self.numbers;
        let kind = match random.u32(..100) {
            0..15 => LineKind::Ignored,
            15..25 => LineKind::Sidechain,
            25..30 => LineKind::Repeated,
            30..33 => LineKind::NotJson,
            33..36 => LineKind::Long,
            36..38 => LineKind::Poison,
            _ => LineKind::Plain,
        };
        let known = self.sessions[at].lines.iter().rev().map(|line| &self.lines[*line]);
        let first = known.filter(|line| line.kind == LineKind::Plain).find_map(|line| {
            let text = std::str::from_utf8(&line.bytes).unwrap();
            Some(text.split_once("\"uuid\":\"")?.1.split_once('"')?.0.to_owned())
        });
        let kind =
            if kind == LineKind::Repeated && first.is_none() { LineKind::Plain } else { kind };
        let own = format!("u-{number}");
        let uuid = if kind == LineKind::Repeated { first.unwrap_or_default() } else { own };
        let record_type = if kind == LineKind::Ignored { "progress" } else { "user" };
        let sidechain = kind == LineKind::Sidechain;
        let text = match kind {
            LineKind::Long => "é".repeat(random.usize(MAX_LINE..3 * MAX_LINE)),
            LineKind::Poison => "poison".to_owned(),
            _ => "x".repeat(random.usize(..120)),
        };
        let line = format!(
            "{{\"type\":\"{record_type}\",\"uuid\":\"{uuid}\",\"isSidechain\":{sidechain},\"n\":{number},\
             \"text\":\"{text}\"}}"
        );
        let line = if kind == LineKind::NotJson { format!("no JSON {number}") } else { line };
        Line { bytes: line.into_bytes(), kind, is_there: true, is_safe: false }
    }

    /// Appends lines. An incomplete last line is completed first.
    fn append(&mut self, at: usize, random: &mut fastrand::Rng, now: Timestamp) {
        let mut bytes = Vec::new();
        let mut new = Vec::new();
        let ending = self.sessions[at].ending;
        if let Some((line, written)) = self.sessions[at].half.take() {
            bytes.extend_from_slice(&line.bytes[written..]);
            bytes.extend_from_slice(ending);
            new.push(line);
        }
        for _ in 0..random.usize(1..8) {
            let line = self.line(at, random);
            bytes.extend_from_slice(&line.bytes);
            bytes.extend_from_slice(ending);
            if random.u32(..20) == 0 {
                bytes.extend_from_slice(b" \n");
            }
            new.push(line);
        }
        let first = self.lines.len();
        self.lines.extend(new);
        self.sessions[at].lines.extend(first..self.lines.len());
        if random.u32(..4) == 0 {
            let line = self.line(at, random);
            let written = random.usize(1..line.bytes.len());
            bytes.extend_from_slice(&line.bytes[..written]);
            self.halves.push(line.bytes.clone());
            self.sessions[at].half = Some((line, written));
        }
        let path = &self.sessions[at].path;
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(&bytes).unwrap();
        self.stamp(at, now);
    }

    fn rename(&mut self, at: usize, random: &mut fastrand::Rng) -> &'static str {
        self.names += 1;
        let session = &mut self.sessions[at];
        let folder = self.root.join(["-a", "-c"][random.usize(..2)]);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}.jsonl", self.names));
        fs::rename(&session.path, &path).unwrap();
        (session.path, session.is_changed) = (path, true);
        "file moved"
    }

    /// Removes the last lines and appends others, as the client does.
    fn trim(&mut self, at: usize, random: &mut fastrand::Rng, now: Timestamp) -> &'static str {
        let session = &mut self.sessions[at];
        let cut = random.usize(1..8).min(session.lines.len());
        let kept = session.lines.len() - cut;
        let text = fs::read(&session.path).unwrap();
        let mut border = 0;
        if let Some(last) = kept.checked_sub(1) {
            let last = &self.lines[session.lines[last]].bytes;
            let found = text.windows(last.len()).rposition(|window| window == last).unwrap();
            border = found + last.len() + session.ending.len();
        }
        for removed in session.lines.split_off(kept) {
            self.lines[removed].is_there = false;
        }
        session.half = None;
        session.is_changed = true;
        let file = File::options().write(true).open(&session.path).unwrap();
        file.set_len(border as u64).unwrap();
        self.append(at, random, now);
        if kept == 0 { "file truncated" } else { "file trimmed" }
    }

    fn rewrite(&mut self, at: usize, random: &mut fastrand::Rng, now: Timestamp) -> &'static str {
        self.forget_lines(at);
        self.sessions[at].is_changed = true;
        fs::write(&self.sessions[at].path, b"").unwrap();
        self.append(at, random, now);
        "file rewritten"
    }

    fn delete(&mut self, at: usize) -> &'static str {
        self.forget_lines(at);
        let session = self.sessions.swap_remove(at);
        fs::remove_file(&session.path).unwrap();
        self.free.insert(session.path);
        "file deleted"
    }

    fn forget_lines(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        session.half = None;
        for removed in session.lines.drain(..) {
            self.lines[removed].is_there = false;
        }
    }

    fn stamp(&self, at: usize, now: Timestamp) {
        let file = File::options().write(true).open(&self.sessions[at].path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_millis(now.0)).unwrap();
    }
}
