//! Cache of the account found in a large file. The file may be megabytes long, and a hook is called
//! for each prompt.

use std::{
    fs, io,
    io::{Read as _, Write as _},
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

/// Cache file in the state directory.
const FILE: &str = "account.json";
/// A smaller file is read faster than the cache.
const LEAST: u64 = 64 << 10;
/// A file that was changed this recently may change again without a visible difference.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    path: PathBuf,
    stamp: Stamp,
    #[serde(rename = "standing")]
    state: SignInState,
}

/// Same as [`read_sign_in_state`], with a cache in `state_dir`.
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
        return row.state;
    }
    let state = read_sign_in_state(path);
    // A file that changed meanwhile, or a moment ago, is read again next time.
    if is_settled(&stamp, now) && self::stamp(path) == Some(stamp) {
        let row = Row { path: path.to_owned(), stamp, state: state.clone() };
        // A missing cache costs time only.
        drop(write(&cache, &row));
    }
    state
}

fn stamp(path: &Path) -> Option<Stamp> {
    let info = file::inspect(&path.canonicalize().ok()?).ok()?;
    (info.kind == file::FileKind::File).then_some(info.stamp)
}

fn is_settled(stamp: &Stamp, now: Timestamp) -> bool {
    let changed = Duration::from_nanos(stamp.modified.max(stamp.changed).max(0).unsigned_abs());
    // A time in the future proves nothing.
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

/// Several hooks may write at once: each has its own temporary file, and the last rename wins.
fn write(cache: &Path, row: &Row) -> io::Result<()> {
    let beside = cache.with_extension(format!("{}.new", std::process::id()));
    let mut file = secure_file::create_new(&beside)?;
    file.write_all(&serde_json::to_vec(row)?)?;
    drop(file);
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

    fn email(state: SignInState) -> Option<String> {
        match state {
            SignInState::SignedIn(SignedInAccount { email, .. }) => email,
            _ => None,
        }
    }

    #[test]
    fn large_file_is_read_again_after_a_change() {
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

    /// Signing out and in within a moment leaves a file of the same size and time.
    #[test]
    fn file_changed_just_now_is_not_cached() {
        let at = |seconds: i64| Stamp { modified: seconds * 1_000_000_000, ..Stamp::default() };
        let now = Timestamp(1_000_000);
        for (seconds, settled) in [(900, true), (997, true), (999, false), (1000, false)] {
            assert_eq!(is_settled(&at(seconds), now), settled, "{seconds}");
        }
        assert!(!is_settled(&at(5000), now), "a clock that was set back");
        assert!(!is_settled(&Stamp { changed: 999_000_000_000, ..at(900) }, now));
        // A file that has not settled is read again.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".claude.json");
        fs::write(&path, content("a@b.c")).unwrap();
        drop(read_sign_in_state_cached(&path, folder.path(), now));
        assert!(read(&folder.path().join(FILE)).is_none());
    }

    #[test]
    fn unreadable_cache_or_cache_of_another_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        fs::write(&one, content("a@b.c")).unwrap();
        fs::write(&other, content("b@b.c")).unwrap();
        let stamp = stamp(&one).unwrap();
        let state = SignInState::SignedIn(SignedInAccount {
            email: Some("x".into()),
            ..SignedInAccount::default()
        });
        let cache = folder.path().join(FILE);
        write(&cache, &Row { path: one.clone(), stamp, state }).unwrap();
        let look =
            |path: &Path| email(read_sign_in_state_cached(path, folder.path(), LATER)).unwrap();
        assert_eq!(look(&one), "x", "the cache is used");
        assert_eq!(look(&other), "b@b.c");
        fs::write(&cache, "{").unwrap();
        assert_eq!(look(&one), "a@b.c");
    }
}
