//! Damage of the files of epochs and journals in a copy of a data directory.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    ReadError,
    epoch::Stem,
    index_record::scan,
    journal,
    note::Note,
    read_only::{entries, epochs_with},
};
use crate::{
    ledger::{Extents, Ledger, Range},
    regular_file::open_regular_file,
};

/// Returns the damaged files of the store in a data directory, each with what is wrong, and changes nothing.
/// The lines are not read. The store need not have been opened since it was copied: a copy of a running
/// receiver ends anywhere, and the journals have the rest.
pub(crate) fn damage(data: &Path) -> Result<Vec<(PathBuf, String)>, ReadError> {
    let machines = data.join("machines");
    let mut found = left_by_repairs(data)?;
    let journal = in_journals(data)?;
    let indexes = epochs_with(&machines, "index")?;
    for stem in &indexes {
        let in_journal = journal.get(stem).copied();
        match of_epoch(&machines, stem, in_journal) {
            Ok(problems) => found.extend(problems),
            Err(error) => found.push((stem.index(&machines), error.to_string())),
        }
    }
    for stem in epochs_with(&machines, "ndjson")?.difference(&indexes) {
        let has_lines = length(&stem.lines(&machines)).is_ok_and(|length| length > 0);
        if has_lines && !journal.contains_key(stem) {
            let text = "is missing, but there are lines of its epoch";
            found.push((stem.index(&machines), text.to_owned()));
        }
    }
    Ok(found)
}

/// Returns the files in which starts of the receiver kept what they could not use.
pub(crate) fn left_by_repairs(data: &Path) -> Result<Vec<(PathBuf, String)>, ReadError> {
    let mut found = Vec::new();
    let is = |path: &Path, ending: &str| path.extension() == Some(OsStr::new(ending));
    for path in entries(&data.join("journal"))? {
        if is(&path, "damaged") {
            let text = "is a copy of a damaged journal: batches behind the damage may be missing";
            found.push((path, text.to_owned()));
        }
    }
    for machine in entries(&data.join("machines"))?.into_iter().filter(|path| path.is_dir()) {
        for path in entries(&machine)? {
            if is(&path, "surplus") && length(&path).is_ok_and(|length| length > 0) {
                let text = "has lines that the index of their epoch lacks";
                found.push((path, text.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the lowest position of lines of each epoch that the journals write again, and that of the index.
fn in_journals(data: &Path) -> Result<HashMap<Stem, (u64, u64)>, ReadError> {
    let directory = data.join("journal");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError { path, source }
    };
    let mut lowest = HashMap::new();
    for (_, path) in journal::list(&directory).map_err(failed(&directory))? {
        let add = |frame: super::frame::Frame| {
            let (stem, place) = (Stem::of(&frame.place), &frame.place);
            let known = lowest.entry(stem).or_insert((u64::MAX, u64::MAX));
            *known = (known.0.min(place.lines_at), known.1.min(place.index_at));
            Ok(())
        };
        journal::replay(&path, add).map_err(failed(&path))?;
    }
    Ok(lowest)
}

fn of_epoch(
    machines: &Path,
    stem: &Stem,
    in_journal: Option<(u64, u64)>,
) -> io::Result<Vec<(PathBuf, String)>> {
    let (index, lines) = (stem.index(machines), stem.lines(machines));
    let mut found = Vec::new();
    let (mut places, mut lines_end, mut index_end) = (0, 0_u64, 0);
    let (mut ledger, mut lost): (_, Vec<Range>) = (Ledger::default(), Vec::new());
    let mut is_known = false;
    let file = open_regular_file(&index)?;
    let end = scan(&file, 0, |at, head, text| {
        match serde_json::from_slice::<Note>(text) {
            Ok(note) => {
                is_known |= note.sender.is_some();
                (lines_end, index_end) =
                    (note.lines_at.saturating_add(note.bytes), at + head.length());
                ledger.apply(&note.change);
                if note.removed {
                    lost.clear();
                }
                lost.extend(&note.change.lost);
            }
            Err(_) => places += 1,
        }
        Ok(())
    })?;
    places += end.damaged.len();
    if places > 0 {
        let text = format!("is damaged in {places} places: batches that it had there are missing");
        found.push((index.clone(), text));
    }
    let (lines_again, index_again) = in_journal.unwrap_or((u64::MAX, u64::MAX));
    let length = length(&lines)?;
    if is_known && length < lines_end && length < lines_again {
        let bytes = lines_end.min(lines_again) - length;
        found.push((lines.clone(), format!("is cut: {bytes} bytes of lines are missing")));
    }
    if in_journal.is_none() && length > lines_end {
        let bytes = length - lines_end;
        found.push((lines.clone(), format!("has {bytes} bytes of lines that its index lacks")));
    }
    if index_again < u64::MAX && index_end < index_again {
        let text = "is cut: batches before those in the journal are missing";
        found.push((index, text.to_owned()));
    }
    let mut missing = Extents::default();
    for part in lost.into_iter().flat_map(|range| ledger.lacks(range)) {
        missing.missing(part).into_iter().for_each(|part| missing.insert(part, 0));
    }
    let missing: Vec<_> = missing.ranges().iter().map(shown).collect();
    if !missing.is_empty() {
        let text = "an earlier start found them missing, and they did not arrive again";
        found.push((lines, format!("lacks the entries {}: {text}", missing.join(", "))));
    }
    Ok(found)
}

fn shown(range: &Range) -> String {
    match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    }
}

/// Returns the size of a file; 0 without it.
fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => Ok(found?.len()),
    }
}
