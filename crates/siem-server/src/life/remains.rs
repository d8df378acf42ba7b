//! Files that a recovery left: lines that it moved aside, and copies of damaged journals.
//!
//! They may hold the only copy of entries, so that only erased lines are removed from them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use memchr::memmem;
use tracing::warn;

use super::{Hold, Holds, Selector, private, session, subject::Subject};
use crate::{
    regular_file::open_regular_file,
    store::{DamagedPart, EpochLines, copy_with_blanks, damaged_parts},
};

/// Such a file.
pub(super) enum Remains {
    /// Lines of an epoch, of users of the epoch.
    Surplus(EpochLines),
    /// Copy of a damaged journal.
    Journal(PathBuf),
}

/// A line in such a file.
pub(super) struct Piece<'a> {
    /// Position in the file.
    at: u64,
    /// Its bytes, with the newline if it has one.
    text: &'a [u8],
    origin: Origin<'a>,
}

/// Sender of a line.
enum Origin<'a> {
    /// Any of some users of a machine.
    Sent { machine: &'a str, users: Vec<&'a str> },
    /// It is in a damaged part of a journal: its sender is one of those that are named there.
    Damage(&'a Damage<'a>),
}

/// Damaged part of a journal.
struct Damage<'a> {
    path: &'a Path,
    start: u64,
    end: u64,
    /// Texts that were looked for, and whether they are there: a part may have millions of lines.
    known: RefCell<BTreeMap<String, bool>>,
}

impl Damage<'_> {
    fn reader(&self, start: u64) -> io::Result<impl BufRead + use<>> {
        let mut file = open_regular_file(self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file.take(self.end - start)))
    }

    /// Reports whether a text is there, as it is or as in a JSON string: a name may have characters that are
    /// escaped there, such as `CORP\alice`.
    fn names(&self, text: &str) -> io::Result<bool> {
        if let Some(found) = self.known.borrow().get(text) {
            return Ok(*found);
        }
        let quoted = serde_json::to_string(text)?;
        let escaped = quoted.strip_prefix('"').and_then(|it| it.strip_suffix('"')).unwrap_or(text);
        let mut found = false;
        each_line(self.reader(self.start)?, |_, line| {
            found |= contains(line, text) || contains(line, escaped);
            Ok(())
        })?;
        self.known.borrow_mut().insert(text.to_owned(), found);
        Ok(found)
    }
}

fn contains(line: &[u8], text: &str) -> bool {
    memmem::find(line, text.as_bytes()).is_some()
}

impl Piece<'_> {
    /// Reports whether an erasure selects it. Without the sender, or without a time, it may: then it does.
    pub(super) fn is_selected(&self, subject: &Subject) -> io::Result<bool> {
        match (&self.origin, &subject.selector) {
            (Origin::Sent { machine, users }, _) => {
                Ok(users.iter().any(|user| subject.may_select(machine, user, self.text)))
            }
            // Neither depends on the sender.
            (Origin::Damage(_), Selector::Session(_) | Selector::Mentions(_)) => {
                Ok(subject.may_select("", "", self.text))
            }
            (Origin::Damage(part), Selector::User(name) | Selector::Machine(name)) => {
                Ok(subject.may_be_in_time(self.text) && part.names(name)?)
            }
        }
    }

    /// Returns a hold that covers it, or may do so.
    pub(super) fn hold<'h>(&self, holds: &'h Holds) -> io::Result<Option<&'h Hold>> {
        match &self.origin {
            Origin::Sent { machine, users } => {
                Ok(users.iter().find_map(|user| holds.covers(machine, user, self.text)))
            }
            Origin::Damage(part) => {
                for hold in holds.list() {
                    let covers = match &hold.selector {
                        Selector::Session(id) | Selector::Mentions(id) => {
                            session::contains(self.text, id)
                        }
                        Selector::User(name) | Selector::Machine(name) => part.names(name)?,
                    };
                    if covers {
                        return Ok(Some(hold));
                    }
                }
                Ok(None)
            }
        }
    }
}

impl Remains {
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Surplus(epoch) => epoch.surplus(),
            Self::Journal(path) => path.clone(),
        }
    }

    /// Returns the size of the file and the time of its last change in ms; `None` without the file.
    pub(super) fn version(&self) -> io::Result<Option<(u64, u64)>> {
        let found = match fs::metadata(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let changed = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some((found.len(), u64::try_from(changed.as_millis()).unwrap_or(u64::MAX))))
    }

    /// Passes its lines to a function, which returns `false` to end.
    pub(super) fn each(
        &self,
        mut show: impl FnMut(&Piece<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut more = true;
        let mut show = |piece: Piece<'_>| {
            if more {
                more = show(&piece)?;
            }
            Ok::<_, io::Error>(())
        };
        match self {
            Self::Surplus(epoch) => {
                let key = epoch.key();
                let machine = key.as_ref().map_or("", |key| &key.machine);
                let file = match open_regular_file(&epoch.surplus()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    file => file?,
                };
                each_line(BufReader::new(file), |at, text| {
                    let users = epoch.users().collect();
                    show(Piece { at, text, origin: Origin::Sent { machine, users } })
                })
            }
            Self::Journal(path) => damaged_parts(path, |part| match part {
                DamagedPart::Lines { at, machine, user, text } => each_line(text, |from, text| {
                    let origin = Origin::Sent { machine, users: vec![user] };
                    show(Piece { at: at + from, text, origin })
                }),
                DamagedPart::Damage { start, lines, end } => {
                    let part = Damage { path, start, end, known: RefCell::default() };
                    // What names the sender before the lines stays: later erasures need it.
                    each_line(part.reader(lines)?, |from, text| {
                        show(Piece { at: lines + from, text, origin: Origin::Damage(&part) })
                    })
                }
            }),
        }
    }

    /// Removes the lines that an erasure selects and no hold covers. In a journal they are overwritten with
    /// spaces, so that its other parts can still be read.
    pub(super) fn erase(&self, subject: &Subject, holds: &Holds) -> io::Result<()> {
        let mut erased: Vec<(u64, u64)> = Vec::new();
        self.each(|piece| {
            if piece.is_selected(subject)? && piece.hold(holds)?.is_none() {
                erased.push((piece.at, piece.text.len() as u64));
            }
            Ok(true)
        })?;
        if erased.is_empty() {
            return Ok(());
        }
        let path = self.path();
        let kept = match self {
            Self::Surplus(_) => rewrite(&path, |to| copy_without(&path, &erased, to)),
            Self::Journal(_) => rewrite(&path, |to| copy_with_blanks(&path, &erased, to)),
        }?;
        warn!(code = "erasure_removed_remains", file = %path.display(), kept, "removed erased lines in a file of a recovery");
        path.parent().map_or(Ok(()), crate::store::sync_directory)
    }
}

/// Passes the lines that are read to a function, each with its position and its newline. Zeros, which follow
/// the last frame of a journal, are left out, and so are lines that were erased before.
fn each_line(
    mut reader: impl BufRead,
    mut show: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut at, mut line) = (0, Vec::new());
    loop {
        let zeros = reader.fill_buf()?.iter().take_while(|byte| **byte == 0).count();
        if zeros > 0 {
            reader.consume(zeros);
            at += zeros as u64;
            continue;
        }
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if !line.trim_ascii().is_empty() {
            show(at, &line)?;
        }
        at += line.len() as u64;
        line.clear();
    }
}

/// Replaces a file by what a function writes, and removes it if that is nothing. Returns the number of bytes
/// that are left.
fn rewrite(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    let aside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let to = private(options.write(true).create(true).truncate(true)).open(&aside)?;
    let mut to = BufWriter::new(to);
    write(&mut to)?;
    let to = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    to.sync_all()?;
    let kept = to.metadata()?.len();
    drop(to);
    if kept == 0 {
        fs::remove_file(&aside)?;
        fs::remove_file(path)?;
    } else {
        fs::rename(&aside, path)?;
    }
    Ok(kept)
}

/// Copies a file without the lines at some positions.
fn copy_without(path: &Path, erased: &[(u64, u64)], to: &mut impl Write) -> io::Result<()> {
    let mut from = open_regular_file(path)?;
    let mut end = 0;
    for (at, bytes) in erased {
        io::copy(&mut (&from).take(at - end), to)?;
        end = at + bytes;
        from.seek(SeekFrom::Start(end))?;
    }
    io::copy(&mut from, to)?;
    Ok(())
}
