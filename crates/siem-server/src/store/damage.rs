//! Damage of the files of epochs.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{ReadError, epoch::Stem, index_record::scan, note::Note, read_only::epochs_with};
use crate::regular_file::open_regular_file;

/// Returns the damaged files of epochs of a data directory, each with what is wrong, and changes nothing. The
/// lines are not read. `is_recovered` is true if no receiver runs, and the store was opened: a copy of one that
/// runs ends anywhere.
pub(crate) fn damage(data: &Path, is_recovered: bool) -> Result<Vec<(PathBuf, String)>, ReadError> {
    let machines = data.join("machines");
    let mut found = Vec::new();
    let indexes = epochs_with(&machines, "index")?;
    for stem in &indexes {
        let path = stem.index(&machines);
        match of_epoch(&machines, stem, is_recovered) {
            Ok(problems) => found.extend(problems),
            Err(error) => found.push((path, error.to_string())),
        }
    }
    if is_recovered {
        let lines: BTreeSet<Stem> = epochs_with(&machines, "ndjson")?;
        for stem in lines.difference(&indexes) {
            if length(&stem.lines(&machines)).is_ok_and(|length| length > 0) {
                let text = "is missing, but there are lines of its epoch";
                found.push((stem.index(&machines), text.to_owned()));
            }
        }
    }
    Ok(found)
}

fn of_epoch(
    machines: &Path,
    stem: &Stem,
    is_recovered: bool,
) -> io::Result<Vec<(PathBuf, String)>> {
    let (index, lines) = (stem.index(machines), stem.lines(machines));
    let mut found = Vec::new();
    let (mut places, mut lines_end) = (0, 0);
    let file = open_regular_file(&index)?;
    let end = scan(&file, 0, |_, _, text| {
        match serde_json::from_slice::<Note>(text) {
            Ok(note) => lines_end = note.lines_at + note.bytes,
            Err(_) => places += 1,
        }
        Ok(())
    })?;
    places += end.damaged.len();
    if places > 0 {
        let text = format!("is damaged in {places} places: batches that it had there are missing");
        found.push((index.clone(), text));
    }
    if is_recovered {
        if end.end < file.metadata()?.len() {
            found.push((index, "ends in the middle of a record".to_owned()));
        }
        let surplus = length(&lines)?.saturating_sub(lines_end);
        if surplus > 0 {
            found.push((lines, format!("has {surplus} bytes of lines that its index lacks")));
        }
    }
    Ok(found)
}

/// Returns the size of a file; 0 without it.
fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => Ok(found?.len()),
    }
}
