//! Damage of the files of this module.

use std::{io, path::Path, path::PathBuf};

use super::{
    AccessLog, Holds, directory, erasures, long_lines, mailbox, subject, unlisted_erasures,
};
use crate::error_text::causes;

/// Returns the damaged files of the data directory `data`, each with what is wrong, and changes nothing.
/// `reads_epochs` is false if the epochs cannot be read, which name the erasures of their lines.
pub(crate) fn damage(data: &Path, reads_epochs: bool) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let directory = directory(data);
    let mut check = |name: &str, result: io::Result<()>| {
        found.extend(result.err().map(|error| (directory.join(name), error.to_string())));
    };
    check("holds.json", Holds::read(data).map(drop));
    check("ended-erasures.json", subject::ended(data).map(drop));
    check("long-lines.json", long_lines::read_all(data).map(drop));
    let listed = erasures(data, &[], &[]).map(drop);
    let is_readable = listed.is_ok();
    check("erasures.ndjson", listed);
    check(
        "access.ndjson",
        AccessLog::new(data).verify().map(drop).map_err(|error| io::Error::other(causes(&error))),
    );
    for id in mailbox::waiting(data).unwrap_or_default() {
        check(&format!("requests/{id}.json"), mailbox::read(data, &id).map(drop));
    }
    if is_readable && reads_epochs {
        let unlisted = match unlisted_erasures(data) {
            Ok(unlisted) if unlisted.is_empty() => Ok(()),
            Ok(unlisted) => {
                let ids: Vec<_> = unlisted.into_keys().collect();
                Err(io::Error::other(format!("lacks the erasures {}", ids.join(", "))))
            }
            Err(error) => Err(io::Error::other(causes(&error))),
        };
        check("erasures.ndjson", unlisted);
    }
    found
}
