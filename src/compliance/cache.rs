//! What was found in the account's file, as long as the file is the same: it may be megabytes long,
//! and a hook is called for each prompt.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::account::{SignInState, read_sign_in_state};
use crate::platform::{
    Timestamp,
    file::{self, Stamp},
    secure_file,
};

/// The cache in the state directory.
const FILE: &str = "account.json";
/// A file that is smaller is quicker read than asked for.
const LEAST: u64 = 64 << 10;
/// A file that was changed so recently may be changed again without looking any different.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    path: PathBuf,
    stamp: Stamp,
    standing: SignInState,
}

/// What stands in the account's file at `path`, with a cache in `state_dir`.
#[must_use]
pub fn read_sign_in_state_cached(path: &Path, state_dir: &Path, now: Timestamp) -> SignInState {
    let cache = state_dir.join(FILE);
    let Some(stamp) = stamp(path).filter(|stamp| stamp.size >= LEAST) else {
        return read_sign_in_state(path);
    };
    if let Some(row) = read(&cache)
        && row.stamp == stamp
        && row.path == path
    {
        return row.standing;
    }
    let standing = read_sign_in_state(path);
    // What changed meanwhile, or a moment ago, is looked at again.
    if is_settled(&stamp, now) && self::stamp(path) == Some(stamp) {
        let row = Row { path: path.to_owned(), stamp, standing: standing.clone() };
        // Without a cache it only takes longer.
        drop(write(&cache, &row));
    }
    standing
}

fn stamp(path: &Path) -> Option<Stamp> {
    let sight = file::inspect(&path.canonicalize().ok()?).ok()?;
    (sight.kind == file::FileKind::File).then_some(sight.stamp)
}

fn is_settled(stamp: &Stamp, now: Timestamp) -> bool {
    let changed = Duration::from_nanos(stamp.modified.max(stamp.changed).max(0).unsigned_abs());
    // A time that lies ahead says nothing.
    Duration::from_millis(now.0).checked_sub(changed).is_some_and(|ago| ago > SETTLED)
}

fn read(cache: &Path) -> Option<Row> {
    let (file, _) = file::open_regular(cache).ok()??;
    if !secure_file::has_trusted_owner(&file).ok()? {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LEAST).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Several hooks may be at it: each writes a file of its own, and the last one stays.
fn write(cache: &Path, row: &Row) -> io::Result<()> {
    let beside = cache.with_extension(format!("{}.new", std::process::id()));
    fs::write(&beside, serde_json::to_vec(row)?)?;
    fs::rename(&beside, cache).inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compliance::account::SignedInAccount;

    fn content(email: &str) -> String {
        let rest = " ".repeat(100_000);
        format!(r#"{{"history":["{rest}"],"oauthAccount":{{"emailAddress":"{email}"}}}}"#)
    }

    /// Long after any file was written.
    const LATER: Timestamp = Timestamp(1 << 42);

    fn email(standing: SignInState) -> Option<String> {
        match standing {
            SignInState::SignedIn(SignedInAccount { email, .. }) => email,
            _ => None,
        }
    }

    #[test]
    fn a_large_file_is_read_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".claude.json");
        let look = || email(read_sign_in_state_cached(&path, folder.path(), LATER));
        for round in ["a@b.c", "b@b.c"] {
            fs::write(&path, content(round)).unwrap();
            assert_eq!(look().as_deref(), Some(round));
            assert_eq!(look().as_deref(), Some(round));
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), None);
    }

    /// Whoever signs out and in within a moment leaves a file of the same size and time.
    #[test]
    fn a_file_that_has_just_changed_is_not_kept() {
        let at = |seconds: i64| Stamp { modified: seconds * 1_000_000_000, ..Stamp::default() };
        let now = Timestamp(1_000_000);
        for (seconds, settled) in [(900, true), (997, true), (999, false), (1000, false)] {
            assert_eq!(is_settled(&at(seconds), now), settled, "{seconds}");
        }
        assert!(!is_settled(&at(5000), now), "a clock that was set back");
        assert!(!is_settled(&Stamp { changed: 999_000_000_000, ..at(900) }, now));
        // The next look at a file that has not settled reads it again.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".claude.json");
        fs::write(&path, content("a@b.c")).unwrap();
        drop(read_sign_in_state_cached(&path, folder.path(), now));
        assert!(read(&folder.path().join(FILE)).is_none());
    }

    #[test]
    fn a_cache_that_makes_no_sense_or_is_of_another_file_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        fs::write(&one, content("a@b.c")).unwrap();
        fs::write(&other, content("b@b.c")).unwrap();
        let stamp = stamp(&one).unwrap();
        let standing = SignInState::SignedIn(SignedInAccount {
            email: Some("x".into()),
            ..SignedInAccount::default()
        });
        let cache = folder.path().join(FILE);
        write(&cache, &Row { path: one.clone(), stamp, standing }).unwrap();
        let look =
            |path: &Path| email(read_sign_in_state_cached(path, folder.path(), LATER)).unwrap();
        assert_eq!(look(&one), "x", "the cache is asked");
        assert_eq!(look(&other), "b@b.c");
        fs::write(&cache, "{").unwrap();
        assert_eq!(look(&one), "a@b.c");
    }
}
