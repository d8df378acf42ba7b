//! Drops a record whose `uuid` was already seen in the same file since the agent started.
//!
//! The client sometimes appends earlier messages again, with the same uuid. Files are not compared
//! with each other: a fork copies uuids on purpose. After a rewrite of the file, a record with the
//! same uuid is a duplicate only if its bytes are the same too. Records that are read again because
//! bytes of the file were altered are kept. Always on.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    mem,
};

use ai_agent_stage::{BuildError, Event, FileKey, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::AgentEvent;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

inventory::submit! {
    Plugin::filter::<Options>(
        "dedupe",
        "Drops a record whose `uuid` was already seen in the same file. Always on.",
        "",
    )
}

/// Maximum number of remembered uuids of all files together, at about 30 bytes each. Beyond it the
/// least recently read files are forgotten; duplicates in them are then shipped. A session of 100 MB
/// has about 30,000 uuids, and a backlog is read one file after the other.
const LIMIT: usize = 100_000;

/// The filter has no options.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

impl FilterOptions for Options {
    type Filter = Dedupe;

    fn build(self) -> Result<Dedupe, BuildError> {
        Ok(Dedupe { limit: LIMIT, seed: fastrand::u64(..), ..Dedupe::default() })
    }
}

/// Hash of a uuid, which may be any text.
type Uuid = [u8; 16];

/// Uuids, each with a hash of the bytes of its record.
type Uuids = HashMap<Uuid, u32, BuildHasherDefault<KeyPrefixHasher>>;

/// Uses the first bytes of a key, which is a hash already. Keeps the many maps small.
#[derive(Default)]
struct KeyPrefixHasher(u64);

impl Hasher for KeyPrefixHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// Ignores the length of the key, which is constant.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Remembers the uuids of each file.
#[derive(Default)]
struct Dedupe {
    limit: usize,
    /// Random seed of the hashes, so that colliding uuids cannot be constructed.
    seed: u64,
    files: HashMap<FileKey, FileUuids>,
    /// Number of uuids of all files together.
    total: usize,
    /// Number of checks so far; identifies the file that was read last.
    ticks: u64,
    /// Uuids added since the last commit.
    fresh: Vec<(FileKey, Uuid)>,
    events: Vec<Event>,
}

/// The uuids of one file.
#[derive(Default)]
struct FileUuids {
    era: u32,
    used: u64,
    /// Uuids since the last rewrite of the file.
    current: Uuids,
    /// Uuids from before the last rewrite.
    earlier: Option<Box<Uuids>>,
}

impl FileUuids {
    fn len(&self) -> usize {
        self.current.len() + self.earlier.as_ref().map_or(0, |earlier| earlier.len())
    }

    fn start_era(&mut self, era: u32) {
        if self.era != era {
            self.era = era;
            let current = mem::take(&mut self.current);
            if !current.is_empty() {
                self.earlier.get_or_insert_default().extend(current);
            }
        }
    }
}

impl Filter for Dedupe {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.origin().is_altered {
            return Verdict::Keep;
        }
        let Some(text) = record.uuid() else { return Verdict::Keep };
        let origin = record.origin();
        let uuid = xxh3_128_with_seed(text.as_bytes(), self.seed).to_le_bytes();
        let [a, b, c, d, ..] = xxh3_64(record.line()).to_le_bytes();
        let bytes = u32::from_le_bytes([a, b, c, d]);

        self.ticks += 1;
        let seen = self.files.entry(origin.file).or_default();
        seen.used = self.ticks;
        seen.start_era(origin.era);
        let earlier = seen.earlier.as_ref().and_then(|earlier| earlier.get(&uuid));
        if earlier == Some(&bytes) {
            return Verdict::Drop("duplicate_uuid");
        }
        match seen.current.entry(uuid) {
            Entry::Occupied(known) if *known.get() == bytes => Verdict::Drop("duplicate_uuid"),
            Entry::Occupied(_) => {
                self.events.push(reused(record, &text));
                Verdict::Drop("reused_uuid")
            }
            Entry::Vacant(entry) => {
                entry.insert(bytes);
                self.fresh.push((origin.file, uuid));
                self.total += 1;
                self.make_room(origin.file);
                Verdict::Keep
            }
        }
    }

    fn commit(&mut self) {
        self.fresh.clear();
    }

    fn rollback(&mut self) {
        self.events.clear();
        for (file, uuid) in mem::take(&mut self.fresh) {
            let Some(seen) = self.files.get_mut(&file) else { continue };
            let earlier = || seen.earlier.as_mut()?.remove(&uuid);
            let removed = seen.current.remove(&uuid).or_else(earlier);
            self.total -= usize::from(removed.is_some());
        }
    }

    fn forget(&mut self, file: FileKey) {
        self.total -= self.files.remove(&file).map_or(0, |seen| seen.len());
    }

    fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }
}

impl Dedupe {
    /// Forgets the least recently read files until a quarter of the limit is free; the file that is
    /// being read is last.
    fn make_room(&mut self, reading: FileKey) {
        if self.total <= self.limit {
            return;
        }
        let mut files: Vec<_> = self.files.iter().map(|(key, seen)| (seen.used, *key)).collect();
        files.sort_unstable();
        for (_, file) in files {
            if self.total <= self.limit / 4 * 3 {
                break;
            }
            self.forget(file);
        }
        if !self.files.contains_key(&reading) {
            tracing::warn!(
                code = "dedupe_limit_reached",
                limit = self.limit,
                "too many uuids in one file: duplicates may be shipped"
            );
        }
    }
}

fn reused(record: &Record<'_>, uuid: &str) -> Event {
    let origin = record.origin();
    let reused = AgentEvent::UuidReused {
        path: origin.path.to_string_lossy().into_owned(),
        generation: origin.generation.0.clone(),
        offset: record.offset(),
        uuid: uuid.to_owned(),
    };
    reused.into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use siem_protocol::names::event;

    use super::*;
    use crate::tail::{GenerationId, Origin};

    const KEEP: Verdict = Verdict::Keep;
    const DUPLICATE: Verdict = Verdict::Drop("duplicate_uuid");
    const REUSED: Verdict = Verdict::Drop("reused_uuid");

    fn dedupe(limit: usize) -> Dedupe {
        Dedupe { limit, ..Dedupe::default() }
    }

    fn origin(file: u64, era: u32) -> Origin {
        let path = Path::new("/p/a.jsonl");
        let mut origin = Origin::new(FileKey(file), path, GenerationId("g".into()));
        origin.era = era;
        origin
    }

    #[test]
    fn record_that_is_read_again_after_an_alteration_is_kept() {
        let mut filter = dedupe(10);
        for (altered, text, verdict) in [
            (false, r#"{"uuid":"a","n":1}"#, KEEP),
            (true, r#"{"uuid":"a","n":1}"#, KEEP),
            (true, r#"{"uuid":"a","n":2}"#, KEEP),
            (false, r#"{"uuid":"a","n":1}"#, DUPLICATE),
        ] {
            let mut origin = origin(1, 0);
            origin.is_altered = altered;
            let record = Record::new(&origin, 0, text.as_bytes());
            assert_eq!(filter.check(&record), verdict, "{altered} {text}");
        }
    }

    fn check(filter: &mut Dedupe, file: u64, era: u32, line: &str) -> Verdict {
        filter.check(&Record::new(&origin(file, era), 0, line.as_bytes()))
    }

    #[test]
    fn uuid_seen_in_the_same_file_is_dropped() {
        let mut filter = dedupe(100);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a"}"#), KEEP);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a"}"#), DUPLICATE);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"b"}"#), KEEP);
        assert!(filter.take_events().is_empty());
    }

    #[test]
    fn uuid_seen_in_another_file_is_kept() {
        let mut filter = dedupe(100);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a"}"#), KEEP);
        assert_eq!(check(&mut filter, 2, 0, r#"{"uuid":"a"}"#), KEEP);
    }

    #[test]
    fn records_without_uuid_are_kept() {
        let mut filter = dedupe(100);
        for line in [r#"{"type":"mode"}"#, r#"{"uuid":5}"#, r#"{"uuid":null}"#, "{\"uuid\":\"a\""] {
            assert_eq!(check(&mut filter, 1, 0, line), KEEP);
            assert_eq!(check(&mut filter, 1, 0, line), KEEP);
        }
    }

    #[test]
    fn uuid_with_other_bytes_is_dropped_and_reported() {
        let mut filter = dedupe(100);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a","n":1}"#), KEEP);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a","n":2}"#), REUSED);
        let events = filter.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].name, event::UUID_REUSED);
        assert_eq!(events[0].data["uuid"], "a");
    }

    #[test]
    fn after_rewrite_only_same_bytes_are_duplicates() {
        let mut filter = dedupe(100);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a","n":1}"#), KEEP);
        assert_eq!(check(&mut filter, 1, 1, r#"{"uuid":"a","n":1}"#), DUPLICATE);
        assert_eq!(check(&mut filter, 1, 1, r#"{"uuid":"a","n":2}"#), KEEP);
        assert_eq!(check(&mut filter, 1, 1, r#"{"uuid":"a","n":3}"#), REUSED);
    }

    /// If the memory outlived a group that was not stored, the record would be dropped when it is read
    /// again, and lost.
    #[test]
    fn rollback_forgets_unstored_uuids() {
        let mut filter = dedupe(100);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a"}"#), KEEP);
        filter.commit();
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"b"}"#), KEEP);
        filter.rollback();
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"b"}"#), KEEP);
        assert_eq!(check(&mut filter, 1, 0, r#"{"uuid":"a"}"#), DUPLICATE);
    }

    #[test]
    fn memory_is_limited_and_oldest_file_is_forgotten() {
        let mut filter = dedupe(8);
        for file in 0..4 {
            for n in 0..2 {
                assert_eq!(check(&mut filter, file, 0, &format!(r#"{{"uuid":"{n}"}}"#)), KEEP);
            }
        }
        assert_eq!(check(&mut filter, 4, 0, r#"{"uuid":"0"}"#), KEEP);
        assert!(filter.total <= 8);
        assert_eq!(check(&mut filter, 3, 0, r#"{"uuid":"0"}"#), DUPLICATE);
        assert_eq!(check(&mut filter, 0, 0, r#"{"uuid":"0"}"#), KEEP);
    }

    #[test]
    fn deleted_file_frees_its_memory() {
        let mut filter = dedupe(8);
        check(&mut filter, 1, 0, r#"{"uuid":"a"}"#);
        filter.forget(FileKey(1));
        assert_eq!((filter.total, filter.files.len()), (0, 0));
    }
}
