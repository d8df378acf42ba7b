//! Which places answer: a pure function of the calls that are overdue and have returned.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::DoesNotAnswer;

/// Maximum number of calls that are overdue at the same time: each occupies a thread.
pub(super) const MAX_OVERDUE: usize = 32;
/// Maximum number of places that are remembered to have answered.
const MAX_ANSWERED: usize = 4096;

/// A place that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilentPlace {
    /// Path of the place.
    pub path: PathBuf,
    /// Uptime since which a call has not returned.
    pub since: Duration,
}

/// Places, by whether they answer.
#[derive(Debug, Default)]
pub(super) struct Places {
    silent: BTreeMap<PathBuf, OverdueCalls>,
    answered: HashSet<PathBuf>,
}

/// Calls of one place that have not returned in time.
#[derive(Debug)]
struct OverdueCalls {
    since: Duration,
    count: usize,
}

impl Places {
    /// Returns the time within which a call must return, or refuses it, since a call in this place or
    /// one above it is overdue.
    ///
    /// While other places are silent, one that has never answered gets less time: many links may lead
    /// to one file system that hangs.
    pub(super) fn admit(&self, place: &Path, limit: Duration) -> Result<Duration, DoesNotAnswer> {
        if let Some(silent) = place.ancestors().find(|above| self.silent.contains_key(*above)) {
            return Err(DoesNotAnswer { place: silent.to_owned() });
        }
        if self.answered.contains(place) {
            return Ok(limit);
        }
        match self.silent.values().map(|calls| calls.count).sum() {
            0 => Ok(limit),
            1..4 => Ok(limit / 5),
            4..MAX_OVERDUE => Ok(limit / 25),
            _ => Err(DoesNotAnswer { place: place.to_owned() }),
        }
    }

    /// Records that a call that began at `since` is overdue; returns the place if it answered until
    /// now.
    pub(super) fn add_overdue(&mut self, place: &Path, since: Duration) -> Option<SilentPlace> {
        let calls = self.silent.entry(place.to_owned());
        let calls = calls.or_insert(OverdueCalls { since, count: 0 });
        calls.count += 1;
        (calls.count == 1).then(|| SilentPlace { path: place.to_owned(), since })
    }

    /// Records that a call returned in time.
    pub(super) fn add_answer(&mut self, place: &Path) {
        if self.answered.contains(place) {
            return;
        }
        if self.answered.len() >= MAX_ANSWERED {
            self.answered.clear();
        }
        self.answered.insert(place.to_owned());
    }

    /// Records that an overdue call returned; returns the place if it answers from now on.
    pub(super) fn remove_overdue(&mut self, place: &Path) -> Option<SilentPlace> {
        let calls = self.silent.get_mut(place)?;
        calls.count -= 1;
        if calls.count > 0 {
            return None;
        }
        self.add_answer(place);
        let (path, calls) = self.silent.remove_entry(place)?;
        Some(SilentPlace { path, since: calls.since })
    }

    /// Returns true if a call in `place` is overdue.
    pub(super) fn is_silent(&self, place: &Path) -> bool {
        self.silent.contains_key(place)
    }

    /// Returns the places that do not answer.
    pub(super) fn silent(&self) -> Vec<SilentPlace> {
        let place = |(path, calls): (&PathBuf, &OverdueCalls)| SilentPlace {
            path: path.clone(),
            since: calls.since,
        };
        self.silent.iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn silent(path: &str) -> SilentPlace {
        SilentPlace { path: path.into(), since: Duration::from_secs(7) }
    }

    fn add_overdue(places: &mut Places, path: &str) -> Option<SilentPlace> {
        places.add_overdue(Path::new(path), Duration::from_secs(7))
    }

    #[test]
    fn place_is_silent_until_all_overdue_calls_have_returned() {
        let mut places = Places::default();
        assert_eq!(places.admit(Path::new("/a"), LIMIT), Ok(LIMIT));
        assert_eq!(add_overdue(&mut places, "/a"), Some(silent("/a")));
        assert_eq!(add_overdue(&mut places, "/a"), None, "it is known");
        assert_eq!(places.silent(), [silent("/a")]);
        assert_eq!(places.remove_overdue(Path::new("/a")), None);
        assert!(places.admit(Path::new("/a"), LIMIT).is_err());
        assert_eq!(places.remove_overdue(Path::new("/a")), Some(silent("/a")));
        assert_eq!(places.admit(Path::new("/a"), LIMIT), Ok(LIMIT));
        assert_eq!(places.silent(), []);
    }

    #[test]
    fn places_below_a_silent_one_are_silent_and_others_are_not() {
        let mut places = Places::default();
        for known in ["/a/b/c", "/ab", "/a"] {
            places.add_answer(Path::new(known));
        }
        add_overdue(&mut places, "/a/b");
        let silent = DoesNotAnswer { place: "/a/b".into() };
        assert_eq!(places.admit(Path::new("/a/b/c"), LIMIT), Err(silent));
        assert_eq!(places.admit(Path::new("/a"), LIMIT), Ok(LIMIT));
        assert_eq!(places.admit(Path::new("/ab"), LIMIT), Ok(LIMIT));
    }

    /// Each of a thousand links to a share that hangs would cost the whole limit, and a thread.
    #[test]
    fn unknown_places_get_less_time_and_are_refused_in_the_end() {
        let mut places = Places::default();
        places.add_answer(Path::new("/good"));
        let mut limits = Vec::new();
        for n in 0.. {
            let place = format!("/link/{n}");
            let Ok(limit) = places.admit(Path::new(&place), LIMIT) else { break };
            limits.push(limit);
            add_overdue(&mut places, &place);
        }
        assert_eq!(limits.len(), MAX_OVERDUE);
        let total: Duration = limits.iter().sum();
        assert!(total < Duration::from_secs(15), "{total:?}");
        assert_eq!(places.admit(Path::new("/good"), LIMIT), Ok(LIMIT));
    }
}
