//! What the enricher remembers between records: calls of tools, and turns.
//!
//! Both tables are bounded and lose nothing that matters: without them a result has no tool name and
//! no duration, and a record has no turn.

use std::{collections::HashMap, hash::Hash, mem, time::SystemTime};

use ai_agent_stage::FileKey;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::tools::Kind;

/// Maximum number of remembered calls, in two halves: about 100 bytes each.
const CALLS: usize = 8192;
/// Maximum number of files whose turns are remembered, in two halves: about 30 bytes each.
const FILES: usize = 4096;
/// Longer names of tools are not remembered.
const MAX_NAME: usize = 128;

/// Table of at most `limit` entries, in two halves: when the newer one is full, the older one is
/// forgotten. An entry that is used moves to the newer one.
struct Recent<K, V> {
    limit: usize,
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, newer: HashMap::new(), older: HashMap::new() }
    }

    fn insert(&mut self, key: K, value: V) {
        if self.newer.len() >= self.limit / 2 && !self.newer.contains_key(&key) {
            self.older = mem::take(&mut self.newer);
        }
        self.older.remove(&key);
        self.newer.insert(key, value);
    }

    fn get(&mut self, key: K) -> Option<&mut V>
    where
        K: Copy,
    {
        if let Some(value) = self.older.remove(&key) {
            self.insert(key, value);
        }
        self.newer.get_mut(&key)
    }

    fn remove(&mut self, key: &K) {
        self.newer.remove(key);
        self.older.remove(key);
    }

    fn values(&mut self) -> impl Iterator<Item = &mut V> {
        self.newer.values_mut().chain(self.older.values_mut())
    }

    fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.newer.retain(|_, value| keep(value));
        self.older.retain(|_, value| keep(value));
    }
}

/// A remembered call.
pub(super) struct KnownCall {
    /// Offset of its record. Only a later record can have its result: after a rollback, calls are
    /// remembered that have not been read again.
    pub(super) offset: u64,
    /// Name of the tool, as in the record.
    pub(super) name: Box<str>,
    pub(super) kind: Kind,
    /// Time of the call.
    pub(super) at: Option<SystemTime>,
}

/// Turns of a file.
struct Turns {
    now: u64,
    /// Number at the last commit. `None` if the file was not known then.
    stored: Option<u64>,
}

/// Everything that is remembered.
pub(super) struct Memory {
    calls: Recent<u128, KnownCall>,
    turns: Recent<FileKey, Turns>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { calls: Recent::new(CALLS), turns: Recent::new(FILES) }
    }
}

impl Memory {
    /// Remembers a call. A result that is read again after a rollback finds it again, because a call
    /// stays until newer ones replace it.
    pub(super) fn call(&mut self, file: FileKey, id: &str, call: KnownCall) {
        if call.name.len() <= MAX_NAME {
            self.calls.insert(call_key(file, id), call);
        }
    }

    /// Returns the call of a result in the record at `offset`.
    pub(super) fn call_of(&mut self, file: FileKey, id: &str, offset: u64) -> Option<&KnownCall> {
        self.calls.get(call_key(file, id)).map(|call| &*call).filter(|call| call.offset < offset)
    }

    /// Starts to count the turns of a file from its beginning.
    pub(super) fn start_turns(&mut self, file: FileKey) {
        self.set_turn(file, 0);
    }

    /// Sets the turn that the record itself names.
    pub(super) fn set_turn(&mut self, file: FileKey, turn: u64) {
        match self.turns.get(file) {
            Some(turns) => turns.now = turn,
            None => self.turns.insert(file, Turns { now: turn, stored: None }),
        }
    }

    /// Counts a prompt, if the turns of the file are known.
    pub(super) fn next_turn(&mut self, file: FileKey) {
        if let Some(turns) = self.turns.get(file) {
            turns.now += 1;
        }
    }

    /// Returns the turn of a file; `None` before its first prompt, and if its beginning was not seen.
    pub(super) fn turn(&mut self, file: FileKey) -> Option<u64> {
        self.turns.get(file).map(|turns| turns.now).filter(|turn| *turn > 0)
    }

    /// All turns are stored.
    pub(super) fn commit(&mut self) {
        self.turns.values().for_each(|turns| turns.stored = Some(turns.now));
    }

    /// Goes back to the turns at the last commit.
    pub(super) fn rollback(&mut self) {
        self.turns.retain(|turns| turns.stored.is_some());
        self.turns.values().for_each(|turns| turns.now = turns.stored.unwrap_or_default());
    }

    /// Forgets the turns of a deleted file. Its calls are replaced by newer ones.
    pub(super) fn forget(&mut self, file: FileKey) {
        self.turns.remove(&file);
    }
}

/// A fork of a session copies the ids of calls into another file.
fn call_key(file: FileKey, id: &str) -> u128 {
    xxh3_128_with_seed(id.as_bytes(), file.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileKey = FileKey(1);

    #[test]
    fn table_is_bounded_and_keeps_what_is_used() {
        let mut table = Recent::new(8);
        table.insert(0, 'a');
        for key in 1..100 {
            table.insert(key, 'b');
            assert!(table.newer.len() + table.older.len() <= 8);
            assert_eq!(table.get(0), Some(&mut 'a'), "used at each step");
        }
        assert_eq!(table.get(50), None);
        assert_eq!(table.get(99), Some(&mut 'b'));
    }

    #[test]
    fn rolled_back_turns_are_counted_again() {
        let mut memory = Memory::default();
        memory.start_turns(FILE);
        memory.next_turn(FILE);
        memory.commit();
        memory.next_turn(FILE);
        memory.start_turns(FileKey(2));
        memory.next_turn(FileKey(2));
        assert_eq!((memory.turn(FILE), memory.turn(FileKey(2))), (Some(2), Some(1)));
        memory.rollback();
        assert_eq!((memory.turn(FILE), memory.turn(FileKey(2))), (Some(1), None));
    }

    #[test]
    fn turns_without_a_beginning_are_unknown() {
        let mut memory = Memory::default();
        memory.next_turn(FILE);
        assert_eq!(memory.turn(FILE), None);
        memory.set_turn(FILE, 7);
        memory.next_turn(FILE);
        assert_eq!(memory.turn(FILE), Some(8));
        memory.forget(FILE);
        assert_eq!(memory.turn(FILE), None);
    }

    #[test]
    fn calls_of_two_files_are_distinguished() {
        let mut memory = Memory::default();
        let call = KnownCall { offset: 5, name: "Bash".into(), kind: Kind::Execute, at: None };
        memory.call(FILE, "t1", call);
        assert!(memory.call_of(FileKey(2), "t1", 9).is_none());
        assert_eq!(&*memory.call_of(FILE, "t1", 9).unwrap().name, "Bash");
        assert!(memory.call_of(FILE, "t1", 5).is_none(), "only a later record has its result");
        memory.rollback();
        assert!(memory.call_of(FILE, "t1", 9).is_some(), "its result may be read again");
    }
}
